//! What lightningd says to a plugin: JSON-RPC messages, each ended by a blank line. No input or output.
//!
//! | module | idea |
//! |---|---|
//! | [`framing`] | bytes as they come, and the messages in them |
//! | [`message`] | one message, and the parameters of `db_write` |

pub mod framing;
pub mod message;

pub use framing::{END, Framing, TooLong};
pub use message::{DbWrite, Message};
