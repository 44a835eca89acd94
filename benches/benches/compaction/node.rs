//! A node with a large database, and what is asked of it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_benches::filled::{PAGE, change_of, fill};
use lockstep_benches::{Plugin, Raw, message};
use lockstep_tests::Batch;
use lockstep_tests::binaries;
use lockstep_tests::step::version_bump;
use lockstep_tests::testdir::TestDir;
use serde_json::{Value, json};

/// A node's calls do not come without a pause.
const BETWEEN_CALLS: Duration = Duration::from_millis(1);
/// About what the record of one takes.
const CALL_BYTES: usize = 80;
/// The status is asked for once in so many calls, compaction or not.
const CALLS_PER_STATUS: usize = 50;

/// A node with a database in which each row fills a page.
pub struct Large {
    /// Its directory, and the store.
    pub dir: TestDir,
    /// Rows, and about as many pages.
    pub rows: u64,
    version: u32,
    calls: usize,
    rng: Rng,
    /// The plugin, running.
    pub plugin: Plugin,
    raw: Raw,
}

/// The times of calls, and of as many bare writes on the same disk, in turn.
#[derive(Clone, Default)]
pub struct Times {
    /// Of `db_write`.
    pub calls: Vec<Duration>,
    /// Of a bare write and sync.
    pub floor: Vec<Duration>,
}

impl Times {
    /// Takes in others.
    pub fn add(&mut self, other: Self) {
        self.calls.extend(other.calls);
        self.floor.extend(other.floor);
    }
}

impl Large {
    /// Its backup is made, and the plugin runs; compaction is started by RPC only.
    pub fn new(mib: u64) -> Self {
        let (plugin, cli) = (binaries::plugin(), binaries::cli());
        let dir = TestDir::new();
        let node = dir.network_dir();
        let rows = mib * (1 << 20) / PAGE;
        let mut rng = Rng::with_seed(mib);
        fill(&node.join("lightningd.sqlite3"), rows, 1.0, &mut rng);
        let init = Command::new(&cli)
            .args(["init", "--lightning-dir"])
            .arg(&node)
            .arg(dir.path("store"))
            .output()
            .expect("backup-cli runs");
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let lock = node.join("backup.lock");
        let text = fs::read(&lock).expect("backup.lock is there");
        let mut value: Value = serde_json::from_slice(&text).expect("backup.lock is JSON");
        value["compaction"] = json!({"enabled": false});
        fs::write(&lock, value.to_string()).expect("backup.lock is written");
        let mut plugin = Plugin::start(&plugin, &node).expect("the plugin starts");
        plugin.init(&node).expect("the plugin takes init");
        let raw = Raw::new(&dir.path("raw"), 64 << 20).expect("a file of zeros");
        Self { dir, rows, version: 1, calls: 0, rng, plugin, raw }
    }

    /// The shadow's folder.
    pub fn shadow(&self) -> PathBuf {
        self.dir.network_dir().join("backup.shadow")
    }

    /// One call that changes these rows.
    pub fn call(&mut self, rows: &[u64]) -> Duration {
        let mut writes: Vec<String> = rows.iter().map(|&row| change_of(row)).collect();
        writes.push(version_bump(self.version.into()));
        self.version += 1;
        self.calls += 1;
        let message = message(self.calls, &Batch { data_version: self.version, writes });
        let began = Instant::now();
        self.plugin.call(&message).expect("the plugin acknowledges");
        began.elapsed()
    }

    /// A call of a few rows anywhere.
    pub fn any_call(&mut self) -> Duration {
        let rows: Vec<u64> = (0..4).map(|_| self.rng.u64(1..=self.rows)).collect();
        self.call(&rows)
    }

    /// Changes so many rows, each on its own page.
    pub fn change(&mut self, rows: u64) {
        let mut ids: Vec<u64> = (1..=self.rows).collect();
        self.rng.shuffle(&mut ids);
        for some in ids[..rows as usize].chunks(100) {
            self.call(some);
        }
    }

    /// What `backup-status` says of compaction.
    pub fn compaction(&mut self) -> Value {
        let mut status = self.plugin.ask("backup-status", &json!({})).expect("a status");
        status["compaction"].take()
    }

    /// Calls until `enough` says so; each with its time.
    pub fn calls_until(&mut self, mut enough: impl FnMut(&Value, usize) -> bool) -> Times {
        let mut times = Times::default();
        loop {
            let some = self.some_calls();
            times.add(some);
            if enough(&self.compaction(), times.calls.len()) {
                return times;
            }
        }
    }

    /// As many calls as there are between two looks at the status.
    pub fn some_calls(&mut self) -> Times {
        let mut times = Times::default();
        for _ in 0..CALLS_PER_STATUS {
            times.calls.push(self.any_call());
            sleep(BETWEEN_CALLS);
            times.floor.push(self.raw.write(CALL_BYTES).expect("the floor writes"));
            sleep(BETWEEN_CALLS);
        }
        times
    }
}
