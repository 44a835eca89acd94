//! A fresh node: from an empty directory on it is backed up.

use std::fs;
use std::time::Duration;

use lockstep_tests::oracle;
use lockstep_tests::real::backup::{WALLET, data_version};
use lockstep_tests::real::wait::{wait_for, within};
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions, long};
use lockstep_tests::testdir::TestDir;
use serde_json::json;

#[test]
fn a_fresh_node_is_backed_up_from_its_first_transaction_and_current_at_each_start() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node")).production();
    let backup = Backup::init(&options, dir.file_url("store"));

    let mut node = options.start();
    expect_current(&node);
    wait_for("the node slot", || {
        let slots = node.backup_status()["slots"].clone();
        slots.as_array()?.contains(&json!("node")).then_some(())
    });
    let (id, secret) = (node.id(), dir.path("secret"));
    fs::copy(node.network_dir().join("hsm_secret"), &secret).unwrap();

    for round in 0..if long() { 10 } else { 3 } {
        let options = node.stop();
        let status = backup.status(&options);
        assert_eq!(status["destinations"][0]["state"], "current", "stop {round}: {status}");
        node = options.start();
        expect_current(&node);
    }
    let stopped = node.stop();
    backup.verify(&stopped);

    let restored = stopped.clone().moved_to(dir.path("restored"));
    backup.restore_node(&restored, &secret);
    let (had, got) = (stopped.network_dir().join(WALLET), restored.network_dir().join(WALLET));
    assert_eq!(data_version(&got), data_version(&had));
    oracle::assert_same(&had, &got);
    let node = restored.start();
    assert_eq!(node.id(), id);
    expect_current(&node);
}

/// Every transaction that the node has made by now is at the destination.
fn expect_current(node: &Node) {
    let status = wait_for("a current destination", || {
        let status = node.backup_status();
        (status["destinations"][0]["state"] == "current").then_some(status)
    });
    let head = status["destinations"][0]["data_version"].as_u64().unwrap();
    let version = data_version(&node.network_dir().join(WALLET));
    assert!(u64::from(version) >= head, "head {head}, database {version}");
    let later = node.backup_status()["destinations"][0]["data_version"].as_u64().unwrap();
    assert!(later >= u64::from(version), "head {later}, database {version}");
}

#[test]
fn where_lightningd_can_do_without_the_plugin_log_and_status_warn() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node"));
    Backup::init(&options, dir.file_url("store"));

    let node = options.clone().with_unimportant_plugin().start();
    wait_for("a warning", || warns(&node).then_some(()));
    assert!(node.log().contains(WARNING), "{}", node.log_tail());
    expect_current(&node);
    node.stop();

    let said = options.log().matches(WARNING).count();
    let node = options.clone().start();
    expect_current(&node);
    assert_eq!(within(LOOK_AROUND, || warns(&node).then_some(())), None);
    assert_eq!(node.stop().log().matches(WARNING).count(), said);
}

const WARNING: &str = "this plugin is not important to lightningd";
/// By then it would have warned.
const LOOK_AROUND: Duration = Duration::from_secs(2);

fn warns(node: &Node) -> bool {
    node.backup_status()["warnings"].to_string().contains(WARNING)
}
