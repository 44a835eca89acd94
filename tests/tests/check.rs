//! `backup-cli check`: each thing that can be wrong around a backup is found, with what to do about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_proto::config::{LockFile, read_key_file};
use lockstep_proto::fence::Claimant;
use lockstep_proto::store::FileStore;
use lockstep_proto::writer::Writer;
use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{self, Cli, Output};
use lockstep_tests::servers::{Server, moto};
use lockstep_tests::sim::{Node, RpcServer};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use rusqlite::Connection;
use serde_json::{Value, json};

/// A node that wrote something, stopped, with its backup in a bucket: on no disk of this machine.
fn in_a_bucket(server: &Server) -> (Backed, Node) {
    let backed = Backed::on(server, "check");
    fs::set_permissions(backed.network_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let said = backed.init().run().expect_success();
    assert!(!said.stdout.contains("are both on"), "{said}");
    let node = written(&backed);
    (backed, node)
}

fn written(backed: &Backed) -> Node {
    let mut workload = Workload::new(WorkloadConfig::seeded(4).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 5);
    node.stop().unwrap();
    node
}

fn configure(backed: &Backed, lines: &str) {
    fs::write(backed.network_file("config"), lines).unwrap();
}

fn important() -> String {
    format!("important-plugin={}\n", binaries::plugin().display())
}

fn check(backed: &Backed, more: &[&str]) -> Output {
    let cli = Cli::new(["check", "--json", "--lightning-dir"]).arg(backed.network_dir());
    more.iter().fold(cli, Cli::arg).run()
}

/// Panics unless there is a finding of this severity about `about` with these words, and a remedy with others.
#[track_caller]
fn finds(output: &Output, severity: &str, about: &str, message: &str, remedy: &str) {
    let report = output.json();
    let found = report["findings"].as_array().unwrap().iter().any(|finding| {
        let has = |field: &str, words: &str| {
            finding[field].as_str().map_or(words.is_empty(), |text| text.contains(words))
        };
        finding["severity"] == severity
            && finding["check"] == about
            && has("message", message)
            && has("remedy", remedy)
    });
    assert!(found, "no {severity} of '{about}' with '{message}', '{remedy}': {output}");
}

#[track_caller]
fn severities(output: &Output, severity: &str) -> Vec<Value> {
    let report = output.json();
    let all = report["findings"].as_array().unwrap().clone();
    all.into_iter().filter(|finding| finding["severity"] == severity).collect()
}

#[test]
fn a_node_in_order_has_nothing_to_mend() {
    let Some(server) = moto::shared() else { return };
    let (backed, _) = in_a_bucket(server);
    configure(&backed, &important());
    let output = check(&backed, &[]).expect_success();
    finds(&output, "ok", "config", "important-plugin=", "");
    finds(&output, "ok", "version", "as this program", "");
    finds(&output, "ok", "files", "nobody but their owner", "");
    finds(&output, "ok", "slots", "opens with the node's hsm_secret: slot 'node'", "");
    finds(&output, "ok", "fencing", "keeps a second writer out", "");
    finds(&output, "ok", "latency", " ms for a record", "");
    finds(&output, "ok", "backup", "holds what the database holds", "");
    finds(&output, "note", "drill", "never rehearsed", "backup-cli drill");
    Cli::new(["drill", "--lightning-dir"]).arg(backed.network_dir()).run().expect_success();
    let output = check(&backed, &["--read-only"]).expect_success();
    finds(&output, "ok", "drill", "with the node's hsm_secret", "");
    assert!(!output.stdout.contains("latency"), "{output}");
    backed.cli("verify").expect_success();
    // For people.
    let told = backed.cli("check").expect_success();
    assert!(told.stdout.contains("errors: 0, warnings: 0, in order: "), "{told}");
}

#[test]
fn a_backup_on_the_disk_of_the_database_is_lost_with_it() {
    let backed = Backed::fresh();
    written(&backed);
    configure(&backed, &important());
    let before = files_under(&backed.store());
    let output = check(&backed, &[]).expect_code(1);
    // In memory it is worse, but no better here.
    assert_eq!(severities(&output, "error").iter().filter(|f| f["check"] != "disk").count(), 0);
    finds(&output, "error", "disk", "lost together", "destination add");
    assert!(output.stderr.contains("not in order: disk"), "{output}");
    assert_eq!(files_under(&backed.store()), before);
}

#[test]
fn what_stands_in_the_config_is_read_as_lightningd_reads_it() {
    let Some(server) = moto::shared() else { return };
    let (backed, _) = in_a_bucket(server);
    let plugin = binaries::plugin();
    let plugin = plugin.display();
    configure(&backed, "# nothing\n");
    let output = check(&backed, &[]).expect_code(3);
    finds(&output, "warning", "config", "no line", "important-plugin=");

    configure(&backed, &format!("plugin={plugin}\n"));
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "config", "config line 1: plugin=", "important-plugin=");

    configure(&backed, "important-plugin=/nonexistent/cln-lockstep\n");
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "config", "no program that can be run", "correct the path");

    configure(&backed, &format!("{}plugin=/opt/plugins/backup/backup.py\n", important()));
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "old plugin", "config line 2: the Python plugin", "remove the line");

    configure(&backed, &format!("{}wallet=postgres://user:hunter2@db/cln\n", important()));
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "database", "PostgreSQL", "replication");
    assert!(!output.stdout.contains("hunter2"));

    configure(&backed, &format!("{}wallet=sqlite3:///elsewhere/x.sqlite3\n", important()));
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "database", "'/elsewhere/x.sqlite3'", "'wallet' of backup.lock");

    configure(&backed, &important());
    fs::create_dir(backed.dir().lightning_dir().join("plugins")).unwrap();
    let script = backed.dir().lightning_dir().join("plugins/cln-lockstep");
    fs::write(&script, "#!/bin/sh\necho cln-lockstep/0.0.1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    configure(&backed, "");
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "config", "is started, but is not important", "move it out");
    configure(&backed, "important-plugin=plugins/cln-lockstep\n");
    let output = check(&backed, &[]).expect_code(3);
    finds(&output, "warning", "version", "cln-lockstep/0.0.1", "one release");
}

