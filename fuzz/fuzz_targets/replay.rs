//! Arbitrary statements, replayed as those of a log are: nothing outside of the one database comes of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_fuzz::{files, scratch};
use lockstep_proto::log::Mark;
use lockstep_proto::restore::batches::{CommittedBatch, OwnedStatement};
use lockstep_proto::restore::replay::{self, Replay};
use lockstep_proto::seal::Chain;
use lockstep_proto::version::DataVersion;

/// SQLite's steps that a run may take: a statement can compute for ever.
const STEPS: i32 = 200_000;

// Batches behind a byte 1, statements behind a byte 0; what begins with `t` is a transaction.
fuzz_target!(|text: &str| {
    let folder = scratch();
    let path = folder.path().join("restored.sqlite3");
    let (mut db, guard) = replay::open(&path).expect("opens");
    // Only a SQLite that counts its memory keeps to it: see `.ci/run`.
    db.execute_batch("PRAGMA hard_heap_limit = 67108864").expect("a limit");
    db.progress_handler(STEPS, Some(|| true)).expect("a handler");
    let db = db;
    let mut replay = Replay::new(&db, &guard);
    let mut failed = false;
    for (number, batch) in (1..).zip(text.split('\x01')) {
        let (transaction, statements) = match batch.strip_prefix('t') {
            Some(statements) => (true, statements),
            None => (false, batch),
        };
        let statements = statements.split('\0');
        let batch = CommittedBatch {
            at: Mark { seq: number, chain: Chain::default() },
            epoch: 1,
            data_version: DataVersion(number as u32),
            transaction,
            time: 0,
            session: number / 4,
            statements: statements.map(|sql| OwnedStatement::Text(sql.into())).collect(),
        };
        failed = replay.apply(&batch).is_err();
        if failed {
            break;
        }
    }
    failed |= replay.finish().is_err();
    drop(replay);
    for file in files(folder.path()) {
        assert_eq!(file, path, "another file");
    }
    guard.own();
    let attached = "SELECT count(*) FROM pragma_database_list WHERE name NOT IN ('main', 'temp')";
    // There is no journal to take a failed statement back by: of what it left nothing need be readable.
    let others = db.query_row(attached, [], |row| row.get::<_, i64>(0));
    assert!(matches!(others, Ok(0)) || failed && others.is_err(), "{others:?}");
    // There is no other way out of a database that keeps its settings.
    let mode = db.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
    assert!(mode.as_deref() == Ok("off") || failed && mode.is_err(), "{mode:?}");
});
