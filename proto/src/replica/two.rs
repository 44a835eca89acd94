//! Two folders of one log, for tests: what is done to the one, the other is compared with.

use std::path::PathBuf;
use std::sync::Arc;

use super::mirror::load;
use super::{Distance, Fault, Heal, Mirror, Mirrored, Seen, small_faults};
use crate::error::Result;
use crate::fence::{self, Claimant};
use crate::log::{LogEnd, all_segments};
use crate::marker::Marker;
use crate::record::{Start, StartReason};
use crate::seal::{KeyRing, StoreId};
use crate::slots::{self, Lock};
use crate::store::{FileStore, Store};
use crate::verify;
use crate::version::DataVersion;
use crate::writer::{Call, Writer};

/// Two folders that hold the same log.
pub struct Two {
    folder: tempfile::TempDir,
    pub keys: KeyRing,
    pub version: u32,
}

impl Two {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let mut two = Self { folder, keys, version: 0 };
        let store = FileStore::create_root(&two.path("a")).unwrap();
        slots::add(&store, &two.keys, &Lock::Node(zeroize::Zeroizing::new([7; 32]))).unwrap();
        let mut writer =
            Writer::create(Arc::new(store), two.keys.clone(), claimant("init")).unwrap();
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).unwrap();
        writer.close(1);
        Marker::new(two.keys.store(), 1).create(&two.store("a")).unwrap();
        two.write("a", 5);
        two.write("a", 5);
        FileStore::create_root(&two.path("b")).unwrap();
        two.mirror("a", "b");
        two
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn store(&self, name: &str) -> FileStore {
        FileStore::open_root(&self.path(name)).unwrap()
    }

    /// A session of so many batches.
    pub fn write(&mut self, name: &str, batches: u32) {
        let mut writer = self.open(name);
        (0..batches).for_each(|_| self.append(&mut writer));
        writer.close(4);
    }

    /// A session that does not end in order. Gives what its segment was after each batch.
    pub fn write_and_die(&mut self, name: &str, batches: u32) -> Vec<Vec<u8>> {
        let mut writer = self.open(name);
        let segment = all_segments(&self.store(name)).unwrap().pop().unwrap().name;
        let after = (0..batches).map(|_| {
            self.append(&mut writer);
            let loaded = load(&self.store(name), &self.keys, segment).unwrap().unwrap();
            loaded.whole(&self.keys).unwrap().0.to_vec()
        });
        after.collect()
    }

    /// The newest segment of both has so many records more at 'b', and 'a' went on without them.
    pub fn longer_at_b(records: u32) -> Self {
        let mut two = Self::new();
        let after = two.write_and_die("a", 4);
        two.mirror("a", "b");
        std::fs::write(two.segments("a").pop().unwrap(), &after[3 - records as usize]).unwrap();
        two.version -= records;
        two.write("a", 3);
        two
    }

    /// 'b' holds a segment with the record that opens it, and so many batches, of which 'a' knows nothing.
    pub fn only_at_b(batches: u32) -> Self {
        let mut two = Self::new();
        let version = two.version;
        two.write_and_die("b", batches);
        two.version = version;
        two.claim("a");
        two.write("a", 2);
        two
    }

    /// Removes all but the newest segment, as retention would.
    pub fn keep_newest_segment(&self, name: &str) {
        let mut segments = self.segments(name);
        segments.pop();
        segments.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }

    pub fn end(&self, name: &str) -> LogEnd {
        LogEnd::read(&self.store(name), &self.keys).unwrap()
    }

    /// How 'b' stands to 'a', the newest.
    pub fn compare(&self) -> Result<Distance> {
        let (a, b) = (self.store("a"), self.store("b"));
        let ends = ["a", "b"].map(|name| self.end(name));
        let (newest, other) =
            (Seen { store: &a, end: &ends[0] }, Seen { store: &b, end: &ends[1] });
        newest.compare(&other, &self.keys)
    }

    /// Claims an epoch in which nothing is written.
    pub fn claim(&self, name: &str) {
        fence::claim(&self.store(name), &self.keys, &claimant("node")).unwrap();
    }

    pub fn open(&self, name: &str) -> Writer {
        let store = Arc::new(self.store(name));
        Writer::open(store, self.keys.clone(), claimant("node"), 2).unwrap()
    }

    pub fn append(&mut self, writer: &mut Writer) {
        self.version += 1;
        let writes = [format!("INSERT INTO t VALUES ({})", self.version)];
        let version = DataVersion(self.version);
        let call = Call { data_version: version, transaction: true, writes: &writes };
        writer.append(&call, 3).unwrap();
    }

    pub fn mirror(&self, from: &str, to: &str) -> Mirrored {
        self.try_mirror(from, to).unwrap()
    }

    pub fn try_mirror(&self, from: &str, to: &str) -> Result<Mirrored> {
        let (source, target) = (&self.store(from), &self.store(to));
        Mirror { source, target, keys: &self.keys, before: None }.run(&mut |_| {})
    }

    pub fn heal(&self, from: &str, to: &str) -> Result<Vec<Fault>> {
        let (source, target) = (&self.store(from), &self.store(to));
        let heal = Heal { source, target, keys: &self.keys, before: None };
        let faults = heal.plan(&mut |_| {})?;
        heal.run(&faults, &mut |_| {})?;
        Ok(faults)
    }

    pub fn segments(&self, name: &str) -> Vec<PathBuf> {
        let all = all_segments(&self.store(name)).unwrap();
        all.iter().map(|entry| self.path(name).join(entry.name.to_string())).collect()
    }

    #[track_caller]
    pub fn expect_same(&self) {
        for name in ["a", "b"] {
            verify::run(&self.store(name), &self.keys, &mut |_| {}).unwrap();
            assert_eq!(small_faults(&self.store(name), &self.keys).unwrap(), []);
        }
        assert_eq!(self.content("a"), self.content("b"));
    }

    pub fn content(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let store = self.store(name);
        let entries = store.list_all("").unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.name.clone(), store.read(&entry.name).unwrap()))
            .collect()
    }
}

fn claimant(purpose: &str) -> Claimant {
    Claimant::this_process("test", purpose, "here", 1).unwrap()
}
