//! lightningd's database: where it is, how far it is, whose it is.
//!
//! It is a SQLite database in rollback-journal mode (unless somebody changed that),
//! opened by lightningd with a wait of 60 s for others' locks, after which lightningd
//! dies. So nothing here holds a lock for longer than it takes to read one row.
//!
//! Source: `db_sqlite3_setup` in `db/db_sqlite3.c` for opening and for
//! `sqlite3://main:replica`; `db_open_` and `db_config_find` in `db/utils.c` for the
//! kinds of database; `opt_register_early_arg("--wallet")` in `lightningd/options.c`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi};

use crate::config::{self, ConfigError, Location};
use crate::content;
use crate::dir::LightningDir;
use crate::secret::NODE_ID_LEN;

/// How long a reader waits for lightningd to finish a commit.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// Whether lightningd may be using the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// lightningd may be running. The database is opened read-only, and a
    /// transaction that lightningd has open is not seen. A transaction that a crash
    /// cut short cannot be rolled back, so then there is no answer
    /// ([`WalletError::HotJournal`]).
    Shared,
    /// The caller knows that no lightningd runs here
    /// ([`LightningDir::running`]). The database is opened for writing, so that
    /// SQLite may roll back a transaction that a crash cut short, just as lightningd
    /// would at its next start. Nothing else is written.
    Exclusive,
}

/// The database that `wallet=` in a configuration file names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfiguredWallet {
    /// `sqlite3://path` or `sqlite3://path:replica`.
    Sqlite {
        /// The database, absolute.
        path: PathBuf,
        /// The second copy that lightningd writes, absolute. It is overwritten at
        /// a start whenever the versions differ, also if the main one is lost.
        replica: Option<PathBuf>,
        /// Where this stands.
        at: Location,
    },
    /// `postgres://…`: lightningd reports no statements to plugins then, so there is
    /// nothing that could be backed up. The rest may hold a password, and is not kept.
    Postgres {
        /// Where this stands.
        at: Location,
    },
}

/// Why nothing is known about a database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalletError {
    /// The configuration files could not be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `wallet=` names no database that lightningd could open.
    #[error("{at}: wallet is neither sqlite3://PATH nor postgres://…")]
    UnknownWallet {
        /// Where this stands.
        at: Location,
    },
    /// The file could not be looked at.
    #[error("look at '{}': {source}", path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a file: a directory, a device.
    #[error("'{}' is not a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Somebody holds a lock, and went on holding it.
    #[error("'{}' is locked by another process", path.display())]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// A crash cut a transaction short, and it was not to be rolled back.
    #[error("'{}' has a journal of an unfinished transaction", path.display())]
    HotJournal {
        /// The database.
        path: PathBuf,
    },
    /// SQLite says that this is no database, or a damaged one.
    #[error("'{}' is damaged or no SQLite database: {source}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A row of `vars` holds what lightningd never writes there.
    #[error("'{}' has a '{name}' that is not what lightningd writes", path.display())]
    Unexpected {
        /// The database.
        path: PathBuf,
        /// The row's name.
        name: &'static str,
    },
    /// SQLite failed for another reason.
    #[error("read '{}': {source}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl WalletError {
    /// What to do next, where that can be said.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Config(_) | Self::UnknownWallet { .. } => {
                Some("correct the file; lightningd would not start with it either.")
            }
            Self::Busy { .. } => Some("stop lightningd or whatever uses the database."),
            Self::HotJournal { .. } => Some(
                "start lightningd once, or run this while it is stopped; the journal is rolled back then. Never delete it.",
            ),
            Self::Damaged { .. } | Self::Unexpected { .. } => {
                Some("do not start the node on it; restore it from its backup.")
            }
            Self::NotAFile { .. } => Some("name the database itself with '--wallet PATH'."),
            Self::Io { .. } | Self::Sqlite { .. } => Some(crate::LOOK_AT_THE_FILE),
        }
    }
}

