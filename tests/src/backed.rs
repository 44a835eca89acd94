//! A node whose backup is real: made by `backup-cli init`, written by `cln-lockstep`, read by
//! `backup-cli restore`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::binaries::{self, Cli, Output};
use crate::real::wait::wait_for;
use crate::servers::Server;
use crate::sim::{Answer, Node, NodeConfig, Standing};
use crate::testdir::TestDir;
use crate::workload::Workload;
use crate::{Batch, oracle};

/// Set to `1`, tests take the numbers that a release is judged by.
const LONG_VARIABLE: &str = "LOCKSTEP_LONG";

/// One of two numbers: that of every day, or with `LOCKSTEP_LONG=1` the long one.
pub fn ci_or_long<T>(ci: T, long: T) -> T {
    if std::env::var_os(LONG_VARIABLE).is_some_and(|value| value == "1") { long } else { ci }
}

/// How many seconds a long form runs that could run for ever: `LOCKSTEP_SECONDS`, or as many.
pub fn long_seconds(usual: u64) -> u64 {
    std::env::var("LOCKSTEP_SECONDS")
        .map_or(usual, |seconds| seconds.parse().expect("LOCKSTEP_SECONDS is a number"))
}

/// A directory with a node in it and a folder beside it that holds the node's backup.
#[derive(Debug)]
pub struct Backed {
    dir: TestDir,
    /// Where the backup is, if not in a folder beside the node, and what reaches it.
    bucket: Option<(String, Vec<(String, String)>)>,
    restores: AtomicU32,
}

impl Backed {
    /// A node with an `hsm_secret` and without a backup.
    pub fn without_backup() -> Self {
        let dir = TestDir::new();
        dir.write_hsm_secret(1);
        Self { dir, bucket: None, restores: AtomicU32::new(0) }
    }

    /// The same, with its backup to be on a server, whose credentials it has in `backup-credentials`.
    pub fn on(server: &Server, name: &str) -> Self {
        Self::at(server.prefix(name), server.env.clone())
    }

    /// The same for any URL, and what reaches it.
    pub fn at(url: String, env: Vec<(String, String)>) -> Self {
        let backed = Self { bucket: Some((url, env)), ..Self::without_backup() };
        let lines: String =
            backed.env().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let path = backed.network_file("backup-credentials");
        fs::write(&path, lines).expect("write backup-credentials");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        backed
    }

    /// What reaches the backup.
    pub fn env(&self) -> &[(String, String)] {
        self.bucket.as_ref().map_or(&[], |(_, env)| env)
    }

    /// A node that has never been started, with an empty backup.
    #[track_caller]
    pub fn fresh() -> Self {
        let backed = Self::without_backup();
        backed.init().run().expect_success();
        backed
    }

    /// `backup-cli init` for this node, with its backup in [`Backed::store`].
    pub fn init(&self) -> Cli {
        Cli::new(["init", "--lightning-dir"]).arg(self.network_dir()).arg(self.url())
    }

    /// The directory that all of it is in.
    pub fn dir(&self) -> &TestDir {
        &self.dir
    }

    /// The node's own directory.
    pub fn network_dir(&self) -> PathBuf {
        self.dir.network_dir()
    }

    /// A file in the node's own directory.
    pub fn network_file(&self, name: &str) -> PathBuf {
        self.network_dir().join(name)
    }

    /// The folder of the backup.
    pub fn store(&self) -> PathBuf {
        self.dir.path("store")
    }

    /// The URL of the backup.
    pub fn url(&self) -> String {
        self.bucket.as_ref().map_or_else(|| self.dir.file_url("store"), |(url, _)| url.clone())
    }

    /// The node, with the plugin under test.
    pub fn config(&self) -> NodeConfig {
        NodeConfig::new(binaries::plugin(), self.network_dir())
    }

    /// The node, started.
    #[track_caller]
    pub fn launch(&self) -> Node {
        Node::launch(self.config()).expect("the node starts")
    }

    /// The node, started, migrated and past `init`.
    #[track_caller]
    pub fn running(&self, workload: &mut Workload) -> Node {
        let mut node = self.launch();
        for _ in 0..workload.migrations_left() {
            let step = workload.next().expect("a workload is endless");
            node.write(&step).expect("a write").expect_committed();
        }
        node.init().expect("init is answered");
        node
    }

    /// Writes so many steps of a workload, each committed.
    #[track_caller]
    pub fn write(node: &mut Node, workload: &mut Workload, steps: usize) {
        for step in workload.take(steps) {
            node.write(&step).expect("a write").expect_committed();
        }
    }

