//! A node with a channel dies at random moments and comes back from its backup, again and again, and
//! goes on paying over the same channel.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_tests::real::backup::{Found, WALLET, compare_with_dead, data_version, rolled_back};
use lockstep_tests::real::channel::{Pair, channel_ids, pay, working};
use lockstep_tests::real::daemons::say;
use lockstep_tests::real::lightningd::Caller;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Daemons, Node, NodeOptions, long, recorder};
use lockstep_tests::testdir::TestDir;
use serde_json::json;

/// Repeats a run: `LOCKSTEP_SEED=…`.
const SEED_VARIABLE: &str = "LOCKSTEP_SEED";

#[test]
fn record_for_lightningd() -> std::io::Result<()> {
    recorder::run()
}

#[test]
fn a_node_that_dies_at_any_moment_goes_on_from_its_backup_over_the_same_channel() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let (rounds, payments) = if long() { (50, 500) } else { (3, 0) };
    let seed = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut campaign = Campaign::start(&daemons, Rng::with_seed(seed));
    let mut round = 0;
    while round < rounds || campaign.tally.paid_less_than(payments) {
        campaign.round(round);
        round += 1;
        if long() {
            say(&format!("money, seed {seed}: {}", campaign.tally));
        }
    }
    campaign.end();
    say(&format!("money, seed {seed}: {}", campaign.tally));
}

/// How it went.
#[derive(Default)]
struct Tally {
    rounds: u32,
    plugin_killed: u32,
    both_killed: u32,
    same: u32,
    in_flight: u32,
    in_flight_unknown: u32,
    went_on_alone: u32,
    crashed: u32,
    sent: u64,
    received: u64,
    blocks: u32,
    opened: u32,
    closed: u32,
    spliced: u32,
    restore_s_max: f64,
}

impl Tally {
    fn paid_less_than(&self, payments: u64) -> bool {
        self.sent.min(self.received) < payments
    }
}

impl Tally {
    /// lightningd dies of faults of its own (v26.06.6: in `htlc_set_add` where a peer connects while an
    /// open HTLC is replayed, in `replay_block` where a closed channel is forgotten meanwhile). For a
    /// backup that is one more death; anything else that ends it is a failure.
    #[track_caller]
    fn note_crash(&mut self, said: &str) {
        assert!(said.contains("FATAL SIGNAL"), "{said}");
        self.crashed += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills ({} of the plugin, {} of both); restored: {} the same, {} with the batch in flight, \
             {} with one that nobody noted; {} times the node went on without its plugin, {} times it crashed by itself; {} paid, {} received; {} opened, {} closed, {} spliced, {} \
             blocks; longest restore {:.1} s",
            self.rounds,
            self.plugin_killed,
            self.both_killed,
            self.same,
            self.in_flight,
            self.in_flight_unknown,
            self.went_on_alone,
            self.crashed,
            self.sent,
            self.received,
            self.opened,
            self.closed,
            self.spliced,
            self.blocks,
            self.restore_s_max,
        )
    }
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Node,
    Plugin,
    /// As by a power cut.
    Both,
}

struct Campaign {
    dir: TestDir,
    pair: Pair,
    backup: Backup,
    /// What is kept of the node besides its backup.
    secret: PathBuf,
    id: String,
    node: Option<Node>,
    lives: u32,
    rng: Rng,
    tally: Tally,
}

impl Campaign {
    fn start(daemons: &Daemons, rng: Rng) -> Self {
        let dir = TestDir::new();
        let pair = Pair::start(daemons, &dir.path("net"));
        let script = recorder::script(&dir.path("recorder.sh"), "money");
        let options = pair.node("life-0").arg(format!("--plugin={}", script.display()));
        let backup = Backup::init(&options, dir.file_url("store"));
        // The tables of production.
        let node = options.clone().production().start();
        let id = node.id();
        wait_for("the node slot", || {
            let status = node.backup_status();
            status["slots"].as_array()?.contains(&json!("node")).then_some(())
        });
        node.stop();
        let node = options.start();
        let secret = dir.path("secret");
        fs::copy(node.network_dir().join("hsm_secret"), &secret).unwrap();
        pair.open_channel(&node);
        let tally = Tally::default();
        Self { dir, pair, backup, secret, id, node: Some(node), lives: 0, rng, tally }
    }

    /// Traffic, death, restore, comparison, and the next life.
    fn round(&mut self, round: u32) {
        let node = self.node.take().unwrap();
        let (dead, end, traffic) = self.die_in_traffic(node, round);
        self.pair.assert_nothing_lost(&dead);
        self.tally.rounds += 1;
        let next = self.next_life(dead, end);
        self.node = Some(self.come_back(next));
        let (sent, received) = traffic.count();
        self.tally.sent += sent;
        self.tally.received += received;
    }

    /// A new directory from the backup, compared with what the dead node had.
    fn next_life(&mut self, dead: NodeOptions, end: End) -> NodeOptions {
        let batch = recorder::last_call(&dead.network_dir());
        // lightningd goes on without a plugin that died between two calls, until it has stopped. Its owner
        // starts it again: the plugin then takes a snapshot.
        if end == End::Plugin && self.is_ahead(&dead) {
            self.tally.went_on_alone += 1;
            return dead;
        }
        self.lives += 1;
        let name = format!("net/life-{}", self.lives);
        let next = dead.clone().moved_to(self.dir.path(name));
        let began = Instant::now();
        self.backup.restore_node(&next, &self.secret);
        self.tally.restore_s_max = self.tally.restore_s_max.max(began.elapsed().as_secs_f64());
        let (had, got) = (dead.network_dir().join(WALLET), next.network_dir().join(WALLET));
        match compare_with_dead(&had, &got, &self.dir.path("scratch"), batch.as_ref()) {
            Found::Same => self.tally.same += 1,
            Found::InFlight => self.tally.in_flight += 1,
            Found::InFlightUnknown => self.tally.in_flight_unknown += 1,
            Found::Behind(missing) => panic!("{missing} transactions are missing after {end:?}"),
        }
        fs::remove_dir_all(dead.base()).unwrap();
        next
    }

