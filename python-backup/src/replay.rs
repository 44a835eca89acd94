//! From the records to a database.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use lockstep_proto::batch::is_settings;
use lockstep_proto::capture::version_of;
use lockstep_proto::error::Error;
use lockstep_proto::log::Mark;
use lockstep_proto::record::TimeMs;
use lockstep_proto::restore::batches::{CommittedBatch, OwnedStatement};
use lockstep_proto::restore::replay::{self, Replay, sqlite_error};
use lockstep_proto::seal::Chain;
use lockstep_proto::version::DataVersion;
use rusqlite::Connection;
use serde::Serialize;

use crate::format::{HEAD_LEN, Head, Kind, statements};
use crate::mend::mend;
use crate::scan::{Scan, damaged};

/// Branches that are tried. Each takes as long as a restore; the first is the right one but for defects
/// that nobody has seen yet.
const BRANCHES_MAX: u32 = 32;

/// How far to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Up to the version before the newest.
    BeforeNewest,
}

/// What became of a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// lightningd's version of the database.
    pub data_version: Option<DataVersion>,
    /// Changes replayed.
    pub batches: u64,
    /// Statements replayed.
    pub statements: u64,
    /// Statements that lacked a space.
    pub mended: u64,
    /// Changes that are in the file, but were never committed by the node.
    pub left_out: Vec<LeftOut>,
}

/// A change that was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Where its record begins.
    pub offset: u64,
    /// Its version.
    pub data_version: DataVersion,
    /// Where the record begins that was replayed instead.
    pub replaced_by: u64,
}

/// Where a branch came to nothing.
struct Broken {
    at: u64,
    error: Error,
}

/// Replays into a new database at `path`, in place of what is there. Where a transaction is there more
/// than once, the last is taken, for lightningd uses a version again only where it was not committed. With
/// `any_branch`, should that not lead to the end, each of the others is tried: only for callers that can tell
/// whether it is the right one. `progress` is told the offset.
///
/// # Errors
/// [`Error::Damaged`] with offset and version where no branch leads to the end: what the first ran into.
pub fn run(
    scan: &Scan,
    extent: Extent,
    any_branch: bool,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Replayed, Error> {
    let stop = match extent {
        Extent::Whole => scan.end,
        Extent::BeforeNewest => scan.newest_at.unwrap_or(scan.end),
    };
    let mut branch = Branch::last(scan, stop);
    let mut first = None;
    for _ in 0..BRANCHES_MAX {
        match branch.replay(path, progress) {
            Ok(replayed) => return Ok(replayed),
            Err(broken) => {
                let at = broken.at;
                first.get_or_insert(broken.error);
                if !any_branch || !branch.next(at) {
                    break;
                }
            }
        }
    }
    let nothing = || damaged(&scan.path, scan.start, None, "nothing was replayed");
    Err(first.unwrap_or_else(nothing))
}

/// A choice of one record for each version that there are several of.
struct Branch<'s> {
    scan: &'s Scan,
    stop: u64,
    /// For each group of rivals, which is taken.
    chosen: Vec<usize>,
}

impl<'s> Branch<'s> {
    fn last(scan: &'s Scan, stop: u64) -> Self {
        Self { scan, stop, chosen: scan.rivals.iter().map(|r| r.offsets.len() - 1).collect() }
    }

    /// Goes to the next branch, changing the choice as late before `at` as possible; false where there is
    /// none.
    fn next(&mut self, at: u64) -> bool {
        let reached = |index: &usize| self.scan.rivals[*index].offsets[0] <= at;
        let changed =
            (0..self.chosen.len()).rev().filter(reached).find(|&index| self.chosen[index] > 0);
        let Some(changed) = changed else { return false };
        self.chosen[changed] -= 1;
        for index in changed + 1..self.chosen.len() {
            self.chosen[index] = self.scan.rivals[index].offsets.len() - 1;
        }
        true
    }

