//! Programs that are run to their end, and what they took.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the kernel's account of a program is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// What a program took.
#[derive(Debug, Clone, Copy)]
pub struct Ran {
    /// From its start to its end.
    pub seconds: f64,
    /// Processor time of the program and of those that it started, in seconds, to 10 ms.
    pub cpu: f64,
    /// The most resident memory that it had, in KiB.
    pub peak_kib: u64,
}

/// Runs a program to its end, which must be a good one; what it says on stdout is of no interest.
pub fn run(command: &mut Command) -> Ran {
    let cpu = cpu_of_children();
    let began = Instant::now();
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (ended, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let process = child.id();
    let (status, seconds) = thread::scope(|scope| {
        scope.spawn(|| {
            // The kernel's own high-water mark: what is missed is what the last moment adds.
            while !ended.load(Ordering::Relaxed) {
                peak.fetch_max(memory_kib(process, "VmHWM:"), Ordering::Relaxed);
                thread::sleep(LOOK);
            }
        });
        let status = child.wait();
        let seconds = began.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        (status, seconds)
    });
    assert!(status.is_ok_and(|status| status.success()), "failed: {command:?}");
    let cpu = (cpu_of_children() - cpu).as_secs_f64();
    Ran { seconds, cpu, peak_kib: peak.into_inner() }
}

/// Runs it so many times and gives the run of median length. `before` is called before each, for what has to go.
pub fn median_of(times: usize, mut before: impl FnMut() -> Command) -> Ran {
    let mut ran: Vec<Ran> = (0..times).map(|_| run(&mut before())).collect();
    ran.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    ran[times / 2]
}

/// A line of a process's memory in the kernel's account, in KiB; 0 where there is none.
pub fn memory_kib(process: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Processor time of all children of this process that have ended.
fn cpu_of_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}
