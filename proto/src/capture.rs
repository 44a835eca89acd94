//! From a database to the first snapshot of a generation: for a new backup of an existing node, and for a
//! database that has got ahead of its log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::error::{Error, Result};
use crate::layout::SnapshotName;
use crate::record::{Start, StartReason, TimeMs};
use crate::restore::replay::sqlite_error;
use crate::snapshot::{self, Content, Pages};
use crate::version::DataVersion;
use crate::writer::Writer;

/// lightningd holds its database exclusively only while it commits, or, until it commits, once a huge
/// transaction has spilled from its cache.
const BUSY_TRIES: u32 = 40;
/// Pages copied at a time.
const PAGES_PER_STEP: i32 = 4096;
const BUSY_WAIT: Duration = Duration::from_millis(250);

/// A copy of a database as it was last committed, removed when dropped.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    /// lightningd's version of it; `None` where it has no such row.
    pub data_version: Option<DataVersion>,
}

impl Capture {
    /// Copies the database at `source` to `path` through SQLite's backup API, which begins again where
    /// another process commits meanwhile: it is one committed state. `progress` is told the pages copied.
    ///
    /// # Errors
    /// Where there is no database, or it stays locked for ten seconds.
    pub fn take(source: &Path, path: PathBuf, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        let failed =
            |error: rusqlite::Error| sqlite_error(format!("'{}'", source.display()), &error);
        // One that a crash left behind.
        let _ = std::fs::remove_file(&path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let from = Connection::open_with_flags(source, flags).map_err(failed)?;
        // How long is waited is decided below: SQLite adds no seconds of its own to that.
        from.busy_timeout(Duration::ZERO).map_err(failed)?;
        let mut capture = Self { path, data_version: None };
        let mut to = Connection::open(&capture.path).map_err(failed)?;
        to.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF;").map_err(failed)?;
        let copied = copy_pages(&from, &mut to, BUSY_WAIT, progress).map_err(failed)?;
        if !copied {
            return Err(Error::Refused {
                what: format!("'{}' is locked by a transaction", source.display()),
                hint: "start lightningd again: the copy is then made before it opens the database."
                    .into(),
            });
        }
        capture.data_version = version_of(&to).map_err(failed)?;
        to.close().map_err(|(_, error)| failed(error))?;
        Ok(capture)
    }

    /// Publishes the copy and begins a generation with it.
    ///
    /// # Errors
    /// Where the store fails or the writer is fenced: the old generation is then still the newest.
    pub fn begin(
        &self,
        writer: &mut Writer,
        reason: StartReason,
        now: TimeMs,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let generation = writer.next_generation(now)?;
        let (epoch, index, position) = (writer.epoch(), writer.take_index(), writer.position());
        let name = SnapshotName { generation, seq: position.seq, epoch, index };
        let content = Content {
            path: &self.path,
            time: now,
            data_version: self.data_version,
            pages: Pages::All,
            header: None,
        };
        let (store, keys) = (writer.store().clone(), writer.keys().clone());
        let (base, _) = snapshot::write(&*store, &keys, name, position.mark(), &content, progress)?;
        writer.begin(Start { reason, base: Some(base) }, self.data_version, now)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// False where the database stayed locked, however often `wait` was waited.
fn copy_pages(
    from: &Connection,
    to: &mut Connection,
    wait: Duration,
    progress: &mut dyn FnMut(u64),
) -> rusqlite::Result<bool> {
    let copy = Backup::new(from, to)?;
    let mut busy = 0;
    loop {
        match copy.step(PAGES_PER_STEP)? {
            StepResult::Done => return Ok(true),
            StepResult::More => {
                let done = copy.progress();
                progress((done.pagecount - done.remaining).unsigned_abs().into());
            }
            _ if busy == BUSY_TRIES => return Ok(false),
            _ => {
                busy += 1;
                std::thread::sleep(wait);
            }
        }
    }
}

/// The `data_version` that lightningd keeps in its database; `None` in one that it has not made yet.
///
/// # Errors
/// Where SQLite fails.
pub fn version_of(db: &Connection) -> rusqlite::Result<Option<DataVersion>> {
    let table = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'vars'";
    if db.query_row(table, [], |_| Ok(())).optional()?.is_none() {
        return Ok(None);
    }
    let version = "SELECT intval FROM vars WHERE name = 'data_version'";
    let version = db.query_row(version, [], |row| row.get::<_, i64>(0)).optional()?;
    Ok(version.map(|version| DataVersion(version as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of more than one step.
    fn database(folder: &Path) -> (PathBuf, Connection) {
        let path = folder.join("node");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA page_size = 512; CREATE TABLE vars (name TEXT, intval INTEGER);
             INSERT INTO vars VALUES ('data_version', 7);
             CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(3000000))",
        )
        .unwrap();
        (path, db)
    }

    #[test]
    fn a_copy_is_whole_and_is_removed_with_what_stands_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (source, _) = database(folder.path());
        let (path, mut told) = (folder.path().join("copy"), Vec::new());
        std::fs::write(&path, "what a crash left").unwrap();
        let copy = Capture::take(&source, path.clone(), &mut |pages| told.push(pages)).unwrap();
        assert_eq!(copy.data_version, Some(DataVersion(7)));
        assert_eq!(told, [PAGES_PER_STEP as u64]);
        assert_eq!(path.metadata().unwrap().len(), source.metadata().unwrap().len());
        drop(copy);
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_is_waited_for_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let (source, db) = database(folder.path());
        db.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let from = Connection::open(&source).unwrap();
        from.busy_timeout(Duration::ZERO).unwrap();
        let mut to = Connection::open_in_memory().unwrap();
        assert!(!copy_pages(&from, &mut to, Duration::ZERO, &mut |_| {}).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(db);
            });
            let path = folder.path().join("copy");
            Capture::take(&source, path, &mut |_| {}).unwrap();
        });
    }
}
