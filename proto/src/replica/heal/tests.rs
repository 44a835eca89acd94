use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::fence::Claimant;
use crate::log::LogEnd;
use crate::record::{Start, StartReason};
use crate::replica::{Distance, Seen};
use crate::seal::StoreId;
use crate::slots::Lock;
use crate::store::FileStore;
use crate::verify;
use crate::version::DataVersion;
use crate::writer::{Call, Writer};

/// Two folders that hold the same log.
struct Two {
    folder: tempfile::TempDir,
    keys: KeyRing,
    version: u32,
}

impl Two {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let mut two = Self { folder, keys, version: 0 };
        let store = FileStore::create_root(&two.path("a")).unwrap();
        slots::add(&store, &two.keys, &Lock::Node(zeroize::Zeroizing::new([7; 32]))).unwrap();
        let claimant = Claimant::this_process("test", "init", "here", 1).unwrap();
        let mut writer = Writer::create(Arc::new(store), two.keys.clone(), claimant).unwrap();
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).unwrap();
        writer.close(1);
        Marker::new(two.keys.store(), 1).create(&two.store("a")).unwrap();
        two.write("a", 5);
        two.write("a", 5);
        FileStore::create_root(&two.path("b")).unwrap();
        two.mirror("a", "b");
        two
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self, name: &str) -> FileStore {
        FileStore::open_root(&self.path(name)).unwrap()
    }

    /// A session of so many batches.
    fn write(&mut self, name: &str, batches: u32) {
        let claimant = Claimant::this_process("test", "node", "here", 2).unwrap();
        let store = Arc::new(self.store(name));
        let mut writer = Writer::open(store, self.keys.clone(), claimant, 2).unwrap();
        for _ in 0..batches {
            self.version += 1;
            let writes = [format!("INSERT INTO t VALUES ({})", self.version)];
            let version = DataVersion(self.version);
            let call = Call { data_version: version, transaction: true, writes: &writes };
            writer.append(&call, 3).unwrap();
        }
        writer.close(4);
    }

    fn mirror(&self, from: &str, to: &str) -> Mirrored {
        let (source, target) = (&self.store(from), &self.store(to));
        Mirror { source, target, keys: &self.keys, before: None }.run(&mut |_| {}).unwrap()
    }

    fn heal(&self, from: &str, to: &str) -> Result<Vec<Fault>> {
        let (source, target) = (&self.store(from), &self.store(to));
        let heal = Heal { source, target, keys: &self.keys, before: None };
        let faults = heal.plan(&mut |_| {})?;
        heal.run(&faults, &mut |_| {})?;
        Ok(faults)
    }

    fn segments(&self, name: &str) -> Vec<PathBuf> {
        let all = all_segments(&self.store(name)).unwrap();
        all.iter().map(|entry| self.path(name).join(entry.name.to_string())).collect()
    }

    #[track_caller]
    fn expect_same(&self) {
        for name in ["a", "b"] {
            verify::run(&self.store(name), &self.keys, &mut |_| {}).unwrap();
            assert_eq!(small_faults(&self.store(name), &self.keys).unwrap(), []);
        }
        assert_eq!(self.content("a"), self.content("b"));
    }

    fn content(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let store = self.store(name);
        let entries = store.list_all("").unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.name.clone(), store.read(&entry.name).unwrap()))
            .collect()
    }
}

/// A name, and what is done to 'b'.
type Harm<'a> = (&'a str, &'a dyn Fn(&Two));

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, bytes: usize) {
    let whole = std::fs::read(path).unwrap();
    std::fs::write(path, &whole[..bytes]).unwrap();
}

#[test]
fn what_is_intact_is_left_alone() {
    let two = Two::new();
    two.expect_same();
    assert_eq!(two.heal("a", "b").unwrap(), []);
    assert_eq!(two.mirror("a", "b").objects, 0);
}

