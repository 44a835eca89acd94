//! `check` and `drill` beside a real node, and with it stopped.

use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, NodeOptions};
use lockstep_tests::testdir::TestDir;
use serde_json::Value;

fn cli(verb: &str, node: &NodeOptions) -> Output {
    Cli::new([verb, "--json", "--lightning-dir"]).arg(node.network_dir()).run()
}

/// What `check` says of one thing, by severity and message; of the disk it says that there is one only.
fn found(node: &NodeOptions, about: &str) -> Vec<(String, String)> {
    let report = cli("check", node).json();
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings
        .filter(|finding| finding["check"] == about)
        .map(|finding| (text(&finding["severity"]), text(&finding["message"])))
        .collect()
}

#[test]
fn a_real_node_is_checked_and_its_restore_is_rehearsed() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node")).production();
    Backup::init(&options, dir.file_url("store"));

    let node = options.clone().with_unimportant_plugin().start();
    wait_for("it is found not to be important", || {
        let findings = found(&options, "config");
        findings
            .contains(&(
                "error".into(),
                "cln-lockstep runs, and is not important to lightningd".into(),
            ))
            .then_some(())
    });
    node.stop();

    let node = options.start();
    let options = node.options().clone();
    wait_for("the node slot", || {
        let slots = node.backup_status()["slots"].clone();
        (slots.as_array()?.iter().any(|slot| slot == "node")).then_some(())
    });
    let report = cli("check", &options).expect_code(1).json();
    let errors = report["findings"].as_array().unwrap().iter();
    let errors: Vec<_> = errors.filter(|finding| finding["severity"] == "error").collect();
    assert!(errors.iter().all(|finding| finding["check"] == "disk"), "{errors:?}");
    assert_eq!(report["running"], true);
    let ok = |message: &str| ("ok".to_owned(), message.to_owned());
    assert_eq!(found(&options, "plugin"), [ok("lightningd runs with the plugin")]);
    let slot = "'primary' opens with the node's hsm_secret: slot 'node'";
    assert_eq!(found(&options, "slots"), [ok(slot)]);

    // With the words that lightningd made, in its file.
    let drill = cli("drill", &options).expect_success().json();
    assert_eq!(drill["opened_with"], "the node's hsm_secret", "{drill}");
    let options = node.stop();
    let drill = cli("drill", &options).expect_success().json();
    let one = &drill["destinations"][0];
    assert_eq!(one["compared"]["with"], "database", "{drill}");
    let status = cli("status", &options).expect_success().json();
    assert_eq!(status["database"], one["data_version"]);
    assert_eq!(status["drill"]["passed"], true);
}
