//! What networks and servers do to a node whose backup is behind them: nothing is acknowledged that is not stored,
//! nothing is lost, and what passes is waited for.

use std::thread;
use std::time::{Duration, Instant};

use lockstep_tests::Step;
use lockstep_tests::backed::Backed;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::servers::faulty::Request;
use lockstep_tests::servers::{Fault, Proxy, moto};
use lockstep_tests::sim::{Node, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};

/// A node that runs, its backup on moto, and what is between them.
struct Scene {
    proxy: Proxy,
    backed: Backed,
    node: Node,
    workload: Workload,
}

impl Scene {
    /// `None` where moto is not installed.
    fn new(seed: u64) -> Option<Self> {
        Self::with_stall_timeout(seed, 60)
    }

    fn with_stall_timeout(seed: u64, seconds: u64) -> Option<Self> {
        let proxy = Proxy::before(moto::shared()?);
        let backed = Backed::at(proxy.prefix("faults"), proxy.env.clone());
        backed.init().run().expect_success();
        backed.set_in_lock("stall_timeout_s", seconds.into());
        let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean());
        let mut node = backed.running(&mut workload);
        Backed::write(&mut node, &mut workload, 5);
        Some(Self { proxy, backed, node, workload })
    }

    /// Writes on, and what is restored afterwards is the node's.
    #[track_caller]
    fn expect_all_is_well(&mut self) {
        Backed::write(&mut self.node, &mut self.workload, 5);
        assert_eq!(self.backed.check(&self.node), Standing::Committed);
        self.backed.cli("verify").expect_success();
    }

    /// This happens to the next so many records on their way.
    fn fail_appends(&self, times: usize, fault: Fault) {
        let mut left = times;
        self.proxy.plan(move |request| {
            if left == 0 || !is_append(request) {
                return Fault::Pass;
            }
            left -= 1;
            fault
        });
    }

    fn appends(&self) -> Vec<String> {
        let requests = self.proxy.requests();
        requests.into_iter().filter(is_append).map(|request| request.target).collect()
    }
}

fn is_append(request: &Request) -> bool {
    request.method == "PUT" && request.target.contains("/tail/")
}

/// A batch that can be told from any other.
fn marked(mark: &str) -> Step {
    Step::transaction([format!("INSERT INTO vars (name, intval) VALUES ('{mark}', 1)")])
}

/// The record is stored, and its writer does not learn it at first.
#[track_caller]
fn a_record_is_acknowledged_once(seed: u64, fault: Fault) {
    let Some(mut scene) = Scene::new(seed) else { return };
    for times in 1..=3 {
        let before = scene.appends().len();
        scene.fail_appends(times, fault);
        scene.node.write(&marked(&format!("mark {times}"))).unwrap().expect_committed();
        let puts = scene.appends().split_off(before);
        assert!(puts.len() > 1 && puts.iter().all(|put| *put == puts[0]), "{puts:?}");
        assert_eq!(scene.backed.check(&scene.node), Standing::Committed);
    }
    scene.expect_all_is_well();
    scene.node.stop().unwrap();
    scene.node.start().unwrap();
    scene.expect_all_is_well();
}

#[test]
fn a_record_whose_answer_is_lost_is_acknowledged_once() {
    a_record_is_acknowledged_once(1, Fault::LoseAnswer);
}

#[test]
fn a_record_whose_answer_is_503_is_acknowledged_once() {
    a_record_is_acknowledged_once(2, Fault::FailAfterwards);
}

#[test]
fn a_record_that_was_lost_on_the_way_is_sent_again() {
    a_record_is_acknowledged_once(3, Fault::LoseRequest);
}

#[test]
fn a_server_that_is_overloaded_for_a_while_is_waited_for() {
    let Some(mut scene) = Scene::new(4) else { return };
    let began = Instant::now();
    let overloaded = Duration::from_millis(1500);
    scene.proxy.plan(move |_| match began.elapsed() < overloaded {
        true => Fault::SlowDown,
        false => Fault::Pass,
    });
    scene.node.write(&marked("later")).unwrap().expect_committed();
    assert!(began.elapsed() >= overloaded);
    scene.expect_all_is_well();
}

#[test]
fn a_server_that_is_away_for_three_seconds_is_waited_for() {
    let Some(mut scene) = Scene::new(5) else { return };
    let away = Duration::from_secs(3);
    let began = Instant::now();
    scene.proxy.refuse();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(away);
            scene.proxy.accept();
        });
        scene.node.write(&marked("later")).unwrap().expect_committed();
    });
    assert!(began.elapsed() >= away);
    scene.expect_all_is_well();
}

