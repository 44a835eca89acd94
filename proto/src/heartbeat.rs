//! Heartbeats: while a node is quiet, nothing in its log shows that it is alive. So its writer says it now and then,
//! in a small sealed object of its epoch, at each destination by itself.
//!
//! Nothing depends on one but the question of [`crate::liveness`]: a heartbeat is not copied from place to place, not
//! verified and not healed. It is the one object that is written again and again under its name; each time it takes
//! fresh random bytes for its nonce.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fence::Claimant;
use crate::layout;
use crate::record::TimeMs;
use crate::seal::{KeyRing, ObjectKind};
use crate::sealed;
use crate::store::{Store, StoreErrorKind};

/// Seconds from one to the next, where nothing else is configured.
pub const INTERVAL_S: u64 = 300;

/// What a quiet writer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// When, by the writer's clock.
    pub time: TimeMs,
    /// The next one comes so many seconds later, unless a record does.
    pub interval_s: u64,
    /// Who, as its claim says.
    pub by: Claimant,
}

impl Heartbeat {
    /// Puts it into a store in place of the epoch's last one.
    ///
    /// # Errors
    /// Where the store cannot be written.
    pub fn beat(&self, store: &dyn Store, keys: &KeyRing, epoch: u32) -> Result<()> {
        let bytes = sealed::seal(keys, ObjectKind::Heartbeat, (epoch, 0), self)?;
        Ok(store.replace(&layout::heartbeat(epoch), &bytes)?)
    }

    /// That of the newest epoch that has one, and the epoch. One that does not open says nothing: whoever can damage
    /// it can remove it.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn newest(store: &dyn Store, keys: &KeyRing) -> Result<Option<(u32, Self)>> {
        for epoch in epochs(store)?.into_iter().rev() {
            let name = layout::heartbeat(epoch);
            let bytes = match store.read(&name) {
                Err(error) if matches!(error.kind, StoreErrorKind::NotFound) => continue,
                bytes => bytes?,
            };
            if let Ok(found) = sealed::open(keys, ObjectKind::Heartbeat, (epoch, 0), &name, &bytes)
            {
                return Ok(Some((epoch, found)));
            }
        }
        Ok(None)
    }

    /// Removes those of older epochs, which nobody asks for any more.
    ///
    /// # Errors
    /// Where the store cannot be listed or written.
    pub fn remove_older(store: &dyn Store, epoch: u32) -> Result<()> {
        let mut older = epochs(store)?.into_iter().filter(|&other| other < epoch);
        older.try_for_each(|other| store.remove(&layout::heartbeat(other)).map_err(Error::from))
    }
}

/// The epochs that have one, oldest first.
fn epochs(store: &dyn Store) -> Result<Vec<u32>> {
    let entries = store.list(layout::HEARTBEATS)?;
    let mut epochs: Vec<u32> =
        entries.iter().filter_map(|entry| layout::parse_heartbeat(&entry.name)).collect();
    epochs.sort_unstable();
    Ok(epochs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::StoreId;
    use crate::store::FileStore;

    #[test]
    fn the_newest_that_opens_counts_and_older_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::create_root(folder.path()).unwrap();
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        assert_eq!(Heartbeat::newest(&store, &keys).unwrap(), None);
        let by = Claimant::this_process("w/1", "node", "d", 1).unwrap();
        let at = |time| Heartbeat { time, interval_s: 300, by: by.clone() };
        for (time, epoch) in [(5, 3), (7, 3), (9, 4)] {
            at(time).beat(&store, &keys, epoch).unwrap();
        }
        assert_eq!(Heartbeat::newest(&store, &keys).unwrap(), Some((4, at(9))));
        // Whatever is no heartbeat of its name is passed over.
        let [third, fourth, fifth] =
            [3, 4, 5].map(|epoch| folder.path().join(layout::heartbeat(epoch)));
        std::fs::copy(&fourth, &fifth).unwrap();
        std::fs::write(&fourth, "garbled").unwrap();
        assert_eq!(Heartbeat::newest(&store, &keys).unwrap(), Some((3, at(7))));
        Heartbeat::remove_older(&store, 5).unwrap();
        assert!(!third.exists() && !fourth.exists() && fifth.exists());
    }
}
