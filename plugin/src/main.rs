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
//! | [`stall`] | what happens while a destination does not answer |
//! | [`status`] | what is known, for whoever asks |
//! | [`node`] | everything that is not `db_write`, by `cln-plugin` |

mod backup;
mod hook;
mod node;
mod stall;
mod status;
mod wire;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;

use crate::backup::Backup;
use crate::hook::Hook;
use crate::node::NodeSide;
use crate::stall::Watchdog;
use crate::status::SharedStatus;
use crate::wire::{Input, Level, Message, Next, Output};

/// Name and version, as they are written into logs and claims.
pub const PROGRAM: &str = concat!("cln-lockstep/", env!("CARGO_PKG_VERSION"));

/// The one argument that lightningd gives to plugins: where it was given it itself.
const DEVELOPER: &str = "--developer";

/// lightningd gives plugins 30 s after `shutdown`, and other plugins may still cause writes. This
/// one ends when none has come for this long.
const QUIET_AFTER_SHUTDOWN_MS: u64 = 1000;

fn main() -> ExitCode {
    if let Some(argument) = std::env::args().skip(1).find(|argument| argument != DEVELOPER) {
        return explain(&argument);
    }
    let output = Arc::new(Output::default());
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
    let mut input = Input::default();
    let mut node = NodeSide::start(output.clone(), status.clone())?;
    let mut hook: Option<Hook> = None;
    let mut quiet_ms = None;
    loop {
        let bytes = match input.next(quiet_ms).context("failed to read from lightningd")? {
            Next::Message(bytes) => bytes,
            Next::End | Next::Quiet => break,
        };
        let message = Message::parse(bytes).context("malformed message from lightningd")?;
        match (&*message.method, &message.id) {
            ("db_write", Some(id)) => match &mut hook {
                Some(hook) => hook.answer(id.get(), message.params),
                None => anyhow::bail!("db_write came before getmanifest"),
            },
            ("getmanifest", Some(id)) if hook.is_none() => {
                match Backup::prepare(Path::new("."), status.clone(), output.clone()) {
                    Ok(backup) => {
                        let watchdog = Watchdog::start(output.clone(), &backup)?;
                        hook = Some(Hook::new(backup, watchdog, output.clone()));
                        node.forward(bytes);
                    }
                    Err(error) => refuse(output, id.get(), &backup::explain(&error)),
                }
            }
            ("shutdown", None) => {
                quiet_ms = Some(QUIET_AFTER_SHUTDOWN_MS);
                output.log(Level::Debug, "shutdown: waiting for the last writes");
            }
            _ => node.forward(bytes),
        }
    }
    if let Some(hook) = &mut hook {
        hook.close();
    }
    Ok(())
}

/// An important plugin that disables itself stops lightningd before it opens its database.
fn refuse(output: &Output, id: &str, reason: &str) {
    output.log(Level::Broken, reason);
    let reason = serde_json::Value::from(reason);
    output.send(&format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"disable":{reason},"options":[],"rpcmethods":[],"subscriptions":[],"hooks":[],"dynamic":false}}}}"#
    ));
}
