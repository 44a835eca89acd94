//! `cln-lockstep`: the Core Lightning plugin.
//!
//! lightningd's `db_write` comes before `init` and must be answered before anything else happens, so
//! this program splits the stream itself: the main thread reads stdin and takes each `db_write` to the log
//! without leaving the thread; every other message goes to `cln-plugin` on a thread of its own.
//!
//! | module | idea |
//! |---|---|
//! | [`wire`] | messages on stdin and stdout |
//! | [`hook`] | one `db_write`: from JSON to an answer |
//! | [`backup`] | the log of this node: what happens at the start, and with each call |
//! | [`places`] | the destinations of the log |
//! | [`shutdown`] | how long this program stays when lightningd stops |
//! | [`stall`] | what happens while a destination does not answer |
//! | [`compactor`] | snapshots of what changed, made beside all that |
//! | [`companions`] | files that belong to the node, kept beside its database |
//! | [`witness`] | how far the log has come, noted on this machine |
//! | [`heartbeat`] | a quiet node says that it is alive |
//! | [`metrics`] | numbers for Prometheus |
//! | [`status`] | what is known, for whoever asks |
//! | [`clock`] | the time, as records have it |
//! | [`node`] | everything that is not `db_write`, by `cln-plugin` |

mod backup;
mod clock;
mod compactor;
mod companions;
mod heartbeat;
mod hook;
mod metrics;
mod node;
mod places;
mod shutdown;
mod stall;
mod status;
mod wire;
mod witness;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use lockstep_node::memory;
use lockstep_wire::{DbWrite, Message};
use serde_json::value::RawValue;

use crate::backup::Backup;
use crate::hook::{Hook, Refusal};
use crate::node::NodeSide;
use crate::stall::Watchdog;
use crate::status::SharedStatus;
use crate::wire::{Input, Level, Next, Output, refusal};

/// Name and version, as they are written into logs and claims.
pub const PROGRAM: &str = concat!("cln-lockstep/", env!("CARGO_PKG_VERSION"));

const DB_WRITE: &str = "db_write";

/// The one argument that lightningd gives to plugins: where it was given it itself.
const DEVELOPER: &str = "--developer";

/// After `shutdown` this program ends when nothing has come for this long, and no other plugin is left.
const QUIET_AFTER_SHUTDOWN_MS: u64 = 250;

