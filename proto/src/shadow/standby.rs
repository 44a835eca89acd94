//! A shadow that stands by: it publishes nothing, and becomes the node's database when the node is no more.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::Connection;

use super::state::State;
use super::{DATABASE, STATE, Shadow, begin, checkpoint, lock, place, reopen, state_of};
use crate::capture::version_of;
use crate::error::{Error, Result};
use crate::log::{self, LogReader};
use crate::restore::batches::{Committed, CommittedBatch};
use crate::restore::replay::{Replay, sqlite_error};
use crate::restore::{self, Restored};
use crate::seal::{KeyRing, StoreId};
use crate::snapshot::HeaderFields;
use crate::store::{Store, sync_parent};
use crate::version::DataVersion;

/// Where the fields of [`HeaderFields::journal`] are in a database file.
const JOURNAL_OFFSET: u64 = 18;
const SYNC: &str = "sync the folder of";

/// Generation and seq of the newest batch in the shadow that `folder` holds, if it holds one of this log.
///
/// # Errors
/// [`Error::Refused`] where another process uses the folder. Where it cannot be written to.
pub fn reached(folder: &Path, log: StoreId) -> Result<Option<(u32, u64)>> {
    let state = State::read(&folder.join(STATE)).filter(|state| state.head.store_id == log);
    let Some(state) = state else { return Ok(None) };
    let _lock = lock(folder)?;
    let generation = state.head.generation;
    let opened = reopen(&folder.join(DATABASE), state)?;
    Ok(opened.map(|(.., after)| (generation, after.seq)))
}

impl<'s> Shadow<'s> {
    /// As [`open`](Self::open), for one that will not publish: also of a history on which there is a hold.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn follow(store: &'s dyn Store, keys: &'s KeyRing, folder: &Path) -> Result<Self> {
        let (lock, plan) = begin(store, keys, folder)?;
        Self::resume(store, keys, folder, lock, &plan, &mut |_| {})
    }

    /// lightningd's version of what it holds; `None` before there is one.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn data_version(&self) -> Result<Option<DataVersion>> {
        version_of(&self.db).map_err(|error| sqlite_error(place(&self.path), &error))
    }

    /// Ends it: replays all that the log holds, as a restore does, the newest batch included; proves the database; and
    /// moves it to `path`, a new name on the same file system, durable, with the header that the node's own has. Only
    /// for the one who has claimed the log. `progress` is told the batches.
    ///
    /// From its first step on it is no shadow any more: whoever opens it after a failure makes it anew.
    ///
    /// # Errors
    /// Where the log cannot be read, or the database fails a check, or the disk.
    pub fn into_database(mut self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Restored> {
        checkpoint(&self.db, &self.path, &mut self.state)?;
        let state = state_of(&self.path);
        std::fs::remove_file(&state).map_err(Error::file("remove", &state))?;
        sync_parent(&state).map_err(Error::file(SYNC, &state))?;
        let restored = self.replay_all(progress)?;
        let Self { path: own, db, state, _lock: lock, .. } = self;
        leave_wal(&db, &state.head.fields).map_err(|error| sqlite_error(place(&own), &error))?;
        db.close().map_err(|(_, error)| sqlite_error(place(&own), &error))?;
        let options = OpenOptions::new().read(true).write(true).open(&own);
        let file = options.map_err(Error::file("open", &own))?;
        // In a journal mode of its own: where that is WAL, closing leaves the file so.
        file.write_all_at(&state.head.fields.journal, JOURNAL_OFFSET)
            .and_then(|()| file.sync_all())
            .map_err(Error::file("write", &own))?;
        std::fs::rename(&own, path).map_err(Error::file("move", &own))?;
        sync_parent(path).map_err(Error::file(SYNC, path))?;
        drop(lock);
        Ok(restored)
    }

    /// What is there, to its end; then SQLite's checks.
    fn replay_all(&mut self, progress: &mut dyn FnMut(u64)) -> Result<Restored> {
        let Self { store, keys, db, guard, state, after, .. } = self;
        let segments = log::segments(*store, state.head.generation)?;
        guard.replayed();
        let mut replay = Replay::new(db, guard);
        let mut time = state.head.time;
        let mut committed = Committed::going_on(after.seq, |batch: CommittedBatch| {
            if batch.at.seq >= after.seq {
                time = batch.time;
            }
            if batch.at.seq > after.seq {
                replay.apply(&batch)?;
                progress(replay.batches);
            }
            Ok(())
        });
        let from = after.first_segment(&segments);
        let reader = LogReader::new(*store, keys);
        let position = reader.read_from(Some(*after), &segments[from..], &mut committed)?;
        committed.finish()?;
        let voided = committed.voided;
        replay.finish()?;
        let (batches, statements, version) =
            (replay.batches, replay.statements, replay.data_version);
        drop(replay);
        guard.own();
        let foreign_key_violations = restore::check(db, version)?;
        let data_version = self.data_version()?;
        let nothing = || Error::Nothing {
            store: self.store.label().into(),
            what: "the log has no record".into(),
        };
        Ok(Restored {
            position: position.ok_or_else(nothing)?,
            data_version,
            time,
            batches,
            statements,
            voided,
            foreign_key_violations,
        })
    }
}

/// Puts the node's own values back where the shadow kept its position, and everything into the one file.
fn leave_wal(db: &Connection, fields: &HeaderFields) -> rusqlite::Result<()> {
    db.pragma_update(None, "user_version", i32::from_be_bytes(fields.user_version))?;
    db.pragma_update(None, "application_id", i32::from_be_bytes(fields.application_id))?;
    let mode: String = db.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))?;
    if mode == "delete" { Ok(()) } else { Err(rusqlite::Error::InvalidQuery) }
}
