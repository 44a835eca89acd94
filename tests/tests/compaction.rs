//! The plugin compacts by itself, beside the node's writes. Whatever becomes of that, the node goes on, and a
//! restore gives the node's own rows.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, ci_or_long, files_under};
use lockstep_tests::binaries::Cli;
use lockstep_tests::sim::{Crash, Node, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
/// In which nothing happens that must not.
const A_WHILE: Duration = Duration::from_millis(1_600);

/// A node that has been writing for a while, with this section in its lock file.
fn running(seed: u64, compaction: Value) -> (Backed, Node, Workload) {
    let backed = Backed::fresh();
    backed.set_in_lock("compaction", compaction);
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean().growing());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 200);
    (backed, node, workload)
}

/// What `backup-status` says of compaction.
fn status(node: &mut Node) -> Value {
    let status = node.call("backup-status", &json!({})).unwrap().result().unwrap();
    status["compaction"].clone()
}

/// Waits until the status is so.
#[track_caller]
fn wait(node: &mut Node, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let status = status(node);
        if is_so(&status) {
            return status;
        }
        assert!(began.elapsed() < SOON, "{what}: {status}, {:?}", node.logs());
        sleep(Duration::from_millis(5));
    }
}

/// Asks for a compaction, and gives its id.
#[track_caller]
fn ask(node: &mut Node) -> u64 {
    let answer = node.call("backup-compact", &json!({})).unwrap().result().unwrap();
    assert!(["started", "running"].contains(&answer["state"].as_str().unwrap()), "{answer}");
    answer["id"].as_u64().unwrap()
}

/// Asks for a compaction and waits for its end.
#[track_caller]
fn compact(node: &mut Node) -> Value {
    let id = ask(node);
    wait(node, "it ends", |status| {
        assert_eq!(status["error"], Value::Null);
        status["last"]["id"] == id
    })
}

fn snapshots(backed: &Backed) -> usize {
    files_under(&backed.store())
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "snap"))
        .count()
}

#[track_caller]
fn logged(node: &Node, level: &str, words: &str) {
    let found = node.logs().iter().any(|line| line.level == level && line.message.contains(words));
    assert!(found, "no {level} line with '{words}': {:?}", node.logs());
}

#[test]
fn a_snapshot_comes_by_itself_and_a_restore_uses_it() {
    let (backed, mut node, mut workload) = running(1, json!({"tail_bytes": 20_000}));
    let first = wait(&mut node, "a snapshot", |status| status["last"] != Value::Null);
    assert_eq!(first["last"]["result"]["kind"], "published", "{first}");
    assert_eq!(first["last"]["id"], 1);
    assert!(first["proven"]["seq"].as_u64() >= first["snapshot"]["seq"].as_u64(), "{first}");
    assert!(first["proven"]["time"].as_u64() > Some(0), "{first}");
    assert!(first["snapshot"]["age_seconds"].as_u64() < Some(60), "{first}");
    Backed::write(&mut node, &mut workload, 600);
    let seq = first["snapshot"]["seq"].as_u64();
    wait(&mut node, "one more", |status| {
        status["snapshot"]["seq"].as_u64() > seq && status["running"].is_null()
    });
    Backed::write(&mut node, &mut workload, 3);
    assert_eq!(backed.check(&node), Standing::Committed);

    let dest = backed.new_dest();
    let restored = backed.restore(&dest).arg("--json").run().expect_success().json();
    let all = node.ledger().acknowledged().count() as u64;
    let replayed = restored["batches"].as_u64().unwrap();
    assert!(replayed < all / 2, "replays {replayed} of {all} batches");
    backed.cli("verify").expect_success();
    node.kill().unwrap();

    let shown = Cli::new(["status", "--json", "--lightning-dir"]);
    let shown = shown.arg(backed.network_dir()).run().expect_success().json();
    let place = &shown["destinations"][0];
    assert!(place["snapshot"]["seq"].as_u64() > seq, "{shown}");
    assert!(place["tail_records"].as_u64() < Some(all / 2), "{shown}");
    assert!(place["tail_bytes"].as_u64() > Some(0), "{shown}");
    assert!(backed.cli("status").expect_success().stdout.contains("newest snapshot: seq "));
}

