//! `follow`: a copy of the node's database that is kept up to date, and cannot be started.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockstep_node::LightningDir;
use lockstep_proto::config::{STANDBY_FOLDER, read_key_file, write_key_file};
use lockstep_proto::error::Error;
use lockstep_proto::log::Position;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::shadow::{self, Shadow};
use lockstep_proto::store::Store;
use serde::Serialize;

use super::now;
use super::restoring::{Dest, private_folder};
use crate::args::FollowArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, utc};
use crate::place::{destination, nothing_named, open_store};
use crate::sources::Sources;
use crate::unlock;

/// A standby: the directory that will be a node's, and the folder in it that holds the copy.
pub struct Standby {
    /// Where its database will be.
    pub dest: Dest,
    /// The directory.
    pub node: LightningDir,
    /// The copy.
    pub folder: PathBuf,
}

impl Standby {
    /// In a directory where no database is.
    pub fn at(dir: &Path, what: &str) -> Result<Self> {
        let dir = std::path::absolute(dir).map_err(Failure::file("find", dir))?;
        let node = LightningDir::new(&dir);
        let dest = Dest { database: node.wallet().to_owned(), node: Some(node.clone()) };
        dest.refuse_existing(what)?;
        Ok(Self { dest, folder: dir.join(STANDBY_FOLDER), node })
    }

    /// Keeps every other `follow` and `promote` out of the directory, which must be there.
    pub fn lock(&self) -> Result<File> {
        let dir = self.node.path();
        let file = File::open(dir).map_err(Failure::file("open", dir))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Failure::new(
                format!("another 'follow' or 'promote' works in '{}'", dir.display()),
                "end it first; nobody was shut out, and nothing was changed.",
            )),
            Err(TryLockError::Error(error)) => Err(Failure::file("lock", dir)(error)),
        }
    }

    /// Refuses where the directory is a node's by now: it was promoted, or restored into.
    fn refuse_node(&self) -> Result<()> {
        self.dest.refuse_existing("follow")?;
        let lock = self.node.lock_file();
        if lock.exists() {
            return Err(Failure::new(
                format!(
                    "failed to follow: '{}' exists: a node's backup is written from here",
                    lock.display()
                ),
                "nothing was changed; a standby needs a directory of its own, on another machine than the node's.",
            ));
        }
        Ok(())
    }
}

/// The newest record may not be acknowledged yet, and the transaction before it not be committed: they are replayed
/// once more has come, or by `promote`.
const UNDECIDED: u32 = 2;

/// How far it is.
#[derive(Serialize)]
pub struct Report {
    /// Of this line.
    time: u64,
    generation: u32,
    /// The newest batch in the copy.
    seq: u64,
    data_version: Option<u32>,
    /// The newest record of the log, …
    head_seq: u64,
    /// … lightningd's version there, …
    head_data_version: Option<u32>,
    /// … and when it was written.
    head_time: u64,
    /// Transactions that the copy lacks: up to [`UNDECIDED`] while the node runs.
    behind: u32,
    /// Replayed since the last line.
    batches: u64,
    /// The place that it was read from.
    from: String,
}

/// Follows.
pub fn run(args: &FollowArgs, output: &Output) -> Result<()> {
    let standby = Standby::at(&args.dir, "follow")?;
    standby.refuse_node()?;
    let directory = standby.node.path();
    let urls: Vec<String> = [&args.url].into_iter().chain(&args.also).cloned().collect();
    let keys = match standby.node.key_file().exists() && !args.unlock.is_given() {
        true => read_key_file(&standby.node.key_file())?,
        false => {
            let store = first_that_answers(&urls, directory)?;
            unlock::open(&*store, &args.unlock, Some(&standby.node))?.0
        }
    };
    private_folder(directory)?;
    let _lock = standby.lock()?;
    if !standby.node.key_file().exists() {
        write_key_file(&standby.node.key_file(), &keys)?;
    }
    if args.once {
        let (sources, away) = Sources::reachable(&urls, &keys, Some(directory))?;
        if let Some(away) = away {
            output.note(&not_reached(&away));
        }
        let report = catch_up(&sources, &keys, &standby.folder, false, output)?;
        output.result(&report, || text(&report));
        return Ok(());
    }
    follow(&urls, &keys, &standby, Duration::from_secs(args.interval), output)
}

