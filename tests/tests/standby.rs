//! `follow` and `promote`: a copy that is kept up to date, cannot be started, and becomes the node.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use lockstep_tests::backed::{Backed, reason_not_to_go_on};
use lockstep_tests::binaries::{self, Cli, Output};
use lockstep_tests::oracle;
use lockstep_tests::real::process::signal;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::sim::{Node, NodeConfig, Standing};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::workload::{Workload, WorkloadConfig};
use serde_json::Value;

fn running(seed: u64) -> (Backed, Node, Workload) {
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean().growing());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 30);
    (backed, node, workload)
}

/// Another machine's network directory.
fn standby(backed: &Backed) -> PathBuf {
    backed.dir().path("other/regtest")
}

fn cli(verb: &str, backed: &Backed, more: &[&str]) -> Cli {
    let cli = Cli::new([verb, "--json", &backed.url()]).arg(standby(backed));
    more.iter().fold(cli, Cli::arg)
}

/// Catches up once; the key is asked for the first time only.
#[track_caller]
fn follow_once(backed: &Backed) -> Value {
    let key = backed.network_file("backup.key");
    let key = ["--once", "--key-file", key.to_str().unwrap()];
    let key = if standby(backed).join("backup.key").exists() { &key[..1] } else { &key };
    cli("follow", backed, key).run().expect_success().json()
}

fn promote(backed: &Backed, more: &[&str]) -> Output {
    cli("promote", backed, more).run()
}

