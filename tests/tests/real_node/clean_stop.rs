//! A node that was stopped in order is restorable as it is, not only after its next start: nothing that
//! lightningd writes on its way out is missing at the destination.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use lockstep_tests::oracle;
use lockstep_tests::real::backup::{WALLET, data_version};
use lockstep_tests::real::channel::{Pair, pay};
use lockstep_tests::real::daemons::say;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions, long, recorder};
use lockstep_tests::testdir::TestDir;

#[test]
fn record_for_lightningd() -> std::io::Result<()> {
    recorder::run()
}

/// How many transactions the log lacked, over a number of stops.
#[derive(Default)]
struct Missing(BTreeMap<i64, u32>);

impl Missing {
    /// Looks at a node that has just been stopped.
    fn note(&mut self, backup: &Backup, stopped: &NodeOptions) {
        let database = data_version(&stopped.network_dir().join(WALLET));
        let missing = i64::from(database) - i64::from(backup.head(stopped));
        *self.0.entry(missing).or_default() += 1;
    }

    /// What was seen is said, whatever it is; anything but nothing fails.
    #[track_caller]
    fn expect_nothing(self, daemons: &Daemons, what: &str) {
        say(&format!(
            "clean stop, {}, {what}: missing transactions: stops {:?}",
            daemons.version(),
            self.0
        ));
        assert!(self.0.keys().all(|missing| *missing == 0), "{what}: {:?}", self.0);
    }
}

/// What the destination holds is what the stopped node has.
#[track_caller]
fn expect_restorable(dir: &TestDir, backup: &Backup, stopped: &NodeOptions) {
    let restored = dir.path("restored.sqlite3");
    backup.look(stopped, &restored);
    oracle::assert_same(&stopped.network_dir().join(WALLET), &restored);
}

fn stops() -> u32 {
    if long() { 20 } else { 2 }
}

#[test]
fn an_idle_node_with_every_plugin_stops_with_a_complete_backup() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let mut options = NodeOptions::new(&daemons, &bitcoind, dir.path("node")).production();
    let backup = Backup::init(&options, dir.file_url("store"));
    let mut missing = Missing::default();
    for _ in 0..stops() {
        options = options.start().stop();
        missing.note(&backup, &options);
    }
    missing.expect_nothing(&daemons, "idle");
    expect_restorable(&dir, &backup, &options);
}

#[test]
fn a_node_amid_payments_stops_with_a_complete_backup() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let pair = Pair::start(&daemons, &dir.path("net"));
    let mut options = pair.node("node");
    let backup = Backup::init(&options, dir.file_url("store"));
    let mut node = options.start();
    pair.open_channel(&node);
    let mut missing = Missing::default();
    for round in 0..stops() {
        options = stop_amid_payments(&pair, node);
        missing.note(&backup, &options);
        if round == 0 {
            expect_restorable(&dir, &backup, &options);
        }
        node = options.start();
        node.connect(&pair.peer);
        pair.wait_for_channels(&node, 1);
    }
    missing.expect_nothing(&daemons, "amid payments");
}

/// `stop` comes while payments go both ways.
fn stop_amid_payments(pair: &Pair, node: Node) -> NodeOptions {
    let payer = |from: &Node, to: &Node| {
        let (from, to) = (from.caller(), to.caller());
        // It ends with an error when the node has gone; and where it cannot end, with this process.
        thread::spawn(move || while pay(&from, &to, &mut fastrand::Rng::new()).is_ok() {})
    };
    payer(&node, &pair.peer);
    payer(&pair.peer, &node);
    thread::sleep(Duration::from_millis(fastrand::u64(200..1_200)));
    node.stop()
}

#[test]
fn a_plugin_that_stays_and_writes_late_is_waited_for() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let after = Duration::from_millis(2_500);
    let late = recorder::late_writer(&dir.path("late.sh"), "clean_stop", after);
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node")).production();
    let mut options = options.arg(format!("--plugin={}", late.display()));
    let backup = Backup::init(&options, dir.file_url("store"));
    let mut missing = Missing::default();
    for _ in 0..stops() {
        options = options.start().stop();
        missing.note(&backup, &options);
    }
    missing.expect_nothing(&daemons, "a plugin that writes late");
}