#[test]
fn one_is_started_by_rpc_and_seen_in_the_status() {
    let (backed, mut node, mut workload) = running(2, json!({}));
    let before = wait(&mut node, "the store was looked at", |status| status["tail_bytes"].is_u64());
    assert_eq!((&before["enabled"], &before["snapshot"]), (&json!(true), &Value::Null));
    assert!(before["tail_records"].as_u64() >= Some(200), "{before}");
    assert!(before["restore_seconds"].is_u64(), "{before}");
    let (first, second) = (ask(&mut node), ask(&mut node));
    assert_eq!((first, second), (1, 1), "one runs already");
    let after = wait(&mut node, "it ends", |status| status["last"]["id"] == 1);
    assert!(after["tail_records"].as_u64() < Some(10), "{after}");
    assert!(after["tail_bytes"].as_u64() < before["tail_bytes"].as_u64(), "{after}");
    Backed::write(&mut node, &mut workload, 50);
    let later = status(&mut node);
    assert!(later["tail_records"].as_u64() >= Some(50), "{later}");
    assert!(later["tail_bytes"].as_u64() > after["tail_bytes"].as_u64(), "{later}");
    assert_eq!(compact(&mut node)["last"]["id"], 2);
    let nothing = compact(&mut node);
    assert_eq!(nothing["last"]["result"]["kind"], "nothing_new", "{nothing}");
    assert_eq!(snapshots(&backed), 2);
    assert_eq!(backed.check(&node), Standing::Committed);
    logged(&node, "info", "compaction 1: snapshot at seq ");
}

#[test]
fn its_threads_give_way_to_the_hook() {
    let (_backed, mut node, mut workload) = running(3, json!({}));
    let plugin = node.plugin().unwrap().id();
    let nice = || -> Vec<(String, String)> {
        let tasks = fs::read_dir(format!("/proc/{plugin}/task")).unwrap().flatten();
        let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        stats
            .filter_map(|stat| {
                let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
                // The 19th field of all is the 17th behind the name.
                Some((name.to_owned(), rest.split_whitespace().nth(16)?.to_owned()))
            })
            .collect()
    };
    let own = nice().iter().find(|(name, _)| name == "cln-lockstep").unwrap().1.clone();
    let began = Instant::now();
    loop {
        let id = ask(&mut node);
        while status(&mut node)["last"]["id"] != id {
            let threads = nice();
            let at_lowest: Vec<_> = threads.iter().filter(|(_, nice)| nice == "19").collect();
            if let [(name, _)] = at_lowest[..]
                && own != "19"
            {
                assert_eq!(name, "compaction work");
                assert!(threads.contains(&("cln-lockstep".into(), own)), "{threads:?}");
                return;
            }
        }
        assert!(began.elapsed() < SOON, "no thread at the lowest priority was seen");
        Backed::write(&mut node, &mut workload, 100);
    }
}

#[test]
fn what_retention_does_not_keep_goes_by_itself() {
    let (backed, mut node, mut workload) = running(21, json!({}));
    backed.set_in_lock("retention", json!({"keep_last": 1}));
    for _ in 0..5 {
        // Each session begins a segment of its own.
        node.stop().unwrap();
        workload.restarted();
        node.start().unwrap();
        node.init().unwrap();
        Backed::write(&mut node, &mut workload, 60);
        compact(&mut node);
    }
    let status = status(&mut node);
    assert!(status["last"]["result"]["removed"].as_u64() > Some(0), "{status}");
    let segments = files_under(&backed.store().join("log")).len();
    assert!(segments <= 3, "{segments} segments are left");
    assert!(snapshots(&backed) <= 4, "{} snapshots are left", snapshots(&backed));
    Backed::write(&mut node, &mut workload, 5);
    assert_eq!(backed.check(&node), Standing::Committed);
    backed.cli("verify").expect_success();
}