/// The database that the configuration files of a network directory name, if they
/// name one; else it is [`LightningDir::wallet`].
///
/// A path in `wallet=` counts from the network directory, and nothing in it is
/// expanded, as in lightningd, which splits database from replica at the first colon.
/// See [`crate::config`] for what cannot be seen from here: `--wallet` on lightningd's
/// command line.
///
/// Fails with [`WalletError::Config`] and [`WalletError::UnknownWallet`].
pub fn config_wallet(dir: &LightningDir) -> Result<Option<ConfiguredWallet>, WalletError> {
    let lines = config::read(dir)?;
    let Some((at, value)) = config::last(&lines, "wallet") else { return Ok(None) };
    let at = at.clone();
    if value.as_bytes().starts_with(b"postgres://") {
        return Ok(Some(ConfiguredWallet::Postgres { at }));
    }
    let Some(paths) = value.as_bytes().strip_prefix(b"sqlite3://") else {
        return Err(WalletError::UnknownWallet { at });
    };
    let mut paths = paths.splitn(2, |byte| *byte == b':');
    let main = paths.next().unwrap_or_default();
    if main.is_empty() {
        return Err(WalletError::UnknownWallet { at });
    }
    let absolute = |path: &[u8]| dir.path().join(OsStr::from_bytes(path));
    let (path, replica) = (absolute(main), paths.next().map(absolute));
    Ok(Some(ConfiguredWallet::Sqlite { path, replica, at }))
}

/// How far the database at `path` is: lightningd's `data_version`.
///
/// `None` if no lightningd has come so far as to have one: the file is absent or
/// empty (0 bytes), or it is a database without a table `vars`, without the column
/// (before v0.7.3) or without the row (before v0.8.1). See [`Wallet::open`] and
/// [`Wallet::data_version`] for the errors.
pub fn data_version(path: &Path, access: Access) -> Result<Option<u32>, WalletError> {
    match Wallet::open(path, access)? {
        Some(wallet) => wallet.data_version(),
        None => Ok(None),
    }
}

/// When the database at `path`, or a write-ahead log beside it, was last written to, by the file system's
/// clock. `None` where that cannot be told. Ask before anything opens the database: a rollback writes.
pub fn last_written(path: &Path) -> Option<SystemTime> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let written = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    written(path).max(written(Path::new(&log)))
}

/// lightningd's database, open. Holds no lock unless a query is under way.
#[derive(Debug)]
pub struct Wallet {
    connection: Connection,
    path: PathBuf,
}

