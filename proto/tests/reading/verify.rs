//! Verifying: what is whole is counted, and what is missing or does not belong together is found, also where a restore
//! of the newest state would not need it.

use lockstep_proto::error::Error;
use lockstep_proto::layout::{SegmentName, SnapshotName};
use lockstep_proto::log::{self, Mark};
use lockstep_proto::record::{Head, Open, Record, Rewind, Start, StartReason};
use lockstep_proto::restore::{Plan, Target};
use lockstep_proto::seal::{Chain, Header, KeyRing, ObjectKind, StoreId};
use lockstep_proto::segment::SegmentEncoder;
use lockstep_proto::snapshot::{self, Content, Pages};
use lockstep_proto::store::Store;
use lockstep_proto::verify::{self, GenerationReport};
use lockstep_proto::version::DataVersion;

use crate::machine::{Machine, Step};
use crate::sim::SimStore;

fn run(machine: &Machine) -> Result<Vec<GenerationReport>, Error> {
    verify::run(&machine.store, &machine.keys, &mut |_| {})
}

fn damage(machine: &Machine) -> String {
    match run(machine) {
        Err(error @ Error::Damaged { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn segments(machine: &Machine, generation: u32) -> Vec<String> {
    let all = log::segments(&machine.store, generation).unwrap();
    all.iter().map(|segment| segment.name.to_string()).collect()
}

fn snapshots(machine: &Machine, generation: u32) -> Vec<SnapshotName> {
    let all = snapshot::published(&machine.store, generation).unwrap();
    all.into_iter().map(|(name, _)| name).collect()
}

/// A history that began with a snapshot, after another one.
fn second_history() -> Machine {
    let mut machine = Machine::new();
    machine.step(Step::Commit(6, 5));
    machine.step(Step::Gap);
    for _ in 0..2 {
        machine.step(Step::Commit(3, 5));
        machine.step(Step::Restart);
    }
    machine
}

#[test]
fn all_of_it_is_read_and_counted() {
    let mut machine = Machine::new();
    for step in [Step::Commit(6, 5), Step::Lost, Step::Commit(2, 5), Step::Compact, Step::Gap] {
        machine.step(step);
    }
    machine.step(Step::Commit(3, 5));
    let stored = |folder: &str| -> u64 {
        let disk = machine.store.0.lock().unwrap();
        let of_it = disk.objects.iter().filter(|(name, _)| name.starts_with(folder));
        of_it.map(|(_, bytes)| bytes.len() as u64).sum()
    };
    let mut told = 0;
    let reports = verify::run(&machine.store, &machine.keys, &mut |bytes| told += bytes).unwrap();
    assert_eq!(told, stored("log/") + stored("snapshots/"));
    assert_eq!(told, verify::stored_bytes(&machine.store).unwrap());
    let [first, second] = &reports[..] else { panic!("{reports:?}") };
    // The machine's first transaction, 6, the one behind the lost one, and 2.
    assert_eq!((first.batches, first.voided, first.snapshots), (10, 1, 1));
    assert_eq!(first.data_version, Some(DataVersion(10)));
    assert_eq!((second.batches, second.voided, second.snapshots), (3, 0, 1));
    assert_eq!(second.data_version, Some(DataVersion(machine.version)));
    assert_eq!(second.snapshot, Some(snapshots(&machine, second.generation)[0].to_string()));
    for report in &reports {
        let name = snapshots(&machine, report.generation)[0];
        let meta = snapshot::summary(&machine.store, &machine.keys, name, 0).unwrap().meta;
        let pages = u64::from(meta.page_size) * u64::from(meta.page_count);
        assert_eq!(report.bytes, stored(&log_of(report.generation)) + pages);
        assert_eq!(report.segments, segments(&machine, report.generation).len());
    }
}

fn log_of(generation: u32) -> String {
    format!("log/{generation:08x}/")
}

#[test]
fn the_snapshot_that_the_newest_history_began_with_is_needed_until_compaction_made_one() {
    let mut machine = second_history();
    let base = snapshots(&machine, 2)[0].to_string();
    let bytes = machine.store.read(&base).unwrap();
    machine.store.remove(&base).unwrap();
    assert!(damage(&machine).contains(&base));
    machine.store.replace(&base, &bytes).unwrap();
    machine.compact();
    machine.step(Step::Restart);
    run(&machine).unwrap();
    // While it is there it is the one that was meant.
    let name = snapshots(&machine, 2).into_iter().find(|name| !name.is_compacted()).unwrap();
    let at = position(&machine, name);
    write(&machine, name, at.seq + 2, at, 1);
    assert!(damage(&machine).contains("is not the snapshot that was meant"));
    machine.store.remove(&base).unwrap();
    run(&machine).unwrap();
    // And that of an older one may have gone with its points.
    let mut machine = second_history();
    machine.step(Step::Gap);
    machine.step(Step::Commit(2, 5));
    machine.store.remove(&base_of(&machine, 2)).unwrap();
    assert_eq!(run(&machine).unwrap().len(), 3);
}

fn base_of(machine: &Machine, generation: u32) -> String {
    let all = snapshots(machine, generation);
    all.iter().find(|name| !name.is_compacted()).unwrap().to_string()
}

/// It is part of what can be restored.
#[test]
fn damage_before_a_snapshot_is_found_where_the_log_is_whole() {
    let mut machine = second_history();
    machine.compact();
    machine.step(Step::Commit(2, 5));
    let first = &segments(&machine, 2)[0];
    let newest = machine.restore(Target::Newest).unwrap().0.data_version;
    machine.store.0.lock().unwrap().objects.get_mut(first).unwrap()[300] ^= 1;
    assert_eq!(machine.restore(Target::Newest).unwrap().0.data_version, newest);
    assert!(damage(&machine).contains(first));
}

#[test]
fn a_log_whose_beginning_is_missing_needs_a_snapshot_to_go_on_from() {
    let mut machine = Machine::new();
    for _ in 0..3 {
        machine.step(Step::Commit(2, 5));
        machine.step(Step::Restart);
    }
    let all = segments(&machine, 1);
    assert!(all.len() > 2, "{all:?}");
    machine.store.remove(&all[0]).unwrap();
    assert!(damage(&machine).contains("what comes before it is missing"));
    // Of an older history that may be what retention left.
    machine.step(Step::Gap);
    assert_eq!(run(&machine).unwrap().len(), 2);
}

/// The batch that its first record voids was removed with the segment before.
#[test]
fn what_is_left_of_an_older_log_may_begin_with_a_rewind() {
    let mut machine = Machine::new();
    for step in [Step::Commit(3, 2), Step::Lost, Step::Gap, Step::Commit(1, 2)] {
        machine.step(step);
    }
    let all = segments(&machine, 1);
    let (last, before) = all.split_last().unwrap();
    before.iter().for_each(|name| machine.store.remove(name).unwrap());
    assert_eq!(segments(&machine, 1), std::slice::from_ref(last));
    assert_eq!(run(&machine).unwrap().len(), 2);
}

#[test]
fn a_log_may_begin_right_behind_a_snapshot() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(3, 5));
    machine.die();
    // They show that the newest batch before was committed: the snapshot is of that one.
    machine.step(Step::Commit(2, 5));
    machine.compact();
    let at = snapshots(&machine, 1)[0].seq;
    let all = log::segments(&machine.store, 1).unwrap();
    let (before, behind): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|segment| segment.name.first_seq <= at);
    assert_eq!(behind[0].name.first_seq, at + 1);
    before.iter().for_each(|segment| machine.store.remove(&segment.name.to_string()).unwrap());
    assert_eq!(run(&machine).unwrap().len(), 1);
    machine.check();
}

/// A writer that died before its first record was durable.
#[test]
fn what_began_nothing_is_no_history() {
    let machine = second_history();
    let last = segments(&machine, 2).pop().unwrap();
    let header = machine.store.read(&last).unwrap()[..128].to_vec();
    let folder = log_of(2);
    for name in segments(&machine, 2) {
        machine.store.remove(&name).unwrap();
    }
    machine.store.replace(&last, &header).unwrap();
    assert!(last.starts_with(&folder));
    let reports = run(&machine).unwrap();
    assert_eq!(reports.len(), 1, "{reports:?}");
}

#[test]
fn a_delta_needs_the_parent_that_was_meant() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(60, 20));
    machine.compact();
    machine.step(Step::Commit(1, 1));
    machine.compact();
    let [base, delta] = snapshots(&machine, 1)[..] else { panic!("two snapshots") };
    run(&machine).unwrap();
    let at = position(&machine, base);
    let [bytes, child] = [base, delta].map(|name| machine.store.read(&name.to_string()).unwrap());
    machine.store.remove(&base.to_string()).unwrap();
    let missing = damage(&machine);
    assert!(missing.contains(&base.to_string()) && missing.contains("is missing"), "{missing}");
    // Another one of that name, as whole as the first.
    machine.store.remove(&delta.to_string()).unwrap();
    write(&machine, base, at.seq, at, 61);
    machine.store.replace(&delta.to_string(), &child).unwrap();
    assert!(damage(&machine).contains("is not the snapshot that was meant"));
    machine.store.replace(&base.to_string(), &bytes).unwrap();
    run(&machine).unwrap();
}

