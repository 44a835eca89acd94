//! Two writers and one log: whatever the older one leaves behind, what the newer acknowledged is read.

mod sim;

use std::sync::Arc;

use lockstep_proto::error::Error;
use lockstep_proto::fence::{self, Claimant};
use lockstep_proto::layout::SegmentName;
use lockstep_proto::log::{self, After, Beginnings, LoadedSegment, LogEnd, LogReader, Position};
use lockstep_proto::record::{Head, Start, StartReason};
use lockstep_proto::restore::Plan;
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::seal::{Chain, HEADER_LEN, Header, KeyRing, ObjectKind, StoreId};
use lockstep_proto::store::Store;
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, RestoredState, Writer};

use sim::{Fault, SimStore};

struct Log {
    store: SimStore,
    keys: KeyRing,
}

impl Log {
    /// A log with version 1 in it, by the directory `a`.
    fn new() -> (Self, Writer) {
        let log =
            Self { store: SimStore::default(), keys: KeyRing::generate(StoreId([1; 16])).unwrap() };
        let claimant = Claimant::this_process("test", "init", "a", 1).unwrap();
        let mut writer = Writer::create(log.arc(), log.keys.clone(), claimant).unwrap();
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).unwrap();
        log.append(&mut writer, 1).unwrap();
        (log, writer)
    }

    fn arc(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    fn open(&self, directory: &str) -> Result<Writer, Error> {
        let claimant = Claimant::this_process("test", "node", directory, 1).unwrap();
        Writer::open(self.arc(), self.keys.clone(), claimant, 1)
    }

    fn take_over(
        &self,
        directory: &str,
        position: Position,
        version: u32,
        claimed: u32,
    ) -> Result<Writer, Error> {
        let claimant = Claimant::this_process("test", "restore", directory, 1).unwrap();
        let data_version = Some(DataVersion(version));
        let state = RestoredState { position, data_version, claimed };
        Writer::take_over(self.arc(), self.keys.clone(), claimant, &state, 1)
    }

    fn append(&self, writer: &mut Writer, version: u32) -> Result<Outcome, Error> {
        let writes = [format!("INSERT INTO t VALUES ({version}, {})", writer.epoch())];
        writer.append(
            &Call { data_version: DataVersion(version), transaction: true, writes: &writes },
            1,
        )
    }

    /// The values of the batches that a restore would replay.
    fn logged(&self) -> Vec<String> {
        let plan = Plan::newest(&self.store, &self.keys).unwrap();
        let mut logged = Vec::new();
        let mut committed = Committed::new(|batch| {
            let text = batch.statements[0].text().unwrap();
            logged.push(text.trim_start_matches("INSERT INTO t VALUES ").to_owned());
            Ok(())
        });
        LogReader::new(&self.store, &self.keys).read(&plan.segments, &mut committed).unwrap();
        committed.finish().unwrap();
        logged
    }

    /// The same log, as it is now, in another store.
    fn copy(&self) -> Self {
        let store = SimStore::default();
        store.0.lock().unwrap().objects = self.store.0.lock().unwrap().objects.clone();
        Self { store, keys: self.keys.clone() }
    }

    /// Why it cannot be read.
    fn damage(&self) -> String {
        let segments = log::all_segments(&self.store).unwrap();
        let reader = LogReader::new(&self.store, &self.keys);
        let read = reader.read(&segments, &mut Committed::new(|_| Ok(())));
        assert!(matches!(read, Err(Error::Damaged { .. })), "{read:?}");
        read.unwrap_err().to_string()
    }

    /// The next operation on the store fails in this way.
    fn fail_next(&self, after: usize, fault: Fault) {
        let mut disk = self.store.0.lock().unwrap();
        disk.fail_at = Some((disk.operations + after, fault));
    }
}

#[test]
fn an_older_writer_is_refused_and_its_record_is_void() {
    let (log, mut old) = Log::new();
    let mut new = log.open("a").unwrap();
    assert!(matches!(log.append(&mut old, 2), Err(Error::Fenced { .. })));
    log.append(&mut new, 2).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 2)"]);
}

