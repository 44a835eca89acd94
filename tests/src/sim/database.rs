//! The node's SQLite database, opened and written as lightningd does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use super::SimError;
use crate::step::{Batch, Step, version_bump};

/// lightningd gives up on a locked database after this long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// An open node database: rollback journal, foreign keys on.
///
/// While it is open, read the file through SQLite only: closing any other
/// descriptor of it in this process drops its POSIX locks.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens or creates a database. Unless `durable`, commits are not synced:
    /// that matters to a power cut only, which no simulation makes.
    pub fn open(path: impl Into<PathBuf>, durable: bool) -> Result<Self, SimError> {
        let path = path.into();
        let connection =
            Connection::open(&path).map_err(SimError::sql(&path.display().to_string()))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(SimError::sql("busy_timeout"))?;
        let synchronous = if durable { "FULL" } else { "OFF" };
        let setup = format!("PRAGMA synchronous = {synchronous}; PRAGMA foreign_keys = ON;");
        connection.execute_batch(&setup).map_err(SimError::sql(&setup))?;
        connection.set_prepared_statement_cache_capacity(4);
        Ok(Self { connection, path })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection, to look at the database from inside.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Begins a transaction and runs a step in it, ending with the version's
    /// update; runs a `PRAGMA` at once, outside any transaction. Gives what
    /// lightningd would report. On failure nothing stays open.
    pub fn begin(&self, step: &Step) -> Result<Batch, SimError> {
        match step {
            Step::Pragma(pragma) => {
                self.run(pragma)?;
                Ok(Batch { data_version: self.data_version()?, writes: vec![pragma.clone()] })
            }
            Step::Transaction(statements) => {
                self.run("BEGIN TRANSACTION;")?;
                self.run_and_bump(statements).inspect_err(|_| {
                    // The first error is the one to report.
                    let _ = self.rollback();
                })
            }
        }
    }

    fn run_and_bump(&self, statements: &[String]) -> Result<Batch, SimError> {
        for sql in statements {
            self.run(sql)?;
        }
        let bump = version_bump(self.stored_version()?.ok_or(SimError::OptimisticLock)?);
        self.run(&bump)?;
        if self.connection.changes() != 1 {
            return Err(SimError::OptimisticLock);
        }
        let mut writes = statements.to_vec();
        writes.push(bump);
        Ok(Batch { data_version: self.data_version()?, writes })
    }

    /// Begins and commits a step: a write that no plugin hears of.
    pub fn apply(&self, step: &Step) -> Result<Batch, SimError> {
        let batch = self.begin(step)?;
        self.commit()?;
        Ok(batch)
    }

    /// Runs a recorded batch verbatim, as a restore does: `PRAGMA`s outside a
    /// transaction, everything else in one.
    pub fn replay(&self, batch: &Batch) -> Result<(), SimError> {
        if !batch.is_pragma_only() {
            self.run("BEGIN TRANSACTION;")?;
        }
        batch.writes.iter().try_for_each(|sql| self.run(sql))?;
        self.commit()
    }

    /// Commits what is open, if anything.
    pub fn commit(&self) -> Result<(), SimError> {
        if self.in_transaction() {
            self.run("COMMIT;")?;
        }
        Ok(())
    }

    /// Rolls back what is open, if anything.
    pub fn rollback(&self) -> Result<(), SimError> {
        if self.in_transaction() {
            self.run("ROLLBACK;")?;
        }
        Ok(())
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        !self.connection.is_autocommit()
    }

    /// The version as lightningd reports it: the low 32 bits of what is
    /// stored, 0 on a database without any.
    pub fn data_version(&self) -> Result<u32, SimError> {
        let stored = self.stored_version()?.unwrap_or(0);
        let low_bits = stored.cast_unsigned() & u64::from(u32::MAX);
        Ok(u32::try_from(low_bits).expect("32 bits fit"))
    }

    /// `vars.intval` of the version; it is not cut at 2^32.
    fn stored_version(&self) -> Result<Option<i64>, SimError> {
        const SQL: &str = "SELECT intval FROM vars WHERE name = 'data_version'";
        let Ok(mut statement) = self.connection.prepare_cached(SQL) else {
            return Ok(None); // no such table: a fresh database
        };
        let version = statement.query_row([], |row| row.get(0)).optional();
        version.map_err(SimError::sql(SQL))
    }

    /// Whether foreign keys are enforced on this connection.
    pub fn foreign_keys(&self) -> Result<bool, SimError> {
        const SQL: &str = "PRAGMA foreign_keys";
        let on = self.connection.query_row(SQL, [], |row| row.get(0));
        on.map_err(SimError::sql(SQL))
    }

    /// Copies the committed content to a new file.
    pub fn copy_to(&self, to: &Path) -> Result<(), SimError> {
        if self.in_transaction() {
            return Err(SimError::Busy("in a transaction"));
        }
        self.connection
            .backup("main", to, None::<fn(rusqlite::backup::Progress)>)
            .map_err(SimError::sql("backup"))
    }

    /// Closes without commit, as the death of the process does. With
    /// `hot_journal` the file is left half written beside the journal that
    /// undoes it, which is what a death during a large transaction leaves.
    pub fn crash(self, hot_journal: bool) -> Result<(), SimError> {
        let hot = hot_journal && self.in_transaction();
        let journal = journal_of(&self.path);
        let halfway = [&self.path, &journal].map(|path| beside(path, ".halfway"));
        if hot {
            self.connection.cache_flush().map_err(SimError::sql("cache flush"))?;
            for (from, to) in [&self.path, &journal].into_iter().zip(&halfway) {
                fs::copy(from, to).map_err(SimError::io(format!("copy {}", from.display())))?;
            }
        }
        drop(self.connection);
        if hot {
            for (from, to) in halfway.iter().zip([&self.path, &journal]) {
                fs::rename(from, to).map_err(SimError::io(format!("move {}", from.display())))?;
            }
        }
        Ok(())
    }

    fn run(&self, sql: &str) -> Result<(), SimError> {
        self.connection.execute_batch(sql).map_err(SimError::sql(sql))
    }
}

