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
#[serde(deny_unknown_fields)]
pub struct StateHead {
    pub format: String,
    pub store_id: StoreId,
    pub generation: u32,
    /// Header fields of the node's database file: journal mode, user version, application id.
    pub journal: [u8; 2],
    pub user_version: [u8; 4],
    pub application_id: [u8; 4],
    /// The snapshots that the shadow's pages were published in, base first.
    pub lineage: Vec<Base>,
    /// Position of the newest of them.
    pub published_seq: u64,
    /// When the newest batch in the shadow was appended.
    pub time: TimeMs,
}

const FORMAT: &str = "lockstep-shadow/1";

impl StateHead {
    pub fn new(
        store_id: StoreId,
        generation: u32,
        fields: HeaderFields,
        lineage: Vec<Base>,
        published_seq: u64,
        time: TimeMs,
    ) -> Self {
        let HeaderFields { journal, user_version, application_id } = fields;
        let format = FORMAT.into();
        Self {
            format,
            store_id,
            generation,
            journal,
            user_version,
            application_id,
            lineage,
            published_seq,
            time,
        }
    }

    /// As they are in the node's database file.
    pub fn fields(&self) -> HeaderFields {
        let &Self { journal, user_version, application_id, .. } = self;
        HeaderFields { journal, user_version, application_id }
    }
}

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
