//! From a log to a database: what to read, then pages, then batches, then proof.

pub mod batches;
mod clock;
mod pages;
mod plan;
pub mod replay;
pub mod salvage;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

use rusqlite::Connection;

use self::batches::{Committed, CommittedBatch};
pub use self::pages::PageFile;
pub(crate) use self::plan::beginning_of;
pub use self::plan::{Beginning, Plan, Target};
use self::replay::{Replay, sqlite_error};
use crate::error::{Error, Result};
use crate::log::{After, LogReader, Mark, Position};
use crate::record::TimeMs;
use crate::seal::KeyRing;
use crate::store::Store;
use crate::threads;
use crate::version::DataVersion;

/// Decoded batches wait between the two halves of a restore up to this many bytes a parcel …
const PARCEL_BYTES: usize = 512 * 1024;
/// … and this many parcels.
const PARCELS: usize = 4;

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the database written from snapshots.
    Pages(u64),
    /// Batches replayed.
    Batches(u64),
    /// The database is being checked.
    Checking,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The newest record of the log.
    pub position: Position,
    /// lightningd's version of the database.
    pub data_version: Option<DataVersion>,
    /// When the newest batch was appended, or the snapshot taken.
    pub time: TimeMs,
    /// Batches replayed.
    pub batches: u64,
    /// Statements replayed.
    pub statements: u64,
    /// Batches that the node never committed, left out.
    pub voided: u64,
    /// Rows that break a foreign key. The node's own database has them too.
    pub foreign_key_violations: u64,
}

/// Writes the database that `plan` leads to into `path`, a new file, and proves it. The file is durable
/// on return; giving it its final name is the caller's last step.
///
/// # Errors
/// The first thing that is wrong, with its place. What is at `path` is then of no use.
pub fn run(
    store: &dyn Store,
    keys: &KeyRing,
    plan: &Plan,
    path: &Path,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Restored> {
    let file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("create", path))?;
    let mut pages = PageFile::new(&file, path, progress);
    pages.read(store, keys, &plan.lineage)?;
    let base = plan.lineage.links.last().map(|link| &link.summary.meta);
    let (db, guard) = replay::open(path)?;
    let mut replay = Replay::new(&db, &guard);
    replay.data_version = base.and_then(|meta| meta.data_version);
    let (Read { position, voided, stopped }, time) =
        replay_log(store, keys, plan, &mut replay, progress)?;
    plan.target.expect_reached(stopped, position.seq, replay.data_version)?;
    let (batches, statements, data_version) =
        (replay.batches, replay.statements, replay.data_version);
    drop(replay);
    progress(Progress::Checking);
    guard.own();
    let foreign_key_violations = check(&db, data_version)?;
    db.close().map_err(|(_, error)| sqlite_error(path.display().to_string(), &error))?;
    file.sync_all().map_err(Error::file("sync", path))?;
    let time = time.or(base.map(|meta| meta.time)).unwrap_or(0);
    Ok(Restored {
        position,
        data_version,
        time,
        batches,
        statements,
        voided,
        foreign_key_violations,
    })
}

/// What was read of the log.
struct Read {
    position: Position,
    voided: u64,
    /// Before a batch that lies behind what was wanted.
    stopped: bool,
}

/// One thread reads, proves, opens and decodes; the other executes. Returns the time of the newest batch, too.
fn replay_log(
    store: &dyn Store,
    keys: &KeyRing,
    plan: &Plan,
    replay: &mut Replay<'_>,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<(Read, Option<TimeMs>)> {
    let (sender, receiver) = sync_channel(PARCELS);
    let (executed, used) = channel();
    std::thread::scope(|scope| {
        let parcels = Parcels { sender, used };
        let reader = threads::start(scope, "log", move || read_log(store, keys, plan, &parcels))?;
        let mut time = None;
        let mut applied = Ok(());
        'parcels: for parcel in receiver {
            for batch in &parcel {
                applied = replay.apply(batch);
                if applied.is_err() {
                    break 'parcels;
                }
                time = Some(batch.time);
            }
            progress(Progress::Batches(replay.batches));
            // Where it has read everything there is nobody to take it.
            let _ = executed.send(parcel);
        }
        let read = threads::join(reader);
        applied?;
        let read = read?;
        replay.finish()?;
        Ok((read, time))
    })
}

/// Decoded batches on their way to the other half, and what comes back executed.
struct Parcels {
    sender: SyncSender<Vec<CommittedBatch>>,
    used: Receiver<Vec<CommittedBatch>>,
}

impl Parcels {
    /// An error where the other half has given up: it says why.
    fn send(&self, parcel: Vec<CommittedBatch>) -> Result<()> {
        // Memory goes back where it came from: two threads that hand each other blocks wait for each other.
        self.used.try_iter().for_each(drop);
        self.sender.send(parcel).map_err(|_| stopped())
    }
}

