//! Dante, a SOCKS5 proxy to the servers of this machine. Its URL is the proxy's: `socks5h://127.0.0.1:PORT`.

use std::process::Command;

use super::find;
use super::server::{Directory, Server, free_port};
use crate::real::daemons::say;
use crate::real::process::is_root;

/// Starts one; `None`, and a line, where it is not installed or the user may not run it.
pub fn start() -> Option<Server> {
    start_with("none")
}

/// The same for one that asks for the name and the password of a user of this machine.
pub fn start_asking() -> Option<Server> {
    start_with("username")
}

fn start_with(method: &str) -> Option<Server> {
    let danted = find::system("danted")?;
    if !is_root() {
        say("skipped: danted needs root");
        return None;
    }
    let (directory, port) = (Directory::new(), free_port());
    let config = directory.write("danted.conf", &configuration(port, method));
    let mut command = Command::new(danted);
    command.arg("-f").arg(config).arg("-p").arg(directory.path.join("danted.pid"));
    let mut server = Server::start_any(command, directory, port);
    server.url = format!("socks5h://127.0.0.1:{port}");
    Some(server)
}

fn configuration(port: u16, method: &str) -> String {
    format!(
        "logoutput: stdout
internal: 127.0.0.1 port = {port}
external: lo
socksmethod: {method}
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 log: connect disconnect error }}
"
    )
}
