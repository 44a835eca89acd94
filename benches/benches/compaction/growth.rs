//! What the store takes after many batches, with the automatic compaction and the retention that are the default.

use std::fs;
use std::process::Command;
use std::time::Instant;

use lockstep_benches::{Plugin, message, sizes, stored_bytes};
use lockstep_tests::Batch;
use lockstep_tests::binaries;
use lockstep_tests::step::version_bump;
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::{Workload, WorkloadConfig};

const CALLS_PER_LOOK: u64 = 10_000;

/// With tables that keep all rows, or `LOCKSTEP_ROWS` at most.
pub fn growth(batches: u64) {
    println!("\n{batches} batches of the generated workload, automatic compaction");
    println!("| rows | retention | database | snapshots | log | store | ratio | most before |");
    println!("|---|---|---|---|---|---|---|---|");
    for rows in sizes("LOCKSTEP_ROWS", &[0]) {
        let mut config = WorkloadConfig::seeded(11).growing();
        if rows > 0 {
            config.rows_max = rows as usize;
        }
        let name = if rows > 0 { format!("at most {rows} a table") } else { "all".into() };
        one(&name, config, batches);
    }
}

fn one(name: &str, config: WorkloadConfig, batches: u64) {
    let (plugin, cli) = (binaries::plugin(), binaries::cli());
    let dir = TestDir::new();
    let (node, store) = (dir.network_dir(), dir.path("store"));
    run(Command::new(&cli).args(["init", "--lightning-dir"]).arg(&node).arg(&store));
    let mut plugin = Plugin::start(&plugin, &node).expect("the plugin starts");
    plugin.init(&node).expect("the plugin takes init");
    let (mut version, mut most, began) = (0_u32, 0, Instant::now());
    for (index, step) in (0..batches).zip(Workload::new(config)) {
        let mut writes = step.statements().to_vec();
        if !step.is_pragma() {
            writes.push(version_bump(version.into()));
            version += 1;
        }
        let call = message(index as usize, &Batch { data_version: version, writes });
        plugin.call(&call).expect("the plugin acknowledges");
        if index % CALLS_PER_LOOK == 0 {
            most = most.max(stored_bytes(&store));
        }
    }
    let wrote = began.elapsed().as_secs_f64();
    let compactions = plugin.settled();
    let settled_s = began.elapsed().as_secs_f64() - wrote;
    plugin.stop();
    let restored = dir.path("restored.sqlite3");
    let key = node.join("backup.key");
    run(Command::new(&cli)
        .args(["restore", "--no-claim", "--key-file"])
        .arg(&key)
        .arg(&store)
        .arg(&restored));
    let database = fs::metadata(&restored).expect("it is there").len();
    let row = |retention: &str, most: u64| {
        let (snapshots, log) =
            (stored_bytes(&store.join("snapshots")), stored_bytes(&store.join("log")));
        let all = stored_bytes(&store);
        println!(
            "| {name} | {retention} | {} | {} | {} | {} | {:.2} | {} |",
            mib(database),
            mib(snapshots),
            mib(log),
            mib(all),
            all as f64 / database as f64,
            mib(most)
        );
    };
    row("default", most);
    // What that would have left, had it been asked for from the beginning.
    run(Command::new(&cli).args(["prune", "--keep-last", "2", "--lightning-dir"]).arg(&node));
    row("`--keep-last 2`", stored_bytes(&store));
    println!(
        "{name}: {compactions} compactions, {wrote:.0} s of calls, {settled_s:.0} s until none was due"
    );
}

fn run(command: &mut Command) {
    let done = command.output().expect("backup-cli runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
