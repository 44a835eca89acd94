//! lightningd's `config` files, read as lightningd reads them.
//!
//! There are two, both optional: `config` in the base directory, then `config` in
//! the network directory. Of an option that may stand once the last one counts.
//! A line is `name` or `name=value`; `#` begins a comment only at the start of a
//! line, nothing before the name is trimmed, white space after the value is.
//! `include FILE` reads another file in its place, relative to the one it stands
//! in, to a depth of 100; what is included must be there.
//!
//! What cannot be seen from here: options on lightningd's command line, which count
//! more than either file, and a file named with `--conf`, which replaces both.
//!
//! Source: `gather_file_configvars` and `initial_config_opts` in
//! `common/configdir.c`, `configvar_parse` in `common/configvar.c`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::dir::LightningDir;

/// How deep lightningd follows `include` before it gives up.
const INCLUDE_DEPTH_MAX: usize = 100;

/// One option as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigLine {
    /// Where it stands.
    pub at: Location,
    /// The option's name, without dashes: `wallet`.
    pub name: String,
    /// What comes after `=`, without white space at its end.
    pub value: Option<OsString>,
}

/// A line of a file, displayed as `/path/to/config line 3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", self.file.display(), self.line)
    }
}

/// Why the configuration could not be read. lightningd would not start either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file could not be read, one that exists or that another one includes.
    #[error("read '{}': {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// More than 100 files deep: one of them includes itself, most likely.
    #[error("{at}: files are included more than {INCLUDE_DEPTH_MAX} deep")]
    IncludeLoop {
        /// The `include` that was not followed.
        at: Location,
    },
}

/// Every option in the configuration files of a network directory, in order.
///
/// The base directory's file is read only where there is one
/// ([`LightningDir::base`]). Empty if there are no files.
///
/// Fails with [`ConfigError`] where lightningd would refuse to start, and where a
/// file is there that may not be read.
pub fn read(dir: &LightningDir) -> Result<Vec<ConfigLine>, ConfigError> {
    let mut lines = Vec::new();
    for directory in dir.base().into_iter().chain([dir.path()]) {
        let path = directory.join("config");
        match fs::read(&path) {
            Ok(contents) => parse(&path, &contents, 0, &mut lines)?,
            // lightningd takes what it cannot read for absent. Permission is an
            // exception: another user's lightningd may be able to read it.
            Err(e) if is_absent(&e) => {}
            Err(source) => return Err(ConfigError::Read { path, source }),
        }
    }
    Ok(lines)
}

/// The option that counts: the last one of that name that has a value.
///
/// An option without a value that needs one stops lightningd, so it is passed over.
pub fn last<'a>(lines: &'a [ConfigLine], name: &str) -> Option<(&'a Location, &'a OsStr)> {
    lines.iter().rev().filter(|line| line.name == name).find_map(|line| {
        let value = line.value.as_deref()?;
        Some((&line.at, value))
    })
}

fn is_absent(e: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(e.kind(), NotFound | IsADirectory | NotADirectory)
}

/// Take a file's lines apart; `depth` includes lead to it.
fn parse(
    path: &Path,
    contents: &[u8],
    depth: usize,
    lines: &mut Vec<ConfigLine>,
) -> Result<(), ConfigError> {
    // lightningd counts a line for each \r and each \n.
    for (i, text) in contents.split(|byte| matches!(byte, b'\r' | b'\n')).enumerate() {
        if text.is_empty() || text.starts_with(b"#") {
            continue;
        }
        let at = Location { file: path.to_owned(), line: i + 1 };
        let Some(included) = text.strip_prefix(b"include ") else {
            lines.push(option(at, text));
            continue;
        };
        if depth > INCLUDE_DEPTH_MAX {
            return Err(ConfigError::IncludeLoop { at });
        }
        let included = path.with_file_name(OsStr::from_bytes(included));
        match fs::read(&included) {
            Ok(contents) => parse(&included, &contents, depth + 1, lines)?,
            Err(source) => return Err(ConfigError::Read { path: included, source }),
        }
    }
    Ok(())
}

/// `name` or `name=value`.
fn option(at: Location, text: &[u8]) -> ConfigLine {
    let (name, value) = match text.iter().position(|byte| *byte == b'=') {
        Some(equals) => (text.get(..equals), text.get(equals + 1..)),
        None => (Some(text), None),
    };
    ConfigLine {
        at,
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        value: value.map(|value| OsString::from_vec(trim_end(value).to_vec())),
    }
}

