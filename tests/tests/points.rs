//! Snapshots by `backup-cli compact`, points in time, and `prune`: the real programs, beside a running node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use lockstep_node::content;
use lockstep_proto::config::read_key_file;
use lockstep_proto::destination::Destination;
use lockstep_proto::restore::{self, Plan, Target};
use lockstep_proto::version::DataVersion;
use lockstep_tests::backed::{Backed, ci_or_long, files_under, reason_not_to_go_on};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::sim::{Node, NodeConfig, Standing};
use lockstep_tests::workload::{Trace, Traces, Workload, WorkloadConfig};
use lockstep_tests::{Step, binaries, oracle};
use rusqlite::Connection;

fn running(seed: u64) -> (Backed, Node, Workload) {
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean().growing());
    let node = backed.running(&mut workload);
    (backed, node, workload)
}

fn json(backed: &Backed, verb: &str, more: &[&str]) -> serde_json::Value {
    let mut cli = Cli::new([verb, "--json", "--lightning-dir"]).arg(backed.network_dir());
    for argument in more {
        cli = cli.arg(argument);
    }
    cli.run().expect_success().json()
}

fn back_to(backed: &Backed, dest: &std::path::Path, more: &[&str]) -> Output {
    let mut cli = Cli::new(["restore", "--json"]).arg(backed.url()).arg(dest);
    cli = cli.arg("--key-file").arg(backed.network_file("backup.key"));
    for argument in more {
        cli = cli.arg(argument);
    }
    cli.run()
}

#[test]
fn a_running_node_is_compacted_and_restored_from_its_snapshots() {
    let (backed, mut node, mut workload) = running(51);
    // Most of the database is not touched again: what is published are deltas.
    let sql = "INSERT INTO vars (name, blobval) VALUES ('ballast', zeroblob(2000000))";
    node.write(&Step::transaction([sql])).unwrap().expect_committed();
    let mut deltas = 0;
    for round in 0..6 {
        Backed::write(&mut node, &mut workload, 60);
        let report = json(&backed, "compact", &[]);
        assert!(report["batches"].as_u64().unwrap() >= 50, "{report}");
        let links = report["links"].as_u64().unwrap();
        assert!(links <= 1 + round, "{report}");
        if links > 1 {
            deltas += 1;
            assert!(report["pages"].as_u64() < Some(report["page_count"].as_u64().unwrap() / 2));
        }
        assert_eq!(backed.check(&node), Standing::Committed);
    }
    assert!(deltas >= 4, "{deltas} of 6 snapshots are deltas");
    let plan = back_to(&backed, &backed.new_dest(), &["--dry-run"]).expect_success().json();
    assert!(!plan["snapshots"].as_array().unwrap().is_empty(), "{plan}");
    assert!(plan["snapshot_seq"].as_u64() < plan["seq"].as_u64(), "{plan}");
    let verified = json(&backed, "verify", &[]);
    assert!(verified["generations"][0]["snapshots"].as_u64().unwrap() >= 6, "{verified}");
    // From the backup alone, as another machine would.
    Backed::write(&mut node, &mut workload, 40);
    Cli::new(["compact"])
        .arg(backed.url())
        .arg("--key-file")
        .arg(backed.network_file("backup.key"))
        .run()
        .expect_success();
    assert_eq!(backed.check(&node), Standing::Committed);
    // Nothing of it is left, and nothing stops the node.
    node.stop().unwrap();
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 5);
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn what_prune_removes_is_not_needed_and_what_it_shows_is_what_it_does() {
    let (backed, mut node, mut workload) = running(52);
    for _ in 0..5 {
        Backed::write(&mut node, &mut workload, 60);
        backed.cli("compact").expect_success();
        // Each session begins a segment of its own.
        node.stop().unwrap();
        node.start().unwrap();
    }
    Backed::write(&mut node, &mut workload, 10);
    let before = files_under(&backed.store());
    let keep = ["--keep-last", "1"];
    let planned = json(&backed, "prune", &[&keep[..], &["--dry-run"]].concat());
    assert_eq!(files_under(&backed.store()), before, "a dry run removes nothing");
    let done = json(&backed, "prune", &keep);
    assert_eq!(planned["points"], done["points"]);
    let (goes, segments) = (
        done["points"].as_array().unwrap().iter().filter(|p| p["kept"] == serde_json::json!([])),
        done["segments_removed"].as_u64().unwrap() as usize,
    );
    assert!(segments >= 3, "{done}");
    let mut left = files_under(&backed.store());
    // Where the log begins now is noted.
    left.retain(|file| file.parent().is_none_or(|folder| !folder.ends_with("beginnings")));
    assert_eq!(left.len(), before.len() - goes.count() - segments);
    assert_eq!(backed.check(&node), Standing::Committed);
    backed.cli("verify").expect_success();
    Backed::write(&mut node, &mut workload, 30);
    backed.cli("compact").expect_success();
    assert_eq!(backed.check(&node), Standing::Committed);
    // What would keep nothing is refused.
    let refused = Cli::new(["prune", "--keep-within", "0d", "--lightning-dir"])
        .arg(backed.network_dir())
        .run();
    refused.expect_code(2);
}

