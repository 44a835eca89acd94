//! A destination that shows an older state, whole and authentic: nothing in it tells. It is found out where somebody
//! knows better.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::sim::Node;
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::{Step, oracle};
use serde_json::Value;

fn write(node: &mut Node, rows: u32) {
    for row in 0..rows {
        let sql = format!("INSERT INTO t (b) VALUES ('{row}')");
        node.write(&Step::transaction([sql])).unwrap().expect_committed();
    }
}

/// A node that is down, whose destination was put back to where it was five batches ago.
struct RolledBack {
    backed: Backed,
    node: Node,
    /// The newest record that was acknowledged, as `status` showed it.
    seq: u64,
    /// The database at the older state.
    older: PathBuf,
}

impl RolledBack {
    fn new() -> Self {
        let backed = Backed::fresh();
        let mut node = backed.launch();
        node.write(&Step::small_schema()).unwrap().expect_committed();
        write(&mut node, 5);
        node.stop().unwrap();
        let (copy, older) = (backed.dir().path("copy"), backed.dir().path("older.sqlite3"));
        copy_dir(&backed.store(), &copy).unwrap();
        node.oracle(&older).unwrap();
        node.start().unwrap();
        write(&mut node, 5);
        node.stop().unwrap();
        let seq = seq_in(&backed.cli("status"));
        fs::remove_dir_all(backed.store()).unwrap();
        copy_dir(&copy, &backed.store()).unwrap();
        Self { backed, node, seq, older }
    }

    fn restore(&self, dest: &Path) -> Cli {
        self.backed.restore(dest)
    }
}

/// The number that `status` says should be written down.
fn seq_in(status: &Output) -> u64 {
    let (_, behind) = status.stdout.split_once("'--expect-seq ").expect("a seq to write down");
    behind.split_once('\'').expect("its end").0.parse().expect("a number")
}

#[track_caller]
fn assert_refused(output: &Output, by: &str, seq: u64) {
    assert_eq!(output.code, Some(14), "{output}");
    assert!(output.stderr.contains("has lost records: it ends at seq "), "{output}");
    assert!(output.stderr.contains(&format!("{by} knows of seq {seq}")), "{output}");
    assert!(output.stderr.contains("hint: an older state was put there"), "{output}");
}

#[test]
fn a_lone_destination_can_roll_back_what_nobody_else_knows() {
    let scene = RolledBack::new();
    let dest = scene.backed.new_dest();
    // This is the one thing that it can do: a true state, and not the newest.
    scene.restore(&dest).run().expect_success();
    oracle::assert_same(&scene.older, &dest);
}

#[test]
fn a_number_that_was_written_down_finds_out_a_rollback() {
    let scene = RolledBack::new();
    let seq = scene.seq.to_string();
    let dest = scene.backed.new_dest();
    let output = scene.restore(&dest).arg("--expect-seq").arg(&seq).run();
    assert_refused(&output, "--expect-seq", scene.seq);
    assert!(!dest.exists());
    let (_, end) = output.stderr.split_once("it ends at seq ").unwrap();
    let end: u64 = end.split_once(',').unwrap().0.parse().unwrap();
    let output = scene.restore(&dest).arg("--expect-seq").arg(&seq).arg("--accept-stale").run();
    assert!(output.stderr.contains("warning: "), "{output}");
    oracle::assert_same(&scene.older, &dest);
    // What is there is there.
    let there = scene.backed.restore(&scene.backed.new_dest()).arg("--expect-seq");
    there.arg(end.to_string()).run().expect_success();
}

#[test]
fn the_nodes_own_directory_finds_out_a_rollback() {
    let scene = RolledBack::new();
    let directory = scene.backed.network_dir();
    // The database is lost, the rest of the directory is not.
    fs::remove_file(scene.node.database_path()).unwrap();
    let witness: Value =
        serde_json::from_slice(&fs::read(directory.join("backup.witness")).unwrap()).unwrap();
    let known = witness["seq"].as_u64().unwrap();
    assert!(known + 1 >= scene.seq, "{witness}");
    let restore = || Cli::new(["restore", &scene.backed.url()]).arg(&directory);
    let output = restore().run();
    assert_refused(&output, "backup.witness", known);
    assert!(!scene.node.database_path().exists());
    restore().arg("--accept-stale").run().expect_success();
    oracle::assert_same(&scene.older, &scene.node.database_path());
    // Who accepted it is not told again.
    let mut node = Node::launch(scene.backed.config()).unwrap();
    write(&mut node, 1);
    assert!(!node.logged("has lost records"), "{:?}", node.logs());
}

#[test]
fn a_node_that_starts_on_a_log_that_was_rolled_back_says_so_and_loses_nothing() {
    let mut scene = RolledBack::new();
    scene.node.start().unwrap();
    write(&mut scene.node, 1);
    assert!(scene.node.logged("has lost records: it ends at seq "), "{:?}", scene.node.logs());
    assert!(scene.node.logged("backup.witness knows of seq "));
    // The database was ahead: a snapshot of it made up for what is gone.
    scene.backed.check(&scene.node);
    scene.node.stop().unwrap();
    scene.node.start().unwrap();
    write(&mut scene.node, 10);
    scene.node.stop().unwrap();
    scene.backed.check_same_as(&scene.node.database_path());
}

#[test]
fn a_second_destination_finds_out_a_rollback() {
    let backed = Backed::without_backup();
    let second = backed.dir().file_url("second");
    backed.init().arg(&second).run().expect_success();
    let mut node = backed.launch();
    node.write(&Step::small_schema()).unwrap().expect_committed();
    write(&mut node, 5);
    node.stop().unwrap();
    let copy = backed.dir().path("copy");
    copy_dir(&backed.store(), &copy).unwrap();
    node.start().unwrap();
    write(&mut node, 5);
    node.stop().unwrap();
    fs::remove_dir_all(backed.store()).unwrap();
    copy_dir(&copy, &backed.store()).unwrap();
    // Asked for by either name, the newest is what is restored.
    for url in [backed.url(), second] {
        let dest = backed.new_dest();
        backed.restore_of(&url, &dest).run().expect_success();
        oracle::assert_same(&node.database_path(), &dest);
    }
}
