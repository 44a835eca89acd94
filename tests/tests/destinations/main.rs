//! The command line for a node with several destinations.

mod bucket;
mod change;
mod healing;
mod hung;
mod keys;
mod several;
mod two;
