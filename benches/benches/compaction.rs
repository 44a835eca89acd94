//! What compaction costs the node, and what it takes itself.
//!
//! First: the round trip of a `db_write` while the plugin compacts a large database, against the same while it
//! does not, in turn in one run; and the plugin's memory. Then: what a compaction writes and how long it takes,
//! by the size of the database and the share of its pages that changed.
//!
//! `cargo bench -p lockstep-benches --bench compaction [-- MIB]`; 256 MiB unless given, 2 GiB with
//! `LOCKSTEP_LONG=1`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_benches::{Plugin, Raw, message, percentile, release_binary};
use lockstep_proto::config::read_key_file;
use lockstep_proto::destination::Destination;
use lockstep_proto::shadow::Shadow;
use lockstep_tests::Batch;
use lockstep_tests::backed::ci_or_long;
use lockstep_tests::step::version_bump;
use lockstep_tests::testdir::TestDir;
use rusqlite::Connection;
use serde_json::{Value, json};

const PAGE: u64 = 4096;
/// A node's calls do not come without a pause.
const BETWEEN_CALLS: Duration = Duration::from_millis(1);
const CALLS_WITHOUT: usize = 2_000;
/// About what the record of one takes.
const CALL_BYTES: usize = 80;
/// The status is asked for once in so many calls, compaction or not.
const CALLS_PER_STATUS: usize = 50;

fn main() {
    let mib = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    latency(mib.unwrap_or(ci_or_long(256, 2048)));
    println!(
        "\n| database | pages changed | published | of the database | pages written | replay s | publish s |"
    );
    println!("|---|---|---|---|---|---|---|");
    for mib in ci_or_long(vec![256], vec![256, 1024, 4096]) {
        by_share(mib);
    }
}

/// A node with a database in which each row fills a page.
struct Large {
    dir: TestDir,
    rows: u64,
    version: u32,
    calls: usize,
    rng: Rng,
    plugin: Plugin,
    raw: Raw,
}

/// The times of calls, and of as many bare writes on the same disk, in turn.
#[derive(Default)]
struct Times {
    calls: Vec<Duration>,
    floor: Vec<Duration>,
}

impl Times {
    fn add(&mut self, other: Self) {
        self.calls.extend(other.calls);
        self.floor.extend(other.floor);
    }
}