#[test]
fn files_that_others_can_read_are_named() {
    let Some(server) = moto::shared() else { return };
    let (backed, _) = in_a_bucket(server);
    configure(&backed, &important());
    for (name, mode) in [("hsm_secret", "0400"), ("backup.lock", "0600")] {
        let path = backed.network_file(name);
        let was = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let output = check(&backed, &[]).expect_code(1);
        finds(
            &output,
            "error",
            "files",
            "can be read by others (mode 0644)",
            &format!("chmod {mode} "),
        );
        fs::set_permissions(&path, was).unwrap();
    }
    let key = backed.network_file("backup.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o440)).unwrap();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "files", "backup.key' can be read by others", "chmod 0400");
    fs::remove_file(&key).unwrap();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "key", "backup.key", "key write");
}

#[test]
fn how_the_backup_stands_is_told() {
    let backed = Backed::without_backup();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "backup", "there is no backup.lock", "backup-cli init");

    let said = backed.init().run().expect_success();
    let warning = "warning: 'primary' and the database are both on the ";
    assert!(said.stdout.contains(warning), "a folder on the same disk: {said}");
    let node = written(&backed);
    let database = node.database_path();
    let version = "UPDATE vars SET intval = intval + ?1 WHERE name = 'data_version'";
    let count = |by: i64| Connection::open(&database).unwrap().execute(version, [by]).unwrap();
    count(2);
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "warning", "backup", "ahead of the backup", "do not restore");
    count(-4);
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "backup", "older than its backup", "backup-cli restore");
    let aside = backed.dir().path("aside");
    fs::rename(&database, &aside).unwrap();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "backup", "there is no database", "backup-cli restore");
    fs::rename(&aside, &database).unwrap();
    count(2);

    // The node's slot is another node's, or gone.
    let slot = backed.store().join("keys/node.age");
    let other = Backed::fresh();
    fs::remove_file(&slot).unwrap();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "slots", "has no key slot", "key add");
    let secret = other.network_file("hsm_secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&secret, [2; 32]).unwrap();
    let add = Cli::new(["key", "add", "--lightning-dir"]).arg(backed.network_dir());
    add.arg("--add-hsm-secret").arg(&secret).run().expect_success();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "slots", "does not open with the node's hsm_secret", "key add");

    // Restored elsewhere: this copy must not run again.
    let dest = backed.dir().path("elsewhere/regtest");
    let restore = Cli::new(["restore", &backed.url()]).arg(&dest).arg("--key-file");
    restore.arg(backed.network_file("backup.key")).run().expect_success();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "backup", "belongs to another copy", "must never run again");

    fs::remove_dir_all(backed.store()).unwrap();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "destination", "failed to open 'primary'", "");
}

#[test]
fn a_running_node_is_asked() {
    let Some(server) = moto::shared() else { return };
    let (backed, _) = in_a_bucket(server);
    configure(&backed, &important());
    let current = json!([{"name": "primary", "state": "current"}]);
    let answers = |status: Value| {
        let info = json!({"version": "v24.11"});
        RpcServer::bind(&backed.network_dir(), [("backup-status", status), ("getinfo", info)])
            .unwrap()
    };
    let rpc = answers(json!({"warnings": [], "destinations": current}));
    let output = check(&backed, &[]).expect_code(3);
    finds(&output, "ok", "plugin", "runs with the plugin", "");
    finds(&output, "warning", "lightningd", "v24.11 is older", "v25.12");
    assert_eq!(output.json()["running"], true);
    drop(rpc);
    let warning = "this plugin is not important. hint: write important-plugin=";
    let stalled = json!([{"name": "primary", "state": "stalled"}]);
    let rpc = answers(json!({"warnings": [warning], "destinations": stalled}));
    let output = check(&backed, &[]).expect_code(3);
    finds(&output, "warning", "plugin", "not important", "write important-plugin=");
    finds(&output, "warning", "destination", "is stalled", "backup-cli status");
    drop(rpc);
    let _rpc = RpcServer::bind(&backed.network_dir(), []).unwrap();
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "plugin", "lightningd runs without a backup", "important-plugin=");
}

#[test]
fn a_record_from_the_future_shows_a_wrong_clock() {
    const DAY: u64 = 86_400_000;
    let backed = Backed::fresh();
    written(&backed);
    let lock = LockFile::read(&backed.network_dir()).unwrap().unwrap();
    let keys = read_key_file(&backed.network_file("backup.key")).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let claimant = Claimant::this_process("test", "node", &lock.directory, now).unwrap();
    let store = Arc::new(FileStore::open(&backed.store()).unwrap());
    Writer::open(store, keys, claimant, now + 2 * DAY).unwrap().close(now + 2 * DAY);
    let output = check(&backed, &[]).expect_code(1);
    finds(&output, "error", "clock", "the newest record is of", "set this machine's clock");
}
