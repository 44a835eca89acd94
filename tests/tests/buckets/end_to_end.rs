//! A node with its backup on a server: written, killed, continued, compacted, restored.

use std::path::PathBuf;
use std::time::Duration;

use lockstep_proto::store::{BucketStore, Options, Store};
use lockstep_tests::backed::Backed;
use lockstep_tests::servers::{azurite, moto, nginx, rgw};
use lockstep_tests::workload::Workload;

/// Two sessions, the second after a kill; after each the restored database is the node's.
fn a_node_and_its_restores(backed: &Backed) {
    backed.init().run().expect_success();
    let mut workload = Workload::seeded(1);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 60);
    backed.check(&node);
    node.kill().unwrap();
    backed.check(&node);
    // A copy of the bucket on a disk is as good, with the newest segment in parts.
    let dest = backed.new_dest();
    backed.restore_of(&format!("file://{}", copy(backed).display()), &dest).run().expect_success();
    node.check_restored(&dest).unwrap();
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 40);
    node.stop().unwrap();
    backed.check_same_as(&node.database_path());
    backed.cli("compact").expect_success();
    backed.check_same_as(&node.database_path());
    backed.cli("verify").expect_success();
    backed.cli("status").expect_success();
}

/// All objects as files, as any copying program makes them.
fn copy(backed: &Backed) -> PathBuf {
    let options = Options::from_vars(backed.env().iter().cloned());
    let url = backed.url().parse().unwrap();
    let bucket = BucketStore::connect(&url, &options, Duration::from_secs(10)).unwrap();
    let folder = backed.store();
    let mut parts = 0;
    for entry in bucket.list_all("").unwrap() {
        let file = folder.join(&entry.name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bucket.read(&entry.name).unwrap()).unwrap();
        parts += usize::from(entry.name.starts_with("tail/"));
    }
    assert!(parts > 50, "{parts} parts");
    folder
}

#[test]
fn on_moto() {
    let Some(server) = moto::shared() else { return };
    a_node_and_its_restores(&Backed::on(server, "node"));
}

#[test]
fn on_ceph() {
    let Some(server) = rgw::shared() else { return };
    a_node_and_its_restores(&Backed::on(server, "node"));
}

#[test]
fn on_azurite() {
    let Some(server) = azurite::shared() else { return };
    a_node_and_its_restores(&Backed::on(server, "node"));
}

#[test]
fn on_webdav() {
    let Some(server) = nginx::start() else { return };
    let url = format!("{}?allow_http=true", server.prefix("node"));
    a_node_and_its_restores(&Backed::at(url, server.env.clone()));
}
