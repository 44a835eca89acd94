//! Executing batches on a database as lightningd did.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, Statement, StatementStatus};

use super::batches::{CommittedBatch, OwnedStatement};
use super::clock::{may_ask_time, pin_time};
use crate::batch::shape::{Literal, Shape, Values};
use crate::error::{Error, Result};
use crate::log::{After, Mark};
use crate::version::DataVersion;

/// Batches are committed in groups of this many statements: the database is published only at the end.
const STATEMENTS_PER_COMMIT: u64 = 50_000;
/// The same where each commit is marked, so that little is replayed again.
const STATEMENTS_PER_MARK: u64 = 1_000;

/// What lightningd sets when it opens its database (`db/db_sqlite3.c`), and else SQLite's defaults.
const SESSION_SETTINGS: &str = "PRAGMA foreign_keys = ON; PRAGMA legacy_alter_table = OFF;";

/// A database that batches are replayed into.
pub struct Replay<'c> {
    db: &'c Connection,
    guard: &'c Guard,
    prepared: Prepared<'c>,
    in_transaction: bool,
    /// That of the newest batch, once there is one.
    session: Option<u64>,
    uncommitted: u64,
    /// Each commit leaves the position of its newest batch in the file's header.
    marks: bool,
    /// The newest batch executed.
    newest: Option<Mark>,
    /// Batches executed.
    pub batches: u64,
    /// Statements executed.
    pub statements: u64,
    /// lightningd's version after the newest transaction.
    pub data_version: Option<DataVersion>,
}

/// Statements prepared once and used for every segment: each segment has its own table of shapes, but the
/// shapes are mostly the same.
#[derive(Default)]
struct Prepared<'c> {
    /// The shape is kept so that its address stays its own. `None`: execute it as text.
    by_shape: HashMap<*const Shape, (Arc<Shape>, Option<usize>)>,
    by_text: HashMap<String, usize>,
    statements: Vec<Statement<'c>>,
    /// About what all of it takes.
    bytes: usize,
}

impl<'c> Prepared<'c> {
    /// When it takes more than this it begins anew: five hundred statements of lightningd's, of which a recorded node made
    /// 154. Where columns are added all the time there are ever more.
    const BYTES_MAX: usize = 6 << 20;