/// A writer began segment after segment and was never told that one is durable. Its successor goes on at another place,
/// which has only the first of them.
#[test]
fn of_several_segments_that_nobody_was_told_of_any_may_be_gone_on_from() {
    let (log, elsewhere) = with_segments_that_nobody_was_told_of();
    go_on_elsewhere(&log, &elsewhere, 6);
    assert_eq!(log.logged(), ["(1, 1)", "(2, 2)", "(3, 2)", "(4, 2)"]);
}

/// And another one had begun behind the last of them, and was never told either.
#[test]
fn what_was_begun_behind_a_segment_that_nobody_was_told_of_is_void_with_it() {
    let (log, elsewhere) = with_segments_that_nobody_was_told_of();
    drop(log.open("a").unwrap());
    // Its claim was everywhere.
    let claimant = Claimant::this_process("test", "node", "a", 1).unwrap();
    fence::claim(&elsewhere.store, &elsewhere.keys, &claimant).unwrap();
    go_on_elsewhere(&log, &elsewhere, 7);
    assert_eq!(log.logged(), ["(1, 1)", "(2, 3)", "(3, 3)", "(4, 3)"]);
}

/// A log, and another place of it, which has only the first of several segments that hold nothing but the record that
/// opens them.
fn with_segments_that_nobody_was_told_of() -> (Log, Log) {
    let (log, mut old) = Log::new();
    log.fail_next(0, Fault::Before);
    log.append(&mut old, 2).unwrap_err();
    let mut elsewhere = None;
    for _ in 0..4 {
        // The open record is written, and the answer is lost.
        log.fail_next(2, Fault::After);
        log.append(&mut old, 2).unwrap_err();
        elsewhere.get_or_insert_with(|| log.copy());
    }
    (log, elsewhere.unwrap())
}

/// A newer writer goes on there, and then the place that it had not seen is brought up, to so many segments.
fn go_on_elsewhere(log: &Log, elsewhere: &Log, segments: usize) {
    let mut new = elsewhere.open("a").unwrap();
    for version in 2..5 {
        elsewhere.append(&mut new, version).unwrap();
    }
    let newer = elsewhere.store.0.lock().unwrap().objects.clone();
    log.store.0.lock().unwrap().objects.extend(newer);
    let objects = log.store.0.lock().unwrap().objects.clone();
    assert_eq!(objects.keys().filter(|name| name.starts_with("log")).count(), segments);
}

#[test]
fn a_node_that_was_quiet_before_it_ended_wrote_its_database_itself() {
    let (log, mut writer) = Log::new();
    writer.close(60_000);
    let end = LogEnd::read(&log.store, &log.keys).unwrap();
    assert!(end.head.in_doubt && end.closed);
    assert!(end.explains(1), "it was last written to with the newest batch");
    assert!(end.explains(65_000), "its last commit took a while");
    assert!(!end.explains(66_000), "somebody wrote to it afterwards");
}

#[test]
fn an_older_writer_stays_fenced_however_many_came_after_it() {
    let (log, mut old) = Log::new();
    for _ in 0..40 {
        log.open("a").unwrap().close(1);
    }
    assert!(matches!(log.append(&mut old, 2), Err(Error::Fenced { .. })));
}

#[test]
fn of_two_that_claim_at_once_each_gets_its_own_epoch() {
    let (log, _) = Log::new();
    let claim = |directory: &str| {
        let claimant = Claimant::this_process("test", "node", directory, 1).unwrap();
        fence::claim(&log.store, &log.keys, &claimant).unwrap()
    };
    let first = claim("a");
    // The second one has listed the claims before the first one's was there.
    let hidden = format!("epochs/{first:08x}");
    log.store.0.lock().unwrap().unlisted.insert(hidden);
    assert_eq!(claim("a"), first + 1);
}