    fn is_ahead(&self, dead: &NodeOptions) -> bool {
        let database = rolled_back(&dead.network_dir().join(WALLET), &self.dir.path("scratch"));
        data_version(&database) > self.backup.head(dead)
    }

    /// Starts what was restored: the same node, the same channel, and money goes both ways.
    fn come_back(&mut self, options: NodeOptions) -> Node {
        const STARTS: u32 = 3;
        for _ in 1..STARTS {
            match self.start_and_pay(options.clone()) {
                Ok(node) => return node,
                // Its owner starts it again.
                Err(said) => self.tally.note_crash(&said),
            }
        }
        self.start_and_pay(options).unwrap_or_else(|said| panic!("again: {said}"))
    }

    /// A running node that has paid and been paid over its channel; or what it said before it ended.
    fn start_and_pay(&mut self, options: NodeOptions) -> Result<Node, String> {
        let mut node = options.try_start()?;
        let (ours, theirs) = (node.caller(), self.pair.peer.caller());
        let (mut sent, mut received) = (false, false);
        wait_for("the channel works and pays", || {
            if node.has_ended() {
                return Some(());
            }
            // Either side may have connected already.
            let _ = node.try_connect(&self.pair.peer);
            if working(&ours) == 0 || working(&theirs) == 0 {
                return None;
            }
            sent = sent || pay(&ours, &theirs, &mut self.rng).is_ok();
            received = received || pay(&theirs, &ours, &mut self.rng).is_ok();
            (sent && received).then_some(())
        });
        if node.has_ended() {
            return Err(node.log_tail());
        }
        assert_eq!(node.id(), self.id);
        self.pair.assert_nothing_lost(node.options());
        self.tally.sent += 1;
        self.tally.received += 1;
        Ok(node)
    }

    /// Payments go both ways, and channels come and go, until the node is killed.
    fn die_in_traffic(&mut self, mut node: Node, round: u32) -> (NodeOptions, End, Traffic) {
        let patience = Duration::from_millis(self.rng.u64(200..2_500));
        let traffic = Traffic::start(node.caller(), self.pair.peer.caller(), &mut self.rng);
        let began = Instant::now();
        self.change_channels(&node, round);
        thread::sleep(patience.saturating_sub(began.elapsed()));
        let end = [End::Plugin, End::Both, End::Node, End::Node, End::Node][self.rng.usize(..5)];
        let (end, options) = match end {
            _ if node.has_ended() => {
                self.tally.note_crash(&node.log_tail());
                (End::Node, node.kill())
            }
            End::Plugin => (end, node.kill_plugin()),
            End::Both => (end, node.kill_with_plugin()),
            End::Node => (end, node.kill()),
        };
        self.tally.plugin_killed += u32::from(end == End::Plugin);
        self.tally.both_killed += u32::from(end == End::Both);
        traffic.stop();
        (options, end, traffic)
    }

    /// What happens to channels in this round besides payments. Each may be refused, since it takes turns
    /// with the payments.
    fn change_channels(&mut self, node: &Node, round: u32) {
        let channels = channel_ids(&node.caller());
        match (round % 5, channels.as_slice()) {
            (1, _) => self.tally.opened += u32::from(self.pair.open_another(node).is_ok()),
            (2, [first, ..]) => {
                let splice = [("channel", json!(first)), ("amount", json!(50_000))];
                self.tally.spliced += u32::from(node.try_call("splicein", &splice).is_ok());
            }
            (3, [_, second, ..]) => {
                let close = [("id", json!(second)), ("unilateraltimeout", json!(0))];
                self.tally.closed += u32::from(node.try_call("close", &close).is_ok());
            }
            _ => {}
        }
        self.pair.bitcoind.generate(6);
        self.tally.blocks += 6;
    }

    /// After the last life everything that is stored is still proved, and a clean stop is one.
    fn end(&mut self) {
        let node = self.node.take().unwrap();
        self.pair.assert_nothing_lost(node.options());
        let options = node.stop();
        self.backup.verify(&options);
    }
}

/// Payments both ways at once, until told to stop. One that is open when the node dies goes on when the
/// node is back.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: JoinHandle<u64>,
    received: JoinHandle<u64>,
}

impl Traffic {
    fn start(ours: Caller, theirs: Caller, rng: &mut Rng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |from: &Caller, to: &Caller, mut rng: Rng| {
            let (from, to, stop) = (from.clone(), to.clone(), stop.clone());
            thread::spawn(move || {
                let mut paid = 0;
                while !stop.load(Ordering::Relaxed) {
                    match pay(&from, &to, &mut rng) {
                        Ok(()) => paid += 1,
                        // The node is dying, or the channel is busy with something else.
                        Err(_) => thread::sleep(Duration::from_millis(20)),
                    }
                }
                paid
            })
        };
        let sent = start(&ours, &theirs, rng.fork());
        let received = start(&theirs, &ours, rng.fork());
        Self { stop, sent, received }
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for the payments that were open, and counts all.
    fn count(self) -> (u64, u64) {
        wait_for("open payments", || {
            (self.sent.is_finished() && self.received.is_finished()).then_some(())
        });
        (self.sent.join().unwrap(), self.received.join().unwrap())
    }
}
