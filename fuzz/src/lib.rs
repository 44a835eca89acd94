//! What the targets share: a store in memory, a small log that is always the same, a folder to restore into.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::restore::{self, Plan};
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::shadow::Shadow;
use lockstep_proto::store::{
    Append, Entry, Fencing, FileStore, NewObject, Store, StoreError, StoreErrorKind,
};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Writer};
use rusqlite::Connection;
use tempfile::TempDir;

/// Versions of the sample; at version v its table has v - 1 rows.
pub const VERSIONS: u32 = 12;
/// Preallocated zeros that are kept behind a segment.
const ZEROS_KEPT: usize = 40;

/// A store in memory, to be read only.
#[derive(Clone, Default)]
pub struct Memory(pub BTreeMap<String, Arc<Vec<u8>>>);

impl Memory {
    fn load(root: &Path) -> Self {
        let (mut objects, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let mut bytes = fs::read(&path).expect("a file");
                let written = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                bytes.truncate(written + ZEROS_KEPT);
                let name = path.strip_prefix(root).expect("it is below");
                objects.insert(name.to_str().expect("a name").to_owned(), Arc::new(bytes));
            }
        }
        Self(objects)
    }

    fn error(&self, object: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { store: "memory".into(), action: "use", object: object.into(), kind }
    }

    fn read_only(&self, object: &str) -> StoreError {
        self.error(object, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into())
    }
}

impl Store for Memory {
    fn label(&self) -> &str {
        "memory"
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(Fencing::Real)
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        Err(self.read_only(name))
    }

    fn create_append(&self, name: &str, _: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        Err(self.read_only(name))
    }

    fn replace(&self, name: &str, _: &[u8]) -> Result<(), StoreError> {
        Err(self.read_only(name))
    }

    fn resume_append(
        &self,
        name: &str,
        _: &[u8],
        _: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        Err(self.read_only(name))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let found = self.0.get(name).ok_or_else(|| self.error(name, StoreErrorKind::NotFound))?;
        Ok(found.to_vec())
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        Ok(Box::new(Cursor::new(self.read(name)?)))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.0.contains_key(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        for (name, bytes) in &self.0 {
            let Some(rest) = name.strip_prefix(&below) else { continue };
            let (name, folder) = match rest.split_once('/') {
                Some((name, _)) => (name.to_owned(), true),
                None => (rest.to_owned(), false),
            };
            let size = if folder { 0 } else { bytes.len() as u64 };
            entries.insert(name.clone(), Entry { name, size, folder });
        }
        Ok(entries.into_values().collect())
    }

    fn sync(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        Err(self.read_only(name))
    }
}

/// A log of three sessions with a snapshot in its middle, and its keys.
pub struct Sample {
    /// Everything that is stored.
    pub store: Memory,
    /// What opens it.
    pub keys: KeyRing,
    scratch: TempDir,
}

impl Sample {
    /// Makes it. Keys and nonces are new each time, lengths and contents are not.
    pub fn make() -> Self {
        let scratch = scratch();
        let root = scratch.path().join("store");
        let keys = KeyRing::generate(StoreId([1; 16])).expect("random bytes");
        let store = Arc::new(FileStore::create_root(&root).expect("a folder"));
        let claimant = |purpose: &str, time: u64| {
            Claimant::this_process("fuzz", purpose, "here", time).expect("random bytes")
        };
        let mut writer =
            Writer::create(store.clone(), keys.clone(), claimant("init", 1)).expect("a log");
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).expect("a start");
        writer.close(1);
        for session in 0..3 {
            let time = u64::from(session) * 100;
            let mut writer =
                Writer::open(store.clone(), keys.clone(), claimant("node", time), time)
                    .expect("opens");
            for version in session * 4 + 1..=session * 4 + 4 {
                let writes = writes(version);
                let data_version = DataVersion(version);
                let call = Call { data_version, transaction: true, writes: &writes };
                writer.append(&call, time + 1).expect("appends");
            }
            writer.close(time + 2);
            if session == 1 {
                let folder = scratch.path().join("shadow");
                let mut shadow = Shadow::open(&*store, &keys, &folder).expect("a shadow");
                shadow.catch_up(&mut |_| {}).expect("catches up");
                shadow.publish(&mut |_, _| {}).expect("publishes").expect("a snapshot");
            }
        }
        Self { store: Memory::load(&root), keys, scratch }
    }

    /// Restores what `store` holds, and removes it again. Of what the sample's own writer wrote it must be a state.
    pub fn restore(&self, store: &dyn Store, is_ours: bool) -> Result<(), Error> {
        let path = self.scratch.path().join("restored.sqlite3");
        let restored = Plan::newest(store, &self.keys)
            .and_then(|plan| restore::run(store, &self.keys, &plan, &path, &mut |_| {}));
        if let (Ok(restored), true) = (&restored, is_ours) {
            let version = restored.data_version.map_or(0, |version| version.0);
            let db = Connection::open(&path).expect("opens");
            let rows: i64 = match version {
                0 => 0,
                _ => db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("rows"),
            };
            assert!(version <= VERSIONS && rows == i64::from(version.saturating_sub(1)));
        }
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", path.display()));
        }
        restored.map(drop)
    }
}

fn writes(version: u32) -> Vec<String> {
    let count = format!("UPDATE vars SET intval = {version} WHERE name = 'data_version'");
    match version {
        1 => vec![
            "CREATE TABLE vars (name TEXT PRIMARY KEY, intval INTEGER)".into(),
            "INSERT INTO vars VALUES ('data_version', 1)".into(),
            "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)".into(),
        ],
        _ => vec![format!("INSERT INTO t (b) VALUES (x'00{version:02x}')"), count],
    }
}

/// A folder that goes when it is dropped, in memory where there is such.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let at = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(at).expect("a folder")
}

/// Every file in a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}
