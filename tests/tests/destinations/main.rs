//! The command line for a node with several destinations.

mod bucket;
mod change;
mod healing;
mod hung;
mod keys;
mod reload;
mod several;
mod two;
