//! The log at several destinations at once.

mod mirror;
mod policy;

pub use mirror::{Mirror, Mirrored};
pub use policy::{Mode, Policy};