    /// The statement of a shape; `None` where it must be executed as text.
    fn get(&mut self, db: &'c Connection, shape: &Arc<Shape>) -> Option<&mut Statement<'c>> {
        if self.bytes > Self::BYTES_MAX {
            *self = Self::default();
        }
        let index = match self.by_shape.get(&Arc::as_ptr(shape)) {
            Some((_, index)) => *index,
            None => {
                let index = self.prepare(db, shape);
                self.bytes += size_of::<Shape>() + shape.byte_len();
                self.by_shape.insert(Arc::as_ptr(shape), (shape.clone(), index));
                index
            }
        };
        self.statements.get_mut(index?)
    }

    fn prepare(&mut self, db: &'c Connection, shape: &Shape) -> Option<usize> {
        let sql = shape.parameterized().filter(|sql| !may_ask_time(sql))?;
        if let Some(index) = self.by_text.get(&sql) {
            return Some(*index);
        }
        // Where a `?` cannot stand for a literal this fails, and text is as good.
        let statement = db.prepare(&sql).ok().filter(|statement| statement.column_count() == 0)?;
        let taken = statement.get_status(StatementStatus::MemUsed);
        self.bytes += usize::try_from(taken).unwrap_or(0) + sql.len();
        self.statements.push(statement);
        self.by_text.insert(sql, self.statements.len() - 1);
        Some(self.statements.len() - 1)
    }
}

/// Opens a database to replay into, not durable until [`sync`](super) publishes it. It has no journal: where a
/// statement fails, so does the restore, and what is there is of no use.
///
/// # Errors
/// Where SQLite cannot open it.
pub fn open(path: &Path) -> Result<(Connection, Guard)> {
    open_with(
        path,
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; \
         PRAGMA cache_size = -16384; PRAGMA foreign_keys = ON;",
    )
}

/// Opens a database to replay into, with this program's own settings.
///
/// # Errors
/// Where SQLite cannot open it.
pub fn open_with(path: &Path, settings: &str) -> Result<(Connection, Guard)> {
    let failed = |error: rusqlite::Error| sqlite_error(format!("'{}'", path.display()), &error);
    let mut db = Connection::open(path).map_err(failed)?;
    db.execute_batch(settings).map_err(failed)?;
    let guard = Guard::default();
    let state = guard.0.clone();
    db.authorizer(Some(move |context: AuthContext<'_>| state.authorize(&context)))
        .map_err(failed)?;
    Ok((db, guard))
}

/// Tells this program's own statements from replayed ones, which may do less.
#[derive(Default)]
pub struct Guard(Arc<GuardState>);

#[derive(Default)]
struct GuardState {
    replayed: AtomicBool,
    /// A replayed statement was refused.
    refused: AtomicBool,
}

impl Guard {
    /// From here on statements are this program's own.
    pub fn own(&self) {
        self.0.replayed.store(false, Ordering::Relaxed);
    }

    /// From here on they are replayed ones again.
    pub fn replayed(&self) {
        self.0.replayed.store(true, Ordering::Relaxed);
    }

    /// Why a replayed statement failed.
    fn explain(&self, batch: &CommittedBatch, error: &rusqlite::Error) -> Error {
        let place = format!("batch seq {}", batch.at.seq);
        if self.0.refused.load(Ordering::Relaxed) {
            return Error::Forbidden { place };
        }
        sqlite_error(place, error)
    }
}

impl GuardState {
    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        if !self.replayed.load(Ordering::Relaxed) || stays_at_home(&context.action) {
            return Authorization::Allow;
        }
        self.refused.store(true, Ordering::Relaxed);
        Authorization::Deny
    }
}

/// A log is the node's own words, but only those about its own database: whoever stole the key must not
/// reach further with them.
fn stays_at_home(action: &AuthAction<'_>) -> bool {
    match action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::CreateVtable { .. }
        | AuthAction::DropVtable { .. }
        | AuthAction::Unknown { .. } => false,
        AuthAction::Pragma { pragma_name, .. } => {
            // The checks SQLite itself makes where a column is added to a STRICT table or one with CHECK.
            let known = [
                "foreign_keys",
                "defer_foreign_keys",
                "legacy_alter_table",
                "quick_check",
                "integrity_check",
            ];
            known.iter().any(|name| pragma_name.eq_ignore_ascii_case(name))
        }
        AuthAction::Function { function_name } => {
            !function_name.eq_ignore_ascii_case("load_extension")
        }
        _ => true,
    }
}

impl<'c> Replay<'c> {
    /// Replays into a database that [`open`] gave.
    pub fn new(db: &'c Connection, guard: &'c Guard) -> Self {
        Self {
            db,
            guard,
            prepared: Prepared::default(),
            in_transaction: false,
            session: None,
            uncommitted: 0,
            marks: false,
            newest: None,
            batches: 0,
            statements: 0,
            data_version: None,
        }
    }

    /// As [`new`](Self::new), and each commit leaves the position of its newest batch in the database
    /// file's header, for [`position`].
    pub fn marked(db: &'c Connection, guard: &'c Guard) -> Self {
        Self { marks: true, ..Self::new(db, guard) }
    }

    /// Executes one batch.
    ///
    /// # Errors
    /// [`Error::Database`] with the seq, where SQLite refuses a statement; [`Error::Forbidden`] where it is one that
    /// lightningd never writes.
    pub fn apply(&mut self, batch: &CommittedBatch) -> Result<()> {
        let guard = self.guard;
        let failed = |error: rusqlite::Error| guard.explain(batch, &error);
        if self.session != Some(batch.session) {
            // A node that died between two settings starts again with its own.
            self.session = Some(batch.session);
            self.commit().and_then(|()| self.own(SESSION_SETTINGS)).map_err(failed)?;
        }
        let most = if self.marks { STATEMENTS_PER_MARK } else { STATEMENTS_PER_COMMIT };
        if batch.transaction != self.in_transaction || self.uncommitted >= most {
            self.commit().map_err(failed)?;
            if batch.transaction {
                self.own("BEGIN").map_err(failed)?;
                self.in_transaction = true;
            }
        }
        self.guard.replayed();
        for statement in &batch.statements {
            self.execute(statement, batch).map_err(failed)?;
        }
        let count = batch.statements.len() as u64;
        self.batches += 1;
        self.statements += count;
        self.uncommitted += count;
        if batch.transaction {
            self.data_version = Some(batch.data_version);
        }
        self.newest = Some(batch.at);
        Ok(())
    }

    /// Executes a batch in a transaction that the caller has begun, and will take back.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn rehearse(&mut self, batch: &CommittedBatch) -> Result<()> {
        self.guard.replayed();
        for statement in &batch.statements {
            let done = self.execute(statement, batch);
            done.map_err(|error| self.guard.explain(batch, &error))?;
        }
        Ok(())
    }

