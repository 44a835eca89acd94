//! Segments in parts: what is there of them while they are put together, continued, or written by two.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use lockstep_proto::layout::{self, SegmentName};
use lockstep_proto::seal::{Chain, Header, KeyId, ObjectKind, StoreId};
use lockstep_proto::store::{Append, Fencing, Store, StoreError, StoreErrorKind};

use crate::bucket::SimBucket;
use crate::faults::{Errno, Fault, Plan, Process};
use crate::odd_bucket::{OddBucket, Oddity};

/// Bytes of each record here.
const FRAME: usize = 50;

/// A segment as its writer makes it.
struct Segment {
    name: SegmentName,
    header: Vec<u8>,
    bytes: Vec<u8>,
}

impl Segment {
    fn new(epoch: u32, index: u32, first_seq: u64) -> Self {
        let name = SegmentName { generation: 1, epoch, index, first_seq };
        let header = Header {
            kind: ObjectKind::Segment,
            key: KeyId([1; 4]),
            store: StoreId([1; 16]),
            generation: 1,
            epoch,
            seq: first_seq,
            index,
            prev: Chain::default(),
            nonce_prefix: Header::random_nonce_prefix().unwrap(),
        };
        let header = header.encode().to_vec();
        Self { name, bytes: header.clone(), header }
    }

    fn object(&self) -> String {
        self.name.to_string()
    }

    /// One of `records` is acknowledged after the other.
    fn append(&mut self, to: &mut dyn Append, records: impl IntoIterator<Item = u8>) {
        for record in records {
            to.append(&[record; FRAME]).unwrap();
            self.bytes.extend([record; FRAME]);
        }
    }

    /// Its writer writes so many records, and is gone.
    fn write(mut self, store: &dyn Store, records: u8) -> Self {
        let mut append = store.create_append(&self.object(), &self.header).unwrap();
        self.append(&mut *append, 0..records);
        self
    }

    #[track_caller]
    fn expect_in(&self, store: &dyn Store, context: &str) {
        let object = self.object();
        assert!(store.exists(&object).unwrap(), "{object}: {context}");
        assert!(store.read(&object).unwrap() == self.bytes, "{object}: {context}");
        let all = store.list_all(layout::LOG).unwrap();
        let sizes = all.iter().filter(|entry| object.ends_with(&entry.name)).map(|e| e.size);
        assert_eq!(sizes.collect::<Vec<_>>(), [self.bytes.len() as u64], "{object}: {context}");
    }
}

fn checker(bucket: &SimBucket) -> impl Store + use<> {
    bucket.store("sim", &Process::checker())
}

/// The numbers of the records that are in parts, and those that are only kept from being taken.
fn parts(bucket: &SimBucket) -> (Vec<u64>, Vec<u64>) {
    let objects = bucket.objects();
    let parts = objects.iter().filter_map(|(name, bytes)| {
        let (seq, _) = layout::parse_part(name.strip_prefix("tail/")?)?;
        Some((seq, bytes.is_empty()))
    });
    let (kept, there): (Vec<_>, Vec<_>) = parts.partition(|(_, empty)| *empty);
    let seqs = |parts: Vec<(u64, bool)>| parts.into_iter().map(|(seq, _)| seq).collect();
    (seqs(there), seqs(kept))
}

#[track_caller]
fn kind<T>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.err().expect("an error").kind
}

/// Of an epoch the first number stays taken, so that a writer of an older one that wakes up late does not get it; nothing
/// else is left.
#[test]
fn whichever_request_of_a_merge_is_lost_each_segment_is_whole() {
    let steps = Arc::new(AtomicU64::new(0));
    for fault in [Fault::Before(Errno::Io), Fault::Short(Errno::Io), Fault::After(Errno::Io)] {
        for number in 0.. {
            let context = format!("request {number}, {fault:?}");
            let bucket = SimBucket::default();
            let check = checker(&bucket);
            let process = Process::new(Plan::At { number, fault, lasting: false }, &steps);
            let segments = [
                Segment::new(1, 0, 1).write(&check, 3),
                Segment::new(1, 1, 4).write(&check, 3),
                Segment::new(2, 0, 7).write(&check, 1),
            ];
            let merged = bucket.store("sim", &process).tidy();
            let struck = process.struck() > 0;
            assert!(struck || merged.is_ok(), "{context}: {merged:?}");
            segments.iter().for_each(|segment| segment.expect_in(&check, &context));
            assert!(!check.exists(&Segment::new(1, 2, 7).object()).unwrap());
            check.tidy().unwrap();
            segments.iter().for_each(|segment| segment.expect_in(&check, &context));
            assert_eq!(parts(&bucket), (vec![7], vec![1]), "{context}");
            if !struck {
                break;
            }
        }
    }
}

