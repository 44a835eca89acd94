//! How the logs at two destinations stand to each other.

use super::mirror::load;
use crate::error::{Error, Result};
use crate::log::{LogEnd, all_segments};
use crate::seal::KeyRing;
use crate::store::Store;

/// A destination whose end was read.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// The store there.
    pub store: &'a dyn Store,
    /// Where its log ends.
    pub end: &'a LogEnd,
}

/// How a destination stands to the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// It ends at the same record.
    Current,
    /// It lacks so many records, and holds no other ones.
    Behind {
        /// At least one.
        records: u64,
    },
}

impl Seen<'_> {
    /// How `other` stands to this one, the newest. Reads one segment of each.
    ///
    /// # Errors
    /// [`Error::TwoHistories`] where it holds records that were acknowledged and are not here; where either cannot
    /// be read.
    pub fn compare(&self, other: &Seen<'_>, keys: &KeyRing) -> Result<Distance> {
        if self.end.position == other.end.position {
            return Ok(Distance::Current);
        }
        let behind = self.end.position.seq.saturating_sub(other.end.position.seq).max(1);
        let behind = Ok(Distance::Behind { records: behind });
        let name = other.end.segment;
        // The other one first: a writer may go on meanwhile.
        let Some(there) = load(other.store, keys, name)? else { return behind };
        let (found, count) = there.whole(keys)?;
        let same_history = match load(self.store, keys, name)? {
            Some(here) => {
                let (wanted, own_count) = here.whole(keys)?;
                // The newest record of a segment that was given up was never acknowledged.
                let few = count <= own_count + 1 || self.end.segment == name;
                wanted.starts_with(found) || found.starts_with(wanted) && few
            }
            None => {
                let oldest = all_segments(self.store)?.first().map(|entry| entry.name);
                let removed = oldest.is_some_and(|oldest| name.age() < oldest.age());
                removed || count <= 1
            }
        };
        if same_history {
            return behind;
        }
        Err(Error::TwoHistories {
            one: self.store.label().into(),
            other: other.store.label().into(),
            at: name.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
