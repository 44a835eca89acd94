//! What the store takes after many batches, with the automatic compaction and the retention that are the default.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lockstep_benches::{Plugin, message};
use lockstep_tests::Batch;
use lockstep_tests::backed::files_under;
use lockstep_tests::binaries;
use lockstep_tests::step::version_bump;
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::{Workload, WorkloadConfig};
use serde_json::json;

use crate::sizes;

const CALLS_PER_LOOK: u64 = 10_000;
/// So much log is not left behind the newest snapshot.
const TAIL_BYTES: u64 = 32 << 20;
const SETTLED_AFTER: Duration = Duration::from_secs(1_800);

/// With tables that keep all rows, or `LOCKSTEP_ROWS` at most.
pub fn growth(batches: u64) {
    println!("\n{batches} batches of the generated workload, automatic compaction");
    println!("| rows | retention | database | snapshots | log | store | ratio | most before |");
    println!("|---|---|---|---|---|---|---|---|");
    for rows in sizes("LOCKSTEP_ROWS", 0) {
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
            most = most.max(size(&store));
        }
    }
    let wrote = began.elapsed().as_secs_f64();
    let compactions = settled(&mut plugin);
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
        let (snapshots, log) = (size(&store.join("snapshots")), size(&store.join("log")));
        let all = size(&store);
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
    row("`--keep-last 2`", size(&store));
    println!(
        "{name}: {compactions} compactions, {wrote:.0} s of calls, {settled_s:.0} s until none was due"
    );
}

/// Waits until none is due any more: after one that took long the next may have to wait for minutes. Gives how
/// many there were.
fn settled(plugin: &mut Plugin) -> u64 {
    let began = Instant::now();
    loop {
        let status = plugin.ask("backup-status", &json!({})).expect("a status");
        let compaction = &status["compaction"];
        assert!(compaction["error"].is_null(), "{compaction}");
        let due = compaction["tail_bytes"].as_u64().is_none_or(|tail| tail >= TAIL_BYTES);
        if compaction["running"].is_null() && !due {
            return compaction["last"]["id"].as_u64().unwrap_or(0);
        }
        assert!(began.elapsed() < SETTLED_AFTER, "{compaction}");
        sleep(Duration::from_millis(500));
    }
}

fn run(command: &mut Command) {
    let done = command.output().expect("backup-cli runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn size(folder: &Path) -> u64 {
    // There may be no snapshot, and a file may be gone by the time that it is looked at.
    if !folder.exists() {
        return 0;
    }
    let size = |file: &PathBuf| fs::metadata(folder.join(file)).map_or(0, |meta| meta.len());
    files_under(folder).iter().map(size).sum()
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
