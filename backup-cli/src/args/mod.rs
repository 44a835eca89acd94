//! The command line.

mod destinations;
mod keys;
mod recovering;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lockstep_proto::retention::Span;

pub use self::destinations::{
    DestinationAddArgs, DestinationArgs, DestinationCommand, DestinationRemoveArgs,
    DestinationTestArgs, NodeArgs,
};
pub use self::keys::{KeyAddArgs, KeyArgs, KeyCommand, KeyRemoveArgs, SecretArgs, SecretCommand};
pub use self::recovering::{
    DrillArgs, ExportArgs, ExportFormat, FollowArgs, PromoteArgs, RestoreArgs,
};

/// The backup that a Lightning node runner trusts with money.
#[derive(Parser)]
#[command(name = "backup-cli", version, about, max_term_width = 100)]
pub struct Cli {
    /// Print results and errors as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Subcommand)]
pub enum Command {
    /// Make a new backup of a node, fresh or existing (lightningd stopped)
    Init(InitArgs),
    /// Make a new backup of a node from that of the Python plugin 'backup' (lightningd stopped)
    ///
    /// OLD is only read. Where DIR holds the node's database at least as new as OLD, the new backup begins with
    /// that database, and OLD is replayed to say whether it agrees. Where DIR holds no database, the one that OLD
    /// leads to is the beginning; '--write-database' or 'backup-cli restore' puts it in place. A database that is
    /// older than OLD is refused: starting it can cost all channel funds.
    ///
    /// A change that the node never committed is in OLD together with its replacement: it is found and left
    /// out. The Python plugin's backup.lock is kept as backup.lock.python.
    Import(ImportArgs),
    /// Get the database back
    Restore(RestoreArgs),
    /// Show how the backup is
    Status(StatusArgs),
    /// Read everything that is stored at all destinations, and prove it
    Verify(VerifyArgs),
    /// Make a snapshot of what the log came to, so that a restore replays little
    ///
    /// It costs what has changed since the last one, and no running node waits for it. The plugin does it by
    /// itself; this is for a node whose plugin has it turned off, and for another machine that sees the
    /// backup.
    Compact(CompactArgs),
    /// Remove snapshots, and the log between them, that are older than what is to be kept
    ///
    /// Without any --keep-…, what 'retention' in the node's backup.lock says, or else the last 2, all within
    /// 7 days, and 30 daily. What leads to the newest state is always kept.
    Prune(PruneArgs),
    /// List generations, segments and snapshots
    List(PlaceArgs),
    /// List the files that are kept beside the database, or get one
    Files(FilesArgs),
    /// List, add and remove the ways to open the backup
    Key(KeyArgs),
    /// Show the node's secret for writing on paper, or check what is written there
    Secret(SecretArgs),
    /// List, add, remove and test the places that a node's backup is written to
    Destination(DestinationArgs),
    /// Write the newest state to a file that other programs read: leaving is as easy as coming
    ///
    /// Nobody is shut out. Where a node goes on without this backup, stop it before.
    Export(ExportArgs),
    /// Keep a copy of the database on this machine up to date, to promote it when the node dies
    ///
    /// The copy is in backup.standby in DIR, under a name that lightningd would not start from, and nothing else
    /// in DIR makes a node of it. Goes on until it is ended; started again, it goes on where it was. backup.key is
    /// written to DIR, so that neither that nor 'promote' needs another key.
    Follow(FollowArgs),
    /// Make a node of what 'follow' has kept in DIR: shut the old one out, replay the rest, prove it
    Promote(PromoteArgs),
    /// Rehearse a restore from each destination, in a temporary folder, and say how long it took
    ///
    /// It is done as 'restore' would do it, with every check, up to the newest state, and compared with the
    /// node's database where lightningd is stopped, or else with what was last proved. Nobody is shut out, the
    /// destinations are only read, and the folder is removed, also on an interrupt.
    ///
    /// The key is the one that would be at hand: what the options choose, or else the hsm_secret in DIR. What
    /// came of it is kept in backup.drill in DIR, and 'backup-cli status' shows it.
    Drill(DrillArgs),
    /// Look at the configuration and what is around it, and say what to do about each thing that is wrong
    ///
    /// Works beside a running node, which is asked by its RPC socket, and with a stopped one. Exit code 0: nothing
    /// to do; 3: warnings; 1: something is wrong that can cost the backup or the node.
    Check(CheckArgs),
    /// Show it all, without a node, in a temporary folder
    Demo(DemoArgs),
    /// Write shell completions and man pages, for whoever makes a package
    #[command(hide = true)]
    Generate(GenerateArgs),
}

/// `init`.
#[derive(Args)]
pub struct InitArgs {
    /// lightningd's network directory (or the directory above it)
    #[arg(long, value_name = "DIR")]
    pub lightning_dir: PathBuf,
    /// Where the backup goes: an empty or new folder, as a path or file:// URL, or a bucket; several for a copy at
    /// each, all of which a transaction waits for
    #[arg(value_name = "URL", required = true)]
    pub url: Vec<String>,
    /// One more place, which follows as fast as it can: no transaction waits for it
    #[arg(long = "async", value_name = "URL")]
    pub r#async: Vec<String>,
    /// A transaction waits for K of the destinations that are not async, more than half of them [default: all]
    #[arg(long, value_name = "K")]
    pub quorum: Option<u32>,
    /// How messages name a destination, in the order of the URLs [default: primary, second, third, …]
    #[arg(long, value_name = "NAME")]
    pub name: Vec<String>,
    /// The database, where it is not lightningd.sqlite3 in DIR
    #[arg(long, value_name = "PATH")]
    pub wallet: Option<PathBuf>,
    /// Also open with the passphrase in the first line of FILE
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Also open with the identity of this age recipient (age1…)
    #[arg(long, value_name = "AGE")]
    pub recipient: Vec<String>,
    /// First line of FILE is the passphrase of an encrypted hsm_secret
    #[arg(long, value_name = "FILE")]
    pub secret_passphrase_file: Option<PathBuf>,
    /// Also keep this file, or the files of this folder, beside the database; config, emergency.recover and
    /// certificates (*.pem) are kept anyway
    #[arg(long, value_name = "PATH")]
    pub include: Vec<PathBuf>,
    /// Also keep hsm_secret: whoever opens the backup, in whatever way, then has the node's keys
    #[arg(long)]
    pub include_secret: bool,
}

/// `import`.
#[derive(Args)]
pub struct ImportArgs {
    /// The Python plugin's backup: a path or file:// URL
    #[arg(value_name = "OLD")]
    pub old: String,
    /// The new backup
    #[command(flatten)]
    pub init: InitArgs,
    /// Also put OLD's database into DIR, which holds none
    #[arg(long)]
    pub write_database: bool,
    /// Take OLD for the node's state although changes are lost or damaged: can cost all channel funds
    #[arg(long)]
    pub accept_stale: bool,
    /// Replay and compare, say what would be done, and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// Which log is meant.
#[derive(Args, Clone)]
pub struct PlaceArgs {
    /// The node whose backup is meant
    #[arg(long, value_name = "DIR", conflicts_with = "url", required_unless_present = "url")]
    pub lightning_dir: Option<PathBuf>,
    /// Where the backup is
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// What opens it
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

/// `status`.
#[derive(Args)]
pub struct StatusArgs {
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Show it again every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,
}

/// `verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Replace what is damaged or missing at one destination of the node from another that has it intact
    #[arg(long, requires = "lightning_dir")]
    pub heal: bool,
}

/// What opens a backup.
#[derive(Args, Clone, Default)]
pub struct UnlockArgs {
    /// Open with the node's hsm_secret
    #[arg(long, value_name = "FILE", group = "key")]
    pub hsm_secret: Option<PathBuf>,
    /// Open with the node's words (asked for, not echoed; or the first line of stdin)
    #[arg(long, group = "key")]
    pub words: bool,
    /// Open with a backup.key
    #[arg(long, value_name = "FILE", group = "key", env = "BACKUP_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Open with the passphrase in the first line of FILE
    #[arg(long, value_name = "FILE", group = "key")]
    pub passphrase_file: Option<PathBuf>,
    /// Open with an age identity file
    #[arg(long, value_name = "FILE", group = "key")]
    pub identity: Option<PathBuf>,
    /// First line of FILE is the passphrase of the hsm_secret or of the words
    #[arg(long, value_name = "FILE")]
    pub secret_passphrase_file: Option<PathBuf>,
}

/// `check`.
#[derive(Args)]
pub struct CheckArgs {
    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
    /// What else is to be proved to open the backup, besides the node's secret
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// Write nothing to the destinations: how long they take, and what their clocks say, is then not known
    #[arg(long)]
    pub read_only: bool,
}

/// `compact`.
#[derive(Args)]
pub struct CompactArgs {
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Where the copy is kept that is replayed into: as large as the database, and faster the next time if it
    /// is kept [default: backup.shadow in DIR, else a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub shadow: Option<PathBuf>,
}

/// `prune`.
#[derive(Args)]
pub struct PruneArgs {
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Keep the newest N
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_last: u32,
    /// Keep every moment within this time, as 7d or 48h
    #[arg(long, value_name = "SPAN")]
    pub keep_within: Option<Span>,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_hourly: u32,
    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_daily: u32,
    /// Keep the newest of each of the last N weeks that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_weekly: u32,
    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_monthly: u32,
    /// Remove, too, what is kept because the database was not what its backup says: look at it first
    #[arg(long)]
    pub release_hold: bool,
    /// Show what would go and what stays, and stop
    #[arg(long)]
    pub dry_run: bool,
}

/// `files`.
#[derive(Args)]
pub struct FilesArgs {
    /// What to do
    #[command(subcommand)]
    pub command: FilesCommand,
}

/// `files …`.
#[derive(Subcommand)]
pub enum FilesCommand {
    /// List them
    List(PlaceArgs),
    /// Get one, on stdout or as a new file
    Get(FilesGetArgs),
}

/// `files get`.
#[derive(Args)]
pub struct FilesGetArgs {
    /// Its name, as 'files list' shows it
    #[arg(value_name = "NAME")]
    pub file: String,
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Where to write it, a new file; without it, it goes to stdout
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// `generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// An existing folder: 'completions' and 'man' are made in it
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// `demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// The plugin, where it is not beside this program
    #[arg(long, value_name = "PATH")]
    pub plugin: Option<PathBuf>,
    /// Transactions to write
    #[arg(long, default_value_t = 2000)]
    pub batches: u32,
    /// Keep the temporary folder
    #[arg(long)]
    pub keep: bool,
}
