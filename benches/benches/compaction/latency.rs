//! The round trip of a `db_write` while the plugin compacts, and the plugin's memory.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lockstep_benches::{percentile, sizes};
use serde_json::json;

use crate::node::{Large, Times};

const CALLS_WITHOUT: usize = 2_000;

/// In turn: calls while none runs, calls while one runs.
pub fn latency(mib: u64) {
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
    // The first makes the shadow; while the node does not write, it does not rest.
    let asked = node.plugin.ask("backup-compact", &json!({})).expect("it starts");
    while node.compaction()["last"]["id"] != asked["id"] {
        sleep(Duration::from_millis(100));
    }
    let seconds = |since: Instant| since.elapsed().as_secs_f64();
    let mut total = [0.0, 0.0];
    let mut phases = BTreeMap::<String, Times>::new();
    let rounds = [
        ("1 % changed", Some(1)),
        ("10 % changed", Some(10)),
        ("the shadow is made anew, little changed", None),
        ("60 % changed: a new base", Some(60)),
    ];
    let wanted = sizes("LOCKSTEP_ROUNDS", &[rounds.len() as u64])[0] as usize;
    for (what, changed) in rounds.into_iter().take(wanted) {
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
        let mut times = Times::default();
        let mut status = node.compaction();
        while status["last"]["id"] != asked["id"] {
            assert!(status["error"].is_null(), "{status}");
            let some = node.some_calls();
            let phase = status["running"]["phase"].as_str().unwrap_or("none").to_owned();
            phases.entry(phase).or_default().add(some.clone());
            times.add(some);
            status = node.compaction();
        }
        total[1] += seconds(began);
        row(what, &mut times, seconds(began));
        during.add(times);
    }
    for (phase, mut times) in phases {
        row(&format!("of them in the phase '{phase}'"), &mut times, 0.0);
    }
    let none = row("**all: none runs**", &mut without, total[0]);
    let one = row("**all: one runs**", &mut during, total[1]);
    println!("ratio: p50 {:.2}, p99 {:.2}", one.0 / none.0, one.1 / none.1);
    println!("most resident memory of the plugin: {} KiB", node.plugin.peak_kib());
    node.plugin.stop();
}
