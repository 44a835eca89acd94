//! A lightningd in a directory of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::bitcoind::Bitcoind;
use super::daemons::Daemons;
use super::process::{children, free_port, signal};
use super::wait::{PATIENCE, wait_for, within};
use crate::binaries;

/// How a lightningd is run.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    daemons: Daemons,
    base: PathBuf,
    port: u16,
    bitcoin: Vec<String>,
    plugin: Option<&'static str>,
    developer: bool,
    extra: Vec<String>,
    stdin: String,
}

impl NodeOptions {
    /// In `base`, with the plugin, on a free port.
    pub fn new(daemons: &Daemons, bitcoind: &Bitcoind, base: impl Into<PathBuf>) -> Self {
        Self {
            daemons: daemons.clone(),
            base: base.into(),
            port: free_port(),
            bitcoin: bitcoind.lightningd_args(),
            plugin: Some("important-plugin"),
            developer: true,
            extra: Vec::new(),
            stdin: String::new(),
        }
    }

    /// Without the plugin under test.
    pub fn without_plugin(mut self) -> Self {
        self.plugin = None;
        self
    }

    /// With the plugin under test, but not as an important one.
    pub fn with_unimportant_plugin(mut self) -> Self {
        self.plugin = Some("plugin");
        self
    }

    /// As people run it. A developer's node, which it is otherwise, looks for blocks each second, and
    /// makes its tables `STRICT`.
    pub fn production(mut self) -> Self {
        self.developer = false;
        self
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.extra.push(arg.into());
        self
    }

    /// What it reads from stdin at each start, such as a passphrase.
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = text.into();
        self
    }

    /// The same node in another directory.
    pub fn moved_to(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = base.into();
        self
    }

    /// The same node with other programs.
    pub fn with_daemons(mut self, daemons: &Daemons) -> Self {
        self.daemons = daemons.clone();
        self
    }

    /// lightningd's `--lightning-dir`.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where the database, `hsm_secret` and `backup.lock` are.
    pub fn network_dir(&self) -> PathBuf {
        self.base.join("regtest")
    }

    fn log_file(&self) -> PathBuf {
        self.base.join("log")
    }

    /// Everything that lightningd logged in this directory, and what it said on its stderr.
    pub fn log(&self) -> String {
        let read = |path: PathBuf| fs::read(path).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&read(self.log_file())).into_owned();
        text += &String::from_utf8_lossy(&read(self.base.join("stderr")));
        text
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.daemons.lightningd);
        command
            .args(["--network=regtest", "--log-level=debug", "--disable-dns"])
            .arg(format!("--lightning-dir={}", self.base.display()))
            .arg(format!("--log-file={}", self.log_file().display()))
            .arg(format!("--addr=127.0.0.1:{}", self.port))
            .args(&self.bitcoin)
            .args(&self.extra);
        if self.developer {
            command.args(["--developer", "--dev-fast-gossip", "--dev-bitcoind-poll=1"]);
            command.arg("--dev-fast-reconnect");
        }
        if let Some(option) = self.plugin {
            command.arg(format!("--{option}={}", binaries::plugin().display()));
        }
        command
    }

    fn spawn(&self) -> Child {
        fs::create_dir_all(self.network_dir()).expect("a network directory");
        let open = |name: &str| {
            let file = File::options().create(true).append(true).open(self.base.join(name));
            file.expect("a file for what lightningd says")
        };
        let input = self.base.join("stdin");
        fs::write(&input, &self.stdin).expect("a file for its stdin");
        self.command()
            .stdin(File::open(&input).expect("its stdin"))
            .stdout(open("stdout"))
            .stderr(open("stderr"))
            .spawn()
            .expect("lightningd starts")
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(self) -> Node {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`start`](Self::start); or what it said before it ended.
    pub fn try_start(self) -> Result<Node, String> {
        let child = self.spawn();
        let mut node = Node { options: self, child };
        let ready = within(PATIENCE, || match node.child.try_wait().expect("its state") {
            Some(status) => Some(Err(status)),
            None => node.try_call("getinfo", &[]).ok().map(Ok),
        });
        match ready {
            Some(Ok(_)) => Ok(node),
            Some(Err(status)) => {
                Err(format!("lightningd ended with {status}:\n{}", node.log_tail()))
            }
            None => Err(format!("lightningd did not answer:\n{}", node.log_tail())),
        }
    }

    /// Starts it and waits until it has ended by itself.
    #[track_caller]
    pub fn start_refused(self) -> ExitStatus {
        let child = self.spawn();
        let mut node = Node { options: self, child };
        node.wait_for_end(PATIENCE)
    }
}

/// A running lightningd; killed with its value.
pub struct Node {
    options: NodeOptions,
    child: Child,
}

impl Node {
    /// How it is run.
    pub fn options(&self) -> &NodeOptions {
        &self.options
    }

