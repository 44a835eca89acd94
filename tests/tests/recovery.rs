//! `restore --plan`: what can be done is said best first, and its commands do it.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{self, Cli, Output};
use lockstep_tests::oracle;
use lockstep_tests::sim::{Node, NodeConfig};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::workload::{Workload, WorkloadConfig};
use serde_json::Value;

fn stopped(seed: u64) -> (Backed, Node) {
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 40);
    node.stop().unwrap();
    (backed, node)
}

/// Another machine: nothing but what its owner kept.
fn elsewhere(backed: &Backed, kept: &[&str]) -> PathBuf {
    let directory = backed.dir().make_dir("else where/regtest");
    for name in kept {
        fs::copy(backed.network_file(name), directory.join(name)).unwrap();
    }
    directory
}

#[track_caller]
fn plan(url: Option<&str>, dest: &Path, more: &[&str]) -> Value {
    let cli = Cli::new(["restore", "--plan", "--json"]);
    let cli = url.iter().fold(cli, Cli::arg).arg(dest);
    more.iter().fold(cli, Cli::arg).run().expect_success().json()
}

fn kinds(plan: &Value) -> Vec<&str> {
    plan["ways"].as_array().unwrap().iter().map(|way| way["kind"].as_str().unwrap()).collect()
}

fn commands(way: &Value) -> Vec<&str> {
    way["commands"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect()
}

/// Runs what a person would type, but for lightningd; a new backup goes to `fresh`.
#[track_caller]
fn carry_out(backed: &Backed, way: &Value) {
    let fresh = format!("file://{}", backed.dir().path("fresh").display());
    let programs = binaries::cli();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", programs.parent().unwrap().display());
    for line in commands(way) {
        if !line.starts_with("lightning") {
            let line = line.replace("file:///NEW/EMPTY/FOLDER", &fresh);
            Cli::program("sh", ["-ec", &line]).env("PATH", &path).run().expect_success();
        }
    }
}

fn newest_segment(store: &Path) -> PathBuf {
    let files = files_under(store);
    store.join(files.iter().filter(|file| file.starts_with("log")).max().unwrap())
}

/// Spoils the newest segment somewhere behind its middle.
fn spoil(store: &Path) {
    let segment = newest_segment(store);
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end * 2 / 3] ^= 1;
    fs::write(&segment, bytes).unwrap();
}

#[test]
fn a_whole_backup_and_the_secret_bring_the_node_back_exactly() {
    let (backed, node) = stopped(41);
    let dest = elsewhere(&backed, &["hsm_secret"]);
    let found = plan(Some(&backed.url()), &dest, &[]);
    assert_eq!(kinds(&found), ["exact", "closing"], "{found}");
    assert_eq!(found["found"]["logs"][0]["state"], "whole");
    let way = &found["ways"][0];
    assert!(commands(way)[0].starts_with("backup-cli restore "), "{way}");
    assert!(commands(way).last().unwrap().contains("important-plugin"), "{way}");
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 1, "nothing was changed");
    carry_out(&backed, way);
    oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
}

#[test]
fn of_a_damaged_backup_what_is_intact_is_offered_with_its_risk() {
    let (backed, _) = stopped(42);
    let whole = backed.dir().path("whole");
    copy_dir(&backed.store(), &whole).unwrap();
    spoil(&backed.store());
    let dest = elsewhere(&backed, &["hsm_secret"]);
    // A restore says so by itself, behind the error's own words and code.
    let restore = |more: &[&str]| {
        let cli = Cli::new(["restore", &backed.url()]).arg(&dest);
        more.iter().fold(cli, Cli::arg).run()
    };
    let failed = restore(&[]).expect_code(13);
    assert!(failed.stderr.starts_with("error: "), "{failed}");
    for words in ["what can be done, best first", "resume with risk", "--to-seq", "error: "] {
        assert!(failed.stderr.contains(words), "'{words}': {failed}");
    }
    let failed = restore(&["--json"]).expect_code(13);
    assert_eq!(failed.stderr.lines().count(), 1, "{failed}");
    assert_eq!(files_under(&backed.store()).len(), files_under(&whole).len(), "nobody claimed it");

    let found = plan(Some(&backed.url()), &dest, &[]);
    assert_eq!(kinds(&found), ["risk", "closing"], "{found}");
    let log = &found["found"]["logs"][0];
    assert_eq!(log["state"], "damaged");
    let seq = log["seq"].as_u64().unwrap();
    assert!(seq > 20, "{log}");
    carry_out(&backed, &found["ways"][0]);

    // It is what the whole backup holds at that place, and a node goes on from there.
    let there = backed.dir().path("there.sqlite3");
    let older = ["--to-seq", &seq.to_string(), "--accept-stale"];
    let cli = backed.restore_of(&format!("file://{}", whole.display()), &there);
    older.iter().fold(cli, Cli::arg).run().expect_success();
    let database = dest.join("lightningd.sqlite3");
    oracle::assert_same(&there, &database);
    let mut node = Node::new(NodeConfig::new(binaries::plugin(), &dest));
    node.start().unwrap();
    let sql = ["INSERT INTO vars (name, intval) VALUES ('resumed', 1)"];
    node.write(&lockstep_tests::Step::transaction(sql)).unwrap().expect_committed();
    node.stop().unwrap();
    let verify = Cli::new(["verify", "--lightning-dir"]).arg(&dest);
    verify.run().expect_success();
    // To go on with the damaged log itself is refused before anybody is shut out.
    let other = backed.dir().path("other");
    let key = backed.network_file("backup.key");
    let cli = Cli::new(["restore", &backed.url()]).arg(&other).arg("--key-file").arg(key);
    older.iter().fold(cli, Cli::arg).run().expect_code(13);
    assert_eq!(files_under(&backed.store()).len(), files_under(&whole).len());
}

