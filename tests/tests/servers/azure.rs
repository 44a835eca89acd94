//! Azure's blobs.

use lockstep_tests::servers::azurite;
use object_store::PutMode;

use crate::store::Store;

#[test]
fn one_creates_an_object_on_azurite() {
    let Some(server) = azurite::shared() else { return };
    let store = Store::on(server, "race");
    store.expect_one_winner(5);
}

#[test]
fn what_azurite_holds_survives_it() {
    let Some(mut server) = azurite::start() else { return };
    let store = Store::on(&server, "restart");
    store.put("object", "content", PutMode::Overwrite).unwrap();
    server.stop();
    server.restart();
    assert_eq!(store.get("object").unwrap(), "content");
}
