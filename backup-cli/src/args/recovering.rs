//! The verbs that get a database out of a log.

use std::path::PathBuf;

use clap::Args;

use super::{PlaceArgs, UnlockArgs};

/// How a log goes over to another directory.
#[derive(Args)]
pub struct SuccessionArgs {
    /// Shut out the node that writes this backup although it looks alive: it was heard of a short time ago and has
    /// not ended in order. Only where it is dead, or about to be stopped for good
    #[arg(long)]
    pub take_over: bool,
    /// Look there, too, for a newer state (once for each place; those that the log names are looked at anyway)
    #[arg(long, value_name = "URL")]
    pub also: Vec<String>,
}

/// `restore`.
#[derive(Args)]
#[command(allow_missing_positional = true)]
pub struct RestoreArgs {
    /// Where the backup is; with --plan it may be left out: then what the backup.lock in DEST names, if there is one
    #[arg(value_name = "URL", required_unless_present = "plan")]
    pub url: Option<String>,
    /// A new database file (*.sqlite3), or the node's network directory, which is made if need be
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// What opens it
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// Only look: do not shut out the node that writes this backup (no DEST of a node that will run)
    #[arg(long, conflicts_with = "take_over")]
    pub no_claim: bool,
    /// Who goes on
    #[command(flatten)]
    pub succession: SuccessionArgs,
    /// Go back to the state after the batch of this seq
    #[arg(long, value_name = "N", group = "point", requires = "accept_stale")]
    pub to_seq: Option<u64>,
    /// Go back to this data_version of lightningd's
    #[arg(long, value_name = "N", group = "point", requires = "accept_stale")]
    pub to_version: Option<u32>,
    /// Go back to the state at this time, as 2026-11-20T18:00:00Z
    #[arg(long, value_name = "TIME", group = "point", requires = "accept_stale")]
    pub to_time: Option<jiff::Timestamp>,
    /// Take an older state than the newest, or one that may be older because a place of the log does not answer:
    /// it can cost all channel funds if a node runs from it
    #[arg(long)]
    pub accept_stale: bool,
    /// Refuse a backup that ends before this seq: 'status' shows it, as long as the node is there
    #[arg(long, value_name = "N")]
    pub expect_seq: Option<u64>,
    /// Show what would be read, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Look at what there is (log, key, database, hsm_secret, emergency.recover, lightningd), and say what can be
    /// done with it, best first, with the commands; changes nothing
    #[arg(long, conflicts_with_all = ["dry_run", "take_over", "no_claim", "point"])]
    pub plan: bool,
}

/// `export`.
#[derive(Args)]
pub struct ExportArgs {
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The new file
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// What it holds [default: by the name of FILE]
    #[arg(long, value_enum)]
    pub format: Option<ExportFormat>,
}

/// What `export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// A SQLite database: *.sqlite3, *.sqlite, *.db
    Sqlite,
    /// SQL text, for 'sqlite3 NEW < FILE': *.sql
    Sql,
    /// A backup of the Python plugin 'backup': *.bkp, *.dbak
    Python,
}

/// `follow`.
#[derive(Args)]
pub struct FollowArgs {
    /// Where the backup is
    #[arg(value_name = "URL")]
    pub url: String,
    /// What will be the node's network directory on this machine; it is made if need be
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// What opens it
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// Follow that place, too, wherever it is newer or the other is away (once for each; those that the log names are
    /// followed anyway)
    #[arg(long, value_name = "URL")]
    pub also: Vec<String>,
    /// Catch up once, and end
    #[arg(long)]
    pub once: bool,
    /// Look for new records each so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub interval: u64,
}

/// `promote`.
#[derive(Args)]
pub struct PromoteArgs {
    /// Where the backup is
    #[arg(value_name = "URL")]
    pub url: String,
    /// What 'follow' was given
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// What opens it [default: backup.key in DIR]
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// Who goes on
    #[command(flatten)]
    pub succession: SuccessionArgs,
    /// Go on although a place of the log does not answer, which may have a newer state: it can cost all channel
    /// funds
    #[arg(long)]
    pub accept_stale: bool,
}

/// `drill`.
#[derive(Args)]
pub struct DrillArgs {
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// From this destination only (several times for several) [default: from each]
    #[arg(long, value_name = "NAME", requires = "lightning_dir")]
    pub destination: Vec<String>,
    /// Where the temporary folder is made, which takes as much as the database [default: where the system
    /// keeps temporary files]
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
}