fn position(machine: &Machine, name: SnapshotName) -> Mark {
    snapshot::summary(&machine.store, &machine.keys, name, 0).unwrap().position
}

/// The database as it was at `seq`, as if it had been made at `at`.
fn write(machine: &Machine, name: SnapshotName, seq: u64, at: Mark, data_version: u32) {
    machine.restore(Target::Seq(seq)).unwrap();
    let path = machine.shadow().with_file_name("restored.sqlite3");
    let data_version = Some(DataVersion(data_version));
    let content =
        Content { path: &path, time: machine.time, data_version, pages: Pages::All, header: None };
    let _ = machine.store.remove(&name.to_string());
    snapshot::write(&machine.store, &machine.keys, name, at, &content, &mut |_, _| {}).unwrap();
}

/// Whoever made such a one had the key, and was wrong.
#[test]
fn a_snapshot_that_was_not_made_at_a_batch_of_its_log_is_found_and_not_restored() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(6, 5));
    machine.compact();
    let made = snapshots(&machine, 1)[0];
    let at = position(&machine, made);
    let seq = at.seq;
    let version = machine.version - 2;
    machine.store.remove(&made.to_string()).unwrap();
    machine.step(Step::Restart);
    let close = log::LogEnd::read(&machine.store, &machine.keys).unwrap().position.mark();
    machine.step(Step::Commit(2, 5));
    let elsewhere = Mark { chain: Chain([9; 32]), ..at };
    for (what, at, version, (restores, verifies)) in [
        ("no batch", close, version, (false, false)),
        ("another log", elsewhere, version, (false, false)),
        ("another version", at, version + 1, (false, true)),
        ("as it was", at, version, (true, true)),
    ] {
        let name = SnapshotName { seq: at.seq, ..made };
        write(&machine, name, seq, at, version);
        match machine.restore(Target::Newest) {
            Ok(_) => assert!(restores, "{what}"),
            Err(error) => {
                assert!(!restores && matches!(error, Error::Damaged { .. }), "{what}: {error}");
            }
        }
        match run(&machine) {
            Ok(_) => assert!(verifies, "{what}"),
            Err(error) => {
                assert!(!verifies && matches!(error, Error::Damaged { .. }), "{what}: {error}");
            }
        }
        machine.store.remove(&name.to_string()).unwrap();
    }
}

