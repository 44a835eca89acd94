//! The simulated node: one directory, one database, any number of sessions.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::{
    Database, Fate, Ledger, LogLine, Manifest, NodeConfig, PluginProcess, Reply, SimError,
};
use crate::step::{Batch, Step};

/// How long lightningd waits for plugins that subscribe to `shutdown`.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a plugin has to end once lightningd is gone.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

/// The plugin's answer to `db_write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `{"result":"continue"}`.
    Continue,
    /// Anything else; lightningd stops without commit.
    Refused {
        /// The error's message, or the whole answer.
        message: String,
    },
    /// The plugin closed its pipes; lightningd stops without commit.
    Died,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Acknowledged and committed.
    Committed {
        /// The version it led to.
        data_version: u32,
    },
    /// Refused; the node stopped without commit.
    Refused {
        /// The plugin's words.
        message: String,
    },
    /// The plugin died; the node stopped without commit.
    PluginDied {
        /// How it ended.
        status: Option<ExitStatus>,
        /// What it wrote to stderr.
        stderr: String,
    },
}

impl Outcome {
    /// Whether the write was committed.
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Committed { .. })
    }

    /// The committed version; panics on any other outcome, with its words.
    #[track_caller]
    pub fn expect_committed(self) -> u32 {
        match self {
            Self::Committed { data_version } => data_version,
            other => panic!("write was not committed: {other:?}"),
        }
    }

    /// The refusal's message; panics on any other outcome.
    #[track_caller]
    pub fn expect_refused(self) -> String {
        match self {
            Self::Refused { message } => message,
            other => panic!("write was not refused: {other:?}"),
        }
    }
}

/// A simulated node. See the [module](super) for how it is used.
#[derive(Debug)]
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) plugin: Option<PluginProcess>,
    pub(super) database: Option<Database>,
    pub(super) ledger: Ledger,
    manifest: Manifest,
    session: u32,
    past_logs: Vec<LogLine>,
    past_stderr: String,
}

impl Node {
    /// A node that is not running yet.
    pub fn new(config: NodeConfig) -> Self {
        Self {
            config,
            plugin: None,
            database: None,
            ledger: Ledger::default(),
            manifest: Manifest::default(),
            session: 0,
            past_logs: Vec::new(),
            past_stderr: String::new(),
        }
    }

    /// A node, started.
    pub fn launch(config: NodeConfig) -> Result<Self, SimError> {
        let mut node = Self::new(config);
        node.start()?;
        Ok(node)
    }

    /// Begins a session: starts the plugin, asks for its manifest, then opens
    /// the database. Writes may follow before [`Node::init`].
    pub fn start(&mut self) -> Result<(), SimError> {
        if self.plugin.is_some() || self.database.is_some() {
            return Err(SimError::Busy("running"));
        }
        self.session += 1;
        let config = &self.config;
        let plugin =
            PluginProcess::spawn(&config.plugin, &config.directory, &config.args, &config.env)?;
        self.plugin = Some(plugin);
        let started = self.ask_manifest().and_then(|()| {
            let (path, durable) = (self.config.database_path(), self.config.durable);
            self.database = Some(Database::open(path, durable)?);
            Ok(())
        });
        started.inspect_err(|_| self.end_plugin(true))
    }

    fn ask_manifest(&mut self) -> Result<(), SimError> {
        let reply = self.call("getmanifest", &json!({"allow-deprecated-apis": false}))?;
        self.manifest = Manifest::parse(reply)?;
        if !self.manifest.hooks().contains(&"db_write") {
            let text = "manifest does not name the hook db_write".to_owned();
            return Err(SimError::Protocol(text));
        }
        Ok(())
    }

    /// From the next start on it runs like this, in the same directory.
    pub fn run_with(&mut self, config: NodeConfig) {
        self.config = config;
    }

    /// Sends `init` and waits for its answer; writes go on afterwards.
    pub fn init(&mut self) -> Result<(), SimError> {
        let directory = std::path::absolute(&self.config.directory)
            .map_err(SimError::io("find the network directory"))?;
        let mut options = self.manifest.default_options();
        options.extend(self.config.options.clone());
        let params = json!({
            "options": options,
            "configuration": {
                "lightning-dir": directory,
                "rpc-file": "lightning-rpc",
                "startup": true,
                "network": self.config.network,
                "feature_set": {
                    "init": "08a0880a8a59a1",
                    "node": "88a0880a8a59a1",
                    "channel": "",
                    "invoice": "02000002024100",
                },
            },
        });
        match self.call("init", &params)? {
            Reply::Result(result) => match result["disable"].as_str() {
                Some(reason) => Err(SimError::Disabled(reason.to_owned())),
                None => Ok(()),
            },
            Reply::Error(error) => Err(SimError::Protocol(format!("init: {error}"))),
        }
    }

