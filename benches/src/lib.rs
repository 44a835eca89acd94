//! What the benches share: input, the plugin as a process, the floor, and tables.

pub mod bare;
pub mod bucket;
pub mod filled;
pub mod limits;
pub mod plot;
pub mod process;
pub mod python;
pub mod server;

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lockstep_tests::Batch;
use lockstep_tests::workload::{Trace, Traces, Workload, WorkloadConfig};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// So much log is not left behind the newest snapshot.
const TAIL_BYTES: u64 = 32 << 20;
const SETTLED_AFTER: Duration = Duration::from_secs(1_800);

/// The calls to measure with: the recorded node where it is there, else a generated one. At most `limit`.
pub fn calls(limit: usize) -> (String, Vec<Batch>) {
    if let Some(traces) = Traces::locate_or_say("bench") {
        let calls = traces.read(Trace::Node).expect("the trace opens").take(limit);
        let calls: Vec<Batch> = calls.map(|call| call.expect("the trace reads")).collect();
        return (format!("recorded node, {} calls", calls.len()), calls);
    }
    let mut version = 0;
    let mut workload = Workload::new(WorkloadConfig::seeded(7));
    let calls: Vec<Batch> = (0..limit)
        .map_while(|_| workload.next())
        .map(|step| {
            let mut writes = step.statements().to_vec();
            if !step.is_pragma() {
                writes.push(lockstep_tests::step::version_bump(version));
                version += 1;
            }
            Batch { data_version: version as u32, writes }
        })
        .collect();
    (format!("generated node, {} calls", calls.len()), calls)
}

/// Bytes of SQL in a call.
pub fn sql_bytes(call: &Batch) -> usize {
    call.writes.iter().map(String::len).sum()
}

/// A `db_write` as lightningd sends it.
pub fn message(index: usize, call: &Batch) -> Vec<u8> {
    let params = serde_json::to_string(call).expect("a batch is JSON");
    format!("{{\"jsonrpc\":\"2.0\",\"id\":\"cln:db_write#{index}\",\"method\":\"db_write\",\"params\":{params}}}\n\n")
        .into_bytes()
}

/// The real plugin, as lightningd runs it.
pub struct Plugin {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    buffer: Vec<u8>,
}

impl Plugin {
    /// Starts it in a network directory and takes its manifest.
    pub fn start(binary: &Path, directory: &Path) -> io::Result<Self> {
        Self::start_with(binary, directory, &[])
    }

    /// Starts another program as a plugin.
    pub fn start_with(binary: &Path, directory: &Path, args: &[&str]) -> io::Result<Self> {
        let mut child = Command::new(binary)
            .args(args)
            .current_dir(directory)
            // As lightningd tells those that it starts.
            .env("LIGHTNINGD_PLUGIN", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or_else(|| io::Error::other("no stdin"))?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?;
        let mut plugin = Self { child, stdin, stdout: BufReader::new(stdout), buffer: Vec::new() };
        plugin.call(
            b"{\"jsonrpc\":\"2.0\",\"id\":\"m\",\"method\":\"getmanifest\",\"params\":{}}\n\n",
        )?;
        Ok(plugin)
    }

    /// Sends a message and waits for its answer, skipping log lines.
    pub fn call(&mut self, message: &[u8]) -> io::Result<()> {
        let answer = self.answer(message)?;
        if answer.contains("\"error\"") || answer.contains("\"disable\"") {
            Err(io::Error::other(answer))
        } else {
            Ok(())
        }
    }

    /// Tells it that the node runs: from here on it has RPC methods.
    pub fn init(&mut self, directory: &Path) -> io::Result<()> {
        let params = json!({
            "options": {},
            "configuration": {
                "lightning-dir": directory,
                "rpc-file": "lightning-rpc",
                "startup": true,
                "network": "regtest",
                "feature_set": {"init": "", "node": "", "channel": "", "invoice": ""},
            },
        });
        self.ask("init", &params).map(drop)
    }

    /// Calls an RPC method and gives its result.
    pub fn ask(&mut self, method: &str, params: &Value) -> io::Result<Value> {
        let answer = self.answer(&request(method, params))?;
        let answer: Value = serde_json::from_str(&answer)?;
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(io::Error::other(answer.to_string())),
        }
    }

    fn answer(&mut self, message: &[u8]) -> io::Result<String> {
        self.send(message)?;
        self.next_answer()
    }

