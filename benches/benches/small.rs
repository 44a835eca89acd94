//! A small machine: the plugin and `backup-cli` with 64 MiB of memory and a quarter of one core, beside the same without
//! limits, in one run. The limits are a control group's (needs root); page cache counts in it.
//!
//! The quarter is given every 4 ms: what needs more than its share waits 3 ms and goes on, so that it is about as fast as a
//! core of a quarter of the speed. `LOCKSTEP_MIB` (256) is the size of the larger database; `LOCKSTEP_CALLS` makes it
//! shorter.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_benches::filled::{PAGE, fill};
use lockstep_benches::limits::Group;
use lockstep_benches::process::{self, Ran};
use lockstep_benches::{Plugin, Raw, bare, calls, message, percentile, sizes};
use lockstep_tests::Batch;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::{self, Cli};
use lockstep_tests::step::version_bump;
use lockstep_tests::testdir::TestDir;
use serde_json::json;

const MEMORY: u64 = 64 << 20;
const CPU: f64 = 0.25;
/// Calls that come one right after the other, at the end.
const HURRIED: usize = 5_000;
/// Between the calls while it compacts: payments are not made without a pause.
const PAUSE: Duration = Duration::from_millis(2);

/// One of the two machines.
struct Machine<'a> {
    name: &'static str,
    group: Option<&'a Group>,
    backed: Backed,
    plugin: Plugin,
    times: Vec<Duration>,
}

fn main() {
    let Some(group) = Group::create_or_say("small", MEMORY, CPU) else { return };
    let limit = sizes("LOCKSTEP_CALLS", &[28_150])[0] as usize;
    let (input, calls) = calls(limit);
    let dir = TestDir::new();
    let mut raw = Raw::new(&dir.path("raw"), 64 << 20).expect("a file of zeros");
    let mut machines = [
        Machine::new("without limits", None),
        Machine::new("64 MiB, a quarter of a core", Some(&group)),
    ];
    let (in_turn, hurried) = calls.split_at(calls.len() - HURRIED.min(calls.len() / 2));
    let mut floor = Vec::new();
    for (index, call) in in_turn.iter().enumerate() {
        let message = message(index, call);
        for turn in 0..3 {
            match (index + turn) % 3 {
                2 => floor.push(raw.write(bare::bytes_of(message.len())).expect("it writes")),
                who => machines[who].call(&message),
            }
        }
    }
    println!("\n{input}");
    println!(
        "| | p50 µs | p99 µs | p99.9 µs | calls/s without a pause | compaction s | longest call meanwhile ms | plugin's peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    println!("| a bare write + fdatasync | {} | | | | |", percentiles(&mut floor));
    let head = calls.last().map_or(0, |call| call.data_version);
    for machine in &mut machines {
        let times = percentiles(&mut machine.times);
        let began = Instant::now();
        for (index, call) in hurried.iter().enumerate() {
            machine.call(&message(in_turn.len() + index, call));
        }
        let speed = hurried.len() as f64 / began.elapsed().as_secs_f64();
        let (longest, whole) = machine.compact(head);
        let peak = machine.plugin.peak_kib() as f64 / 1024.0;
        println!(
            "| {} | {times} | {speed:.0} | {whole:.1} | {:.1} | {peak:.1} |",
            machine.name,
            longest.as_secs_f64() * 1e3
        );
    }
    programs(&machines);
    machines.into_iter().for_each(|machine| machine.plugin.stop());
    println!("killed for want of memory: {}", group.killed());
}

/// What `backup-cli` takes on each.
fn programs(machines: &[Machine<'_>]) {
    let mib = sizes("LOCKSTEP_MIB", &[256])[0];
    let restore = |backed: &Backed| backed.restore(&backed.new_dest()).command();
    let replay = |backed: &Backed| {
        // The newest state as if it had never been compacted.
        let _ = std::fs::rename(backed.store().join("snapshots"), backed.dir().path("aside"));
        restore(backed)
    };
    let status = |backed: &Backed| {
        Cli::new(["status", "--lightning-dir"]).arg(backed.network_dir()).command()
    };
    let init = |backed: &Backed| backed.init().command();
    println!("\n| | without limits s | peak MiB | 64 MiB, a quarter of a core s | peak MiB |");
    println!("|---|---|---|---|---|");
    let row = |what: &str, ran: [Ran; 2]| {
        let cells =
            ran.map(|ran| format!("{:.2} | {:.1}", ran.seconds, ran.peak_kib as f64 / 1024.0));
        println!("| {what} | {} |", cells.join(" | "));
    };
    let each = |command: &dyn Fn(&Backed) -> Command| {
        [0, 1].map(|who| machines[who].run(command(&machines[who].backed)))
    };
    row("status", each(&status));
    row("restore of the compacted log", each(&restore));
    row("restore of the same by replaying all of it", each(&replay));
    let large = [(); 2].map(|()| {
        let (backed, mut rng) = (Backed::without_backup(), Rng::with_seed(mib));
        fill(&backed.network_file("lightningd.sqlite3"), mib * (1 << 20) / PAGE, 0.5, &mut rng);
        backed
    });
    let each = |command: &dyn Fn(&Backed) -> Command| {
        [0, 1].map(|who| machines[who].run(command(&large[who])))
    };
    row(&format!("init of a database of {mib} MiB"), each(&init));
    row(&format!("restore of a database of {mib} MiB"), each(&restore));
}

impl<'a> Machine<'a> {
    fn new(name: &'static str, group: Option<&'a Group>) -> Self {
        let backed = Backed::fresh();
        backed.set_in_lock("compaction", json!({"enabled": false}));
        let directory = backed.network_dir();
        let (program, args) = match group {
            Some(group) => group.around(&binaries::plugin()),
            None => (binaries::plugin(), Vec::new()),
        };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let plugin = Plugin::start_with(&program, &directory, &args);
        let mut plugin = plugin.expect("the plugin starts");
        plugin.init(&directory).expect("the plugin takes init");
        Self { name, group, backed, plugin, times: Vec::new() }
    }

    fn call(&mut self, message: &[u8]) {
        let began = Instant::now();
        self.plugin.call(message).expect("the plugin acknowledges");
        self.times.push(began.elapsed());
    }

    /// The longest call while it compacts, and how long that takes. The calls change the version and nothing else.
    fn compact(&mut self, mut version: u32) -> (Duration, f64) {
        self.times.clear();
        let began = Instant::now();
        let asked = self.plugin.ask("backup-compact", &json!({})).expect("it starts");
        loop {
            for _ in 0..10 {
                let writes = vec![version_bump(version.into())];
                version += 1;
                self.call(&message(version as usize, &Batch { data_version: version, writes }));
                sleep(PAUSE);
            }
            let status = self.plugin.ask("backup-status", &json!({})).expect("a status");
            let compaction = &status["compaction"];
            assert!(compaction["error"].is_null(), "{compaction}");
            if compaction["last"]["id"] == asked["id"] {
                let longest = self.times.iter().max().copied();
                return (longest.unwrap_or_default(), began.elapsed().as_secs_f64());
            }
        }
    }

    fn run(&self, command: Command) -> Ran {
        match self.group {
            Some(group) => process::run(&mut group.command(&command)),
            None => process::run(&mut { command }),
        }
    }
}

fn percentiles(times: &mut [Duration]) -> String {
    [0.5, 0.99, 0.999].map(|p| format!("{:.0}", percentile(times, p))).join(" | ")
}
