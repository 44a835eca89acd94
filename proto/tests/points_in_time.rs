//! Every state that a node ever had is given back as it was, from whatever snapshots there are: by seq, by
//! version, by time.

mod machine;
mod sim;

use std::collections::BTreeMap;

use lockstep_proto::error::Error;
use lockstep_proto::log::{generations, segments};
use lockstep_proto::restore::Target;
use lockstep_proto::retention::Policy;
use lockstep_proto::snapshot;
use lockstep_proto::version::DataVersion;

use machine::{Machine, Step, rows_of};

/// A node with a history, and its rows at each version with the time then.
fn history() -> (Machine, BTreeMap<u32, (u64, Vec<String>)>) {
    let mut machine = Machine::new();
    let mut states = BTreeMap::new();
    let script = [
        Step::Commit(1, 6),
        Step::Lost,
        Step::Commit(1, 2),
        Step::Compact,
        Step::Delete(2),
        Step::Restart,
        Step::Migrate,
        Step::Commit(1, 9),
        Step::Compact,
        Step::LoseShadow,
        Step::Commit(2, 3),
        Step::Gap,
    ];
    for round in 0..12 {
        for (index, step) in script.into_iter().enumerate() {
            machine.time += 1_000;
            machine.step(step);
            if index != round {
                states.insert(machine.version, (machine.time, rows_of(&machine.node)));
            }
        }
    }
    (machine, states)
}

#[test]
fn every_version_is_restored_as_it_was() {
    let (machine, states) = history();
    for (version, (time, rows)) in &states {
        for target in [Target::Version(DataVersion(*version)), Target::Time(*time)] {
            let (report, restored) = machine.restore(target).unwrap();
            assert_eq!(report.data_version, Some(DataVersion(*version)), "{target}");
            assert!(restored == *rows, "{target}");
            if report.batches == 0 {
                // The base of a generation has no seq of its own.
                continue;
            }
            let seq = Target::Seq(report.position.seq);
            let (again, restored) = machine.restore(seq).unwrap();
            assert_eq!(again.position.seq, report.position.seq);
            assert!(restored == *rows, "{seq}");
        }
    }
}

#[test]
fn a_state_that_never_was_is_refused() {
    let (machine, _) = history();
    for target in [Target::Seq(1_000_000), Target::Version(DataVersion(machine.version + 1))] {
        let error = machine.restore(target).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }
    // What comes later than the newest state is the newest state.
    let (report, _) = machine.restore(Target::Time(u64::MAX)).unwrap();
    assert_eq!(report.data_version, Some(DataVersion(machine.version)));
}

#[test]
fn what_was_removed_is_refused_and_what_was_kept_is_not() {
    let (mut machine, states) = history();
    machine.step(Step::Compact);
    machine.step(Step::Prune);
    machine.check();
    let (first, (time, _)) = states.first_key_value().unwrap();
    for target in [Target::Version(DataVersion(*first)), Target::Time(*time), Target::Seq(3)] {
        let error = machine.restore(target).unwrap_err().to_string();
        assert!(error.contains("lies before everything"), "{error}");
    }
}

/// Retention keeps points of which the log behind them goes: each is restored as it was, and what lies between is
/// refused for what it is.
#[test]
fn a_point_is_restored_where_the_log_behind_it_was_removed() {
    let mut machine = Machine::new();
    machine.step(Step::Restart);
    let mut states = BTreeMap::new();
    for round in 0..5 {
        for _ in 0..3 {
            machine.step(Step::Commit(2, 10));
            let (seq, time) = (machine.writer().position().seq, machine.time);
            machine.step(Step::Restart);
            states.insert(machine.version, (seq, time, rows_of(&machine.node)));
        }
        machine.time += 1_000;
        if round == 3 {
            machine.step(Step::Gap);
        }
        machine.compact();
    }
    let policy = Policy { keep_last: 4, ..Policy::NOTHING };
    machine.prune(&policy);
    machine.check();
    let mut points = Vec::new();
    for generation in generations(&machine.store).unwrap() {
        for (name, size) in snapshot::published(&machine.store, generation).unwrap() {
            points.push(snapshot::summary(&machine.store, &machine.keys, name, size).unwrap());
        }
    }
    assert!(points.len() >= 4, "{points:?}");
    for point in &points {
        let version = point.meta.data_version.unwrap();
        for target in [
            Target::Seq(point.position.seq),
            Target::Version(version),
            Target::Time(point.meta.time),
        ] {
            // The record before a generation began is the history's before.
            if !point.name.is_compacted() && matches!(target, Target::Seq(_)) {
                continue;
            }
            let (report, rows) = machine.restore(target).unwrap();
            assert_eq!(report.data_version, Some(version), "{target}");
            let expected = states.get(&version.0);
            assert!(expected.is_none_or(|(.., expected)| *expected == rows), "{target}");
        }
    }
    let mut refused = 0;
    for (version, (seq, time, expected)) in &states {
        for target in
            [Target::Version(DataVersion(*version)), Target::Seq(*seq), Target::Time(*time)]
        {
            match machine.restore(target) {
                Ok((_, rows)) => assert!(rows == *expected, "{target}"),
                Err(Error::Refused { .. }) => refused += 1,
                Err(error) => panic!("{target}: {error}"),
            }
        }
    }
    assert!(refused > 9, "{refused}");
}

