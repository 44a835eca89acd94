//! What a Core Lightning node's directory is, seen from outside.
//!
//! The command line and the plugin both stand before a directory that belongs
//! to lightningd and have to answer the same questions: which directory is it,
//! does a node run in it, which secret does the node have, how far is its
//! database. The answers are here, each with the place in lightningd's source
//! that it comes from (v26.06.6, unchanged since v25.12 where not said
//! otherwise). Nothing here knows the replica log or a terminal.
//!
//! | module | answers |
//! |---|---|
//! | [`secret`] | the secret itself: from words or bytes, what is derived from it |
//! | [`hsm_secret`] | the file that holds it, in its four forms: read, unlock, write |
//! | [`dir`] | which directory is the network directory, and its files' names |
//! | [`running`] | whether a lightningd runs there, and how one can tell |
//! | [`config`] | lightningd's `config` files, read as lightningd reads them |
//! | [`companion`] | which files are worth keeping beside the database |
//! | [`wallet`] | `wallet=`, and `data_version` and node id in the database |
//! | [`memory`] | no core dumps of what holds keys |
//! | [`content`] | whether two databases hold the same: a digest, a comparison |
//! | [`dump`] | a database as SQL text |
//!
//! Errors are one enum a module. Each displays what failed in lowercase, with
//! the file and what was expected and found, and never a secret, a word of a
//! mnemonic or a value of the database; where there is advice, `hint()` gives it.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

/// What to do where the system fails at a file.
const LOOK_AT_THE_FILE: &str =
    "look at the file, its permissions and the disk that it is on, then try again.";

pub mod companion;
pub mod config;
pub mod content;
pub mod dir;
pub mod dump;
pub mod hsm_secret;
pub mod memory;
pub mod running;
pub mod secret;
pub mod wallet;

pub use companion::{companion_name, companion_names};
pub use dir::{DirError, LightningDir};
pub use hsm_secret::{HsmSecretFile, encode_words, write_hsm_secret};
pub use running::{Evidence, RunningNode};
pub use secret::{NodeSecret, SecretError};
pub use wallet::{Access, ConfiguredWallet, WalletError};
