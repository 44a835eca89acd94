//! This plugin beside what else there is, in one run, on one disk, with the same recorded calls, each of which all of
//! them get in turn: how long a call takes, what it costs, what is stored, how long a restore takes, and how long a call
//! has to wait while it compacts.
//!
//! `LOCKSTEP_PYTHON_BACKUP` names the folder with the Python plugin's `backup.py`, `LOCKSTEP_PYTHON` a Python that has
//! `pyln-client` and `psutil`; without them it is passed over. It syncs nothing: so it also runs with a sync before
//! each file that it wrote to is closed. `LOCKSTEP_CALLS` makes it shorter; `LOCKSTEP_PLOTS` names the folder for a plot.

mod ours;
mod python;
mod replica;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_benches::process::Ran;
use lockstep_benches::python::PythonBackup;
use lockstep_benches::{Plugin, Raw, bare, calls, message, percentile, plot, sql_bytes};
use lockstep_tests::Batch;
use lockstep_tests::oracle;
use lockstep_tests::step::version_bump;
use lockstep_tests::testdir::TestDir;

/// The first ones are not counted: files are made.
const WARM_UP: usize = 100;
const RESTORES: usize = 3;

/// One of those that are compared.
pub trait Peer {
    /// What it is.
    fn name(&self) -> String;
    /// Makes a call durable, or what it has in place of that.
    fn write(&mut self, call: &Batch, message: &[u8]);
    /// Processor time that its calls took so far.
    fn cpu(&self) -> Duration;
    /// Bytes that it has stored.
    fn stored(&self) -> u64;
    /// Makes a database of what is stored.
    fn restore(&self, to: &Path) -> Option<Ran>;
    /// Compacts while `next` gives calls to write, and gives the longest of them, and how long it took.
    fn compact(&mut self, next: &mut dyn FnMut() -> Vec<u8>) -> Option<(Duration, Duration)>;
}

/// A bare write and sync of as many bytes as a record takes, over zeros.
struct Floor(Raw);

impl Peer for Floor {
    fn name(&self) -> String {
        "a bare write + fdatasync of as many bytes".into()
    }

    fn write(&mut self, _call: &Batch, message: &[u8]) {
        self.0.write(bare::bytes_of(message.len())).expect("the floor writes");
    }

    fn cpu(&self) -> Duration {
        self.0.cpu_times.iter().sum()
    }

    fn stored(&self) -> u64 {
        0
    }

    fn restore(&self, _to: &Path) -> Option<Ran> {
        None
    }

    fn compact(&mut self, _next: &mut dyn FnMut() -> Vec<u8>) -> Option<(Duration, Duration)> {
        None
    }
}

fn main() {
    let limit = std::env::var("LOCKSTEP_CALLS").ok().and_then(|text| text.parse().ok());
    let (input, calls) = calls(limit.unwrap_or(28_150));
    let dir = TestDir::new();
    let floor = Raw::new(&dir.path("raw"), 64 << 20).expect("a file of zeros");
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(Floor(floor)), Box::new(ours::Ours::new())];
    if let Some(python) = PythonBackup::locate_or_say("peers") {
        for synced in [false, true] {
            let directory = dir.make_dir(format!("python-{synced}"));
            peers.push(Box::new(python::Python::new(&python, directory, synced)));
        }
    }
    peers.push(Box::new(replica::Replica::new(dir.path("replica.sqlite3"))));

    let mut times = vec![Vec::with_capacity(calls.len()); peers.len()];
    for (index, call) in calls.iter().enumerate() {
        let message = message(index, call);
        // In turn: whoever comes second finds the disk busier.
        for turn in 0..peers.len() {
            let who = (index + turn) % peers.len();
            let began = Instant::now();
            peers[who].write(call, &message);
            if index >= WARM_UP {
                times[who].push(began.elapsed());
            }
        }
    }
    let sql: usize = calls.iter().map(sql_bytes).sum();
    println!("\n{input}, {} MB of SQL", sql / 1_000_000);
    table(&peers, &mut times, calls.len(), sql, &dir);
    draw(&peers, &times);
    pauses(&mut peers, &calls);
}

