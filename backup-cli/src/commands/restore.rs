//! `restore`: the database, back from its log.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lockstep_node::{LightningDir, write_hsm_secret};
use lockstep_proto::capture::Capture;
use lockstep_proto::config::{LockFile, write_key_file};
use lockstep_proto::error::Error;
use lockstep_proto::fence::{self, Claimant};
use lockstep_proto::record::StartReason;
use lockstep_proto::restore::{self, Plan, Progress, Restored, Target};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::Store;
use lockstep_proto::version::DataVersion;
use lockstep_proto::witness::{self, WITNESS_FILE, Witness};
use lockstep_proto::writer::{RestoredState, Writer};
use serde::Serialize;

use super::{last_writer, now, refuse_running};
use crate::PROGRAM;
use crate::args::RestoreArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, utc};
use crate::place::{destination, open_store};
use crate::sources::Sources;
use crate::unlock::{self, Opened};

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
    seconds: f64,
}

/// Where the database goes.
struct Dest {
    database: PathBuf,
    /// The node's directory, where it is one and not a single file.
    node: Option<LightningDir>,
}

/// Restores. The database gets its name as the last step.
pub fn run(args: &RestoreArgs, output: &Output) -> Result<()> {
    let began = Instant::now();
    let dest = find_dest(&args.dest)?;
    refuse_existing(&dest)?;
    let url = destination(&args.url, dest.node.as_ref().map(LightningDir::path))?;
    let store = open_store(&url)?;
    let (keys, opened) = unlock::open(&*store, &args.unlock, dest.node.as_ref())?;
    let target = target(args);
    let directory = LockFile::new_directory()?;
    let at = dest.node.as_ref().map(LightningDir::path);
    let sources = Sources::look((url, store), &args.also, &keys, args.accept_stale, at, output)?;
    let lock = sources.lock(&keys, directory.clone());
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
    if !args.take_over {
        alive?;
    }
    if let Some(node) = &dest.node {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(node.path())
            .map_err(Failure::file("create", node.path()))?;
    }
    let claimant = Claimant::this_process(PROGRAM, "restore", &directory, now())?;
    let (store, plan, epoch) = match args.no_claim {
        true => (store, plan, None),
        false => {
            let store = sources.writable(&keys, &lock)?;
            let epoch = fence::claim(&*store, &keys, &claimant)?;
            // Whatever the writer before acknowledged until now is in this one.
            let plan = Plan::to(&*store, &keys, target)?;
            (store, plan, Some(epoch))
        }
    };
    for passed_over in &plan.lineage.passed_over {
        output.note(&format!("warning: passed over a newer snapshot: {passed_over}"));
    }
    let restored = match write_database(&*store, &keys, &plan, &dest, output) {
        Err(error @ (Error::Damaged { .. } | Error::UnknownKind { .. })) => {
            match plan.around_damage(&*store, &keys)? {
                Some(other) => {
                    output.note(&format!("warning: {error}; going on from an older snapshot"));
                    write_database(&*store, &keys, &other, &dest, output)
                }
                None => Err(error),
            }
        }
        restored => restored,
    };
    let restored = restored.map_err(|error| Failure::from(error).doing("restore"))?;
    if let (Some(node), Some(claimed)) = (&dest.node, epoch) {
        // The log is this directory's from here on; its database only gets its name after that.
        let (store, keys) = (store.clone(), keys.clone());
        make_startable(node, lock, &keys, &opened)?;
        sources.bring_up(&keys, output)?;
        let claimant = claimant.renewed(now())?;
        if target == Target::Newest {
            let state = RestoredState {
                position: restored.position,
                data_version: restored.data_version,
                claimed,
            };
            Writer::take_over(store, keys, claimant, &state, now())?.close(now());
        } else {
            roll_back(Writer::roll_back(store, keys, claimant)?, &dest)?;
        }
    }
    publish(&dest.database)?;
    if let (Some(node), Some(_)) = (&dest.node, epoch) {
        let (seq, version) = (restored.position.seq, restored.data_version);
        Witness::new(keys.store(), seq, version, now()).write(node.path())?;
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
        seconds: began.elapsed().as_secs_f64(),
    };
    output.result(&report, || text(&report, &restored, &dest));
    Ok(())
}

fn text(report: &Report, restored: &Restored, dest: &Dest) -> String {
    let mut text = format!(
        "restored {}\n  data_version {}, {}, as of {}\n  {} batches with {} statements in {:.1} s; SQLite's checks pass\n",
        report.database.display(),
        report.data_version.map_or("none".into(), |version| version.to_string()),
        restored.position,
        utc(report.time),
        report.batches,
        report.statements,
        report.seconds,
    );
    if report.voided > 0 {
        text +=
            &format!("  {} batches that the node never committed were left out\n", report.voided);
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
    text += match (report.epoch, &dest.node) {
        (Some(_), Some(node)) if node.hsm_secret().exists() => {
            "the old node is shut out of this backup; never start it again.\nnext: start lightningd here"
        }
        (Some(_), Some(_)) => {
            "the old node is shut out of this backup; never start it again.\nnext: put the node's \
             hsm_secret here, then start lightningd"
        }
        (Some(_), None) => {
            "a running node was shut out of this backup. A file alone is no node: restore into a directory \
             to run it"
        }
        (None, _) => {
            "a copy to look at: the node that writes this backup goes on. Never start this one"
        }
    };
    text
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
                "  {} snapshots, {}, up to seq {seq}\n",
                report.snapshots.len(),
                bytes(report.snapshot_bytes)
            );
        }
        None => text += "  from an empty database\n",
    }
    text += &format!("  {} segments of the log, {}, ", report.segments, bytes(report.log_bytes));
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
    let capture = Capture::take(&temporary(&dest.database), copy, &mut |_| {})?;
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

