//! Signs of life of a log's last writer: its records, its heartbeats, and its word that it ends.

use lockstep_proto::fence::Claimant;
use lockstep_proto::heartbeat::Heartbeat;
use lockstep_proto::liveness::{LastWriter, Liveness};
use lockstep_proto::log::LogEnd;
use lockstep_proto::replica::Seen;

use crate::machine::{Machine, Step};

fn look(machine: &Machine) -> LastWriter {
    let end = LogEnd::read(&machine.store, &machine.keys).unwrap();
    let place = Seen { store: &machine.store, end: &end };
    LastWriter::look(&[place], &machine.keys).unwrap().unwrap()
}

#[test]
fn the_newest_sign_of_life_counts_until_a_writer_says_that_it_ends() {
    let mut machine = Machine::new();
    assert_eq!(LastWriter::look(&[], &machine.keys).unwrap(), None);
    machine.step(Step::Restart);
    machine.time = 10_000_000;
    machine.step(Step::Commit(3, 1));
    let by = machine.writer().claimant().clone();
    let epoch = machine.writer().epoch();
    let seen = look(&machine);
    assert_eq!((seen.epoch, seen.seen, seen.place.as_str()), (epoch, machine.time, "sim"));
    assert_eq!((seen.closed, seen.gone, seen.interval_ms), (false, false, 300_000));
    assert_eq!(seen.who(), by.to_string());
    assert!(matches!(seen.at(machine.time), Liveness::Alive { .. }));
    // What an older one said last is of no interest, whatever its clock said.
    let beat = |time, epoch| {
        let by = Claimant { purpose: "beat".into(), ..by.clone() };
        Heartbeat { time, interval_s: 7, by }.beat(&machine.store, &machine.keys, epoch).unwrap();
    };
    beat(machine.time + 9_000, epoch - 1);
    assert_eq!(look(&machine), seen);
    beat(machine.time + 5_000, epoch);
    let later = look(&machine);
    assert_eq!((later.seen, later.interval_ms), (machine.time + 5_000, 7_000));
    assert!(later.who().contains("'beat'"), "{}", later.who());
    // An older sign of the same writer's takes nothing back.
    beat(machine.time - 5_000, epoch);
    assert_eq!(look(&machine).seen, machine.time);
    machine.step(Step::Restart);
    let ended = look(&machine);
    assert!(ended.closed && !ended.gone);
    assert_eq!(ended.at(machine.time), Liveness::Ended);
}
