//! Where the backup is gone with the database, the last way that `restore --plan` names: lightningd's own, which
//! closes the channels.

use std::fs;

use lockstep_tests::binaries::Cli;
use lockstep_tests::real::channel::Pair;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Daemons};
use lockstep_tests::testdir::TestDir;
use serde_json::Value;

#[test]
fn the_channels_of_a_node_without_any_backup_are_closed_as_the_plan_says() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let pair = Pair::start(&daemons, &dir.path("net"));
    let options = pair.node("node");
    let backup = Backup::init(&options, dir.file_url("store"));
    let node = options.start();
    pair.open_channel(&node);
    let id = node.id();
    let lost = node.kill_with_plugin();

    // What its owner kept, in an empty directory; the disks are gone.
    let fresh = pair.node("fresh").without_plugin();
    let directory = fresh.network_dir();
    fs::create_dir_all(&directory).unwrap();
    for name in ["hsm_secret", "emergency.recover"] {
        fs::copy(lost.network_dir().join(name), directory.join(name)).unwrap();
    }
    fs::remove_dir_all(lost.base()).unwrap();
    fs::remove_dir_all(dir.path("store")).unwrap();
    let failed = Cli::new(["restore", backup.url()]).arg(&directory).run().expect_code(10);
    assert!(failed.stderr.contains("channel-closing recovery"), "{failed}");
    let plan = Cli::new(["restore", "--plan", "--json", backup.url()]).arg(&directory);
    let plan = plan.run().expect_success().json();
    let way = plan["ways"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(way["kind"], "closing", "{plan}");
    let lines: Vec<&str> =
        way["commands"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert!(lines[0].starts_with("lightningd "), "everything is in place: {way}");

    let node = fresh.start();
    assert_eq!(node.id(), id);
    for line in &lines[1..] {
        let method = line.strip_prefix("lightning-cli ").unwrap_or_else(|| panic!("{line}"));
        let answer = node.call(method, &[]);
        if method == "emergencyrecover" {
            let stubs = answer["stubs"].as_array().unwrap();
            assert_eq!(stubs.len(), 1, "{answer}");
        }
    }
    // The peer closes, and the node's half of the channel comes; all that it had on chain is far more.
    const CHANNEL_MSAT: u64 = 10_000_000_000;
    let settled = |funds: &Value| {
        let outputs = funds["outputs"].as_array()?;
        let half = |output: &Value| {
            let amount = output["amount_msat"].as_u64().unwrap();
            output["status"] == "confirmed" && (CHANNEL_MSAT / 3..CHANNEL_MSAT).contains(&amount)
        };
        outputs.iter().any(half).then_some(())
    };
    wait_for("the node's half of the channel", || {
        pair.bitcoind.generate(1);
        node.wait_for_height(pair.bitcoind.height());
        settled(&node.try_call("listfunds", &[]).ok()?)
    });
}
