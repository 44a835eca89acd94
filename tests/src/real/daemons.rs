//! Which programs there are, and which mode is asked for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// Set, the long forms of the tests run.
const LONG_VARIABLE: &str = "LOCKSTEP_LONG";
/// A `bin` directory with the lightningd to use instead of the one on `PATH`.
const LIGHTNINGD_VARIABLE: &str = "LOCKSTEP_LIGHTNINGD_DIR";
/// A `bin` directory with the lightningd of an older release, for upgrades.
const OLD_LIGHTNINGD_VARIABLE: &str = "LOCKSTEP_OLD_LIGHTNINGD_DIR";

/// Whether the long forms of the tests were asked for.
pub fn long() -> bool {
    std::env::var_os(LONG_VARIABLE).is_some_and(|value| value != "0")
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Daemons {
    /// lightningd.
    pub lightningd: PathBuf,
    /// lightning-cli.
    pub lightning_cli: PathBuf,
    /// bitcoind.
    pub bitcoind: PathBuf,
    /// bitcoin-cli.
    pub bitcoin_cli: PathBuf,
}

impl Daemons {
    /// The programs; or, once a process, a line that says what is missing.
    pub fn or_skip() -> Option<Self> {
        static SAID: Once = Once::new();
        match Self::find() {
            Ok(daemons) => Some(daemons),
            Err(missing) => {
                SAID.call_once(|| say(&format!("SKIPPED: tests on a real node: no {missing}")));
                None
            }
        }
    }

    fn find() -> Result<Self, &'static str> {
        let directory = std::env::var_os(LIGHTNINGD_VARIABLE).map(PathBuf::from);
        let lightning = |name: &'static str| match &directory {
            Some(directory) => Some(directory.join(name)).filter(|path| path.is_file()).ok_or(name),
            None => on_path(name),
        };
        Ok(Self {
            lightningd: lightning("lightningd")?,
            lightning_cli: lightning("lightning-cli")?,
            bitcoind: on_path("bitcoind")?,
            bitcoin_cli: on_path("bitcoin-cli")?,
        })
    }

    /// The same with the lightningd of an older release, where one was named.
    pub fn older(&self) -> Option<Self> {
        let directory = PathBuf::from(std::env::var_os(OLD_LIGHTNINGD_VARIABLE)?);
        Some(Self {
            lightningd: directory.join("lightningd"),
            lightning_cli: directory.join("lightning-cli"),
            ..self.clone()
        })
    }

    /// What lightningd calls itself, such as `v26.06.6`.
    pub fn version(&self) -> String {
        let output = Command::new(&self.lightningd).arg("--version").output();
        let output = output.expect("lightningd --version runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// A program on `PATH`.
pub fn on_path(name: &'static str) -> Result<PathBuf, &'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder: PathBuf| folder.join(name));
    found.find(|path: &PathBuf| Path::is_file(path)).ok_or(name)
}

/// Writes a line that the test harness does not hold back.
pub fn say(line: &str) {
    // A test does not fail because nobody reads what it says.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
