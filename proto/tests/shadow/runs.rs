//! The shadow from one run to the next: what it goes on with, what it is made of anew, and what it never publishes.

use std::os::unix::fs::{FileExt, MetadataExt};

use lockstep_proto::error::Error;
use lockstep_proto::restore::Plan;
use lockstep_proto::shadow::Shadow;

use crate::machine::{Machine, Step, compact};
use crate::sim::Fault;

/// A node with a database of some hundred pages, and a snapshot of it.
fn compacted() -> Machine {
    let mut machine = Machine::new();
    machine.step(Step::Commit(100, 20));
    machine.step(Step::Commit(2, 1));
    machine.compact();
    machine
}

fn change(machine: &mut Machine, rows: &[u32]) {
    let change = |row| format!("UPDATE rows SET what = 'changed' WHERE id = {row}");
    machine.transaction(rows.iter().map(change).collect());
    // They show that it was acknowledged, and committed.
    machine.step(Step::Commit(2, 1));
}

fn links(machine: &Machine) -> usize {
    Plan::newest(&machine.store, &machine.keys).unwrap().lineage.links.len()
}

/// What it costs follows what changed, not what there is.
#[test]
fn a_shadow_that_is_in_order_is_not_made_again() {
    let mut machine = compacted();
    let file = |machine: &Machine| {
        std::fs::metadata(machine.shadow().join("shadow.sqlite3")).unwrap().ino()
    };
    let first = file(&machine);
    // As long as it is there nobody else gets its number.
    let _kept = std::fs::File::open(machine.shadow().join("shadow.sqlite3")).unwrap();
    for step in [Step::Commit(1, 1), Step::Restart, Step::CatchUpAndDie, Step::Lost, Step::Prune] {
        machine.step(step);
        machine.step(Step::Commit(2, 1));
        machine.compact();
        assert_eq!(file(&machine), first, "{step:?}");
    }
    machine.step(Step::Gap);
    machine.step(Step::Commit(2, 1));
    machine.compact();
    assert_ne!(file(&machine), first, "another history");
    machine.check();
}

#[test]
fn pages_whose_snapshot_failed_go_out_with_the_next() {
    let mut machine = compacted();
    change(&mut machine, &[3, 700]);
    {
        let mut disk = machine.store.0.lock().unwrap();
        disk.fail_at = Some((disk.operations, Fault::Before));
    }
    compact(&machine.store, &machine.keys, &machine.shadow()).unwrap_err();
    machine.store.0.lock().unwrap().fail_at = None;
    change(&mut machine, &[1_500]);
    machine.compact();
    assert_eq!(links(&machine), 2);
    machine.check();
}

#[test]
fn a_shadow_made_anew_takes_in_whole_what_its_snapshots_hold() {
    for rows in [&[3, 500, 900, 1_500][..], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]] {
        let mut machine = compacted();
        change(&mut machine, rows);
        machine.compact();
        assert_eq!(links(&machine), 2);
        machine.step(Step::LoseShadow);
        change(&mut machine, &[600, 700, 800, 1_000, 1_200, 1_300]);
        machine.compact();
        assert_eq!(links(&machine), 2, "the small delta is in the larger one");
        machine.check();
    }
}

/// A snapshot says nothing of settings: a restore from one begins with those of a session.
#[test]
fn amid_a_migration_nothing_is_published_and_a_shadow_is_not_gone_on_with() {
    for dies in [false, true] {
        let mut machine = compacted();
        machine.settings("PRAGMA foreign_keys = OFF");
        for table in ["a", "b", "c", "d"] {
            machine.transaction(vec![format!("CREATE TABLE {table} (id INTEGER)")]);
        }
        let before = machine.snapshots;
        machine.compact();
        assert_eq!(machine.snapshots, before);
        if dies {
            machine.step(Step::CatchUpAndDie);
        }
        // With foreign keys on its rows would go with it.
        machine.transaction(vec!["DELETE FROM peers WHERE id = 3".into()]);
        machine.transaction(vec!["INSERT INTO peers VALUES (3)".into()]);
        machine.settings("PRAGMA foreign_keys = ON");
        machine.step(Step::Commit(2, 1));
        machine.compact();
        assert_eq!(machine.snapshots, before + 1);
        machine.check();
    }
}

#[test]
fn a_page_that_a_disk_spoiled_is_found() {
    let machine = compacted();
    let open = || Shadow::open(&machine.store, &machine.keys, &machine.shadow()).unwrap();
    open().prove().unwrap();
    let file = machine.shadow().join("shadow.sqlite3");
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&[0xff; 4_096], 60 * 4_096).unwrap();
    assert!(matches!(open().prove(), Err(Error::Database { .. })));
}

#[test]
fn what_was_replayed_is_counted() {
    let mut machine = compacted();
    machine.step(Step::Commit(7, 2));
    let mut shadow = Shadow::open(&machine.store, &machine.keys, &machine.shadow()).unwrap();
    let (before, mut told) = (shadow.seq(), 0);
    let done = shadow.catch_up(&mut |batches| told = batches).unwrap();
    assert_eq!(done.batches, shadow.seq() - before);
    assert_eq!(done.batches, told);
    // The newest two are not decided yet. Nor were they then, of three statements each.
    assert_eq!((done.batches, done.statements), (7, 2 * 3 + 5 * 5));
}
