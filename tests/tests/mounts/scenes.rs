//! What the machine runs.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lockstep_tests::Step;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::plugin;
use lockstep_tests::sim::{Answer, Node, NodeConfig, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use serde_json::{Value, json};

use crate::share::Patience::{Hard, Soft};
use crate::share::{Kind, Share};

/// How long a write may wait in these scenes, in seconds.
const STALL_S: u64 = 30;

fn backed_in(folder: &Path) -> Backed {
    let backed = Backed::at(format!("file://{}", folder.display()), Vec::new());
    backed.init().run().expect_success();
    backed.set_in_lock("stall_timeout_s", json!(STALL_S));
    backed
}

fn workload(seed: u64) -> Workload {
    Workload::new(WorkloadConfig::seeded(seed).lean())
}

fn marked(mark: &str) -> Step {
    Step::transaction([format!("INSERT OR REPLACE INTO vars (name, intval) VALUES ('{mark}', 1)")])
}

/// Written, killed, continued, restored; and how well the place keeps a second writer out is on record.
fn a_node_and_its_restores(kind: Kind) {
    let share = Share::serve(kind);
    let backed = backed_in(&share.new_folder(&share.mount(0, Hard)));
    let lock: Value =
        serde_json::from_slice(&fs::read(backed.network_file("backup.lock")).unwrap()).unwrap();
    assert!(lock.to_string().contains(r#""fencing":"real""#), "{lock}");
    let mut workload = workload(1);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 30);
    node.kill().unwrap();
    backed.check(&node);
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 20);
    node.stop().unwrap();
    backed.check_same_as(&node.database_path());
    backed.cli("verify").expect_success();
}

/// Two mounts of one share: the second writer shuts the first one out.
fn a_second_writer_shuts_the_first_one_out(kind: Kind) {
    let share = Share::serve(kind);
    let (here, there) = (share.mount(0, Hard), share.mount(1, Hard));
    let folder = share.new_folder(&here);
    let backed = backed_in(&folder);
    let mut workload = workload(2);
    let mut first = backed.running(&mut workload);
    Backed::write(&mut first, &mut workload, 10);
    let copy = backed.dir().make_dir("copy/regtest");
    for file in ["backup.key", "hsm_secret"] {
        fs::copy(backed.network_file(file), copy.join(file)).unwrap();
    }
    let lock = fs::read_to_string(backed.network_file("backup.lock")).unwrap();
    let (here, there) = (here.display().to_string(), there.display().to_string());
    fs::write(copy.join("backup.lock"), lock.replace(&here, &there)).unwrap();
    set_mode(&copy.join("backup.lock"), 0o600);
    first.oracle(&copy.join("lightningd.sqlite3")).unwrap();
    let mut second = Node::launch(NodeConfig::new(plugin(), copy)).unwrap();
    second.write(&marked("second")).unwrap().expect_committed();
    let before = first.ledger().committed_version();
    let message = first.write(&marked("first")).unwrap().expect_refused();
    let process = format!("process {}", second.plugin().unwrap().id());
    for words in ["was taken over", "for 'node'", "hint: ", &process] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(first.ledger().committed_version(), before);
    second.write(&marked("on")).unwrap().expect_committed();
    assert_eq!(backed.check(&second), Standing::Committed);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The server goes away in the midst of writing and comes back in time: the write waits, and is acknowledged. What a
/// mount says meanwhile is not believed: all that was acknowledged is there.
fn a_server_that_comes_back(kind: Kind, patience: crate::share::Patience) {
    let share = Share::serve(kind);
    let backed = backed_in(&share.new_folder(&share.mount(0, patience)));
    backed.set_in_lock("stall_timeout_s", json!(120));
    let mut workload = workload(3);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    share.down();
    let batch = node.begin(&marked("waits")).unwrap();
    let id = node.send_write(&batch).unwrap();
    // Longer than a soft mount tries: what it was asked has failed by then, more than once.
    thread::sleep(Duration::from_secs(25));
    share.up();
    let began = Instant::now();
    let answer = node.answer(&id, Duration::from_secs(150)).unwrap();
    println!("{kind:?} {patience:?}: {answer:?} {:?} after the server was back", began.elapsed());
    assert_eq!(answer, Answer::Continue);
    node.settle(answer).unwrap().expect_committed();
    Backed::write(&mut node, &mut workload, 10);
    node.kill().unwrap();
    assert_eq!(backed.check(&node), Standing::Committed);
    backed.cli("verify").expect_success();
}

/// It does not come back in time: the write is refused, and the node goes on once it is there.
fn a_server_that_stays_away(kind: Kind, patience: crate::share::Patience) {
    let share = Share::serve(kind);
    let backed = backed_in(&share.new_folder(&share.mount(0, patience)));
    let mut workload = workload(4);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    let before = node.ledger().committed_version();
    share.down();
    let began = Instant::now();
    let batch = node.begin(&marked("refused")).unwrap();
    let id = node.send_write(&batch).unwrap();
    let answer = node.answer(&id, Duration::from_secs(STALL_S + 60)).unwrap();
    println!("{kind:?} {patience:?}: {answer:?} after {:?}", began.elapsed());
    // No process ends while it waits in the kernel.
    share.up();
    let message = node.settle(answer).unwrap().expect_refused();
    assert!(message.contains("hint: "), "{message}");
    assert_eq!(node.ledger().committed_version(), before);
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 5);
    node.kill().unwrap();
    assert_eq!(backed.check(&node), Standing::Committed);
}

macro_rules! on {
    ($name:ident, $kind:expr) => {
        mod $name {
            use super::*;

            #[test]
            #[ignore = "in the machine"]
            fn a_node_and_its_restores() {
                super::a_node_and_its_restores($kind);
            }

            #[test]
            #[ignore = "in the machine"]
            fn a_second_writer_shuts_the_first_one_out() {
                super::a_second_writer_shuts_the_first_one_out($kind);
            }

            #[test]
            #[ignore = "in the machine"]
            fn a_server_that_comes_back_to_a_hard_mount() {
                super::a_server_that_comes_back($kind, Hard);
            }

            #[test]
            #[ignore = "in the machine"]
            fn a_server_that_comes_back_to_a_soft_mount() {
                super::a_server_that_comes_back($kind, Soft);
            }

            #[test]
            #[ignore = "in the machine"]
            fn a_server_that_stays_away_from_a_soft_mount() {
                super::a_server_that_stays_away($kind, Soft);
            }

            #[test]
            #[ignore = "in the machine"]
            fn a_server_that_stays_away_from_a_hard_mount() {
                super::a_server_that_stays_away($kind, Hard);
            }
        }
    };
}

on!(nfs4, Kind::Nfs4);
on!(nfs3, Kind::Nfs3);
on!(cifs, Kind::Cifs);
