//! Snapshots: what is written is what is read, and one that says something else than was meant is of no use, although
//! whoever wrote it had the key.

use std::path::{Path, PathBuf};

use lockstep_proto::error::{Error, Result};
use lockstep_proto::layout::SnapshotName;
use lockstep_proto::log::Mark;
use lockstep_proto::seal::{Chain, Header, KeyRing, ObjectKind, Sealer, StoreId};
use lockstep_proto::snapshot::{self, Content, HeaderFields, Meta, PageVisitor, Pages, Whole};
use lockstep_proto::version::DataVersion;
use rusqlite::Connection;

use crate::sim::SimStore;

const NAME: SnapshotName =
    SnapshotName { generation: 1, seq: 5, epoch: 2, index: SnapshotName::FIRST_COMPACTED };
const PAGE: usize = 512;

/// The kinds of frame, as `docs/format.md` has them.
const META: u8 = 0x10;
const PAGES: u8 = 0x11;
const END: u8 = 0x12;
const DELTA: u8 = 0x13;

/// The bytes of the pages, each at its place.
#[derive(Default)]
struct Image(Vec<u8>);

impl PageVisitor for Image {
    fn pages(&mut self, meta: &Meta, first: u32, pages: &[u8]) -> Result<()> {
        let at = (first as usize - 1) * meta.page_size as usize;
        self.0.resize(self.0.len().max(at + pages.len()), 0);
        self.0[at..at + pages.len()].copy_from_slice(pages);
        Ok(())
    }
}

struct Forger {
    store: SimStore,
    keys: KeyRing,
}

impl Forger {
    fn new() -> Self {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        Self { store: SimStore::default(), keys }
    }

    fn header(&self) -> Header {
        Header {
            kind: ObjectKind::Snapshot,
            key: self.keys.current().unwrap().id(),
            store: self.keys.store(),
            generation: NAME.generation,
            epoch: NAME.epoch,
            seq: NAME.seq,
            index: NAME.index,
            prev: Chain([7; 32]),
            nonce_prefix: Header::random_nonce_prefix().unwrap(),
        }
    }

    /// Puts these frames under the one name, and reads them.
    fn read(&self, header: &Header, frames: &[Vec<u8>]) -> Result<Whole> {
        let mut bytes = header.encode().to_vec();
        let mut sealer = Sealer::new(self.keys.current().unwrap(), header);
        for frame in frames {
            sealer.seal(frame, &mut bytes).unwrap();
        }
        self.store.0.lock().unwrap().objects.insert(NAME.to_string(), bytes);
        snapshot::read(&self.store, &self.keys, &NAME.to_string(), None, &mut Image::default())
    }

    fn wrong(&self, what: &str, frames: &[Vec<u8>]) {
        let error = self.read(&self.header(), frames).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
    }
}

