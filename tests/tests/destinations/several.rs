//! `init` with several places, and what `status`, `list` and `verify` say of them.

use std::fs;

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::Cli;
use serde_json::Value;

use crate::two::{Two, says};

fn lock(backed: &Backed) -> Value {
    serde_json::from_slice(&fs::read(backed.network_file("backup.lock")).unwrap()).unwrap()
}

#[test]
fn init_makes_the_same_store_at_each_place() {
    let backed = Backed::without_backup();
    let url = |name: &str| backed.dir().file_url(name);
    let init = backed.init().arg(url("b")).arg(url("c")).arg("--async").arg(url("d"));
    let init = init.arg("--quorum").arg("2").arg("--name").arg("disk").arg("--name").arg("nas");
    let made = init.arg("--json").run().expect_success().json();
    let names: Vec<_> =
        made["destinations"].as_array().unwrap().iter().map(|d| &d["name"]).collect();
    assert_eq!(names, ["disk", "nas", "third", "fourth"]);
    let lock = lock(&backed);
    assert_eq!(lock["quorum"], 2);
    assert_eq!(lock["destinations"][3]["mode"], "async");
    assert_eq!(lock["destinations"][0]["mode"], Value::Null);
    for destination in lock["destinations"].as_array().unwrap() {
        assert_eq!(destination["fencing"], "real");
    }
    let files = files_under(&backed.store());
    assert!(files.len() > 3, "{files:?}");
    for name in ["b", "c", "d"] {
        assert_eq!(files_under(&backed.dir().path(name)), files);
    }
    let status = backed.cli("status").expect_success();
    assert!(status.stdout.contains("waits for 2 of 3 'sync' destinations"), "{status}");
    backed.cli("verify").expect_success();
}

#[test]
fn init_refuses_before_anything_is_written() {
    let backed = Backed::without_backup();
    let (b, used) = (backed.dir().file_url("b"), backed.dir().path("used"));
    fs::create_dir(&used).unwrap();
    fs::write(used.join("photo"), "of the cat").unwrap();
    let used = format!("file://{}", used.display());
    let cases: [(&[&str], &str); 6] = [
        (&[&used], "is not empty"),
        (&[&backed.url()], "is named twice"),
        (&[&b, "--quorum", "1"], "a quorum of 1 with 2 'sync' destinations"),
        (&[&b, "--quorum", "3"], "a quorum of 3 with 2 'sync' destinations"),
        (&[&b, "--name", "x", "--name", "x"], "names two destinations 'x'"),
        (&["--name", "x", "--name", "y"], "is the name of no URL"),
    ];
    for (args, words) in cases {
        let refused = args.iter().fold(backed.init(), Cli::arg).run();
        says(&refused, 1, &[words, "hint: "]);
        assert!(!backed.network_file("backup.lock").exists());
        assert!(!backed.network_file("backup.key").exists());
        assert!(!backed.store().join("lockstep.json").exists());
    }
    let only = Cli::new(["init", "--async", &b, "--lightning-dir"]).arg(backed.network_dir());
    assert_eq!(only.run().code, Some(2));
}

#[test]
fn one_that_is_away_is_named_and_the_others_are_shown() {
    let two = Two::new(1);
    let away = two.folder("elsewhere");
    fs::rename(two.folder("second"), &away).unwrap();
    let status = two.cli("status", &["--json"]).expect_code(3);
    let report = status.json();
    let second = &report["destinations"][1];
    assert_eq!((&second["name"], &second["state"]), (&"second".into(), &"unreachable".into()));
    assert!(second["error"].as_str().unwrap().contains("folder is not there"), "{status}");
    assert_eq!(second["seq"], Value::Null);
    assert_eq!(report["destinations"][0]["state"], "current");
    assert!(status.stderr.contains("\"code\":3,\"hint\"") || status.stderr.contains("\"code\":3"));
    says(&two.cli("status", &[]), 3, &["second", "unreachable", "folder is not there", "hint: "]);
    says(&two.cli("list", &[]), 0, &["generation 1", "'second' is unreachable"]);
    says(&two.cli("verify", &[]), 3, &["'primary' is intact", "'second' cannot be relied on"]);
    // The first one away: the other is read.
    fs::rename(&away, two.folder("second")).unwrap();
    fs::rename(two.folder("store"), &away).unwrap();
    let report = two.cli("status", &["--json"]).expect_code(3).json();
    assert_eq!(report["destinations"][0]["state"], "unreachable");
    assert_eq!(report["destinations"][1]["state"], "current");
    says(&two.cli("list", &[]), 0, &["'primary' is unreachable"]);
    // All away is as one that is.
    fs::rename(two.folder("second"), two.folder("elsewhere-2")).unwrap();
    says(&two.cli("status", &[]), 1, &["folder is not there", "mount what belongs at"]);
    says(&two.cli("verify", &[]), 1, &["no destination is intact", "'second': "]);
}

