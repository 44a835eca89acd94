//! Real servers to keep a backup on, each started by the test that uses it.
//!
//! `.ci/servers` installs them. Where one is not there, its test says so in one line and passes; with
//! `LOCKSTEP_REQUIRE_SERVERS` set it fails.
//!
//! - [`rgw`]: S3 as it is meant; [`moto`]: S3 in a second, in memory.
//! - [`memory`]: as much of S3 as a log needs, in this process, for a million objects.
//! - [`azurite`]: the blobs of Azure.
//! - [`nginx`], [`wsgidav`]: WebDAV.
//! - [`socks`]: a SOCKS5 proxy; [`tls`]: TLS before a server that has none.
//! - [`faulty`]: a proxy that fails by a plan; [`wire`]: what it passes on.
//! - [`server`]: what all have in common; [`daemon`]: their processes; [`find`]: where they are.
//! - [`http`], [`sign`]: as much of a client as makes a bucket.

pub mod azurite;
pub mod daemon;
pub mod faulty;
pub mod find;
pub mod http;
pub mod memory;
pub mod moto;
pub mod nginx;
pub mod rgw;
pub mod server;
pub mod sign;
pub mod socks;
pub mod tls;
pub mod wire;
pub mod wsgidav;

pub use faulty::{Fault, Proxy};
pub use memory::{Conditions, Memory};
pub use server::Server;