#[test]
fn what_an_interrupted_merge_left_of_the_parts_is_removed() {
    let bucket = SimBucket::default();
    let store = checker(&bucket);
    let segments = [(1, 0, 1), (1, 1, 4), (2, 0, 7)]
        .map(|(epoch, index, first_seq)| Segment::new(epoch, index, first_seq).write(&store, 3));
    for (segment, removed) in segments.iter().zip([2, 5]) {
        bucket.arrives(&segment.object(), segment.bytes.clone().into());
        store.remove(&layout::part(removed, None)).unwrap();
    }
    store.tidy().unwrap();
    segments.iter().for_each(|segment| segment.expect_in(&store, ""));
    assert_eq!(parts(&bucket), (vec![7, 8, 9], vec![1]));
}

#[test]
fn a_segment_that_is_ended_is_put_together_and_the_first_number_of_its_epoch_stays_taken() {
    let bucket = SimBucket::default();
    let (store, steps) = (checker(&bucket), Arc::default());
    assert_eq!(store.label(), "sim");
    for (mut segment, kept) in
        [(Segment::new(1, 0, 1), 1), (Segment::new(1, 1, 4), 1), (Segment::new(2, 0, 7), 2)]
    {
        let mut append = store.create_append(&segment.object(), &segment.header).unwrap();
        segment.append(&mut *append, 0..3);
        append.finish().unwrap();
        segment.expect_in(&store, "");
        let (there, taken) = parts(&bucket);
        assert_eq!((there.len(), taken.len()), (0, kept));
    }
    // One that wakes up late.
    let late = bucket.store("sim", &Process::new(Plan::Never, &steps));
    for first_seq in [1, 7] {
        let segment = Segment::new(0, 0, first_seq);
        let mut append = late.create_append(&segment.object(), &segment.header).unwrap();
        assert!(matches!(kind(append.append(&[1; FRAME])), StoreErrorKind::Taken));
    }
}

#[test]
fn of_two_writers_of_one_record_one_is_told_that_it_is_taken() {
    let bucket = SimBucket::default();
    let (older, newer) = (checker(&bucket), checker(&bucket));
    let segment = Segment::new(1, 0, 1).write(&older, 1);
    let other = Segment::new(2, 0, 1);
    let mut append = newer.create_append(&other.object(), &other.header).unwrap();
    assert!(matches!(kind(append.append(&[0; FRAME])), StoreErrorKind::Taken));
    segment.expect_in(&newer, "");
}

/// Else its successor might never get hold of a number.
#[test]
fn a_writer_whose_successor_has_claimed_is_refused_although_its_number_is_free() {
    let bucket = SimBucket::default();
    let store = checker(&bucket);
    let mut segment = Segment::new(1, 0, 1);
    let mut append = store.create_append(&segment.object(), &segment.header).unwrap();
    segment.append(&mut *append, [1, 2]);
    store.create(&layout::claim(2), b"claim").unwrap();
    assert!(matches!(kind(append.append(&[3; FRAME])), StoreErrorKind::Taken));
}

#[test]
fn a_segment_in_parts_is_full_before_it_takes_long_to_read() {
    let store = checker(&SimBucket::default());
    let segment = Segment::new(1, 0, 1);
    let mut append = store.create_append(&segment.object(), &segment.header).unwrap();
    let mut records = 0;
    while !append.is_full() {
        append.append(&[1; FRAME]).unwrap();
        records += 1;
        assert!(records <= 1024);
    }
    assert!(records > 1000, "{records}");
}

