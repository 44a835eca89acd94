//! Which directory is the network directory, and what its files are called.
//!
//! lightningd has two: the *base directory* (`--lightning-dir`, `~/.lightning`
//! unless told otherwise), and in it one *network directory* for each network,
//! named after it. lightningd changes into the network directory when it starts;
//! database, secret and socket are there, and so are our files. The base directory
//! holds a `config` of its own and `lightningd-<network>.pid`.
//!
//! Source: `initial_config_opts` in `common/configdir.c`, `handle_early_opts` in
//! `lightningd/options.c`, the names in `bitcoin/chainparams.c`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The networks that lightningd knows, by the names of their directories.
pub const NETWORKS: [&str; 7] =
    ["bitcoin", "regtest", "signet", "testnet", "testnet4", "liquid-regtest", "liquid"];

/// The database's name unless `wallet=` says otherwise.
pub const WALLET: &str = "lightningd.sqlite3";

/// Files that are found in network directories only. (`lightning-rpc` is none of
/// them: versions before 0.7.3 had it in the base directory.)
const MARKS: [&str; 5] = [WALLET, "hsm_secret", "emergency.recover", "gossip_store", "backup.lock"];

/// Why a directory is not, or could not be seen to be, a network directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// There is nothing at this path.
    #[error("'{}' does not exist", path.display())]
    NotFound {
        /// The path that was given.
        path: PathBuf,
    },
    /// There is something, but no directory.
    #[error("'{}' is not a directory", path.display())]
    NotADirectory {
        /// The path that was given.
        path: PathBuf,
    },
    /// More than one directory could be meant.
    #[error("'{}' could mean more than one network directory:{}", path.display(), list(choices))]
    Ambiguous {
        /// The path that was given.
        path: PathBuf,
        /// The directories that could be meant.
        choices: Vec<PathBuf>,
    },
    /// A base directory in which no node ran yet.
    #[error("'{}' has no network directory in it", path.display())]
    NoNetwork {
        /// The path that was given.
        path: PathBuf,
    },
    /// A directory of something else.
    #[error("'{}' does not look like a lightning directory", path.display())]
    NotLightning {
        /// The path that was given.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{action} '{}': {source}", path.display())]
    Io {
        /// What was being done, a verb phrase.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DirError {
    /// What to do next, where that can be said.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { path } => Some(format!(
                "check the path; for a node that does not exist yet, 'mkdir -m 700 -p {}'.",
                path.display()
            )),
            Self::NotADirectory { .. } | Self::NotLightning { .. } => {
                Some(format!("name the directory that holds {WALLET} and hsm_secret."))
            }
            Self::Ambiguous { .. } => Some("name one of them.".to_owned()),
            Self::NoNetwork { path } => Some(format!(
                "for a new mainnet node, 'mkdir -m 700 {0}' and name {0}.",
                path.join("bitcoin").display()
            )),
            Self::Io { .. } => Some(crate::LOOK_AT_THE_FILE.into()),
        }
    }

    /// Wrap an I/O error with what was being done to which file.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

fn list(choices: &[PathBuf]) -> String {
    choices.iter().fold(String::new(), |mut text, choice| {
        let _ = write!(text, " '{}'", choice.display());
        text
    })
}

/// A network directory, existing or yet to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LightningDir {
    path: PathBuf,
    wallet: PathBuf,
}

impl LightningDir {
    /// Take `path` as the network directory, whatever is there, also nothing: for
    /// the plugin, which lightningd starts in it, and for a restore that makes it.
    ///
    /// The path is made absolute; links in it are kept, since the directory above
    /// is the one that the path names (`~/.lightning/bitcoin` may be a link to
    /// another disk, and `config` is still in `~/.lightning`).
    pub fn new(path: &Path) -> Self {
        let path = absolute(path);
        Self { wallet: path.join(WALLET), path }
    }

    /// Find the network directory that `path` means: itself, or the one in it.
    ///
    /// In this order:
    ///
    /// 1. It holds a file that only network directories have (the database,
    ///    `hsm_secret`, `emergency.recover`, `gossip_store`, our `backup.lock`)
    ///    and it is named after a network, or no directory in it is and has such
    ///    a file, too: itself. If one is and has, nobody can say which is meant.
    /// 2. It is named after a network: itself.
    /// 3. Directories in it are named after networks: the one that holds such a
    ///    file; or, if none does, the one that is empty but for a `config` (what
    ///    else is in there may be Bitcoin's source). More than one is an error
    ///    that names them.
    /// 4. It is named `.lightning`, lightningd's base directory, or holds a
    ///    `config` or `lightningd-*.pid`, as base directories do: an error, since
    ///    lightningd would never look at what we put there.
    /// 5. It is empty but for `lost+found`: itself, a fresh one.
    /// 6. Else it is not a lightning directory.
    ///
    /// Fails with any [`DirError`]; with [`DirError::NotFound`] if nothing is there,
    /// which a caller that makes directories answers with [`LightningDir::new`].
    pub fn locate(path: &Path) -> Result<Self, DirError> {
        let dir = Self::new(path);
        let path = &dir.path;
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(DirError::NotADirectory { path: path.clone() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(DirError::NotFound { path: path.clone() });
            }
            Err(e) => return Err(DirError::io("look at", path)(e)),
        }
        let (marked, fresh) = networks_in(path)?;
        if is_marked(path)? {
            if dir.network().is_some() || marked.is_empty() {
                return Ok(dir);
            }
            let choices = [vec![path.clone()], marked].concat();
            return Err(DirError::Ambiguous { path: path.clone(), choices });
        }
        if dir.network().is_some() {
            return Ok(dir);
        }
        let choices = if marked.is_empty() { fresh } else { marked };
        match choices.as_slice() {
            [] => dir.unnamed_and_unmarked(),
            [one] => Ok(Self::new(one)),
            _ => Err(DirError::Ambiguous { path: path.clone(), choices }),
        }
    }