#[test]
fn one_that_is_behind_is_shown_with_what_it_lacks() {
    let two = Two::new(2);
    let kept = two.keep("second");
    let before = two.cli("status", &["--json"]).expect_success().json();
    two.write(3, 7);
    two.put_back("second", &kept);
    let status = two.cli("status", &["--json"]).expect_success();
    let (first, second) = (&status.json()["destinations"][0], &status.json()["destinations"][1]);
    assert_eq!((&first["state"], &second["state"]), (&"current".into(), &"behind".into()));
    let records = first["seq"].as_u64().unwrap() - second["seq"].as_u64().unwrap();
    assert!(records >= 7, "{status}");
    assert_eq!(second["records_behind"], records);
    assert_eq!(second["seq"], before["destinations"][1]["seq"]);
    says(&two.cli("status", &[]), 0, &[&format!("{records} records behind the newest")]);
    says(&two.cli("verify", &[]), 0, &["records behind the newest", "'second' is intact"]);
    two.level();
    let status = two.cli("status", &["--json"]).expect_success().json();
    assert_eq!(status["destinations"][1]["records_behind"], 0);
    // A newest segment that was lost is as one that never came.
    std::fs::remove_file(two.files("store", ".seg").pop().unwrap()).unwrap();
    says(&two.cli("verify", &[]), 0, &["records behind the newest"]);
    two.level();
}

#[test]
fn two_histories_are_shown_and_never_mixed() {
    let two = Two::new(4);
    let lock = fs::read(two.backed.network_file("backup.lock")).unwrap();
    let database = two.backed.network_file("lightningd.sqlite3");
    let (second, copy) = (two.keep("second"), two.folder("copy.sqlite3"));
    fs::copy(&database, &copy).unwrap();
    two.write(5, 6);
    // A node whose database and destination were put back writes something else.
    let (first, diverged) = (two.keep("store"), two.folder("database"));
    fs::rename(&database, &diverged).unwrap();
    fs::rename(&copy, &database).unwrap();
    two.put_back("store", &second);
    two.put_back("second", &second);
    two.write(6, 3);
    let other = two.keep("store");
    two.put_back("store", &first);
    two.put_back("second", &other);
    assert_eq!(fs::read(two.backed.network_file("backup.lock")).unwrap(), lock);

    let status = two.cli("status", &["--json"]).expect_code(3);
    assert_eq!(status.json()["destinations"][1]["state"], "diverged", "{status}");
    says(&two.cli("verify", &[]), 3, &["'primary' is intact", "hold two histories"]);
    let (a, b) = (two.content("store"), two.content("second"));
    let refused = two.cli("verify", &["--heal"]);
    let words = ["hold two histories", "'primary' is at seq ", "'second' is at seq ", "written 20"];
    says(&refused, 13, &words);
    assert_eq!((two.content("store"), two.content("second")), (a, b));
}

#[test]
fn a_restore_asks_at_all_places_that_the_log_names() {
    let backed = Backed::without_backup();
    let (second, hidden) = (backed.dir().path("second"), backed.dir().path("hidden"));
    backed.init().arg(&second).run().expect_success();
    let mut node = backed.running(&mut lockstep_tests::workload::Workload::seeded(9));
    node.stop().unwrap();
    fs::rename(&second, &hidden).unwrap();
    let restore = |url: &str, more: &[&str]| {
        let dest = backed.new_dest();
        let cli = Cli::new(["restore", "--no-claim", url]).arg(&dest).arg("--key-file");
        let cli = cli.arg(backed.network_file("backup.key"));
        (more.iter().fold(cli, Cli::arg).run(), dest)
    };
    let (refused, dest) = restore(&backed.url(), &[]);
    says(&refused, 1, &["places that do not answer", "/second", "--accept-stale"]);
    assert!(!dest.exists());
    let (done, dest) = restore(&backed.url(), &["--accept-stale"]);
    done.expect_success();
    lockstep_tests::oracle::assert_same(&node.database_path(), &dest);
    // Named by hand, or, once it is removed from the log, not at all.
    let also = format!("file://{}", hidden.display());
    let (refused, _) = restore(&backed.url(), &["--also", &also]);
    says(&refused, 1, &["places that do not answer"]);
    fs::rename(&hidden, &second).unwrap();
    restore(&backed.url(), &[]).0.expect_success();
    let remove = Cli::new(["destination", "remove", "second", "--lightning-dir"]);
    remove.arg(backed.network_dir()).run().expect_success();
    fs::remove_dir_all(&second).unwrap();
    restore(&backed.url(), &[]).0.expect_success();
}

/// The database is ahead while one of three is away: the new generation begins at the others, and comes to it later.
#[test]
fn one_that_was_away_gets_the_new_generation_and_its_snapshot() {
    let backed = Backed::without_backup();
    let folders = ["store", "second", "third"].map(|name| backed.dir().path(name));
    let init = backed.init().arg(&folders[1]).arg(&folders[2]);
    init.arg("--quorum").arg("2").run().expect_success();
    let mut workload = lockstep_tests::workload::Workload::seeded(10);
    let mut node = backed.running(&mut workload);
    node.stop().unwrap();
    for away in 0..3 {
        let hidden = backed.dir().path("hidden");
        fs::rename(&folders[away], &hidden).unwrap();
        let step = workload.next().unwrap();
        node.commit_unhooked(&step).unwrap();
        node.start().unwrap();
        Backed::write(&mut node, &mut workload, 20);
        node.init().unwrap();
        assert_eq!(Backed::destinations(&mut node)[away]["state"], "behind");
        fs::rename(&hidden, &folders[away]).unwrap();
        Backed::wait_until_all_have_everything(&mut node);
        Backed::write(&mut node, &mut workload, 5);
        node.stop().unwrap();
        let report = backed.cli("verify").expect_success();
        assert!(report.stdout.contains("a snapshot"), "{report}");
        for folder in &folders {
            assert_eq!(files_under(folder), files_under(&folders[0]), "{}", folder.display());
        }
        backed.check_same_as(&node.database_path());
    }
}
