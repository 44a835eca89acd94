//! What is proved of a shadow: that it holds what the node's own database held at the same place, and where it was
//! last checked.

use std::path::Path;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::{CaughtUp, Shadow, place};
use crate::capture::version_of;
use crate::config::write_file;
use crate::error::{Error, Result};
use crate::hex;
use crate::log::{self, LogReader};
use crate::record::TimeMs;
use crate::restore::batches::{Committed, CommittedBatch};
use crate::restore::replay::{self, Replay, sqlite_error};
use crate::seal::StoreId;
use crate::version::DataVersion;

const PROOF: &str = "shadow.proof";
const FORMAT: &str = "lockstep-proof/1";

/// A digest of a database's content: equal for equal content, whatever the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        hex::encode(&digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        hex::decode(&text).map(Self).ok_or("not 64 hexadecimal digits")
    }
}

/// What makes a digest of a database.
pub type DigestOf<'a> = &'a dyn Fn(&Connection) -> Result<Digest>;

/// What the node's database held, at the place in the log that it was at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The history.
    pub generation: u32,
    /// All committed batches up to here, and none behind.
    pub seq: u64,
    /// lightningd's version of it.
    pub data_version: DataVersion,
    /// Its content.
    pub digest: Digest,
}

impl Expected {
    /// What is said of a shadow with other content.
    pub fn differs(&self) -> Error {
        let Self { generation, seq, data_version, .. } = *self;
        Error::Differs { generation, seq, data_version }
    }

    /// That a shadow has the same content.
    pub fn proven(&self, time: TimeMs) -> Proven {
        let Self { generation, seq, data_version, digest } = *self;
        Proven { generation, seq, data_version: Some(data_version), digest, time }
    }

    fn require(&self, found: Digest) -> Result<()> {
        if found == self.digest { Ok(()) } else { Err(self.differs()) }
    }
}

/// A place in the log and when something was found out about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven {
    /// The history.
    pub generation: u32,
    /// The place.
    pub seq: u64,
    /// lightningd's version there; `None` before it has one.
    pub data_version: Option<DataVersion>,
    /// The content there.
    pub digest: Digest,
    /// When it was found out.
    pub time: TimeMs,
}

/// What was last proved of a shadow, kept beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proofs {
    /// SQLite found every page in order.
    pub checked: Option<Proven>,
    /// The content was the node's own.
    pub compared: Option<Proven>,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Kept {
    format: String,
    store_id: StoreId,
    checked: Option<Proven>,
    compared: Option<Proven>,
}

impl Proofs {
    /// What is known of the shadow in `folder`, of the log of `store`; nothing where there is none.
    pub fn read(folder: &Path, store: StoreId) -> Self {
        let kept = std::fs::read(folder.join(PROOF)).ok();
        let kept = kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        match kept.filter(|kept| (kept.format.as_str(), kept.store_id) == (FORMAT, store)) {
            Some(Kept { checked, compared, .. }) => Self { checked, compared },
            None => Self::default(),
        }
    }

    /// Keeps it for the next run.
    ///
    /// # Errors
    /// Where the folder cannot be written.
    pub fn write(&self, folder: &Path, store: StoreId) -> Result<()> {
        let Self { checked, compared } = *self;
        let kept = Kept { format: FORMAT.into(), store_id: store, checked, compared };
        let bytes = serde_json::to_vec(&kept).map_err(|error| Error::damaged(PROOF, error))?;
        write_file(&folder.join(PROOF), &bytes, 0o600, true)
    }
}

