//! The way of lightningd's `wallet=sqlite3://main:replica`: each statement is executed on a second database, too, and
//! each transaction is committed there, with SQLite's usual settings. Here in this process, as it is in lightningd's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockstep_benches::cpu_of_this_thread;
use lockstep_benches::process::{self, Ran};
use lockstep_tests::Batch;
use rusqlite::Connection;

use crate::Peer;

/// The second database.
pub struct Replica {
    path: PathBuf,
    db: Connection,
    cpu: Duration,
}

impl Replica {
    /// Opens it as lightningd does.
    pub fn new(path: PathBuf) -> Self {
        let db = Connection::open(&path).expect("SQLite opens");
        db.execute_batch("PRAGMA foreign_keys = ON").expect("a setting");
        Self { path, db, cpu: Duration::ZERO }
    }
}

impl Peer for Replica {
    fn name(&self) -> String {
        "`main:replica`: a second SQLite".into()
    }

    fn write(&mut self, call: &Batch, _message: &[u8]) {
        let cpu = cpu_of_this_thread();
        let transaction = !call.is_pragma_only();
        let execute = |sql: &str| self.db.execute_batch(sql).expect("executes");
        if transaction {
            execute("BEGIN");
        }
        call.writes.iter().for_each(|sql| execute(sql));
        if transaction {
            execute("COMMIT");
        }
        self.cpu += cpu_of_this_thread().saturating_sub(cpu);
    }

    fn cpu(&self) -> Duration {
        self.cpu
    }

    fn stored(&self) -> u64 {
        fs::metadata(&self.path).expect("the replica").len()
    }

    /// It is the database: it is copied.
    fn restore(&self, to: &Path) -> Option<Ran> {
        let mut copy = std::process::Command::new("cp");
        let mut ran = process::run(copy.arg(&self.path).arg(to));
        let began = std::time::Instant::now();
        File::open(to).and_then(|file| file.sync_all()).expect("it syncs");
        ran.seconds += began.elapsed().as_secs_f64();
        Some(ran)
    }

    fn compact(&mut self, _next: &mut dyn FnMut() -> Vec<u8>) -> Option<(Duration, Duration)> {
        None
    }
}
