//! The plugin stays small: it runs beside a node on small machines, for months.

use std::fs;

use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, ci_or_long};
use lockstep_tests::sim::{Node, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};

const MIB: u64 = 1 << 20;
const RESIDENT_MAX: u64 = 16 * MIB;

/// Bytes of the plugin that are in memory, or were at most.
fn resident(node: &Node, field: &str) -> u64 {
    let id = node.plugin().expect("a running plugin").id();
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a Linux /proc");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the field is there");
    let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kib * 1024
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}

#[test]
fn the_plugin_stays_small_however_many_batches_there_are() {
    let batches = ci_or_long(6_000, 100_000);
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(1).lean());
    let mut node = backed.running(&mut workload);
    let mut sizes = Vec::new();
    for _ in 0..10 {
        Backed::write(&mut node, &mut workload, batches / 10);
        sizes.push(resident(&node, "VmRSS"));
    }
    let shown: Vec<String> = sizes.iter().copied().map(mib).collect();
    println!("resident after each tenth of {batches} batches: {}", shown.join(", "));
    let (half, last) = (sizes[4], sizes[9]);
    assert!(last <= RESIDENT_MAX, "{} resident after {batches} batches", mib(last));
    assert!(last <= half + MIB, "grows: {} at half, {} at the end", mib(half), mib(last));
    node.kill().unwrap();
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn memory_of_a_huge_batch_is_given_back() {
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(2).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 200);
    let before = resident(&node, "VmRSS");
    let mut rng = fastrand::Rng::with_seed(2);
    let hex: String = (0..1 << 20).map(|_| format!("{:016x}", rng.u64(..))).collect();
    let insert = format!("INSERT INTO datastore VALUES (x'01', x'{hex}', 0)");
    let length = insert.len() as u64;
    node.write(&Step::transaction([insert])).unwrap().expect_committed();
    let peak = resident(&node, "VmHWM");
    Backed::write(&mut node, &mut workload, 200);
    let after = resident(&node, "VmRSS");
    println!(
        "a batch of {}: {} before, {} at most, {} after",
        mib(length),
        mib(before),
        mib(peak),
        mib(after)
    );
    assert!(after <= before + 4 * MIB, "{} before, {} after", mib(before), mib(after));
    assert!(peak <= before + 8 * length, "{} for a batch of {}", mib(peak), mib(length));
    node.kill().unwrap();
    assert_eq!(backed.check(&node), Standing::Committed);
}
