//! What is replayed is compared with the node's own database. What differs is an alarm, and keeps everything.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::sim::{Crash, CrashPoint, Node, Standing, Victim};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use rusqlite::Connection;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
/// Acknowledged, and never committed.
const LOST: Crash = Crash { point: CrashPoint::AfterAck, victim: Victim::Both, hot_journal: false };
const BY_HAND: &str = "INSERT INTO vars (name, intval) VALUES ('by hand', 1)";

/// A node that has been writing for a while, with this section in its lock file.
fn running(seed: u64, compaction: Value) -> (Backed, Node, Workload) {
    let backed = Backed::fresh();
    backed.set_in_lock("compaction", compaction);
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean().growing());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 100);
    (backed, node, workload)
}

/// A node that was stopped starts again, and writes a little.
fn restart(node: &mut Node, workload: &mut Workload) {
    workload.restarted();
    node.start().unwrap();
    node.init().unwrap();
    Backed::write(node, workload, 10);
}

fn status(node: &mut Node) -> Value {
    node.call("backup-status", &json!({})).unwrap().result().unwrap()
}

/// Asks for a compaction, waits for its end, and gives what `backup-status` says of it then.
#[track_caller]
fn compact(node: &mut Node) -> Value {
    let answer = node.call("backup-compact", &json!({})).unwrap().result().unwrap();
    let began = Instant::now();
    loop {
        let status = status(node)["compaction"].clone();
        if status["last"]["id"] == answer["id"] || status["error"]["id"] == answer["id"] {
            return status;
        }
        assert!(began.elapsed() < SOON, "{status}, {:?}", node.logs());
        sleep(Duration::from_millis(5));
    }
}

/// As [`compact`]; it ends well.
#[track_caller]
fn compact_well(node: &mut Node) -> Value {
    let status = compact(node);
    assert_eq!(status["error"], Value::Null, "{status}");
    status
}

fn cli_status(backed: &Backed) -> Value {
    let shown = Cli::new(["status", "--json", "--lightning-dir"]);
    shown.arg(backed.network_dir()).run().expect_success().json()
}

fn prune(backed: &Backed, more: &[&str]) -> Output {
    let all = ["prune", "--keep-last", "1"].iter().chain(more).copied();
    Cli::new(all.chain(["--lightning-dir"])).arg(backed.network_dir()).run()
}

fn holds(backed: &Backed) -> Vec<PathBuf> {
    let folder = backed.store().join("holds");
    if folder.exists() { files_under(&folder) } else { Vec::new() }
}

fn snapshots(backed: &Backed) -> usize {
    files_under(&backed.store().join("snapshots")).len()
}

/// Executes this in a database that nobody has open, at the time at which it was last written to.
fn by_hand(database: &Path, sql: &str) {
    let written = fs::metadata(database).unwrap().modified().unwrap();
    let db = Connection::open(database).unwrap();
    db.execute_batch(sql).unwrap();
    let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    drop(db);
    set_written(database, written);
}

fn set_written(database: &Path, time: SystemTime) {
    fs::File::options().write(true).open(database).unwrap().set_modified(time).unwrap();
}

fn holds_by_hand(database: &Path) -> bool {
    finds(database, "name = 'by hand'")
}

fn finds(database: &Path, condition: &str) -> bool {
    let db = Connection::open(database).unwrap();
    let query = format!("SELECT 1 FROM vars WHERE {condition}");
    db.prepare(&query).unwrap().exists([]).unwrap()
}

/// The alarm was raised, once, and shows in both status forms.
#[track_caller]
fn assert_alarm(backed: &Backed, node: &mut Node) {
    let alarms = node.logs().into_iter().filter(|line| {
        line.level == "broken" && line.message.contains("is not what its backup says it is")
    });
    assert_eq!(alarms.count(), 1, "{:?}", node.logs());
    assert_warned(backed, node);
}

#[track_caller]
fn assert_warned(backed: &Backed, node: &mut Node) {
    for shown in [status(node), cli_status(backed)] {
        let warnings = shown["warnings"].to_string();
        assert!(warnings.contains("was not what its backup says"), "{shown}");
    }
    let text = backed.cli("status").expect_success().stdout;
    assert!(text.contains("warning: the database was not what its backup says"), "{text}");
}