#[test]
fn it_can_be_off() {
    let (backed, mut node, mut workload) = running(4, json!({"enabled": false, "tail_bytes": 1}));
    sleep(A_WHILE);
    Backed::write(&mut node, &mut workload, 5);
    let off = status(&mut node);
    assert_eq!((&off["enabled"], &off["last"]), (&json!(false), &Value::Null));
    assert_eq!(snapshots(&backed), 0);
    compact(&mut node);
    assert_eq!(snapshots(&backed), 1, "it was asked for");
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn a_setting_that_is_none_stops_the_node_by_name() {
    let backed = Backed::fresh();
    backed.set_in_lock("compaction", json!({"tail_byte": 1}));
    let mut node = Node::new(backed.config());
    let reason = lockstep_tests::backed::reason_not_to_go_on(&mut node);
    assert!(reason.contains("tail_byte"), "{reason}");
}

#[test]
fn a_node_that_was_shut_out_does_not_publish() {
    let (backed, mut zombie, mut workload) = running(5, json!({}));
    compact(&mut zombie);
    Backed::write(&mut zombie, &mut workload, 20);
    let dest = backed.dir().make_dir("restored/regtest");
    fs::copy(backed.network_file("hsm_secret"), dest.join("hsm_secret")).unwrap();
    Cli::new(["restore", "--take-over", &backed.url()]).arg(&dest).run().expect_success();
    let before = snapshots(&backed);
    ask(&mut zombie);
    let status = wait(&mut zombie, "it fails", |status| status["error"] != Value::Null);
    assert!(status["error"]["message"].as_str().unwrap().contains("was taken over"), "{status}");
    assert_eq!(snapshots(&backed), before);
    logged(&zombie, "unusual", "was taken over");
}

#[test]
fn a_shadow_that_cannot_be_written_leaves_the_node_alone() {
    let backed = Backed::fresh();
    let shadow = backed.network_file("hsm_secret").join("shadow");
    backed.set_in_lock("compaction", json!({"tail_bytes": 1, "shadow": shadow}));
    let mut workload = Workload::new(WorkloadConfig::seeded(6).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 20);
    let failed = wait(&mut node, "it fails", |status| status["error"] != Value::Null);
    assert!(failed["error"]["message"].as_str().unwrap().contains("shadow"), "{failed}");
    sleep(A_WHILE);
    Backed::write(&mut node, &mut workload, 20);
    let lines = node.logs();
    let lines = lines.iter().filter(|line| line.message.contains("compaction")).collect::<Vec<_>>();
    assert_eq!(lines.len(), 1, "one line, then back-off: {lines:?}");
    assert_eq!(lines[0].level, "unusual");
    assert!(lines[0].message.contains("the backup goes on without it"), "{lines:?}");
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn a_folder_with_something_else_in_it_is_left_as_it_is() {
    let backed = Backed::fresh();
    let folder = backed.dir().make_dir("precious");
    fs::write(folder.join("photo"), "of the cat").unwrap();
    backed.set_in_lock("compaction", json!({"tail_bytes": 1, "shadow": folder}));
    let mut workload = Workload::new(WorkloadConfig::seeded(7).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 20);
    wait(&mut node, "it fails", |status| status["error"] != Value::Null);
    logged(&node, "unusual", "holds something else");
    assert_eq!(files_under(&folder), [Path::new("photo")]);
}

#[test]
fn a_database_that_is_too_large_is_not_copied() {
    // By itself it might begin while there is hardly a database.
    let (backed, mut node, _) = running(8, json!({"enabled": false, "shadow_max_bytes": 4096}));
    node.call("backup-compact", &json!({})).unwrap();
    wait(&mut node, "it fails", |status| status["error"] != Value::Null);
    logged(&node, "unusual", "'shadow_max_bytes' is 4096");
    assert_eq!(snapshots(&backed), 0);
    assert!(!backed.network_file("backup.shadow").exists());
}

/// The first page of each table and index.
fn first_pages(database: &Path) -> Vec<u64> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let name = format!("file:{}?immutable=1", database.display());
    let database = Connection::open_with_flags(name, flags).unwrap();
    let mut pages = database.prepare("SELECT rootpage FROM sqlite_schema").unwrap();
    let pages = pages.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    pages.map(|page| page.unwrap().cast_unsigned()).filter(|&page| page > 1).collect()
}

#[test]
fn a_shadow_that_is_damaged_is_made_anew() {
    let (backed, mut node, mut workload) = running(9, json!({}));
    compact(&mut node);
    node.kill().unwrap();
    let shadow = backed.network_file("backup.shadow/shadow.sqlite3");
    let file = fs::OpenOptions::new().write(true).open(&shadow).unwrap();
    // Not the schema, which opening reads: only the replay or the proof can find it.
    for page in first_pages(&shadow) {
        file.write_all_at(&[0xa5; 200], (page - 1) * 4096).unwrap();
    }
    workload.restarted();
    node.start().unwrap();
    node.init().unwrap();
    Backed::write(&mut node, &mut workload, 100);
    compact(&mut node);
    logged(&node, "unusual", "making the shadow anew");
    assert_eq!(backed.check(&node), Standing::Committed);
    backed.cli("verify").expect_success();
}

#[test]
fn it_may_be_killed_at_any_moment() {
    let seed = std::env::var("LOCKSTEP_SEED").ok().map_or_else(
        || fastrand::u64(..1_000_000),
        |seed| seed.parse().expect("LOCKSTEP_SEED is a number"),
    );
    println!("LOCKSTEP_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let (backed, mut node, mut workload) = running(seed, json!({}));
    let began = Instant::now();
    compact(&mut node);
    // It rests while the node writes, and takes longer than this one.
    let longest = 4 * began.elapsed();
    let (deaths, mut midway, mut phases) = (ci_or_long(25, 500), 0, Vec::new());
    for death in 0..deaths {
        if rng.u8(..5) == 0 {
            let _ = fs::remove_dir_all(backed.network_file("backup.shadow"));
        }
        let steps = rng.usize(1..30);
        Backed::write(&mut node, &mut workload, steps);
        ask(&mut node);
        let until = Instant::now() + longest.mul_f64(rng.f64());
        // A blind moment, or as soon as it publishes.
        let blind = rng.bool();
        while blind && Instant::now() < until {
            if rng.bool() {
                sleep(Duration::from_millis(2));
            } else {
                node.write(&workload.propose()).unwrap().expect_committed();
            }
        }
        let mut running = status(&mut node)["running"].clone();
        while !blind && !running.is_null() && running["phase"] != "publish" {
            running = status(&mut node)["running"].clone();
        }
        if let Some(phase) = running["phase"].as_str() {
            midway += 1;
            phases.push(phase.to_owned());
        }
        if rng.bool() {
            node.kill().unwrap();
        } else {
            let crash = Crash::random(&mut rng, Duration::from_millis(3));
            if !node.crash(&workload.propose(), &crash).unwrap().committed {
                workload.abandon();
            }
        }
        // Judges it row by row.
        backed.check(&node);
        workload.restarted();
        node.start().unwrap();
        node.init().unwrap();
        let step = workload.propose();
        node.write(&step).unwrap().expect_committed();
        if death % 10 == 9 {
            compact(&mut node);
            assert_eq!(backed.check(&node), Standing::Committed);
        }
    }
    phases.sort();
    println!("{midway} of {deaths} deaths amid a compaction: {:?}", {
        let mut counts = Vec::<(String, u32)>::new();
        for phase in phases {
            match counts.last_mut() {
                Some((last, count)) if *last == phase => *count += 1,
                _ => counts.push((phase, 1)),
            }
        }
        counts
    });
    assert!(midway > deaths / 8, "{midway} of {deaths}");
    compact(&mut node);
    assert_eq!(backed.check(&node), Standing::Committed);
    backed.cli("verify").expect_success();
}

#[test]
fn the_database_is_restored_equal_while_it_grows_and_is_compacted() {
    let (backed, mut node, mut workload) = running(10, json!({"tail_bytes": 1}));
    let batches = ci_or_long(1_500, 50_000);
    for _ in 0..5 {
        let before = snapshots(&backed);
        Backed::write(&mut node, &mut workload, batches / 5);
        node.write(&Step::transaction(["DELETE FROM forwards"])).unwrap().expect_committed();
        wait(&mut node, "one more", |_| snapshots(&backed) > before);
        assert_eq!(backed.check(&node), Standing::Committed);
    }
    let plugin = node.plugin().unwrap().id();
    let kernel = fs::read_to_string(format!("/proc/{plugin}/status")).unwrap();
    let peak = kernel.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let peak: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("at most {peak} KiB resident, {} snapshots", snapshots(&backed));
    assert!(peak <= 64 << 10, "{peak} KiB");
}
