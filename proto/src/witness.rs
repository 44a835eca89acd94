//! The witness: what this directory knows of its log, whatever a destination says. A place that shows an older state,
//! whole as it may be, is found out by it.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::write_file;
use crate::error::{Error, Result};
use crate::record::TimeMs;
use crate::seal::StoreId;
use crate::version::{DataVersion, FORMAT_VERSION};

/// Name of the file in the network directory.
pub const WITNESS_FILE: &str = "backup.witness";

const FORMAT: &str = "lockstep-witness";

/// A record that was acknowledged to this directory's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    format: String,
    version: u16,
    /// The log.
    pub store_id: StoreId,
    /// The record.
    pub seq: u64,
    /// lightningd's version there.
    pub data_version: Option<DataVersion>,
    /// When this was noted.
    pub time: TimeMs,
}

impl Witness {
    /// That this record was acknowledged.
    pub fn new(
        store_id: StoreId,
        seq: u64,
        data_version: Option<DataVersion>,
        time: TimeMs,
    ) -> Self {
        Self { format: FORMAT.into(), version: FORMAT_VERSION, store_id, seq, data_version, time }
    }

    /// What `directory` knows of the log of that id; `None` where it knows nothing.
    ///
    /// # Errors
    /// [`Error::File`] where there is one that cannot be read; [`Error::Refused`] where it makes no sense.
    pub fn read(directory: &Path, store_id: StoreId) -> Result<Option<Self>> {
        let path = directory.join(WITNESS_FILE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(Error::file("read", &path))?,
        };
        let found: Self = serde_json::from_slice(&bytes).map_err(|_| Error::Refused {
            what: format!("'{}' is not readable", path.display()),
            hint: "it says how far the log had come; remove it only if you know that otherwise."
                .into(),
        })?;
        let ours = found.format == FORMAT && found.store_id == store_id;
        Ok(Some(found).filter(|_| ours))
    }

    /// Writes it, in place of what was known before.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(WITNESS_FILE);
        let bytes = serde_json::to_vec(self)
            .map_err(|error| Error::damaged(format!("'{WITNESS_FILE}'"), error))?;
        write_file(&path, &bytes, 0o600, true)
    }
}

/// Refuses a log that ends before a record that is known to have been acknowledged.
///
/// # Errors
/// [`Error::RolledBack`].
pub fn refuse_older(store: &str, found: u64, known: u64, by: &str) -> Result<()> {
    if found >= known {
        return Ok(());
    }
    Err(Error::RolledBack { store: store.into(), found, known, by: by.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_speaks_of_its_own_log_and_is_never_overheard() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (StoreId([1; 16]), StoreId([2; 16]));
        let read = |store| Witness::read(folder.path(), store);
        assert_eq!(read(ours).unwrap(), None);
        let witness = Witness::new(ours, 9, Some(DataVersion(7)), 3);
        witness.write(folder.path()).unwrap();
        assert_eq!(read(ours).unwrap(), Some(witness.clone()));
        assert_eq!(read(other).unwrap(), None);
        Witness { format: "else".into(), ..witness }.write(folder.path()).unwrap();
        assert_eq!(read(ours).unwrap(), None);
        let file = folder.path().join(WITNESS_FILE);
        std::fs::write(&file, "{").unwrap();
        assert!(matches!(read(ours), Err(Error::Refused { .. })));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(matches!(read(ours), Err(Error::File { .. })), "what is there may say something");
    }
}