#[test]
fn what_a_dead_compaction_left_is_removed_after_a_day() {
    let (backed, mut node, mut workload) = running(55);
    backed.cli("compact").expect_success();
    let folder = backed.store().join("snapshots/00000001");
    let (old, fresh) = (folder.join(".old.snap.0.tmp"), folder.join(".fresh.snap.0.tmp"));
    std::fs::write(&fresh, "").unwrap();
    let file = std::fs::File::create(&old).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(25 * 3600)).unwrap();
    Backed::write(&mut node, &mut workload, 10);
    backed.cli("compact").expect_success();
    assert!(!old.exists() && fresh.exists());
}

#[test]
fn going_back_needs_a_word_and_begins_a_new_history() {
    let (backed, mut node, mut workload) = running(53);
    Backed::write(&mut node, &mut workload, 50);
    let version = node.database().unwrap().data_version().unwrap();
    let then = backed.dir().path("then.sqlite3");
    node.database().unwrap().copy_to(&then).unwrap();
    backed.cli("compact").expect_success();
    Backed::write(&mut node, &mut workload, 50);
    backed.cli("compact").expect_success();
    node.stop().unwrap();

    let dest = backed.dir().path("back");
    let to = version.to_string();
    back_to(&backed, &dest, &["--to-version", &to]).expect_code(2);
    assert!(!dest.exists(), "nothing was done");
    let refused = back_to(&backed, &dest, &["--to-version", "1000000", "--accept-stale"]);
    let refused = refused.expect_code(1);
    assert!(refused.stderr.contains("never came by"), "{refused}");

    // Only looked at.
    let looked = backed.new_dest();
    let point = ["--to-version", to.as_str(), "--accept-stale"];
    let report = back_to(&backed, &looked, &[&point[..], &["--no-claim"]].concat());
    assert_eq!(report.expect_success().json()["stale"], true);
    oracle::assert_same(&then, &looked);

    // A node that goes on from there.
    let dest = backed.dir().path("lightning-2");
    back_to(&backed, &dest, &point).expect_success();
    std::fs::copy(backed.network_file("hsm_secret"), dest.join("hsm_secret")).unwrap();
    oracle::assert_same(&then, &dest.join("lightningd.sqlite3"));
    let mut second = Node::launch(NodeConfig::new(binaries::plugin(), dest.clone())).unwrap();
    for number in 0..5 {
        let sql = format!("INSERT INTO vars (name, intval) VALUES ('second {number}', 1)");
        second.write(&Step::transaction([sql])).unwrap().expect_committed();
    }
    second.stop().unwrap();
    backed.check_same_as(&dest.join("lightningd.sqlite3"));
    backed.cli("verify").expect_success();

    // The node that was left behind is shut out; what came after the point is still to be looked at.
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("restored"), "{reason}");
}

/// A thousand versions of a recorded node, with a snapshot now and then, in the long form.
#[test]
fn random_versions_of_a_recorded_node_are_restored_as_they_were() {
    let name = "random_versions_of_a_recorded_node_are_restored_as_they_were";
    let mut rng = Rng::with_seed(7);
    let (backed, mut node) = {
        let backed = Backed::fresh();
        let node = backed.launch();
        (backed, node)
    };
    let share = ci_or_long(1.0 / 120.0, 1.0 / 28.0);
    let mut states = BTreeMap::new();
    let mut note = |node: &Node, rng: &mut Rng| {
        if rng.f64() < share {
            let database = node.database().unwrap();
            let digest = content::digest(database.connection()).unwrap();
            states.insert(database.data_version().unwrap(), digest);
        }
    };
    let mut since = 0;
    let mut compact = |rng: &mut Rng| {
        since += 1;
        if since > 300 && rng.u32(..200) == 0 {
            since = 0;
            backed.cli("compact").expect_success();
        }
    };
    match Traces::locate_or_say(name) {
        Some(traces) => {
            for batch in traces.read(ci_or_long(Trace::NodeStart, Trace::Node)).unwrap() {
                node.write(&Step::from(batch.unwrap())).unwrap().expect_committed();
                note(&node, &mut rng);
                compact(&mut rng);
            }
        }
        None => {
            let mut workload = Workload::new(WorkloadConfig::seeded(54).lean());
            for step in workload.by_ref().take(2_500) {
                node.write(&step).unwrap().expect_committed();
                note(&node, &mut rng);
                compact(&mut rng);
            }
        }
    }
    let began = Instant::now();
    let url: Destination = backed.url().parse().unwrap();
    let (store, keys) =
        (url.open().unwrap(), read_key_file(&backed.network_file("backup.key")).unwrap());
    let path = backed.new_dest();
    for (version, digest) in &states {
        let plan = Plan::to(&*store, &keys, Target::Version(DataVersion(*version))).unwrap();
        restore::run(&*store, &keys, &plan, &path, &mut |_| {}).unwrap();
        let restored = Connection::open(&path).unwrap();
        assert_eq!(content::digest(&restored).unwrap(), *digest, "data_version {version}");
        drop(restored);
        std::fs::remove_file(&path).unwrap();
    }
    println!("{name}: {} versions in {:.1} s", states.len(), began.elapsed().as_secs_f64());
    assert!(states.len() > 10);
}
