//! The command line for a node with several destinations.

mod bucket;
mod change;
mod healing;
mod keys;
mod several;
mod two;
