//! What a node wrote is what is restored: recorded sessions of a real node, and
//! generated ones, through the plugin, its log and `backup-cli restore`.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_tests::backed::{Backed, ci_or_long};
use lockstep_tests::sim::{Crash, CrashPoint, Database, Node, Standing};
use lockstep_tests::workload::{Trace, Traces, Workload, WorkloadConfig};
use lockstep_tests::{Step, oracle};

/// Calls of the recorded session that came before `init`.
const BEFORE_INIT: usize = 9;

/// Sends a recording, whole, and gives the number of its calls.
fn send(node: &mut Node, traces: &Traces, trace: Trace, init_after: usize) -> usize {
    let mut calls = 0;
    for batch in traces.read(trace).unwrap() {
        let batch = batch.unwrap();
        let version = batch.data_version;
        let committed = node.write(&Step::from(batch)).unwrap().expect_committed();
        assert_eq!(committed, version, "the simulator counts as the node did");
        calls += 1;
        if calls == init_after {
            node.init().unwrap();
        }
    }
    calls
}

/// Sends generated steps in several sessions, each ended in another way.
fn send_generated(node: &mut Node, workload: &mut Workload, steps: usize, sessions: usize) {
    for session in 0..sessions {
        if session > 0 {
            match session % 3 {
                0 => drop(node.stop().unwrap()),
                1 => node.kill().unwrap(),
                _ => {
                    let report = node.crash(&workload.propose(), &LOST).unwrap();
                    assert!(!report.committed);
                    workload.abandon();
                }
            }
            workload.restarted();
            node.start().unwrap();
        }
        Backed::write(node, workload, steps / sessions);
        node.init().unwrap();
    }
    Backed::write(node, workload, steps % sessions);
}

/// Acknowledged, and lost by the node.
const LOST: Crash = Crash {
    point: CrashPoint::AfterAck,
    victim: lockstep_tests::sim::Victim::Both,
    hot_journal: false,
};

/// A generated workload in place of a recording.
fn generated(what: &str, steps: usize, sessions: usize) {
    let backed = Backed::fresh();
    let mut node = backed.launch();
    let began = Instant::now();
    send_generated(&mut node, &mut Workload::seeded(7), steps, sessions);
    let took = began.elapsed().as_secs_f64();
    println!("{what}: {steps} generated batches in {sessions} sessions written in {took:.1} s");
    restore_and_compare(&backed, &node, what);
}

/// Restores, compares every row with the simulator's own database, and says how long it took.
#[track_caller]
fn restore_and_compare(backed: &Backed, node: &Node, what: &str) {
    let began = Instant::now();
    let dest = backed.new_dest();
    let report = backed.restore(&dest).arg("--json").run().expect_success().json();
    let took = began.elapsed().as_secs_f64();
    assert_eq!(report["data_version"], node.ledger().committed_version().unwrap());
    assert_eq!(report["foreign_key_violations"].as_u64(), violations(&node.database_path()));
    oracle::assert_same(&node.database_path(), &dest);
    assert_eq!(node.check_restored(&dest).unwrap(), Standing::Committed);
    println!(
        "{what}: {} batches with {} statements restored in {took:.1} s, {} rows equal",
        report["batches"],
        report["statements"],
        oracle::row_count(&dest).unwrap()
    );
    std::fs::remove_file(dest).unwrap();
}

/// Rows that break a foreign key.
fn violations(database: &std::path::Path) -> Option<u64> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = rusqlite::Connection::open_with_flags(database, flags).unwrap();
    let count = "SELECT count(*) FROM pragma_foreign_key_check";
    database.query_row(count, [], |row| row.get::<_, i64>(0)).ok().map(i64::cast_unsigned)
}

#[test]
fn the_first_2500_calls_of_a_recorded_node_are_restored() {
    let name = "the_first_2500_calls_of_a_recorded_node_are_restored";
    let Some(traces) = Traces::locate_or_say(name) else { return generated(name, 2_500, 1) };
    let backed = Backed::fresh();
    let mut node = backed.launch();
    assert_eq!(send(&mut node, &traces, Trace::NodeStart, BEFORE_INIT), 2_500);
    restore_and_compare(&backed, &node, "node-start, while the node runs");
    node.stop().unwrap();
    restore_and_compare(&backed, &node, "node-start, after a stop");
}

