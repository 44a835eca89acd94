//! Keys and secrets.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::PlaceArgs;

/// `key`.
#[derive(Args)]
pub struct KeyArgs {
    /// What to do
    #[command(subcommand)]
    pub command: KeyCommand,
}

/// `key …`.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// List the slots
    List(PlaceArgs),
    /// Add a slot
    Add(KeyAddArgs),
    /// Remove a slot
    Remove(KeyRemoveArgs),
    /// Write a lost backup.key again, from the node's secret or another slot
    Write(PlaceArgs),
}

/// `key add`.
#[derive(Args)]
pub struct KeyAddArgs {
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What the new slot opens with
    #[command(flatten)]
    pub lock: LockArgs,
}

/// What a new slot opens with.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct LockArgs {
    /// The node's hsm_secret
    #[arg(long, value_name = "FILE")]
    pub add_hsm_secret: Option<PathBuf>,
    /// The passphrase in the first line of FILE
    #[arg(long, value_name = "FILE")]
    pub add_passphrase_file: Option<PathBuf>,
    /// The identity of this age recipient (age1…)
    #[arg(long, value_name = "AGE")]
    pub add_recipient: Option<String>,
}

/// `key remove`.
#[derive(Args)]
pub struct KeyRemoveArgs {
    /// The slot's name, as 'key list' shows it
    #[arg(value_name = "SLOT")]
    pub slot: String,
    /// Which backup
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Remove it even where no slot is left
    #[arg(long)]
    pub last: bool,
}

/// `secret`.
#[derive(Args)]
pub struct SecretArgs {
    /// What to do
    #[command(subcommand)]
    pub command: SecretCommand,
}

/// `secret …`.
#[derive(Subcommand)]
pub enum SecretCommand {
    /// Show the words, or the digits where it has none, of a secret
    Show(SecretFileArgs),
    /// Compare what is on paper (asked for, not echoed; or the first line of stdin) with the secret
    Check(SecretFileArgs),
}

/// Which secret is meant.
#[derive(Args)]
pub struct SecretFileArgs {
    /// The node whose hsm_secret is meant
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "hsm_secret",
        required_unless_present = "hsm_secret"
    )]
    pub lightning_dir: Option<PathBuf>,
    /// The file itself
    #[arg(long, value_name = "FILE")]
    pub hsm_secret: Option<PathBuf>,
    /// First line of FILE is the passphrase of the hsm_secret or of its words
    #[arg(long, value_name = "FILE")]
    pub secret_passphrase_file: Option<PathBuf>,
}