    /// Sends a message, and waits for nothing.
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        self.stdin.write_all(message)
    }

    /// Waits for the next answer, skipping log lines.
    pub fn next_answer(&mut self) -> io::Result<String> {
        loop {
            let answer = self.message()?;
            // With a space as Python writes it.
            if !answer.contains("\"method\":\"log\"") && !answer.contains("\"method\": \"log\"") {
                return Ok(answer);
            }
        }
    }

    fn message(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let message: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return String::from_utf8(message).map_err(io::Error::other);
            }
            let mut piece = [0; 4096];
            match self.stdout.read(&mut piece)? {
                0 => return Err(io::Error::other("the plugin ended")),
                read => self.buffer.extend_from_slice(&piece[..read]),
            }
        }
    }

    /// Resident memory in KiB, from the kernel's account.
    pub fn resident_kib(&self) -> u64 {
        process::memory_kib(self.child.id(), "VmRSS:")
    }

    /// The most resident memory that it ever had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        process::memory_kib(self.child.id(), "VmHWM:")
    }

    /// Processor time that the process has used so far.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    /// See [`user_and_kernel`].
    pub fn user_and_kernel(&self) -> (Duration, Duration) {
        user_and_kernel(self.child.id())
    }

    /// Waits until no compaction is due any more: after one that took long the next may have to wait for minutes.
    /// Gives how many there were.
    pub fn settled(&mut self) -> u64 {
        let began = Instant::now();
        loop {
            let status = self.ask("backup-status", &json!({})).expect("a status");
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

    /// Closes the pipe and waits.
    pub fn stop(self) {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        let _ = child.wait();
    }
}

/// A call of an RPC method as lightningd passes it on.
pub fn request(method: &str, params: &Value) -> Vec<u8> {
    let message = json!({"jsonrpc": "2.0", "id": method, "method": method, "params": params});
    format!("{message}\n\n").into_bytes()
}

/// Processor time of a process so far in the program itself and in the kernel, from `/proc/PID/stat`, to 10 ms.
pub fn user_and_kernel(process: u32) -> (Duration, Duration) {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let mut ticks = fields.split_whitespace().skip(11).map(|field| field.parse().unwrap_or(0));
    let mut next = || Duration::from_millis(10 * ticks.next().unwrap_or(0));
    (next(), next())
}

/// Processor time that this thread has used so far. Unlike reading `/proc`, to ask for it costs next to nothing.
pub fn cpu_of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Processor time of all threads of a process, from `/proc/PID/task/*/schedstat`, in nanoseconds there.
fn cpu_of(process: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let nanos = tasks.into_iter().flatten().flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// A file of zeros that is written from its beginning on, `fdatasync` after each write.
pub struct Zeroed {
    file: File,
    at: u64,
    bytes: Vec<u8>,
}

impl Zeroed {
    /// Prepares a file of `size` zero bytes.
    pub fn create(path: &Path, size: usize) -> io::Result<Self> {
        let file = File::create(path)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..size).step_by(zeros.len()) {
            file.write_all_at(&zeros, at as u64)?;
        }
        file.sync_all()?;
        Ok(Self { file, at: 0, bytes: vec![0xa5; 8 << 20] })
    }

    /// Writes `len` bytes and makes them durable.
    pub fn write(&mut self, len: usize) -> io::Result<()> {
        self.file.write_all_at(&self.bytes[..len.min(self.bytes.len())], self.at)?;
        self.at += len as u64;
        self.file.sync_data()
    }
}

/// The floor: such a file on the same file system, without a process between.
pub struct Raw {
    file: Zeroed,
    /// Processor time of each write, the kernel's share included.
    pub cpu_times: Vec<Duration>,
}

impl Raw {
    /// Prepares a file of `size` zero bytes.
    pub fn new(path: &Path, size: usize) -> io::Result<Self> {
        Ok(Self { file: Zeroed::create(path, size)?, cpu_times: Vec::new() })
    }

    /// An empty file that grows with each write, as without any preparation.
    pub fn growing(path: &Path) -> io::Result<Self> {
        Self::new(path, 0)
    }

    /// Writes `len` bytes and makes them durable.
    pub fn write(&mut self, len: usize) -> io::Result<Duration> {
        let cpu = cpu_of_this_thread();
        let began = Instant::now();
        self.file.write(len)?;
        let took = began.elapsed();
        self.cpu_times.push(cpu_of_this_thread().saturating_sub(cpu));
        Ok(took)
    }
}

/// The value below which a share `p` (0 to 1) of `times` lies, in microseconds.
pub fn percentile(times: &mut [Duration], p: f64) -> f64 {
    times.sort_unstable();
    let index = ((times.len() as f64 * p) as usize).min(times.len().saturating_sub(1));
    times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// Bytes of all files under a folder; 0 where there is none.
pub fn stored_bytes(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                stored_bytes(&path)
            } else {
                entry.metadata().map_or(0, |meta| meta.len())
            }
        })
        .sum()
}

/// The numbers that an environment variable holds, with commas between.
pub fn sizes(variable: &str, default: &[u64]) -> Vec<u64> {
    let Ok(text) = std::env::var(variable) else { return default.to_vec() };
    text.split(',').map(|size| size.trim().parse().expect(variable)).collect()
}
