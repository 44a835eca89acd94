//! A bucket behind a SOCKS proxy, as Tor is one: everything goes through it, and nothing goes past it where it does not
//! let us.

use lockstep_tests::backed::{Backed, reason_not_to_go_on};
use lockstep_tests::servers::{Memory, moto, socks};
use lockstep_tests::sim::{Node, Standing};
use lockstep_tests::workload::Workload;
use lockstep_tests::{Step, binaries::Output};
use serde_json::json;

const HINT: &str = "hint: check the proxy";

fn through(url: &str, proxy: &str) -> String {
    format!("{url}?proxy_url={proxy}")
}

#[track_caller]
fn expect_the_proxys_fault(output: Output, words: &str, server: &Memory) {
    let output = output.expect_code(1);
    assert!(output.stderr.contains(words) && output.stderr.contains(HINT), "{output}");
    assert!(!output.stderr.contains("hunter2"), "{output}");
    assert_eq!(server.take_counts().len(), 0, "something went past the proxy");
}

#[test]
fn a_node_and_its_restores_through_dante() {
    let (Some(mut proxy), Some(server)) = (socks::start(), moto::shared()) else { return };
    let url = through(&server.prefix("proxied"), &proxy.url);
    let backed = Backed::at(url, server.env.clone());
    backed.init().run().expect_success();
    backed.set_in_lock("stall_timeout_s", json!(3));
    let mut workload = Workload::seeded(1);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 20);
    assert_eq!(backed.check(&node), Standing::Committed);
    let to_server = format!("127.0.0.1.{}", server.port);
    assert!(proxy.log().contains(&to_server), "{}", proxy.log());

    proxy.kill();
    let before = node.ledger().committed_version();
    let step = Step::transaction(["UPDATE vars SET intval = intval + 1 WHERE name = 'x'"]);
    let message = node.write(&step).unwrap().expect_refused();
    assert!(message.contains("hint: "), "{message}");
    assert_eq!(node.ledger().committed_version(), before);
    let mut node_again = Node::new(backed.config());
    let reason = reason_not_to_go_on(&mut node_again);
    assert!(reason.contains(HINT), "{reason}");
    proxy.restart();
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 5);
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn a_proxy_that_is_not_there() {
    let server = Memory::start();
    let url = through(&server.prefix("dead"), "socks5h://127.0.0.1:1");
    let backed = Backed::at(url, server.env.clone());
    let words = "the proxy does not connect";
    expect_the_proxys_fault(backed.init().run(), words, &server);
    expect_the_proxys_fault(backed.restore(&backed.new_dest()).run(), words, &server);
}

#[test]
fn a_proxy_that_asks_who_we_are() {
    let Some(proxy) = socks::start_asking("node", "let me in") else { return };
    let server = Memory::start();
    let with = |login: &str| {
        let url = proxy.url.replace("://", &format!("://{login}@"));
        let mut env = server.env.clone();
        env.push(("LOCKSTEP_DESTINATION_PROXY_URL".into(), url));
        Backed::at(server.prefix("asking"), env)
    };
    let words = "the proxy wants another name and password";
    expect_the_proxys_fault(with("nobody:hunter2").init().run(), words, &server);
    // Nor without any.
    let backed = Backed::at(through(&server.prefix("asking"), &proxy.url), server.env.clone());
    expect_the_proxys_fault(backed.init().run(), "the proxy ", &server);

    let backed = with("node:let%20me%20in");
    backed.init().run().expect_success();
    let mut workload = Workload::seeded(2);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 5);
    assert_eq!(backed.check(&node), Standing::Committed);
}
