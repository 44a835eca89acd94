//! Reading what is stored: what is whole, what is missing, and what is not what it says.

mod liveness;
#[path = "../machine/mod.rs"]
mod machine;
#[path = "../sim/mod.rs"]
mod sim;
mod snapshots;
mod unreadable;
mod verify;