fn meta(kind: u8, page_size: u32) -> Vec<u8> {
    let parent = match kind {
        DELTA => format!(r#","parent":{{"name":"p","chain":"{}"}}"#, "00".repeat(32)),
        _ => String::new(),
    };
    let json =
        format!(r#"{{"time":1,"page_size":{page_size},"page_count":2,"data_version":9{parent}}}"#);
    [&[kind], json.as_bytes()].concat()
}

fn pages(numbers: &[u32]) -> Vec<u8> {
    let mut plain = (numbers.len() as u32).to_le_bytes().to_vec();
    plain.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    plain.resize(plain.len() + numbers.len() * PAGE, 3);
    [&[PAGES], &zstd::bulk::compress(&plain, 3).unwrap()[..]].concat()
}

fn end(pages: u64) -> Vec<u8> {
    [&[END], format!(r#"{{"pages":{pages}}}"#).as_bytes()].concat()
}

#[test]
fn a_snapshot_that_contradicts_itself_is_damaged() {
    let forger = Forger::new();
    let (base, delta) = (meta(META, 512), meta(DELTA, 512));
    let both = pages(&[1, 2]);
    let read = forger.read(&forger.header(), &[base.clone(), both.clone(), end(2)]).unwrap();
    assert_eq!(read.meta.data_version, Some(DataVersion(9)));
    assert_eq!(read.position, Mark { seq: 5, chain: Chain([7; 32]) });
    forger.read(&forger.header(), &[delta.clone(), pages(&[2]), end(1)]).unwrap();
    forger.wrong("other pages are counted at its end", &[base.clone(), both.clone(), end(1)]);
    forger.wrong("the same in a delta", &[delta.clone(), pages(&[2]), end(2)]);
    forger.wrong("a base without a page", &[base.clone(), pages(&[1]), end(1)]);
    forger.wrong("something behind its end", &[base.clone(), both.clone(), end(2), end(2)]);
    forger.wrong("it does not end", &[base.clone(), both.clone()]);
    forger.wrong("a page before the first", &[delta.clone(), pages(&[0]), end(1)]);
    forger.wrong("a page behind the last", &[delta, pages(&[3]), end(1)]);
    forger.wrong("no meta data", &[both.clone(), end(2)]);
    forger.wrong("only an end", &[end(0)]);
    forger.wrong("nothing", &[]);
    for page_size in [0, 256, 1_000, 131_072] {
        forger.wrong("impossible pages", &[meta(META, page_size), both.clone(), end(2)]);
        assert!(snapshot::summary(&forger.store, &forger.keys, NAME, 0).is_err());
    }
    for kind in [META - 1, DELTA + 1] {
        let error = forger.read(&forger.header(), &[meta(kind, 512), end(0)]).unwrap_err();
        assert!(matches!(error, Error::UnknownKind { .. }), "{error}");
    }
}

#[test]
fn a_snapshot_is_the_one_that_its_name_and_its_child_mean() {
    let forger = Forger::new();
    let frames = [meta(META, 512), pages(&[1, 2]), end(2)];
    let header = forger.header();
    for other in [
        Header { seq: 6, ..header.clone() },
        Header { index: NAME.index + 1, ..header.clone() },
        Header { kind: ObjectKind::Segment, ..header.clone() },
    ] {
        let error = forger.read(&other, &frames).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
    let chain = forger.read(&header, &frames).unwrap().chain;
    let read = |name: &str, chain| {
        let mut image = Image::default();
        snapshot::read(&forger.store, &forger.keys, name, Some(chain), &mut image)
    };
    read(&NAME.to_string(), chain).unwrap();
    for (name, chain) in [(NAME.to_string(), Chain::default()), ("none".into(), chain)] {
        let error = read(&name, chain).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
}

fn database(folder: &Path, page_size: usize) -> PathBuf {
    let path = folder.join("db");
    let _ = std::fs::remove_file(&path);
    let db = Connection::open(&path).unwrap();
    // What does not get smaller when it is packed.
    db.execute_batch(&format!(
        "PRAGMA page_size = {page_size}; CREATE TABLE t (a); INSERT INTO t VALUES (randomblob(700000))"
    ))
    .unwrap();
    path
}

fn content(path: &Path, header: Option<HeaderFields>) -> Content<'_> {
    Content { path, time: 1, data_version: None, pages: Pages::All, header }
}

#[test]
fn what_is_written_is_what_is_read_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let at = Mark { seq: NAME.seq, chain: Chain([7; 32]) };
    for page_size in [512, 4_096, 65_536] {
        let path = database(folder.path(), page_size);
        let (store, keys) = (SimStore::default(), KeyRing::generate(StoreId([1; 16])).unwrap());
        let mut told = Vec::new();
        let mut progress = |done, total| told.push((done, total));
        let all = content(&path, None);
        let (base, bytes) = snapshot::write(&store, &keys, NAME, at, &all, &mut progress).unwrap();
        assert_eq!(bytes, store.0.lock().unwrap().objects[&base.name].len() as u64);
        let mut image = Image::default();
        snapshot::read(&store, &keys, &base.name, Some(base.chain), &mut image).unwrap();
        let written = std::fs::read(&path).unwrap();
        assert!(image.0 == written, "{page_size}");
        let total = written.len() as u64;
        assert!(told.len() > 1 && told.is_sorted(), "{told:?}");
        assert!(told.iter().all(|(_, of)| *of == total), "{told:?}");
        assert_eq!(told.last(), Some(&(total, total)));
    }
}

#[test]
fn the_fields_of_a_header_are_put_where_they_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path(), 4_096);
    let fields =
        HeaderFields { journal: [2, 1], user_version: [1, 2, 3, 4], application_id: [5, 6, 7, 8] };
    let (store, keys) = (SimStore::default(), KeyRing::generate(StoreId([1; 16])).unwrap());
    let at = Mark { seq: NAME.seq, chain: Chain([7; 32]) };
    let all = content(&path, Some(fields));
    let (base, _) = snapshot::write(&store, &keys, NAME, at, &all, &mut |_, _| {}).unwrap();
    let mut image = Image::default();
    snapshot::read(&store, &keys, &base.name, None, &mut image).unwrap();
    assert_eq!(HeaderFields::of(image.0.first_chunk().unwrap()), fields);
    std::fs::write(&path, &image.0).unwrap();
    let db = Connection::open(&path).unwrap();
    let value = |name| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).unwrap();
    assert_eq!((value("user_version"), value("application_id")), (0x0102_0304, 0x0506_0708));
}

#[test]
fn only_whole_pages_of_a_database_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path(), 512);
    let (store, keys) = (SimStore::default(), KeyRing::generate(StoreId([1; 16])).unwrap());
    let at = Mark { seq: NAME.seq, chain: Chain([7; 32]) };
    let whole = std::fs::read(&path).unwrap();
    let page_size = |size: u16| {
        let mut bytes = whole[..512_000].to_vec();
        bytes[16..18].copy_from_slice(&size.to_be_bytes());
        bytes
    };
    let mut renamed = whole.clone();
    renamed[0] = b's';
    let cut = whole[..whole.len() - 1].to_vec();
    for bytes in [renamed, cut, page_size(256), page_size(1_000), Vec::new()] {
        std::fs::write(&path, bytes).unwrap();
        let all = content(&path, None);
        let error = snapshot::write(&store, &keys, NAME, at, &all, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("not a SQLite database of whole pages"), "{error}");
        assert!(store.0.lock().unwrap().objects.is_empty());
    }
}
