//! Tests of the generator, on a database of its own.

use std::collections::BTreeSet;

use super::*;
use crate::oracle;
use crate::sim::Database;

fn database(dir: &tempfile::TempDir, name: &str) -> Database {
    Database::open(dir.path().join(name), false).unwrap()
}

fn digest(seed: u64, count: usize) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    for step in Workload::seeded(seed).take(count) {
        step.statements().hash(&mut hasher);
    }
    hasher.finish()
}

#[test]
fn the_seed_decides_everything() {
    assert_eq!(digest(1, 2_000), digest(1, 2_000));
    assert_ne!(digest(1, 2_000), digest(2, 2_000));
}

#[test]
fn every_statement_executes_and_nothing_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let db = database(&dir, "node");
    let mut words = BTreeSet::new();
    let mut config = WorkloadConfig::seeded(7);
    config.migration_every = 50;
    config.big_blob_every = 1_000;
    for step in Workload::new(config).take(5_000) {
        for sql in step.statements() {
            words.extend(sql.split_whitespace().take(3).map(str::to_owned));
            if sql.len() > 4_000_000 {
                words.insert("2 MB".into());
            }
        }
        db.apply(&step).unwrap();
    }
    let wanted = [
        "PRAGMA",
        "ALTER",
        "DROP",
        "CREATE",
        "UPDATE",
        "DELETE",
        "INSERT",
        "REPLACE",
        "WITH",
        "/*",
        "channels",
        "channel_htlcs",
        "invoices",
        "payments",
        "forwards",
        "datastore",
        "blocks",
        "pairs",
        "2 MB",
    ];
    for word in wanted {
        assert!(words.contains(word), "no statement with {word}");
    }
}

#[test]
fn the_database_stays_small_unless_told_to_grow() {
    let dir = tempfile::tempdir().unwrap();
    let rows_after = |config: WorkloadConfig, name: &str, steps: usize| {
        let db = database(&dir, name);
        for step in Workload::new(config).take(steps) {
            db.apply(&step).unwrap();
        }
        drop(db);
        oracle::row_count(&dir.path().join(name)).unwrap()
    };
    let lean = WorkloadConfig::seeded(3).lean();
    let early = rows_after(lean.clone(), "early", 6_000);
    let late = rows_after(lean.clone(), "late", 12_000);
    assert!(late < early + early / 5, "{early} rows became {late}");
    assert!(late < 2_500, "{late} rows");
    let grown = rows_after(lean.growing(), "grown", 12_000);
    assert!(grown > late * 2, "{grown} rows");
}

#[test]
fn ignoring_the_pragmas_gives_another_database() {
    let dir = tempfile::tempdir().unwrap();
    let (obeying, ignoring) = (database(&dir, "obeying"), database(&dir, "ignoring"));
    let mut config = WorkloadConfig::seeded(5);
    config.migration_every = 100;
    for step in Workload::new(config).take(1_500) {
        let batch = obeying.apply(&step).unwrap();
        // Inside a transaction a PRAGMA has no effect: the trap itself.
        if !step.is_pragma() && ignoring.replay(&batch).is_err() {
            return; // a constraint failed: also another database
        }
    }
    let difference =
        oracle::difference_between(obeying.connection(), ignoring.connection()).unwrap();
    assert!(difference.is_some());
}

#[test]
fn the_version_wraps() {
    let dir = tempfile::tempdir().unwrap();
    let db = database(&dir, "node");
    let config = WorkloadConfig::seeded(1).start_version(u32::MAX - 20);
    let versions: Vec<u32> =
        Workload::new(config).take(60).map(|step| db.apply(&step).unwrap().data_version).collect();
    assert_eq!(versions[0], u32::MAX - 19);
    assert!(versions.windows(2).any(|pair| pair == [u32::MAX, 0]));
    assert!(versions.last().unwrap() < &60);
}

#[test]
fn abandoned_steps_are_followed_by_others_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let db = database(&dir, "node");
    let mut config = WorkloadConfig::seeded(11);
    config.migration_every = 60;
    let mut workload = Workload::new(config);
    let mut rng = Rng::with_seed(11);
    let (mut abandoned, mut repeated) = (0, 0);
    for _ in 0..4_000 {
        let step = workload.propose();
        if rng.u8(..4) > 0 {
            db.apply(&step).unwrap();
            continue;
        }
        workload.abandon();
        abandoned += 1;
        // The death of the node: foreign keys are on again.
        db.apply(&Step::foreign_keys(true)).unwrap();
        workload.restarted();
        let next = workload.propose();
        repeated += usize::from(next == step);
        db.apply(&next).unwrap();
    }
    assert!(abandoned > 500);
    assert!(repeated < abandoned / 10, "{repeated} of {abandoned}");
}

#[test]
fn an_interrupted_rebuild_begins_again_with_its_pragma() {
    let mut workload = Workload::seeded(1);
    let fresh: Vec<Step> = workload.by_ref().take(2).collect();
    assert_eq!(fresh[1], Step::foreign_keys(false));
    let rebuild = workload.propose();
    workload.abandon();
    workload.restarted();
    assert_eq!(workload.next(), Some(Step::foreign_keys(false)));
    assert_eq!(workload.next(), Some(rebuild));
    workload.restarted(); // committed: no second rebuild, keys are on anyway
    assert!(!workload.next().unwrap().is_pragma());
}

#[test]
fn the_recorded_session_gives_the_nodes_database() {
    let Some(traces) = Traces::locate_or_say("the_recorded_session_gives_the_nodes_database")
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let db = database(&dir, "node");
    let mut count = 0;
    for batch in traces.read(Trace::Node).unwrap() {
        let batch = batch.unwrap();
        // What the node would report of the same step is what was recorded.
        assert_eq!(db.apply(&Step::from(batch.clone())).unwrap(), batch);
        count += 1;
    }
    assert_eq!(count, 28_150);
    assert_eq!(oracle::row_count(db.path()).unwrap(), 6_683);
    for batch in traces.read(Trace::NodeRestart).unwrap() {
        db.replay(&batch.unwrap()).unwrap();
    }
    assert_eq!(traces.read(Trace::NodeStart).unwrap().count(), 2_500);
}