#[test]
fn each_kind_of_damage_is_found_and_replaced() {
    let last = |path: &Path| std::fs::metadata(path).unwrap().len() as usize - 1;
    let harms: [Harm<'_>; 8] = [
        ("header", &|two| flip(&two.segments("b")[1], 40)),
        ("record", &|two| flip(&two.segments("b")[1], 200)),
        ("newest segment", &|two| flip(two.segments("b").last().unwrap(), 200)),
        ("end of a segment", &|two| {
            let path = &two.segments("b")[1];
            flip(path, last(path));
        }),
        ("cut segment", &|two| truncate(&two.segments("b")[1], 300)),
        ("claim", &|two| flip(&two.path("b").join("epochs/00000002"), 150)),
        ("slot", &|two| truncate(&two.path("b").join("keys/node.age"), 100)),
        ("marker", &|two| truncate(&two.path("b").join(layout::MARKER), 10)),
    ];
    for (what, harm) in harms {
        let two = Two::new();
        harm(&two);
        let faults = two.heal("a", "b").unwrap();
        assert_eq!(faults.len(), 1, "{what}: {faults:?}");
        assert!(faults[0].healable, "{what}: {faults:?}");
        two.expect_same();
    }
}

#[test]
fn a_slot_that_lost_one_byte_is_found() {
    let two = Two::new();
    let path = two.path("b").join("keys/node.age");
    let len = std::fs::read(&path).unwrap().len();
    truncate(&path, len - 1);
    assert_eq!(two.heal("a", "b").unwrap().len(), 1);
    two.expect_same();
}

#[test]
fn what_is_damaged_in_both_is_healed_from_neither() {
    let two = Two::new();
    flip(&two.segments("a")[1], 200);
    flip(&two.segments("b")[1], 210);
    let before = two.content("b");
    let faults = two.heal("a", "b").unwrap();
    assert!(!faults[0].healable, "{faults:?}");
    assert_eq!(two.content("b"), before);
    // Elsewhere they heal each other.
    let two = Two::new();
    flip(&two.segments("a")[1], 200);
    flip(&two.segments("b")[2], 200);
    two.heal("a", "b").unwrap();
    two.heal("b", "a").unwrap();
    two.expect_same();
}

#[test]
fn a_source_that_is_behind_does_not_shorten_a_log() {
    let two = Two::new();
    let newest = two.segments("b").pop().unwrap();
    let name = newest.strip_prefix(two.path("b")).unwrap();
    // As where 'b' did not get the last records of the session.
    truncate(&newest, 400);
    flip(&two.path("a").join(name), 200);
    let before = two.content("a");
    let faults = two.heal("b", "a").unwrap();
    assert!(!faults.is_empty() && !faults[0].healable, "{faults:?}");
    assert_eq!(two.content("a"), before);
}

#[test]
fn two_histories_are_refused() {
    let mut two = Two::new();
    let version = two.version;
    two.write("a", 3);
    two.version = version;
    two.write("b", 3);
    let (a, b) = (two.store("a"), two.store("b"));
    let ends = [&a, &b].map(|store| LogEnd::read(store, &two.keys).unwrap());
    let seen = Seen { store: &a, end: &ends[0] };
    let error = seen.compare(&Seen { store: &b, end: &ends[1] }, &two.keys).unwrap_err();
    assert!(matches!(error, Error::TwoHistories { .. }), "{error}");
    let before = two.content("b");
    assert!(matches!(two.heal("a", "b"), Err(Error::TwoHistories { .. })));
    assert_eq!(two.content("b"), before);
}

#[test]
fn one_that_is_behind_is_told_from_one_that_went_another_way() {
    let mut two = Two::new();
    two.write("a", 3);
    let (a, b) = (two.store("a"), two.store("b"));
    let ends = [&a, &b].map(|store| LogEnd::read(store, &two.keys).unwrap());
    let (newest, other) = (Seen { store: &a, end: &ends[0] }, Seen { store: &b, end: &ends[1] });
    assert!(newest.end.age() > other.end.age());
    let records = ends[0].position.seq - ends[1].position.seq;
    assert_eq!(newest.compare(&other, &two.keys).unwrap(), Distance::Behind { records });
    two.mirror("a", "b");
    let end = LogEnd::read(&b, &two.keys).unwrap();
    let other = Seen { store: &b, end: &end };
    assert_eq!(newest.compare(&other, &two.keys).unwrap(), Distance::Current);
}

#[test]
fn another_store_is_never_healed() {
    let (two, mut other) = (Two::new(), Two::new());
    other.keys = KeyRing::generate(StoreId([2; 16])).unwrap();
    std::fs::remove_file(other.path("a").join(layout::MARKER)).unwrap();
    Marker::new(other.keys.store(), 1).create(&other.store("a")).unwrap();
    let (source, target) = (&two.store("a"), &other.store("a"));
    let heal = Heal { source, target, keys: &two.keys, before: None };
    assert!(matches!(heal.plan(&mut |_| {}), Err(Error::OtherStore { .. })));
}
