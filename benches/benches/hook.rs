//! What the node feels: the round trip of a `db_write` through the real plugin, against a bare write and
//! `fdatasync` of the same number of bytes, to a file that grows and over zeros, and against a plugin that
//! does nothing but the latter, in turn, on the same file system.

use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_benches::bare;
use lockstep_benches::{Plugin, Raw, calls, message, percentile, sql_bytes, stored_bytes};
use lockstep_tests::backed::Backed;
use lockstep_tests::{Batch, binaries};

/// The plugin's processor time is asked for at one call of so many.
const COUNTED: usize = 8;

fn main() {
    if bare::run_if_asked() {
        return;
    }
    let backed = Backed::fresh();
    let (dir, node, store) = (backed.dir(), backed.network_dir(), backed.store());
    let (input, calls) = calls(28_150);
    let mut plugin = start(&backed);
    let bench = std::env::current_exe().expect("a running program has a path");
    let bare_file = dir.path("bare");
    let bare_file = bare_file.to_str().expect("a path in UTF-8");
    let mut bare = Plugin::start_with(&bench, &node, &[bare::ARGUMENT, bare_file])
        .expect("the bare plugin starts");
    let mut raw = Raw::new(&dir.path("raw"), 64 << 20).expect("a file of zeros");

    let mut growing = Raw::growing(&dir.path("growing")).expect("a file");
    let mut growing_times = Vec::new();

    let (mut hook_times, mut raw_times, mut cpu_times) = (Vec::new(), Vec::new(), Vec::new());
    let mut bare_times = Vec::new();
    let mut stored = stored_bytes(&store);
    let (user, kernel) = plugin.user_and_kernel();
    for (index, call) in calls.iter().enumerate() {
        let message = message(index, call);
        let len = bare::bytes_of(message.len());
        let counted = index % COUNTED == COUNTED - 1;
        let (mut floor, mut append, mut bare_took, mut took) = Default::default();
        // In turn: whoever comes second finds the disk busier.
        for turn in 0..4 {
            match (index + turn) % 4 {
                0 => floor = raw.write(len).expect("the floor writes"),
                1 => append = growing.write(len).expect("the floor writes"),
                2 => bare_took = timed(&mut bare, &message),
                // To ask for its processor time takes the caches from it: not where it is timed.
                _ if counted => {
                    let cpu = plugin.cpu();
                    plugin.call(&message).expect("the plugin acknowledges");
                    cpu_times.push(plugin.cpu().saturating_sub(cpu));
                }
                _ => took = timed(&mut plugin, &message),
            }
        }
        if index >= 100 && !counted {
            hook_times.push(took);
            raw_times.push(floor);
            growing_times.push(append);
            bare_times.push(bare_took);
        }
    }
    let (user_after, kernel_after) = plugin.user_and_kernel();
    let a_call = |time: Duration| time.as_secs_f64() * 1e6 / calls.len() as f64;
    let (user, kernel) = (a_call(user_after - user), a_call(kernel_after - kernel));
    let resident = plugin.resident_kib();
    let mut raw_cpu_times = std::mem::take(&mut raw.cpu_times);
    // In order: what is zeroed ahead of the last record is cut off.
    plugin.stop();
    stored = stored_bytes(&store) - stored;
    let (mut large, mut large_raw) = large(&calls, &mut raw);
    bare.stop();
    let sql: usize = calls.iter().map(sql_bytes).sum();

    println!("\n{input}, {} MB of SQL", sql / 1_000_000);
    println!("| | p50 µs | p90 µs | p99 µs | p99.9 µs |\n|---|---|---|---|---|");
    let row = |name: &str, times: &mut Vec<_>| {
        let p: Vec<f64> = [0.5, 0.9, 0.99, 0.999].iter().map(|&p| percentile(times, p)).collect();
        println!("| {name} | {:.0} | {:.0} | {:.0} | {:.0} |", p[0], p[1], p[2], p[3]);
        p
    };
    let append =
        row("append + fdatasync of as many bytes, to a file that grows", &mut growing_times);
    let floor = row("write + fdatasync of as many bytes, over zeros", &mut raw_times);
    let bare = row("db_write through a plugin that does only that", &mut bare_times);
    let hook = row("db_write through cln-lockstep", &mut hook_times);
    for (name, floor) in
        [("the append", append), ("the write over zeros", floor), ("the bare plugin", bare)]
    {
        print!("| ratio to {name} |");
        for (hook, floor) in hook.iter().zip(floor) {
            print!(" {:.2} |", hook / floor);
        }
        println!();
    }
    println!(
        "processor time a call, p50: plugin {:.0} µs, of which the bare write + fdatasync takes {:.0} µs",
        percentile(&mut cpu_times, 0.5),
        percentile(&mut raw_cpu_times, 0.5),
    );
    println!(
        "the same on average: {user:.0} µs in the program itself, {kernel:.0} µs in the kernel"
    );
    println!(
        "the same of a call with 1 MiB of SQL: {:.0} µs, of which the bare write + fdatasync takes {:.0} µs",
        percentile(&mut large, 0.5),
        percentile(&mut large_raw, 0.5),
    );
    println!("stored bytes a byte of SQL: {:.4}", stored as f64 / sql as f64);
    println!("resident memory of the plugin at the end: {resident} KiB");
}

/// The plugin's processor time of calls with a blob of half a MiB, which is random, behind others; and that of a bare
/// write and `fdatasync` of so many bytes.
fn large(calls: &[Batch], raw: &mut Raw) -> (Vec<Duration>, Vec<Duration>) {
    const BLOB: usize = 512 << 10;
    let backed = Backed::fresh();
    let mut plugin = start(&backed);
    let before = &calls[..calls.len().min(2_000)];
    for (index, call) in before.iter().enumerate() {
        plugin.call(&message(index, call)).expect("the plugin acknowledges");
    }
    let mut rng = Rng::with_seed(1);
    let last = before.last().map_or(0, |call| call.data_version);
    let version = |call: usize| last + 1 + call as u32;
    let times = (0..20).map(|call| {
        let digits: String = (0..2 * BLOB).map(|_| rng.digit(16)).collect();
        let writes = vec![format!("INSERT INTO blobs VALUES ({call}, x'{digits}')")];
        let message = message(before.len() + call, &Batch { data_version: version(call), writes });
        let cpu = plugin.cpu();
        plugin.call(&message).expect("the plugin acknowledges");
        let cpu = plugin.cpu().saturating_sub(cpu);
        raw.write(BLOB).expect("the floor writes");
        cpu
    });
    let times = times.collect();
    plugin.stop();
    (times, std::mem::take(&mut raw.cpu_times))
}

fn start(backed: &Backed) -> Plugin {
    Plugin::start(&binaries::plugin(), &backed.network_dir()).expect("the plugin starts")
}

fn timed(plugin: &mut Plugin, message: &[u8]) -> Duration {
    let began = Instant::now();
    plugin.call(message).expect("the plugin acknowledges");
    began.elapsed()
}
