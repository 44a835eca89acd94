//! The log at several destinations at once.

mod heal;
mod mirror;
mod policy;
mod standing;

pub use heal::{Fault, Heal, small_faults};
pub use mirror::{Mirror, Mirrored};
pub use policy::{Mode, Policy};
pub use standing::{Seen, Standing};
