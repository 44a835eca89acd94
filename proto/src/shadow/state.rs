//! What is known of a shadow from one run to the next: a line of JSON, then the page sets.

use std::io::{self, Write};
use std::path::Path;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::config::write_file;
use crate::error::{Error, Result};
use crate::record::{Base, TimeMs};
use crate::seal::StoreId;
use crate::snapshot::HeaderFields;

/// What is known of a shadow.
#[derive(Debug, Clone)]
pub struct State {
    /// Of which log.
    pub head: StateHead,
    /// For each snapshot of the lineage the pages that it holds.
    pub pages: Vec<RoaringBitmap>,
    /// At least the pages that changed in the database file since the newest snapshot.
    pub dirty: RoaringBitmap,
}

/// The part of [`State`] that is JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHead {
    /// [`FORMAT`]. Fields are added under another one only.
    pub format: String,
    pub store_id: StoreId,
    pub generation: u32,
    /// As they are in the node's database file.
    #[serde(flatten)]
    pub fields: HeaderFields,
    /// The snapshots that the shadow's pages were published in, base first.
    pub lineage: Vec<Base>,
    /// Position of the newest of them.
    pub published_seq: u64,
    /// When the newest batch in the shadow was appended.
    pub time: TimeMs,
}

/// What [`StateHead::format`] says.
pub const FORMAT: &str = "lockstep-shadow/1";

impl State {
    /// Notes that `base`, with `numbers`, was published on the first `keep` snapshots of the lineage.
    pub fn push(&mut self, keep: usize, base: Base, numbers: RoaringBitmap, seq: u64) {
        self.head.lineage.truncate(keep);
        self.pages.truncate(keep);
        self.head.lineage.push(base);
        self.pages.push(numbers);
        self.dirty.clear();
        self.head.published_seq = seq;
    }

    /// Reads it; `None` where there is none, or none of this version.
    pub fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let line = memchr::memchr(b'\n', &bytes)?;
        let head: StateHead = serde_json::from_slice(&bytes[..line]).ok()?;
        let mut sets = &bytes[line + 1..];
        let mut pages = Vec::new();
        for _ in 0..=head.lineage.len() {
            pages.push(RoaringBitmap::deserialize_from(&mut sets).ok()?);
        }
        let dirty = pages.pop()?;
        (head.format == FORMAT && sets.is_empty()).then_some(Self { head, pages, dirty })
    }

    /// Writes it, durably, in place of the one before.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = Vec::new();
        let written = serde_json::to_writer(&mut bytes, &self.head)
            .map_err(io::Error::from)
            .and_then(|()| bytes.write_all(b"\n"))
            .and_then(|()| {
                let mut sets = self.pages.iter().chain([&self.dirty]);
                sets.try_for_each(|set| set.serialize_into(&mut bytes))
            });
        written.map_err(Error::file("write", path))?;
        write_file(path, &bytes, 0o600, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Chain;

    fn head() -> StateHead {
        let fields =
            HeaderFields { journal: [1, 2], user_version: [0, 0, 0, 3], application_id: [4; 4] };
        let base = Base { name: "snap/x".into(), chain: Chain([5; 32]) };
        StateHead {
            format: FORMAT.into(),
            store_id: StoreId([6; 16]),
            generation: 7,
            fields,
            lineage: vec![base],
            published_seq: 8,
            time: 9,
        }
    }

    #[test]
    fn the_first_line_stays_as_it_is() {
        let head = head();
        let line = format!(
            r#"{{"format":"lockstep-shadow/1","store_id":"{}","generation":7,"journal":[1,2],"user_version":[0,0,0,3],"application_id":[4,4,4,4],"lineage":[{{"name":"snap/x","chain":"{}"}}],"published_seq":8,"time":9}}"#,
            "06".repeat(16),
            "05".repeat(32)
        );
        assert_eq!(serde_json::to_string(&head).unwrap(), line);
        assert_eq!(serde_json::from_str::<StateHead>(&line).unwrap(), head);
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert!(State::read(&path).is_none());
        let (pages, dirty) = (vec![(1..70_000).collect()], [3, 70_000].into_iter().collect());
        let state = State { head: head(), pages, dirty };
        state.write(&path).unwrap();
        let read = State::read(&path).unwrap();
        assert_eq!((read.head, read.pages, read.dirty), (head(), state.pages, state.dirty));
        let whole = std::fs::read(&path).unwrap();
        let other = String::from_utf8_lossy(&whole).find("shadow/1").unwrap() + 7;
        let mut changed = whole.clone();
        changed[other] = b'2';
        let longer = [&whole[..], &[0]].concat();
        let shorter = whole[..whole.len() - 1].to_vec();
        for bytes in [changed, longer, shorter] {
            std::fs::write(&path, bytes).unwrap();
            assert!(State::read(&path).is_none());
        }
    }
}
