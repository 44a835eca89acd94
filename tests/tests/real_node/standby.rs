//! A warm standby of a real node takes its place.

use std::fs;

use lockstep_tests::binaries::Cli;
use lockstep_tests::real::backup::{Found, WALLET, compare_with_dead};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, NodeOptions};
use lockstep_tests::testdir::TestDir;

#[test]
fn a_standby_takes_the_place_of_a_node_that_died() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node")).production();
    let backup = Backup::init(&options, dir.file_url("store"));
    let node = options.start();
    wait_for("the node slot", || {
        let slots = node.backup_status()["slots"].clone();
        (slots.as_array()?.iter().any(|slot| slot == "node")).then_some(())
    });
    let (id, secret) = (node.id(), dir.path("secret"));
    fs::copy(node.network_dir().join("hsm_secret"), &secret).unwrap();

    let standby = node.options().clone().moved_to(dir.path("standby"));
    let follow = || {
        Cli::new(["follow", "--json", "--once", backup.url()])
            .arg(standby.network_dir())
            .arg("--key-file")
            .arg(node.network_dir().join("backup.key"))
            .run()
            .expect_success()
            .json()
    };
    follow();
    for _ in 0..5 {
        node.call("newaddr", &[]);
    }
    let report = follow();
    assert!(report["behind"].as_u64().unwrap() <= 2, "{report}");

    // Never by accident: lightningd with the plugin does not start there.
    let tried = standby.clone();
    tried.clone().start_refused();
    assert!(tried.log().contains("there is no backup.lock"), "{}", tried.log());
    // What it left there is moved aside, as the message says.
    for name in ["lightningd.sqlite3-journal", "hsm_secret", "emergency.recover"] {
        let _ = fs::remove_file(standby.network_dir().join(name));
    }
    node.call("newaddr", &[]);
    let dead = node.kill_with_plugin();

    let promote = Cli::new(["promote", "--json", backup.url()]).arg(standby.network_dir());
    promote.arg("--hsm-secret").arg(&secret).run().expect_success();
    let (had, got) = (dead.network_dir().join(WALLET), standby.network_dir().join(WALLET));
    let found = compare_with_dead(&had, &got, &dir.path("scratch"), None);
    assert!(matches!(found, Found::Same | Found::InFlightUnknown), "{found:?}");
    let node = standby.start();
    assert_eq!(node.id(), id);
    node.call("newaddr", &[]);
    assert_eq!(node.backup_status()["destinations"][0]["state"], "current");
    // The old one is out.
    dead.clone().start_refused();
    assert!(dead.log().contains("belongs to another copy of this node"), "{}", dead.log());
    backup.verify(node.options());
}
