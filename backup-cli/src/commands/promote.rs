//! `promote`: a node of what `follow` has kept.

use std::path::PathBuf;
use std::time::Instant;

use lockstep_proto::companion::PutBack;
use lockstep_proto::error::Error;
use lockstep_proto::restore::Restored;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::shadow::{self, Shadow};
use lockstep_proto::store::Store;
use serde::Serialize;

use super::follow::{Standby, catch_up};
use super::last_writer;
use super::restoring::{Succession, files_text, next_step, note, publish};
use crate::args::PromoteArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, counted, utc};
use crate::place::{destination, open_store};
use crate::sources::Sources;
use crate::unlock;

#[derive(Serialize)]
struct Report {
    database: PathBuf,
    opened_by: String,
    generation: u32,
    seq: u64,
    data_version: Option<u32>,
    time: u64,
    /// Replayed by this command; what was followed before is not counted.
    batches: u64,
    foreign_key_violations: u64,
    epoch: u32,
    /// Companion files that were put back, …
    files: Vec<String>,
    /// … and those that are for a person to ask for.
    files_left: Vec<String>,
    seconds: f64,
}

/// Promotes. The claim comes first, the database's name last.
pub fn run(args: &PromoteArgs, output: &Output) -> Result<()> {
    let began = Instant::now();
    let standby = Standby::at(&args.dir, "promote")?;
    if !standby.folder.is_dir() {
        return Err(Failure::new(
            format!("nothing follows in '{}'", standby.folder.display()),
            "'backup-cli restore URL DIR' needs no standby; nothing was changed.",
        ));
    }
    let _lock = standby.lock()?;
    let directory = standby.node.path();
    let url = destination(&args.url, Some(directory))?;
    let store = open_store(&url)?;
    let (keys, opened) = unlock::open(&*store, &args.unlock, Some(&standby.node))?;
    unlock::refuse_other_secret(&*store, &standby.node, "promote")?;
    let named = (url, store);
    let at = Some(directory);
    let sources =
        Sources::look(named, &args.succession.also, &keys, args.accept_stale, at, output)?;
    let alive = last_writer::refuse_alive(sources.last_writer(&keys)?, output);
    if !args.succession.take_over {
        alive?;
    }
    // As far as it goes before anybody is shut out.
    catch_up(&sources, &keys, &standby.folder, args.accept_stale, output)?;
    let succession = Succession::claim(sources, &keys, "promote")?;
    let epoch = succession.epoch();
    let restored = finish(&**succession.store(), &keys, &standby, output)
        .map_err(|error| Failure::from(error).doing("promote"))?;
    let files = succession.take_over(&standby.node, &opened, &restored, output)?;
    publish(&standby.dest.temporary(), &standby.dest.database)?;
    note(&standby.node, &keys, &restored)?;
    if let Err(error) = shadow::remove(&standby.folder) {
        output.note(&format!("warning: {error}; it is of no use any more: remove it"));
    }
    let report = Report {
        database: standby.dest.database.clone(),
        opened_by: opened.by,
        generation: restored.position.generation,
        seq: restored.position.seq,
        data_version: restored.data_version.map(|version| version.0),
        time: restored.time,
        batches: restored.batches,
        foreign_key_violations: restored.foreign_key_violations,
        epoch,
        files: files.put.clone(),
        files_left: files.left.clone(),
        seconds: began.elapsed().as_secs_f64(),
    };
    output.result(&report, || text(&report, &files, &standby));
    Ok(())
}

/// The rest of the log, and the proof. A copy that turns out to be of no use is made anew.
fn finish(
    store: &dyn Store,
    keys: &KeyRing,
    standby: &Standby,
    output: &Output,
) -> std::result::Result<Restored, Error> {
    let path = standby.dest.temporary();
    // One that an interrupted promotion left: it never had the database's name.
    let _ = std::fs::remove_file(&path);
    let bar = output.counter("batches replayed:");
    let once = || {
        let shadow = Shadow::follow(store, keys, &standby.folder)?;
        shadow.into_database(&path, &mut |batches| bar.set_position(batches))
    };
    let done = match once() {
        Err(error) if shadow::may_be_wrong(&error) => {
            output.note(&format!("warning: {error}; making the copy anew"));
            shadow::remove(&standby.folder).and_then(|()| once())
        }
        done => done,
    };
    bar.finish_and_clear();
    done
}

fn text(report: &Report, files: &PutBack, standby: &Standby) -> String {
    let version = report.data_version.map_or("none".into(), |version| version.to_string());
    let mut text = format!(
        "promoted {}\n  data_version {version}, generation {}, seq {}, as of {}\n  left to replay: {}; {:.1} s in all; SQLite's checks pass\n",
        report.database.display(),
        report.generation,
        report.seq,
        utc(report.time),
        counted(report.batches, "batch"),
        report.seconds,
    );
    text += &files_text(files);
    if report.foreign_key_violations > 0 {
        text += &format!(
            "  warning: {} rows break a foreign key, as in the node's own database\n",
            report.foreign_key_violations
        );
    }
    text + &next_step(&standby.node)
}
