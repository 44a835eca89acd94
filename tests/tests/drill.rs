//! `backup-cli drill`: a restore that is thrown away, and what it is compared with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::real::process::signal;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::sim::Node;
use lockstep_tests::workload::{Workload, WorkloadConfig};
use rusqlite::Connection;
use serde_json::{Value, json};

fn running(backed: &Backed) -> (Node, Workload) {
    let mut workload = Workload::new(WorkloadConfig::seeded(8).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 30);
    (node, workload)
}

/// A drill in a folder of its own, which must be empty afterwards.
#[track_caller]
fn drill(backed: &Backed, more: &[&str]) -> Output {
    let place = backed.dir().make_dir("scratch");
    let cli = Cli::new(["drill", "--lightning-dir"]).arg(backed.network_dir());
    let cli = more.iter().fold(cli.arg("--folder").arg(&place), Cli::arg);
    let output = cli.run();
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "nothing is left: {output}");
    output
}

#[track_caller]
fn drilled(backed: &Backed) -> Value {
    drill(backed, &["--json"]).expect_success().json()
}

fn status(backed: &Backed) -> Value {
    let args = ["status", "--json", "--lightning-dir"];
    Cli::new(args).arg(backed.network_dir()).run().json()
}

#[test]
fn a_drill_beside_a_running_node_changes_nothing_and_is_kept() {
    let backed = Backed::fresh();
    let (mut node, mut workload) = running(&backed);
    let _rpc = UnixListener::bind(backed.network_file("lightning-rpc")).unwrap();
    assert_eq!(status(&backed)["drill"], Value::Null);
    let told = backed.cli("status");
    assert!(told.stdout.contains("never rehearsed"), "{told}");
    let before = files_under(&backed.store());

    let report = drilled(&backed);
    let one = &report["destinations"][0];
    assert_eq!(report["passed"], true, "{report}");
    assert_eq!(report["opened_with"], "the node's hsm_secret");
    assert_eq!(one["opened_by"], "slot 'node'");
    let version = node.database().unwrap().data_version().unwrap();
    assert_eq!(one["data_version"], version);
    assert!(one["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(one["compared"]["with"], "nothing", "{one}");
    assert_eq!(files_under(&backed.store()), before);

    // The shadow that a compaction proved is what the log gives at that place, whatever came later.
    backed.cli("compact").expect_success();
    Backed::write(&mut node, &mut workload, 20);
    let report = drilled(&backed);
    let compared = &report["destinations"][0]["compared"];
    assert_eq!(compared["with"], "last_proof", "{report}");
    assert_eq!(compared["of_the_database"], false);
    let seq = |value: &Value| value.as_u64().unwrap();
    assert!(seq(&compared["seq"]) < seq(&report["destinations"][0]["seq"]));

    let kept = backed.network_file("backup.drill");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = status(&backed)["drill"].take();
    assert_eq!((&shown["passed"], &shown["failed"]), (&json!(true), &json!([])));
    assert_eq!(shown["seq"], report["destinations"][0]["seq"]);
    assert!(shown["age_seconds"].as_u64().unwrap() < 60);
    let told = backed.cli("status");
    assert!(told.stdout.contains("last drill: passed"), "{told}");

    // The node was not shut out.
    Backed::write(&mut node, &mut workload, 5);
    node.stop().unwrap();
}

#[test]
fn the_database_of_a_stopped_node_is_compared() {
    let backed = Backed::fresh();
    let (mut node, _) = running(&backed);
    node.stop().unwrap();
    let report = drilled(&backed);
    assert_eq!(report["destinations"][0]["compared"]["with"], "database", "{report}");
    let told = drill(&backed, &[]).expect_success();
    for words in ["passed: you would be back in ", "row by row", "nobody was shut out"] {
        assert!(told.stdout.contains(words), "'{words}': {told}");
    }

    // A value that somebody changed: named by its place, never by its content.
    let db = Connection::open(node.database_path()).unwrap();
    db.execute("INSERT INTO vars (name, intval) VALUES ('by hand', 4711)", []).unwrap();
    drop(db);
    let failed = drill(&backed, &["--json"]).expect_code(13);
    let report = failed.json();
    let error = report["destinations"][0]["error"].as_str().unwrap();
    assert!(error.contains("table 'vars': "), "{error}");
    assert!(!error.contains("4711"), "{error}");
    assert_eq!(report["passed"], false);
    let told = backed.cli("status");
    assert!(told.stdout.contains("warning: the last drill failed"), "{told}");
}

#[test]
fn a_batch_that_the_stopped_node_never_committed_is_left_out_of_the_comparison() {
    let backed = Backed::fresh();
    let (mut node, mut workload) = running(&backed);
    // Acknowledged, and dead before the commit.
    let batch = node.begin(&workload.next().unwrap()).unwrap();
    node.ask(&batch).unwrap();
    node.kill().unwrap();
    let one = drilled(&backed)["destinations"][0].take();
    assert_eq!(one["compared"]["with"], "database", "{one}");
    assert!(one["compared"]["seq"].as_u64() < one["seq"].as_u64(), "{one}");
}

#[test]
fn each_destination_is_restored_from_and_a_bad_one_is_named() {
    let backed = Backed::without_backup();
    backed.init().arg(backed.dir().file_url("second")).run().expect_success();
    let (mut node, _) = running(&backed);
    node.stop().unwrap();
    let report = drilled(&backed);
    let names: Vec<_> =
        report["destinations"].as_array().unwrap().iter().map(|d| d["name"].clone()).collect();
    assert_eq!(names, ["primary", "second"]);

    // One that no longer opens with the node's secret.
    fs::remove_file(backed.dir().path("second/keys/node.age")).unwrap();
    let failed = drill(&backed, &["--json"]).expect_code(3);
    let report = failed.json();
    assert_eq!(report["destinations"][0]["error"], Value::Null, "{report}");
    let error = report["destinations"][1]["error"].as_str().unwrap();
    assert!(error.contains("no node slot"), "{error}");
    assert_eq!(status(&backed)["drill"]["failed"], json!(["second"]));
    drill(&backed, &["--destination", "primary"]).expect_success();
    drill(&backed, &["--destination", "second"]).expect_code(12);
    let wrong = drill(&backed, &["--destination", "third"]).expect_code(1);
    assert!(wrong.stderr.contains("primary, second"), "{wrong}");
}

#[test]
fn a_damaged_log_fails_with_its_place_and_its_own_exit_code() {
    let backed = Backed::fresh();
    let (mut node, _) = running(&backed);
    node.stop().unwrap();
    let segment = newest_segment(&backed.store());
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let failed = drill(&backed, &[]).expect_code(13);
    assert!(failed.stdout.contains("failed"), "{failed}");
    assert!(failed.stderr.contains("failed to rehearse a restore: "), "{failed}");
}

fn newest_segment(store: &Path) -> std::path::PathBuf {
    let files = files_under(store);
    let segment = files.iter().filter(|file| file.starts_with("log")).max();
    store.join(segment.unwrap_or_else(|| panic!("a segment among {files:?}")))
}

#[test]
fn from_a_url_with_words_or_a_key_file() {
    let backed = Backed::fresh();
    let (mut node, _) = running(&backed);
    node.stop().unwrap();
    let cli = |key: &[&str]| {
        let cli = Cli::new(["drill", "--json", &backed.url()]);
        key.iter().fold(cli, Cli::arg).stdin("abandon\n").run()
    };
    let key = backed.network_file("backup.key");
    let report = cli(&["--key-file", key.to_str().unwrap()]).expect_success().json();
    assert_eq!(report["destinations"][0]["compared"]["with"], "nothing");
    cli(&["--words"]).expect_code(12);
    let told = cli(&[]).expect_code(12);
    assert!(told.stderr.contains("--words"), "{told}");
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let backed = Backed::fresh();
    let (mut node, _) = running(&backed);
    node.stop().unwrap();
    // Whoever reads the newest segment waits.
    let segment = newest_segment(&backed.store());
    fs::remove_file(&segment).unwrap();
    assert!(Command::new("mkfifo").arg(&segment).status().unwrap().success());
    let place = backed.dir().make_dir("scratch");
    let there = || fs::read_dir(&place).unwrap().count();
    for name in ["INT", "TERM"] {
        let cli = Cli::new(["drill", "--lightning-dir"]).arg(backed.network_dir());
        let mut child = cli.arg("--folder").arg(&place).spawn();
        wait_for("a temporary folder", || (there() == 1).then_some(()));
        // It is locked once its signals are waited for, or a moment before.
        std::thread::sleep(std::time::Duration::from_millis(300));
        signal(&[child.id()], name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert_eq!(there(), 0, "{name}");
    }
    // Against this nobody can do anything but clear up later.
    let cli = Cli::new(["drill", "--lightning-dir"]).arg(backed.network_dir());
    let mut child = cli.arg("--folder").arg(&place).spawn();
    wait_for("a temporary folder", || (there() == 1).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(&[child.id()], "KILL");
    child.wait().unwrap();
    assert_eq!(there(), 1);
    drill(&backed, &["--destination", "primary", "--key-file", "/nonexistent"]);
}

#[test]
fn the_unit_that_a_timer_starts_is_a_command_that_works() {
    let backed = Backed::fresh();
    let (mut node, _) = running(&backed);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/systemd");
    let unit = fs::read_to_string(folder.join("lockstep-drill.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let network_dir = backed.network_dir();
    let words: Vec<&str> = line
        .split_whitespace()
        .skip(1)
        .map(|word| match word {
            "/home/lightning/.lightning/bitcoin" => network_dir.to_str().unwrap(),
            word => word,
        })
        .collect();
    assert_eq!(words[0], "drill");
    Cli::new(words).run().expect_success();
    node.stop().unwrap();
    if let Ok(verified) = Command::new("systemd-analyze").arg("--version").output()
        && verified.status.success()
    {
        let timer = folder.join("lockstep-drill.timer");
        let said = Command::new("systemd-analyze").arg("verify").arg(timer).output().unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.contains("Unknown"), "{said}");
    }
}