/// DEST is a directory where it is one, or where its name has no extension of a database.
fn find_dest(dest: &Path) -> Result<Dest> {
    let dest = std::path::absolute(dest).map_err(Failure::file("find", dest))?;
    let extension = dest.extension().and_then(|extension| extension.to_str());
    if !dest.is_dir() && matches!(extension, Some("sqlite3" | "sqlite" | "db")) {
        return Ok(Dest { database: dest, node: None });
    }
    if dest.exists() && !dest.is_dir() {
        return Err(Failure::new(
            format!("'{}' already exists", dest.display()),
            "nothing was changed; give a new file or a directory.",
        ));
    }
    let used = std::fs::read_dir(&dest).is_ok_and(|mut entries| entries.next().is_some());
    let node = if used { LightningDir::locate(&dest)? } else { LightningDir::new(&dest) };
    let wallet = LockFile::read(node.path())?.and_then(|lock| lock.wallet);
    let node = match wallet {
        Some(wallet) => node.with_wallet(wallet),
        None => node,
    };
    Ok(Dest { database: node.wallet().to_owned(), node: Some(node) })
}

fn refuse_existing(dest: &Dest) -> Result<()> {
    let named = |suffix: &str| {
        let mut name = dest.database.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    for path in ["", "-journal", "-wal", "-shm"].map(named) {
        // lightningd makes an empty file before it is told that it must not start: nothing is in it.
        let found = path.symlink_metadata();
        if found.is_ok_and(|found| path != dest.database || !found.is_file() || found.len() > 0) {
            return Err(Failure::new(
                format!("failed to restore: '{}' already exists", path.display()),
                "nothing was changed; move the old database files aside first.",
            ));
        }
    }
    dest.node.as_ref().map_or(Ok(()), refuse_running)
}

fn temporary(database: &Path) -> PathBuf {
    let mut name = database.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    database.with_file_name(name)
}

fn write_database(
    store: &dyn Store,
    keys: &KeyRing,
    plan: &Plan,
    dest: &Dest,
    output: &Output,
) -> std::result::Result<Restored, Error> {
    let path = temporary(&dest.database);
    // One that an interrupted restore left: it never had the database's name.
    let _ = std::fs::remove_file(&path);
    let bar = output.counter("reading");
    let mut progress = |step: Progress| match step {
        Progress::Pages(bytes) => {
            bar.set_message("bytes of the snapshot written:");
            bar.set_position(bytes);
        }
        Progress::Batches(batches) => {
            bar.set_message("batches replayed:");
            bar.set_position(batches);
        }
        Progress::Checking => bar.set_message("checking the database; batches replayed:"),
    };
    let restored = restore::run(store, keys, plan, &path, &mut progress);
    bar.finish_and_clear();
    if restored.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    restored
}

/// What the plugin needs in the directory, and the node's secret where that opened the backup.
fn make_startable(
    node: &LightningDir,
    lock: LockFile,
    keys: &KeyRing,
    opened: &Opened,
) -> Result<()> {
    if let Some(secret) = &opened.hsm_secret
        && !node.hsm_secret().exists()
    {
        write_hsm_secret(&node.hsm_secret(), secret)?;
    }
    if !node.key_file().exists() {
        write_key_file(&node.key_file(), keys)?;
    }
    let lock = match LockFile::read(node.path())? {
        // Its settings stay.
        Some(mut there) if there.store_id == keys.store() => {
            there.directory = lock.directory;
            if lock.destinations.len() > 1 {
                (there.destinations, there.quorum) = (lock.destinations, lock.quorum);
            }
            there
        }
        _ => lock,
    };
    Ok(lock.write(node.path())?)
}

/// Gives the finished database its name, which no other file may have by now.
fn publish(database: &Path) -> Result<()> {
    let temporary = temporary(database);
    if database.metadata().is_ok_and(|found| found.len() == 0) {
        std::fs::remove_file(database).map_err(Failure::file("replace", database))?;
    }
    std::fs::hard_link(&temporary, database)
        .and_then(|()| std::fs::remove_file(&temporary))
        .or_else(|error| match error.kind() {
            std::io::ErrorKind::Unsupported | std::io::ErrorKind::PermissionDenied => {
                std::fs::rename(&temporary, database)
            }
            _ => Err(error),
        })
        .map_err(Failure::file("publish", database))?;
    let folder = database.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Failure::file("sync", folder))
}
