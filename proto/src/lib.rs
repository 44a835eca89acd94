//! The replica log of Lockstep: what is stored, how it gets there, and how it becomes a database again.
//!
//! Knows neither lightningd, nor the environment, nor a terminal. Data flows one way and back:
//!
//! ```text
//! write batch → record → sealed bytes → store          store → sealed bytes → record → batch → SQLite
//!    batch      record    seal, segment  store          log, restore::batches, restore::replay
//! ```
//!
//! | module | idea |
//! |---|---|
//! | [`version`] | of the format, and lightningd's `data_version` |
//! | [`batch`] | the statements of one `db_write` as bytes |
//! | [`record`] | what one frame of a segment holds |
//! | [`seal`] | keys, headers, frames, the hash chain |
//! | [`segment`] | consecutive records as bytes; no I/O |
//! | [`layout`] | object names |
//! | [`store`] | the only I/O besides SQLite: a folder, a bucket |
//! | [`marker`], [`slots`], [`fence`] | which store, who opens it, who writes it |
//! | [`sealed`] | small sealed objects: claims, heartbeats, companion files |
//! | [`companion`] | files that belong to a node beside its database |
//! | [`heartbeat`], [`liveness`], [`process`] | whether the last writer still runs, as far as one can know |
//! | [`session`] | what a call's version means |
//! | [`writer`] | one writer of one log |
//! | [`replica`] | the log at several destinations at once, and when a record is acknowledged |
//! | [`log`] | reading it, in order, proved |
//! | [`snapshot`], [`capture`] | pages at a position, and where they come from |
//! | [`shadow`] | compaction: a database replayed beside the node, and snapshots of what changed in it |
//! | [`retention`], [`prune`] | which points in time stay, and which segments they need; removing the others |
//! | [`hold`] | what an alarm keeps |
//! | [`tail`] | how much log there is behind the newest snapshot, and what that means for a restore |
//! | [`restore`], [`verify`] | a database out of it, or the proof that there is one |
//! | [`drill`] | what became of the last rehearsal of a restore |
//! | [`witness`] | what a node's directory knows of its log, whatever a destination says |
//! | [`measure`] | how long a place takes for a record |
//! | [`jitter`] | pauses that do not end all at once |
//! | [`threads`] | threads that work for the one that starts them |
//! | [`destination`], [`config`] | where logs are, as URLs and in `backup.lock` |
//! | [`error`] | what can go wrong, by what to do about it |
//!
//! The bytes are specified in `docs/format.md`, the reasons in `docs/design.md`.

pub mod batch;
pub mod capture;
pub mod companion;
pub mod config;
pub mod destination;
pub mod drill;
pub mod error;
pub mod fence;
pub mod heartbeat;
pub mod hex;
pub mod hold;
mod jitter;
pub mod layout;
pub mod liveness;
pub mod log;
pub mod marker;
pub mod measure;
pub mod process;
pub mod prune;
pub mod record;
pub mod replica;
pub mod restore;
pub mod retention;
pub mod seal;
pub mod sealed;
pub mod segment;
pub mod session;
pub mod shadow;
pub mod slots;
pub mod snapshot;
pub mod store;
pub mod tail;
mod threads;
pub mod verify;
pub mod version;
pub mod witness;
pub mod writer;