    /// Rules 4 to 6 of [`LightningDir::locate`].
    fn unnamed_and_unmarked(self) -> Result<Self, DirError> {
        let mut empty = true;
        let mut base = self.path.file_name().is_some_and(|name| name == ".lightning");
        for name in names_in(&self.path)? {
            empty &= is_nothing(&name);
            base |= name == "config" || (name.starts_with("lightningd-") && name.ends_with(".pid"));
        }
        match (base, empty) {
            (true, _) => Err(DirError::NoNetwork { path: self.path }),
            (false, true) => Ok(self),
            (false, false) => Err(DirError::NotLightning { path: self.path }),
        }
    }

    /// Use the database at `wallet` instead of `lightningd.sqlite3`; a relative
    /// path counts from the network directory, as in lightningd's `wallet=`.
    #[must_use]
    pub fn with_wallet(mut self, wallet: PathBuf) -> Self {
        self.wallet = self.path.join(wallet);
        self
    }

    /// The network directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The network, if the directory is named after one, as lightningd's are.
    pub fn network(&self) -> Option<&'static str> {
        let name = self.path.file_name()?;
        NETWORKS.into_iter().find(|network| name == *network)
    }

    /// The base directory above, if this directory is named after a network. Another
    /// one (a restore in progress, a copy) has no base directory, whatever is above.
    pub fn base(&self) -> Option<&Path> {
        self.network()?;
        self.path.parent()
    }

    /// The database.
    pub fn wallet(&self) -> &Path {
        &self.wallet
    }

    /// All that SQLite may keep of the database: itself, `-journal`, `-wal`, `-shm`.
    /// A restore finds none of them, or refuses.
    pub fn wallet_files(&self) -> [PathBuf; 4] {
        ["", "-journal", "-wal", "-shm"].map(|suffix| {
            let mut name = self.wallet.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        })
    }

    /// The node's secret ([`crate::hsm_secret`]).
    pub fn hsm_secret(&self) -> PathBuf {
        self.path.join("hsm_secret")
    }

    /// Our configuration, under the name that the Python plugin's users know.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join("backup.lock")
    }

    /// Our data key.
    pub fn key_file(&self) -> PathBuf {
        self.path.join("backup.key")
    }

    /// lightningd's RPC socket, unless `rpc-file=` says otherwise.
    pub fn rpc_socket(&self) -> PathBuf {
        self.path.join("lightning-rpc")
    }

    /// lightningd's static channel backup.
    pub fn emergency_recover(&self) -> PathBuf {
        self.path.join("emergency.recover")
    }
}

/// Absolute, with links kept, unless `..` stands in it: then what is above depends
/// on where links lead, and only the file system can say.
fn absolute(path: &Path) -> PathBuf {
    let resolved = if path.components().any(|part| part == Component::ParentDir) {
        fs::canonicalize(path)
    } else {
        std::path::absolute(path)
    };
    // By components, so that no slash stays at the end.
    resolved.as_deref().unwrap_or(path).components().collect()
}

/// Whether a file is there that only network directories have.
fn is_marked(dir: &Path) -> Result<bool, DirError> {
    for name in MARKS {
        let path = dir.join(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(DirError::io("look at", &path)(e)),
        }
    }
    Ok(false)
}

/// The directories in `dir` that are named after networks, in the order of
/// [`NETWORKS`]: those that are marked, and those that are fresh.
fn networks_in(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DirError> {
    let (mut marked, mut fresh) = (Vec::new(), Vec::new());
    for network in NETWORKS {
        let path = dir.join(network);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                if is_marked(&path)? {
                    marked.push(path);
                } else if names_in(&path)?.iter().all(|name| name == "config" || is_nothing(name)) {
                    fresh.push(path);
                }
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(DirError::io("look at", &path)(e)),
        }
    }
    Ok((marked, fresh))
}

/// What a new file system holds.
fn is_nothing(name: &str) -> bool {
    name == "lost+found"
}

/// The names of what is in `dir`.
fn names_in(dir: &Path) -> Result<Vec<String>, DirError> {
    let entries = fs::read_dir(dir).map_err(DirError::io("list", dir))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(DirError::io("list", dir))
}

#[cfg(test)]
mod tests;
