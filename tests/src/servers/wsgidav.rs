//! WsgiDAV, which looks at `If-None-Match` before it writes: of many who create at once, more than one may win.

use std::process::Command;

use serde_json::json;

use super::find;
use super::server::{Directory, Server, free_port};

/// Starts one; `None`, and a line, where it is not installed.
pub fn start() -> Option<Server> {
    let wsgidav = find::installed("wsgidav", "python/bin/wsgidav")?;
    let (directory, port) = (Directory::new(), free_port());
    let config = json!({
        "host": "127.0.0.1",
        "port": port,
        "server": "cheroot",
        // More than its five, or a connection among many waits for a second.
        "server_args": { "request_queue_size": 128, "numthreads": 32 },
        "provider_mapping": { "/dav": directory.make("files") },
        "simple_dc": { "user_mapping": { "*": true } },
        "lock_storage": true,
        "property_manager": true,
        "verbose": 1,
    });
    let config = directory.write("wsgidav.json", &config.to_string());
    let mut command = Command::new(wsgidav);
    command.arg("--config").arg(config);
    let mut server = Server::start(command, directory, Vec::new(), port);
    server.url = format!("http://127.0.0.1:{port}/dav");
    Some(server)
}
