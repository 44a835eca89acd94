//! Where retention has made each generation's log begin (docs/format.md, W15).
//!
//! What lies before that was removed on purpose. It may be there all the same: a request that was given up arrives after its
//! object was removed; or a place was away meanwhile.

use std::collections::HashMap;

use crate::error::Result;
use crate::layout::{self, SegmentName};
use crate::store::{Store, StoreErrorKind};

/// For each generation the epoch and index from which on segments count; of others all do.
#[derive(Debug, Default)]
pub struct Beginnings(HashMap<u32, (u32, u32)>);

impl Beginnings {
    /// As the store has them.
    ///
    /// # Errors
    /// Where it cannot be listed.
    pub fn read(store: &dyn Store) -> Result<Self> {
        let mut all = HashMap::new();
        for entry in store.list(layout::BEGINNINGS)? {
            let Some((generation, at)) = layout::parse_beginning(&entry.name) else { continue };
            let known = all.entry(generation).or_insert(at);
            *known = at.max(*known);
        }
        Ok(Self(all))
    }

    /// True where a segment was removed, and is there all the same.
    pub fn leaves_out(&self, name: &SegmentName) -> bool {
        self.0.get(&name.generation).is_some_and(|begins| name.age() < *begins)
    }

    /// Notes that a generation's log begins there. Older notes of it are removed.
    ///
    /// # Errors
    /// Where the store cannot be written.
    pub fn note(store: &dyn Store, generation: u32, at: (u32, u32)) -> Result<()> {
        match store.create(&layout::beginning(generation, at), b"{}") {
            Err(error) if matches!(error.kind, StoreErrorKind::Exists) => {}
            created => created?,
        }
        for entry in store.list(layout::BEGINNINGS)? {
            if let Some((of, older)) = layout::parse_beginning(&entry.name)
                && (of == generation && older < at)
            {
                store.remove(&layout::beginning(of, older))?;
            }
        }
        Ok(())
    }
}
