//! Real servers to keep a backup on, each started by the test that uses it.
//!
//! `.ci/servers` installs them. Where one is not there, its test says so in one line and passes; with
//! `LOCKSTEP_REQUIRE_SERVERS` set it fails.
//!
//! - [`moto`]: S3, in a second, in memory.
//! - [`server`]: what all have in common; [`daemon`]: their processes; [`find`]: where they are.
//! - [`http`], [`sign`]: as much of a client as makes a bucket.

pub mod daemon;
pub mod find;
pub mod http;
pub mod moto;
pub mod server;
pub mod sign;

pub use server::Server;
