//! S3.

use lockstep_tests::servers::{moto, rgw};
use object_store::PutMode;

use crate::store::Store;

#[test]
fn one_creates_an_object_on_moto() {
    let Some(server) = moto::shared() else { return };
    let store = Store::on(server, "race");
    store.expect_one_winner(5);
}

#[test]
fn moto_starts_again_empty_where_it_was() {
    let Some(mut server) = moto::start() else { return };
    let store = Store::on(&server, "restart");
    store.put("object", "content", PutMode::Overwrite).unwrap();
    assert_eq!(store.get("object").unwrap(), "content");
    server.kill();
    server.restart();
    assert!(store.get("object").is_err());
}

#[test]
fn one_creates_an_object_on_ceph() {
    let Some(server) = rgw::shared() else { return };
    let store = Store::on(server, "race");
    store.expect_one_winner(5);
}

#[test]
fn what_ceph_holds_survives_its_gateway() {
    let Some(mut server) = rgw::start() else { return };
    let store = Store::on(&server, "restart");
    store.put("object", "content", PutMode::Overwrite).unwrap();
    server.kill();
    server.restart();
    assert_eq!(store.get("object").unwrap(), "content");
}
