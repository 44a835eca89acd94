//! Other plugins are told when the backup is not what it should be, and when it is again.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lockstep_tests::binaries::Cli;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, NodeOptions};
use lockstep_tests::testdir::TestDir;
use serde_json::{Value, json};

/// A plugin that writes down what it is told.
const SUBSCRIBER: &str = r#"#!/usr/bin/env python3
import json, sys
TOPICS = ["backup_degraded", "backup_recovered"]
buffer = ""
for line in sys.stdin:
    buffer += line
    if line.strip():
        continue
    if not buffer.strip():
        continue
    message, buffer = json.loads(buffer), ""
    if message["method"] in TOPICS:
        with open("HEARD", "a") as heard:
            heard.write(json.dumps(message) + "\n")
    if "id" in message:
        manifest = {"options": [], "rpcmethods": [], "subscriptions": TOPICS, "dynamic": True}
        result = manifest if message["method"] == "getmanifest" else {}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}) + "\n", flush=True)
"#;

#[test]
fn a_subscriber_hears_that_a_destination_goes_away_and_comes_back() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let heard = dir.path("heard");
    let script = dir.path("subscriber.py");
    fs::write(&script, SUBSCRIBER.replace("HEARD", heard.to_str().unwrap())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let options = NodeOptions::new(&daemons, &bitcoind, dir.path("node"))
        .arg(format!("--plugin={}", script.display()));
    let _first = Backup::init(&options, dir.file_url("store"));
    let add = Cli::new(["destination", "add", &dir.file_url("nas"), "--name", "nas", "--async"]);
    add.arg("--lightning-dir").arg(options.network_dir()).run().expect_success();
    // It is not there when the node starts.
    fs::rename(dir.path("nas"), dir.path("aside")).unwrap();
    let node = options.clone().start();
    let events = || -> Vec<Value> {
        let text = fs::read_to_string(&heard).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    wait_for("it hears of the trouble", || (!events().is_empty()).then_some(()));
    let degraded = &events()[0];
    assert_eq!(degraded["method"], "backup_degraded");
    // lightningd says who sent it.
    assert_eq!(degraded["origin"], "cln-lockstep", "{degraded}");
    let event = &degraded["params"]["backup_degraded"];
    let places = event["destinations"].as_array().expect("destinations");
    assert_eq!((&places[0]["state"], &places[0]["error"]), (&json!("current"), &Value::Null));
    assert_eq!((&places[1]["name"], &places[1]["state"]), (&json!("nas"), &json!("behind")));
    assert!(places[1]["error"].is_string(), "{degraded}");

    fs::rename(dir.path("aside"), dir.path("nas")).unwrap();
    let mut number = 0;
    wait_for("it hears that all is well", || {
        number += 1;
        let key = json!(["lockstep", number.to_string()]);
        node.caller().call("datastore", &[("key", key), ("hex", json!("00"))]).unwrap();
        (events().len() > 1).then_some(())
    });
    assert_eq!(events()[1]["method"], "backup_recovered");
    node.stop();
    assert_eq!(events().len(), 2, "nothing else was said: {:?}", events());
}
