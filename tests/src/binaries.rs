//! The programs under test: found beside the running test, built if need be.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Set, nothing is built: the binaries must be there.
const NO_BUILD_VARIABLE: &str = "LOCKSTEP_NO_BUILD";
/// How long a command may run unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The plugin, `cln-lockstep`; `LOCKSTEP_PLUGIN` names another.
pub fn plugin() -> PathBuf {
    program("cln-lockstep", "LOCKSTEP_PLUGIN")
}

/// The command line program, `backup-cli`; `LOCKSTEP_CLI` names another.
pub fn cli() -> PathBuf {
    program("backup-cli", "LOCKSTEP_CLI")
}

/// Runs `backup-cli` with arguments and captures what it says.
pub fn backup_cli<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Cli::new(args).run()
}

/// Builds once a process, since cargo alone knows whether it is up to date.
fn program(package: &str, variable: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(package) {
        return path.clone();
    }
    let layout = Layout::of_this_test();
    let path = layout.profile_dir.join(package);
    if std::env::var_os(NO_BUILD_VARIABLE).is_none() {
        layout.build(package);
    }
    assert!(path.is_file(), "no binary at {}", path.display());
    built.insert(package.to_owned(), path.clone());
    path
}

/// Where cargo put this test: `target/[triple/]profile/deps/test-…`.
struct Layout {
    profile_dir: PathBuf,
    target_dir: PathBuf,
    triple: Option<String>,
}

impl Layout {
    fn of_this_test() -> Self {
        let exe = std::env::current_exe().expect("the path of this test");
        Self::of(&exe).unwrap_or_else(|| panic!("{} is in no target directory", exe.display()))
    }

    fn of(exe: &Path) -> Option<Self> {
        let mut profile_dir = exe.parent()?;
        if profile_dir.ends_with("deps") {
            profile_dir = profile_dir.parent()?;
        }
        let above = profile_dir.parent()?;
        let nested =
            !above.join("CACHEDIR.TAG").is_file() && above.parent()?.join("CACHEDIR.TAG").is_file();
        let triple = nested.then(|| above.file_name()?.to_str().map(String::from));
        Some(Self {
            profile_dir: profile_dir.to_owned(),
            target_dir: if nested { above.parent()? } else { above }.to_owned(),
            triple: triple.flatten(),
        })
    }

    fn build(&self, package: &str) {
        let profile = match self.profile_dir.file_name().and_then(OsStr::to_str) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            // All of them: alone, one's dependencies have other features, and are built again.
            .args(["build", "--quiet", "--workspace", "--bins"])
            .args(["--profile", profile, "--target-dir"])
            .arg(&self.target_dir)
            .args(self.triple.iter().flat_map(|triple| ["--target", triple]))
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        for (name, _) in std::env::vars_os() {
            // Of this package, and not to be seen by the others' builds: they would begin anew.
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        let output = command.output().expect("cargo runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "failed to build {package}:\n{said}");
    }
}

/// One run of `backup-cli`, or of another program.
#[derive(Debug)]
pub struct Cli {
    command: Command,
    stdin: Vec<u8>,
    timeout: Duration,
}

impl Cli {
    /// `backup-cli` with these arguments.
    pub fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::program(cli(), args)
    }

    /// Another program.
    pub fn program<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self { command, stdin: Vec::new(), timeout: TIMEOUT }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.command.env(name.into(), value.into());
        self
    }

    /// The directory to run in.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// What it reads from stdin; nothing unless set.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// When to give up; after 120 s unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The command itself, for whoever runs it in another way.
    pub fn command(self) -> Command {
        self.command
    }

    /// Starts it without waiting, for a test that kills it or watches it.
    pub fn spawn(mut self) -> Child {
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = self.command.spawn();
        started.unwrap_or_else(|error| panic!("failed to run {:?}: {error}", self.command))
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Output {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = self.command.spawn();
        let mut child =
            started.unwrap_or_else(|error| panic!("failed to run {:?}: {error}", self.command));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let input = std::mem::take(&mut self.stdin);
        thread::spawn(move || {
            // A program may end without reading all of it.
            let _ = stdin.write_all(&input);
        });
        let stdout = read_all(child.stdout.take().expect("stdout is piped"));
        let stderr = read_all(child.stderr.take().expect("stderr is piped"));
        let status = self.wait(&mut child);
        Output {
            code: status.code(),
            stdout: stdout.join().expect("stdout was read"),
            stderr: stderr.join().expect("stderr was read"),
        }
    }

    fn wait(&self, child: &mut Child) -> std::process::ExitStatus {
        const POLL: Duration = Duration::from_millis(2);
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(status) = child.try_wait().expect("wait for it") {
                return status;
            }
            if Instant::now() >= deadline {
                // It may end by itself at this moment.
                let _ = child.kill();
                let _ = child.wait();
                panic!("{:?} ran for more than {:?}", self.command, self.timeout);
            }
            thread::sleep(POLL);
        }
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is shown all the same.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What a program said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

impl Output {
    /// Panics, with what it said, unless it ended with this code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Panics, with what it said, unless it succeeded.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        self.expect_code(0)
    }

    /// Its stdout as JSON; panics if it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("no JSON on stdout: {error}; {self}"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, stdout, stderr } = self;
        write!(f, "exit code {code:?}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_a_target_directory_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("CACHEDIR.TAG"), "").unwrap();
        let plain = Layout::of(&dir.path().join("debug/deps/test-1")).unwrap();
        assert_eq!(plain.profile_dir, dir.path().join("debug"));
        assert_eq!((plain.target_dir.as_path(), plain.triple), (dir.path(), None));
        std::fs::create_dir_all(dir.path().join("x86_64-unknown-linux-musl")).unwrap();
        let exe = dir.path().join("x86_64-unknown-linux-musl/release/test");
        let cross = Layout::of(&exe).unwrap();
        assert_eq!(cross.target_dir, dir.path());
        assert_eq!(cross.triple.as_deref(), Some("x86_64-unknown-linux-musl"));
    }

    #[test]
    fn a_run_is_captured() {
        let script = "cat; echo oops >&2; exit 13";
        let output = Cli::program("sh", ["-c", script]).stdin("{}").run();
        assert_eq!(output.code, Some(13));
        assert_eq!(output.json(), serde_json::json!({}));
        assert_eq!(output.stderr, "oops\n");
    }

    #[test]
    #[should_panic(expected = "ran for more than")]
    fn a_run_that_hangs_is_ended() {
        let hanging = Cli::program("sleep", ["60"]);
        hanging.timeout(Duration::from_millis(50)).run();
    }
}
