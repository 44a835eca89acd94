//! TLS before a server that has none, with a certificate that nobody has heard of.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::find;
use super::server::{Directory, Server, free_port};

const SCRIPT: &str = include_str!("serve_tls.py");

/// Starts one before an S3 server; with it, the certificate. `None`, and a line, where it cannot be made.
pub fn before(server: &Server) -> Option<(Server, PathBuf)> {
    let openssl = find::system("openssl")?;
    let python = find::installed("moto", "python/bin/python")?;
    let (directory, port) = (Directory::new(), free_port());
    let (certificate, key) = (directory.path.join("cert.pem"), directory.path.join("key.pem"));
    let mut make = Command::new(openssl);
    make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stdin(Stdio::null());
    let made = make.output().expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new(python);
    command
        .arg(directory.write("serve_tls.py", SCRIPT))
        .args([port.to_string(), server.port.to_string()])
        .arg(&certificate)
        .arg(&key);
    let mut tls = Server::start_any(command, directory, port);
    let (from, to) =
        (format!("http://127.0.0.1:{}", server.port), format!("https://127.0.0.1:{port}"));
    let env = server.env.iter().filter(|(name, _)| !name.ends_with("ALLOW_HTTP"));
    tls.env = env.map(|(name, value)| (name.clone(), value.replace(&from, &to))).collect();
    tls.url = server.url.clone();
    Some((tls, certificate))
}
