//! lightningd's side of the plugin protocol, with a real SQLite database.
//!
//! A [`Node`] starts the plugin's binary as lightningd does, asks it before
//! each commit, and can be made to die at every moment that matters. It never
//! trusts the plugin: its own database is the oracle, and its [`Ledger`] says
//! what a backup owes.
//!
//! ```no_run
//! use lockstep_tests::sim::{Crash, CrashPoint, Node, NodeConfig};
//! use lockstep_tests::workload::Workload;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut node = Node::launch(NodeConfig::new("cln-lockstep", "lightning/regtest"))?;
//! let mut workload = Workload::seeded(1);
//! for step in workload.by_ref().take(10) {
//!     assert!(node.write(&step)?.is_committed()); // before init: migrations
//! }
//! node.init()?;
//! let step = workload.propose();
//! let report = node.crash(&step, &Crash::both(CrashPoint::AfterAck))?;
//! if !report.committed {
//!     workload.abandon();
//! }
//! node.start()?; // the same directory, the next session
//! # Ok(())
//! # }
//! ```

mod config;
mod crash;
mod database;
mod error;
mod ledger;
mod node;
mod process;
mod restored;
mod rpc_server;
mod wire;

pub use config::NodeConfig;
pub use crash::{Crash, CrashPoint, CrashReport, Sent, Victim};
pub use database::Database;
pub use error::SimError;
pub use ledger::{Attempt, Fate, Ledger};
pub use node::{Answer, Node, Outcome};
pub use process::{LogLine, PluginProcess};
pub use restored::Standing;
pub use rpc_server::RpcServer;
pub use wire::{Manifest, Reply};
