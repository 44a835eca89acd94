//! The shadow: a copy of the node's database that is replayed from the log in the background, and the
//! snapshots that are made of it.
//!
//! Its cost follows what changed: SQLite's write-ahead log says which pages did. It can be lost at any time
//! and is made again from the store. A crash leaves it consistent: the position that it stands for is in the
//! same transaction as its rows (in the two header fields that SQLite leaves to applications, which
//! snapshots do not show), and the pages that changed are on disk before SQLite moves them to the database
//! file. At worst more pages are published than changed.

mod proof;
pub mod room;
mod standby;
mod state;
mod wal;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

pub use self::proof::{Digest, DigestOf, Expected, Proofs, Proven};
pub use self::standby::reached;
use self::state::{State, StateHead};
use crate::capture::version_of;
use crate::error::{Error, Result};
use crate::hold::Hold;
use crate::layout::SnapshotName;
use crate::log::{self, After, LogReader, Mark};
use crate::record::Base;
use crate::restore::batches::{Committed, CommittedBatch};
use crate::restore::replay::{self, Guard, Replay, sqlite_error};
use crate::restore::{PageFile, Plan, Progress};
use crate::seal::{Chain, KeyRing};
use crate::snapshot::{self, Content, HeaderFields, Pages};
use crate::store::{Store, UNSYNCED_MAX};
use crate::version::DataVersion;

const DATABASE: &str = "shadow.sqlite3";
const STATE: &str = "shadow.state";
/// The write-ahead log is moved to the database file when it is as long as this: SQLite does not rest while it moves
/// it, and then waits for the disk.
const WAL_BYTES: u64 = UNSYNCED_MAX;
/// After so many statements its length is looked at.
const STATEMENTS_PER_LOOK: usize = 1_000;
/// SQLite asks whether to rest after so many of its steps; one may be a page.
const STEPS_PER_REST: i32 = 100;
/// Most snapshots that a restore reads, one after another.
const LINKS_MAX: usize = 10;
const LOCK: &str = "lock";

/// A database replayed from the log in a store. After an error it is of no further use.
pub struct Shadow<'s> {
    store: &'s dyn Store,
    keys: &'s KeyRing,
    path: PathBuf,
    db: Connection,
    guard: Guard,
    state: State,
    /// Where it stands.
    after: After,
    /// The newest batch in it and the epoch that wrote it, once that was read in this run.
    newest: Option<(Mark, u32)>,
    _lock: File,
}

/// After which seq to stop, and what to do there.
type Stop<'a> = (u64, &'a mut dyn FnMut(&Connection) -> Result<()>);

/// What [`Shadow::catch_up`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// Batches replayed.
    pub batches: u64,
    /// Statements replayed.
    pub statements: u64,
}

/// What [`Shadow::publish`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The snapshot.
    pub base: Base,
    /// Its place in the log.
    pub position: Mark,
    /// lightningd's version of it.
    pub data_version: Option<DataVersion>,
    /// Pages in it.
    pub pages: u64,
    /// Pages of the database.
    pub page_count: u64,
    /// Bytes of the snapshot as it is stored.
    pub stored_bytes: u64,
    /// Snapshots that a restore reads, this one included.
    pub links: usize,
}

impl<'s> Shadow<'s> {
    /// Opens the shadow in `folder` of the log that `store` holds, or makes it from the newest snapshots.
    ///
    /// # Errors
    /// [`Error::Refused`] where another process uses the folder, or it holds something else, or there is a [`Hold`] on
    /// that history. Where the log or its snapshots cannot be read, or the folder not be written.
    pub fn open(store: &'s dyn Store, keys: &'s KeyRing, folder: &Path) -> Result<Self> {
        Self::open_with(store, keys, folder, &mut |_| {})
    }