    fn left_out(&self) -> Vec<LeftOut> {
        let groups = self.scan.rivals.iter().zip(&self.chosen);
        groups
            .flat_map(|(rivals, &chosen)| {
                let replaced_by = rivals.offsets[chosen];
                let others = rivals.offsets.iter().filter(move |&&offset| offset != replaced_by);
                others.map(move |&offset| LeftOut {
                    offset,
                    data_version: rivals.data_version,
                    replaced_by,
                })
            })
            .filter(|left_out| left_out.offset < self.stop)
            .collect()
    }

    fn replay(&self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Replayed, Broken> {
        let start = self.scan.start;
        let mut records = Records::open(self.scan).map_err(|error| Broken { at: start, error })?;
        let base = records.write_base(path).map_err(|error| Broken { at: start, error })?;
        let (db, guard) = replay::open(path).map_err(|error| Broken { at: start, error })?;
        let left_out = self.left_out();
        let skipped: BTreeSet<u64> = left_out.iter().map(|left_out| left_out.offset).collect();
        let mut replay = Replay::new(&db, &guard);
        replay.data_version = base;
        let (mut bracket, mut mended) = (Bracket::default(), 0);
        loop {
            let at = records.seek().map_err(|error| Broken { at: start, error })?;
            if at >= self.stop {
                break;
            }
            let mut batch = records.next().map_err(|error| Broken { at, error })?;
            batch.session = bracket.session_of(&batch);
            for statement in &mut batch.statements {
                if let OwnedStatement::Text(sql) = statement
                    && let std::borrow::Cow::Owned(right) = mend(sql)
                {
                    *sql = right;
                    mended += 1;
                }
            }
            if !skipped.contains(&at) {
                let version = batch.data_version;
                replay.apply(&batch).map_err(|error| self.broken(at, Some(version), error))?;
            }
            progress(records.at);
        }
        let (end, version) = (self.stop, replay.data_version);
        replay.finish().map_err(|error| self.broken(end, version, error))?;
        let (batches, statements) = (replay.batches, replay.statements);
        drop(replay);
        guard.own();
        check(&db, version).map_err(|error| self.broken(end, version, error))?;
        db.close().map_err(|(_, error)| self.broken(end, version, failed(&error)))?;
        Ok(Replayed { data_version: version, batches, statements, mended, left_out })
    }

    /// SQLite's words with the place in the file.
    fn broken(&self, at: u64, version: Option<DataVersion>, error: Error) -> Broken {
        let error = match error {
            Error::Database { what, .. } if at < self.stop => {
                damaged(&self.scan.path, at, version, what)
            }
            // That error's words, with the place in the file.
            forbidden @ Error::Forbidden { .. } => {
                let words = forbidden.to_string();
                let what = words.split_once(": ").map_or(&*words, |(_, what)| what);
                damaged(&self.scan.path, at, version, what)
            }
            Error::Database { what, .. } => Error::Damaged {
                place: format!("'{}', database after the last record", self.scan.path.display()),
                what,
            },
            other => other,
        };
        Broken { at, error }
    }
}

/// Where foreign keys are off. lightningd turns them off for the one transaction that rebuilds a table, and
/// on again. The file does not say where a session begins; but where they are not turned on again, the node
/// died there, and the next session began with its own settings.
#[derive(Default)]
struct Bracket {
    session: u64,
    /// Since foreign keys were turned off: the version of the transaction that came.
    off: Option<Option<DataVersion>>,
}

impl Bracket {
    /// The session that a batch belongs to.
    fn session_of(&mut self, batch: &CommittedBatch) -> u64 {
        if !batch.transaction {
            let settings = batch.statements.iter().filter_map(OwnedStatement::text);
            for sql in settings.map(|sql| sql.to_ascii_uppercase()) {
                if sql.contains("FOREIGN_KEYS") {
                    self.off = (sql.contains("OFF") || sql.contains('0')).then_some(None);
                }
            }
        } else {
            match &mut self.off {
                Some(came @ None) => *came = Some(batch.data_version),
                Some(Some(_)) => {
                    self.session += 1;
                    self.off = None;
                }
                None => {}
            }
        }
        self.session + 1
    }
}

/// SQLite's own check, and that the database says itself which version it is.
fn check(db: &Connection, expected: Option<DataVersion>) -> Result<(), Error> {
    replay::check_integrity(db, "")?;
    let found = version_of(db).map_err(|error| failed(&error))?;
    if found == expected {
        return Ok(());
    }
    let word = |version: Option<DataVersion>| version.map_or("none".into(), |v| v.to_string());
    let what = format!(
        "the database says data_version {}, the newest record {}",
        word(found),
        word(expected)
    );
    Err(Error::Database { place: String::new(), what })
}

/// An error of SQLite whose place comes later.
fn failed(error: &rusqlite::Error) -> Error {
    sqlite_error(String::new(), error)
}

/// The records of a file, one by one.
struct Records<'s> {
    scan: &'s Scan,
    reader: BufReader<File>,
    /// Where the next record begins.
    at: u64,
    time: TimeMs,
}

