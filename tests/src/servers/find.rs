//! Where the servers are, and what is said where one is not.

use std::path::PathBuf;
use std::sync::Mutex;

use crate::real::daemons::say;

/// Where `.ci/servers` installs what Debian has not got.
const DIRECTORY_VARIABLE: &str = "LOCKSTEP_SERVERS_DIR";
/// Set, a server that is missing fails the test.
const REQUIRE_VARIABLE: &str = "LOCKSTEP_REQUIRE_SERVERS";
/// Where Debian has daemons, which only root has on `PATH`.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];

/// A program on `PATH` or among the system's daemons; `None`, and a line, where there is none.
pub fn system(name: &str) -> Option<PathBuf> {
    or_skip(name, candidates(name))
}

/// The same without a line: it is not always needed.
pub fn optional(name: &str) -> Option<PathBuf> {
    candidates(name).into_iter().find(|path| path.is_file())
}

fn candidates(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).collect()
}

/// A program below what `.ci/servers` made; `None`, and a line, where there is none.
pub fn installed(name: &str, inside: &str) -> Option<PathBuf> {
    or_skip(name, directory().map(|directory| directory.join(inside)))
}

/// A file of the system; `None`, and a line, where there is none.
pub fn file(name: &str, path: &str) -> Option<PathBuf> {
    or_skip(name, [PathBuf::from(path)])
}

/// Where `.ci/servers` installs what Debian has not got.
pub fn directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || {
        let home = || Some(set("HOME")?.join(".cache"));
        Some(set("XDG_CACHE_HOME").or_else(home)?.join("lockstep-servers"))
    };
    set(DIRECTORY_VARIABLE).or_else(cache)
}

fn or_skip(name: &str, candidates: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    if let Some(path) = candidates.into_iter().find(|path| path.is_file()) {
        return Some(path);
    }
    let required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value != "0");
    assert!(!required, "no {name}, and {REQUIRE_VARIABLE} is set: run .ci/servers as root");
    let mut said = SAID.lock().expect("nobody panics with it");
    if !said.iter().any(|one| one == name) {
        say(&format!("skipped: no {name} (.ci/servers installs it)"));
        said.push(name.to_owned());
    }
    None
}