    /// As [`open`](Self::open). Where it makes a shadow, `synced` is told each time how long it waited for the disk.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        store: &'s dyn Store,
        keys: &'s KeyRing,
        folder: &Path,
        synced: &mut (dyn FnMut(Duration) + Send),
    ) -> Result<Self> {
        let (lock, plan) = begin(store, keys, folder)?;
        Hold::refuse_snapshot(store, plan.generation)?;
        Self::resume(store, keys, folder, lock, &plan, synced)
    }

    /// What is there, if it is of use, or else a new one.
    fn resume(
        store: &'s dyn Store,
        keys: &'s KeyRing,
        folder: &Path,
        lock: File,
        plan: &Plan,
        synced: &mut (dyn FnMut(Duration) + Send),
    ) -> Result<Self> {
        let path = folder.join(DATABASE);
        let state = State::read(&folder.join(STATE)).filter(|state| {
            (state.head.store_id, state.head.generation) == (keys.store(), plan.generation)
        });
        let first =
            log::segments(store, plan.generation)?.first().map(|first| first.name.first_seq);
        let kept = state.map(|state| reopen(&path, state)).transpose()?.flatten();
        // Else what it needs was removed, since another process compacted.
        let kept = kept.filter(|(.., after)| first.is_none_or(|first| first <= after.seq + 1));
        let (db, guard, state, after) = match kept {
            Some(kept) => kept,
            None => make_around_damage(store, keys, &path, plan, synced)?,
        };
        Ok(Self { store, keys, path, db, guard, state, after, newest: None, _lock: lock })
    }

    /// From here on `rest` is called again and again while SQLite works, in statements and checks of any length.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn rest_in(&mut self, mut rest: impl FnMut() + Send + 'static) -> Result<()> {
        let handler = move || {
            rest();
            false
        };
        self.db
            .progress_handler(STEPS_PER_REST, Some(handler))
            .map_err(|error| sqlite_error(place(&self.path), &error))
    }

    /// Replays what was acknowledged since. `progress` is told the batches.
    ///
    /// # Errors
    /// Where the log cannot be read, or is not the one that the shadow was made from.
    pub fn catch_up(&mut self, progress: &mut dyn FnMut(u64)) -> Result<CaughtUp> {
        self.replay(None, progress)
    }

    /// As [`catch_up`](Self::catch_up), and stops once: before the first batch behind that seq.
    fn replay(
        &mut self,
        mut stop: Option<Stop<'_>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<CaughtUp> {
        let Self { store, keys, path, db, guard, state, after, newest, .. } = self;
        let segments = log::segments(*store, state.head.generation)?;
        let mut replay = Replay::marked(db, guard);
        let mut unchecked = 0;
        let mut committed = Committed::going_on(after.seq, |batch: CommittedBatch| {
            if let Some((_, look)) = stop.take_if(|(seq, _)| batch.at.seq > *seq) {
                replay.commit().map_err(|error| sqlite_error(place(path), &error))?;
                guard.own();
                look(db)?;
                guard.replayed();
            }
            if batch.at.seq > after.seq {
                replay.apply(&batch)?;
                state.head.time = batch.time;
                unchecked += batch.statements.len();
                progress(replay.batches);
            }
            if batch.at.seq >= after.seq {
                *newest = Some((batch.at, batch.epoch));
            }
            if unchecked >= STATEMENTS_PER_LOOK && wal_len(path) >= WAL_BYTES {
                unchecked = 0;
                replay.commit().map_err(|error| sqlite_error(place(path), &error))?;
                guard.own();
                checkpoint(db, path, state)?;
                guard.replayed();
            }
            Ok(())
        });
        let from = after.first_segment(&segments);
        let reader = LogReader::new(*store, keys);
        reader.read_acknowledged(Some(*after), &segments[from..], &mut committed)?;
        replay.finish()?;
        let done = CaughtUp { batches: replay.batches, statements: replay.statements };
        if let Some((at, _)) = newest {
            *after = (*at).into();
        }
        guard.own();
        Ok(done)
    }

    /// Seq of the newest batch in it.
    pub fn seq(&self) -> u64 {
        self.after.seq
    }

    /// Publishes a snapshot of what changed: a delta, or a base where there is none, or where half of the
    /// pages would go out anyway. `None` where nothing was replayed since the last, or settings of a
    /// migration are in force. Durable, and read back, on return.
    ///
    /// # Errors
    /// Where the store or the shadow's folder cannot be written. Nothing was published.
    pub fn publish(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<Published>> {
        let failed = |error: rusqlite::Error| sqlite_error(place(&self.path), &error);
        let Some((position, epoch)) = self.newest else { return Ok(None) };
        if position.seq <= self.state.head.published_seq
            || !replay::has_session_settings(&self.db).map_err(failed)?
        {
            return Ok(None);
        }
        // Another process may have compared it meanwhile.
        Hold::refuse_snapshot(self.store, self.state.head.generation)?;
        let data_version = version_of(&self.db).map_err(failed)?;
        let page_count = |row: &rusqlite::Row<'_>| row.get::<_, u32>(0);
        let page_count = self.db.pragma_query_value(None, "page_count", page_count);
        let page_count = page_count.map_err(failed)?;
        checkpoint(&self.db, &self.path, &mut self.state)?;
        let (mut keep, mut numbers) = self.merge(page_count);
        for parent in &self.state.head.lineage[..keep] {
            // Somebody may have removed what another compactor's snapshots made superfluous.
            if !self.store.exists(&parent.name)? {
                (keep, numbers) = (0, (1..=page_count).collect());
                break;
            }
        }
        let parent = keep.checked_sub(1).map(|newest| self.state.head.lineage[newest].clone());
        let index = u32::from_le_bytes(crate::seal::random_token()?);
        let name = SnapshotName {
            generation: self.state.head.generation,
            seq: position.seq,
            epoch,
            index: index | SnapshotName::FIRST_COMPACTED,
        };
        let content = Content {
            path: &self.path,
            time: self.state.head.time,
            data_version,
            pages: match &parent {
                Some(parent) => Pages::Changed { parent, numbers: &numbers },
                None => Pages::All,
            },
            header: Some(self.state.head.fields),
        };
        let (base, stored_bytes) =
            snapshot::write(self.store, self.keys, name, position, &content, progress)?;
        let pages = numbers.len();
        self.state.push(keep, base.clone(), numbers, position.seq);
        self.state.write(&state_of(&self.path))?;
        let (links, page_count) = (keep + 1, page_count.into());
        Ok(Some(Published { base, position, data_version, pages, page_count, stored_bytes, links }))
    }

    /// How many snapshots of the lineage stay under the next one, and its pages: it takes in those before it
    /// that are not more than twice its size, so that there are few, and each page goes out few times.
    fn merge(&self, page_count: u32) -> (usize, RoaringBitmap) {
        let mut numbers = self.state.dirty.clone();
        let mut keep = self.state.pages.len();
        while keep > 1
            && (keep >= LINKS_MAX || self.state.pages[keep - 1].len() <= 2 * numbers.len())
        {
            keep -= 1;
            numbers |= &self.state.pages[keep];
        }
        if let Some(beyond) = page_count.checked_add(1) {
            numbers.remove_range(beyond..);
        }
        if keep == 0 || 2 * numbers.len() >= u64::from(page_count) {
            keep = 0;
            numbers.insert_range(1..=page_count);
        }
        (keep, numbers)
    }

    /// Has SQLite check every page of it.
    ///
    /// # Errors
    /// [`Error::Database`] with what SQLite found.
    pub fn prove(&self) -> Result<()> {
        replay::check_integrity(&self.db, &place(&self.path))
    }
}

