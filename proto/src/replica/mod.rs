//! The log at several destinations at once.

mod policy;

pub use policy::{Mode, Policy};
