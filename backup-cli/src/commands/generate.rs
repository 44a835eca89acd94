//! `generate`: shell completions and man pages, from the command line's own definition.

use std::path::PathBuf;

use clap::{Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;

use crate::args::{Cli, GenerateArgs};
use crate::failure::{Failure, Result};
use crate::output::Output;

#[derive(Serialize)]
struct Report {
    folder: PathBuf,
    completions: usize,
    man_pages: usize,
}

/// Writes them, in place of those that are there.
pub fn run(args: &GenerateArgs, output: &Output) -> Result<()> {
    let (completions, man) = (args.dir.join("completions"), args.dir.join("man"));
    for folder in [&completions, &man] {
        std::fs::create_dir_all(folder).map_err(Failure::file("create", folder))?;
    }
    let shells = Shell::value_variants();
    let mut command = Cli::command();
    for shell in shells {
        clap_complete::generate_to(*shell, &mut command, "backup-cli", &completions)
            .map_err(Failure::file("write to", &completions))?;
    }
    clap_mangen::generate_to(without_help(Cli::command()), &man)
        .map_err(Failure::file("write to", &man))?;
    let man_pages = std::fs::read_dir(&man).map_err(Failure::file("list", &man))?.count();
    let report = Report { folder: args.dir.clone(), completions: shells.len(), man_pages };
    output.result(&report, || {
        format!("{} completions, {} man pages", report.completions, report.man_pages)
    });
    Ok(())
}

/// Without the verbs 'help', each of which would have a page for each of the others.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}