#[test]
fn what_was_proved_shows_in_both_status_forms_and_survives_restarts() {
    let (backed, mut node, mut workload) = running(1, json!({}));
    let first = compact_well(&mut node);
    assert_eq!(first["comparison"], "none", "there was no database at the start: {first}");
    assert!(first["proven"]["seq"].is_u64() && first["compared"].is_null(), "{first}");
    node.stop().unwrap();
    let text = backed.cli("status").expect_success().stdout;
    assert!(text.contains("never compared with the database"), "{text}");
    restart(&mut node, &mut workload);
    let pending = status(&mut node)["compaction"].clone();
    assert_eq!(pending["comparison"], "pending");
    assert_eq!(pending["proven"]["seq"], first["proven"]["seq"], "it survives: {pending}");
    let second = compact_well(&mut node);
    assert_eq!(second["comparison"], "equal", "{second}");
    let (compared, proven) = (&second["compared"], &second["proven"]);
    assert!(compared["seq"].as_u64() > first["proven"]["seq"].as_u64(), "{second}");
    assert!(compared["seq"].as_u64() < proven["seq"].as_u64(), "{second}");
    assert!(compared["data_version"].as_u64() < proven["data_version"].as_u64(), "{second}");
    assert!(compared["age_seconds"].as_u64() < Some(60), "{second}");
    assert_eq!(compared["digest"].as_str().map(str::len), Some(64));
    node.stop().unwrap();

    let shown = cli_status(&backed)["destinations"][0].clone();
    for field in ["seq", "data_version", "digest", "time"] {
        assert_eq!(shown["proven"][field], proven[field], "{shown}");
        assert_eq!(shown["compared"][field], compared[field], "{shown}");
    }
    let text = backed.cli("status").expect_success().stdout;
    assert!(text.contains(&format!("last proved: seq {}", proven["seq"])), "{text}");
    assert!(text.contains(&format!("last equal to the database: seq {}", compared["seq"])));
    fs::remove_dir_all(backed.network_file("backup.shadow")).unwrap();
    assert!(cli_status(&backed)["destinations"][0]["proven"].is_null(), "it is not known");
}

#[test]
fn a_crash_is_no_alarm_whether_the_newest_batch_was_committed_or_not() {
    let (_backed, mut node, mut workload) = running(2, json!({}));
    compact_well(&mut node);
    let crashed = node.crash(&workload.propose(), &LOST).unwrap();
    assert!(!crashed.committed);
    workload.abandon();
    restart(&mut node, &mut workload);
    assert_eq!(compact_well(&mut node)["comparison"], "equal");
    node.kill().unwrap();
    restart(&mut node, &mut workload);
    assert_eq!(compact_well(&mut node)["comparison"], "equal");
}

#[test]
fn a_node_that_was_quiet_before_it_stopped_is_no_alarm() {
    let (backed, mut node, mut workload) = running(6, json!({}));
    // Longer than a commit may come behind its batch.
    sleep(Duration::from_millis(5_500));
    node.stop().unwrap();
    restart(&mut node, &mut workload);
    assert!(!node.logged("without this plugin since its newest backup"));
    assert!(!backed.store().join("snapshots").exists(), "no snapshot was taken");
}

#[test]
fn a_database_changed_by_hand_at_the_same_version_is_an_alarm_and_keeps_everything() {
    let (backed, mut node, mut workload) = running(3, json!({}));
    for _ in 0..2 {
        compact_well(&mut node);
        Backed::write(&mut node, &mut workload, 20);
    }
    node.stop().unwrap();
    by_hand(&node.database_path(), BY_HAND);
    restart(&mut node, &mut workload);
    assert!(!node.logged("without this plugin since its newest backup"), "else this tests nothing");
    let before = files_under(&backed.store());
    let alarmed = compact(&mut node);
    assert_eq!(alarmed["comparison"], "differs", "{alarmed}");
    assert_alarm(&backed, &mut node);
    assert_eq!(holds(&backed).len(), 1);
    let refused = compact(&mut node)["error"]["message"].to_string();
    assert!(refused.contains("no snapshot is made"), "{refused}");
    assert!(backed.cli("compact").expect_code(1).stderr.contains("no snapshot is made"));
    let refused = prune(&backed, &[]).expect_code(1);
    assert!(refused.stderr.contains("nothing is removed"), "{refused:?}");
    let refused = prune(&backed, &["--release-hold"]).expect_code(1);
    assert!(refused.stderr.contains("start lightningd first"), "{refused:?}");
    assert!(before.iter().all(|file| backed.store().join(file).exists()));
    assert_eq!(snapshots(&backed), 2, "nothing was made of it");
    Backed::write(&mut node, &mut workload, 10);
    node.stop().unwrap();

    restart(&mut node, &mut workload);
    assert!(node.logged("taking a snapshot of it as it is now"));
    let restored = backed.restored();
    assert!(holds_by_hand(&restored), "the database is what counts");
    assert_warned(&backed, &mut node);
    assert_eq!(compact_well(&mut node)["last"]["result"]["removed"], 0);
    assert!(prune(&backed, &[]).expect_code(1).stderr.contains("nothing is removed"));
    assert!(before.iter().all(|file| backed.store().join(file).exists()));
    node.stop().unwrap();
    restart(&mut node, &mut workload);
    let taken = node.logs().into_iter().filter(|line| line.message.contains("taking a snapshot"));
    assert_eq!(taken.count(), 1, "once is enough");
    assert_eq!(compact_well(&mut node)["comparison"], "equal");
    prune(&backed, &["--release-hold"]).expect_success();
    assert!(holds(&backed).is_empty());
    assert!(!before.iter().all(|file| backed.store().join(file).exists()));
    assert_eq!(cli_status(&backed)["warnings"], json!([]));
    backed.cli("verify").expect_success();
}

