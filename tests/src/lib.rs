//! End-to-end tests of the real `cln-lockstep` and `backup-cli` binaries.
//!
//! Nothing here links the programs under test: they are driven as lightningd
//! and an operator drive them, over stdio and command lines.
//!
//! - [`sim`]: lightningd's side of the plugin protocol, with a real SQLite
//!   database, crash points, and an account of what was acknowledged.
//! - [`workload`]: what the node writes: generated from a seed, or recorded.
//! - [`oracle`]: whether two databases hold the same schema and rows.
//! - [`backed`]: a node together with its backup, as the real programs make it.
//! - [`servers`]: real servers to keep a backup on, and a proxy that fails as they do.
//! - [`machine`]: a machine with a kernel of its own, for NFS and CIFS.
//! - [`strace`]: system calls that fail.
//! - [`disk`]: disks that fill up, and whose power is cut.
//! - [`binaries`]: the programs under test, and directories to run them in.

pub mod backed;
pub mod binaries;
pub mod disk;
pub mod machine;
pub mod oracle;
pub mod real;
pub mod servers;
pub mod sim;
pub mod step;
pub mod strace;
pub mod testdir;
pub mod workload;

pub use step::{Batch, Step};
