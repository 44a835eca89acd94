//! moto: S3 in memory, up in two seconds. What it holds dies with the process.

use std::process::Command;
use std::sync::OnceLock;

use super::find;
use super::server::{Directory, Server, free_port};

const BUCKET: &str = "lockstep-moto";
const SCRIPT: &str = include_str!("serve_moto.py");

/// Starts one; `None`, and a line, where it is not installed.
pub fn start() -> Option<Server> {
    // Installed with its own Python.
    find::installed("moto", "python/bin/moto_server")?;
    let python = find::installed("moto", "python/bin/python")?;
    let (directory, port) = (Directory::new(), free_port());
    let mut command = Command::new(python);
    command.arg(directory.write("serve_moto.py", SCRIPT)).arg(port.to_string());
    Some(Server::start(command, directory, Vec::new(), port).with_bucket(BUCKET))
}

/// One for all tests of this process.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    SHARED.get_or_init(start).as_ref()
}
