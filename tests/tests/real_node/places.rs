//! `backup-cli destination` beside a running lightningd: the plugin goes on at the other places without a restart.

use std::fs;

use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::oracle;
use lockstep_tests::real::backup::WALLET;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions};
use lockstep_tests::testdir::TestDir;
use serde_json::{Value, json};

fn write(node: &Node) {
    let key = json!(["lockstep", fastrand::u64(..).to_string()]);
    node.caller().call("datastore", &[("key", key), ("hex", json!("00"))]).unwrap();
}

fn destination(options: &NodeOptions, args: &[&str]) -> Output {
    let words = ["destination"].iter().chain(args);
    Cli::new(words).arg("--lightning-dir").arg(options.network_dir()).run().expect_success()
}

fn states(node: &Node) -> Vec<Value> {
    let status = node.backup_status();
    status["destinations"].as_array().unwrap().iter().map(|of| of["state"].clone()).collect()
}

#[test]
fn a_place_is_added_and_another_removed_while_lightningd_runs() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node")).production();
    let _first = Backup::init(&options, dir.file_url("store"));
    let node = options.clone().start();
    write(&node);

    let added = destination(&options, &["add", &dir.file_url("nas"), "--name", "nas"]);
    assert!(
        added.stdout.contains("lightningd writes to 'nas' from its next transaction on"),
        "{added}"
    );
    wait_for("both are current", || {
        write(&node);
        (states(&node) == ["current", "current"]).then_some(())
    });
    // A transaction that comes while the new one is a record behind leaves it to the next to let it count.
    for _ in 0..10 {
        write(&node);
    }
    let removed = destination(&options, &["remove", "primary"]);
    assert!(removed.stdout.contains("lightningd does not write there any more"), "{removed}");
    write(&node);
    assert_eq!(states(&node).len(), 1);
    fs::remove_dir_all(dir.path("store")).unwrap();
    write(&node);
    node.stop();

    let nas = Backup::at(dir.file_url("nas"));
    let restored = dir.path("restored.sqlite3");
    nas.look(&options, &restored);
    oracle::assert_same(&options.network_dir().join(WALLET), &restored);
    let node = options.clone().start();
    write(&node);
    node.stop();
    nas.verify(&options);
}
