//! One writer: whoever took over last is acknowledged, and nobody else; the one before is told
//! before its node commits, and by whom.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::thread;

use fastrand::Rng;
use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, ci_or_long, reason_not_to_go_on};
use lockstep_tests::binaries::{Cli, plugin};
use lockstep_tests::oracle;
use lockstep_tests::sim::{Node, NodeConfig, Outcome, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};

fn running(seed: u64) -> (Backed, Node, Workload) {
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    (backed, node, workload)
}

/// The whole directory of a node as it is now, on another machine.
fn copy_of(backed: &Backed, node: &Node, name: &str) -> NodeConfig {
    let copy = backed.dir().make_dir(format!("{name}/regtest"));
    for file in ["backup.lock", "backup.key", "hsm_secret"] {
        let _ = fs::remove_file(copy.join(file));
        fs::copy(backed.network_file(file), copy.join(file)).unwrap();
    }
    let database = copy.join("lightningd.sqlite3");
    let _ = fs::remove_file(&database);
    node.oracle(&database).unwrap();
    NodeConfig::new(plugin(), copy)
}

/// A batch that can be told from any other.
fn marked(mark: &str) -> Step {
    Step::transaction([format!("INSERT OR REPLACE INTO vars (name, intval) VALUES ('{mark}', 1)")])
}

/// `backup-cli restore` into a node's directory, which shuts the old node out.
fn take_over(backed: &Backed, name: &str) -> PathBuf {
    let dest = backed.dir().make_dir(format!("{name}/regtest"));
    let secret = backed.network_file("hsm_secret");
    fs::copy(&secret, dest.join("hsm_secret")).unwrap();
    Cli::new(["restore", "--take-over", &backed.url()]).arg(&dest).run().expect_success();
    dest
}

