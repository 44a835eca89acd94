//! `restore`: the database, back from its log.

use std::path::{Path, PathBuf};
use std::time::Instant;

use lockstep_node::LightningDir;
use lockstep_proto::capture::Capture;
use lockstep_proto::companion::PutBack;
use lockstep_proto::log::LogEnd;
use lockstep_proto::record::StartReason;
use lockstep_proto::restore::{Plan, Restored, Target};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::Store;
use lockstep_proto::version::DataVersion;
use lockstep_proto::witness::{self, WITNESS_FILE, Witness};
use lockstep_proto::writer::Writer;
use serde::Serialize;

use super::restoring::{
    Dest, Succession, files_text, next_step, note, private_folder, publish, write_database,
};
use super::{last_writer, now, recovery};
use crate::args::RestoreArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, counted, utc};
use crate::place::{destination, open_store};
use crate::sources::Sources;
use crate::unlock::{self, Means};

#[derive(Serialize)]
struct PlanReport {
    generation: u32,
    /// What is read first, in this order.
    snapshots: Vec<String>,
    snapshot_bytes: u64,
    segments: usize,
    log_bytes: u64,
    /// Where the newest snapshot was made.
    snapshot_seq: Option<u64>,
    /// The newest record, where that is where it goes.
    seq: Option<u64>,
    data_version: Option<u32>,
}

#[derive(Serialize)]
struct Report {
    database: PathBuf,
    opened_by: String,
    generation: u32,
    seq: u64,
    data_version: Option<u32>,
    time: u64,
    batches: u64,
    statements: u64,
    voided: u64,
    foreign_key_violations: u64,
    epoch: Option<u32>,
    /// Older than the newest state.
    stale: bool,
    /// Companion files that were put back, …
    files: Vec<String>,
    /// … and those that are for a person to ask for.
    files_left: Vec<String>,
    seconds: f64,
}

/// Restores, or says what can be done.
pub fn run(args: &RestoreArgs, output: &Output) -> Result<()> {
    let dest = Dest::find(&args.dest)?;
    if !args.plan {
        dest.refuse_existing("restore")?;
    }
    let chosen = Means::chosen(&args.unlock)?;
    if args.plan {
        let report = recovery::look(args, &dest, chosen.as_ref(), output)?;
        output.result(&report, || report.text());
        return Ok(());
    }
    let restored = restore(args, &dest, chosen.as_ref(), output);
    restored.map_err(|failure| {
        // There is no log, or none that leads to the newest state: that is not the end.
        if !(failure.is_damage() || failure.is_nothing()) {
            return failure;
        }
        match recovery::look(args, &dest, chosen.as_ref(), output) {
            // Else it would say what has just failed.
            Ok(report) if !report.has_whole_log() => failure.followed_by(report.text()),
            _ => failure,
        }
    })
}

/// The database gets its name as the last step.
fn restore(args: &RestoreArgs, dest: &Dest, chosen: Option<&Means>, output: &Output) -> Result<()> {
    let began = Instant::now();
    let at = dest.node.as_ref().map(LightningDir::path);
    let url = destination(args.url.as_deref().unwrap_or_default(), at)?;
    let store = open_store(&url)?;
    let (keys, opened) = match chosen {
        Some(means) => means.open(&*store)?,
        None => unlock::open(&*store, &args.unlock, dest.node.as_ref())?,
    };
    if let Some(node) = dest.node.as_ref().filter(|_| !args.no_claim) {
        unlock::refuse_other_secret(&*store, node, "restore")?;
    }
    let target = target(args);
    let sources =
        Sources::look((url, store), &args.succession.also, &keys, args.accept_stale, at, output)?;
    let store = sources.store();
    let plan = Plan::to(&*store, &keys, target)?;
    refuse_rolled_back(args, &*store, &keys, at, &plan, output)?;
    let alive = match args.no_claim {
        true => Ok(()),
        false => last_writer::refuse_alive(sources.last_writer(&keys)?, output),
    };
    if args.dry_run {
        if let Err(failure) = alive {
            output.note(&format!("warning: {}", failure.message()));
        }
        show_plan(&plan, output);
        return Ok(());
    }
    if !args.succession.take_over {
        alive?;
    }
    if !args.no_claim && target != Target::Newest {
        // Nobody goes on with a log whose end is damaged: before anybody is shut out. (To the newest state there is
        // then no plan.)
        LogEnd::read(&*store, &keys)?;
    }
    if let Some(node) = &dest.node {
        private_folder(node.path())?;
    }
    let succession = match args.no_claim {
        true => None,
        false => Some(Succession::claim(sources, &keys, "restore")?),
    };
    let (store, plan) = match &succession {
        None => (store, plan),
        Some(succession) => {
            let store = succession.store().clone();
            let plan = Plan::to(&*store, &keys, target)?;
            (store, plan)
        }
    };
    let epoch = succession.as_ref().map(Succession::epoch);
    let restored = write_database(&*store, &keys, &plan, &dest.temporary(), output)
        .map_err(|failure| failure.doing("restore"))?;
    let mut files = PutBack::default();
    if let (Some(node), Some(succession)) = (&dest.node, succession) {
        files = match target {
            Target::Newest => succession.take_over(node, &opened, &restored, output)?,
            _ => {
                let (writer, files) = succession.roll_back(node, &opened, output)?;
                roll_back(writer, dest)?;
                files
            }
        };
    }
    publish(&dest.temporary(), &dest.database)?;
    if let (Some(node), Some(_)) = (&dest.node, epoch) {
        note(node, &keys, &restored)?;
    }
    let report = Report {
        database: dest.database.clone(),
        opened_by: opened.by,
        generation: restored.position.generation,
        seq: restored.position.seq,
        data_version: restored.data_version.map(|version| version.0),
        time: restored.time,
        batches: restored.batches,
        statements: restored.statements,
        voided: restored.voided,
        foreign_key_violations: restored.foreign_key_violations,
        epoch,
        stale: target != Target::Newest,
        files: files.put.clone(),
        files_left: files.left.clone(),
        seconds: began.elapsed().as_secs_f64(),
    };
    output.result(&report, || text(&report, &files, &restored, dest));
    Ok(())
}