    /// One whole write: begin, ask, then commit, or stop without commit.
    pub fn write(&mut self, step: &Step) -> Result<Outcome, SimError> {
        let batch = self.begin(step)?;
        let answer = self.ask(&batch)?;
        self.settle(answer)
    }

    /// Opens the transaction and runs the step's statements in it.
    pub fn begin(&mut self, step: &Step) -> Result<Batch, SimError> {
        let database = self.database.as_ref().ok_or(SimError::NotRunning)?;
        if database.in_transaction() {
            return Err(SimError::Busy("in a transaction"));
        }
        let foreign_keys = database.foreign_keys()?;
        let batch = database.begin(step)?;
        self.ledger.begin(self.session, step, &batch, foreign_keys);
        Ok(batch)
    }

    /// Asks the plugin about a batch that [`Node::begin`] gave.
    pub fn ask(&mut self, batch: &Batch) -> Result<Answer, SimError> {
        let id = self.send_write(batch)?;
        let timeout = self.config.reply_timeout;
        self.answer(&id, timeout)
    }

    /// Sends a batch that [`Node::begin`] gave; its answer is for
    /// [`Node::answer`].
    pub fn send_write(&mut self, batch: &Batch) -> Result<String, SimError> {
        self.ledger.mark(Fate::Asked);
        self.send_call("db_write", batch)
    }

    /// Waits for the answer to [`Node::send_write`].
    pub fn answer(&mut self, id: &str, timeout: Duration) -> Result<Answer, SimError> {
        let answer = self.unaccounted_answer(id, timeout)?;
        if answer == Answer::Continue {
            self.ledger.mark(Fate::Acknowledged);
        }
        Ok(answer)
    }

    fn unaccounted_answer(&mut self, id: &str, timeout: Duration) -> Result<Answer, SimError> {
        match self.reply(id, timeout) {
            Ok(Reply::Result(result)) if result["result"] == "continue" => Ok(Answer::Continue),
            Ok(Reply::Result(result)) => Ok(Answer::Refused { message: result.to_string() }),
            Ok(error) => Ok(Answer::Refused { message: error.error_message().unwrap_or_default() }),
            Err(SimError::Closed { .. }) => Ok(Answer::Died),
            Err(error) => Err(error),
        }
    }

    /// Does what lightningd does with an answer: commit, or stop without.
    pub fn settle(&mut self, answer: Answer) -> Result<Outcome, SimError> {
        match answer {
            Answer::Continue => {
                self.commit()?;
                let data_version = self.ledger.committed_version().unwrap_or(0);
                Ok(Outcome::Committed { data_version })
            }
            Answer::Refused { message } => {
                self.fall(false, false)?;
                Ok(Outcome::Refused { message })
            }
            Answer::Died => {
                let plugin = self.plugin.as_mut().ok_or(SimError::NotRunning)?;
                let status = plugin.wait(ORPHAN_TIMEOUT);
                let stderr = plugin.stderr();
                self.fall(true, false)?;
                Ok(Outcome::PluginDied { status, stderr })
            }
        }
    }

    pub(super) fn commit(&mut self) -> Result<(), SimError> {
        self.database.as_ref().ok_or(SimError::NotRunning)?.commit()?;
        self.ledger.mark(Fate::Committed);
        Ok(())
    }

    /// Asks about any batch whatever, without touching the database or the
    /// account: wrong versions, gaps, empty writes. Does not stop the node.
    pub fn ask_raw(&mut self, batch: &Batch) -> Result<Answer, SimError> {
        let id = self.send_call("db_write", batch)?;
        self.unaccounted_answer(&id, self.config.reply_timeout)
    }

    /// Commits a step that the plugin never hears of, as lightningd does after
    /// it ended its plugins, or while the plugin was not installed.
    pub fn commit_unhooked(&mut self, step: &Step) -> Result<u32, SimError> {
        let (path, durable) = (self.config.database_path(), self.config.durable);
        let batch = match &self.database {
            Some(database) => database.apply(step)?,
            None => Database::open(path, durable)?.apply(step)?,
        };
        self.ledger.committed_unhooked(batch.data_version);
        Ok(batch.data_version)
    }

    /// Calls an RPC method of the plugin and waits for its answer.
    pub fn call<P: Serialize>(&mut self, method: &str, params: &P) -> Result<Reply, SimError> {
        let id = self.send_call(method, params)?;
        self.reply(&id, self.config.reply_timeout)
    }