impl Large {
    fn new(mib: u64) -> Self {
        let (plugin, cli) = (release_binary("cln-lockstep"), release_binary("backup-cli"));
        let dir = TestDir::new();
        let node = dir.network_dir();
        let rows = mib * (1 << 20) / PAGE;
        let mut rng = Rng::with_seed(mib);
        fill(&node.join("lightningd.sqlite3"), rows, &mut rng);
        let init = Command::new(&cli)
            .args(["init", "--lightning-dir"])
            .arg(&node)
            .arg(dir.path("store"))
            .output()
            .expect("backup-cli runs");
        assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        // It is started by RPC only.
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

    fn shadow(&self) -> PathBuf {
        self.dir.network_dir().join("backup.shadow")
    }

    /// One call that changes these rows.
    fn call(&mut self, rows: &[u64]) -> Duration {
        let mut writes: Vec<String> = rows
            .iter()
            .map(|row| format!("UPDATE filled SET changes = changes + 1 WHERE id = {row}"))
            .collect();
        writes.push(version_bump(self.version.into()));
        self.version += 1;
        self.calls += 1;
        let message = message(self.calls, &Batch { data_version: self.version, writes });
        let began = Instant::now();
        self.plugin.call(&message).expect("the plugin acknowledges");
        began.elapsed()
    }

    /// A call of a few rows anywhere.
    fn any_call(&mut self) -> Duration {
        let rows: Vec<u64> = (0..4).map(|_| self.rng.u64(1..=self.rows)).collect();
        self.call(&rows)
    }

    /// Changes so many rows, each on its own page.
    fn change(&mut self, rows: u64) {
        let mut ids: Vec<u64> = (1..=self.rows).collect();
        self.rng.shuffle(&mut ids);
        for some in ids[..rows as usize].chunks(100) {
            self.call(some);
        }
    }

    fn compaction(&mut self) -> Value {
        let mut status = self.plugin.ask("backup-status", &json!({})).expect("a status");
        status["compaction"].take()
    }

    /// Calls until `enough` says so; each with its time.
    fn calls_until(&mut self, mut enough: impl FnMut(&Value, usize) -> bool) -> Times {
        let mut times = Times::default();
        loop {
            for _ in 0..CALLS_PER_STATUS {
                times.calls.push(self.any_call());
                sleep(BETWEEN_CALLS);
                times.floor.push(self.raw.write(CALL_BYTES).expect("the floor writes"));
                sleep(BETWEEN_CALLS);
            }
            if enough(&self.compaction(), times.calls.len()) {
                return times;
            }
        }
    }
}

/// Rows of bytes that do not compress.
fn fill(path: &Path, rows: u64, rng: &mut Rng) {
    let db = Connection::open(path).expect("SQLite opens");
    db.execute_batch(
        "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;
         CREATE TABLE vars (name VARCHAR(32) PRIMARY KEY, val VARCHAR(255), intval INTEGER, blobval BLOB);
         INSERT INTO vars VALUES ('data_version', NULL, 1, NULL);
         CREATE TABLE filled (id INTEGER PRIMARY KEY, changes INTEGER, bytes BLOB);
         BEGIN;",
    )
    .expect("tables are made");
    let mut insert = db.prepare("INSERT INTO filled VALUES (?, 0, ?)").expect("an insert");
    let mut bytes = vec![0; 4000];
    for row in 1..=rows {
        rng.fill(&mut bytes);
        insert.execute((row as i64, &bytes)).expect("a row");
    }
    drop(insert);
    db.execute_batch("COMMIT").expect("commits");
}

fn latency(mib: u64) {
    let mut node = Large::new(mib);
    let (mut without, mut during) = (Times::default(), Times::default());
    println!(
        "\ndatabase of {mib} MiB; a call changes 4 of its pages; in turn with writes + fdatasync of as many \
         bytes by this process (the floor), 1 ms between"
    );
    println!("| | calls | p50 µs | p99 µs | max µs | floor p50 | p99 | max | s |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let row = |name: &str, times: &mut Times, seconds: f64| {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|p| percentile(&mut times.calls, p));
        let floor = [0.5, 0.99, 1.0].map(|p| percentile(&mut times.floor, p));
        println!(
            "| {name} | {} | {p50:.0} | {p99:.0} | {max:.0} | {:.0} | {:.0} | {:.0} | {seconds:.1} |",
            times.calls.len(),
            floor[0],
            floor[1],
            floor[2]
        );
        (p50, p99)
    };
    node.any_call();
    let seconds = |since: Instant| since.elapsed().as_secs_f64();
    let mut total = [0.0, 0.0];
    for (what, changed) in [
        ("the shadow is made, little changed", None),
        ("10 % changed", Some(10)),
        ("the shadow is made anew, little changed", None),
        ("10 % changed", Some(10)),
        ("60 % changed: a new base", Some(60)),
    ] {
        if let Some(percent) = changed {
            node.change(node.rows * percent / 100);
        } else {
            let _ = fs::remove_dir_all(node.shadow());
        }
        let began = Instant::now();
        let mut times = node.calls_until(|_, calls| calls >= CALLS_WITHOUT);
        total[0] += seconds(began);
        row("none runs", &mut times, seconds(began));
        without.add(times);
        let asked = node.plugin.ask("backup-compact", &json!({})).expect("it starts");
        let began = Instant::now();
        let mut times = node.calls_until(|status, _| {
            assert!(status["error"].is_null(), "{status}");
            status["last"]["id"] == asked["id"]
        });
        total[1] += seconds(began);
        row(what, &mut times, seconds(began));
        during.add(times);
    }
    let none = row("**all: none runs**", &mut without, total[0]);
    let one = row("**all: one runs**", &mut during, total[1]);
    println!("ratio: p50 {:.2}, p99 {:.2}", one.0 / none.0, one.1 / none.1);
    println!("most resident memory of the plugin: {} KiB", node.plugin.peak_kib());
    node.plugin.stop();
}

fn by_share(mib: u64) {
    let mut node = Large::new(mib);
    let keys = read_key_file(&node.dir.network_dir().join("backup.key")).expect("a key file");
    let url: Destination = node.dir.file_url("store").parse().expect("a URL");
    let store = url.open().expect("the store opens");
    let folder = node.shadow();
    node.any_call();
    drop(Shadow::open(&*store, &keys, &folder).expect("a shadow"));
    // The largest first: a delta takes in those before it that are not much larger.
    for share in [0.1, 0.01, 0.001] {
        node.change((node.rows as f64 * share) as u64);
        // The newest two may not be committed, and are left for the next.
        node.call(&[1]);
        node.call(&[1]);
        let mut shadow = Shadow::open(&*store, &keys, &folder).expect("a shadow");
        let began = Instant::now();
        shadow.catch_up(&mut |_| {}).expect("it catches up");
        let replay = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let done = shadow.publish(&mut |_, _| {}).expect("it publishes").expect("a snapshot");
        let publish = began.elapsed().as_secs_f64();
        println!(
            "| {:.2} GiB | {:.1} % | {:.1} MiB | {:.2} % | {} | {replay:.2} | {publish:.2} |",
            mib as f64 / 1024.0,
            share * 100.0,
            done.stored_bytes as f64 / (1 << 20) as f64,
            100.0 * done.stored_bytes as f64 / (done.page_count * PAGE) as f64,
            done.pages,
        );
    }
    node.plugin.stop();
}
