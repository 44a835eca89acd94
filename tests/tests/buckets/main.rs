//! The whole way, on real servers: plugin → log → restore.

mod bad_input;
mod conformance;
mod end_to_end;
mod faults;
mod many;
mod merging;
mod proxied;
mod races;
mod several;
mod sleepers;
mod takeover;
mod unreliable;