impl Wallet {
    /// Open the database, or `None` if it is absent or empty (0 bytes: SQLite creates
    /// the file before it writes to it). Never creates it.
    ///
    /// A link to nowhere counts as absent. Whether it is a database at all only shows
    /// with the first query.
    ///
    /// Fails with [`WalletError::NotAFile`], [`WalletError::Io`] or
    /// [`WalletError::Sqlite`].
    pub fn open(path: &Path, access: Access) -> Result<Option<Self>, WalletError> {
        // Only looked at: opening and closing the file would drop the locks that
        // another connection of this process may hold on it.
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(WalletError::NotAFile { path: path.to_owned() });
            }
            Ok(found) if found.len() == 0 => return Ok(None),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(WalletError::Io { path: path.to_owned(), source }),
        }
        // Without SQLITE_OPEN_URI: the name is a name, as for lightningd.
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
            | match access {
                Access::Shared => OpenFlags::SQLITE_OPEN_READ_ONLY,
                Access::Exclusive => OpenFlags::SQLITE_OPEN_READ_WRITE,
            };
        let connection = Connection::open_with_flags(path, flags)
            .and_then(|connection| connection.busy_timeout(BUSY_WAIT).map(|()| connection))
            .map_err(|source| sqlite_error(path, source))?;
        Ok(Some(Self { connection, path: path.to_owned() }))
    }

    /// The connection, for a copy or a digest. With [`Access::Shared`], whatever is
    /// done with it must not hold a lock while lightningd wants to commit.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A digest of the content ([`crate::content::digest_while`]) and the version that goes with it. `None` where
    /// there is no version, or `go_on` says that it takes too long.
    ///
    /// Fails as [`Wallet::data_version`] does, and where the content cannot be read.
    pub fn digest_while(
        &mut self,
        go_on: impl FnMut() -> bool + Send + 'static,
    ) -> Result<Option<(u32, [u8; 32])>, WalletError> {
        self.execute("BEGIN")?;
        let version = self.data_version();
        let digest = content::digest_while(&mut self.connection, go_on);
        self.execute("ROLLBACK")?;
        let digest = digest.map_err(|error| sqlite_error(&self.path, error.into()))?;
        Ok(version?.zip(digest))
    }

    fn execute(&self, sql: &str) -> Result<(), WalletError> {
        self.connection.execute_batch(sql).map_err(|source| sqlite_error(&self.path, source))
    }

    /// lightningd's `data_version`: the number of transactions that wrote, modulo
    /// 2^32. `None` as for the function [`data_version()`].
    ///
    /// Taken as lightningd takes it: the low 32 bits of whatever integer is there.
    /// Source: `db_data_version_get` in `db/exec.c`, `db_sqlite3_column_int`. (What
    /// `db_data_version_incr` there binds is a C `int`, so a lightningd that gets to
    /// 2^31 stops with "Optimistic lock on the database failed"; larger versions
    /// therefore do not come from lightningd as it is.)
    ///
    /// Fails with [`WalletError::HotJournal`], [`WalletError::Busy`],
    /// [`WalletError::Damaged`], [`WalletError::Unexpected`] or
    /// [`WalletError::Sqlite`].
    pub fn data_version(&self) -> Result<Option<u32>, WalletError> {
        match self.var("data_version", "intval")? {
            None => Ok(None),
            Some(rusqlite::types::Value::Integer(version)) => {
                Ok(u32::try_from(version & 0xffff_ffff).ok())
            }
            Some(_) => Err(self.unexpected("data_version")),
        }
    }

    /// The node id that lightningd wrote down at the node's first start and compares
    /// with its secret's at each ([`crate::NodeSecret::node_id`]). `None` before that
    /// and for databases that no version since v0.12.0 opened. Source: `wallet_sanity_check` in
    /// `wallet/wallet.c`.
    ///
    /// Fails as [`Wallet::data_version`] does.
    pub fn node_id(&self) -> Result<Option<[u8; NODE_ID_LEN]>, WalletError> {
        match self.var("node_id", "blobval")? {
            None => Ok(None),
            Some(rusqlite::types::Value::Blob(id)) => {
                id.try_into().map(Some).map_err(|_| self.unexpected("node_id"))
            }
            Some(_) => Err(self.unexpected("node_id")),
        }
    }

    /// One column of one row of `vars`, if table, column and row are there.
    fn var(
        &self,
        name: &'static str,
        column: &'static str,
    ) -> Result<Option<rusqlite::types::Value>, WalletError> {
        let read = || {
            let exists = "SELECT 1 FROM pragma_table_info('vars') WHERE name = ?1";
            if !self.connection.prepare(exists)?.exists([column])? {
                return Ok(None);
            }
            let query = format!("SELECT {column} FROM vars WHERE name = ?1");
            self.connection.query_row(&query, [name], |row| row.get(0)).optional()
        };
        read().map_err(|source| sqlite_error(&self.path, source))
    }

    fn unexpected(&self, name: &'static str) -> WalletError {
        WalletError::Unexpected { path: self.path.clone(), name }
    }
}

/// What SQLite's error means here.
fn sqlite_error(path: &Path, source: rusqlite::Error) -> WalletError {
    let path = path.to_owned();
    let Some(error) = source.sqlite_error() else {
        return WalletError::Sqlite { path, source };
    };
    match (error.code, error.extended_code) {
        (_, ffi::SQLITE_READONLY_ROLLBACK) => WalletError::HotJournal { path },
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => WalletError::Busy { path },
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => {
            WalletError::Damaged { path, source }
        }
        _ => WalletError::Sqlite { path, source },
    }
}

#[cfg(test)]
mod tests;