/// A log of segments that begin with the same record, by one writer after another.
struct Forged {
    keys: KeyRing,
    store: SimStore,
}

impl Forged {
    fn new() -> Self {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        Self { keys, store: SimStore::default() }
    }

    /// A segment that starts the generation, and so many batches and rewinds of these.
    fn segment(&self, epoch: u32, reason: StartReason, batches: usize, voided: &[u64]) {
        let key = self.keys.current().unwrap();
        let header = Header {
            kind: ObjectKind::Segment,
            key: key.id(),
            store: self.keys.store(),
            generation: 1,
            epoch,
            seq: 1,
            index: 0,
            prev: Chain::default(),
            nonce_prefix: Header::random_nonce_prefix().unwrap(),
        };
        let open = Record::Open(Box::new(Open {
            time: 1,
            writer: String::new(),
            session: "a".into(),
            host: String::new(),
            directory: String::new(),
            head: Head::default(),
            start: Some(Start { reason, base: None }),
            destinations: Default::default(),
        }));
        let mut encoder = SegmentEncoder::new(key, &header).unwrap();
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(encoder.control(&open).unwrap());
        for _ in 0..batches {
            let writes = ["CREATE TABLE t (a)"];
            bytes.extend_from_slice(encoder.batch(DataVersion(1), true, 0, &writes).unwrap());
        }
        for &seq in voided {
            let rewind = Rewind { seq, data_version: DataVersion(1), time: 1 };
            bytes.extend_from_slice(encoder.control(&Record::Rewind(rewind)).unwrap());
        }
        let name = SegmentName { generation: 1, epoch, index: 0, first_seq: 1 };
        self.store.0.lock().unwrap().objects.insert(name.to_string(), bytes);
    }

    fn verify(&self) -> Result<Vec<GenerationReport>, Error> {
        verify::run(&self.store, &self.keys, &mut |_| {})
    }
}

/// One that a restore refuses is not whole.
#[test]
fn an_authentic_rewind_that_voids_nothing_is_no_part_of_a_log() {
    let log = |voided: &[u64]| {
        let forged = Forged::new();
        forged.segment(1, StartReason::Init, 1, voided);
        forged.verify()
    };
    assert_eq!(log(&[2]).unwrap()[0].voided, 1);
    for voided in [&[1][..], &[2, 2]] {
        let error = log(voided).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
}

/// The first one's writer was shut out before it was acknowledged.
#[test]
fn of_two_beginnings_the_later_counts() {
    let forged = Forged::new();
    forged.segment(1, StartReason::Init, 0, &[]);
    forged.segment(2, StartReason::Gap, 1, &[]);
    assert_eq!(forged.verify().unwrap()[0].batches, 1);
    let plan = Plan::newest(&forged.store, &forged.keys).unwrap();
    assert_eq!(plan.beginning.unwrap().start.reason, StartReason::Gap);
}