fn main() -> ExitCode {
    if let Some(argument) = std::env::args().skip(1).find(|argument| argument != DEVELOPER) {
        return explain(&argument);
    }
    let output = Arc::new(Output::default());
    if let Err(error) = memory::keep_to_itself() {
        let line = format!("a core dump of this process would hold the backup's keys: {error}");
        output.log(Level::Unusual, &line);
    }
    match run(&output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.log(Level::Broken, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Any other argument is a person's.
fn explain(argument: &str) -> ExitCode {
    match argument {
        "--version" | "-V" => {
            println!("{PROGRAM}");
            ExitCode::SUCCESS
        }
        "--help" | "-h" => {
            println!(
                "{PROGRAM}: backs up a Core Lightning node, transaction by transaction\n\n\
                 This is a plugin. In lightningd's config:\n\n    \
                 important-plugin=/usr/local/bin/cln-lockstep\n\n\
                 and once, before that, with lightningd stopped:\n\n    \
                 backup-cli init --lightning-dir ~/.lightning/bitcoin file:///mnt/nas/node"
            );
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("error: unexpected argument '{argument}'\nhint: try --help.");
            ExitCode::from(2)
        }
    }
}

fn run(output: &Arc<Output>) -> anyhow::Result<()> {
    let status = SharedStatus::default();
    let mut input = Input::new();
    let mut node = NodeSide::start(output.clone(), status.clone())?;
    let mut gate = Gate::Closed;
    let mut quiet_ms = None;
    loop {
        let bytes = match input.next(quiet_ms).context("failed to read from lightningd")? {
            Next::Message(bytes) => bytes,
            Next::Quiet if shutdown::other_plugins_run() => continue,
            Next::End | Next::Quiet => break,
        };
        // In one pass over the message where it is a call, as nearly all are.
        if let Ok(Message { id: Some(id), method, params: Some(call) }) = Message::parse(bytes)
            && method == DB_WRITE
        {
            gate.answer(id.get(), Ok(call), output);
            continue;
        }
        // Ending here would not stop lightningd: it goes on for a while after an important plugin's death,
        // unless that happens in the middle of a call. So whatever goes wrong, the next call is refused.
        let message = match Message::parse(bytes) {
            Ok(message) => message,
            Err(error) => {
                // Not the error itself: it may quote a statement.
                let at = error.column();
                gate.refuse(format!("malformed message from lightningd, at byte {at}"), output);
                if memchr::memmem::find(bytes, b"\"db_write\"").is_some() {
                    // It waits for an answer that cannot be addressed: only our end stops it uncommitted.
                    break;
                }
                continue;
            }
        };
        match (&*message.method, &message.id) {
            (DB_WRITE, Some(id)) => {
                let params = message.params.map_or("null", RawValue::get);
                gate.answer(id.get(), serde_json::from_str(params), output);
            }
            ("getmanifest", Some(_)) => {
                if let Gate::Closed = gate {
                    gate = Gate::decide(&status, output)?;
                }
                node.forward(bytes);
            }
            // Between two calls of the hook, therefore here.
            ("backup-reload", Some(id)) => gate.reload(id.get(), output),
            ("shutdown", None) => {
                quiet_ms = Some(QUIET_AFTER_SHUTDOWN_MS);
                output.log(Level::Debug, "shutdown: waiting for the last writes");
                node.forward(bytes);
            }
            _ => node.forward(bytes),
        }
    }
    if let Gate::Open(hook) = &mut gate {
        hook.close();
    }
    Ok(())
}

/// What becomes of `db_write`.
enum Gate {
    /// Not decided: nothing has been asked yet.
    Closed,
    /// To the log.
    Open(Box<Hook>),
    /// This node must not go on.
    Refusing(Refusal),
}

impl Gate {
    fn answer(&mut self, id: &str, call: serde_json::Result<DbWrite<'_>>, output: &Arc<Output>) {
        match self {
            Self::Open(hook) => {
                // A defect must not end the process between two calls.
                if catch_unwind(AssertUnwindSafe(|| hook.answer(id, call))).is_err() {
                    let reason =
                        "a defect of cln-lockstep; please report it, with the log".to_owned();
                    self.refuse_call(id, reason, output);
                }
            }
            Self::Refusing(refusal) => refusal.answer(id),
            Self::Closed => {
                self.refuse_call(id, "db_write came before getmanifest".into(), output);
            }
        }
    }

    fn refuse_call(&mut self, id: &str, reason: String, output: &Arc<Output>) {
        self.refuse(reason, output);
        if let Self::Refusing(refusal) = self {
            refusal.answer(id);
        }
    }

    /// Takes the destinations of `backup.lock` for the log.
    fn reload(&mut self, id: &str, output: &Arc<Output>) {
        let Self::Open(hook) = self else {
            output.send(&refusal(id, "the backup is not open: nothing is written"));
            return;
        };
        // What may be half done then is not written to.
        if catch_unwind(AssertUnwindSafe(|| hook.reload(id))).is_err() {
            let reason = "a defect of cln-lockstep; please report it, with the log";
            output.send(&refusal(id, reason));
            self.refuse(reason.to_owned(), output);
        }
    }

    /// From here on every call is refused, for the first reason that there was.
    fn refuse(&mut self, reason: String, output: &Arc<Output>) {
        if !matches!(self, Self::Refusing(_)) {
            *self = Self::Refusing(Refusal::new(reason, output.clone()));
        }
    }

    fn decide(status: &SharedStatus, output: &Arc<Output>) -> anyhow::Result<Self> {
        Ok(match Backup::prepare(Path::new("."), status.clone(), output.clone()) {
            Ok(backup) => {
                let watchdog =
                    Watchdog::start(output.clone(), backup.label(), backup.stall_timeout())?;
                Self::Open(Box::new(Hook::new(backup, watchdog, output.clone())))
            }
            Err(error) => Self::Refusing(Refusal::new(error.explain(), output.clone())),
        })
    }
}