/// Sends what is behind the snapshots, up to the target, in parcels.
fn read_log(store: &dyn Store, keys: &KeyRing, plan: &Plan, parcels: &Parcels) -> Result<Read> {
    let generation = plan.generation;
    if let Some(Mark { seq, chain }) = plan.point_alone() {
        let position = Position { generation, seq, chain };
        return Ok(Read { position, voided: 0, stopped: true });
    }
    let mut parcel = Vec::new();
    let mut parcel_bytes = 0;
    let mut last = plan.after();
    let held = last.map_or(0, |after| after.seq);
    let mut reached = None;
    let mut passed = !plan.reads_past(held);
    let mut committed = Committed::going_on(held, |batch: CommittedBatch| {
        if batch.at.seq <= held {
            if batch.at.seq == held {
                passed = true;
                plan.expect_version(&batch)?;
            }
            return Ok(());
        }
        if reached.is_some() || plan.target.excludes(&batch) {
            reached = reached.or(Some(last));
            return Err(stopped());
        }
        last = Some(batch.at);
        parcel_bytes += batch.statements.iter().map(|s| s.byte_len()).sum::<usize>();
        parcel.push(batch);
        if parcel_bytes >= PARCEL_BYTES {
            parcel_bytes = 0;
            parcels.send(std::mem::take(&mut parcel))?;
        }
        Ok(())
    });
    let after = plan.after().map(After::from);
    let read = LogReader::new(store, keys).read_from(after, &plan.segments, &mut committed);
    // What is held back lies before the damage: it is intact, though nothing behind it decides about it.
    let damaged = matches!(read, Err(Error::Damaged { .. }));
    let finished = if damaged || read.is_ok() { committed.finish() } else { Ok(()) };
    let read = read.and_then(|read| finished.map(|()| read));
    let voided = committed.voided;
    if damaged && reached.is_none() && plan.target.is_at(last) {
        reached = Some(last);
    }
    let position = match reached {
        Some(last) => last.map(|Mark { seq, chain }| Position { generation, seq, chain }),
        None => read?,
    };
    if !passed {
        return Err(plan.not_a_batch(held));
    }
    parcels.send(parcel)?;
    let nothing =
        || Error::Nothing { store: store.label().into(), what: "the log has no record".into() };
    Ok(Read { position: position.ok_or_else(nothing)?, voided, stopped: reached.is_some() })
}

fn stopped() -> Error {
    Error::Database { place: "replay".into(), what: "stopped".into() }
}

/// Proves a restored database: SQLite's own checks, and that it says itself which version it is.
pub(crate) fn check(db: &Connection, data_version: Option<DataVersion>) -> Result<u64> {
    let place = "restored database";
    let failed = |error: rusqlite::Error| sqlite_error(place.into(), &error);
    replay::check_integrity(db, place)?;
    let violations: i64 = db
        .query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))
        .map_err(failed)?;
    if let Some(expected) = data_version {
        let found: i64 = db
            .query_row("SELECT intval FROM vars WHERE name = 'data_version'", [], |row| row.get(0))
            .map_err(failed)?;
        if found as u32 != expected.0 {
            let what =
                format!("data_version is {found}, the log's newest batch made it {expected}");
            return Err(Error::Database { place: place.into(), what });
        }
    }
    Ok(violations.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_database_is_whole_and_of_the_version_that_the_log_says() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "PRAGMA foreign_keys = OFF;
             CREATE TABLE vars (name TEXT, intval INTEGER CHECK (intval > 0));
             INSERT INTO vars VALUES ('data_version', 4294967295);
             CREATE TABLE peers (id INTEGER PRIMARY KEY);
             CREATE TABLE channels (peer INTEGER REFERENCES peers(id))",
        )
        .unwrap();
        assert_eq!(check(&db, Some(DataVersion(u32::MAX))).unwrap(), 0);
        assert_eq!(check(&db, None).unwrap(), 0);
        assert!(check(&db, Some(DataVersion(7))).is_err());
        db.execute_batch("INSERT INTO channels VALUES (8), (9)").unwrap();
        assert_eq!(check(&db, None).unwrap(), 2, "the node's own are only counted");
        db.execute_batch("PRAGMA ignore_check_constraints = ON; INSERT INTO vars VALUES ('x', -1)")
            .unwrap();
        db.execute_batch("PRAGMA ignore_check_constraints = OFF").unwrap();
        let error = check(&db, None).unwrap_err();
        assert!(error.to_string().contains("CHECK constraint failed"), "{error}");
    }
}