    /// What the plugin says of each place.
    #[track_caller]
    pub fn destinations(node: &mut Node) -> Vec<Value> {
        let reply = node.call("backup-status", &json!({})).expect("an answer");
        let status = reply.result().expect("a status");
        status["destinations"].as_array().expect("its places").clone()
    }

    /// Until each has everything: one that nobody waits for may be current and still write the newest.
    #[track_caller]
    pub fn wait_until_all_have_everything(node: &mut Node) {
        let has = |place: &Value| place["state"] == "current" && place["lacks"] == 0;
        wait_for("all places to have everything", || {
            Self::destinations(node).iter().all(has).then_some(())
        });
    }

    /// `backup-cli restore` of this backup with `backup.key`; the node that writes it goes on.
    pub fn restore(&self, dest: &Path) -> Cli {
        self.restore_of(&self.url(), dest)
    }

    /// As [`Backed::restore`], from another place, such as a copy of the folder.
    pub fn restore_of(&self, url: &str, dest: &Path) -> Cli {
        let restore = Cli::new(["restore", "--no-claim", url])
            .arg(dest)
            .arg("--key-file")
            .arg(self.network_file("backup.key"));
        self.env().iter().fold(restore, |cli, (name, value)| cli.env(name, value))
    }

    /// Another name for a restored database.
    pub fn new_dest(&self) -> PathBuf {
        let number = self.restores.fetch_add(1, Ordering::Relaxed);
        self.dir.path(format!("restored-{number}.sqlite3"))
    }

    /// The database that the backup holds now.
    #[track_caller]
    pub fn restored(&self) -> PathBuf {
        let dest = self.new_dest();
        self.restore(&dest).run().expect_success();
        dest
    }

    /// Restores and judges: every acknowledged batch is there, nothing else.
    #[track_caller]
    pub fn check(&self, node: &Node) -> Standing {
        let restored = self.restored();
        let standing = match node.check_restored(&restored) {
            Ok(standing) => standing,
            Err(error) => panic!("{error}"),
        };
        fs::remove_file(restored).expect("remove what was restored");
        standing
    }

    /// Restores and compares with a database that no node has open.
    #[track_caller]
    pub fn check_same_as(&self, database: &Path) {
        let restored = self.restored();
        oracle::assert_same(database, &restored);
    }

    /// Changes a field of `backup.lock`, such as `stall_timeout_s`.
    pub fn set_in_lock(&self, field: &str, value: Value) {
        let path = self.network_file("backup.lock");
        let bytes = fs::read(&path).expect("read backup.lock");
        let mut lock: Value = serde_json::from_slice(&bytes).expect("backup.lock is JSON");
        lock[field] = value;
        fs::write(path, lock.to_string()).expect("write backup.lock");
    }

    /// Runs `backup-cli` with a verb and this node's directory.
    pub fn cli(&self, verb: &str) -> Output {
        let directory = self.network_dir();
        binaries::backup_cli([
            OsStr::new(verb),
            OsStr::new("--lightning-dir"),
            directory.as_os_str(),
        ])
    }
}

/// Starts a node that must not go on, and gives the reason that its first write is refused for: one
/// line, with what to do. (lightningd does without a plugin that does not start; it cannot do without
/// the answer to a write.) The node is down again, and has committed nothing.
#[track_caller]
pub fn reason_not_to_go_on(node: &mut Node) -> String {
    node.start().expect("the plugin starts, to refuse the first write");
    let version = node.database().expect("it is open").data_version().expect("a version");
    let writes = vec!["UPDATE vars SET intval = 0".to_owned()];
    let batch = Batch { data_version: version.wrapping_add(1), writes };
    let reason = match node.ask_raw(&batch).expect("an answer") {
        Answer::Refused { message } => message,
        other => panic!("the write is not refused: {other:?}"),
    };
    assert!(reason.contains("hint: "), "{reason}");
    assert!(!reason.contains('\n'), "one line: {reason}");
    let logged = node.logs().iter().any(|line| line.level == "broken" && line.message == reason);
    assert!(logged, "not in the node's log: {reason}");
    node.kill().expect("it ends");
    reason
}

/// Every file under a folder, by its name relative to it, sorted; no heartbeats, which a node that runs writes at any
/// time, at each place by itself.
pub fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("list a folder") {
            let path = entry.expect("list a folder").path();
            if path.is_dir() {
                if path.file_name() != Some(OsStr::new("heartbeats")) {
                    folders.push(path);
                }
            } else {
                files.push(path.strip_prefix(folder).expect("it is below").to_owned());
            }
        }
    }
    files.sort();
    files
}