#[test]
fn a_database_that_is_there_is_kept_where_the_backup_is_gone() {
    let (backed, node) = stopped(43);
    fs::remove_dir_all(backed.store()).unwrap();
    // Where the backup was, backup.lock says.
    let found = plan(None, &backed.network_dir(), &[]);
    assert_eq!(found["found"]["logs"][0]["state"], "away", "{found}");
    assert_eq!(kinds(&found), ["exact", "exact", "closing"], "{found}");
    let way = &found["ways"][0];
    assert!(way["what"].as_str().unwrap().contains("with a new backup"), "{way}");
    let closing = commands(&found["ways"][2]).join("\n");
    assert!(closing.contains("/NEW/LIGHTNING/"), "never over a database: {closing}");
    carry_out(&backed, way);
    let mut node = Node::new(NodeConfig::new(binaries::plugin(), node.directory()));
    node.start().unwrap();
    let sql = ["INSERT INTO vars (name, intval) VALUES ('resumed', 1)"];
    node.write(&lockstep_tests::Step::transaction(sql)).unwrap().expect_committed();
    node.stop().unwrap();
}

#[test]
fn a_database_is_judged_by_the_backup() {
    let (backed, node) = stopped(44);
    let found = plan(None, &backed.network_dir(), &[]);
    let what = found["ways"][0]["what"].as_str().unwrap();
    assert!(what.contains("nothing is lost"), "{found}");

    let old = backed.dir().path("old.sqlite3");
    fs::copy(node.database_path(), &old).unwrap();
    let mut workload = Workload::new(WorkloadConfig::seeded(45).lean());
    let mut node = Node::new(NodeConfig::new(binaries::plugin(), backed.network_dir()));
    node.start().unwrap();
    for _ in 0..workload.migrations_left() {
        workload.next();
    }
    for number in 0..5 {
        let sql = [format!("INSERT INTO vars (name, intval) VALUES ('later {number}', 1)")];
        node.write(&lockstep_tests::Step::transaction(sql)).unwrap().expect_committed();
    }
    node.stop().unwrap();
    let newest = backed.dir().path("newest.sqlite3");
    fs::rename(node.database_path(), &newest).unwrap();
    fs::rename(&old, node.database_path()).unwrap();
    let found = plan(None, &backed.network_dir(), &[]);
    assert_eq!(kinds(&found), ["exact", "closing"], "{found}");
    let way = &found["ways"][0];
    assert!(way["what"].as_str().unwrap().contains("must not be started"), "{way}");
    carry_out(&backed, way);
    oracle::assert_same(&newest, &node.database_path());

    // One that is no database any more.
    fs::write(node.database_path(), vec![7; 8192]).unwrap();
    let found = plan(None, &backed.network_dir(), &[]);
    assert!(found["found"]["database"]["error"].is_string(), "{found}");
    assert_eq!(kinds(&found), ["exact", "closing"], "{found}");
}

#[test]
fn without_a_backup_channels_are_closed_and_without_a_secret_nothing_is_done() {
    let (backed, _) = stopped(46);
    fs::write(backed.network_file("emergency.recover"), "not empty").unwrap();
    let dest = elsewhere(&backed, &["hsm_secret", "emergency.recover"]);
    let nowhere = backed.dir().file_url("nowhere");
    let failed = Cli::new(["restore", &nowhere]).arg(&dest).run().expect_code(10);
    for words in ["channel-closing recovery", "lightning-cli emergencyrecover", "away: "] {
        assert!(failed.stderr.contains(words), "'{words}': {failed}");
    }
    let found = plan(Some(&nowhere), &dest, &[]);
    assert_eq!(kinds(&found), ["exact", "closing"], "{found}");
    fs::remove_file(dest.join("emergency.recover")).unwrap();
    let told = Cli::new(["restore", "--plan", &nowhere]).arg(&dest).run().expect_success();
    for words in ["restorefrompeer", "--rescan=", "emergency.recover  none"] {
        assert!(told.stdout.contains(words), "'{words}': {told}");
    }
    let empty = backed.dir().make_dir("empty");
    let found = plan(None, &empty, &[]);
    assert_eq!(kinds(&found), ["exact", "nothing"], "{found}");
    // A backup that nothing opens yet.
    let found = plan(Some(&backed.url()), &empty, &[]);
    assert_eq!(found["found"]["logs"][0]["state"], "closed", "{found}");
    let line = commands(&found["ways"][0])[0].to_owned();
    assert!(line.ends_with("--words"), "{line}");
    let refused: Output = Cli::new(["restore"]).arg(&empty).run().expect_code(2);
    assert!(refused.stderr.contains("<URL>"), "{refused}");
}

#[test]
fn a_standby_is_promoted() {
    let (backed, node) = stopped(47);
    let dest = elsewhere(&backed, &["hsm_secret"]);
    Cli::new(["follow", "--once", &backed.url()]).arg(&dest).run().expect_success();
    let found = plan(Some(&backed.url()), &dest, &[]);
    let way = &found["ways"][0];
    assert!(commands(way)[0].starts_with("backup-cli promote "), "{way}");
    carry_out(&backed, way);
    oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
}
