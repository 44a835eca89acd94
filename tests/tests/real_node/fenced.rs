//! One node at a time: who restores takes the backup over, and the node that had it stops before it
//! commits anything more.

use std::thread;
use std::time::Duration;

use lockstep_tests::oracle;
use lockstep_tests::real::backup::{Found, WALLET, compare_with_dead, data_version};
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions};
use lockstep_tests::testdir::TestDir;
use serde_json::json;

fn invoice(node: &Node, label: &str) -> Result<(), String> {
    let params = [
        ("amount_msat", json!(1_000)),
        ("label", json!(format!("{label} '\u{1f511}'"))),
        ("description", json!("")),
    ];
    node.try_call("invoice", &params).map(drop)
}

#[test]
fn a_node_whose_backup_was_restored_elsewhere_stops_before_its_next_commit() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let old = NodeOptions::new(&daemons, &bitcoind, dir.path("old")).production();
    let backup = Backup::init(&old, dir.file_url("store"));
    let mut node = old.clone().start();
    invoice(&node, "before").unwrap();
    // Nothing is on its way.
    thread::sleep(Duration::from_secs(2));

    let new = NodeOptions::new(&daemons, &bitcoind, dir.path("new")).production();
    backup.restore_node(&new, &old.network_dir().join("hsm_secret"));
    let committed = data_version(&old.network_dir().join(WALLET));
    oracle::assert_same(&old.network_dir().join(WALLET), &new.network_dir().join(WALLET));

    assert!(invoice(&node, "after").is_err(), "the old node went on");
    assert!(!node.wait_for_end(Duration::from_secs(30)).success());
    assert_eq!(data_version(&old.network_dir().join(WALLET)), committed);
    let log = node.log();
    assert!(log.contains("was taken over"), "{log}");
    drop(node);

    let node = new.start();
    invoice(&node, "in the new life").unwrap();
    let new = node.stop();
    // By now the old database is older than its backup.
    let before = backup.head(&new);
    assert!(!old.clone().start_refused().success());
    assert_eq!(backup.head(&new), before);
    assert_eq!(data_version(&old.network_dir().join(WALLET)), committed);
    new.start().stop();
}

/// The record that the old node was writing lies behind what was restored, but was never acknowledged.
#[test]
fn a_node_that_writes_while_its_backup_is_restored_elsewhere_loses_nothing_that_it_committed() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let old = NodeOptions::new(&daemons, &bitcoind, dir.path("old")).production();
    let backup = Backup::init(&old, dir.file_url("store"));
    let mut node = old.clone().start();
    invoice(&node, "first").unwrap();
    let caller = node.caller();
    let writer = thread::spawn(move || {
        let mut number = 0;
        let invoice = |number: u32| {
            let label = json!(format!("amid the restore {number}"));
            let params =
                [("amount_msat", json!(1_000)), ("label", label), ("description", json!(""))];
            caller.call("invoice", &params)
        };
        while invoice(number).is_ok() {
            number += 1;
        }
        number
    });
    thread::sleep(Duration::from_millis(200));
    let new = NodeOptions::new(&daemons, &bitcoind, dir.path("new")).production();
    backup.restore_node(&new, &old.network_dir().join("hsm_secret"));
    assert!(!node.wait_for_end(Duration::from_secs(30)).success());
    assert!(writer.join().unwrap() > 0);
    drop(node);
    let (had, got) = (old.network_dir().join(WALLET), new.network_dir().join(WALLET));
    let found = compare_with_dead(&had, &got, &dir.path("scratch"), None);
    assert!(matches!(found, Found::Same | Found::InFlightUnknown), "{found:?}");
    new.start().stop();
}
