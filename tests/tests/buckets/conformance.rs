//! What all else relies on holds for every kind of store.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::layout::{self, SegmentName};
use lockstep_proto::seal::{Chain, Header, KeyId, ObjectKind, StoreId};
use lockstep_proto::store::{
    BucketStore, Entry, Fencing, FileStore, Options, Store, StoreError, StoreErrorKind,
};
use lockstep_tests::real::wait::within;
use lockstep_tests::servers::{Server, azurite, moto, nginx, rgw, wsgidav};
use lockstep_tests::testdir::TestDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// More than two requests of an upload.
const LARGE: usize = 20 << 20;

/// A place of its own on a server.
fn bucket(server: &Server) -> Arc<dyn Store> {
    let mut url = server.prefix("conformance");
    if url.starts_with("http:") {
        url += "?allow_http=true";
    }
    let options = Options::from_vars(server.env.clone());
    Arc::new(BucketStore::connect(&url.parse().unwrap(), &options, PATIENCE).unwrap())
}

fn conforms(store: &dyn Store, fencing: Fencing) {
    assert_eq!(store.fencing().unwrap(), fencing);
    assert!(store.list("").unwrap().is_empty(), "the probe left something");
    objects(store);
    listings(store);
    large_objects(store);
    segments(store);
    abandoned_segments(store);
}

fn objects(store: &dyn Store) {
    assert!(!store.exists("keys/a").unwrap());
    assert!(matches!(kind(store.read("keys/a")), StoreErrorKind::NotFound));
    assert!(matches!(kind(store.read_stream("keys/a").map(drop)), StoreErrorKind::NotFound));
    store.create("keys/a", b"first").unwrap();
    assert!(matches!(kind(store.create("keys/a", b"second")), StoreErrorKind::Exists));
    assert_eq!(store.read("keys/a").unwrap(), b"first");
    // As after an answer that was lost.
    match store.create("keys/a", b"first") {
        Ok(()) => {}
        again => assert!(matches!(kind(again), StoreErrorKind::Exists)),
    }
    assert!(store.exists("keys/a").unwrap());
    store.sync("keys/a").unwrap();
    let mut streamed = Vec::new();
    store.read_stream("keys/a").unwrap().read_to_end(&mut streamed).unwrap();
    assert_eq!(streamed, b"first");
    store.create("keys/empty", b"").unwrap();
    assert_eq!(store.read("keys/empty").unwrap(), b"");
    store.remove("keys/empty").unwrap();
    for _ in 0..2 {
        store.remove("keys/a").unwrap();
        assert!(!store.exists("keys/a").unwrap());
    }
    store.remove("no-such-folder/object").unwrap();
    store.create("keys/a", b"third").unwrap();
    assert_eq!(store.read("keys/a").unwrap(), b"third");
}

fn listings(store: &dyn Store) {
    assert!(store.list("epochs").unwrap().is_empty());
    for name in ["snapshots/00000002/b", "snapshots/00000001/c", "snapshots/00000001/a"] {
        store.create(name, name.as_bytes()).unwrap();
    }
    store.create("lockstep.json", b"{}").unwrap();
    let folder = |name: &str| Entry { name: name.into(), size: 0, folder: true };
    let object = |name: &str, size| Entry { name: name.into(), size, folder: false };
    assert_eq!(
        store.list("").unwrap(),
        [folder("keys"), object("lockstep.json", 2), folder("snapshots")]
    );
    assert_eq!(store.list("snapshots").unwrap(), [folder("00000001"), folder("00000002")]);
    assert_eq!(store.list("snapshots/00000001").unwrap(), [object("a", 20), object("c", 20)]);
    assert_eq!(
        store.list_all("snapshots").unwrap(),
        [object("00000001/a", 20), object("00000001/c", 20), object("00000002/b", 20)]
    );
    // Not one more than there are, nor of a folder whose name goes on.
    store.create("snapshots-of-another/x", b"x").unwrap();
    assert_eq!(store.list_all("snapshots").unwrap().len(), 3);
    assert_eq!(store.list("snapshots").unwrap().len(), 2);
    store.remove("snapshots-of-another/x").unwrap();
}

fn large_objects(store: &dyn Store) {
    let name = "snapshots/00000001/large";
    let mut random = fastrand::Rng::with_seed(1);
    let content: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(LARGE).collect();
    let write = |pieces: &[u8]| {
        let mut object = store.create_stream(name).unwrap();
        for piece in pieces.chunks(3 << 20) {
            object.write(piece).unwrap();
        }
        object
    };
    drop(write(&content));
    assert!(!store.exists(name).unwrap(), "what was given up is there");
    write(&content).commit().unwrap();
    let mut streamed = Vec::new();
    store.read_stream(name).unwrap().read_to_end(&mut streamed).unwrap();
    assert!(streamed == content, "it reads back as something else");
    assert!(store.read(name).unwrap() == content, "it reads back as something else");
    let listed = store.list("snapshots/00000001").unwrap();
    assert!(listed.contains(&Entry { name: "large".into(), size: LARGE as u64, folder: false }));
    store.remove(name).unwrap();
}

/// A segment and its bytes so far.
struct Segment {
    name: SegmentName,
    bytes: Vec<u8>,
}