    /// Where the database, `hsm_secret` and `backup.lock` are.
    pub fn network_dir(&self) -> PathBuf {
        self.options.network_dir()
    }

    /// A handle for other threads.
    pub fn caller(&self) -> Caller {
        Caller { cli: self.options.daemons.lightning_cli.clone(), base: self.options.base.clone() }
    }

    /// Calls a method with named parameters.
    pub fn try_call(&self, method: &str, params: &[(&str, Value)]) -> Result<Value, String> {
        self.caller().call(method, params)
    }

    /// Calls a method that must succeed.
    #[track_caller]
    pub fn call(&self, method: &str, params: &[(&str, Value)]) -> Value {
        match self.try_call(method, params) {
            Ok(answer) => answer,
            Err(error) => panic!("{method} failed: {error}\n{}", self.log_tail()),
        }
    }

    /// The node's id.
    pub fn id(&self) -> String {
        text(&self.call("getinfo", &[]), "id")
    }

    /// Where peers find it.
    pub fn address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.options.port)
    }

    /// Connects to a peer.
    pub fn connect(&self, peer: &Self) {
        wait_for("a connection to the peer", || self.try_connect(peer).ok());
    }

    /// Tries once to connect to a peer.
    pub fn try_connect(&self, peer: &Self) -> Result<(), String> {
        let (host, port) = peer.address();
        let params = [("id", json!(peer.id())), ("host", json!(host)), ("port", json!(port))];
        self.try_call("connect", &params).map(drop)
    }

    /// Waits until it has seen the whole chain.
    pub fn wait_for_height(&self, height: u64) {
        wait_for("the node has seen the chain", || {
            let info = self.try_call("getinfo", &[]).ok()?;
            (info["blockheight"].as_u64()? >= height).then_some(())
        });
    }

    /// What the plugin answers to `backup-status`.
    pub fn backup_status(&self) -> Value {
        self.call("backup-status", &[])
    }

    /// lightningd's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The plugin's process.
    pub fn plugin_pid(&self) -> Option<u32> {
        let plugin = binaries::plugin();
        let name = plugin.file_name().expect("the plugin has a name").to_string_lossy();
        children(self.pid(), &name).first().copied()
    }

    /// Stops it in order, and returns how it can be started again.
    #[track_caller]
    pub fn stop(mut self) -> NodeOptions {
        self.call("stop", &[]);
        let status = self.wait_for_end(PATIENCE);
        assert!(status.success(), "lightningd ended with {status}:\n{}", self.log_tail());
        self.options.clone()
    }

    /// Kills it alone, and returns how it was run.
    pub fn kill(mut self) -> NodeOptions {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("its end");
        self.options.clone()
    }

    /// Kills it and the plugin at once, as a power cut would.
    pub fn kill_with_plugin(mut self) -> NodeOptions {
        // lightningd first: without its plugin it would go on for a moment.
        signal(&[self.pid(), self.plugin_pid().expect("the plugin runs")], "KILL");
        self.child.wait().expect("its end");
        self.options.clone()
    }

    /// Kills the plugin and waits for lightningd's end.
    pub fn kill_plugin(mut self) -> NodeOptions {
        signal(&[self.plugin_pid().expect("the plugin runs")], "KILL");
        self.wait_for_end(PATIENCE);
        self.options.clone()
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait_for_end(&mut self, patience: Duration) -> ExitStatus {
        let ended = within(patience, || self.child.try_wait().expect("its state"));
        ended.unwrap_or_else(|| panic!("lightningd goes on:\n{}", self.log_tail()))
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_some()
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        self.options.log()
    }

    /// Waits until a line with `words` is in its log.
    #[track_caller]
    pub fn wait_for_log(&self, words: &str) {
        wait_for(&format!("'{words}' in the log"), || self.log().contains(words).then_some(()));
    }

    /// The end of what it has logged.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 150;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls a node by `lightning-cli`.
#[derive(Clone, Debug)]
pub struct Caller {
    cli: PathBuf,
    base: PathBuf,
}

impl Caller {
    /// Calls a method with named parameters.
    pub fn call(&self, method: &str, params: &[(&str, Value)]) -> Result<Value, String> {
        let output = Command::new(&self.cli)
            .args(["--network=regtest", "--json", "--notifications=none", "-k"])
            .arg(format!("--lightning-dir={}", self.base.display()))
            .arg(method)
            .args(params.iter().map(|(name, value)| format!("{name}={value}")))
            .stdin(Stdio::null())
            .output()
            .expect("lightning-cli runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(said + &String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_str(&said).map_err(|error| format!("no JSON: {error}: {said}"))
    }
}

/// A text field of an answer.
#[track_caller]
pub fn text(answer: &Value, field: &str) -> String {
    answer[field].as_str().unwrap_or_else(|| panic!("no {field} in {answer}")).to_owned()
}
