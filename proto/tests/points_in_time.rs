//! Every state that a node ever had is given back as it was, from whatever snapshots there are: by seq, by
//! version, by time.

mod machine;
mod sim;

use std::collections::BTreeMap;

use lockstep_proto::error::Error;
use lockstep_proto::log::segments;
use lockstep_proto::restore::Target;
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
