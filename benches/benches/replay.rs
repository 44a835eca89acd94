//! What a restore from a log without snapshots costs: statements and bytes a second, against what SQLite
//! itself takes for the same statements, prepared and bound on one connection, and as text; against the restore of the
//! Python plugin from the same batches, where `LOCKSTEP_PYTHON_BACKUP` names it (see `peers`); and with a snapshot.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use lockstep_benches::process;
use lockstep_benches::python::PythonBackup;
use lockstep_benches::{Plugin, calls, message, sql_bytes};
use lockstep_proto::batch::shape::{Literal, Shape, Values, split};
use lockstep_tests::Batch;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries;
use lockstep_tests::binaries::Cli;
use lockstep_tests::testdir::TestDir;
use rusqlite::Connection;
use serde_json::json;

const ROUNDS: usize = 5;

fn main() {
    let (input, calls) = calls(28_150);
    let backed = Backed::fresh();
    backed.set_in_lock("compaction", json!({"enabled": false}));
    let plugin = Plugin::start(&binaries::plugin(), &backed.network_dir());
    write_all(plugin.expect("the plugin starts"), &calls);
    let dir = TestDir::new();
    let python = PythonBackup::locate_or_say("replay").map(|python| {
        let (directory, file) = (dir.make_dir("python"), dir.path("python.bkp"));
        python.init(&directory, &file);
        write_all(python.start(&directory, false).expect("the plugin starts"), &calls);
        (python, file)
    });
    let statements: usize = calls.iter().map(|call| call.writes.len()).sum();
    let bytes: usize = calls.iter().map(sql_bytes).sum();
    println!(
        "\n{input}, {statements} statements, {} MB of SQL; median of {ROUNDS}",
        bytes / 1_000_000
    );
    println!(
        "| | s | fastest | statements/s | MB of SQL/s | times ours |\n|---|---|---|---|---|---|"
    );
    let file = dir.path("bound.sqlite3");
    type Way<'a> = (&'a str, Box<dyn Fn(usize) -> f64 + 'a>);
    let mut ways: Vec<Way<'_>> = vec![
        ("**backup-cli restore, checks and sync included**", Box::new(|_| restore(&backed))),
        ("SQLite, prepared and bound, in memory", Box::new(|_| sqlite_bound(&calls, None))),
        (
            "SQLite, prepared and bound, to a file, synced and checked",
            Box::new(|_| sqlite_bound(&calls, Some(&file))),
        ),
        ("SQLite, as text, in memory", Box::new(|_| sqlite_text(&calls))),
    ];
    if let Some((python, file)) = &python {
        let dir = &dir;
        let restore = move |round| {
            process::run(&mut python.restore(file, &dir.path(format!("python-{round}")))).seconds
        };
        ways.push(("the Python plugin's restore", Box::new(restore)));
    }
    // In turn: what else the machine does meets all alike.
    let mut took = vec![Vec::new(); ways.len()];
    for round in 0..ROUNDS {
        took.iter_mut().zip(&ways).for_each(|(took, (_, way))| took.push(way(round)));
    }
    let ours = median(&mut took[0]);
    let row = |name: &str, took: &mut [f64]| {
        let seconds = median(took);
        let (per_s, mb) = (statements as f64 / seconds, bytes as f64 / 1e6 / seconds);
        let (fastest, ratio) = (took[0], seconds / ours);
        println!("| {name} | {seconds:.3} | {fastest:.3} | {per_s:.0} | {mb:.0} | {ratio:.2} |");
    };
    ways.iter().zip(&mut took).for_each(|((name, _), took)| row(name, took));
    let compact = Cli::new(["compact", "--lightning-dir"]).arg(backed.network_dir());
    compact.run().expect_success();
    let mut took: Vec<f64> = (0..ROUNDS).map(|_| restore(&backed)).collect();
    row("backup-cli restore, from a snapshot", &mut took);
}

fn write_all(mut plugin: Plugin, calls: &[Batch]) {
    for (index, call) in calls.iter().enumerate() {
        plugin.call(&message(index, call)).expect("the plugin acknowledges");
    }
    plugin.stop();
}

fn restore(backed: &Backed) -> f64 {
    process::run(&mut backed.restore(&backed.new_dest()).command()).seconds
}

fn median(took: &mut [f64]) -> f64 {
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

/// A new database, in memory or in a file that nothing is promised of until its end.
fn open(path: Option<&Path>) -> Connection {
    let Some(path) = path else { return Connection::open_in_memory().expect("SQLite opens") };
    let _ = fs::remove_file(path);
    let db = Connection::open(path).expect("SQLite opens");
    db.execute_batch(
        "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;",
    )
    .expect("settings");
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
    let db = open(None);
    run(&db, calls, |sql| db.execute_batch(sql).expect("executes"))
}

/// Shapes and values are split beforehand: only SQLite's part is timed, and the lookup of the statement.
fn sqlite_bound(calls: &[Batch], path: Option<&Path>) -> f64 {
    let db = open(path);
    db.set_prepared_statement_cache_capacity(4096);
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
    let replayed = run(&db, calls, |_| match next.next() {
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
    });
    let began = Instant::now();
    if let Some(path) = path {
        let verdict: String =
            db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("it checks");
        assert_eq!(verdict, "ok");
        drop(db);
        File::open(path).and_then(|file| file.sync_all()).expect("it syncs");
    }
    replayed + began.elapsed().as_secs_f64()
}
