//! The shadow: from one run to the next, as the proof of what was replayed, and as the standby.

#[path = "../machine/mod.rs"]
mod machine;
mod proof;
mod runs;
#[path = "../sim/mod.rs"]
mod sim;
mod standby;