/// Removes the shadow in `folder`: it is made again when it is needed.
///
/// # Errors
/// [`Error::Refused`] where another process uses the folder, or it holds something else; where it cannot be written.
pub fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let _lock = lock(folder)?;
    std::fs::remove_dir_all(folder).map_err(Error::file("remove", folder))
}

/// The database file of the shadow in `folder`, whether or not there is one.
pub fn database_in(folder: &Path) -> PathBuf {
    folder.join(DATABASE)
}

/// True where `error` may come of a shadow that is not in order: made anew, it may be right.
pub fn may_be_wrong(error: &Error) -> bool {
    matches!(error, Error::Database { .. } | Error::Damaged { .. } | Error::Differs { .. })
}

/// Makes the folder this process's own, and looks up what a shadow in it would be made from.
fn begin(store: &dyn Store, keys: &KeyRing, folder: &Path) -> Result<(File, Plan)> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(Error::file("make", folder))?;
    Ok((lock(folder)?, Plan::newest(store, keys)?))
}

type Opened = (Connection, Guard, State, After);

/// `None` where the shadow is of no use.
fn reopen(path: &Path, mut state: State) -> Result<Option<Opened>> {
    // What a crash left there: opening the database may move it.
    state.dirty |= wal::pages(&wal_of(path)).map_err(Error::file("read", path))?;
    state.write(&state_of(path))?;
    let opened = open_database(path).and_then(|(db, guard)| {
        let after = replay::position(&db, state.head.published_seq)
            .map_err(|error| sqlite_error(place(path), &error))?;
        Ok(after.map(|after| (db, guard, state, after)))
    });
    // Whatever SQLite has against it: it is made again.
    Ok(opened.ok().flatten())
}

/// As [`make`]; an older snapshot, with more of the log, gives the same.
fn make_around_damage(
    store: &dyn Store,
    keys: &KeyRing,
    path: &Path,
    plan: &Plan,
    synced: &mut (dyn FnMut(Duration) + Send),
) -> Result<Opened> {
    match make(store, keys, path, plan, synced) {
        Err(error @ (Error::Damaged { .. } | Error::UnknownKind { .. })) => {
            let other = plan.around_damage(store, keys)?.ok_or(error)?;
            make(store, keys, path, &other, synced)
        }
        made => made,
    }
}

