//! A shadow is compared with what the node's own database held at a place in the log: on the way there, or where the
//! log ends. What differs is told from what cannot be compared.

use std::hash::{DefaultHasher, Hash, Hasher};

use lockstep_proto::error::Error;
use lockstep_proto::shadow::{Digest, Expected, Shadow};
use lockstep_proto::version::DataVersion;
use rusqlite::Connection;

use crate::machine::{Machine, Step, rows_of};

fn digest(db: &Connection) -> Digest {
    let mut hasher = DefaultHasher::new();
    rows_of(db).hash(&mut hasher);
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&hasher.finish().to_le_bytes());
    Digest(digest)
}

/// What the node's database holds now.
fn expected(machine: &mut Machine) -> Expected {
    let position = machine.writer().position();
    Expected {
        generation: position.generation,
        seq: position.seq,
        data_version: DataVersion(machine.version),
        digest: digest(&machine.node),
    }
}

fn other(expected: &Expected) -> Expected {
    Expected { digest: Digest([9; 32]), ..*expected }
}

fn shadow(machine: &Machine) -> Shadow<'_> {
    Shadow::open(&machine.store, &machine.keys, &machine.shadow()).unwrap()
}

fn differs<T: std::fmt::Debug>(found: Result<T, Error>) {
    assert!(matches!(found, Err(Error::Differs { .. })), "{found:?}");
}

#[test]
fn a_place_is_compared_on_the_way() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(3, 5));
    let at = expected(&mut machine);
    machine.step(Step::Commit(4, 5));
    let end = expected(&mut machine);
    let on_the_way = |machine: &Machine, at: &Expected| {
        shadow(machine).catch_up_comparing(at, &|db| Ok(digest(db)), &mut |_| {})
    };
    differs(on_the_way(&machine, &other(&at)));
    machine.step(Step::LoseShadow);
    let (done, equal) = on_the_way(&machine, &at).unwrap();
    assert!(equal && done.batches > 4, "{done:?}");
    // The log does not go on from there: nothing was compared.
    machine.step(Step::LoseShadow);
    assert!(!on_the_way(&machine, &end).unwrap().1);
}

#[test]
fn the_end_is_compared_and_what_is_not_decided_there_taken_back() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(3, 5));
    machine.step(Step::Gap);
    let mut places = Vec::new();
    for _ in 0..5 {
        machine.step(Step::Commit(1, 5));
        places.push(expected(&mut machine));
    }
    let mut shadow = shadow(&machine);
    shadow.catch_up(&mut |_| {}).unwrap();
    let seq = shadow.seq();
    let mut compare = |at: &Expected| shadow.compare_at_end(at, &|db| Ok(digest(db)));
    for at in &places {
        // One that was passed cannot be compared any more.
        let comparable = at.seq >= seq;
        assert_eq!(compare(at).unwrap(), comparable, "seq {} of {seq}", at.seq);
        match comparable {
            true => differs(compare(&other(at))),
            false => assert!(!compare(&other(at)).unwrap()),
        }
        let generation = at.generation - 1;
        assert!(!compare(&Expected { generation, ..other(at) }).unwrap());
    }
    assert_eq!(places.iter().filter(|at| at.seq >= seq).count(), 3);
    assert_eq!(shadow.seq(), seq);
    drop(shadow);
    machine.step(Step::Commit(3, 5));
    machine.compact();
    machine.check();
}

#[test]
fn settings_that_change_something_are_not_compared_across() {
    for (setting, comparable) in
        [("PRAGMA foreign_keys = ON", true), ("PRAGMA foreign_keys = OFF", false)]
    {
        let mut machine = Machine::new();
        machine.step(Step::Commit(3, 5));
        machine.settings(setting);
        machine.step(Step::Commit(1, 5));
        let at = expected(&mut machine);
        let mut before = shadow(&machine);
        before.catch_up(&mut |_| {}).unwrap();
        assert!(before.seq() < at.seq - 1);
        let found = before.compare_at_end(&at, &|db| Ok(digest(db))).unwrap();
        assert_eq!(found, comparable, "{setting} lies ahead");
        drop(before);
        machine.step(Step::Commit(3, 5));
        let at = expected(&mut machine);
        let mut behind = shadow(&machine);
        behind.catch_up(&mut |_| {}).unwrap();
        let found = behind.compare_at_end(&at, &|db| Ok(digest(db))).unwrap();
        assert_eq!(found, comparable, "{setting} is in force");
    }
}
