//! A node with its backup on a server: written, killed, continued, compacted, restored.

use lockstep_tests::workload::Workload;
use lockstep_tests::backed::Backed;
use lockstep_tests::servers::{Server, azurite, moto, rgw};

/// Two sessions, the second after a kill; after each the restored database is the node's.
fn a_node_and_its_restores(server: &Server) {
    let backed = Backed::on(server, "node");
    backed.init().run().expect_success();
    let mut workload = Workload::seeded(1);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 60);
    backed.check(&node);
    node.kill().unwrap();
    backed.check(&node);
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 40);
    node.stop().unwrap();
    backed.check_same_as(&node.database_path());
    backed.cli("compact").expect_success();
    backed.check_same_as(&node.database_path());
    backed.cli("verify").expect_success();
    backed.cli("status").expect_success();
}

#[test]
fn on_moto() {
    let Some(server) = moto::shared() else { return };
    a_node_and_its_restores(server);
}

#[test]
fn on_ceph() {
    let Some(server) = rgw::shared() else { return };
    a_node_and_its_restores(server);
}

#[test]
fn on_azurite() {
    let Some(server) = azurite::shared() else { return };
    a_node_and_its_restores(server);
}