/// The rollback journal beside a database.
pub(super) fn journal_of(database: &Path) -> PathBuf {
    beside(database, "-journal")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: [&str; 3] = [
        "CREATE TABLE vars (name TEXT PRIMARY KEY, intval INTEGER)",
        "CREATE TABLE t (a)",
        "INSERT INTO vars VALUES ('data_version', 0)",
    ];

    fn fresh(dir: &tempfile::TempDir) -> Database {
        let db = Database::open(dir.path().join("db"), false).unwrap();
        assert_eq!(db.apply(&Step::transaction(FRESH)).unwrap().data_version, 1);
        db
    }

    #[test]
    fn the_version_wraps_but_the_stored_number_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let db = fresh(&dir);
        db.run("UPDATE vars SET intval = 4294967295").unwrap();
        let batch = db.apply(&Step::transaction(["INSERT INTO t VALUES (1)"])).unwrap();
        assert_eq!(batch.data_version, 0);
        assert!(batch.writes[1].ends_with("intval = 4294967295"));
        let batch = db.apply(&Step::transaction(["INSERT INTO t VALUES (1)"])).unwrap();
        assert_eq!(batch.data_version, 1);
        assert!(batch.writes[1].ends_with("intval = 4294967296"));
    }

    #[test]
    fn a_pragma_keeps_the_version() {
        let dir = tempfile::tempdir().unwrap();
        let db = fresh(&dir);
        let batch = db.apply(&Step::foreign_keys(false)).unwrap();
        assert_eq!(batch.data_version, 1);
        assert!(!db.foreign_keys().unwrap());
    }

    #[test]
    fn a_failed_step_leaves_no_transaction_open() {
        let dir = tempfile::tempdir().unwrap();
        let db = fresh(&dir);
        db.begin(&Step::transaction(["INSERT INTO nowhere VALUES (1)"])).unwrap_err();
        assert!(!db.in_transaction());
    }

    #[test]
    fn a_hot_journal_is_left_and_undone_by_the_next_open() {
        let dir = tempfile::tempdir().unwrap();
        let db = fresh(&dir);
        db.begin(&Step::transaction(["INSERT INTO t VALUES (7)"])).unwrap();
        let path = db.path().to_owned();
        let before = fs::metadata(&path).unwrap().len();
        db.crash(true).unwrap();
        assert!(fs::metadata(journal_of(&path)).unwrap().len() > before / 4);
        let raw = fs::read(&path).unwrap();
        assert!(raw.windows(12).any(|bytes| bytes == b"data_version"));
        let db = Database::open(&path, false).unwrap();
        let count: u32 =
            db.connection().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!((count, db.data_version().unwrap()), (0, 1));
        assert!(!journal_of(&path).exists());
    }
}