fn table(
    peers: &[Box<dyn Peer>],
    times: &mut [Vec<Duration>],
    calls: usize,
    sql: usize,
    dir: &TestDir,
) {
    println!(
        "| | p50 µs | p99 µs | p99.9 µs | processor µs a call | stored MB | of the SQL | restore s | its peak MiB | the same rows |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut restored: Option<PathBuf> = None;
    for (who, (peer, times)) in peers.iter().zip(times).enumerate() {
        let [p50, p99, most] = [0.5, 0.99, 0.999].map(|p| percentile(times, p));
        let cpu = peer.cpu().as_secs_f64() * 1e6 / calls as f64;
        print!("| {} | {p50:.0} | {p99:.0} | {most:.0} | {cpu:.0} |", peer.name());
        let mut ran: Vec<(Ran, PathBuf)> = (0..RESTORES)
            .filter_map(|round| {
                let to = dir.path(format!("restored-{who}-{round}.sqlite3"));
                Some((peer.restore(&to)?, to))
            })
            .collect();
        ran.sort_by(|a, b| a.0.seconds.total_cmp(&b.0.seconds));
        let Some((median, path)) = ran.into_iter().nth(RESTORES / 2) else {
            println!(" | | | | |");
            continue;
        };
        let stored = peer.stored() as f64;
        print!(" {:.1} | {:.3} | {:.2} |", stored / 1e6, stored / sql as f64, median.seconds);
        print!(" {:.0} |", median.peak_kib as f64 / 1024.0);
        match &restored {
            None => println!(" reference |"),
            Some(ours) => match oracle::difference(ours, &path) {
                Ok(None) => println!(" yes |"),
                Ok(Some(found)) => println!(" **no**: {found} |"),
                Err(error) => println!(" **no**: {error} |"),
            },
        }
        restored.get_or_insert(path);
    }
}

/// The distribution of the times, over how many calls are slower.
fn draw(peers: &[Box<dyn Peer>], times: &[Vec<Duration>]) {
    let slower = |share: f64| -share.log10();
    let lines: Vec<plot::Line> = peers
        .iter()
        .zip(times)
        .map(|(peer, times)| {
            // Sorted by the table.
            let points = (0..=160).map(|step| {
                let place = f64::from(step) / 40.0;
                let index = ((1.0 - 10f64.powf(-place)) * times.len() as f64) as usize;
                (place, times[index.min(times.len() - 1)].as_secs_f64() * 1e6)
            });
            (peer.name(), points.collect())
        })
        .collect();
    let shares = [
        (1.0, "all"),
        (0.5, "50 %"),
        (0.1, "10 %"),
        (0.01, "1 %"),
        (0.001, "0.1 %"),
        (0.0001, "0.01 %"),
    ];
    let x = plot::Axis {
        label: "so many calls took at least so long",
        ticks: shares.map(|(share, name)| (slower(share), name.into())).into(),
        logarithmic: false,
    };
    let values = lines.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
    let y = plot::Axis { label: "µs", ticks: plot::powers_of_ten(values), logarithmic: true };
    plot::write("latency", "db_write, beside the floor and the peers", &x, &y, &lines);
}

/// Of those that compact: the longest call meanwhile. The calls change the version and nothing else.
fn pauses(peers: &mut [Box<dyn Peer>], calls: &[Batch]) {
    println!("\n| | longest call while it compacts, ms | compaction s | stored MB afterwards |");
    println!("|---|---|---|---|");
    let head = calls.last().map_or(0, |call| call.data_version);
    for peer in peers {
        let mut version = head;
        let mut next = || {
            let writes = vec![version_bump(version.into())];
            version += 1;
            message(version as usize, &Batch { data_version: version, writes })
        };
        if let Some((longest, whole)) = peer.compact(&mut next) {
            println!(
                "| {} | {:.1} | {:.2} | {:.1} |",
                peer.name(),
                longest.as_secs_f64() * 1e3,
                whole.as_secs_f64(),
                peer.stored() as f64 / 1e6
            );
        }
    }
}

/// A call of a plugin, which must answer as lightningd wants it.
fn timed(plugin: &mut Plugin, message: &[u8]) -> Duration {
    let began = Instant::now();
    plugin.call(message).expect("the plugin acknowledges");
    began.elapsed()
}