impl Shadow<'_> {
    /// The history that it follows.
    pub fn generation(&self) -> u32 {
        self.state.head.generation
    }

    /// As [`catch_up`](Self::catch_up), and compares the content with what is expected on the way. True where it came
    /// to that place and on, and the content is equal.
    ///
    /// # Errors
    /// [`Error::Differs`]; as [`catch_up`](Self::catch_up).
    pub fn catch_up_comparing(
        &mut self,
        expected: &Expected,
        digest_of: DigestOf<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(CaughtUp, bool)> {
        let mut equal = false;
        let mut compare = |db: &Connection| {
            expected.require(digest_of(db)?)?;
            equal = true;
            Ok(())
        };
        let done = self.replay(Some((expected.seq, &mut compare)), progress)?;
        Ok((done, equal))
    }

    /// Compares the content with what is expected where the log ends, or one batch before that, and nobody writes it.
    /// What is not decided yet is replayed for that, and taken back. False where the place was passed, or settings
    /// of a migration are in force there.
    ///
    /// # Errors
    /// [`Error::Differs`]; where the log cannot be read.
    pub fn compare_at_end(&mut self, expected: &Expected, digest_of: DigestOf<'_>) -> Result<bool> {
        let path = self.path.clone();
        let failed = |error: rusqlite::Error| sqlite_error(place(&path), &error);
        if self.after.seq > expected.seq
            || self.generation() != expected.generation
            || !replay::has_session_settings(&self.db).map_err(failed)?
        {
            return Ok(false);
        }
        self.db.execute_batch("BEGIN").map_err(failed)?;
        let digest = self.rehearse(expected.seq).and_then(|comparable| {
            self.guard.own();
            comparable.then(|| digest_of(&self.db)).transpose()
        });
        self.guard.own();
        self.db.execute_batch("ROLLBACK").map_err(failed)?;
        match digest? {
            Some(digest) => expected.require(digest).map(|()| true),
            None => Ok(false),
        }
    }

    /// Replays what is there up to `seq` into the open transaction; false where that would need settings that
    /// only take effect outside of one.
    fn rehearse(&self, seq: u64) -> Result<bool> {
        let mut comparable = true;
        let mut replay = Replay::new(&self.db, &self.guard);
        let mut committed = Committed::going_on(self.after.seq, |batch: CommittedBatch| {
            if batch.at.seq <= self.after.seq || batch.at.seq > seq {
                return Ok(());
            }
            if !batch.transaction {
                comparable &= batch
                    .statements
                    .iter()
                    .all(|settings| settings.text().is_some_and(|text| is_usual_setting(&text)));
                return Ok(());
            }
            replay.rehearse(&batch)
        });
        let segments = log::segments(self.store, self.generation())?;
        let from = self.after.first_segment(&segments);
        let reader = LogReader::new(self.store, self.keys);
        reader.read_from(Some(self.after), &segments[from..], &mut committed)?;
        committed.finish()?;
        Ok(comparable)
    }

    /// Has SQLite check every page of it, and makes a digest of its content.
    ///
    /// # Errors
    /// As [`prove`](Self::prove).
    pub fn prove_with(&self, digest_of: DigestOf<'_>, now: TimeMs) -> Result<Proven> {
        self.prove()?;
        let data_version = version_of(&self.db);
        Ok(Proven {
            generation: self.generation(),
            seq: self.seq(),
            data_version: data_version.map_err(|error| sqlite_error(place(&self.path), &error))?,
            digest: digest_of(&self.db)?,
            time: now,
        })
    }
}

/// True where a session has this setting anyway.
fn is_usual_setting(text: &str) -> bool {
    let words: String = text.chars().filter(|c| !c.is_whitespace() && *c != ';').collect();
    ["pragmaforeign_keys=on", "pragmaforeign_keys=1", "pragmalegacy_alter_table=off"]
        .iter()
        .any(|usual| words.eq_ignore_ascii_case(usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_those_of_their_store() {
        let folder = tempfile::tempdir().unwrap();
        let (store, other) = (StoreId([1; 16]), StoreId([2; 16]));
        assert_eq!(Proofs::read(folder.path(), store), Proofs::default());
        let data_version = Some(DataVersion(9));
        let digest = Digest([7; 32]);
        let checked = Some(Proven { generation: 1, seq: 5, data_version, digest, time: 3 });
        let proofs = Proofs { checked, compared: None };
        proofs.write(folder.path(), store).unwrap();
        assert_eq!(Proofs::read(folder.path(), store), proofs);
        assert_eq!(Proofs::read(folder.path(), other), Proofs::default());
    }

    #[test]
    fn settings_that_change_nothing_are_known() {
        assert!(is_usual_setting("PRAGMA foreign_keys = ON;"));
        assert!(!is_usual_setting("PRAGMA foreign_keys = OFF;"));
    }
}
