//! By the number of batches.

use lockstep_benches::{plot, sizes, stored_bytes};
use lockstep_tests::backed::{Backed, ci_or_long};
use lockstep_tests::workload::{Workload, WorkloadConfig};

use crate::node::{Node, Times};

const MARKS: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// The calls before a mark that are timed, at most.
const TIMED: u64 = 5_000;
const MIB: f64 = (1 << 20) as f64;

/// One node, that is looked at when it has written so many.
pub fn run() {
    let marks = sizes("LOCKSTEP_BATCHES", ci_or_long(&MARKS[..3], &MARKS));
    let mut node = Node::start(Backed::fresh(), 0);
    // Its tables have a bounded number of rows, and no new columns.
    let config =
        WorkloadConfig { big_blob_every: 0, migration_every: 0, ..WorkloadConfig::seeded(7) };
    let mut workload = Workload::new(config);
    println!("\na small database, automatic compaction; the calls before each number are timed");
    println!(
        "| batches | append p50 µs | p99 | floor p50 | p99 | resident MiB | at most | open s | status s | restore s | replay of all s | ratio | database MB | stored MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let (mut written, mut lines) = (0, [const { Vec::new() }; 4]);
    for mark in marks {
        let timed_from = mark - TIMED.min(mark / 2);
        let mut times = Times::default();
        while written < mark {
            let step = workload.next().expect("a workload is endless");
            let times = (written >= timed_from).then_some(&mut times);
            node.call(step.statements().to_vec(), step.is_pragma(), times);
            written += 1;
        }
        node.plugin.settled();
        let (resident, peak) = (node.plugin.resident_kib(), node.plugin.peak_kib());
        let past = node.stop();
        let replay = past.replay().seconds;
        let (next, found) = past.reopen();
        node = next;
        written += 1;
        let stored = stored_bytes(&node.past.backed.store()) as f64;
        let (open, status) = (found.open.as_secs_f64(), found.status.seconds);
        let restore = found.restore.seconds;
        println!(
            "| {mark} | {} | {:.1} | {:.1} | {open:.2} | {status:.2} | {restore:.2} | {replay:.2} | {:.1} | {:.1} | {:.1} |",
            times.cells(),
            resident as f64 / 1024.0,
            peak as f64 / 1024.0,
            replay / restore,
            found.database as f64 / MIB,
            stored / MIB,
        );
        let values = [times.p50() / 1e6, open, restore, replay];
        lines.iter_mut().zip(values).for_each(|(line, value)| line.push((mark as f64, value)));
    }
    node.plugin.stop();
    draw(lines);
}

fn draw(lines: [Vec<(f64, f64)>; 4]) {
    let names = ["append, p50", "open", "restore", "restore by replaying all"];
    let lines: Vec<plot::Line> = names.map(String::from).into_iter().zip(lines).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let x_ticks = plot::powers_of_ten(all().map(|point| point.0));
    let y_ticks = plot::powers_of_ten(all().map(|point| point.1));
    let x = plot::Axis { label: "batches", ticks: x_ticks, logarithmic: true };
    let y = plot::Axis { label: "seconds", ticks: y_ticks, logarithmic: true };
    plot::write("history", "what a history costs", &x, &y, &lines);
}
