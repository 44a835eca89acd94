//! SOCKS5 proxies to the servers of this machine. Their URL is the proxy's: `socks5h://127.0.0.1:PORT`.

use std::process::Command;

use super::find;
use super::server::{Directory, Server, free_port};
use crate::real::daemons::say;
use crate::real::process::is_root;

/// Starts Dante, which lets everybody through; `None`, and a line, where it is not installed or the user may not run it.
pub fn start() -> Option<Server> {
    let danted = find::system("danted")?;
    if !is_root() {
        say("skipped: danted needs root");
        return None;
    }
    let (directory, port) = (Directory::new(), free_port());
    let config = directory.write("danted.conf", &configuration(port));
    let mut command = Command::new(danted);
    command.arg("-f").arg(config).arg("-p").arg(directory.path.join("danted.pid"));
    Some(started(command, directory, port))
}

/// Starts MicroSocks, which asks for a name and a password.
pub fn start_asking(name: &str, password: &str) -> Option<Server> {
    let port = free_port();
    let mut command = Command::new(find::system("microsocks")?);
    command.args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", name, "-P", password]);
    Some(started(command, Directory::new(), port))
}

fn started(command: Command, directory: Directory, port: u16) -> Server {
    let mut server = Server::start_any(command, directory, port);
    server.url = format!("socks5h://127.0.0.1:{port}");
    server
}

fn configuration(port: u16) -> String {
    format!(
        "logoutput: stdout
internal: 127.0.0.1 port = {port}
external: lo
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 log: connect disconnect error }}
"
    )
}