fn text(report: &Report, files: &PutBack, restored: &Restored, dest: &Dest) -> String {
    let mut text = format!(
        "restored {}\n  data_version {}, {}, as of {}\n  {} with {} in {:.1} s; SQLite's checks pass\n",
        report.database.display(),
        report.data_version.map_or("none".into(), |version| version.to_string()),
        restored.position,
        utc(report.time),
        counted(report.batches, "batch"),
        counted(report.statements, "statement"),
        report.seconds,
    );
    text += &files_text(files);
    if report.voided > 0 {
        text += &format!(
            "  left out, as never committed by the node: {}\n",
            counted(report.voided, "batch")
        );
    }
    if report.stale {
        text += "  warning: not the newest state. A node that runs from it may be punished by its peers, who \
                 have newer ones: all funds in its channels can be lost\n";
    }
    if report.foreign_key_violations > 0 {
        text += &format!(
            "  warning: {} rows break a foreign key, as in the node's own database\n",
            report.foreign_key_violations
        );
    }
    text + &match (report.epoch, &dest.node) {
        (Some(_), Some(node)) => next_step(node),
        (Some(_), None) => {
            "a running node was shut out of this backup. A file alone is no node: restore into a directory \
             to run it"
                .to_owned()
        }
        (None, _) => {
            "a copy to look at: the node that writes this backup goes on. Never start this one".to_owned()
        }
    }
}

fn show_plan(plan: &Plan, output: &Output) {
    let newest = plan.target == Target::Newest;
    let links = &plan.lineage.links;
    let report = PlanReport {
        generation: plan.generation,
        snapshots: links.iter().map(|link| link.summary.name.to_string()).collect(),
        snapshot_bytes: plan.lineage.size(),
        segments: plan.segments.len(),
        log_bytes: plan.log_bytes(),
        snapshot_seq: plan.lineage.position().map(|at| at.seq),
        seq: newest.then_some(plan.end.position.seq),
        data_version: plan.end.head.data_version.filter(|_| newest).map(|version| version.0),
    };
    output.result(&report, || plan_text(&report, plan.target));
}

fn plan_text(report: &PlanReport, target: Target) -> String {
    let mut text = format!("would restore generation {}:\n", report.generation);
    match report.snapshot_seq {
        Some(seq) => {
            text += &format!(
                "  {}, {}, up to seq {seq}\n",
                counted(report.snapshots.len() as u64, "snapshot"),
                bytes(report.snapshot_bytes)
            );
        }
        None => text += "  from an empty database\n",
    }
    text += &format!(
        "  {} of the log, {}, ",
        counted(report.segments as u64, "segment"),
        bytes(report.log_bytes)
    );
    text += &match report.seq {
        Some(seq) => format!("up to seq {seq}"),
        None => format!("up to {target}"),
    };
    if let Some(version) = report.data_version {
        text += &format!(": data_version {version}");
    }
    text + "\nnothing was changed"
}

/// The state that the arguments name.
fn target(args: &RestoreArgs) -> Target {
    if let Some(seq) = args.to_seq {
        Target::Seq(seq)
    } else if let Some(version) = args.to_version {
        Target::Version(DataVersion(version))
    } else if let Some(time) = args.to_time {
        Target::Time(u64::try_from(time.as_millisecond()).unwrap_or(0))
    } else {
        Target::Newest
    }
}

/// The log goes on from the older state: in a new history, and what came after it stays in the old one.
fn roll_back(mut writer: Writer, dest: &Dest) -> Result<()> {
    let copy = dest.database.with_extension("rollback.tmp");
    let capture = Capture::take(&dest.temporary(), copy, &mut |_| {})?;
    capture.begin(&mut writer, StartReason::Rollback, now(), &mut |_, _| {})?;
    writer.close(now());
    Ok(())
}

/// A destination can show an older state that is whole. Who knows better is asked: the person, and the directory.
fn refuse_rolled_back(
    args: &RestoreArgs,
    store: &dyn Store,
    keys: &KeyRing,
    directory: Option<&Path>,
    plan: &Plan,
    output: &Output,
) -> Result<()> {
    let witness = directory.map(|path| Witness::read(path, keys.store())).transpose()?.flatten();
    let known =
        [(args.expect_seq, "--expect-seq"), (witness.map(|witness| witness.seq), WITNESS_FILE)];
    for (seq, by) in known {
        let Some(seq) = seq else { continue };
        match witness::refuse_older(store.label(), plan.end.position.seq, seq, by) {
            Err(error) if args.accept_stale => output.note(&format!("warning: {error}")),
            checked => checked.map_err(|error| Failure::from(error).doing("restore"))?,
        }
    }
    Ok(())
}
