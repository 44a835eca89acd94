//! What all servers have in common.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::daemon::{Daemon, keep};
use super::http;
use super::sign::{S3_KEY, S3_REGION, S3_SECRET};
use crate::real::wait::{PATIENCE, within};

/// A server on a free port of 127.0.0.1, with its files in a directory of its own. It ends with its value;
/// what several tests of one process share ends with the process.
#[derive(Debug)]
pub struct Server {
    /// The destination's URL: `s3://BUCKET`, `az://CONTAINER`, `http://127.0.0.1:PORT/dav`.
    pub url: String,
    /// Credentials and the endpoint, by the names that the environment has for them.
    pub env: Vec<(String, String)>,
    /// Where it listens.
    pub port: u16,
    probe: fn(u16) -> bool,
    // Before the directory that its files are in.
    front: Daemon,
    _behind: Vec<Daemon>,
    _directory: Directory,
}

impl Server {
    /// Starts the daemon that answers, and waits until something answers HTTP on `port`.
    pub fn start(command: Command, directory: Directory, behind: Vec<Daemon>, port: u16) -> Self {
        Self::start_probed(command, directory, behind, port, answers_http)
    }

    /// The same for a daemon that speaks something else: it is ready when it takes connections.
    pub fn start_any(command: Command, directory: Directory, port: u16) -> Self {
        Self::start_probed(command, directory, Vec::new(), port, takes_connections)
    }

    fn start_probed(
        command: Command,
        directory: Directory,
        behind: Vec<Daemon>,
        port: u16,
        probe: fn(u16) -> bool,
    ) -> Self {
        let front = Daemon::start(command, &directory.path, "server");
        let (url, env) = (String::new(), Vec::new());
        let mut server =
            Self { url, env, port, probe, front, _behind: behind, _directory: directory };
        server.wait_until_ready();
        server
    }

    /// The same with a bucket, as a destination on S3.
    pub fn with_bucket(mut self, bucket: &str) -> Self {
        let made = super::sign::make_bucket(self.port, bucket).expect("an answer");
        assert_eq!(made.status, 200, "bucket: {}\n{}", made.text(), self.log());
        self.url = format!("s3://{bucket}");
        self.env = owned(&[
            ("AWS_ACCESS_KEY_ID", S3_KEY),
            ("AWS_SECRET_ACCESS_KEY", S3_SECRET),
            ("AWS_REGION", S3_REGION),
            ("AWS_ENDPOINT", &format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", "true"),
        ]);
        self
    }

    /// A URL below it that nobody used before.
    pub fn prefix(&self, name: &str) -> String {
        fresh(&self.url, name)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.front.kill();
    }

    /// Ends it in order.
    pub fn stop(&mut self) {
        self.front.stop();
    }

    /// Starts it where it was, after `kill` or `stop`, and waits until it answers.
    pub fn restart(&mut self) {
        self.front.start_again();
        self.wait_until_ready();
    }

    /// It takes connections, and answers nothing.
    pub fn pause(&mut self) {
        self.front.pause();
    }

    /// It goes on after `pause`.
    pub fn resume(&mut self) {
        self.front.resume();
    }

    /// What it wrote to its output so far.
    pub fn log(&self) -> String {
        self.front.log()
    }

    fn wait_until_ready(&mut self) {
        // Ceph's are not always let in at first.
        let mut starts = 2;
        let ready = within(PATIENCE, || {
            if !self.front.is_running() {
                assert!(starts > 0, "it ends at once:\n{}", self.front.log());
                starts -= 1;
                self.front.start_again();
            }
            (self.probe)(self.port).then_some(())
        });
        assert!(ready.is_some(), "it does not answer:\n{}", self.front.log());
    }
}

/// The directory of a server. It goes with its value, unless a test panics or `LOCKSTEP_KEEP` is set.
#[derive(Debug)]
pub struct Directory {
    made: Option<TempDir>,
    /// Where it is.
    pub path: PathBuf,
}

impl Directory {
    /// A new one.
    pub fn new() -> Self {
        let made = tempfile::Builder::new().prefix("lockstep-server-").tempdir();
        let made = made.expect("a temporary directory");
        Self { path: made.path().to_owned(), made: Some(made) }
    }

    /// A folder inside.
    pub fn make(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// A file inside.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if (std::thread::panicking() || keep())
            && let Some(made) = self.made.take()
        {
            eprintln!("kept {}", made.keep().display());
        }
    }
}

/// A port of 127.0.0.1 that nobody listens on, below those that the system gives to connections: a server
/// that is started again finds its own free.
pub fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| fastrand::u16(12_000..32_000));
    ports.find(free).expect("a free port")
}

fn answers_http(port: u16) -> bool {
    http::request(port, "GET", "/", &[], b"").is_ok()
}

fn takes_connections(port: u16) -> bool {
    http::connect(port).is_ok()
}

pub(super) fn fresh(url: &str, name: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{url}/{name}-{}-{number}", std::process::id())
}

pub(super) fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
