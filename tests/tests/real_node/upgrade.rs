//! A newer lightningd migrates the database of an older one under the plugin, and what comes back from
//! the backup is the migrated database.

use std::fs;
use std::path::Path;

use lockstep_tests::oracle;
use lockstep_tests::real::backup::WALLET;
use lockstep_tests::real::daemons::say;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions};
use lockstep_tests::sim::Database;
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::{Trace, Traces};
use serde_json::json;

/// In the recorded first start, the last schema version before `payments` is rebuilt outside of a
/// transaction with foreign keys off; and the statement with which the next version begins.
const BEFORE_REBUILD: (u32, &str) = (208, "ALTER TABLE payments ADD failscid INTEGER;");

#[test]
fn an_upgrade_from_an_older_release_is_in_the_backup() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let Some(older) = daemons.older() else {
        say("SKIPPED: an upgrade between releases: no LOCKSTEP_OLD_LIGHTNINGD_DIR");
        return;
    };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let old = NodeOptions::new(&older, &bitcoind, dir.path("node")).production();
    let backup = Backup::init(&old, dir.file_url("store"));
    let node = old.start();
    write_something(&node, "old");
    let stopped = node.stop();

    let node = stopped.with_daemons(&daemons).start();
    write_something(&node, "new");
    let stopped = node.stop();
    say(&format!("upgraded from {} to {}", older.version(), daemons.version()));
    expect_restorable(&dir, &backup, &stopped);
}

#[test]
fn a_migration_that_rebuilds_a_table_is_in_the_backup() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let Some(traces) = Traces::locate() else {
        say("SKIPPED: a migration that rebuilds a table: no recorded traces");
        return;
    };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node")).production();
    fs::create_dir_all(options.network_dir()).unwrap();
    make_old_database(&traces, &options.network_dir().join(WALLET));
    let backup = Backup::init(&options, dir.file_url("store"));

    let options = options.arg("--database-upgrade=true");
    let node = options.start();
    node.wait_for_log(&format!("Updating database from version {}", BEFORE_REBUILD.0));
    write_something(&node, "new");
    let stopped = node.stop();
    expect_restorable(&dir, &backup, &stopped);
}

/// The state of a node of 2023, with payments that the rebuild has to carry over.
fn make_old_database(traces: &Traces, path: &Path) {
    let first = traces.read(Trace::NodeStart).unwrap().next().unwrap().unwrap();
    let (version, next) = BEFORE_REBUILD;
    let database = Database::open(path, false).unwrap();
    let connection = database.connection();
    for sql in first.writes.iter().filter(|sql| *sql != next) {
        connection.execute_batch(sql).unwrap();
    }
    connection.execute("UPDATE version SET version = ?1", [version]).unwrap();
    let payment = "INSERT INTO payments (timestamp, status, payment_hash, destination, msatoshi, \
                   failchannel, description, total_msat, partid, groupid) \
                   VALUES (?1, 2, randomblob(32), x'02', ?1, '103x1x' || ?1, ?2, ?1, 0, 1)";
    for number in 0..50 {
        let description = format!("{number} ' \" \n \u{1f9c0}");
        connection.execute(payment, (number, description)).unwrap();
    }
}

fn write_something(node: &Node, label: &str) {
    for number in 0..10 {
        let label = json!(format!("{label} {number} '\u{1f980}'\n"));
        let params = [("amount_msat", json!(1_000)), ("label", label), ("description", json!(""))];
        node.call("invoice", &params);
    }
}

/// What the destination holds is what the node has, and starts.
#[track_caller]
fn expect_restorable(dir: &TestDir, backup: &Backup, stopped: &NodeOptions) {
    backup.verify(stopped);
    let secret = stopped.network_dir().join("hsm_secret");
    let restored = stopped.clone().moved_to(dir.path("restored"));
    backup.restore_node(&restored, &secret);
    oracle::assert_same(&stopped.network_dir().join(WALLET), &restored.network_dir().join(WALLET));
    restored.start().stop();
}