    /// Commits what was executed.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn finish(&mut self) -> Result<()> {
        self.prepared = Prepared::default();
        self.commit().map_err(|error| sqlite_error("end of the log".into(), &error))
    }

    /// Commits what was executed, and goes on.
    pub(crate) fn commit(&mut self) -> rusqlite::Result<()> {
        self.uncommitted = 0;
        if !std::mem::take(&mut self.in_transaction) {
            return Ok(());
        }
        self.guard.own();
        if let Some(newest) = self.newest.filter(|_| self.marks) {
            put_position(self.db, newest)?;
        }
        self.own("COMMIT")
    }

    fn own(&self, sql: &str) -> rusqlite::Result<()> {
        self.guard.own();
        let done = self.db.execute_batch(sql);
        self.guard.replayed();
        done
    }

    fn execute(
        &mut self,
        statement: &OwnedStatement,
        batch: &CommittedBatch,
    ) -> rusqlite::Result<()> {
        if let OwnedStatement::Shaped(shape, values) = statement
            && let Some(prepared) = self.prepared.get(self.db, shape)
        {
            return bind_and_step(prepared, shape.markers(), values);
        }
        let text = statement.text().ok_or(rusqlite::Error::InvalidQuery)?;
        let text = if may_ask_time(&text) { pin_time(&text, batch.time) } else { text };
        self.db.execute_batch(&text)
    }
}

/// Leaves a position in two header fields of a database file that SQLite keeps for applications: the low 31
/// bits of its seq, and the first four bytes of its chain hash. The 32nd bit is set while settings are in
/// force that a session does not begin with.
///
/// # Errors
/// Where SQLite fails.
pub(crate) fn put_position(db: &Connection, at: Mark) -> rusqlite::Result<()> {
    let unusual = u32::from(!has_session_settings(db)?) << 31;
    let seq = (at.seq as u32 & POSITION_SEQ | unusual) as i32;
    let chain = i32::from_be_bytes([at.chain.0[0], at.chain.0[1], at.chain.0[2], at.chain.0[3]]);
    db.pragma_update(None, "user_version", seq)?;
    db.pragma_update(None, "application_id", chain)
}

/// What [`put_position`] left: a position behind `base`, with the bytes of its chain hash that are known. `None`
/// where unusual settings are in force there.
///
/// # Errors
/// Where SQLite fails.
pub(crate) fn position(db: &Connection, base: u64) -> rusqlite::Result<Option<After>> {
    let value = |name| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (seq, chain) = (value("user_version")? as u32, value("application_id")?);
    let ahead = seq.wrapping_sub(base as u32) & POSITION_SEQ;
    let usual = seq & !POSITION_SEQ == 0;
    Ok(usual.then(|| After::new(base + u64::from(ahead), &chain.to_be_bytes())))
}

/// The bits of a position's seq that a header field keeps.
const POSITION_SEQ: u32 = u32::MAX >> 1;

/// True where the settings are those of a session's beginning.
pub(crate) fn has_session_settings(db: &Connection) -> rusqlite::Result<bool> {
    let value = |name| db.pragma_query_value(None, name, |row| row.get::<_, bool>(0));
    Ok(value("foreign_keys")? && !value("legacy_alter_table")?)
}

fn bind_and_step(
    statement: &mut Statement<'_>,
    markers: &[u8],
    values: &Values,
) -> rusqlite::Result<()> {
    for (index, &marker) in markers.iter().enumerate() {
        match Literal::decode(marker, values.get(index)).ok_or(rusqlite::Error::InvalidQuery)? {
            Literal::Integer(integer) => statement.raw_bind_parameter(index + 1, integer)?,
            Literal::Text(text) => statement.raw_bind_parameter(index + 1, text)?,
            Literal::Blob(blob) => statement.raw_bind_parameter(index + 1, blob)?,
        }
    }
    statement.raw_execute().map(drop)
}

/// SQLite's words without the statement, which must not show up in messages.
pub fn sqlite_error(place: String, error: &rusqlite::Error) -> Error {
    let what = match error {
        rusqlite::Error::SqliteFailure(code, message) => {
            message.clone().unwrap_or_else(|| code.to_string())
        }
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    };
    Error::Database { place, what }
}