#[test]
fn a_recorded_session_of_28150_calls_and_the_next_session_are_restored() {
    let name = "a_recorded_session_of_28150_calls_and_the_next_session_are_restored";
    let Some(traces) = Traces::locate_or_say(name) else { return generated(name, 5_000, 2) };
    let backed = Backed::fresh();
    let mut node = backed.launch();
    let began = Instant::now();
    assert_eq!(send(&mut node, &traces, Trace::Node, BEFORE_INIT), 28_150);
    println!("node: written in {:.1} s", began.elapsed().as_secs_f64());
    node.stop().unwrap();
    restore_and_compare(&backed, &node, "node");
    assert_eq!(oracle::row_count(&node.database_path()).unwrap(), 6_683);

    node.start().unwrap();
    assert_eq!(send(&mut node, &traces, Trace::NodeRestart, 1), 45);
    node.stop().unwrap();
    restore_and_compare(&backed, &node, "node, then node-restart");
    backed.cli("verify").expect_success();
}

#[test]
fn a_long_generated_run_in_several_sessions_is_restored() {
    let steps = ci_or_long(20_000, 100_000);
    generated("a_long_generated_run_in_several_sessions_is_restored", steps, 7);
}

#[test]
fn a_run_across_the_wrap_around_of_data_version_is_restored() {
    const BEFORE: u32 = 40;
    let config = WorkloadConfig::seeded(11).lean().start_version(u32::MAX - BEFORE);
    let mut workload = Workload::new(config);
    let backed = Backed::without_backup();
    // No node begins there: one that came so far gets its backup now.
    let database = Database::open(backed.config().database_path(), false).unwrap();
    for step in workload.by_ref().take(20) {
        database.apply(&step).unwrap();
    }
    drop(database);
    backed.init().run().expect_success();

    let mut node = backed.launch();
    let mut versions = Vec::new();
    let mut crashes = 0;
    loop {
        let step = workload.propose();
        // Around the wrap, each version is first acknowledged and lost.
        if !step.is_pragma() && versions.last().is_some_and(|last: &u32| last.wrapping_add(4) < 8) {
            let report = node.crash(&step, &LOST).unwrap();
            workload.abandon();
            let standing = backed.check(&node);
            assert_eq!(standing, Standing::Pending { data_version: report.data_version });
            workload.restarted();
            node.start().unwrap();
            crashes += 1;
            let step = workload.propose();
            versions.push(node.write(&step).unwrap().expect_committed());
        } else {
            versions.push(node.write(&step).unwrap().expect_committed());
        }
        if (100..u32::MAX / 2).contains(versions.last().unwrap()) {
            break;
        }
    }
    assert!(versions.contains(&u32::MAX) && versions.contains(&0));
    assert!(crashes >= 6, "{crashes} crashes around the wrap");
    restore_and_compare(&backed, &node, "wrap-around");
    node.stop().unwrap();
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 20);
    restore_and_compare(&backed, &node, "wrap-around, next session");
}

#[test]
fn a_statement_that_asks_for_the_time_is_restored_with_the_time_of_its_batch() {
    let backed = Backed::fresh();
    let mut node = backed.running(&mut Workload::seeded(3));
    let create = "CREATE TABLE asked (a, b, c, d, e)";
    node.write(&Step::transaction([create])).unwrap().expect_committed();
    // Node and plugin look at the clock one after the other: let it be within one second.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    sleep(Duration::from_millis(1_020 - u64::from(now.subsec_millis())));
    let ask = "INSERT INTO asked VALUES (strftime('%s', 'now'), datetime('now'), \
               CAST(strftime('%s','now') AS INTEGER) - 1, CURRENT_TIMESTAMP, 'now')";
    node.write(&Step::transaction([ask])).unwrap().expect_committed();
    sleep(Duration::from_millis(1_100));
    restore_and_compare(&backed, &node, "a statement that asks for the time");
}