/// Makes a shadow from the snapshots of `plan`.
fn make(
    store: &dyn Store,
    keys: &KeyRing,
    path: &Path,
    plan: &Plan,
    synced: &mut (dyn FnMut(Duration) + Send),
) -> Result<Opened> {
    // Only with its state is it a shadow.
    for file in [state_of(path), path.to_owned(), wal_of(path)] {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::file("remove", &file)(error));
            }
            _ => {}
        }
    }
    let mut options = OpenOptions::new();
    let file = options.create_new(true).read(true).write(true).mode(0o600).open(path);
    let file = file.map_err(Error::file("create", path))?;
    let (mut synced_to, mut failed) = (0, None);
    let mut in_small_portions = |progress| {
        if let Progress::Pages(bytes) = progress
            && bytes >= synced_to + UNSYNCED_MAX
        {
            synced_to = bytes;
            let began = Instant::now();
            failed = file.sync_data().err().or(failed.take());
            synced(began.elapsed());
        }
    };
    let mut pages = PageFile::new(&file, path, &mut in_small_portions);
    let read = pages.read(store, keys, &plan.lineage)?;
    if let Some(error) = failed {
        return Err(Error::file("sync", path)(error));
    }
    let newest = plan.lineage.links.last().map(|link| &link.summary);
    let fields = match newest {
        Some(_) => {
            let mut page = [0; HeaderFields::BYTES];
            file.read_exact_at(&mut page, 0).map_err(Error::file("read", path))?;
            HeaderFields::of(&page)
        }
        None => HeaderFields { journal: [1; 2], user_version: [0; 4], application_id: [0; 4] },
    };
    file.sync_all().map_err(Error::file("sync", path))?;
    drop(file);
    let names = plan.lineage.links.iter().map(|link| link.summary.name.to_string());
    let lineage = names.zip(&read).map(|(name, (chain, _))| Base { name, chain: *chain }).collect();
    let at = plan.after().unwrap_or(Mark { seq: 0, chain: Chain::default() });
    let time = newest.map_or(0, |newest| newest.meta.time);
    let head = StateHead {
        format: state::FORMAT.into(),
        store_id: keys.store(),
        generation: plan.generation,
        fields,
        lineage,
        published_seq: at.seq,
        time,
    };
    let pages = read.into_iter().map(|(_, pages)| pages).collect();
    let mut state = State { head, pages, dirty: RoaringBitmap::new() };
    let (db, guard) = open_database(path)?;
    let marked = replay::put_position(&db, at);
    marked.map_err(|error| sqlite_error(place(path), &error))?;
    checkpoint(&db, path, &mut state)?;
    Ok((db, guard, state, at.into()))
}

fn open_database(path: &Path) -> Result<(Connection, Guard)> {
    let (db, guard) = replay::open_with(path, SETTINGS)?;
    // Closing must not move pages that no state knows of.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(|error| sqlite_error(place(path), &error))?;
    Ok((db, guard))
}

/// A power cut costs the newest commits, and nothing else.
const SETTINGS: &str = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; \
     PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096; \
     PRAGMA foreign_keys = ON;";

/// Moves what the write-ahead log holds to the database file, once the state says which pages that is.
fn checkpoint(db: &Connection, path: &Path, state: &mut State) -> Result<()> {
    state.dirty |= wal::pages(&wal_of(path)).map_err(Error::file("read", path))?;
    state.write(&state_of(path))?;
    let busy: bool = db
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .map_err(|error| sqlite_error(place(path), &error))?;
    if busy {
        return Err(Error::Database { place: place(path), what: "is in use".into() });
    }
    Ok(())
}

/// Makes the folder this process's own. One that holds anything else is left as it is, for a shadow is removed with
/// its folder.
///
/// # Errors
/// [`Error::Refused`] where it holds something else, or another process uses it.
fn lock(folder: &Path) -> Result<File> {
    refuse_foreign(folder)?;
    let path = folder.join(LOCK);
    let options =
        OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
    let file = options.map_err(Error::file("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Refused {
            what: format!("another process uses '{}'", folder.display()),
            hint: "wait for it to end.".into(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::file("lock", &path)(error)),
    }
}

fn refuse_foreign(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let name = entry.map_err(Error::file("list", folder))?.file_name();
        if name != LOCK && !name.as_encoded_bytes().starts_with(b"shadow.") {
            return Err(Error::Refused {
                what: format!("'{}' holds something else than a shadow", folder.display()),
                hint: "nothing was changed; give an empty or new folder, with --shadow or 'shadow' in the \
                       section 'compaction' of backup.lock."
                    .into(),
            });
        }
    }
    Ok(())
}

fn wal_of(path: &Path) -> PathBuf {
    path.with_extension("sqlite3-wal")
}

fn wal_len(path: &Path) -> u64 {
    wal_of(path).metadata().map_or(0, |found| found.len())
}

fn state_of(path: &Path) -> PathBuf {
    path.with_file_name(STATE)
}

fn place(path: &Path) -> String {
    format!("'{}'", path.display())
}