/// The writer before looks for the epoch behind its own: none may be left out.
#[test]
fn a_claim_that_cannot_be_written_leaves_no_epoch_out() {
    let (log, mut old) = Log::new();
    let claimant = Claimant::this_process("test", "node", "a", 1).unwrap();
    log.fail_next(0, Fault::Before);
    let failed = fence::claim(&log.store, &log.keys, &claimant);
    assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
    assert_eq!(fence::claim(&log.store, &log.keys, &claimant).unwrap(), old.epoch() + 1);
    assert!(matches!(log.append(&mut old, 2), Err(Error::Fenced { .. })));
}

#[test]
fn another_claim_of_one_process_has_a_token_and_a_time_of_its_own() {
    let first = Claimant::this_process("test", "node", "a", 1).unwrap();
    let second = first.renewed(2).unwrap();
    assert_ne!(second.token, first.token);
    assert_eq!(second, Claimant { token: second.token.clone(), time: 2, ..first });
}

#[test]
fn a_generation_of_a_fenced_writer_hides_nothing() {
    let (log, _) = Log::new();
    let mut old = log.open("a").unwrap();
    let mut new = log.open("a").unwrap();
    log.append(&mut new, 2).unwrap();
    let start = Start { reason: StartReason::Gap, base: None };
    assert!(matches!(old.begin(start, Some(DataVersion(9)), 1), Err(Error::Fenced { .. })));
    log.append(&mut new, 3).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 3)", "(3, 3)"]);

    // Even where the generation was begun between its look at the claims and the claim.
    let (generation, epoch) = (2, 2);
    let key = log.keys.current().unwrap();
    let header = Header {
        kind: ObjectKind::Segment,
        key: key.id(),
        store: log.keys.store(),
        generation,
        epoch,
        seq: 4,
        index: 7,
        prev: Chain::default(),
        nonce_prefix: [3; 16],
    };
    let newest = LogEnd::read(&log.store, &log.keys).unwrap();
    let name = format!("log/{generation:08x}/{epoch:08x}-00000007-{:016x}.seg", 4);
    log.store.create(&name, &header.encode()).unwrap();
    assert_eq!(LogEnd::read(&log.store, &log.keys).unwrap(), newest);
}

#[test]
fn a_segment_without_a_record_voids_nothing() {
    let (log, mut writer) = Log::new();
    log.append(&mut writer, 2).unwrap();
    // Anybody can write a header that is bound to the record before the last.
    let before = LogEnd::read(&log.store, &log.keys).unwrap().position;
    let header = Header {
        kind: ObjectKind::Segment,
        key: log.keys.current().unwrap().id(),
        store: log.keys.store(),
        generation: before.generation,
        epoch: 1,
        seq: before.seq,
        index: 1,
        prev: Chain([5; 32]),
        nonce_prefix: [3; 16],
    };
    let name = format!("log/{:08x}/00000001-00000001-{:016x}.seg", before.generation, before.seq);
    log.store.create(&name, &header.encode()).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 1)"]);
    let mut next = log.open("a").unwrap();
    log.append(&mut next, 3).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 1)", "(3, 2)"]);
}

#[test]
fn a_second_segment_of_a_fenced_writer_is_void_whole() {
    let (log, mut old) = Log::new();
    // The record is durable, but the look at the claims fails: not acknowledged, tried again.
    log.fail_next(1, Fault::Before);
    assert!(matches!(log.append(&mut old, 2), Err(Error::Store(_))));
    let mut new = log.open("a").unwrap();
    let claims: Vec<String> = {
        let disk = log.store.0.lock().unwrap();
        disk.objects.keys().filter(|name| name.starts_with("epochs/")).cloned().collect()
    };
    // The old writer looked before the claim was there, and writes its open record after.
    let claim = claims.last().unwrap();
    let hidden = log.store.0.lock().unwrap().objects.remove(claim).unwrap();
    log.fail_next(3, Fault::Before);
    assert!(log.append(&mut old, 2).is_err());
    log.store.0.lock().unwrap().objects.insert(claim.clone(), hidden);
    log.append(&mut new, 3).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 1)", "(3, 2)"]);
}

