//! `destination add`, `remove`, `list` and `test`.

use std::fs;

use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::Cli;
use lockstep_tests::sim::RpcServer;
use serde_json::Value;

use crate::two::{Two, says};

fn url(two: &Two, name: &str) -> String {
    two.backed.dir().file_url(name)
}

fn lock(two: &Two) -> Value {
    let bytes = fs::read(two.backed.network_file("backup.lock")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn a_place_is_added_later_and_holds_all_of_it() {
    let two = Two::new(30);
    let added = two.cli("destination add", &[&url(&two, "nas"), "--name", "nas", "--async"]);
    says(&added, 0, &["added 'nas'", "objects copied", "waits for 2 of 2 'sync' destinations"]);
    assert_eq!(two.content("nas"), two.content("store"));
    assert_eq!(lock(&two)["destinations"][2]["mode"], "async");
    assert_eq!(lock(&two)["destinations"][2]["fencing"], "real");
    two.cli("verify", &[]).expect_success();
    let listed = two.cli("destination list", &["--json"]).expect_success().json();
    assert_eq!(listed["quorum"], 2);
    assert_eq!(listed["destinations"][2]["name"], "nas");
    two.write(31, 5);
    two.cli("verify", &["--heal"]).expect_success();
    assert_eq!(two.content("nas"), two.content("store"));
}

#[test]
fn beside_a_running_node_it_is_said_that_it_goes_on_with_its_old_list() {
    let two = Two::new(44);
    let mut node = two.backed.launch();
    let step = lockstep_tests::Step::transaction(["DELETE FROM vars WHERE name = 'mark 44 1'"]);
    node.write(&step).unwrap().expect_committed();
    let socket = RpcServer::bind(&two.backed.network_dir(), []).unwrap();
    let added = two.cli("destination add", &[&url(&two, "nas"), "--name", "nas"]);
    says(&added, 0, &["added 'nas'", "until it is started again", "must not be restored from"]);
    two.cli("verify", &[]).expect_success();
    node.write(&step).unwrap().expect_committed();
    let status = two.cli("status", &["--json"]).expect_success().json();
    assert_eq!(status["destinations"][2]["state"], "behind", "{status}");
    assert!(status["destinations"][2]["records_behind"].as_u64() >= Some(1), "{status}");
    let removed = two.cli("destination remove", &["nas"]);
    says(&removed, 0, &["removed 'nas'", "goes on with its old list"]);
    drop(socket);
    node.stop().unwrap();
}

#[test]
fn what_cannot_be_added_changes_nothing() {
    let two = Two::new(32);
    let (before, other) = (lock(&two), Backed::fresh());
    let used = two.folder("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("photo"), "of the cat").unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (&[&url(&two, "second")], 1, "is the destination 'second' already"),
        (&[&url(&two, "nas"), "--name", "second"], 1, "there is a destination 'second' already"),
        (&[&url(&two, "used")], 1, "is not empty"),
        (&[&url(&two, "nas"), "--quorum", "1"], 1, "a quorum of 1 with 3 'sync' destinations"),
        (&[&other.url()], 13, "belongs to store"),
    ];
    for (args, code, words) in cases {
        says(&two.cli("destination add", args), code, &[words]);
        assert_eq!(lock(&two), before);
    }
    assert_eq!(fs::read_dir(&used).unwrap().count(), 1);
}

#[test]
fn an_add_that_was_interrupted_goes_on() {
    let two = Two::new(34);
    let nas = two.folder("nas");
    lockstep_tests::testdir::copy_dir(&two.folder("store"), &nas).unwrap();
    fs::remove_file(nas.join("lockstep.json")).unwrap();
    fs::remove_file(&two.files("nas", ".seg")[2]).unwrap();
    fs::remove_file(&two.files("nas", ".snap")[0]).unwrap();
    says(
        &two.cli("destination add", &[&url(&two, "nas")]),
        0,
        &["added 'third': 3 objects copied"],
    );
    assert_eq!(two.content("nas"), two.content("store"));
}

#[test]
fn removing_keeps_what_is_needed() {
    let two = Two::new(36);
    says(
        &two.cli("destination remove", &["nobody"]),
        1,
        &["there is no destination 'nobody'", "primary, second"],
    );
    // The first alone has the newest records.
    let kept = two.keep("second");
    two.write(37, 5);
    two.put_back("second", &kept);
    says(
        &two.cli("destination remove", &["primary"]),
        1,
        &["holds records that no other", "--heal"],
    );
    two.level();
    let stays = two.content("store");
    let removed = two.cli("destination remove", &["primary"]);
    says(&removed, 0, &["removed 'primary'", "never restore from it as if it were current"]);
    assert_eq!(two.content("store"), stays);
    assert_eq!(lock(&two)["destinations"].as_array().unwrap().len(), 1);
    says(&two.cli("destination remove", &["second"]), 1, &["is the only destination"]);
    // The node goes on at the other.
    two.write(38, 3);
    two.cli("verify", &[]).expect_success();
    // And back again: what is there already is not copied.
    let added = two.cli("destination add", &[&url(&two, "store"), "--name", "primary"]);
    says(&added, 0, &["added 'primary'"]);
    assert_eq!(two.content("store"), two.content("second"));
}

#[test]
fn one_that_the_quorum_needs_is_not_removed() {
    let two = Two::new(40);
    let add = two.cli("destination add", &[&url(&two, "third"), "--quorum", "2"]);
    says(&add, 0, &["waits for 2 of 3 'sync' destinations"]);
    two.cli("destination remove", &["third"]).expect_success();
    let needed = two.cli("destination remove", &["second"]);
    says(&needed, 1, &["a quorum of 2 with 1 'sync' destinations", "do without 'second'"]);
    two.cli("destination remove", &["second", "--quorum", "1"]).expect_success();
    let two = Two::new(41);
    two.cli("destination add", &[&url(&two, "nas"), "--async"]).expect_success();
    two.cli("destination remove", &["second"]).expect_success();
    says(&two.cli("destination remove", &["primary"]), 1, &["no destination is 'sync'"]);
}

#[test]
fn a_place_is_measured_by_name_and_by_url_and_left_as_it_was() {
    let two = Two::new(42);
    let before = two.content("second");
    let test = two.cli("destination test", &["second", "--appends", "20", "--json"]);
    let report = test.expect_success().json();
    assert_eq!((&report["fencing"], &report["appends"]), (&"real".into(), &20.into()));
    let ms = |field: &str| report[field].as_f64().unwrap();
    assert!(0.0 < ms("p50_ms") && ms("p50_ms") <= ms("p99_ms") && ms("p99_ms") <= ms("max_ms"));
    assert_eq!(two.content("second"), before);
    fs::create_dir(two.folder("empty")).unwrap();
    let by_url = Cli::new(["destination", "test", &url(&two, "empty")]).run();
    says(&by_url, 0, &["100 appends", "each of the node's transactions", "fencing real"]);
    assert_eq!(fs::read_dir(two.folder("empty")).unwrap().count(), 0);
    let nowhere = Cli::new(["destination", "test", &url(&two, "nowhere")]).run();
    says(&nowhere, 10, &["folder is not there"]);
}
