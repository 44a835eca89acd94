//! What the node feels: the round trip of a `db_write` through the real plugin, against a bare write and
//! `fdatasync` of the same number of bytes, in turn, on the same file system.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use lockstep_benches::{Plugin, Raw, calls, message, percentile, release_binary, sql_bytes};
use lockstep_tests::testdir::TestDir;

fn main() {
    let (plugin, cli) = (release_binary("cln-lockstep"), release_binary("backup-cli"));
    let dir = TestDir::new();
    let node = dir.network_dir();
    let store = dir.path("store");
    let init =
        Command::new(&cli).arg("init").arg("--lightning-dir").arg(&node).arg(&store).output();
    assert!(init.is_ok_and(|done| done.status.success()), "init failed");
    let (input, calls) = calls(28_150);
    let mut plugin = Plugin::start(&plugin, &node).expect("the plugin starts");
    let mut raw = Raw::new(&dir.path("raw"), 64 << 20).expect("a file of zeros");

    let (mut hook_times, mut raw_times, mut cpu_times) = (Vec::new(), Vec::new(), Vec::new());
    let mut stored = stored_bytes(&store);
    for (index, call) in calls.iter().enumerate() {
        let message = message(index, call);
        // About what the record took: its share of the SQL, compressed, and the frame.
        let len = 40 + sql_bytes(call) / 12;
        // In turn: whoever comes second in a pair finds the disk busier.
        let first = (index % 2 == 0).then(|| raw.write(len).expect("the floor writes"));
        let cpu = plugin.cpu();
        let began = Instant::now();
        plugin.call(&message).expect("the plugin acknowledges");
        let took = began.elapsed();
        cpu_times.push(plugin.cpu().saturating_sub(cpu));
        let floor = first.unwrap_or_else(|| raw.write(len).expect("the floor writes"));
        if index >= 100 {
            hook_times.push(took);
            raw_times.push(floor);
        }
    }
    let resident = plugin.resident_kib();
    plugin.stop();
    stored = stored_bytes(&store) - stored;
    let sql: usize = calls.iter().map(sql_bytes).sum();

    println!("\n{input}, {} MB of SQL", sql / 1_000_000);
    println!("| | p50 µs | p90 µs | p99 µs | p99.9 µs |\n|---|---|---|---|---|");
    let row = |name: &str, times: &mut Vec<_>| {
        let p: Vec<f64> = [0.5, 0.9, 0.99, 0.999].iter().map(|&p| percentile(times, p)).collect();
        println!("| {name} | {:.0} | {:.0} | {:.0} | {:.0} |", p[0], p[1], p[2], p[3]);
        p
    };
    let floor = row("write + fdatasync of as many bytes", &mut raw_times);
    let hook = row("db_write through cln-lockstep", &mut hook_times);
    println!(
        "| ratio | {:.2} | {:.2} | {:.2} | {:.2} |",
        hook[0] / floor[0],
        hook[1] / floor[1],
        hook[2] / floor[2],
        hook[3] / floor[3]
    );
    println!(
        "processor time a call, p50: plugin {:.0} µs, of which the bare write + fdatasync takes {:.0} µs",
        percentile(&mut cpu_times, 0.5),
        percentile(&mut raw.cpu_times, 0.5),
    );
    println!("stored bytes a byte of SQL: {:.4}", stored as f64 / sql as f64);
    println!("resident memory of the plugin at the end: {resident} KiB");
}

/// Bytes of all files under a folder.
fn stored_bytes(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                stored_bytes(&path)
            } else {
                entry.metadata().map_or(0, |m| m.len())
            }
        })
        .sum()
}