#[test]
fn a_log_belongs_to_the_directory_that_was_restored_last() {
    let (log, mut old) = Log::new();
    old.close(1);
    let restored = LogEnd::read(&log.store, &log.keys).unwrap().position;
    let mut b = log.take_over("b", restored, 1, 9).unwrap();
    b.close(1);
    // One transaction ahead of what `a` has: `a` must not take it for one that was never committed.
    let mut b = log.open("b").unwrap();
    log.append(&mut b, 2).unwrap();
    assert!(matches!(log.open("a"), Err(Error::RestoredElsewhere { .. })));
    let mut b = log.open("b").unwrap();
    log.append(&mut b, 3).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 3)", "(3, 5)"]);
    // And what was restored before that is no base to go on from.
    assert!(matches!(log.take_over("c", restored, 1, 9), Err(Error::Refused { .. })));
}

#[test]
fn a_record_that_was_fenced_during_a_restore_does_not_hinder_it() {
    let (log, mut old) = Log::new();
    let claimant = Claimant::this_process("test", "restore", "b", 1).unwrap();
    let claimed = fence::claim(&log.store, &log.keys, &claimant).unwrap();
    let restored = LogEnd::read(&log.store, &log.keys).unwrap().position;
    assert!(matches!(log.append(&mut old, 2), Err(Error::Fenced { .. })));
    log.take_over("b", restored, 1, claimed).unwrap().close(1);
    let mut b = log.open("b").unwrap();
    log.append(&mut b, 2).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 4)"]);
}

/// A restored database holds the newest batch: it can not be one that was never committed.
#[test]
fn after_a_restore_nothing_is_in_doubt() {
    let (log, _) = Log::new();
    let restored = LogEnd::read(&log.store, &log.keys).unwrap();
    assert!(restored.head.in_doubt);
    log.take_over("b", restored.position, 1, 9).unwrap().close(1);
    let mut b = log.open("b").unwrap();
    assert!(matches!(log.append(&mut b, 1), Err(Error::Behind { .. })));
}

/// A snapshot says at which record it was made, and what the log had proved by then.
#[test]
fn a_log_that_does_not_lead_on_from_where_a_snapshot_was_made_is_refused() {
    let (log, mut writer) = Log::new();
    log.append(&mut writer, 2).unwrap();
    writer.close(1);
    let first = LogEnd::read(&log.store, &log.keys).unwrap().position;
    log.append(&mut writer, 3).unwrap();
    let end = LogEnd::read(&log.store, &log.keys).unwrap().position;
    let segments = log::all_segments(&log.store).unwrap();
    assert_eq!(segments.len(), 2);
    let read = |after: After, from: usize| {
        let reader = LogReader::new(&log.store, &log.keys);
        reader.read_from(Some(after), &segments[from..], &mut Committed::new(|_| Ok(())))
    };
    let other = [0xee; 32];
    for (at, from) in [(first, 0), (first, 1), (end, 0), (end, 1)] {
        assert_eq!(read(at.mark().into(), from).unwrap(), Some(end));
        assert_eq!(read(After::new(at.seq, &at.chain.0[..4]), from).unwrap(), Some(end));
        assert!(matches!(read(After::new(at.seq, &other), from), Err(Error::Damaged { .. })));
    }
    // Records are missing between the snapshot and the log, or the snapshot is ahead of it.
    let missing = read(After::new(first.seq - 1, &other), 1);
    assert!(matches!(missing, Err(Error::Damaged { .. })), "{missing:?}");
    let ahead = read(After::new(end.seq + 1, &other), 0);
    assert!(matches!(ahead, Err(Error::Damaged { .. })), "{ahead:?}");
}

#[test]
fn a_segment_that_is_full_is_followed_by_another() {
    let (log, mut writer) = Log::new();
    writer.set_segment_bytes(1);
    for version in 2..5 {
        log.append(&mut writer, version).unwrap();
    }
    assert_eq!(log::all_segments(&log.store).unwrap().len(), 4);
    assert_eq!(log.logged(), ["(1, 1)", "(2, 1)", "(3, 1)", "(4, 1)"]);
    let (_, whole) = Log::new();
    assert!(whole.appended_bytes() > 0 && writer.appended_bytes() > 2 * whole.appended_bytes());
}

