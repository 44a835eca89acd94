//! The whole way, on real servers: plugin → log → restore.

mod conformance;
mod end_to_end;
mod faults;
mod merging;
