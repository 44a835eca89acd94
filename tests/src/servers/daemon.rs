//! Processes that end with the test, however it ends.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::real::wait::within;

/// Set, directories stay.
const KEEP_VARIABLE: &str = "LOCKSTEP_KEEP";
/// How long a daemon may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(20);
/// Lives as long as the test process has its standard input open; then ends the group of processes and
/// removes the directory. A value that is shared by all tests of a process is never dropped.
const GUARD: &str = r#"while read -r _; do :; done
kill -s KILL -- "-$1"
[ -z "$2" ] || rm -rf -- "$2""#;

/// A daemon in a group of processes of its own, with a log. It ends with its value, or with the test process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    command: Command,
    directory: PathBuf,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    guard: Child,
}

impl Daemon {
    /// Starts it; its log is `NAME.log` in the directory.
    pub fn start(mut command: Command, directory: &Path, name: &str) -> Self {
        let log = File::options().create(true).append(true).open(log_path(directory, name));
        let log = log.expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        command.process_group(0).current_dir(directory);
        let (name, directory) = (name.to_owned(), directory.to_owned());
        let mut daemon = Self { name, command, directory, running: None };
        daemon.start_again();
        daemon
    }

    /// Starts it again after it ended.
    pub fn start_again(&mut self) {
        assert!(!self.is_running(), "{} runs", self.name);
        self.reap();
        let child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let directory = if keep() { Path::new("") } else { &self.directory };
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &child.id().to_string()])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .current_dir("/")
            .spawn()
            .expect("a guard");
        self.running = Some(Running { child, guard });
    }

    /// Whether its first process lives.
    pub fn is_running(&mut self) -> bool {
        let running = self.running.as_mut();
        running.is_some_and(|running| running.child.try_wait().expect("its state").is_none())
    }

    /// `kill -9`; it may have ended already.
    pub fn kill(&mut self) {
        self.signal("KILL");
        self.reap();
    }

    /// Asks it to end, and waits for that.
    pub fn stop(&mut self) {
        self.signal("TERM");
        if within(PATIENCE, || (!self.is_running()).then_some(())).is_none() {
            panic!("{} does not end:\n{}", self.name, self.log());
        }
        // What it left behind.
        self.kill();
    }

    /// From here on whoever uses it hangs.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// It goes on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        let log = fs::read(log_path(&self.directory, &self.name)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn signal(&self, signal: &str) {
        let Some(running) = &self.running else { return };
        let group = format!("-{}", running.child.id());
        let kill = Command::new("kill").args(["-s", signal, "--", &group]).output();
        kill.expect("kill runs");
    }

    /// Takes the process off the system's list, and the guard, which has nothing to guard any more.
    fn reap(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        // Before the process: from its end on, its number may be another's.
        let _ = running.guard.kill();
        let _ = running.guard.wait();
        let _ = running.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether directories are to stay.
pub fn keep() -> bool {
    std::env::var_os(KEEP_VARIABLE).is_some()
}

fn log_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}