    /// Sends a request, to be answered while other things go on.
    pub fn send_call<P: Serialize>(
        &mut self,
        method: &str,
        params: &P,
    ) -> Result<String, SimError> {
        let timeout = self.config.reply_timeout;
        let plugin = self.plugin.as_mut().ok_or(SimError::NotRunning)?;
        let (id, bytes) = plugin.prepare(method, params);
        // A plugin that no longer reads shows when its answer is waited for.
        plugin.send(bytes, timeout)?;
        Ok(id)
    }

    /// Sends any bytes whatever, well formed or not: `false` if the plugin no
    /// longer reads. An answer to `id` is for [`Node::reply`].
    pub fn send_raw(&mut self, id: &str, bytes: impl Into<Vec<u8>>) -> Result<bool, SimError> {
        let timeout = self.config.reply_timeout;
        let plugin = self.plugin.as_mut().ok_or(SimError::NotRunning)?;
        plugin.expect(id);
        plugin.send(bytes.into(), timeout)
    }

    /// Waits for the answer to [`Node::send_call`].
    pub fn reply(&mut self, id: &str, timeout: Duration) -> Result<Reply, SimError> {
        let plugin = self.plugin.as_mut().ok_or(SimError::NotRunning)?;
        plugin.reply(id, timeout)
    }

    /// Sends a notification, if the plugin subscribes to it; says whether.
    pub fn notify<P: Serialize>(&mut self, topic: &str, params: &P) -> Result<bool, SimError> {
        if !self.manifest.subscribes(topic) {
            return Ok(false);
        }
        let timeout = self.config.reply_timeout;
        let plugin = self.plugin.as_mut().ok_or(SimError::NotRunning)?;
        plugin.send(super::wire::message(None, topic, params), timeout)
    }

    /// Ends the plugin as a clean stop does: `shutdown` and up to 30 s if it
    /// subscribes to that, SIGKILL otherwise. The database stays open for the
    /// last, unhooked writes; [`Node::stop`] closes it.
    pub fn shutdown(&mut self) -> Result<Option<ExitStatus>, SimError> {
        let told = self.notify("shutdown", &json!({}))?;
        let plugin = self.plugin.as_mut().ok_or(SimError::NotRunning)?;
        let status = if told { plugin.wait(SHUTDOWN_TIMEOUT) } else { None };
        self.end_plugin(true);
        Ok(status)
    }

    /// Stops cleanly: [`Node::shutdown`] unless done already, then the end.
    pub fn stop(&mut self) -> Result<Option<ExitStatus>, SimError> {
        let status = if self.plugin.is_some() { self.shutdown()? } else { None };
        self.fall(true, false)?;
        Ok(status)
    }

    /// Kills plugin and node at once, whatever they are doing.
    pub fn kill(&mut self) -> Result<(), SimError> {
        self.fall(true, false)
    }

    /// The end of a session without commit.
    pub(super) fn fall(&mut self, kill_plugin: bool, hot_journal: bool) -> Result<(), SimError> {
        self.end_plugin(kill_plugin);
        match self.database.take() {
            Some(database) => database.crash(hot_journal),
            None => Ok(()),
        }
    }

    /// Kills the plugin, or lets it find its stdin closed and end by itself;
    /// its words are kept.
    fn end_plugin(&mut self, kill: bool) {
        let Some(mut plugin) = self.plugin.take() else {
            return;
        };
        plugin.close_stdin();
        if kill || plugin.wait(ORPHAN_TIMEOUT).is_none() {
            plugin.kill();
        }
        self.past_logs.extend(plugin.logs());
        self.past_stderr.push_str(&plugin.stderr());
    }

    /// Whether a session is going on.
    pub fn is_running(&self) -> bool {
        self.plugin.is_some()
    }

    /// Sessions so far.
    pub fn session(&self) -> u32 {
        self.session
    }

    /// The manifest of the running or last session.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The account of everything asked and committed.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The running plugin.
    pub fn plugin(&self) -> Option<&PluginProcess> {
        self.plugin.as_ref()
    }

    /// The open database.
    pub fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }

    /// Where the database is.
    pub fn database_path(&self) -> PathBuf {
        self.config.database_path()
    }

    /// The network directory.
    pub fn directory(&self) -> &Path {
        &self.config.directory
    }

    /// The plugin's log lines, of all sessions.
    pub fn logs(&self) -> Vec<LogLine> {
        let current = self.plugin.iter().flat_map(PluginProcess::logs);
        self.past_logs.iter().cloned().chain(current).collect()
    }

    /// Whether some log line holds this text.
    pub fn logged(&self, text: &str) -> bool {
        self.logs().iter().any(|line| line.message.contains(text))
    }

    /// What the plugin wrote to stderr, in all sessions.
    pub fn stderr(&self) -> String {
        let current = self.plugin.as_ref().map(PluginProcess::stderr);
        format!("{}{}", self.past_stderr, current.unwrap_or_default())
    }
}
