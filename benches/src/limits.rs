//! A small machine: a control group with so much memory and so much of a processor.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";
/// The share of a processor is given anew so often: the shorter, the more it is like a slow processor and the less
/// like one that stops.
const PERIOD_US: u64 = 4_000;

/// A control group, until it is dropped. What is in it must have ended by then.
pub struct Group {
    /// One folder, or, with version 1, one for memory and one for the processor.
    folders: Vec<PathBuf>,
    memory: PathBuf,
    version_1: bool,
}

impl Group {
    /// Makes one of version 2, else of version 1. `None`, and a line on stderr, where this user may not.
    pub fn create_or_say(name: &str, memory: u64, cpu: f64) -> Option<Self> {
        let name = format!("lockstep-{name}-{}", std::process::id());
        let made = Self::version_2(&name, memory, cpu).or_else(|second| {
            Self::version_1(&name, memory, cpu)
                .map_err(|first| format!("{second}; version 1: {first}"))
        });
        made.map_err(|error| eprintln!("SKIPPED: {name}: no control group (root may): {error}"))
            .ok()
    }

    fn version_2(name: &str, memory: u64, cpu: f64) -> io::Result<Self> {
        let root = Path::new(ROOT);
        set(root.join("cgroup.subtree_control"), "+memory +cpu")?;
        let folder = root.join(name);
        fs::create_dir(&folder)?;
        let group =
            Self { folders: vec![folder.clone()], memory: folder.clone(), version_1: false };
        set(folder.join("memory.max"), memory.to_string())?;
        set(folder.join("memory.swap.max"), "0").or_else(ignore_missing)?;
        let quota = (PERIOD_US as f64 * cpu) as u64;
        set(folder.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
        Ok(group)
    }

    fn version_1(name: &str, memory: u64, cpu: f64) -> io::Result<Self> {
        let folder = |controller: &str| Path::new(ROOT).join(controller).join(name);
        let mut group = Self { folders: Vec::new(), memory: folder("memory"), version_1: true };
        for controller in ["memory", "cpu"] {
            fs::create_dir(folder(controller))?;
            group.folders.push(folder(controller));
        }
        set(folder("memory").join("memory.limit_in_bytes"), memory.to_string())?;
        let quota = (PERIOD_US as f64 * cpu) as u64;
        set(folder("cpu").join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
        set(folder("cpu").join("cpu.cfs_quota_us"), quota.to_string())?;
        Ok(group)
    }

    /// The program and its arguments that start `program` in the group, with its first page of memory.
    pub fn around(&self, program: &Path) -> (PathBuf, Vec<String>) {
        let mut enter = String::new();
        for folder in &self.folders {
            enter += &format!("echo $$ >'{}' && ", folder.join("cgroup.procs").display());
        }
        let script = format!("{enter}exec \"$0\" \"$@\"");
        ("/bin/sh".into(), vec!["-c".into(), script, program.display().to_string()])
    }

    /// A command like this one, in the group.
    pub fn command(&self, command: &Command) -> Command {
        let (shell, args) = self.around(Path::new(command.get_program()));
        let mut limited = Command::new(shell);
        limited.args(args).args(command.get_args());
        limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited
    }

    /// How often something in it was killed for want of memory.
    pub fn killed(&self) -> u64 {
        let file = if self.version_1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.memory.join(file)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

/// Writes to a file of the kernel's, and makes none: where control groups are of another version it is not there.
fn set(path: impl AsRef<Path>, value: impl AsRef<[u8]>) -> io::Result<()> {
    fs::File::options().write(true).open(path)?.write_all(value.as_ref())
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            // The last process may be gone only in a moment.
            for _ in 0..100 {
                if fs::remove_dir(folder).is_ok() {
                    break;
                }
                sleep(Duration::from_millis(20));
            }
        }
    }
}