#[test]
fn a_row_that_flipped_in_the_shadow_is_found_and_the_shadow_made_anew() {
    let (backed, mut node, mut workload) = running(4, json!({}));
    compact_well(&mut node);
    node.stop().unwrap();
    by_hand(&backed.network_file("backup.shadow/shadow.sqlite3"), BY_HAND);
    restart(&mut node, &mut workload);
    let status = compact_well(&mut node);
    assert_eq!(status["comparison"], "equal", "{status}");
    assert!(node.logged("making the shadow anew"), "{:?}", node.logs());
    assert!(holds(&backed).is_empty());
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn a_wrong_row_that_was_published_is_an_alarm_and_the_next_start_is_right_again() {
    let (backed, mut node, mut workload) = running(5, json!({}));
    compact_well(&mut node);
    // In a row that each transaction changes: the next snapshot holds it.
    let flip = "UPDATE vars SET blobval = x'01' WHERE name = 'data_version'";
    let flipped = |backed: &Backed| finds(&backed.restored(), "blobval = x'01'");
    by_hand(&backed.network_file("backup.shadow/shadow.sqlite3"), flip);
    Backed::write(&mut node, &mut workload, 5);
    compact_well(&mut node);
    assert!(flipped(&backed), "else this tests nothing");
    node.stop().unwrap();
    restart(&mut node, &mut workload);
    assert_eq!(compact(&mut node)["comparison"], "differs");
    assert_alarm(&backed, &mut node);
    node.stop().unwrap();
    restart(&mut node, &mut workload);
    assert!(!flipped(&backed));
    compact_well(&mut node);
    assert!(!flipped(&backed));
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn a_large_database_is_compared_by_the_command_line_while_the_node_is_stopped() {
    let (backed, mut node, mut workload) = running(6, json!({"compare_max_bytes": 4096}));
    compact_well(&mut node);
    node.stop().unwrap();
    restart(&mut node, &mut workload);
    let status = compact_well(&mut node);
    assert_eq!((&status["comparison"], &status["compared"]), (&json!("too_large"), &Value::Null));
    let compact = || {
        let compact = Cli::new(["compact", "--json", "--lightning-dir"]);
        compact.arg(backed.network_dir()).run()
    };
    let socket = backed.network_file("lightning-rpc");
    let listening = UnixListener::bind(&socket).unwrap();
    assert_eq!(compact().expect_success().json()["compared"], Value::Null, "lightningd runs");
    drop(listening);
    fs::remove_file(socket).unwrap();
    node.stop().unwrap();
    let text = backed.cli("status").expect_success().stdout;
    assert!(
        text.contains("compared by 'backup-cli compact' while lightningd is stopped"),
        "{text}"
    );
    assert!(text.contains("never compared"), "{text}");
    assert_eq!(compact().expect_success().json()["compared"], true);
    let compared = cli_status(&backed)["destinations"][0]["compared"].clone();
    assert!(compared["seq"].is_u64(), "{compared}");
    assert!(holds(&backed).is_empty());

    // One batch behind its log.
    restart(&mut node, &mut workload);
    node.crash(&workload.propose(), &LOST).unwrap();
    workload.abandon();
    assert_eq!(compact().expect_success().json()["compared"], true);
    by_hand(&node.database_path(), BY_HAND);
    let before = snapshots(&backed);
    let found = compact().expect_code(13);
    assert!(found.stderr.contains("is not what its backup says it is"), "{found:?}");
    assert_eq!((holds(&backed).len(), snapshots(&backed)), (1, before));
    restart(&mut node, &mut workload);
    assert!(node.logged("taking a snapshot of it as it is now"));
    assert!(holds_by_hand(&backed.restored()));
    assert_warned(&backed, &mut node);
}