#[test]
fn a_damaged_beginning_is_passed_by_and_nothing_older_is_taken_for_it() {
    let mut machine = Machine::new();
    let mut states = Vec::new();
    for steps in [[Step::Gap, Step::Commit(1, 4)], [Step::Restart, Step::Commit(3, 4)]] {
        steps.into_iter().for_each(|step| machine.step(step));
        states.push((machine.version, machine.time, rows_of(&machine.node)));
        machine.time += 1_000;
    }
    machine.compact();
    machine.step(Step::Commit(2, 4));
    let generation = machine.restore(Target::Newest).unwrap().0.position.generation;
    let first = segments(&machine.store, generation).unwrap()[0].name.to_string();
    machine.store.0.lock().unwrap().objects.get_mut(&first).unwrap()[200] ^= 1;
    for (index, (version, time, rows)) in states.iter().enumerate() {
        for target in [Target::Version(DataVersion(*version)), Target::Time(*time)] {
            match machine.restore(target) {
                Ok((_, restored)) => assert!(index == 1 && restored == *rows, "{target}"),
                Err(error) => {
                    assert!(index == 0 && error.to_string().contains(&first), "{target}: {error}");
                }
            }
        }
    }
}

/// What is damaged is never left out in silence: only who asks for the last state before it gets that.
#[test]
fn a_damaged_log_is_restored_up_to_the_damage_where_that_is_asked_for() {
    let mut machine = Machine::new();
    let mut states = Vec::new();
    for _ in 0..4 {
        machine.step(Step::Commit(1, 9));
        machine.time += 1_000;
        let target = Target::Seq(machine.writer().position().seq);
        let at =
            [target, Target::Version(DataVersion(machine.version)), Target::Time(machine.time)];
        states.push((at, rows_of(&machine.node)));
        machine.step(Step::Restart);
    }
    // In the middle of the third's segment, behind its first record.
    let third = segments(&machine.store, 1).unwrap()[2].name.to_string();
    {
        let mut disk = machine.store.0.lock().unwrap();
        let bytes = disk.objects.get_mut(&third).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    for (index, (targets, rows)) in states.iter().enumerate() {
        for target in targets {
            match machine.restore(*target) {
                Ok((report, restored)) => {
                    assert!(index < 2 && restored == *rows, "{target}");
                    assert_eq!(report.data_version, Some(DataVersion(2 + index as u32)));
                }
                Err(error) => {
                    assert!(matches!(error, Error::Damaged { .. }), "{target}: {error}");
                    assert!(index > 0, "{target}");
                }
            }
        }
    }
    machine.restore(states[1].0[0]).expect("exactly the last that is whole");
    let newest = machine.restore(Target::Newest).unwrap_err();
    assert!(newest.to_string().contains(&third), "{newest}");
}

#[test]
fn where_the_newest_history_is_damaged_an_older_one_is_not_the_newest_state() {
    let mut machine = Machine::new();
    for step in [Step::Commit(3, 4), Step::Gap, Step::Commit(3, 4), Step::Restart] {
        machine.step(step);
    }
    for segment in segments(&machine.store, 2).unwrap() {
        let mut disk = machine.store.0.lock().unwrap();
        disk.objects.get_mut(&segment.name.to_string()).unwrap()[3] ^= 1;
    }
    let error = machine.restore(Target::Newest).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}
