//! The simulator against a fake plugin: it must ask as lightningd asks, die
//! where it is told to, and know what a backup owes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use lockstep_tests::sim::{
    Answer, Crash, CrashPoint, Database, Fate, Node, NodeConfig, Outcome, Reply, Sent, SimError,
    Standing, Victim,
};
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::{Trace, Traces, Workload, WorkloadConfig};
use lockstep_tests::{Batch, Step, oracle};
use serde_json::json;

fn config(dir: &TestDir) -> NodeConfig {
    NodeConfig::new(env!("CARGO_BIN_EXE_lockstep-fake-plugin"), dir.network_dir())
}

fn misbehaving(dir: &TestDir, behaviour: &str) -> NodeConfig {
    let timeout = Duration::from_millis(500);
    config(dir).env("FAKE_BEHAVIOUR", behaviour).reply_timeout(timeout)
}

/// A running node after its migrations.
fn running(config: NodeConfig, seed: u64) -> (Node, Workload) {
    let mut node = Node::launch(config).unwrap();
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean());
    for _ in 0..workload.migrations_left() {
        let step = workload.next().unwrap();
        node.write(&step).unwrap().expect_committed();
    }
    node.init().unwrap();
    (node, workload)
}

/// The batches that the fake plugin holds, with `None` where a session began.
fn logged(directory: &Path) -> Vec<Option<Batch>> {
    let text = fs::read_to_string(directory.join("fake.jsonl")).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Restores from the fake plugin's log, by two rules about sessions. The first
/// transaction of a session replaces the last one if it has its version. And a
/// session begins with foreign keys on, also where the one before died with
/// them off, inside the window of a rebuild.
fn restored(dir: &TestDir, name: &str) -> PathBuf {
    let mut kept: Vec<Option<Batch>> = Vec::new();
    let mut fresh = true;
    for batch in logged(&dir.network_dir()) {
        let transaction = batch.as_ref().filter(|batch| !batch.is_pragma_only());
        if let Some(batch) = transaction.filter(|_| fresh) {
            let is_transaction =
                |kept: &Option<Batch>| kept.as_ref().is_some_and(|kept| !kept.is_pragma_only());
            if let Some(last) = kept.iter().rposition(is_transaction)
                && kept[last].as_ref().map(|kept| kept.data_version) == Some(batch.data_version)
            {
                kept.remove(last);
            }
            fresh = false;
        }
        fresh |= batch.is_none();
        kept.push(batch);
    }
    let path = dir.path(name);
    // Of an earlier restore, if any.
    let _ = fs::remove_file(&path);
    let database = Database::open(&path, false).unwrap();
    for batch in kept {
        match batch {
            Some(batch) => database.replay(&batch).unwrap(),
            None => drop(database.apply(&Step::foreign_keys(true)).unwrap()),
        }
    }
    path
}

#[test]
fn a_session_goes_as_lightningds_does() {
    let dir = TestDir::new();
    let (mut node, mut workload) = running(config(&dir), 1);
    for step in workload.by_ref().take(40) {
        node.write(&step).unwrap().expect_committed();
    }
    assert_eq!(node.manifest().methods(), ["backup-status"]);
    let reply = node.call("backup-status", &json!({})).unwrap();
    assert_eq!(reply.result().unwrap()["state"], "ok");
    let reply = node.call("nonsense", &json!([])).unwrap();
    assert!(matches!(reply, Reply::Error(_)));
    let block = json!({"block_added": {"hash": "00", "height": 9}});
    assert!(node.notify("block_added", &block).unwrap());
    assert!(!node.notify("warning", &json!({})).unwrap());

    let status = node.shutdown().unwrap();
    assert!(status.unwrap().success());
    let before = node.ledger().committed_version().unwrap();
    let last = node.commit_unhooked(&Step::transaction(["DELETE FROM forwards"])).unwrap();
    node.stop().unwrap();

    assert_eq!(last, before + 1);
    assert!(node.logged("notified of block_added"));
    assert!(node.stderr().contains("fake plugin is here"));
    let asked: Vec<u32> =
        logged(&dir.network_dir()).into_iter().flatten().map(|batch| batch.data_version).collect();
    assert_eq!(asked, node.ledger().acknowledged().collect::<Vec<_>>());
    let attempts = node.ledger().attempts();
    let pragmas = attempts.iter().filter(|attempt| attempt.pragma).count();
    assert!(pragmas >= 2);
    assert_eq!(attempts.len(), before as usize + pragmas);
}

#[test]
fn a_refusal_stops_the_node_without_commit() {
    for (behaviour, words) in [("refuse@12", "fail"), ("error@12", "disk is full")] {
        let dir = TestDir::new();
        let (mut node, mut workload) = running(misbehaving(&dir, behaviour), 2);
        let message = loop {
            match node.write(&workload.propose()).unwrap() {
                Outcome::Committed { .. } => {}
                other => break other.expect_refused(),
            }
        };
        assert!(message.contains(words), "{message}");
        assert!(!node.is_running());
        assert_eq!(node.ledger().committed_version(), Some(11));
        assert_eq!(node.ledger().pending().unwrap().fate, Fate::Asked);
        let database = Database::open(node.database_path(), false).unwrap();
        assert_eq!(database.data_version().unwrap(), 11);
    }
}

#[test]
fn the_death_of_the_plugin_stops_the_node() {
    let dir = TestDir::new();
    let mut node = Node::launch(misbehaving(&dir, "die@1")).unwrap();
    let step = Workload::seeded(1).next().unwrap();
    let Outcome::PluginDied { status, stderr } = node.write(&step).unwrap() else {
        panic!("it should have died");
    };
    assert_eq!(status.unwrap().code(), Some(3));
    assert!(stderr.contains("fake plugin is here"));
    assert!(!node.is_running());
    assert!(matches!(node.write(&step), Err(SimError::NotRunning)));
}

#[test]
fn protocol_faults_are_errors() {
    let write = |behaviour: &str| {
        let dir = TestDir::new();
        let mut node = Node::launch(misbehaving(&dir, behaviour))?;
        let mut workload = Workload::seeded(1);
        for _ in 0..2 {
            node.write(&workload.next().unwrap())?.expect_committed();
        }
        Ok(())
    };
    let fault = |behaviour: &str| write(behaviour).unwrap_err();
    assert!(matches!(fault("hang"), SimError::Timeout { .. }));
    assert!(matches!(fault("deaf"), SimError::Timeout { .. }));
    assert!(matches!(fault("answer-twice"), SimError::Protocol(_)));
    assert!(matches!(fault("wrong-id"), SimError::Protocol(_)));
    assert!(matches!(fault("garbage"), SimError::Protocol(_)));
    assert!(matches!(fault("no-hook"), SimError::Protocol(_)));
    assert!(matches!(fault("disable"), SimError::Disabled(_)));
    assert!(write("").is_ok());
}

#[test]
fn other_requests_are_answered_while_writes_go_on() {
    let dir = TestDir::new();
    let (mut node, mut workload) = running(config(&dir), 3);
    let id = node.send_call("backup-status", &json!({})).unwrap();
    let step = workload.next().unwrap();
    node.write(&step).unwrap().expect_committed();
    let reply = node.reply(&id, Duration::from_secs(5)).unwrap();
    assert!(reply.result().is_some());
}

#[test]
fn anything_can_be_asked_without_a_transaction() {
    let dir = TestDir::new();
    let (mut node, _) = running(config(&dir), 4);
    let before = node.ledger().committed_version();
    let wrong = Batch { data_version: 4_000, writes: Vec::new() };
    assert_eq!(node.ask_raw(&wrong).unwrap(), Answer::Continue);
    assert_eq!(node.ledger().committed_version(), before);
    assert_eq!(logged(node.directory()).pop(), Some(Some(wrong)));
}

/// What a crash leaves: whether the node committed, and what a backup holds.
fn crash_once(crash: Crash) -> (bool, Standing, Fate) {
    let dir = TestDir::new();
    let (mut node, mut workload) = running(config(&dir), 5);
    for step in workload.by_ref().take(5) {
        node.write(&step).unwrap().expect_committed();
    }
    let report = node.crash(&workload.propose(), &crash).unwrap();
    assert!(!node.is_running());
    let hot = dir.network_dir().join("lightningd.sqlite3-journal");
    assert_eq!(hot.exists(), crash.hot_journal && !report.committed);
    let standing = node.check_restored(&restored(&dir, "restored")).unwrap();
    let fate = node.ledger().attempts().last().unwrap().fate;
    node.start().unwrap();
    let version = node.database().unwrap().data_version().unwrap();
    assert_eq!(Some(version), node.ledger().committed_version());
    (report.committed, standing, fate)
}

#[test]
fn every_crash_point_leaves_what_it_should() {
    let inside = |sent, after| CrashPoint::InsideHook { sent, after };
    let long = Duration::from_millis(200);
    for victim in [Victim::Plugin, Victim::Node, Victim::Both] {
        let crash = |point| crash_once(Crash::of(victim, point));
        let lost = (false, Standing::Committed, Fate::Unsent);
        assert_eq!(crash(CrashPoint::BeforeHook), lost);
        assert_eq!(crash(inside(Sent::Part(0.7), long)), lost);

        let (committed, standing, fate) = crash(CrashPoint::AfterAck);
        assert_eq!((committed, fate), (false, Fate::Acknowledged));
        assert!(matches!(standing, Standing::Pending { .. }));

        let kept = (true, Standing::Committed, Fate::Committed);
        assert_eq!(crash(CrashPoint::AfterCommit), kept);

        for sent in [Sent::AllButBlankLine, Sent::All] {
            let (committed, standing, fate) = crash(inside(sent, long));
            if victim == Victim::Plugin {
                assert_eq!((committed, standing, fate), kept);
            } else {
                assert!(!committed);
                assert!(matches!(standing, Standing::Pending { .. }));
                assert_eq!(fate, Fate::Acknowledged);
            }
        }
    }
}

#[test]
fn a_pragma_first_abandons_no_acknowledged_batch() {
    let dir = TestDir::new();
    let (mut node, mut workload) = running(config(&dir), 8);
    let lost = Crash::both(CrashPoint::AfterAck);
    let report = node.crash(&workload.propose(), &lost).unwrap();
    workload.abandon();
    let pending = Standing::Pending { data_version: report.data_version };
    // The first call of a session: the version before the lost batch's.
    node.start().unwrap();
    node.crash(&Step::foreign_keys(false), &lost).unwrap();
    let standing = node.check_restored(&restored(&dir, "restored")).unwrap();
    assert_eq!(standing, pending);
    node.start().unwrap();
    for step in [Step::foreign_keys(false), Step::foreign_keys(true)] {
        let version = node.write(&step).unwrap().expect_committed();
        assert_eq!(version + 1, report.data_version);
    }
    let standing = node.check_restored(&restored(&dir, "restored")).unwrap();
    assert_eq!(standing, pending);
    // The first transaction, and only it, replaces what was lost.
    let version = node.write(&workload.propose()).unwrap().expect_committed();
    assert_eq!(version, report.data_version);
    let standing = node.check_restored(&restored(&dir, "restored")).unwrap();
    assert_eq!(standing, Standing::Committed);
}

#[test]
fn a_session_begins_with_foreign_keys_on() {
    let dir = TestDir::new();
    let (mut node, _) = running(config(&dir), 9);
    let rows = [
        "INSERT INTO blocks (height) VALUES (7)",
        "INSERT INTO outputs (prev_out_tx, prev_out_index, spend_height) VALUES (x'00', 0, 7)",
    ];
    node.write(&Step::transaction(rows)).unwrap().expect_committed();
    let off = Step::foreign_keys(false);
    node.crash(&off, &Crash::both(CrashPoint::AfterCommit)).unwrap();
    node.start().unwrap();
    // Sets the output's height to NULL: the earlier session's OFF is gone.
    let delete = Step::transaction(["DELETE FROM blocks WHERE height = 7"]);
    node.write(&delete).unwrap().expect_committed();
    let nulls: i64 = node
        .database()
        .unwrap()
        .connection()
        .query_row("SELECT count(*) FROM outputs WHERE spend_height IS NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(nulls, 1);
    let standing = node.check_restored(&restored(&dir, "restored")).unwrap();
    assert_eq!(standing, Standing::Committed);
}

#[test]
fn a_hot_journal_can_be_left() {
    let crash = Crash::both(CrashPoint::AfterAck).with_hot_journal();
    let (committed, standing, _) = crash_once(crash);
    assert!(!committed);
    assert!(matches!(standing, Standing::Pending { .. }));
}

#[test]
fn random_deaths_and_replays() {
    let seed = match std::env::var("LOCKSTEP_SEED") {
        Ok(seed) => seed.parse().expect("LOCKSTEP_SEED is a number"),
        Err(_) => 20,
    };
    println!("LOCKSTEP_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let dir = TestDir::new();
    let mut node = Node::launch(config(&dir)).unwrap();
    let mut settings = WorkloadConfig::seeded(seed).lean();
    settings.migration_every = 10;
    let mut workload = Workload::new(settings);
    let mut pending = 0;
    for _ in 0..60 {
        for _ in 0..rng.usize(..8) {
            let step = workload.propose();
            node.write(&step).unwrap().expect_committed();
        }
        let crash = Crash::random(&mut rng, Duration::from_micros(1_500));
        let report = node.crash(&workload.propose(), &crash).unwrap();
        if !report.committed {
            workload.abandon();
        }
        let standing = node.check_restored(&restored(&dir, "restored")).unwrap();
        pending += usize::from(standing != Standing::Committed);
        workload.restarted();
        node.start().unwrap();
    }
    assert!(pending > 0, "no crash left a batch behind");
    let sessions = node.session();
    assert_eq!(sessions, 61);
}

#[test]
fn a_wrong_restore_is_described() {
    let dir = TestDir::new();
    let (mut node, mut workload) = running(config(&dir), 6);
    let older = dir.path("older");
    node.oracle(&older).unwrap();
    let blocks = "INSERT INTO blocks (height) VALUES (7), (8)";
    node.write(&Step::transaction([blocks])).unwrap().expect_committed();
    let error = node.check_restored(&older).unwrap_err().to_string();
    assert!(error.contains("unlike the committed state"), "{error}");
    assert!(error.contains("table vars") || error.contains("blocks"), "{error}");

    node.crash(&workload.propose(), &Crash::both(CrashPoint::AfterAck)).unwrap();
    // Acknowledged: the committed state alone is a loss.
    let committed = dir.path("committed");
    node.oracle(&committed).unwrap();
    node.check_restored(&committed).unwrap_err();
}

#[test]
fn an_older_database_can_be_put_in_place() {
    let dir = TestDir::new();
    let (mut node, mut workload) = running(config(&dir), 7);
    let older = dir.path("older");
    node.oracle(&older).unwrap();
    let then = node.ledger().committed_version();
    let fitting = workload.clone();
    for step in workload.by_ref().take(5) {
        node.write(&step).unwrap().expect_committed();
    }
    assert!(matches!(node.replace_database(&older), Err(SimError::Busy(_))));
    node.kill().unwrap();
    node.replace_database(&older).unwrap();
    assert_eq!(node.ledger().committed_version(), then);
    node.start().unwrap();
    for step in fitting.take(5) {
        node.write(&step).unwrap().expect_committed();
    }
}

#[test]
fn the_recorded_session_goes_through_the_simulator() {
    let dir = TestDir::new();
    let mut node = Node::launch(config(&dir)).unwrap();
    let Some(traces) = Traces::locate_or_say("the_recorded_session_goes_through_the_simulator")
    else {
        return;
    };
    let mut expected = Vec::new();
    for batch in traces.read(Trace::Node).unwrap() {
        let batch = batch.unwrap();
        expected.push(batch.data_version);
        node.write(&Step::from(batch)).unwrap().expect_committed();
        if expected.len() == 9 {
            node.init().unwrap();
        }
    }
    node.stop().unwrap();
    assert!(node.ledger().acknowledged().eq(expected.iter().copied()));
    assert_eq!(oracle::row_count(&node.database_path()).unwrap(), 6_683);

    node.start().unwrap();
    for batch in traces.read(Trace::NodeRestart).unwrap() {
        node.write(&Step::from(batch.unwrap())).unwrap().expect_committed();
    }
    node.stop().unwrap();
    let restored = restored(&dir, "restored");
    assert_eq!(node.check_restored(&restored).unwrap(), Standing::Committed);
}
