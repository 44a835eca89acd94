//! `backup-cli`: initializes, inspects, verifies and restores the backup of a Core Lightning node.
//!
//! | module | idea |
//! |---|---|
//! | [`args`] | the command line |
//! | [`commands`] | one file a verb |
//! | [`place`] | which log is meant: a node's directory, or a URL and a key |
//! | [`sources`] | all places of a log, for a restore |
//! | [`scratch`] | a temporary folder that goes also where the program is interrupted |
//! | [`unlock`] | every way to the key ring |
//! | [`output`] | results, progress, errors |
//! | [`failure`] | errors and their exit codes |

mod args;
mod commands;
mod failure;
mod output;
mod place;
mod scratch;
mod sources;
mod unlock;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::output::Output;

/// Name and version, as they are written into logs and claims.
pub const PROGRAM: &str = concat!("backup-cli/", env!("CARGO_PKG_VERSION"));

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    if let Err(error) = lockstep_node::memory::keep_to_itself() {
        output.note(&format!(
            "warning: a core dump of this process would hold the backup's keys: {error}"
        ));
    }
    let done = match cli.command {
        Command::Init(args) => commands::init::run(&args, &output),
        Command::Import(args) => commands::import::run(&args, &output),
        Command::Restore(args) => commands::restore::run(&args, &output),
        Command::Status(args) => commands::status::run(&args, &output),
        Command::Verify(args) => commands::verify::run(&args, &output),
        Command::Compact(args) => commands::compact::run(&args, &output),
        Command::Prune(args) => commands::prune::run(&args, &output),
        Command::List(args) => commands::list::run(&args, &output),
        Command::Files(args) => commands::files::run(&args, &output),
        Command::Key(args) => commands::key::run(&args, &output),
        Command::Destination(args) => commands::destination::run(&args, &output),
        Command::Export(args) => commands::export::run(&args, &output),
        Command::Follow(args) => commands::follow::run(&args, &output),
        Command::Promote(args) => commands::promote::run(&args, &output),
        Command::Drill(args) => commands::drill::run(&args, &output),
        Command::Check(args) => commands::check::run(&args, &output),
        Command::Secret(args) => commands::secret::run(&args, &output),
        Command::Generate(args) => commands::generate::run(&args, &output),
        Command::Demo(args) => commands::demo::run(&args, &output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
