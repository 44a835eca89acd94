//! System calls that fail, by `strace -e inject`: what the kernel says to a program is what strace makes it say.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::binaries::{self, Cli};
use crate::sim::NodeConfig;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error, and has no effect.
    Error(&'static str),
    /// The process dies as it makes it, and it has no effect.
    Death,
}

/// The n-th call of a thread that fails.
#[derive(Clone, Debug)]
pub struct Injection {
    /// The call.
    pub call: &'static str,
    /// How.
    pub fault: Fault,
    /// Which, from 1 on; each thread counts its own.
    pub at: u32,
    /// All later ones, too.
    pub from_then_on: bool,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            Fault::Error(error) => format!("error={error}"),
            Fault::Death => "signal=KILL".into(),
        };
        let on = if self.from_then_on { "+" } else { "" };
        write!(f, "inject={}:{fault}:when={}{on}", self.call, self.at)
    }
}

impl Injection {
    /// strace's arguments before the program.
    fn arguments(&self, trace: &Path) -> Vec<String> {
        let call = self.call;
        let trace = trace.display().to_string();
        // Not --seccomp-bpf, faster as it is: with it strace 6.1 kills at the first call or never.
        ["-f", "-o", &trace, "-e", &format!("trace={call}"), "-e", &self.to_string()]
            .map(String::from)
            .into()
    }

    /// A node whose plugin has this happen to it; `trace` says what was done.
    pub fn node(&self, directory: &Path, trace: &Path) -> NodeConfig {
        let arguments = self.arguments(trace).into_iter();
        let config = arguments.fold(NodeConfig::new("strace", directory), NodeConfig::arg);
        config.arg(binaries::plugin())
    }

    /// `backup-cli`, to which this happens.
    pub fn cli(&self, trace: &Path) -> Cli {
        Cli::program("strace", self.arguments(trace)).arg(binaries::cli())
    }

    /// Whether it happened.
    pub fn happened(&self, trace: &Path) -> bool {
        let said = fs::read_to_string(trace).unwrap_or_default();
        match self.fault {
            Fault::Error(_) => said.contains("(INJECTED)"),
            Fault::Death => said.contains("+++ killed by SIGKILL +++"),
        }
    }
}

/// Whether strace is here and may trace; else a line that says that this test is passed over.
pub fn possible_or_skip(test: &str) -> bool {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "true"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let possible = command.status().is_ok_and(|status| status.success());
    if !possible {
        eprintln!("SKIPPED: {test}: strace is not installed, or may not trace");
    }
    possible
}