/// To find out what opens the backup.
fn first_that_answers(urls: &[String], directory: &Path) -> Result<Arc<dyn Store>> {
    let mut failed = None;
    for url in urls {
        match open_store(&destination(url, Some(directory))?) {
            Ok(store) => return Ok(store),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    Err(failed.unwrap_or_else(nothing_named))
}

fn not_reached(away: &str) -> String {
    format!("warning: what is not reached may have a newer state: {away}")
}

/// Until somebody ends it, or the directory is a node's. What fails is said once, and tried again. The places are opened
/// anew each time: what is mounted there may be another file system by then.
fn follow(
    urls: &[String],
    keys: &KeyRing,
    standby: &Standby,
    interval: Duration,
    output: &Output,
) -> Result<()> {
    let mut reached: Option<Position> = None;
    let mut said = (String::new(), None);
    loop {
        let mut round = || -> Result<Option<String>> {
            let (sources, away) = Sources::reachable(urls, keys, Some(standby.node.path()))?;
            if reached != Some(sources.end().position) {
                let report = catch_up(&sources, keys, &standby.folder, false, output)?;
                reached = Some(sources.end().position);
                output.result(&report, || text(&report));
            }
            Ok(away)
        };
        match round() {
            Ok(away) => {
                said.0.clear();
                if let Some(away) = away.as_ref().filter(|away| said.1.as_ref() != Some(*away)) {
                    output.note(&not_reached(away));
                }
                said.1 = away;
            }
            Err(failure) => {
                reached = None;
                if said.0 != failure.message() {
                    output.failure(&failure);
                    said.0 = failure.message().to_owned();
                }
            }
        }
        std::thread::sleep(interval);
        standby.refuse_node()?;
    }
}

/// Replays what was acknowledged since, from wherever the copy is; one that is of no use any more is made anew. How
/// far that is behind is told against where the log ended just before. A place that is older than the copy is refused,
/// unless `accept_stale`.
pub fn catch_up(
    sources: &Sources,
    keys: &KeyRing,
    folder: &Path,
    accept_stale: bool,
    output: &Output,
) -> Result<Report> {
    let (store, end) = (sources.store(), sources.end());
    let at = (end.position.generation, end.position.seq);
    if let Some(own) =
        shadow::reached(folder, keys.store())?.filter(|own| !accept_stale && at < *own)
    {
        return Err(Failure::version(
            format!(
                "'{}' shows an older state than the copy in '{}': it ends at seq {} of generation {}, the copy at seq {} of \
                 generation {}",
                sources.url(),
                folder.display(),
                at.1,
                at.0,
                own.1,
                own.0
            ),
            "another place of the log is newer: bring it back, or name it with '--also'. The copy is left as it is.",
        ));
    }
    let bar = output.counter("batches replayed:");
    let once = || -> std::result::Result<_, Error> {
        let mut shadow = Shadow::follow(&*store, keys, folder)?;
        let done = shadow.catch_up(&mut |batches| bar.set_position(batches))?;
        Ok((shadow.generation(), shadow.seq(), shadow.data_version()?, done.batches))
    };
    let done = match once() {
        Err(error) if shadow::may_be_wrong(&error) => {
            output.note(&format!("warning: {error}; making the copy anew"));
            shadow::remove(folder).and_then(|()| once())
        }
        done => done,
    };
    bar.finish_and_clear();
    let (generation, seq, data_version, batches) = done?;
    let head = end.head.data_version;
    let behind = match (head, data_version) {
        (Some(head), Some(own)) => u32::try_from(head.ahead_of(own)).unwrap_or(0),
        (Some(head), None) => head.0,
        (None, _) => 0,
    };
    Ok(Report {
        time: now(),
        generation,
        seq,
        data_version: data_version.map(|version| version.0),
        head_seq: end.position.seq,
        head_data_version: head.map(|version| version.0),
        head_time: end.time,
        behind,
        batches,
        from: sources.url().to_string(),
    })
}

fn text(report: &Report) -> String {
    let version = report.data_version.map_or("none".into(), |version| version.to_string());
    let behind = match report.behind {
        0 => "everything is here".to_owned(),
        1..=UNDECIDED => {
            "but for the newest, which are not decided yet, everything is here".to_owned()
        }
        behind => format!("{behind} transactions behind"),
    };
    format!(
        "{}: data_version {version}, generation {}, seq {}: {behind}; the newest record is of {}",
        utc(report.time),
        report.generation,
        report.seq,
        utc(report.head_time)
    )
}