#[test]
fn a_writer_counts_the_bytes_that_it_appended() {
    let (log, writer) = Log::new();
    let segments = log::all_segments(&log.store).unwrap();
    let stored: u64 = segments.iter().map(|entry| entry.size - HEADER_LEN as u64).sum();
    assert_eq!(writer.appended_bytes(), stored);
}

/// What is there in place of a new segment is not this writer's to remove.
#[test]
fn an_object_in_the_way_of_a_segment_stays() {
    let next_segment = |in_its_way: Option<&str>| {
        let (log, mut writer) = Log::new();
        if let Some(name) = in_its_way {
            log.store.create(name, b"somebody's").unwrap();
        }
        writer.set_segment_bytes(1);
        let appended = log.append(&mut writer, 2);
        (log, appended)
    };
    let (log, appended) = next_segment(None);
    appended.unwrap();
    let name = log::all_segments(&log.store).unwrap()[1].name.to_string();
    let (log, appended) = next_segment(Some(&name));
    appended.unwrap_err();
    assert_eq!(log.store.read(&name).unwrap(), b"somebody's");
}

/// Its writer died before the header was durable: then nothing is behind it. Otherwise it is damage.
#[test]
fn a_segment_without_a_whole_header_is_none_where_nothing_is_behind_it() {
    let (log, _) = Log::new();
    let name = log::all_segments(&log.store).unwrap()[0].name;
    let whole = log.store.read(&name.to_string()).unwrap();
    let load = |bytes: Vec<u8>| {
        log.store.0.lock().unwrap().objects.insert(name.to_string(), bytes);
        LoadedSegment::load(&log.store, &log.keys, name).map(|found| found.is_some())
    };
    assert!(load(whole.clone()).unwrap());
    assert!(!load(Vec::new()).unwrap());
    assert!(!load(whole[..HEADER_LEN - 1].to_vec()).unwrap());
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    assert!(matches!(load(damaged.clone()), Err(Error::Damaged { .. })));
    damaged[HEADER_LEN..].fill(0);
    assert!(!load(damaged).unwrap(), "zeros are nothing");
}

#[test]
fn where_a_log_begins_is_noted_once_for_each_generation() {
    let store = SimStore::default();
    let noted = || -> Vec<String> {
        store.list("beginnings").unwrap().into_iter().map(|entry| entry.name).collect()
    };
    for (generation, at) in [(1, (1, 1)), (2, (1, 2)), (1, (2, 0)), (1, (2, 0)), (1, (1, 7))] {
        Beginnings::note(&store, generation, at).unwrap();
    }
    // The last one came late: it is of no use, and in nobody's way.
    let names = ["00000001-00000001-00000007", "00000001-00000002-00000000"];
    assert_eq!(noted(), [&names[..], &["00000002-00000001-00000002"]].concat());
    let beginnings = Beginnings::read(&store).unwrap();
    let left_out = |generation, epoch, index| {
        beginnings.leaves_out(&SegmentName { generation, epoch, index, first_seq: 1 })
    };
    assert!(left_out(1, 1, 9) && !left_out(1, 2, 0) && !left_out(1, 2, 1));
    assert!(left_out(2, 1, 1) && !left_out(2, 1, 2) && !left_out(3, 0, 0));
    let at = store.0.lock().unwrap().operations;
    store.0.lock().unwrap().fail_at = Some((at, Fault::Before));
    assert!(Beginnings::note(&store, 4, (1, 0)).is_err());
}

#[test]
fn a_database_is_at_the_head_or_right_before_a_batch_in_doubt() {
    let (log, _) = Log::new();
    let end = LogEnd::read(&log.store, &log.keys).unwrap();
    let batch = end.head.batch_seq.unwrap();
    let at = |end: &LogEnd| [0, 1, 2].map(|version| end.seq_of(DataVersion(version)));
    assert_eq!(at(&end), [Some(batch - 1), Some(end.position.seq), None]);
    let committed = Head { in_doubt: false, ..end.head };
    let end = LogEnd { head: committed, ..end };
    assert_eq!(at(&end), [None, Some(end.position.seq), None]);
}

