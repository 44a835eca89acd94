//! What compaction costs the node, what it takes itself, and what it is good for.
//!
//! `cargo bench -p lockstep-benches --bench compaction [-- PART …]`, all parts unless some are named:
//!
//! - `latency`: the round trip of a `db_write` while the plugin compacts a large database, against the same while
//!   it does not, in turn in one run; and the plugin's memory.
//! - `upload`: what a compaction publishes and how long it takes, by the size of the database and the share of its
//!   pages that changed.
//! - `restore`: a large database and a log behind it, against `cp` and SQLite's check of the same file.
//! - `growth`: what the store takes after many batches, against the database.
//!
//! Sizes by environment variables: `LOCKSTEP_MIB`, of the database, one or several with commas (256);
//! `LOCKSTEP_ROUNDS`, compactions of
//! `latency` (4); `LOCKSTEP_TAIL`, batches behind the snapshot (5000); `LOCKSTEP_BATCHES`, of `growth` (20000), and
//! `LOCKSTEP_ROWS`, that a table of it keeps at most (0: all). Everything lies in `TMPDIR`: three times the database, four times for `restore`.

mod growth;
mod latency;
mod node;
mod restore;
mod upload;

use lockstep_benches::sizes;

/// One part, for a size of the database in MiB.
type Part = fn(u64);

const PARTS: [(&str, Part); 3] =
    [("latency", latency::latency), ("upload", upload::upload), ("restore", restore::restore)];

fn main() {
    let named: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    let known = |name: &String| name == "growth" || PARTS.iter().any(|(known, _)| known == name);
    assert!(named.iter().all(known), "the parts are latency, upload, restore, growth");
    for (name, part) in PARTS {
        if wanted(name) {
            sizes("LOCKSTEP_MIB", &[256]).into_iter().for_each(part);
        }
    }
    if wanted("growth") {
        sizes("LOCKSTEP_BATCHES", &[20_000]).into_iter().for_each(growth::growth);
    }
}
