//! Two buckets and a folder behind one node, one of them down again and again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use lockstep_tests::backed::{Backed, ci_or_long};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::oracle;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::servers::{Proxy, Server, moto, rgw};
use lockstep_tests::sim::Node;
use lockstep_tests::workload::Workload;
use serde_json::Value;

/// A place on `server`, reached through `port`: both have the same credentials.
fn place(server: &Server, port: u16, name: &str) -> String {
    format!("{}?endpoint=http://127.0.0.1:{port}&allow_http=true", server.prefix(name))
}

fn without_endpoint(server: &Server) -> Vec<(String, String)> {
    let env = server.env.iter().filter(|(name, _)| name != "AWS_ENDPOINT");
    env.cloned().collect()
}

/// Two buckets, the second through a proxy, and a folder; two of the three have what was acknowledged.
fn two_buckets_and_a_folder(server: &Server, other: &Server, proxy: &Proxy) -> Backed {
    let first = place(server, server.port, "first");
    let second = place(other, proxy.port, "second");
    let backed = Backed::at(first, without_endpoint(server));
    let folder = backed.store();
    backed.init().arg(second).arg(folder).arg("--quorum").arg("2").run().expect_success();
    backed
}

/// Reads everything at one place, and gives the newest version there.
fn version_at(backed: &Backed, url: &str) -> u64 {
    let verify = Cli::new(["verify", "--json", url]).arg("--key-file");
    let verify = verify.arg(backed.network_file("backup.key"));
    let verify = backed.env().iter().fold(verify, |cli, (name, value)| cli.env(name, value));
    let report: Output = verify.run().expect_success();
    let generations = report.json()["generations"].clone();
    generations.as_array().unwrap().last().unwrap()["data_version"].as_u64().unwrap()
}

fn urls(backed: &Backed) -> Vec<String> {
    let lock = std::fs::read(backed.network_file("backup.lock")).unwrap();
    let lock: Value = serde_json::from_slice(&lock).unwrap();
    let named = lock["destinations"].as_array().unwrap();
    named.iter().map(|of| of["url"].as_str().unwrap().to_owned()).collect()
}

fn outages(server: &Server, other: &Server, batches: usize, seed: u64) {
    let proxy = Proxy::before(other);
    let backed = two_buckets_and_a_folder(server, other, &proxy);
    let mut workload = Workload::seeded(seed);
    let mut node = backed.running(&mut workload);
    let done = AtomicBool::new(false);
    let down = thread::scope(|scope| {
        let outages = scope.spawn(|| {
            let mut random = Rng::with_seed(seed);
            let mut down = 0;
            while !done.load(Ordering::Relaxed) {
                proxy.refuse();
                thread::sleep(Duration::from_millis(random.u64(50..600)));
                proxy.accept();
                thread::sleep(Duration::from_millis(random.u64(50..600)));
                down += 1;
            }
            down
        });
        Backed::write(&mut node, &mut workload, batches);
        done.store(true, Ordering::Relaxed);
        outages.join().unwrap()
    });
    println!("{batches} batches, {down} outages");
    assert!(down > 0);
    Backed::wait_until_all_have_everything(&mut node);
    let version = u64::from(node.ledger().committed_version().unwrap());
    node.stop().unwrap();
    for url in urls(&backed) {
        assert_eq!(version_at(&backed, &url), version, "{url}");
    }
    backed.check(&node);
}

#[test]
fn nothing_is_lost_while_one_of_three_goes_down_again_and_again() {
    let (Some(server), Some(other)) = (moto::shared(), moto::start()) else { return };
    outages(server, &other, ci_or_long(500, 10_000), 1);
}

#[test]
fn nothing_is_lost_while_one_of_three_goes_down_again_and_again_on_ceph() {
    let Some(server) = rgw::shared() else { return };
    outages(server, server, ci_or_long(200, 10_000), 2);
}

#[test]
fn a_restore_from_the_place_that_is_behind_takes_the_newest() {
    let Some(server) = moto::shared() else { return };
    let proxy = Proxy::before(server);
    let backed = two_buckets_and_a_folder(server, server, &proxy);
    let mut workload = Workload::seeded(3);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    Backed::wait_until_all_have_everything(&mut node);
    proxy.refuse();
    Backed::write(&mut node, &mut workload, 40);
    let second = |node: &mut Node| Backed::destinations(node).swap_remove(1);
    wait_for("it is noticed", || (second(&mut node)["state"] == "behind").then_some(()));
    let error = second(&mut node)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("hint: "), "{error}");
    assert!(node.logged("'second' is behind"));
    node.kill().unwrap();

    let dest = backed.dir().path("elsewhere/regtest");
    let restore = |more: &[&str]| {
        let url = urls(&backed).swap_remove(2);
        let cli = Cli::new(["restore", &url]).arg(&dest).arg("--key-file");
        let cli = cli.arg(backed.network_file("backup.key"));
        let cli = more.iter().fold(cli, Cli::arg);
        backed.env().iter().fold(cli, |cli, (name, value)| cli.env(name, value)).run()
    };
    // One that does not answer may be newer.
    let refused = restore(&[]).expect_code(1);
    assert!(refused.stderr.contains("do not answer"), "{refused}");
    assert!(refused.stderr.contains("--accept-stale"), "{refused}");
    assert!(!dest.join("lightningd.sqlite3").exists());
    proxy.accept();
    restore(&[]).expect_success();
    oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
    // All three are the restored node's now, and have everything.
    let versions: Vec<u64> = urls(&backed).iter().map(|url| version_at(&backed, url)).collect();
    assert_eq!(versions, [u64::from(node.ledger().committed_version().unwrap()); 3]);
    let lock = std::fs::read_to_string(dest.join("backup.lock")).unwrap();
    let lock: Value = serde_json::from_str(&lock).unwrap();
    assert_eq!(lock["destinations"].as_array().unwrap().len(), 3);
    assert_eq!(lock["quorum"], 2);
    // The old node is shut out of each.
    let reason = lockstep_tests::backed::reason_not_to_go_on(&mut Node::new(backed.config()));
    assert!(reason.contains("belongs to another copy"), "{reason}");
}
