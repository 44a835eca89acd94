//! Servers that are not what they seem: with another time, a listing that lags behind, or no idea of creating an object
//! once.

use std::fs;

use lockstep_tests::Step;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::plugin;
use lockstep_tests::servers::{Conditions, Memory};
use lockstep_tests::sim::{Node, NodeConfig, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use serde_json::{Value, json};

const HOUR_S: i64 = 3600;

fn running(server: &Memory) -> (Backed, Node, Workload) {
    let backed = Backed::at(server.prefix("node"), server.env.clone());
    backed.init().run().expect_success();
    let mut workload = Workload::new(WorkloadConfig::seeded(1).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    (backed, node, workload)
}

fn marked(mark: &str) -> Step {
    Step::transaction([format!("INSERT INTO vars (name, intval) VALUES ('{mark}', 1)")])
}

#[test]
fn a_clock_that_is_wrong_is_named() {
    let server = Memory::start();
    let (backed, mut node, mut workload) = running(&server);
    backed.set_in_lock("stall_timeout_s", json!(3));
    node.stop().unwrap();
    node.start().unwrap();
    let before = node.ledger().committed_version();
    for ahead in [HOUR_S, -HOUR_S] {
        server.set_clock_ahead(ahead);
        let elsewhere = Backed::at(server.prefix("skewed"), server.env.clone());
        let output = elsewhere.init().run().expect_code(1);
        for words in ["this machine's clock is wrong", "hint: set the clock"] {
            assert!(output.stderr.contains(words), "{output}");
        }
    }
    let message = node.write(&marked("skewed")).unwrap().expect_refused();
    assert!(message.contains("this machine's clock is wrong"), "{message}");
    assert_eq!(node.ledger().committed_version(), before);
    server.set_clock_ahead(0);
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 5);
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn a_listing_that_lags_behind_hides_nothing_that_was_acknowledged() {
    let server = Memory::start();
    let (backed, mut node, mut workload) = running(&server);
    for lag in [1, 2, 5] {
        server.lag_behind(lag);
        assert_eq!(backed.check(&node), Standing::Committed);
        node.kill().unwrap();
        node.start().unwrap();
        Backed::write(&mut node, &mut workload, 10);
        assert_eq!(backed.check(&node), Standing::Committed);
    }
    server.lag_behind(0);
    assert_eq!(backed.check(&node), Standing::Committed);
    backed.cli("verify").expect_success();
}

/// Where creates are not exclusive that is on record, and a second writer is found out all the same.
fn advisory(conditions: Conditions) {
    let server = Memory::start();
    server.treat_conditions(conditions);
    let (backed, mut first, mut workload) = running(&server);
    let lock = fs::read(backed.network_file("backup.lock")).unwrap();
    let lock: Value = serde_json::from_slice(&lock).unwrap();
    assert!(lock.to_string().contains(r#""fencing":"advisory""#), "{conditions:?}: {lock}");
    let status = backed.cli("status").expect_success();
    assert!(status.stdout.contains("advisory"), "{conditions:?}: {status}");
    let copy = backed.dir().make_dir("copy/regtest");
    for file in ["backup.lock", "backup.key", "backup-credentials", "hsm_secret"] {
        fs::copy(backed.network_file(file), copy.join(file)).unwrap();
    }
    first.oracle(&copy.join("lightningd.sqlite3")).unwrap();
    let mut second = Node::launch(NodeConfig::new(plugin(), copy)).unwrap();
    second.write(&marked("second")).unwrap().expect_committed();
    let message = first.write(&marked("first")).unwrap().expect_refused();
    assert!(message.contains("was taken over"), "{conditions:?}: {message}");
    Backed::write(&mut second, &mut workload, 1);
    assert_eq!(backed.check(&second), Standing::Committed);
}

#[test]
fn a_server_that_overwrites_what_it_is_asked_to_create_is_found_out() {
    advisory(Conditions::Ignored);
}

#[test]
fn a_server_that_cannot_create_is_found_out() {
    advisory(Conditions::Refused);
}