/// Has SQLite check every page of the database at `place`.
///
/// # Errors
/// [`Error::Database`] with what SQLite found.
pub fn check_integrity(db: &Connection, place: &str) -> Result<()> {
    let verdict: String = db
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| sqlite_error(place.into(), &error))?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(Error::Database { place: place.into(), what: verdict })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::shape::split;
    use crate::record::TimeMs;
    use crate::seal::Chain;

    fn batch(session: u64, time: TimeMs, statements: Vec<OwnedStatement>) -> CommittedBatch {
        let at = Mark { seq: 9, chain: Chain::default() };
        let (data_version, transaction) = (DataVersion(1), true);
        CommittedBatch { at, epoch: 1, data_version, transaction, time, session, statements }
    }

    fn replay(statements: &[&str]) -> Result<()> {
        replay_in_session(1, statements)
    }

    fn replay_in_session(session: u64, statements: &[&str]) -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let (db, guard) = open(&folder.path().join("restored"))?;
        let texts = statements.iter().map(|sql| OwnedStatement::Text((*sql).into()));
        let mut replay = Replay::new(&db, &guard);
        replay.apply(&batch(session, 0, texts.collect()))?;
        replay.finish()
    }

    #[test]
    fn a_column_may_be_added_to_strict_and_checked_tables() {
        replay(&["CREATE TABLE t (a INTEGER) STRICT", "ALTER TABLE t ADD COLUMN b INTEGER"])
            .unwrap();
        replay(&["CREATE TABLE u (a)", "ALTER TABLE u ADD COLUMN b CHECK (b > 0)"]).unwrap();
    }

    #[test]
    fn statements_reach_no_further_than_their_database() {
        for sql in [
            "ATTACH '/tmp/other' AS other",
            "DETACH main",
            "SELECT load_extension('evil')",
            "PRAGMA writable_schema = ON",
            "PRAGMA journal_mode = WAL",
            "PRAGMA temp_store_directory = '/tmp'",
            "PRAGMA main.foreign_keys = ON; ATTACH '/tmp/other' AS other",
            "SELECT * FROM pragma_database_list",
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT load_extension('evil'); END; \
             INSERT INTO t VALUES (1)",
            "CREATE VIEW w AS SELECT 1; SELECT load_extension('evil') FROM w",
            "COMMIT",
            "SAVEPOINT s",
            "CREATE VIRTUAL TABLE v USING fts5(a)",
        ] {
            let error = replay(&["CREATE TABLE t (a)", sql]).expect_err(sql);
            assert!(
                matches!(&error, Error::Forbidden { place } if place == "batch seq 9"),
                "{error}"
            );
            assert!(error.to_string().starts_with("batch seq 9: "), "{error}");
        }
    }

    #[test]
    fn the_first_session_is_guarded_whatever_its_number() {
        // A log whose first writer has an empty name begins with session 0.
        for session in [0, 1] {
            let error = replay_in_session(session, &["ATTACH ':memory:' AS other"]);
            assert!(matches!(error, Err(Error::Forbidden { .. })), "session {session}: {error:?}");
        }
    }

    #[test]
    fn a_session_begins_with_its_own_settings() {
        let folder = tempfile::tempdir().expect("a folder");
        let (db, guard) = open(&folder.path().join("restored")).unwrap();
        let mut replay = Replay::new(&db, &guard);
        let mut settings = CommittedBatch {
            at: Mark { seq: 1, chain: Chain::default() },
            epoch: 1,
            data_version: DataVersion(1),
            transaction: false,
            time: 0,
            session: 1,
            statements: vec![OwnedStatement::Text("PRAGMA foreign_keys = OFF".into())],
        };
        let on = || db.query_row("PRAGMA foreign_keys", [], |row| row.get::<_, bool>(0)).unwrap();
        replay.apply(&settings).unwrap();
        assert!(!on());
        (settings.session, settings.transaction) = (2, true);
        settings.statements = vec![OwnedStatement::Text("CREATE TABLE t (a)".into())];
        replay.apply(&settings).unwrap();
        assert!(on());
    }

    #[test]
    fn a_statement_that_asks_for_the_time_gets_that_of_its_batch() {
        let folder = tempfile::tempdir().expect("a folder");
        let (db, guard) = open(&folder.path().join("restored")).unwrap();
        let shaped = |sql: &str| {
            let (mut shape, mut values) = (Vec::new(), Values::default());
            assert!(split(sql, &mut shape, &mut values));
            OwnedStatement::Shaped(Arc::new(Shape::new(&shape).unwrap()), values)
        };
        let create = OwnedStatement::Text("CREATE TABLE t (a)".into());
        let statements = vec![
            create,
            shaped("INSERT INTO t VALUES (strftime('%s', 'now'))"),
            // It gives rows, as nothing else does that changes some.
            shaped("INSERT INTO t VALUES (7) RETURNING a"),
        ];
        let mut replay = Replay::new(&db, &guard);
        replay.apply(&batch(1, 1_000_000, statements)).unwrap();
        replay.finish().unwrap();
        assert_eq!((replay.batches, replay.statements), (1, 3));
        let all = "SELECT group_concat(a) FROM t";
        let all: String = db.query_row(all, [], |row| row.get(0)).unwrap();
        assert_eq!(all, "1000,7");
    }
}
