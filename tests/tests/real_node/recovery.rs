//! Where the backup is gone with the database, the last way that `restore --plan` names: lightningd's own, which
//! closes the channels.

use std::fs;

use lockstep_tests::binaries::Cli;
use lockstep_tests::real::channel::Pair;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Daemons};
use lockstep_tests::testdir::TestDir;
use serde_json::{Value, json};

const CHANNEL_SAT: u64 = 10_000_000;

#[test]
fn the_channels_of_a_node_without_any_backup_are_closed_as_the_plan_says() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let pair = Pair::start(&daemons, &dir.path("net"));
    let options = pair.node("node");
    let backup = Backup::init(&options, dir.file_url("store"));
    let node = options.start();
    // All of it the node's: of one in which the peer had a part, too, lightningd v26.06.6 leaves the node's on chain.
    pair.fund(&node);
    node.connect(&pair.peer);
    let params = [("id", json!(pair.peer.id())), ("amount", json!(CHANNEL_SAT))];
    node.call("fundchannel", &params);
    pair.confirm_channels(&node, 1);
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
    // The peer closes, and what was in the channel comes; all that the node had on chain is far more.
    const CHANNEL_MSAT: u64 = CHANNEL_SAT * 1000;
    let settled = |funds: &Value| {
        let outputs = funds["outputs"].as_array()?;
        let of_the_channel = |output: &Value| {
            let amount = output["amount_msat"].as_u64().unwrap();
            output["status"] == "confirmed"
                && (CHANNEL_MSAT / 10 * 9..CHANNEL_MSAT).contains(&amount)
        };
        outputs.iter().any(of_the_channel).then_some(())
    };
    wait_for("what was in the channel", || {
        pair.bitcoind.generate(1);
        node.wait_for_height(pair.bitcoind.height());
        settled(&node.try_call("listfunds", &[]).ok()?)
    });
}
