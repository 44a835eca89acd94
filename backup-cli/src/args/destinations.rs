//! `destination`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `destination`.
#[derive(Args)]
pub struct DestinationArgs {
    /// What to do
    #[command(subcommand)]
    pub command: DestinationCommand,
}

/// `destination …`.
#[derive(Subcommand)]
pub enum DestinationCommand {
    /// List them
    List(NodeArgs),
    /// Bring a new place up, and write there, too; a running node does so from its next transaction on
    Add(DestinationAddArgs),
    /// Write to one no more, a running node from its next transaction on; what is there stays
    Remove(DestinationRemoveArgs),
    /// Measure how long a place takes, and whether it keeps a second writer out
    Test(DestinationTestArgs),
}

/// Whose backup is meant.
#[derive(Args, Clone)]
pub struct NodeArgs {
    /// The node whose backup is meant
    #[arg(long, value_name = "DIR")]
    pub lightning_dir: PathBuf,
}

/// `destination add`.
#[derive(Args)]
pub struct DestinationAddArgs {
    /// The new place: empty, or where this backup was before
    #[arg(value_name = "URL")]
    pub url: String,
    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
    /// How messages name it [default: the next of primary, second, third, …]
    #[arg(long)]
    pub name: Option<String>,
    /// No transaction waits for it
    #[arg(long = "async")]
    pub r#async: bool,
    /// From now on a transaction waits for K of the destinations that are not async
    #[arg(long, value_name = "K")]
    pub quorum: Option<u32>,
}

/// `destination remove`.
#[derive(Args)]
pub struct DestinationRemoveArgs {
    /// Its name, as 'destination list' shows it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Which node
    #[command(flatten)]
    pub node: NodeArgs,
    /// From now on a transaction waits for K of the destinations that are not async
    #[arg(long, value_name = "K")]
    pub quorum: Option<u32>,
}

/// `destination test`.
#[derive(Args)]
pub struct DestinationTestArgs {
    /// A destination of the node, or any place
    #[arg(value_name = "NAME|URL")]
    pub place: String,
    /// The node, for a name, and for its credentials
    #[arg(long, value_name = "DIR")]
    pub lightning_dir: Option<PathBuf>,
    /// Appends to measure
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub appends: u32,
}
