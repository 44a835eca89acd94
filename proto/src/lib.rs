//! lockstep-proto
#![allow(missing_docs)]
pub mod batch;
pub mod capture;
pub mod config;
pub mod destination;
pub mod error;
pub mod fence;
pub mod hex;
pub mod layout;
pub mod log;
pub mod marker;
pub mod record;
pub mod restore;
pub mod seal;
pub mod segment;
pub mod session;
pub mod slots;
pub mod snapshot;
pub mod store;
pub mod verify;
pub mod version;
pub mod writer;