/// Without white space at the end, as C's `isspace` has it.
fn trim_end(mut value: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t' | 0x0b | 0x0c] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node {
        base: tempfile::TempDir,
        dir: LightningDir,
    }

    fn node() -> Node {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("regtest");
        fs::create_dir(&path).unwrap();
        let dir = LightningDir::new(&path);
        Node { base, dir }
    }

    fn value(node: &Node, name: &str) -> Option<String> {
        let lines = read(&node.dir).unwrap();
        last(&lines, name).map(|(_, value)| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn no_files_no_options() {
        assert_eq!(read(&node().dir).unwrap(), []);
    }

    #[test]
    fn the_network_s_file_counts_more_than_the_base_s() {
        let node = node();
        fs::write(node.base.path().join("config"), "wallet=a\nwallet=b\nalias=x\n").unwrap();
        assert_eq!(value(&node, "wallet").unwrap(), "b");
        fs::write(node.dir.path().join("config"), "wallet=c").unwrap();
        assert_eq!(value(&node, "wallet").unwrap(), "c");
        assert_eq!(value(&node, "alias").unwrap(), "x");
    }

    #[test]
    fn lines_are_read_as_lightningd_reads_them() {
        let node = node();
        let text = "# wallet=a\r\n\r\nwallet=b # not a comment \t \n wallet=c\nwallet\nWALLET=d\nwallets=e\n\
                    odd=\nequals=x=y\n";
        fs::write(node.dir.path().join("config"), text).unwrap();
        assert_eq!(value(&node, "wallet").unwrap(), "b # not a comment");
        assert_eq!(value(&node, "odd").unwrap(), "");
        assert_eq!(value(&node, "equals").unwrap(), "x=y");
        let lines = read(&node.dir).unwrap();
        let (at, _) = last(&lines, "wallet").unwrap();
        assert_eq!(at.to_string(), format!("{}/config line 5", node.dir.path().display()));
    }

    #[test]
    fn included_files_stand_in_their_place() {
        let node = node();
        fs::create_dir(node.base.path().join("more")).unwrap();
        fs::write(node.base.path().join("config"), "wallet=a\ninclude more/one\n").unwrap();
        fs::write(node.base.path().join("more/one"), "include two\n").unwrap();
        fs::write(node.base.path().join("more/two"), "wallet=b\n").unwrap();
        assert_eq!(value(&node, "wallet").unwrap(), "b");
        fs::write(node.base.path().join("config"), "include more/one\nwallet=a\n").unwrap();
        assert_eq!(value(&node, "wallet").unwrap(), "a");
        // What `setconfig` leaves in the network's file.
        fs::write(node.dir.path().join("config"), "include config.setconfig\n").unwrap();
        fs::write(node.dir.path().join("config.setconfig"), "wallet=c\n").unwrap();
        assert_eq!(value(&node, "wallet").unwrap(), "c");
    }

    #[test]
    fn an_absolute_include_is_taken_as_it_is() {
        let node = node();
        let elsewhere = tempfile::tempdir().unwrap();
        let file = elsewhere.path().join("common");
        fs::write(&file, "wallet=a\n").unwrap();
        fs::write(node.dir.path().join("config"), format!("include {}\n", file.display())).unwrap();
        assert_eq!(value(&node, "wallet").unwrap(), "a");
    }

    #[test]
    fn a_missing_include_is_an_error_a_missing_config_is_not() {
        let node = node();
        fs::write(node.dir.path().join("config"), "include nowhere\n").unwrap();
        let error = read(&node.dir).unwrap_err();
        assert!(matches!(&error, ConfigError::Read { path, .. } if path.ends_with("nowhere")));
    }

    #[test]
    fn a_file_that_includes_itself_is_an_error() {
        let node = node();
        fs::write(node.dir.path().join("config"), "include config\n").unwrap();
        assert!(matches!(read(&node.dir), Err(ConfigError::IncludeLoop { .. })));
    }

    #[test]
    fn a_directory_named_config_is_no_config() {
        let node = node();
        fs::create_dir(node.base.path().join("config")).unwrap();
        assert_eq!(read(&node.dir).unwrap(), []);
    }

    #[test]
    fn a_directory_of_another_name_has_no_base() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("config"), "include nowhere\n").unwrap();
        let path = base.path().join("restored");
        fs::create_dir(&path).unwrap();
        assert_eq!(read(&LightningDir::new(&path)).unwrap(), []);
    }
}
