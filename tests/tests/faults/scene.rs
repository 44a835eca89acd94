//! A node that lives on, whatever happens to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, ci_or_long};
use lockstep_tests::sim::{Node, Outcome, SimError, Standing};
use lockstep_tests::strace::{Fault, Injection};
use serde_json::json;

/// What the programs do with files. Not `write`: that is for pipes (`syscalls` proves it).
const CALLS: [&str; 12] = [
    "pwrite64",
    "pwritev2",
    "fdatasync",
    "fsync",
    "openat",
    "linkat",
    "rename",
    "unlinkat",
    "unlink",
    "ftruncate",
    "pread64",
    "read",
];
/// What they could do as well, and do not in so short a run. In the long form it is tried whether that is so.
const OTHERS: [&str; 4] = ["link", "renameat", "mkdirat", "fallocate"];

/// The calls that fail.
pub fn calls() -> impl Iterator<Item = &'static str> {
    CALLS.into_iter().chain(ci_or_long(&[][..], &OTHERS[..]).iter().copied())
}

pub const ERRORS: [Fault; 2] = [Fault::Error("EIO"), Fault::Error("ENOSPC")];

/// Longer than the stall timeout, and than what strace costs.
const PATIENCE: Duration = Duration::from_secs(30);
/// A session in which nothing happens follows so many in which something does.
const SESSIONS_PER_RECOVERY: u32 = 8;

/// `LOCKSTEP_SEED`, or one that changes from run to run; it is printed.
pub fn seeded() -> Rng {
    let seed = match std::env::var("LOCKSTEP_SEED") {
        Ok(seed) => seed.parse().expect("LOCKSTEP_SEED is a number"),
        Err(_) => fastrand::u64(..1_000_000),
    };
    println!("LOCKSTEP_SEED={seed}");
    Rng::with_seed(seed)
}

/// Which of a thread's calls fail, one a run, until a run does not come so far: in the long form each of the first 300;
/// else one of the first, one of the next 2, of the next 4, …
pub fn places(rng: &mut Rng) -> Vec<u32> {
    ci_or_long((0..5).map(|power| rng.u32(1 << power..2 << power)).collect(), (1..=300).collect())
}

pub struct Scene {
    pub backed: Backed,
    pub node: Node,
    pub trace: PathBuf,
    rows: u32,
    pub tally: Tally,
}

#[derive(Debug, Default)]
pub struct Tally {
    /// How often each call failed.
    pub failed: BTreeMap<&'static str, u32>,
    pub sessions: u32,
    pub acknowledged: u32,
    pub refused: u32,
    pub not_started: u32,
    pub died: u32,
}

impl Scene {
    pub fn new() -> Self {
        let backed = Backed::fresh();
        Self::of(backed)
    }

    /// With its backup in a folder elsewhere.
    pub fn in_folder(folder: &Path) -> Self {
        let backed = Backed::at(format!("file://{}/store", folder.display()), Vec::new());
        backed.init().run().expect_success();
        Self::of(backed)
    }

    fn of(backed: Backed) -> Self {
        backed.set_in_lock("stall_timeout_s", json!(1));
        let node = backed.launch();
        let trace = backed.dir().path("strace");
        let mut scene = Self { backed, node, trace, rows: 0, tally: Tally::default() };
        scene.node.write(&Step::small_schema()).unwrap().expect_committed();
        assert!(scene.write());
        scene.node.stop().unwrap();
        scene
    }

    /// One more row; true where the node goes on.
    pub fn write(&mut self) -> bool {
        self.write_with("")
    }

    /// The same with more in it.
    pub fn write_with(&mut self, more: &str) -> bool {
        self.rows += 1;
        let sql = format!("INSERT INTO t (b) VALUES ('row {}{more}')", self.rows);
        match self.node.write(&Step::transaction([sql])).unwrap() {
            Outcome::Committed { .. } => {
                self.tally.acknowledged += 1;
                true
            }
            Outcome::Refused { message } => {
                assert!(message.contains("hint: "), "{message}");
                assert!(!message.contains("a defect of"), "{message}");
                self.tally.refused += 1;
                false
            }
            Outcome::PluginDied { .. } => {
                self.tally.died += 1;
                false
            }
        }
    }

    /// A session to which this happens. False where it came to its end before.
    pub fn session(&mut self, injection: &Injection) -> bool {
        let (died, not_started) = (self.tally.died, self.tally.not_started);
        let config = injection.node(&self.backed.network_dir(), &self.trace);
        self.node.run_with(config.reply_timeout(PATIENCE));
        self.tally.sessions += 1;
        match self.node.start() {
            Ok(()) => {
                // Migrations, then what comes after `init`, with a compaction beside it.
                if self.write() && self.initialized(injection) && self.write() {
                    let id = self.node.send_call("backup-compact", &json!({})).unwrap();
                    if self.write() {
                        self.expect_answer(&id, injection);
                        self.write();
                    }
                }
            }
            // What the loader cannot load, or what dies before it has begun.
            Err(SimError::Closed { .. }) => self.tally.not_started += 1,
            Err(error) => panic!("{injection}: {error}"),
        }
        self.node.stop().unwrap();
        let stderr = self.node.stderr();
        assert!(!stderr.contains("panicked"), "{injection}: {stderr}");
        assert!(!self.node.logged("a defect of"), "{injection}");
        // Only where lightningd cannot be heard any more an error is a reason to end.
        let may_die = injection.fault == Fault::Death || injection.call == "read";
        assert!(may_die || self.tally.died == died, "{injection}: the plugin died");
        // strace itself may be killed before it has written what it did.
        let ended = (self.tally.died, self.tally.not_started) != (died, not_started);
        let happened = ended || injection.happened(&self.trace);
        if happened {
            *self.tally.failed.entry(injection.call).or_default() += 1;
        }
        happened
    }

    /// `init` may fail as anything else.
    fn initialized(&mut self, injection: &Injection) -> bool {
        match self.node.init() {
            Ok(()) => true,
            Err(SimError::Closed { .. } | SimError::Protocol(_)) => {
                self.tally.not_started += 1;
                false
            }
            Err(error) => panic!("{injection}: {error}"),
        }
    }

    /// A compaction may fail, but says so; only death is silent.
    fn expect_answer(&mut self, id: &str, injection: &Injection) {
        match self.node.reply(id, PATIENCE) {
            Ok(_) => {}
            Err(SimError::Closed { .. }) if injection.fault == Fault::Death => {}
            Err(error) => panic!("{injection}: {error}"),
        }
    }

    /// What the backup holds is what was acknowledged.
    pub fn judge(&self) {
        self.backed.check(&self.node);
    }

    /// A session in which nothing happens: it goes on from whatever is there.
    pub fn recover(&mut self) {
        self.node.run_with(self.backed.config());
        self.node.start().unwrap();
        assert!(self.write() && self.write(), "{:?}", self.node.logs().last());
        self.node.stop().unwrap();
        assert_eq!(self.backed.check(&self.node), Standing::Committed);
    }

    pub fn recover_now_and_then(&mut self) {
        if self.tally.sessions.is_multiple_of(SESSIONS_PER_RECOVERY) {
            self.recover();
        }
    }

    pub fn finish(mut self) -> Tally {
        self.recover();
        self.backed.cli("verify").expect_success();
        println!("{:?}", self.tally);
        self.tally
    }
}