#[test]
fn a_store_that_is_opened_anew_must_be_the_same_log() {
    let (log, mut writer) = Log::new();
    let older = log.copy();
    log.append(&mut writer, 2).unwrap();
    writer.reattach(log.copy().arc()).unwrap();
    writer.reattach(log.arc()).unwrap();
    // The open record of a new segment is durable, and its writer was not told.
    log.fail_next(2, Fault::After);
    log.append(&mut writer, 3).unwrap_err();
    let refused = writer.reattach(older.arc());
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    writer.reattach(log.arc()).unwrap();
    log.append(&mut writer, 3).unwrap();
    assert_eq!(log.logged(), ["(1, 1)", "(2, 1)", "(3, 1)"]);
    let _newer = log.open("a").unwrap();
    assert!(matches!(writer.reattach(log.arc()), Err(Error::Fenced { .. })));
}

/// It sees the claim soon.
#[test]
fn an_older_writer_that_is_faster_is_waited_for_but_not_for_ever() {
    let open_behind = |records: usize| {
        let (log, _) = Log::new();
        log.store.0.lock().unwrap().taken = records;
        let opened = log.open("a").map(|mut new| log.append(&mut new, 2));
        let left = log.store.0.lock().unwrap().taken;
        (opened, records - left)
    };
    let (opened, _) = open_behind(3);
    opened.unwrap().unwrap();
    let (opened, tries) = open_behind(100);
    assert!(matches!(opened, Err(Error::Overtaken { .. })), "{:?}", opened.err());
    assert!(tries < 50, "{tries}");
}

/// What a newer writer voided and went on from is void for ever: nobody else goes on from that.
#[test]
fn a_segment_that_is_bound_to_a_void_record_is_damage() {
    let (log, mut old) = Log::new();
    let seen = log.copy();
    log.append(&mut old, 2).unwrap();
    let mut new = seen.open("a").unwrap();
    for version in 2..5 {
        seen.append(&mut new, version).unwrap();
    }
    let objects = log.store.0.lock().unwrap().objects.clone();
    seen.store.0.lock().unwrap().objects.extend(objects);
    assert_eq!(seen.logged(), ["(1, 1)", "(2, 2)", "(3, 2)", "(4, 2)"]);
    // As if nobody had gone on from before it.
    let claimant = Claimant::this_process("test", "node", "a", 1).unwrap();
    fence::claim(&log.store, &log.keys, &claimant).unwrap();
    log.append(&mut log.open("a").unwrap(), 3).unwrap();
    let bound = log::all_segments(&log.store).unwrap().pop().unwrap().name.to_string();
    seen.store.create(&bound, &log.store.read(&bound).unwrap()).unwrap();
    let damage = seen.damage();
    assert!(damage.contains(&bound) && damage.contains("does not continue the log"), "{damage}");
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let (log, mut writer) = Log::new();
    writer.set_segment_bytes(1);
    for version in 2..5 {
        log.append(&mut writer, version).unwrap();
    }
    let segments = log::all_segments(&log.store).unwrap();
    let (second, third) = (segments[1].name, segments[2].name);
    let lacks = log.copy();
    lacks.store.remove(&second.to_string()).unwrap();
    let missing = format!(
        "records seq {} to {} are missing before it",
        second.first_seq,
        third.first_seq - 1
    );
    let damage = lacks.damage();
    assert!(damage.contains(&third.to_string()) && damage.contains(&missing), "{damage}");
    // Behind its first record.
    let segment = LoadedSegment::load(&log.store, &log.keys, second).unwrap().unwrap();
    let mut records = segment.records(&log.keys).unwrap();
    records.next(&mut Vec::new()).unwrap();
    let at = records.offset() as usize;
    log.store.0.lock().unwrap().objects.get_mut(&second.to_string()).unwrap()[at + 20] ^= 1;
    let named = format!("record seq {} in '{second}' at byte {at}", second.first_seq + 1);
    let damage = log.damage();
    assert!(damage.contains(&named), "{damage}");
}
