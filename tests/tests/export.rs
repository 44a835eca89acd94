//! `backup-cli export`: what it writes is the node's database again, in each format.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lockstep_node::NodeSecret;
use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::sim::Node;
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::{Workload, WorkloadConfig};
use lockstep_tests::{Step, oracle};
use rusqlite::Connection;

fn running(backed: &Backed) -> (Node, Workload) {
    // With rowids that count, text of any kind, tables of every shape.
    let mut workload = Workload::new(WorkloadConfig::seeded(12));
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 60);
    (node, workload)
}

fn export(backed: &Backed, file: &Path, more: &[&str]) -> Output {
    let cli = Cli::new(["export", "--lightning-dir"]).arg(backed.network_dir());
    more.iter().fold(cli.arg("--to").arg(file), Cli::arg).run()
}

#[track_caller]
fn exported(backed: &Backed, name: &str) -> PathBuf {
    let file = backed.dir().make_dir("out").join(name);
    let before = files_under(&backed.store());
    let output = export(backed, &file, &[]).expect_success();
    assert!(output.stdout.contains("Start no second node"), "{output}");
    assert_eq!(files_under(&backed.store()), before, "the backup is only read");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let there = fs::read_dir(file.parent().unwrap()).unwrap();
    assert_eq!(there.count(), 1, "nothing is beside it");
    file
}

#[test]
fn a_sqlite_file_is_the_database() {
    let backed = Backed::fresh();
    let (mut node, mut workload) = running(&backed);
    let file = exported(&backed, "node.sqlite3");
    oracle::assert_same(&node.database_path(), &file);
    // The node goes on.
    Backed::write(&mut node, &mut workload, 3);
    node.stop().unwrap();
}

#[test]
fn sql_text_makes_the_database_again() {
    let backed = Backed::fresh();
    let (node, _) = running(&backed);
    let file = exported(&backed, "node.sql");
    let made = backed.dir().path("made.sqlite3");
    let text = fs::read_to_string(&file).unwrap();
    Connection::open(&made).unwrap().execute_batch(&text).unwrap();
    oracle::assert_same(&node.database_path(), &made);
    // And by SQLite's own shell, where there is one.
    let shell = Path::new("/usr/bin/sqlite3");
    if shell.exists() {
        let made = backed.dir().path("shell.sqlite3");
        Cli::program(shell, ["-bail"]).arg(&made).stdin(text).run().expect_success();
        oracle::assert_same(&node.database_path(), &made);
    }
}

#[test]
fn a_backup_of_the_python_plugin_is_imported_again_equal() {
    let backed = Backed::fresh();
    let (mut node, _) = running(&backed);
    // The id that goes with its secret, as any node has.
    let id = NodeSecret::from_raw(&[1; 32]).node_id();
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let sql = format!("UPDATE vars SET blobval = x'{id}' WHERE name = 'node_id'");
    node.write(&Step::transaction([sql])).unwrap().expect_committed();
    let file = exported(&backed, "node.bkp");
    node.stop().unwrap();
    let database = fs::read(&file).unwrap().split_off(512 + 9);
    let inside = backed.dir().path("inside.sqlite3");
    fs::write(&inside, database).unwrap();
    oracle::assert_same(&node.database_path(), &inside);

    let fresh = TestDir::new();
    fresh.write_hsm_secret(1);
    let import = Cli::new(["import"]).arg(&file).arg(fresh.file_url("store"));
    let import = import.arg("--write-database").arg("--lightning-dir").arg(fresh.network_dir());
    import.run().expect_success();
    let imported = fresh.network_dir().join("lightningd.sqlite3");
    oracle::assert_same(&node.database_path(), &imported);
}

#[test]
fn nothing_is_written_over_and_a_name_must_say_what_it_is() {
    let backed = Backed::fresh();
    let (mut node, _) = running(&backed);
    node.stop().unwrap();
    let there = backed.dir().path("there.sql");
    fs::write(&there, "mine").unwrap();
    let refused = export(&backed, &there, &[]).expect_code(1);
    assert!(refused.stderr.contains("already exists"), "{refused}");
    assert_eq!(fs::read(&there).unwrap(), b"mine");

    let odd = backed.dir().path("odd");
    let refused = export(&backed, &odd, &[]).expect_code(1);
    assert!(refused.stderr.contains("--format sqlite, sql or python"), "{refused}");
    let report = export(&backed, &odd, &["--format", "sqlite", "--json"]).expect_success().json();
    assert_eq!(report["format"], "sqlite");
    oracle::assert_same(&node.database_path(), &odd);

    let nowhere = Cli::new(["export", &backed.dir().file_url("nowhere"), "--to"]);
    let key = backed.network_file("backup.key");
    let to = backed.dir().path("x.sqlite3");
    nowhere.arg(&to).arg("--key-file").arg(key).run().expect_code(10);
    assert!(!to.exists());
}