fn database(backed: &Backed) -> PathBuf {
    standby(backed).join("lightningd.sqlite3")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The node at the standby's place, as lightningd and the plugin would start it.
fn node_there(backed: &Backed) -> Node {
    Node::new(NodeConfig::new(binaries::plugin(), standby(backed)))
}

#[test]
fn a_standby_cannot_be_started_and_is_a_node_once_it_is_promoted() {
    let (backed, mut node, mut workload) = running(31);
    let report = follow_once(&backed);
    assert!(report["behind"].as_u64().unwrap() <= 2, "{report}");
    assert_eq!(names(&standby(&backed)), ["backup.key", "backup.standby"]);
    let reason = reason_not_to_go_on(&mut node_there(&backed));
    assert!(reason.contains("there is no backup.lock"), "{reason}");
    assert!(reason.contains("this is a standby: 'backup-cli promote"), "{reason}");
    // What lightningd leaves of such a try is in nobody's way: an empty file and its journal …
    fs::write(database(&backed), "").unwrap();
    fs::write(standby(&backed).join("lightningd.sqlite3-journal"), [0; 512]).unwrap();
    // … but for the secret that it made.
    let secret = standby(&backed).join("hsm_secret");
    fs::write(&secret, [9; 32]).unwrap();
    let refused = promote(&backed, &["--take-over"]).expect_code(12);
    assert!(refused.stderr.contains("hsm_secret' is another node's"), "{refused}");
    fs::remove_file(secret).unwrap();

    // Nobody is shut out while it follows, …
    Backed::write(&mut node, &mut workload, 20);
    let report = follow_once(&backed);
    assert!(report["batches"].as_u64().unwrap() >= 19, "{report}");
    assert!(report["batches"].as_u64().unwrap() <= 25, "only what is new: {report}");
    // … nor by a promotion that was not meant.
    let refused = promote(&backed, &[]).expect_code(11);
    assert!(refused.stderr.contains("looks alive"), "{refused}");
    Backed::write(&mut node, &mut workload, 5);

    let report = promote(&backed, &["--take-over"]).expect_success().json();
    assert!(report["batches"].as_u64().unwrap() <= 3, "{report}");
    oracle::assert_same(&node.database_path(), &database(&backed));
    assert_eq!(
        names(&standby(&backed)),
        ["backup.key", "backup.lock", "backup.witness", "lightningd.sqlite3"]
    );
    assert_eq!(report["files_left"], serde_json::json!([]));
    let message = node.write(&workload.next().unwrap()).unwrap().expect_refused();
    assert!(message.contains("was taken over"), "{message}");

    let mut new = node_there(&backed);
    new.start().unwrap();
    let mut workload = Workload::new(WorkloadConfig::seeded(32).lean());
    for _ in 0..workload.migrations_left() {
        workload.next();
    }
    let sql = ["INSERT INTO vars (name, intval) VALUES ('promoted', 1)"];
    new.write(&lockstep_tests::Step::transaction(sql)).unwrap().expect_committed();
    new.stop().unwrap();
    backed.check_same_as(&database(&backed));
    backed_verifies(&backed);
    // It is a node's directory now.
    let refused = cli("follow", &backed, &["--once"]).run().expect_code(1);
    assert!(refused.stderr.contains("already exists"), "{refused}");
    promote(&backed, &[]).expect_code(1);
}

#[test]
fn the_newest_place_is_followed_and_an_older_one_takes_nothing_back() {
    let (backed, mut node, mut workload) = running(33);
    let older = backed.dir().path("older");
    copy_dir(&backed.store(), &older).unwrap();
    Backed::write(&mut node, &mut workload, 20);
    let key = backed.network_file("backup.key");
    let follow = |key_file: bool| {
        let also = format!("--also={}", backed.url());
        let url = format!("file://{}", older.display());
        let cli = Cli::new(["follow", "--json", "--once", &also, &url]).arg(standby(&backed));
        if key_file { cli.arg("--key-file").arg(&key).run() } else { cli.run() }
    };
    let report = follow(true).expect_success().json();
    assert_eq!(report["from"], backed.url());
    assert!(report["behind"].as_u64().unwrap() <= 2, "{report}");
    // The newest place is away: the other one is older than the copy, which stays as it is.
    let away = backed.dir().path("away");
    fs::rename(backed.store(), &away).unwrap();
    let refused = follow(false).expect_code(14);
    assert!(refused.stderr.contains("shows an older state than the copy"), "{refused}");
    // It is there again, and the one that was named is away.
    fs::rename(&away, backed.store()).unwrap();
    fs::rename(&older, &away).unwrap();
    Backed::write(&mut node, &mut workload, 3);
    let next = follow(false).expect_success().json();
    assert!(next["seq"].as_u64() > report["seq"].as_u64(), "{next}");
    assert!(next["batches"].as_u64().unwrap() <= 5, "it went on from where it was: {next}");
}

#[track_caller]
fn backed_verifies(backed: &Backed) {
    let verify = Cli::new(["verify", "--lightning-dir"]).arg(standby(backed));
    verify.run().expect_success();
}

#[test]
fn a_standby_survives_deaths_compaction_and_new_generations() {
    let (backed, mut node, mut workload) = running(33);
    let mut rng = fastrand::Rng::with_seed(33);
    follow_once(&backed);
    for round in 0..12 {
        Backed::write(&mut node, &mut workload, 15);
        // Killed at any moment, it goes on where it was.
        let mut child = cli("follow", &backed, &["--interval", "1"]).spawn();
        std::thread::sleep(Duration::from_millis(rng.u64(0..60)));
        signal(&[child.id()], "KILL");
        child.wait().unwrap();
        match round {
            // What it would have read next is gone.
            3 | 7 => {
                Backed::write(&mut node, &mut workload, 40);
                backed.cli("compact").expect_success();
                node.stop().unwrap();
                node.start().unwrap();
                let prune = Cli::new(["prune", "--keep-last", "1", "--lightning-dir"]);
                prune.arg(backed.network_dir()).run().expect_success();
            }
            // The database goes ahead without the log, which begins a new generation.
            5 => {
                node.shutdown().unwrap();
                node.commit_unhooked(&workload.next().unwrap()).unwrap();
                node.stop().unwrap();
                node.start().unwrap();
            }
            // A shadow that a disk has spoilt.
            9 => {
                let path = standby(&backed).join("backup.standby/shadow.sqlite3");
                let mut bytes = fs::read(&path).unwrap();
                let end = bytes.len();
                bytes[end / 2..end / 2 + 4096.min(end / 2)].fill(0xaa);
                fs::write(&path, bytes).unwrap();
                let _ = fs::remove_file(path.with_extension("sqlite3-wal"));
            }
            _ => {}
        }
        Backed::write(&mut node, &mut workload, 3);
        let report = follow_once(&backed);
        assert!(report["behind"].as_u64().unwrap() <= 2, "round {round}: {report}");
    }
    node.stop().unwrap();
    let report = follow_once(&backed);
    assert!(report["behind"].as_u64().unwrap() <= 1, "{report}");
    let done = promote(&backed, &[]).expect_success();
    oracle::assert_same(&node.database_path(), &database(&backed));
    assert!(done.json()["generation"].as_u64() > Some(1), "{done}");
    backed_verifies(&backed);
}

#[test]
fn what_was_acknowledged_last_is_promoted_too() {
    let (backed, mut node, mut workload) = running(34);
    follow_once(&backed);
    let batch = node.begin(&workload.next().unwrap()).unwrap();
    node.ask(&batch).unwrap();
    node.kill().unwrap();
    let restored = backed.restored();
    promote(&backed, &[]).expect_success();
    oracle::assert_same(&restored, &database(&backed));
    let standing = node.check_restored(&database(&backed)).unwrap();
    assert!(matches!(standing, Standing::Pending { .. }), "{standing:?}");
}

#[test]
fn a_promotion_that_was_killed_is_begun_again() {
    let (backed, mut node, mut workload) = running(35);
    follow_once(&backed);
    Backed::write(&mut node, &mut workload, 30);
    node.stop().unwrap();
    let mut rng = fastrand::Rng::with_seed(35);
    let mut killed = 0;
    // At first at once: a machine that is fast has done it all soon.
    for attempt in 0..12 {
        if database(&backed).exists() {
            break;
        }
        let mut child = cli("promote", &backed, &[]).spawn();
        std::thread::sleep(Duration::from_millis(rng.u64(0..=8 * attempt)));
        child.kill().unwrap();
        killed += i32::from(!child.wait().unwrap().success());
        // Never half a node: with a database it has all that a node needs.
        if database(&backed).exists() {
            assert!(standby(&backed).join("backup.lock").exists());
        }
    }
    assert!(killed > 0);
    if !database(&backed).exists() {
        promote(&backed, &[]).expect_success();
    }
    oracle::assert_same(&node.database_path(), &database(&backed));
    backed_verifies(&backed);
}

/// A `follow` that goes on, and its lines.
struct Following {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Following {
    fn start(backed: &Backed) -> Self {
        let mut child = cli("follow", backed, &["--interval", "1"]).spawn();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn until(&mut self, version: u32) -> Value {
        loop {
            let line = self.lines.next().unwrap().unwrap();
            let report: Value = serde_json::from_str(&line).unwrap();
            if report["head_data_version"] == version {
                return report;
            }
        }
    }
}

#[test]
fn it_goes_on_beside_the_node_and_when_the_place_was_away() {
    let (backed, mut node, mut workload) = running(36);
    follow_once(&backed);
    let version = |node: &Node| node.database().unwrap().data_version().unwrap();
    let mut following = Following::start(&backed);
    following.until(version(&node));
    Backed::write(&mut node, &mut workload, 10);
    let report = following.until(version(&node));
    assert_eq!(report["behind"], 2, "{report}");

    // A promotion does not get in its way.
    let refused = promote(&backed, &["--take-over"]).expect_code(1);
    assert!(refused.stderr.contains("another 'follow' or 'promote'"), "{refused}");
    assert!(refused.stderr.contains("nobody was shut out"), "{refused}");
    Backed::write(&mut node, &mut workload, 1);
    let second = cli("follow", &backed, &["--once"]).run().expect_code(1);
    assert!(second.stderr.contains("another 'follow' or 'promote'"), "{second}");
    node.stop().unwrap();

    let (store, away) = (backed.store().join("log"), backed.dir().path("away"));
    fs::rename(&store, &away).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    fs::rename(&away, &store).unwrap();
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 10);
    following.until(version(&node));
    // Once it is a node's directory, it ends by itself.
    fs::write(database(&backed), "a database").unwrap();
    let ended = wait_for("its end", || following.child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1));
    let mut said = String::new();
    following.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let errors: Vec<&str> = said.lines().collect();
    assert_eq!(errors.len(), 2, "each is said once: {said}");
    assert!(errors[1].contains("already exists"), "{said}");
    fs::remove_file(database(&backed)).unwrap();
    node.stop().unwrap();
    promote(&backed, &[]).expect_success();
    oracle::assert_same(&node.database_path(), &database(&backed));
}

#[test]
fn what_is_no_standby_is_refused() {
    let (backed, mut node, _) = running(37);
    let refused = promote(&backed, &[]).expect_code(1);
    assert!(refused.stderr.contains("nothing follows in"), "{refused}");
    // The node's own directory.
    let own = Cli::new(["follow", "--once", &backed.url()]).arg(backed.network_dir());
    let refused = own.run().expect_code(1);
    assert!(refused.stderr.contains("already exists"), "{refused}");
    node.stop().unwrap();
    let nowhere = Cli::new(["follow", "--once", &backed.dir().file_url("nowhere")]);
    nowhere.arg(standby(&backed)).run().expect_code(10);
    let keyless = cli("follow", &backed, &["--once"]).run().expect_code(12);
    assert!(keyless.stderr.contains("--words"), "{keyless}");
    assert!(!standby(&backed).exists(), "nothing was made");
}
