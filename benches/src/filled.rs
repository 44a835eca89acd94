//! A database of any size, in which each row fills a page.

use std::path::Path;

use fastrand::Rng;
use rusqlite::Connection;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes that a row has for itself.
const ROW: usize = 4000;

/// Makes it, at version 1. The first share `random` of each row's bytes does not compress, the others are all alike.
pub fn fill(path: &Path, rows: u64, random: f64, rng: &mut Rng) {
    let db = Connection::open(path).expect("SQLite opens");
    db.execute_batch(
        "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;
         CREATE TABLE vars (name VARCHAR(32) PRIMARY KEY, val VARCHAR(255), intval INTEGER, blobval BLOB);
         INSERT INTO vars VALUES ('data_version', NULL, 1, NULL);
         CREATE TABLE filled (id INTEGER PRIMARY KEY, changes INTEGER, bytes BLOB);
         BEGIN;",
    )
    .expect("tables are made");
    let mut insert = db.prepare("INSERT INTO filled VALUES (?, 0, ?)").expect("an insert");
    let mut bytes = vec![0; ROW];
    for row in 1..=rows {
        rng.fill(&mut bytes[..(ROW as f64 * random) as usize]);
        insert.execute((row as i64, &bytes)).expect("a row");
    }
    drop(insert);
    db.execute_batch("COMMIT").expect("commits");
}

/// The statement that changes a row, and so one page.
pub fn change_of(row: u64) -> String {
    format!("UPDATE filled SET changes = changes + 1 WHERE id = {row}")
}
