//! The last drill: what became of the rehearsal of a restore, kept beside the lock file for whoever asks later.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::write_file;
use crate::destination::Destination;
use crate::error::{Error, Result};
use crate::record::TimeMs;
use crate::seal::StoreId;
use crate::version::DataVersion;

/// Name of the file in the network directory.
pub const DRILL_FILE: &str = "backup.drill";
const FORMAT: &str = "lockstep-drill/1";

/// What became of a drill. Fields only ever get more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drill {
    format: String,
    /// Of which backup.
    pub store_id: StoreId,
    /// When it ended.
    pub time: TimeMs,
    /// A restore from each destination succeeded, and gave what it should.
    pub passed: bool,
    /// What the keys were opened with, in words.
    pub opened_with: String,
    /// One for each destination that was restored from.
    pub destinations: Vec<Rehearsal>,
}

/// A restore from one destination, which was thrown away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// The destination's name.
    pub name: String,
    /// Where it is.
    pub url: Destination,
    /// From the key to a database that is checked and durable. Seconds.
    pub seconds: f64,
    /// Why it failed; `None` where it did not.
    pub error: Option<String>,
    /// What it gave; `None` where it failed before that.
    #[serde(flatten)]
    pub restored: Option<Rehearsed>,
}

/// What a rehearsal gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsed {
    /// The way in: the slot's name, or the key file.
    pub opened_by: String,
    /// The history.
    pub generation: u32,
    /// The newest record.
    pub seq: u64,
    /// lightningd's version of the database.
    pub data_version: Option<DataVersion>,
    /// When the newest batch in it was appended.
    pub as_of: TimeMs,
    /// Snapshots read.
    pub snapshots: usize,
    /// Bytes read: snapshots and log.
    pub read_bytes: u64,
    /// Batches replayed on them.
    pub batches: u64,
    /// Their statements.
    pub statements: u64,
    /// Bytes of the restored database.
    pub database_bytes: u64,
    /// Whether its content was compared with what the node had.
    pub compared: Compared,
}

/// What a restored database was compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "with")]
pub enum Compared {
    /// The database of the stopped node.
    Database {
        /// Up to which record of the log.
        seq: u64,
    },
    /// What was last proved of the shadow of a node, at an older place of the log.
    LastProof {
        /// That place.
        seq: u64,
        /// True where the shadow was found equal to the node's database there.
        of_the_database: bool,
    },
    /// Nothing.
    Nothing {
        /// Why, in words.
        why: String,
    },
}

impl Drill {
    /// One that ended at `time`.
    pub fn new(
        store_id: StoreId,
        time: TimeMs,
        opened_with: String,
        destinations: Vec<Rehearsal>,
    ) -> Self {
        let passed = destinations.iter().all(|one| one.error.is_none());
        Self { format: FORMAT.into(), store_id, time, passed, opened_with, destinations }
    }

    /// The longest of its restores. Seconds.
    pub fn seconds(&self) -> f64 {
        self.destinations.iter().map(|one| one.seconds).fold(0.0, f64::max)
    }

    /// The last one that is kept in `directory`, of the backup `store`; `None` where there is none.
    pub fn read(directory: &Path, store: StoreId) -> Option<Self> {
        let bytes = std::fs::read(Self::file(directory)).ok()?;
        let drill: Self = serde_json::from_slice(&bytes).ok()?;
        (drill.format == FORMAT && drill.store_id == store).then_some(drill)
    }

    /// Keeps it in `directory`, in place of the one before.
    ///
    /// # Errors
    /// Where the directory cannot be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = Self::file(directory);
        let bytes = serde_json::to_vec_pretty(self);
        let bytes = bytes.map_err(|error| Error::damaged(format!("'{DRILL_FILE}'"), error))?;
        write_file(&path, &bytes, 0o600, true)
    }

    /// Where it is kept.
    pub fn file(directory: &Path) -> PathBuf {
        directory.join(DRILL_FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_for_its_own_backup_only() {
        let folder = tempfile::tempdir().unwrap();
        let url: Destination = "/backup".parse().unwrap();
        let rehearsed = Rehearsed {
            opened_by: "slot 'node'".into(),
            generation: 1,
            seq: 9,
            data_version: Some(DataVersion(7)),
            as_of: 3,
            snapshots: 1,
            read_bytes: 10,
            batches: 2,
            statements: 3,
            database_bytes: 4096,
            compared: Compared::LastProof { seq: 8, of_the_database: true },
        };
        let good = Rehearsal {
            name: "nas".into(),
            url: url.clone(),
            seconds: 0.5,
            error: None,
            restored: Some(rehearsed),
        };
        let error = Some("not there".into());
        let bad = Rehearsal { name: "usb".into(), url, seconds: 1.5, error, restored: None };
        let store = StoreId([1; 16]);
        let drill = Drill::new(store, 5, "words".into(), vec![good.clone()]);
        assert!(drill.passed);
        let drill = Drill::new(store, 5, "words".into(), vec![good, bad]);
        assert!(!drill.passed);
        assert_eq!(drill.seconds(), 1.5, "of the longest");
        drill.write(folder.path()).unwrap();
        assert_eq!(Drill::read(folder.path(), store), Some(drill));
        assert_eq!(Drill::read(folder.path(), StoreId([2; 16])), None);
    }
}
