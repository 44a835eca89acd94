//! How cost grows: what an append, the plugin's memory, opening, `status`, a restore and what is stored come to, by the
//! number of batches and by the size of the database.
//!
//! `cargo bench -p lockstep-benches --bench scale [-- history | database]`, both unless one is named:
//!
//! - `history`: a small database that many batches were written to, with automatic compaction. `LOCKSTEP_BATCHES`
//!   (1000,10000,100000; with `LOCKSTEP_LONG=1` up to 10000000) says at how many it is looked at.
//! - `database`: databases of `LOCKSTEP_MIB` (10,100; with `LOCKSTEP_LONG=1` up to 10240) with few batches behind their
//!   snapshot. Three times the largest lies in `TMPDIR`.
//!
//! `LOCKSTEP_PLOTS` names the folder for plots.

mod database;
mod history;
mod node;

fn main() {
    let named: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    let known = |name: &String| ["history", "database"].contains(&name.as_str());
    assert!(named.iter().all(known), "the parts are history, database");
    if wanted("history") {
        history::run();
    }
    if wanted("database") {
        database::run();
    }
}
