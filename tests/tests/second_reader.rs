//! `docs/format.md` suffices: a Python program that was written from it alone restores what
//! `backup-cli` restores, and refuses what it refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::sim::{Crash, CrashPoint, Node};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::workload::{Trace, Traces, Workload, WorkloadConfig};
use lockstep_tests::{Step, oracle};

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/reader/lockstep_reader.py");
const REQUIREMENTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/reader/requirements.txt");

/// A Python with the reader's packages, made once. `None`, and a visible line, without one.
fn python(test: &str) -> Option<&'static Path> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PYTHON.get_or_init(make_python) {
        Ok(python) => Some(python),
        Err(error) => {
            eprintln!("{test}: skipped, no python3 with the reader's packages: {error}");
            None
        }
    }
}

/// A virtual environment below the target directory; a mark in it says that it is complete.
fn make_python() -> Result<PathBuf, String> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("second-reader");
    let (python, mark) = (venv.join("bin/python3"), venv.join("installed.txt"));
    let wanted = fs::read_to_string(REQUIREMENTS).expect("the reader's requirements");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it failed").to_owned();
        if output.status.success() { Ok(()) } else { Err(last) }
    };
    let place = venv.to_str().expect("a target directory in UTF-8");
    run(Path::new("python3"), &["-m", "venv", "--clear", place])?;
    let quiet = ["-m", "pip", "--quiet", "--disable-pip-version-check"];
    run(&python, &[&quiet[..], &["install", "--requirement", REQUIREMENTS]].concat())?;
    fs::write(mark, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

/// The Python reader, with a secret as its last arguments.
fn read(python: &Path, store: &Path, dest: &Path) -> Cli {
    Cli::program(python, ["-B", READER]).arg(store).arg(dest)
}

/// `position: generation G, seq S, chain C` and `data_version: V`, as the reader prints them.
fn printed(output: &Output) -> (String, String) {
    let of = |key: &str| {
        let line = output.stdout.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key} in {output}")).to_owned()
    };
    (of("position: "), of("data_version: "))
}

/// Both restore a store, and what they made and say of it is the same.
#[track_caller]
fn assert_same_restored(python: &Path, backed: &Backed, store: &Path) {
    let key = backed.network_file("backup.key");
    let (theirs, ours) = (backed.new_dest(), backed.new_dest());
    let url = format!("file://{}", store.display());
    let report = backed.restore_of(&url, &theirs).arg("--json").run().expect_success().json();
    let output = read(python, store, &ours).arg("--key-file").arg(key).run().expect_success();
    oracle::assert_same(&theirs, &ours);

    let (position, version) = printed(&output);
    eprintln!("{report} {position} {version}");
    for path in [theirs, ours] {
        fs::remove_file(path).unwrap();
    }
}

/// Every step committed, then the plugin and the node die with one more acknowledged.
fn lose_one(node: &mut Node, workload: &mut Workload) {
    let lost = Crash::both(CrashPoint::AfterAck);
    while let step = workload.propose()
        && step.is_pragma()
    {
        node.write(&step).unwrap().expect_committed();
    }
    let report = node.crash(&workload.propose(), &lost).unwrap();
    assert!(!report.committed);
    workload.abandon();
    workload.restarted();
    node.start().unwrap();
}

#[test]
fn zzz() {
    let Some(python) = python("zzz") else { return };
    let backed = Backed::fresh();
    let mut workload = Workload::seeded(5);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 50);
    assert_same_restored(python, &backed, &backed.store());
    let _ = (node, workload, files_under, copy_dir, lose_one, WorkloadConfig::seeded(1), Trace::Node, Step::foreign_keys(true));
    let _ = Traces::locate();
}
