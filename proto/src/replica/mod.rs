//! The log at several destinations at once.

mod distance;
mod heal;
mod mirror;
mod policy;

pub use distance::{Distance, Seen};
pub use heal::{Fault, Heal, small_faults};
pub use mirror::{Mirror, Mirrored};
pub use policy::{Mode, Policy};
