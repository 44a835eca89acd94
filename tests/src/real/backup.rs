//! `backup-cli` for a real node, and comparing what it gives back with what the node had.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use super::lightningd::NodeOptions;
use crate::binaries::{Cli, Output};
use crate::oracle;

/// The wallet's name in the network directory.
pub const WALLET: &str = "lightningd.sqlite3";
const RESTORE_TIMEOUT: Duration = Duration::from_secs(300);

/// The backup of a node at a URL.
#[derive(Clone, Debug)]
pub struct Backup {
    url: String,
}

impl Backup {
    /// Makes it.
    #[track_caller]
    pub fn init(node: &NodeOptions, url: impl Into<String>) -> Self {
        let backup = Self { url: url.into() };
        fs::create_dir_all(node.network_dir()).expect("a network directory");
        backup.init_with::<&str>(node, []).expect_success();
        backup
    }

    /// One that is there.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into() }
    }

    /// Runs `init` with more arguments.
    pub fn init_with<S: AsRef<str>>(
        &self,
        node: &NodeOptions,
        args: impl IntoIterator<Item = S>,
    ) -> Output {
        let mut cli = Cli::new(["init", "--lightning-dir"]).arg(node.network_dir()).arg(&self.url);
        for arg in args {
            cli = cli.arg(arg.as_ref());
        }
        cli.run()
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What `restore URL DEST` will be, for more arguments.
    pub fn restore(&self, dest: &Path) -> Cli {
        Cli::new(["restore", "--json"]).arg(&self.url).arg(dest).timeout(RESTORE_TIMEOUT)
    }

    /// Restores to a file beside the running node, without shutting it out.
    #[track_caller]
    pub fn look(&self, key_of: &NodeOptions, file: &Path) -> Value {
        let key = key_of.network_dir().join("backup.key");
        let cli = self.restore(file).arg("--no-claim").arg("--key-file").arg(key);
        cli.run().expect_success().json()
    }

    /// Restores to a new network directory with a secret that is put there.
    #[track_caller]
    pub fn restore_node(&self, node: &NodeOptions, secret: &Path) -> Value {
        let directory = node.network_dir();
        fs::create_dir_all(&directory).expect("a new network directory");
        fs::copy(secret, directory.join("hsm_secret")).expect("the secret is put there");
        // Its machine is gone, as far as anybody knows.
        self.restore(&directory).arg("--take-over").run().expect_success().json()
    }

    /// What `status` says with the node's directory.
    #[track_caller]
    pub fn status(&self, node: &NodeOptions) -> Value {
        let cli = Cli::new(["status", "--json", "--lightning-dir"]).arg(node.network_dir());
        cli.run().expect_success().json()
    }

    /// `verify` must find nothing.
    #[track_caller]
    pub fn verify(&self, node: &NodeOptions) {
        let cli = Cli::new(["verify", "--json", "--lightning-dir"]).arg(node.network_dir());
        cli.timeout(RESTORE_TIMEOUT).run().expect_success();
    }

    /// The version that the log holds.
    #[track_caller]
    pub fn head(&self, node: &NodeOptions) -> u32 {
        let status = self.status(node);
        let head = status["destinations"][0]["data_version"].as_u64();
        head.unwrap_or_else(|| panic!("no data_version in {status}")) as u32
    }
}

/// How a restored database is to the one that the node had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The same version, the same content.
    Same,
    /// One batch more: the one in flight, which the log holds and the node never committed. The content
    /// is that of the node's database with that batch.
    InFlight,
    /// One batch more, of which nobody knows what it was.
    InFlightUnknown,
    /// The node has committed more than the log holds: this many transactions.
    Behind(u32),
}

/// Compares what was restored with the database of a node that is dead, rolled back as the node itself
/// would. `in_flight` is the last call that the node made, if anybody noted it.
#[track_caller]
pub fn compare_with_dead(
    dead: &Path,
    restored: &Path,
    scratch: &Path,
    in_flight: Option<&crate::Batch>,
) -> Found {
    let dead = rolled_back(dead, scratch);
    let (had, got) = (data_version(&dead), data_version(restored));
    if got == had {
        oracle::assert_same(&dead, restored);
        return Found::Same;
    }
    if got < had {
        return Found::Behind(had - got);
    }
    assert_eq!(got, had.wrapping_add(1), "restored {got}, the node had {had}");
    let Some(batch) = in_flight.filter(|batch| batch.data_version == got) else {
        return Found::InFlightUnknown;
    };
    apply(&dead, batch);
    oracle::assert_same(&dead, restored);
    Found::InFlight
}

/// A copy of a database in which the transaction that was open is rolled back.
pub fn rolled_back(database: &Path, scratch: &Path) -> PathBuf {
    fs::create_dir_all(scratch).expect("a scratch directory");
    let copy = scratch.join(WALLET);
    for suffix in ["", "-journal"] {
        let (from, to) = (with_suffix(database, suffix), with_suffix(&copy, suffix));
        // Of the comparison before.
        let _ = fs::remove_file(&to);
        if from.exists() {
            fs::copy(&from, &to).expect("the database is copied");
        }
    }
    let db = Connection::open(&copy).expect("the copy is opened");
    let check: String =
        db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("SQLite checks");
    assert_eq!(check, "ok");
    copy
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn apply(database: &Path, batch: &crate::Batch) {
    let mut db = Connection::open(database).expect("the copy is opened");
    db.execute_batch("PRAGMA foreign_keys = ON").expect("as lightningd has it");
    let transaction = db.transaction().expect("a transaction");
    for sql in &batch.writes {
        transaction.execute_batch(sql).expect("a statement of the node");
    }
    transaction.commit().expect("the batch is committed");
}

/// lightningd's version of a database.
#[track_caller]
pub fn data_version(database: &Path) -> u32 {
    let db = Connection::open(database).expect("the database is opened");
    // lightningd may be committing.
    db.busy_timeout(Duration::from_secs(10)).expect("a time-out");
    let sql = "SELECT intval FROM vars WHERE name = 'data_version'";
    let version: i64 = db.query_row(sql, [], |row| row.get(0)).expect("a data_version");
    version as u32
}
