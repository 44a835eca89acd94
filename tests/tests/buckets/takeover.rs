//! A node that was stopped in its tracks wakes up after its backup was restored elsewhere.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, reason_not_to_go_on};
use lockstep_tests::binaries::{Cli, plugin};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::servers::{Fault, Proxy, moto};
use lockstep_tests::sim::{Node, NodeConfig, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};

const RUNNING: &str = "only one copy of the node";

fn marked(mark: &str) -> Step {
    Step::transaction([format!("INSERT OR REPLACE INTO vars (name, intval) VALUES ('{mark}', 1)")])
}

fn signal(node: &Node, signal: &str) {
    let id = node.plugin().expect("it runs").id().to_string();
    let status = Command::new("kill").args(["-s", signal, &id]).status().expect("kill runs");
    assert!(status.success());
}

/// A directory on another machine, without a backup or a database so far.
fn elsewhere(backed: &Backed, name: &str) -> PathBuf {
    let dest = backed.dir().make_dir(format!("{name}/regtest"));
    for file in ["hsm_secret", "backup-credentials"] {
        fs::copy(backed.network_file(file), dest.join(file)).unwrap();
    }
    dest
}

fn restore(backed: &Backed, dest: &PathBuf) {
    Cli::new(["restore", "--take-over", &backed.url()]).arg(dest).run().expect_success();
}

fn running(backed: &Backed, seed: u64) -> (Node, Workload) {
    backed.init().run().expect_success();
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    (node, workload)
}

/// What the older node was refused, and that it cannot go on later either; the newer one does.
#[track_caller]
fn expect_the_heir_goes_on(backed: &Backed, old: &mut Node, message: &str, dest: PathBuf) {
    for words in ["was taken over", "backup-cli/", "for 'restore'", "hint: ", RUNNING] {
        assert!(message.contains(words), "{words}: {message}");
    }
    let mut heir = Node::launch(NodeConfig::new(plugin(), dest)).unwrap();
    for number in 0..3 {
        heir.write(&marked(&format!("heir {number}"))).unwrap().expect_committed();
    }
    assert_eq!(backed.check(&heir), Standing::Committed);
    let reason = reason_not_to_go_on(old);
    assert!(reason.contains("belongs to another copy of this node"), "{reason}");
    heir.write(&marked("still the heir")).unwrap().expect_committed();
    assert_eq!(backed.check(&heir), Standing::Committed);
    heir.stop().unwrap();
    backed.cli("verify").expect_success();
}

#[test]
fn a_quiet_node_on_a_bucket_is_not_shut_out_by_mistake() {
    let Some(server) = moto::shared() else { return };
    let backed = Backed::on(server, "alive");
    backed.init().run().expect_success();
    backed.set_in_lock("heartbeat_s", serde_json::json!(2));
    let mut workload = Workload::new(WorkloadConfig::seeded(9).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    let dest = elsewhere(&backed, "elsewhere");
    // Longer than a record alone shows that it lives.
    thread::sleep(Duration::from_secs(9));
    let refused = Cli::new(["restore", &backed.url()]).arg(&dest).run().expect_code(11);
    for words in ["looks alive", "for 'node'", "--take-over"] {
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
    assert!(!dest.join("backup.lock").exists());
    Backed::write(&mut node, &mut workload, 3);
    restore(&backed, &dest);
    let message = node.write(&marked("zombie")).unwrap().expect_refused();
    expect_the_heir_goes_on(&backed, &mut node, &message, dest);
}

#[test]
fn a_node_that_slept_through_a_restore_is_refused_its_next_write() {
    let Some(server) = moto::shared() else { return };
    let backed = Backed::on(server, "sleeper");
    let (mut node, _) = running(&backed, 1);
    let before = node.ledger().committed_version();
    signal(&node, "STOP");
    let dest = elsewhere(&backed, "restored");
    restore(&backed, &dest);
    lockstep_tests::oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
    signal(&node, "CONT");
    let message = node.write(&marked("zombie")).unwrap().expect_refused();
    assert_eq!(node.ledger().committed_version(), before);
    expect_the_heir_goes_on(&backed, &mut node, &message, dest);
}

#[test]
fn a_node_that_slept_amid_a_write_is_acknowledged_or_restored_without_it() {
    let Some(server) = moto::shared() else { return };
    for pause_ms in [0, 1, 3, 6, 10] {
        let backed = Backed::on(server, "amid");
        let (mut node, _) = running(&backed, 2);
        let batch = node.begin(&marked("amid")).unwrap();
        let id = node.send_write(&batch).unwrap();
        thread::sleep(Duration::from_millis(pause_ms));
        signal(&node, "STOP");
        let dest = elsewhere(&backed, "restored");
        restore(&backed, &dest);
        let heir = lockstep_tests::sim::Database::open(dest.join("lightningd.sqlite3"), false);
        let restored = heir.unwrap().data_version().unwrap() == batch.data_version;
        signal(&node, "CONT");
        let answer = node.answer(&id, Duration::from_secs(30)).unwrap();
        let acknowledged = node.settle(answer.clone()).unwrap().is_committed();
        assert!(!acknowledged || restored, "{pause_ms} ms: an acknowledged batch is lost");
        let message = match node.is_running() {
            true => node.write(&marked("zombie")).unwrap().expect_refused(),
            false => format!("{answer:?}"),
        };
        expect_the_heir_goes_on(&backed, &mut node, &message, dest);
    }
}

#[test]
fn a_record_that_arrives_after_the_restore_is_not_acknowledged() {
    let Some(server) = moto::shared() else { return };
    let proxy = Proxy::before(server);
    // Its writer is behind the proxy, the restore is not.
    let backed = Backed::on(server, "late");
    let endpoint = |env: &[(String, String)]| {
        env.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>()
    };
    let dest = elsewhere(&backed, "restored");
    fs::write(backed.network_file("backup-credentials"), endpoint(&proxy.env)).unwrap();
    let (mut node, _) = running(&backed, 3);
    static RESTORED: AtomicBool = AtomicBool::new(false);
    let before = proxy.count("PUT");
    proxy.plan(move |request| match request.method == "PUT" {
        true => Fault::Held(&RESTORED),
        false => Fault::Pass,
    });
    let batch = node.begin(&marked("late")).unwrap();
    let id = node.send_write(&batch).unwrap();
    wait_for("the record", || (proxy.count("PUT") > before).then_some(()));
    restore(&backed, &dest);
    RESTORED.store(true, Ordering::Release);
    let answer = node.answer(&id, Duration::from_secs(30)).unwrap();
    let message = node.settle(answer).unwrap().expect_refused();
    expect_the_heir_goes_on(&backed, &mut node, &message, dest);
}
