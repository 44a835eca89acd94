//! How to run a node.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

/// The database's name, as lightningd has it unless `--wallet` names another.
const DATABASE: &str = "lightningd.sqlite3";

/// How to run a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub(super) plugin: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) options: Map<String, Value>,
    pub(super) network: String,
    pub(super) durable: bool,
    pub(super) reply_timeout: Duration,
}

impl NodeConfig {
    /// A node with this plugin binary and this network directory.
    pub fn new(plugin: impl Into<PathBuf>, network_directory: impl Into<PathBuf>) -> Self {
        Self {
            plugin: plugin.into(),
            directory: network_directory.into(),
            args: Vec::new(),
            env: Vec::new(),
            options: Map::new(),
            network: "regtest".into(),
            durable: false,
            reply_timeout: Duration::from_secs(120),
        }
    }

    /// Gives the plugin a command-line argument, such as `--developer`.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets an environment variable for the plugin.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets a plugin option, as the node's configuration file does.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }

    /// The network that `init` names; `regtest` unless set.
    pub fn network(mut self, network: impl Into<String>) -> Self {
        self.network = network.into();
        self
    }

    /// Syncs every commit of the database (slow, and matters to a power cut
    /// only).
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// How long an answer may take before the simulation fails; 120 s unless
    /// set. lightningd itself waits for ever.
    pub fn reply_timeout(mut self, timeout: Duration) -> Self {
        self.reply_timeout = timeout;
        self
    }

    /// Where the database is.
    pub fn database_path(&self) -> PathBuf {
        self.directory.join(DATABASE)
    }
}
