//! Azurite, the emulator of Azure's blobs. What it holds survives it.

use std::process::Command;
use std::sync::OnceLock;

use super::find;
use super::server::{Directory, Server, free_port, owned};
use super::sign::{AZURE_ACCOUNT, AZURE_KEY, make_container};

const CONTAINER: &str = "lockstep-azurite";

/// Starts one; `None`, and a line, where it is not installed.
pub fn start() -> Option<Server> {
    let azurite = find::installed("azurite", "node/node_modules/.bin/azurite-blob")?;
    let (directory, port) = (Directory::new(), free_port());
    let mut command = Command::new(azurite);
    command
        .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
        .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location"])
        .arg(directory.make("blobs"))
        .env("AZURITE_ACCOUNTS", format!("{AZURE_ACCOUNT}:{AZURE_KEY}"));
    let mut server = Server::start(command, directory, Vec::new(), port);
    let made = make_container(port, CONTAINER).expect("an answer");
    assert_eq!(made.status, 201, "container: {}\n{}", made.text(), server.log());
    server.url = format!("az://{CONTAINER}");
    server.env = owned(&[
        ("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT),
        ("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY),
        ("AZURE_ENDPOINT", &format!("http://127.0.0.1:{port}/{AZURE_ACCOUNT}")),
        ("AZURE_ALLOW_HTTP", "true"),
    ]);
    Some(server)
}

/// One for all tests of this process.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    SHARED.get_or_init(start).as_ref()
}
