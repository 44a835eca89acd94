//! What a restore from a log without snapshots costs: statements and bytes a second, against what SQLite
//! itself takes for the same statements, prepared and bound on one connection, and as text.

use std::process::Command;
use std::time::Instant;

use lockstep_benches::{Plugin, calls, message, sql_bytes};
use lockstep_proto::batch::shape::{Literal, Shape, Values, split};
use lockstep_tests::Batch;
use lockstep_tests::binaries;
use lockstep_tests::testdir::TestDir;
use rusqlite::Connection;

fn main() {
    let (plugin, cli) = (binaries::plugin(), binaries::cli());
    let dir = TestDir::new();
    let node = dir.network_dir();
    let (store, secret) = (dir.path("store"), dir.write_hsm_secret(7));
    let init =
        Command::new(&cli).arg("init").arg("--lightning-dir").arg(&node).arg(&store).output();
    assert!(init.is_ok_and(|done| done.status.success()), "init failed");
    let (input, calls) = calls(28_150);
    let mut plugin = Plugin::start(&plugin, &node).expect("the plugin starts");
    for (index, call) in calls.iter().enumerate() {
        plugin.call(&message(index, call)).expect("the plugin acknowledges");
    }
    plugin.stop();
    let statements: usize = calls.iter().map(|call| call.writes.len()).sum();
    let bytes: usize = calls.iter().map(sql_bytes).sum();
    println!("\n{input}, {statements} statements, {} MB of SQL", bytes / 1_000_000);
    println!("| | s | statements/s | MB of SQL/s |\n|---|---|---|---|");
    let row = |name: &str, seconds: f64| {
        let (per_s, mb) = (statements as f64 / seconds, bytes as f64 / 1e6 / seconds);
        println!("| {name} | {seconds:.2} | {per_s:.0} | {mb:.0} |");
    };
    for round in 1..=3 {
        let began = Instant::now();
        let dest = dir.path(format!("restored-{round}.sqlite3"));
        let done = Command::new(&cli)
            .args(["restore", "--no-claim", "--hsm-secret"])
            .arg(&secret)
            .arg(&store)
            .arg(&dest)
            .output()
            .expect("backup-cli runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        row("backup-cli restore, checks and sync included", began.elapsed().as_secs_f64());
        row("SQLite, prepared and bound", sqlite_bound(&calls));
        row("SQLite, as text", sqlite_text(&calls));
    }
}

fn open(calls: &[Batch]) -> Connection {
    let db = Connection::open_in_memory().expect("SQLite opens");
    db.set_prepared_statement_cache_capacity(4096);
    assert!(!calls.is_empty());
    db
}

/// One transaction for all, ended for each settings call.
fn run(db: &Connection, calls: &[Batch], mut execute: impl FnMut(&str)) -> f64 {
    let began = Instant::now();
    db.execute_batch("PRAGMA foreign_keys = ON; BEGIN").expect("begins");
    for call in calls {
        let settings = call.is_pragma_only();
        if settings {
            db.execute_batch("COMMIT").expect("commits");
        }
        call.writes.iter().for_each(|sql| execute(sql));
        if settings {
            db.execute_batch("BEGIN").expect("begins");
        }
    }
    db.execute_batch("COMMIT").expect("commits");
    began.elapsed().as_secs_f64()
}

fn sqlite_text(calls: &[Batch]) -> f64 {
    let db = open(calls);
    run(&db, calls, |sql| db.execute_batch(sql).expect("executes"))
}

/// Shapes and values are split beforehand: only SQLite's part is timed, and the lookup of the statement.
fn sqlite_bound(calls: &[Batch]) -> f64 {
    let db = open(calls);
    type Split<'a> = (Option<(String, Shape, Values)>, &'a str);
    let parts: Vec<Split<'_>> = calls
        .iter()
        .flat_map(|call| &call.writes)
        .map(|sql| {
            let (mut bytes, mut values) = (Vec::new(), Values::default());
            let parts = split(sql, &mut bytes, &mut values)
                .then(|| Shape::new(&bytes))
                .flatten()
                .and_then(|shape| Some((shape.parameterized()?, shape, values)));
            (parts, sql.as_str())
        })
        .collect();
    let mut next = parts.iter();
    run(&db, calls, |_| match next.next() {
        Some((Some((sql, shape, values)), text)) => match db.prepare_cached(sql) {
            Ok(mut statement) => {
                for (index, &marker) in shape.markers().iter().enumerate() {
                    match Literal::decode(marker, values.get(index)).expect("decodes") {
                        Literal::Integer(value) => statement.raw_bind_parameter(index + 1, value),
                        Literal::Text(value) => statement.raw_bind_parameter(index + 1, value),
                        Literal::Blob(value) => statement.raw_bind_parameter(index + 1, value),
                    }
                    .expect("binds");
                }
                statement.raw_execute().expect("executes");
            }
            Err(_) => db.execute_batch(text).expect("executes"),
        },
        Some((None, text)) => db.execute_batch(text).expect("executes"),
        None => unreachable!("as many parts as statements"),
    })
}
