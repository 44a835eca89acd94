//! By the size of the database.

use std::time::Instant;

use fastrand::Rng;
use lockstep_benches::filled::{PAGE, change_of, fill};
use lockstep_benches::{plot, process, sizes, stored_bytes};
use lockstep_tests::backed::{Backed, ci_or_long};

use crate::node::{Node, Times};

const MIB: [u64; 4] = [10, 100, 1_024, 10_240];
const CALLS: usize = 3_000;
/// Pages that a call changes.
const PAGES: usize = 4;

/// One node of each size.
pub fn run() {
    println!(
        "\n{CALLS} batches behind the snapshot; each changes {PAGES} pages of bytes that do not compress"
    );
    println!(
        "| database MiB | init s | its peak MiB | append p50 µs | p99 | floor p50 | p99 | plugin's peak MiB | open s | status s | restore s | MB/s | its peak MiB | stored MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut lines = [const { Vec::new() }; 4];
    for mib in sizes("LOCKSTEP_MIB", ci_or_long(&MIB[..2], &MIB)) {
        let values = one(mib);
        lines.iter_mut().zip(values).for_each(|(line, value)| line.push((mib as f64, value)));
    }
    let names = ["append, p50", "open", "status", "restore"];
    let lines: Vec<plot::Line> = names.map(String::from).into_iter().zip(lines).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x_ticks = plot::powers_of_ten(all().map(|point| point.0));
    let y_ticks = plot::powers_of_ten(all().map(|point| point.1));
    let x = plot::Axis { label: "MiB of database", ticks: x_ticks, logarithmic: true };
    let y = plot::Axis { label: "seconds", ticks: y_ticks, logarithmic: true };
    plot::write("database", "what a database costs", &x, &y, &lines);
}

/// Prints a row and gives the seconds of an append, opening, `status` and a restore.
fn one(mib: u64) -> [f64; 4] {
    let backed = Backed::without_backup();
    let (rows, mut rng) = (mib * (1 << 20) / PAGE, Rng::with_seed(mib));
    let began = Instant::now();
    fill(&backed.network_file("lightningd.sqlite3"), rows, 1.0, &mut rng);
    eprintln!("a database of {mib} MiB, made in {:.0} s", began.elapsed().as_secs_f64());
    let init = process::run(&mut backed.init().command());
    let mut node = Node::start(backed, 1);
    let mut times = Times::default();
    for _ in 0..CALLS {
        let writes = (0..PAGES).map(|_| change_of(rng.u64(1..=rows))).collect();
        node.call(writes, false, Some(&mut times));
    }
    let peak = node.plugin.peak_kib();
    let (node, found) = node.stop().reopen();
    let stored = stored_bytes(&node.past.backed.store());
    node.plugin.stop();
    let (open, status, restore) = (found.open.as_secs_f64(), found.status.seconds, found.restore);
    let in_mib = |kib: u64| kib as f64 / 1024.0;
    println!(
        "| {mib} | {:.2} | {:.1} | {} | {:.1} | {open:.2} | {status:.2} | {:.2} | {:.0} | {:.1} | {:.0} |",
        init.seconds,
        in_mib(init.peak_kib),
        times.cells(),
        in_mib(peak),
        restore.seconds,
        found.database as f64 / 1e6 / restore.seconds,
        in_mib(restore.peak_kib),
        in_mib(stored / 1024),
    );
    [times.p50() / 1e6, open, status, restore.seconds]
}
