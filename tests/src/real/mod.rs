//! Real daemons on regtest: a `bitcoind`, `lightningd`s with the plugin, and what an operator does to
//! them.
//!
//! `lightningd`, `lightning-cli`, `bitcoind` and `bitcoin-cli` come from `PATH`; `LOCKSTEP_LIGHTNINGD_DIR`
//! names a directory with another `lightningd`, `LOCKSTEP_OLD_LIGHTNINGD_DIR` one of an older release for
//! upgrades. Where they are not there, tests say so in one line and pass.
//!
//! - [`daemons`]: which programs there are, and which mode is asked for.
//! - [`bitcoind`], [`lightningd`]: one daemon each, in a directory of its own, on free ports of 127.0.0.1.
//! - [`channel`]: two nodes and what goes on between them.
//! - [`backup`]: `backup-cli` for such a node, and comparing what it gives back.
//! - [`mount`]: destinations that fill up, hang and go away.
//! - [`recorder`]: a second plugin, which notes the call that is open.
//! - [`wait`]: waiting, never for ever.

pub mod backup;
pub mod bitcoind;
pub mod channel;
pub mod daemons;
pub mod lightningd;
pub mod mount;
pub mod process;
pub mod recorder;
pub mod wait;

pub use backup::Backup;
pub use bitcoind::Bitcoind;
pub use channel::Pair;
pub use daemons::{Daemons, long};
pub use lightningd::{Node, NodeOptions};