#[test]
fn a_server_that_is_away_for_too_long_stops_the_node_without_a_commit() {
    let Some(mut scene) = Scene::with_stall_timeout(6, 3) else { return };
    let before = scene.node.ledger().committed_version();
    scene.proxy.refuse();
    let began = Instant::now();
    let message = scene.node.write(&marked("never")).unwrap().expect_refused();
    let waited = began.elapsed();
    assert!(Duration::from_secs(3) <= waited && waited < Duration::from_secs(9), "{waited:?}");
    assert!(message.contains("hint: ") && message.contains("s3://"), "{message}");
    assert_eq!(scene.node.ledger().committed_version(), before);
    scene.proxy.accept();
    scene.backed.check(&scene.node);
    scene.node.start().unwrap();
    scene.expect_all_is_well();
}

#[test]
fn a_server_that_takes_and_never_answers_stops_the_node_without_a_commit() {
    let Some(mut scene) = Scene::with_stall_timeout(7, 2) else { return };
    let before = scene.node.ledger().committed_version();
    scene.fail_appends(1, Fault::Late(Duration::from_secs(8)));
    let began = Instant::now();
    let message = scene.node.write(&marked("never")).unwrap().expect_refused();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(message.contains("hint: ") && message.contains("not committed"), "{message}");
    assert_eq!(scene.node.ledger().committed_version(), before);
    scene.node.start().unwrap();
    scene.expect_all_is_well();
    // By now it has arrived, and its number was taken.
    thread::sleep(Duration::from_secs(8).saturating_sub(began.elapsed()));
    scene.expect_all_is_well();
}

#[test]
fn a_restore_asks_again_for_what_was_cut_off() {
    let Some(mut scene) = Scene::new(8) else { return };
    scene.node.stop().unwrap();
    scene.backed.cli("compact").expect_success();
    let mut seen = Vec::new();
    scene.proxy.plan(move |request| {
        if request.method != "GET" || seen.contains(&request.target) {
            return Fault::Pass;
        }
        seen.push(request.target.clone());
        Fault::CutBody
    });
    scene.backed.check_same_as(&scene.node.database_path());
}

#[test]
fn a_restore_of_which_all_is_cut_off_fails_and_leaves_nothing() {
    let Some(scene) = Scene::new(9) else { return };
    let dest = scene.backed.new_dest();
    let mut gets = 0;
    // From different moments on.
    for from in [0, 1, 3] {
        gets = scene.proxy.count("GET");
        scene.proxy.plan(move |request| {
            match request.method == "GET" && request.earlier >= gets + from {
                true => Fault::CutBody,
                false => Fault::Pass,
            }
        });
        let output = scene.backed.restore(&dest).run();
        assert_ne!(output.code, Some(0), "{output}");
        assert!(output.stderr.contains("hint: "), "{output}");
        assert!(!dest.exists(), "{output}");
    }
    assert!(scene.proxy.count("GET") > gets);
    scene.proxy.pass();
    assert_eq!(scene.backed.check(&scene.node), Standing::Committed);
}

/// The node dies with a record on its way, which arrives later.
fn a_late_record(seed: u64, late: Duration, waits: bool) {
    let Some(mut scene) = Scene::new(seed) else { return };
    let before = scene.appends().len();
    scene.fail_appends(1, Fault::Late(late));
    let step = scene.workload.propose();
    let batch = scene.node.begin(&step).unwrap();
    scene.node.send_write(&batch).unwrap();
    wait_for("the record", || scene.appends().get(before).cloned());
    let sent = Instant::now();
    scene.node.kill().unwrap();
    scene.workload.abandon();
    if waits {
        thread::sleep(late + Duration::from_millis(300));
        let standing = scene.backed.check(&scene.node);
        assert!(matches!(standing, Standing::Pending { .. }), "it has arrived: {standing:?}");
    }
    scene.node.start().unwrap();
    scene.expect_all_is_well();
    thread::sleep((late + Duration::from_millis(300)).saturating_sub(sent.elapsed()));
    scene.expect_all_is_well();
    scene.node.stop().unwrap();
    scene.node.start().unwrap();
    scene.expect_all_is_well();
}

#[test]
fn a_record_that_arrives_after_its_writer_died_is_taken_up() {
    a_late_record(10, Duration::from_millis(500), true);
}

#[test]
fn a_record_that_arrives_while_the_next_session_opens_or_later_is_in_nobodys_way() {
    for (seed, late) in [(11, 20), (12, 100), (13, 1500)] {
        a_late_record(seed, Duration::from_millis(late), false);
    }
}
