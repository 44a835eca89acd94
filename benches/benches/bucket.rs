//! What the node feels with its backup in a bucket: the round trip of a `db_write` through the real plugin, against one
//! bare PUT of as many bytes to the same server over a connection that is kept open, and one that the server refuses where
//! there is such an object already, as each of ours is, in turn. Which server that is, [`BenchServer`] says.
//! First with one bucket, then with two buckets and a folder, all of which have a record before it is acknowledged.

use std::process::Command;
use std::time::Instant;

use lockstep_benches::bucket::Bucket;
use lockstep_benches::server::BenchServer;
use lockstep_benches::{Plugin, bare, calls, message, percentile};
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries;
use object_store::PutMode;

/// Calls that are not counted: connections are made.
const WARM_UP: usize = 50;
const CALLS: usize = 2_000;

fn main() {
    let Some(server) = BenchServer::start_or_say() else { return };
    server.go_away();
    let raw = Bucket::connect(server.url(), server.env());
    measure(&raw, server.backed("hook"), "one bucket", |backed| vec![backed.url()]);
    measure(&raw, server.backed("hook"), "two buckets and a folder", |backed| {
        vec![backed.url(), server.prefix("other"), backed.store().display().to_string()]
    });
}

fn measure(raw: &Bucket, backed: Backed, what: &str, urls: impl FnOnce(&Backed) -> Vec<String>) {
    let init = Command::new(binaries::cli())
        .args(["init", "--lightning-dir"])
        .arg(backed.network_dir())
        .args(urls(&backed))
        .output();
    assert!(init.is_ok_and(|done| done.status.success()), "init failed");
    let (input, calls) = calls(WARM_UP + CALLS);
    let mut plugin = Plugin::start(&binaries::plugin(), &backed.network_dir()).expect("it starts");
    let (mut hook_times, mut raw_times, mut create_times) = (Vec::new(), Vec::new(), Vec::new());
    for (index, call) in calls.iter().enumerate() {
        let message = message(index, call);
        let len = bare::bytes_of(message.len());
        let (mut floor, mut create, mut took) = Default::default();
        for turn in 0..3 {
            match (index + turn) % 3 {
                0 => floor = raw.put(&format!("raw/{what}/{index}"), len, PutMode::Overwrite),
                1 => create = raw.put(&format!("new/{what}/{index}"), len, PutMode::Create),
                _ => {
                    let began = Instant::now();
                    plugin.call(&message).expect("the plugin acknowledges");
                    took = began.elapsed();
                }
            }
        }
        if index >= WARM_UP {
            hook_times.push(took);
            raw_times.push(floor);
            create_times.push(create);
        }
    }
    let resident = plugin.resident_kib();
    plugin.stop();
    println!("\n{what}; {input}");
    println!("| | p50 µs | p90 µs | p99 µs |\n|---|---|---|---|");
    let row = |name: &str, times: &mut Vec<_>| {
        let p: Vec<f64> = [0.5, 0.9, 0.99].iter().map(|&p| percentile(times, p)).collect();
        println!("| {name} | {:.0} | {:.0} | {:.0} |", p[0], p[1], p[2]);
        p
    };
    let floor = row("one PUT of as many bytes", &mut raw_times);
    let create = row("one PUT that creates an object of as many bytes", &mut create_times);
    let hook = row("db_write through cln-lockstep", &mut hook_times);
    for (name, floor) in [("the PUT", floor), ("the PUT that creates", create)] {
        let ratios: Vec<_> = hook.iter().zip(floor).map(|(a, b)| format!("{:.2}", a / b)).collect();
        println!("| ratio to {name} | {} |", ratios.join(" | "));
    }
    println!("resident memory of the plugin at the end: {resident} KiB");
}
