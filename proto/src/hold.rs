//! Holds: after an alarm nothing is removed from a store, and no snapshot is made of the history that it is about.
//!
//! A hold is in the store, not in the node's directory, so that whoever removes anything, on whatever machine,
//! sees it. Only a person takes it away.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout;
use crate::record::TimeMs;
use crate::store::{Store, StoreErrorKind};

/// A place in a history where the database was found to differ from its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// The history.
    pub generation: u32,
    /// Up to here, at the latest, the two had parted.
    pub seq: u64,
    /// When it was found; 0 where the object does not tell.
    pub time: TimeMs,
}

/// The content of the object.
#[derive(Serialize, Deserialize)]
struct Content {
    time: TimeMs,
}

impl Hold {
    /// Puts it into the store; fine where it is there.
    ///
    /// # Errors
    /// Where the store cannot be written.
    pub fn place(&self, store: &dyn Store) -> Result<()> {
        let content = serde_json::to_vec(&Content { time: self.time });
        let content = content.map_err(|error| Error::damaged("hold", error))?;
        match store.create(&layout::hold(self.generation, self.seq), &content) {
            Err(error) if matches!(error.kind, StoreErrorKind::Exists) => Ok(()),
            placed => Ok(placed?),
        }
    }

    /// All of a store, oldest history first.
    ///
    /// # Errors
    /// Where the store cannot be listed.
    pub fn list(store: &dyn Store) -> Result<Vec<Self>> {
        let entries = store.list(layout::HOLDS)?;
        let names = entries.iter().filter_map(|entry| layout::parse_hold(&entry.name));
        let read = |(generation, seq)| {
            // It holds whatever it says.
            let content = store.read(&layout::hold(generation, seq)).unwrap_or_default();
            let content = serde_json::from_slice(&content).unwrap_or(Content { time: 0 });
            Self { generation, seq, time: content.time }
        };
        Ok(names.map(read).collect())
    }

    /// Takes it away. A person has decided that.
    ///
    /// # Errors
    /// Where the store cannot be written.
    pub fn release(&self, store: &dyn Store) -> Result<()> {
        Ok(store.remove(&layout::hold(self.generation, self.seq))?)
    }

    /// In words, for a warning.
    pub fn warning(&self) -> String {
        format!(
            "the database was not what its backup says (seq {} of generation {}): nothing is removed from the \
             backup until 'backup-cli prune --release-hold'",
            self.seq, self.generation
        )
    }

    /// Refuses a snapshot of a history that the database has parted from: it would be the newest.
    ///
    /// # Errors
    /// [`Error::Refused`]; where the store cannot be listed.
    pub fn refuse_snapshot(store: &dyn Store, generation: u32) -> Result<()> {
        match Self::list(store)?.iter().find(|hold| hold.generation == generation) {
            None => Ok(()),
            Some(hold) => Err(Error::Refused {
                what: format!(
                    "the database was not what its backup says at seq {} of generation {generation}: no snapshot \
                     is made of that",
                    hold.seq
                ),
                hint: "stop lightningd and start it again: a new generation then begins with a snapshot of the \
                       database."
                    .into(),
            }),
        }
    }

    /// Refuses to remove anything.
    ///
    /// # Errors
    /// [`Error::Refused`]; where the store cannot be listed.
    pub fn refuse_removal(store: &dyn Store) -> Result<()> {
        match Self::list(store)?.first() {
            None => Ok(()),
            Some(hold) => Err(Error::Refused {
                what: format!(
                    "nothing is removed: the database was not what its backup says at seq {} of generation {}",
                    hold.seq, hold.generation
                ),
                hint: "look at both, as docs/operations.md says; then 'backup-cli prune --release-hold'."
                    .into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FileStore;

    #[test]
    fn a_hold_stays_until_it_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::create_root(folder.path()).unwrap();
        assert!(Hold::refuse_removal(&store).is_ok());
        let hold = Hold { generation: 3, seq: 77, time: 5 };
        hold.place(&store).unwrap();
        hold.place(&store).unwrap();
        assert_eq!(Hold::list(&store).unwrap(), [hold]);
        assert!(Hold::refuse_removal(&store).is_err());
        assert!(Hold::refuse_snapshot(&store, 3).is_err());
        assert!(Hold::refuse_snapshot(&store, 4).is_ok());
        let object = folder.path().join(layout::hold(3, 77));
        std::fs::write(object, "").unwrap();
        assert_eq!(Hold::list(&store).unwrap(), [Hold { time: 0, ..hold }]);
        hold.release(&store).unwrap();
        assert!(Hold::list(&store).unwrap().is_empty());
    }

    #[test]
    fn a_hold_that_cannot_be_placed_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::create_root(folder.path()).unwrap();
        // In the way of its folder.
        std::fs::write(folder.path().join(layout::HOLDS), "").unwrap();
        assert!(Hold { generation: 3, seq: 77, time: 5 }.place(&store).is_err());
    }
}