/// The zombie's next write: refused, not committed, and told by whom.
#[track_caller]
fn assert_shut_out(zombie: &mut Node, step: &Step, by: &[&str]) {
    let before = zombie.ledger().committed_version();
    let outcome = zombie.write(step).unwrap();
    let message = outcome.expect_refused();
    for words in ["was taken over", "hint: ", "only one copy of the node"].iter().chain(by) {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(zombie.ledger().committed_version(), before);
    assert!(!zombie.is_running());
}

/// Its first write is refused.
#[track_caller]
fn assert_disabled(node: &mut Node, words: &str) {
    let reason = reason_not_to_go_on(node);
    assert!(reason.contains(words), "{reason}");
}

#[test]
fn a_restore_shuts_the_old_node_out_before_its_next_commit() {
    let (backed, mut zombie, mut workload) = running(1);
    let dest = take_over(&backed, "restored");
    oracle::assert_same(&zombie.database_path(), &dest.join("lightningd.sqlite3"));
    let pid_and_host = ["backup-cli/", "for 'restore'", "process ", " on "];
    assert_shut_out(&mut zombie, &marked("zombie"), &pid_and_host);

    let mut heir = Node::launch(NodeConfig::new(plugin(), &dest)).unwrap();
    Backed::write(&mut heir, &mut workload, 5);
    assert_eq!(backed.check(&heir), Standing::Committed);
    assert_disabled(&mut zombie, "belongs to another copy of this node: it was restored on");
    Backed::write(&mut heir, &mut workload, 5);
    assert_eq!(backed.check(&heir), Standing::Committed);
}

#[test]
fn a_restored_node_may_start_where_the_old_one_left_a_record_behind() {
    let (backed, mut zombie, mut workload) = running(2);
    let dest = take_over(&backed, "restored");
    // Stored before the plugin looks whether it may acknowledge; that it never does.
    assert_shut_out(&mut zombie, &marked("zombie"), &[]);
    let mut heir = Node::launch(NodeConfig::new(plugin(), &dest)).unwrap();
    heir.write(&Step::foreign_keys(false)).unwrap().expect_committed();
    heir.write(&Step::foreign_keys(true)).unwrap().expect_committed();
    Backed::write(&mut heir, &mut workload, 3);
    assert_eq!(backed.check(&heir), Standing::Committed);
    let database = rusqlite::Connection::open(backed.restored()).unwrap();
    let sql = "SELECT count(*) FROM vars WHERE name = 'zombie'";
    let zombies: i64 = database.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(zombies, 0, "what was refused is restored");
    backed.cli("verify").expect_success();
}

#[test]
fn a_restore_of_a_single_file_shuts_out_as_well_and_one_without_claim_does_not() {
    let (backed, mut node, mut workload) = running(3);
    for _ in 0..3 {
        backed.restored();
        Backed::write(&mut node, &mut workload, 2);
    }
    let dest = backed.new_dest();
    Cli::new(["restore", "--take-over", &backed.url()])
        .arg(&dest)
        .arg("--key-file")
        .arg(backed.network_file("backup.key"))
        .run()
        .expect_success();
    assert_shut_out(&mut node, &marked("zombie"), &["for 'restore'"]);
}

#[test]
fn a_second_node_from_a_copy_shuts_the_first_one_out() {
    let (backed, mut first, mut workload) = running(4);
    let mut second = Node::launch(copy_of(&backed, &first, "copy")).unwrap();
    // Started only: lightningd may still think better of it.
    Backed::write(&mut first, &mut workload, 1);
    second.kill().unwrap();
    let mut second = Node::launch(copy_of(&backed, &first, "copy")).unwrap();
    second.write(&marked("second")).unwrap().expect_committed();
    let process = format!("process {}", second.plugin().unwrap().id());
    assert_shut_out(&mut first, &marked("first"), &["cln-lockstep/", "for 'node'", &process]);
    assert_eq!(backed.check(&second), Standing::Committed);
    second.write(&marked("on")).unwrap().expect_committed();
    assert_eq!(backed.check(&second), Standing::Committed);
    assert_disabled(&mut first, "older than its backup");
}

#[test]
fn nodes_that_take_over_from_each_other_make_one_history() {
    let (backed, node, _) = running(5);
    let mut rng = Rng::with_seed(5);
    let mut nodes = vec![node];
    for round in 0..ci_or_long(12, 100) {
        let leader = nodes.last_mut().unwrap();
        for write in 0..rng.u32(0..3) {
            let step = marked(&format!("{round} {write}"));
            leader.write(&step).unwrap().expect_committed();
        }
        let config = copy_of(&backed, nodes.last().unwrap(), &format!("copy-{round}"));
        let mut next = Node::launch(config).unwrap();
        next.write(&marked(&format!("taken {round}"))).unwrap().expect_committed();
        // One of those before tries to go on, the newest most often.
        let zombie = nodes.len() - 1 - rng.usize(..nodes.len().min(2));
        if nodes[zombie].is_running() {
            assert_shut_out(&mut nodes[zombie], &marked("zombie"), &["for 'node'"]);
        }
        nodes.push(next);
        if round % 4 == 3 {
            assert_eq!(backed.check(nodes.last().unwrap()), Standing::Committed);
        }
    }
    assert_eq!(backed.check(nodes.last().unwrap()), Standing::Committed);
    backed.cli("verify").expect_success();
}

#[test]
fn of_two_nodes_that_write_at_the_same_time_one_goes_on_and_its_database_is_restored() {
    for round in 0..ci_or_long(6, 60) {
        let (backed, mut first, _) = running(100 + round);
        let fork = first.ledger().committed_version().unwrap();
        let config = copy_of(&backed, &first, "copy");
        let barrier = Arc::new(Barrier::new(2));
        let at = barrier.clone();
        let writer = thread::spawn(move || {
            at.wait();
            let outcome = write_until_refused(&mut first, "first");
            (first, outcome)
        });
        barrier.wait();
        let mut second = Node::launch(config).unwrap();
        let second_refused = write_until_refused(&mut second, "second");
        let (first, first_refused) = writer.join().unwrap();
        // A version that both have acknowledged is one that the first one may never have committed, as
        // far as the second one could know: the last one before it was shut out.
        let acknowledged = |node: &Node| -> Vec<u32> {
            node.ledger().acknowledged().filter(|version| *version > fork).collect()
        };
        let (ours, theirs) = (acknowledged(&first), acknowledged(&second));
        let twice: Vec<_> = ours.iter().filter(|version| theirs.contains(version)).collect();
        assert!(twice.is_empty() || twice == [ours.last().unwrap()], "{ours:?} and {theirs:?}");
        match second_refused {
            None => {
                let message = first_refused.expect("the first one is shut out");
                assert!(message.contains("was taken over"), "{message}");
                assert_eq!(backed.check(&second), Standing::Committed);
            }
            // The first one was quicker by more than the one batch that nobody can judge.
            Some(message) => {
                assert!(message.contains("older than its backup"), "{message}");
                if let Some(message) = first_refused {
                    // Only if it was that quick between the second one's look and its claim.
                    assert!(message.contains("was taken over"), "{message}");
                }
                let standing = backed.check(&first);
                assert!(matches!(standing, Standing::Committed | Standing::Pending { .. }));
            }
        }
        backed.cli("verify").expect_success();
    }
}

/// Writes, and gives the refusal if there was one.
fn write_until_refused(node: &mut Node, who: &str) -> Option<String> {
    for number in 0..60 {
        match node.write(&marked(&format!("{who} {number}"))).unwrap() {
            Outcome::Committed { .. } => {}
            other => return Some(other.expect_refused()),
        }
    }
    None
}

#[test]
fn an_old_node_that_was_down_during_the_restore_is_not_started() {
    let (backed, mut old, mut workload) = running(7);
    old.stop().unwrap();
    let dest = take_over(&backed, "restored");
    // Both databases are the same now; whichever goes on, the other must not.
    assert_disabled(&mut old, "belongs to another copy of this node: it was restored on");
    let mut heir = Node::launch(NodeConfig::new(plugin(), dest)).unwrap();
    Backed::write(&mut heir, &mut workload, 3);
    assert_disabled(&mut old, "belongs to another copy of this node: it was restored on");
    assert_eq!(backed.check(&heir), Standing::Committed);
}

#[test]
fn of_two_restores_the_later_one_goes_on() {
    let (backed, mut old, mut workload) = running(6);
    old.stop().unwrap();
    let one = take_over(&backed, "one");
    let two = take_over(&backed, "two");
    let mut one = Node::new(NodeConfig::new(plugin(), one));
    assert_disabled(&mut one, "belongs to another copy of this node");
    let mut two = Node::launch(NodeConfig::new(plugin(), two)).unwrap();
    Backed::write(&mut two, &mut workload, 3);
    assert_disabled(&mut one, "belongs to another copy of this node");
    assert_disabled(&mut old, "belongs to another copy of this node");
    Backed::write(&mut two, &mut workload, 3);
    assert_eq!(backed.check(&two), Standing::Committed);
}

#[test]
fn a_node_that_is_refused_shuts_nobody_out() {
    // Both were started before they had a reason not to be, and make their first call after it.
    let (backed, mut first, mut workload) = running(8);
    let mut copy = Node::launch(copy_of(&backed, &first, "copy")).unwrap();
    Backed::write(&mut first, &mut workload, 3);
    let message = copy.write(&marked("copy")).unwrap().expect_refused();
    assert!(message.contains("went backward"), "{message}");
    first.write(&marked("on")).unwrap().expect_committed();

    first.stop().unwrap();
    first.start().unwrap();
    let dest = take_over(&backed, "restored");
    let mut heir = Node::launch(NodeConfig::new(plugin(), dest)).unwrap();
    heir.write(&marked("heir")).unwrap().expect_committed();
    let message = first.write(&marked("zombie")).unwrap().expect_refused();
    assert!(message.contains("belongs to another copy of this node"), "{message}");
    heir.write(&marked("still the heir")).unwrap().expect_committed();
    assert_eq!(backed.check(&heir), Standing::Committed);
}

#[test]
fn a_restore_in_place_of_a_lost_database_goes_on() {
    let (backed, mut node, mut workload) = running(9);
    for _ in 0..3 {
        node.kill().unwrap();
        let before = backed.new_dest();
        node.oracle(&before).unwrap();
        fs::remove_file(node.database_path()).unwrap();
        let output = Cli::new(["restore", &backed.url()]).arg(backed.network_dir()).run();
        output.expect_success();
        oracle::assert_same(&before, &node.database_path());
        node.start().unwrap();
        Backed::write(&mut node, &mut workload, 3);
        assert_eq!(backed.check(&node), Standing::Committed);
    }
}