/// A record that nobody was told of has the number that its successor's first one must have.
#[test]
fn a_segment_that_is_gone_on_with_gets_its_numbers_and_takes_no_others() {
    let bucket = SimBucket::default();
    let store = checker(&bucket);
    let oldest = Segment::new(1, 0, 1).write(&store, 2);
    let left = Segment::new(2, 0, 3).write(&store, 3);
    let mut newer = Segment::new(3, 0, 5);
    for round in 0..3 {
        // The second time what is there already is its own.
        let records: Vec<Arc<[u8]>> =
            newer.bytes[newer.header.len()..].chunks(FRAME).map(Arc::from).collect();
        let first = if round == 0 { vec![Arc::from([9; FRAME])] } else { records };
        let resumed = store.resume_append(&newer.object(), &newer.header, &first);
        let mut append = resumed.unwrap();
        if round == 0 {
            newer.bytes.extend([9; FRAME]);
        }
        newer.append(&mut *append, [10 + round, 20 + round]);
        for segment in [&oldest, &left, &newer] {
            segment.expect_in(&checker(&bucket), &format!("round {round}"));
        }
        let own = (5..6 + 2 * (u64::from(round) + 1)).collect::<Vec<_>>();
        assert_eq!(parts(&bucket).0, [&[1, 2], &own[..]].concat(), "round {round}");
    }
}

/// A replacement is lost on its way, or its answer on its: what is acknowledged is there.
#[test]
fn what_is_replaced_is_there_once_that_is_acknowledged() {
    let steps = Arc::new(AtomicU64::new(0));
    for fault in [Fault::Before(Errno::Io), Fault::Short(Errno::Io), Fault::After(Errno::Io)] {
        for number in 0..3 {
            let bucket = SimBucket::default();
            checker(&bucket).create("heartbeats/1", b"older").unwrap();
            let process = Process::new(Plan::At { number, fault, lasting: false }, &steps);
            bucket.store("sim", &process).replace("heartbeats/1", b"newer").unwrap();
            let there = checker(&bucket).read("heartbeats/1").unwrap();
            assert_eq!(there, b"newer", "request {number}, {fault:?}");
        }
    }
}

/// A listing in any order, of more parts than are asked for at once.
#[test]
fn many_parts_are_found_in_whatever_order_they_are_listed() {
    for oddity in [Oddity::None, Oddity::ListsBackwards] {
        let bucket = OddBucket::new(oddity);
        let store = bucket.store();
        let first = Segment::new(1, 0, 1).write(&store, 10);
        let mut long = Segment::new(2, 0, 11);
        for seq in 11..2_200 {
            bucket.put(&layout::part(seq, None), [&long.header[..], &[7; FRAME]].concat());
            long.bytes.extend([7; FRAME]);
        }
        first.expect_in(&store, &format!("{oddity:?}"));
        long.expect_in(&store, &format!("{oddity:?}"));
    }
}

/// Each of them refuses a second create that comes alone.
#[test]
fn a_place_where_creates_race_is_known_for_it() {
    for (oddity, fencing) in [
        (Oddity::None, Fencing::Real),
        (Oddity::ChecksFirst, Fencing::Advisory),
        (Oddity::RefusesAndWritesInARace, Fencing::Advisory),
    ] {
        assert_eq!(OddBucket::new(oddity).store().fencing().unwrap(), fencing, "{oddity:?}");
    }
}

#[test]
fn an_object_that_another_writer_put_its_own_over_is_not_ours() {
    let bucket = OddBucket::new(Oddity::OverwrittenAtOnce);
    let store = bucket.store();
    assert_eq!(store.fencing().unwrap(), Fencing::Advisory);
    assert!(matches!(kind(store.create("epochs/00000001", b"ours")), StoreErrorKind::Exists));
}

#[test]
fn a_large_object_is_sent_piece_by_piece_and_one_that_is_given_up_is_taken_back() {
    const CHUNK: usize = 8 << 20;
    let content: Vec<u8> = (0..2 * CHUNK + CHUNK / 2).map(|at| (at / 1000) as u8).collect();
    for pieces in [content.len(), CHUNK, 3 << 20] {
        let bucket = OddBucket::new(Oddity::None);
        let store = bucket.store();
        let write = || {
            let mut object = store.create_stream("snapshots/00000001/a").unwrap();
            content.chunks(pieces).for_each(|piece| object.write(piece).unwrap());
            object
        };
        drop(write());
        assert_eq!(bucket.given_up(), 1);
        assert!(!store.exists("snapshots/00000001/a").unwrap());
        write().commit().unwrap();
        assert!(store.read("snapshots/00000001/a").unwrap() == content);
        assert!(bucket.largest() <= CHUNK, "{}", bucket.largest());
        assert_eq!(bucket.given_up(), 1);
    }
}
