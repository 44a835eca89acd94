//! `demo`: the whole promise in a temporary folder. A simulated node writes through the real plugin, is
//! killed in the middle of a write, loses everything but its secret, and is restored.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lockstep_tests::oracle;
use lockstep_tests::sim::{Crash, CrashPoint, Node, NodeConfig, Sent, SimError, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use serde::Serialize;

use super::{PLUGIN, installed_plugin};
use crate::args::DemoArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};

#[derive(Serialize)]
struct Report {
    batches: u64,
    append_mean_us: f64,
    restored_data_version: u32,
    in_flight: bool,
    rows: u64,
    stored_bytes: u64,
    restore_seconds: f64,
    folder: Option<PathBuf>,
}

/// Where things are in the demo's folder.
struct Stage {
    folder: PathBuf,
    node: PathBuf,
    secret: PathBuf,
    backup: PathBuf,
    restored: PathBuf,
}

/// Shows it.
pub fn run(args: &DemoArgs, output: &Output) -> Result<()> {
    let plugin = find_plugin(args.plugin.as_deref())?;
    let temporary = tempfile::Builder::new()
        .prefix("lockstep-demo-")
        .tempdir()
        .map_err(Failure::file("create", &std::env::temp_dir()))?;
    let stage = Stage::set(temporary.path())?;
    let report = play(args, &plugin, &stage, output)?;
    let folder = args.keep.then(|| temporary.keep());
    let report = Report { folder, ..report };
    output.result(&report, || {
        let kept = match &report.folder {
            Some(folder) => format!("kept in {}", folder.display()),
            None => "the temporary folder is gone again; --keep keeps it".into(),
        };
        format!(
            "the restored database is the node's own, row by row ({} rows). {kept}",
            report.rows
        )
    });
    Ok(())
}

impl Stage {
    fn set(folder: &Path) -> Result<Self> {
        let stage = Self {
            folder: folder.into(),
            node: folder.join("node/regtest"),
            secret: folder.join("hsm_secret-on-paper"),
            backup: folder.join("nas"),
            restored: folder.join("new-node/regtest"),
        };
        std::fs::create_dir_all(&stage.node).map_err(Failure::file("create", &stage.node))?;
        let mut secret = [0_u8; 32];
        for (byte, number) in secret.iter_mut().zip(1..) {
            *byte = number;
        }
        for path in [stage.node.join("hsm_secret"), stage.secret.clone()] {
            std::fs::write(&path, secret).map_err(Failure::file("write", &path))?;
        }
        Ok(stage)
    }
}

fn play(args: &DemoArgs, plugin: &Path, stage: &Stage, output: &Output) -> Result<Report> {
    let began = Instant::now();
    cli([
        "init".as_ref(),
        "--lightning-dir".as_ref(),
        stage.node.as_os_str(),
        stage.backup.as_os_str(),
    ])?;
    output.note(&format!(
        "1. backup made in {} ({:.0} ms)",
        stage.backup.display(),
        began.elapsed().as_secs_f64() * 1e3
    ));

    let mut node = Node::launch(NodeConfig::new(plugin, &stage.node).durable()).map_err(failed)?;
    let mut workload = Workload::new(WorkloadConfig::seeded(21));
    let began = Instant::now();
    for step in workload.by_ref().take(args.batches as usize) {
        if !node.write(&step).map_err(failed)?.is_committed() {
            return Err(broken("the plugin did not acknowledge a transaction"));
        }
    }
    let wrote = began.elapsed();
    let append_mean_us = wrote.as_secs_f64() * 1e6 / f64::from(args.batches.max(1));
    output.note(&format!(
        "2. a simulated node wrote {} transactions through the real plugin, each durable before it \
         committed ({:.1} s, {append_mean_us:.0} µs each with the node's own commit)",
        args.batches,
        wrote.as_secs_f64()
    ));

    let point = CrashPoint::InsideHook { sent: Sent::All, after: Duration::from_micros(150) };
    let crash = node.crash(&workload.propose(), &Crash::both(point)).map_err(failed)?;
    let oracle = stage.folder.join("what-the-dead-node-had.sqlite3");
    node.oracle(&oracle).map_err(failed)?;
    output.note(&format!(
        "3. node and plugin were killed (SIGKILL) while transaction {} was being written",
        crash.data_version
    ));
    let stored_bytes = size_of(&stage.backup);
    output.note(&format!(
        "4. the node's directory is lost; left are the folder with {} of sealed log, and the node's secret",
        bytes(stored_bytes)
    ));

    let began = Instant::now();
    cli([
        "restore".as_ref(),
        "--take-over".as_ref(),
        stage.backup.as_os_str(),
        stage.restored.as_os_str(),
        "--hsm-secret".as_ref(),
        stage.secret.as_os_str(),
    ])?;
    let restore_seconds = began.elapsed().as_secs_f64();
    let database = stage.restored.join("lightningd.sqlite3");
    let standing = node.check_restored(&database).map_err(failed)?;
    let in_flight = matches!(standing, Standing::Pending { .. });
    let restored_data_version = crash.data_version - u32::from(!in_flight);
    output.note(&format!(
        "5. restored from those two ({:.2} s): data_version {restored_data_version}, {}",
        restore_seconds,
        if in_flight {
            "the transaction in flight included"
        } else {
            "without the transaction in flight"
        }
    ));
    let rows = oracle::row_count(&database).map_err(|error| broken(&error.to_string()))?;
    Ok(Report {
        batches: args.batches.into(),
        append_mean_us,
        restored_data_version,
        in_flight,
        rows,
        stored_bytes,
        restore_seconds,
        folder: None,
    })
}

/// Beside this program, or on PATH.
fn find_plugin(given: Option<&Path>) -> Result<PathBuf> {
    let given = given.filter(|path| path.is_file()).map(Path::to_owned);
    given.or_else(installed_plugin).ok_or_else(|| {
        Failure::new(
            format!("the plugin '{PLUGIN}' is neither beside this program nor on PATH"),
            "build it with 'cargo build --release', or name it with --plugin PATH.",
        )
    })
}

/// Runs this program as a user does.
fn cli<const N: usize>(args: [&std::ffi::OsStr; N]) -> Result<()> {
    let exe = std::env::current_exe().map_err(Failure::file("find", Path::new("backup-cli")))?;
    let done = Command::new(&exe).args(args).output().map_err(Failure::file("start", &exe))?;
    if done.status.success() {
        return Ok(());
    }
    Err(broken(String::from_utf8_lossy(&done.stderr).trim()))
}

fn failed(error: SimError) -> Failure {
    broken(&error.to_string())
}

fn broken(what: &str) -> Failure {
    Failure::new(format!("demo failed: {what}"), "please report it, with this output.")
}

fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
