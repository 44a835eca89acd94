//! The plugin's process and its three pipes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::wire::message;
use super::{Reply, SimError};

/// How often a process is asked whether it has ended.
const POLL: Duration = Duration::from_millis(2);

/// One line of the plugin in the node's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `debug`, `info`, `unusual`, `broken`…
    pub level: String,
    /// The text.
    pub message: String,
}

/// What arrived on the plugin's stdout, without log lines.
type Incoming = Result<Value, String>;
/// Bytes for the plugin's stdin, and where to say how that went.
type Outgoing = (Vec<u8>, SyncSender<std::io::Result<()>>);

/// A running plugin. Dropped, it is killed.
#[derive(Debug)]
pub struct PluginProcess {
    child: Child,
    stdin: Option<Sender<Outgoing>>,
    incoming: Receiver<Incoming>,
    logs: Arc<Mutex<Vec<LogLine>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Requests without an answer yet, and answers nobody has taken yet.
    requests: BTreeMap<String, Option<Reply>>,
    next_id: u64,
}

impl PluginProcess {
    /// Starts a plugin as lightningd does, in the network directory.
    pub(super) fn spawn(
        binary: &Path,
        directory: &Path,
        args: &[OsString],
        env: &[(OsString, OsString)],
    ) -> Result<Self, SimError> {
        let mut child = Command::new(binary)
            .args(args)
            .current_dir(directory)
            .env("LIGHTNINGD_PLUGIN", "1")
            .env("LIGHTNINGD_VERSION", "v26.06.6")
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(SimError::io(format!("start {}", binary.display())))?;
        let (logs, stderr) = (Arc::default(), Arc::default());
        let stdin = write_in_background(child.stdin.take().expect("stdin is piped"));
        let stdout = child.stdout.take().expect("stdout is piped");
        let incoming = read_in_background(stdout, Arc::clone(&logs));
        let pipe = child.stderr.take().expect("stderr is piped");
        collect_in_background(pipe, Arc::clone(&stderr));
        Ok(Self {
            child,
            stdin: Some(stdin),
            incoming,
            logs,
            stderr,
            requests: BTreeMap::new(),
            next_id: 0,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far, in order.
    pub fn logs(&self) -> Vec<LogLine> {
        locked(&self.logs).clone()
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&locked(&self.stderr)).into_owned()
    }

    /// A request's id and bytes; the id waits for its answer from now on.
    pub(super) fn prepare<P: Serialize>(&mut self, method: &str, params: &P) -> (String, Vec<u8>) {
        self.next_id += 1;
        let id = format!("cln:{method}#{}", self.next_id);
        let bytes = message(Some(&id), method, params);
        self.requests.insert(id.clone(), None);
        (id, bytes)
    }

    /// Takes an answer to a request that was not [prepared](Self::prepare).
    pub(super) fn expect(&mut self, id: &str) {
        self.requests.insert(id.to_owned(), None);
    }

    /// Writes bytes to its stdin: `false` if it no longer reads.
    pub(super) fn send(&mut self, bytes: Vec<u8>, timeout: Duration) -> Result<bool, SimError> {
        let Some(stdin) = &self.stdin else {
            return Ok(false);
        };
        let (done, outcome) = mpsc::sync_channel(1);
        if stdin.send((bytes, done)).is_err() {
            return Ok(false);
        }
        match outcome.recv_timeout(timeout) {
            Ok(written) => Ok(written.is_ok()),
            Err(RecvTimeoutError::Disconnected) => Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                Err(SimError::Timeout { id: "a write to its stdin".into(), waited: timeout })
            }
        }
    }

    /// Waits for the answer to a request.
    pub(super) fn reply(&mut self, id: &str, timeout: Duration) -> Result<Reply, SimError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(Some(_)) = self.requests.get(id) {
                let reply = self.requests.remove(id).flatten();
                return Ok(reply.expect("just seen"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.incoming.recv_timeout(left) {
                Ok(incoming) => self.take(incoming.map_err(SimError::Protocol)?)?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(SimError::Closed { stderr: self.stderr() });
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(SimError::Timeout { id: id.to_owned(), waited: timeout });
                }
            }
        }
    }

    /// Files an answer under its request.
    fn take(&mut self, message: Value) -> Result<(), SimError> {
        let Some(id) = message.get("id") else {
            return Ok(()); // a notification that nobody here listens to
        };
        let id =
            id.as_str().ok_or_else(|| SimError::Protocol(format!("answer with the id {id}")))?;
        let Some(slot) = self.requests.get_mut(id) else {
            return Err(SimError::Protocol(format!(
                "answer to {id}, never asked or answered before"
            )));
        };
        if slot.is_some() {
            return Err(SimError::Protocol(format!("second answer to {id}")));
        }
        *slot = Some(Reply::parse(&message)?);
        Ok(())
    }

    /// Closes its stdin, as the death of lightningd does.
    pub(super) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        // Both fail only on a process that has ended already.
        let _ = self.child.kill();
        self.close_stdin();
        self.child.wait().ok()
    }

    /// Waits for its end, at most so long.
    pub(super) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for PluginProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes from a thread, so that a plugin that stops reading cannot hang the
/// simulation. The pipe closes when the sender is dropped.
fn write_in_background(mut pipe: ChildStdin) -> Sender<Outgoing> {
    let (sender, receiver) = mpsc::channel::<Outgoing>();
    thread::spawn(move || {
        for (bytes, done) in receiver {
            let written = pipe.write_all(&bytes).and_then(|()| pipe.flush());
            // Nobody waits any more: the simulation gave up on this write.
            let _ = done.send(written);
        }
    });
    sender
}

/// Reads JSON values as they come; the channel closes with the pipe.
fn read_in_background(pipe: ChildStdout, logs: Arc<Mutex<Vec<LogLine>>>) -> Receiver<Incoming> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let reader = BufReader::with_capacity(1 << 16, pipe);
        let values = serde_json::Deserializer::from_reader(reader).into_iter::<Value>();
        for value in values {
            let message = match value {
                Ok(value) if value["method"] == "log" => {
                    locked(&logs).push(log_line(&value["params"]));
                    continue;
                }
                Ok(value) => Ok(value),
                // Cut off by its death: nothing that was complete is lost.
                Err(error) if error.is_eof() || error.is_io() => return,
                Err(error) => Err(format!("invalid JSON on stdout: {error}")),
            };
            let broken = message.is_err();
            if sender.send(message).is_err() || broken {
                return;
            }
        }
    });
    receiver
}

fn log_line(params: &Value) -> LogLine {
    let field = |name: &str| params[name].as_str().unwrap_or_default().to_owned();
    LogLine { level: field("level"), message: field("message") }
}

fn collect_in_background(mut pipe: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) {
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut chunk) {
            locked(&into).extend_from_slice(&chunk[..read]);
        }
    });
}

/// A panic elsewhere does not make the collected text wrong.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