impl<'s> Records<'s> {
    fn open(scan: &'s Scan) -> Result<Self, Error> {
        let mut file = File::open(&scan.path).map_err(Error::file("open", &scan.path))?;
        // Records have no times. The newest is the best that there is, for the one migration that asks.
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        let time = modified
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_millis() as TimeMs);
        file.seek(SeekFrom::Start(scan.start)).map_err(Error::file("read", &scan.path))?;
        let reader = BufReader::with_capacity(256 * 1024, file);
        Ok(Self { scan, reader, at: scan.start, time })
    }

    /// Writes the snapshot that the file begins with to a new file, else an empty one.
    fn write_base(&mut self, path: &Path) -> Result<Option<DataVersion>, Error> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("remove", path)(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::file("create", path))?;
        if self.at == self.scan.end {
            return Ok(None);
        }
        let head = self.head()?;
        if head.kind != Ok(Kind::Snapshot) {
            let back = self.reader.seek_relative(-(HEAD_LEN as i64));
            back.map_err(Error::file("read", &self.scan.path))?;
            return Ok(None);
        }
        let copied = std::io::copy(&mut (&mut self.reader).take(head.len.into()), &mut file);
        if copied.map_err(Error::file("write", path))? != u64::from(head.len) {
            return Err(self.cut_short());
        }
        self.at += HEAD_LEN + u64::from(head.len);
        Ok(Some(DataVersion(head.data_version)))
    }

    fn head(&mut self) -> Result<Head, Error> {
        let mut bytes = [0; HEAD_LEN as usize];
        self.reader.read_exact(&mut bytes).map_err(Error::file("read", &self.scan.path))?;
        Ok(Head::decode(&bytes))
    }

    /// Goes to where the next record begins, or to the end.
    fn seek(&mut self) -> Result<u64, Error> {
        for fragment in &self.scan.fragments {
            if fragment.offset == self.at {
                self.at += fragment.bytes;
                let seek = self.reader.seek(SeekFrom::Start(self.at));
                seek.map_err(Error::file("read", &self.scan.path))?;
            }
        }
        Ok(self.at)
    }

    fn next(&mut self) -> Result<CommittedBatch, Error> {
        let at = self.at;
        let head = self.head()?;
        let data_version = DataVersion(head.data_version);
        let mut payload = vec![0; head.len as usize];
        self.reader.read_exact(&mut payload).map_err(Error::file("read", &self.scan.path))?;
        self.at += HEAD_LEN + u64::from(head.len);
        let Some(statements) = statements(&payload) else {
            return Err(damaged(
                &self.scan.path,
                at,
                Some(data_version),
                "statements are not UTF-8",
            ));
        };
        Ok(CommittedBatch {
            // There is no chain in that file: its place is what messages name.
            at: Mark { seq: at, chain: Chain::default() },
            epoch: 0,
            data_version,
            transaction: !is_settings(&statements),
            time: self.time,
            session: 0,
            statements: statements.iter().map(|sql| OwnedStatement::Text((*sql).into())).collect(),
        })
    }

    fn cut_short(&self) -> Error {
        damaged(&self.scan.path, self.at, None, "ends while it is read")
    }
}
