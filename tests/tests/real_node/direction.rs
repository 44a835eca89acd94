//! Database and backup do not agree: ahead goes on with a new generation, behind and gone are refused.

use std::fs;
use std::path::Path;

use lockstep_tests::oracle;
use lockstep_tests::real::backup::{WALLET, data_version};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions};
use lockstep_tests::testdir::TestDir;
use serde_json::json;

struct Scene {
    dir: TestDir,
    _bitcoind: Bitcoind,
    backup: Backup,
    options: NodeOptions,
}

impl Scene {
    /// A node under backup that has run once and was stopped.
    fn set(daemons: &Daemons) -> Self {
        let dir = TestDir::new();
        let bitcoind = Bitcoind::start(daemons, &dir.path("bitcoin"));
        let options = NodeOptions::new(daemons, &bitcoind, dir.path("node"));
        let backup = Backup::init(&options, dir.file_url("store"));
        let node = options.start();
        invoices(&node, "first", 5);
        let options = node.stop();
        Self { dir, _bitcoind: bitcoind, backup, options }
    }

    fn wallet(&self) -> std::path::PathBuf {
        self.options.network_dir().join(WALLET)
    }

    /// Makes room for a restore, as the refusal of one says.
    fn move_aside(&self) {
        let aside = self.dir.make_dir("aside");
        for name in [WALLET, "lightningd.sqlite3-journal"] {
            // lightningd may not have come to it.
            let _ = fs::rename(self.options.network_dir().join(name), aside.join(name));
        }
    }

    /// What the destination holds is what the node has.
    #[track_caller]
    fn expect_restorable(&self) {
        let restored = self.dir.path("restored.sqlite3");
        self.backup.look(&self.options, &restored);
        oracle::assert_same(&self.wallet(), &restored);
        fs::remove_file(restored).unwrap();
    }

    /// lightningd ends by itself and says these words; nothing has changed.
    #[track_caller]
    fn expect_refused(&self, words: &str) {
        let before = self.backup.head(&self.options);
        let database = fs::read(self.wallet()).unwrap_or_default();
        let said = self.options.log().len();
        let status = self.options.clone().start_refused();
        assert!(!status.success());
        // Nor where people forgot to make the plugin an important one.
        assert!(!self.options.clone().with_unimportant_plugin().start_refused().success());
        let log = self.options.log();
        assert!(log[said..].contains(words), "not in the log: {words}\n{}", &log[said..]);
        assert_eq!(self.backup.head(&self.options), before);
        // lightningd may have opened it, but committed nothing.
        assert!(
            fs::read(self.wallet()).unwrap_or_default() == database,
            "the database was touched"
        );
    }
}

fn invoices(node: &Node, label: &str, count: u32) {
    for number in 0..count {
        let label = json!(format!("{label} {number} '\u{1f980}'\n"));
        let params = [("amount_msat", json!(1_000)), ("label", label), ("description", json!(""))];
        node.call("invoice", &params);
    }
}

#[test]
fn a_node_that_ran_without_the_plugin_goes_on_with_a_new_generation() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let mut scene = Scene::set(&daemons);
    let generation = |scene: &Scene| {
        scene.backup.status(&scene.options)["destinations"][0]["generation"].as_u64().unwrap()
    };
    let first = generation(&scene);
    let node = scene.options.clone().without_plugin().start();
    invoices(&node, "unseen", 20);
    node.stop();
    let status = scene.backup.status(&scene.options);
    assert_eq!(status["destinations"][0]["state"], "behind", "{status}");
    assert!(data_version(&scene.wallet()) > scene.backup.head(&scene.options));

    let node = scene.options.clone().start();
    node.wait_for_log("is ahead of its backup");
    invoices(&node, "seen", 5);
    scene.options = node.stop();
    assert!(generation(&scene) > first);
    scene.expect_restorable();
    scene.backup.verify(&scene.options);
}

#[test]
fn a_plugin_that_dies_takes_the_node_down_and_the_next_start_makes_good() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let mut scene = Scene::set(&daemons);
    let node = scene.options.clone().start();
    // It is not to be stopped by itself either.
    let stop = [("subcommand", json!("stop")), ("plugin", json!("cln-lockstep"))];
    assert!(node.try_call("plugin", &stop).is_err());
    invoices(&node, "before", 5);
    node.kill_plugin();
    let node = scene.options.clone().start();
    invoices(&node, "after", 5);
    scene.options = node.stop();
    scene.expect_restorable();
}

#[test]
fn a_database_that_was_put_back_from_an_older_copy_is_refused_and_both_are_kept() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let scene = Scene::set(&daemons);
    let old = scene.dir.path("old.sqlite3");
    fs::copy(scene.wallet(), &old).unwrap();
    let node = scene.options.clone().start();
    invoices(&node, "lost with the copy", 20);
    node.stop();
    let newest = scene.dir.path("newest.sqlite3");
    fs::copy(scene.wallet(), &newest).unwrap();
    fs::copy(&old, scene.wallet()).unwrap();

    scene.expect_refused("backup-cli restore");
    scene.move_aside();
    let directory = scene.options.network_dir();
    scene.backup.restore(&directory).run().expect_success();
    oracle::assert_same(&newest, &scene.wallet());
    scene.options.clone().start().stop();
}

#[test]
fn a_node_whose_database_is_gone_never_starts_empty() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let scene = Scene::set(&daemons);
    let kept = scene.dir.path("kept.sqlite3");
    fs::rename(scene.wallet(), &kept).unwrap();
    scene.expect_refused("backup-cli restore");
    // Nor with everything else gone but the files of the backup.
    remove_all_but(&scene.options.network_dir(), &["backup.lock", "backup.key", "hsm_secret"]);
    scene.expect_refused("backup-cli restore");
    scene.move_aside();
    scene.backup.restore(&scene.options.network_dir()).run().expect_success();
    oracle::assert_same(&kept, &scene.wallet());
    let node = scene.options.clone().start();
    wait_for("a current destination", || {
        (node.backup_status()["destinations"][0]["state"] == "current").then_some(())
    });
}

fn remove_all_but(directory: &Path, kept: &[&str]) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if !kept.iter().any(|name| entry.file_name() == *name) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}