impl Segment {
    fn new(epoch: u32, index: u32, first_seq: u64) -> Self {
        let name = SegmentName { generation: 1, epoch, index, first_seq };
        let header = Header {
            kind: ObjectKind::Segment,
            key: KeyId([1; 4]),
            store: StoreId([1; 16]),
            generation: 1,
            epoch,
            seq: first_seq,
            index,
            prev: Chain::default(),
            nonce_prefix: Header::random_nonce_prefix().unwrap(),
        };
        Self { name, bytes: header.encode().to_vec() }
    }

    /// At any time: the header and all that was appended; behind it at most the zeros of a file.
    #[track_caller]
    fn expect_in(&self, store: &dyn Store, finished: bool) {
        let name = self.name.to_string();
        let read = store.read(&name).unwrap();
        assert!(read.starts_with(&self.bytes), "{name}: {} bytes", read.len());
        let behind = &read[self.bytes.len()..];
        assert!(behind.iter().all(|byte| *byte == 0), "{name}: something behind its end");
        assert!(!finished || behind.is_empty(), "{name}: {} bytes behind its end", behind.len());
        let file = name.rsplit_once('/').unwrap().1;
        let listed = store.list(&layout::log_folder(1)).unwrap();
        let listed: Vec<_> = listed.iter().filter(|entry| entry.name == file).collect();
        let all = store.list_all(layout::LOG).unwrap();
        let all: Vec<_> = all.iter().filter(|entry| entry.name.ends_with(file)).collect();
        for found in [listed, all] {
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert_eq!(found[0].size, read.len() as u64, "{name}");
        }
    }
}

/// The parts that are there.
fn parts(store: &dyn Store) -> usize {
    let parts = store.list(layout::TAIL).unwrap();
    parts.iter().filter(|part| part.size > 0).count()
}

/// Waits until no segment but those that are written to is in parts.
#[track_caller]
fn wait_until_merged(store: &dyn Store, left: usize) {
    let merged = within(PATIENCE, || (parts(store) == left).then_some(()));
    assert!(merged.is_some(), "{} parts are left, not {left}", parts(store));
}

fn segments(store: &dyn Store) {
    let mut segment = Segment::new(1, 0, 1);
    let name = segment.name.to_string();
    assert!(matches!(kind(store.read(&name)), StoreErrorKind::NotFound));
    let mut append = store.create_append(&name, &segment.bytes).unwrap();
    for number in 0..5_u8 {
        let frame = vec![number + 1; 100 * (usize::from(number) + 1)];
        append.append(&frame).unwrap();
        segment.bytes.extend(frame);
        segment.expect_in(store, false);
    }
    assert!(store.list(layout::LOG).unwrap().iter().any(|entry| entry.name == "00000001"));
    append.finish().unwrap();
    segment.expect_in(store, true);
    wait_until_merged(store, 0);
    segment.expect_in(store, true);
    store.tidy().unwrap();
    segment.expect_in(store, true);
}

fn abandoned_segments(store: &dyn Store) {
    let mut left = Segment::new(2, 0, 6);
    let mut append = store.create_append(&left.name.to_string(), &left.bytes).unwrap();
    for frame in [[1; 60], [2; 60], [3; 60]] {
        append.append(&frame).unwrap();
        left.bytes.extend(frame);
    }
    // Its writer is gone.
    drop(append);
    store.tidy().unwrap();
    left.expect_in(store, false);
    let mut newer = Segment::new(3, 0, 9);
    let name = newer.name.to_string();
    let mut append = store.create_append(&name, &newer.bytes).unwrap();
    append.append(&[9; 60]).unwrap();
    newer.bytes.extend([9; 60]);
    let in_parts = parts(store) > 0;
    for _ in 0..2 {
        store.tidy().unwrap();
        assert_eq!(parts(store), usize::from(in_parts), "only the newest is in parts");
        left.expect_in(store, false);
        newer.expect_in(store, false);
    }
    for name in [left.name.to_string(), name] {
        store.remove(&name).unwrap();
        assert!(matches!(kind(store.read(&name)), StoreErrorKind::NotFound));
        store.remove(&name).unwrap();
    }
    let all = store.list_all(layout::LOG).unwrap();
    assert_eq!(all.len(), 1, "those that were removed are listed: {all:?}");
}

#[track_caller]
fn kind<T>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.err().expect("an error").kind
}

#[test]
fn a_folder_conforms() {
    let dir = TestDir::new();
    conforms(&FileStore::create_root(&dir.path("store")).unwrap(), Fencing::Real);
}

#[test]
fn moto_conforms() {
    let Some(server) = moto::shared() else { return };
    conforms(&*bucket(server), Fencing::Real);
}

#[test]
fn ceph_conforms() {
    let Some(server) = rgw::shared() else { return };
    conforms(&*bucket(server), Fencing::Real);
}

#[test]
fn azurite_conforms() {
    let Some(server) = azurite::shared() else { return };
    conforms(&*bucket(server), Fencing::Real);
}

#[test]
fn nginx_conforms() {
    let Some(server) = nginx::start() else { return };
    conforms(&*bucket(&server), Fencing::Advisory);
}

#[test]
fn wsgidav_conforms() {
    let Some(server) = wsgidav::start() else { return };
    conforms(&*bucket(&server), Fencing::Advisory);
}
