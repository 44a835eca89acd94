//! What a crash can leave at the end of a segment is told from what was altered there.

use lockstep_proto::seal::{
    Chain, DataKey, FrameError, HEADER_LEN, Header, ObjectKind, Opener, Sealer, StoreId, Tail,
    tail_after,
};
use proptest::prelude::*;

struct Segment {
    key: DataKey,
    header: Header,
    bytes: Vec<u8>,
    /// Where each frame ends.
    ends: Vec<usize>,
}

/// A segment whose frames hold `sizes` bytes each, behind `lead` bytes that move them off sector bounds.
fn segment(sizes: &[usize]) -> Segment {
    let key = DataKey::generate().unwrap();
    let header = Header {
        kind: ObjectKind::Segment,
        key: key.id(),
        store: StoreId([7; 16]),
        generation: 1,
        epoch: 2,
        seq: 40,
        index: 0,
        prev: Chain([9; 32]),
        nonce_prefix: Header::random_nonce_prefix().unwrap(),
    };
    let mut bytes = header.encode().to_vec();
    let mut sealer = Sealer::new(&key, &header);
    let ends = sizes
        .iter()
        .map(|&size| {
            sealer.seal(&vec![0x5a; size], &mut bytes).unwrap();
            bytes.len()
        })
        .collect();
    Segment { key, header, bytes, ends }
}

/// Opens all frames: how many there are, and what lies behind the last.
fn read(segment: &Segment, bytes: &[u8]) -> (usize, Result<(), FrameError>, Tail) {
    let mut opener = Opener::new(&segment.key, &segment.header);
    let (mut at, mut count, mut plain) = (HEADER_LEN, 0, Vec::new());
    let end = loop {
        match opener.open(&bytes[at..], &mut plain) {
            Ok(len) => {
                at += len;
                count += 1;
            }
            Err(FrameError::End) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    (count, end, tail_after(&bytes[at..], at as u64, opener.next_number()))
}

/// A frame that is opened apart from its object is judged as one that is opened in it.
#[test]
fn frames_that_are_taken_open_as_others_do() {
    let segment = segment(&[0, 1, 500, 70_000]);
    let begins = || std::iter::once(HEADER_LEN).chain(segment.ends.iter().copied());
    for changed in begins().map(|at| at + 8) {
        let mut bytes = segment.bytes.clone();
        if let Some(byte) = bytes.get_mut(changed) {
            *byte ^= 1;
        }
        let mut opener = Opener::new(&segment.key, &segment.header);
        let mut taker = Opener::new(&segment.key, &segment.header);
        for (from, to) in begins().zip(segment.ends.iter().copied()) {
            let mut plain = Vec::new();
            let opened = opener.open(&bytes[from..to], &mut plain);
            let taken = taker.take(bytes[from..to].to_vec()).unwrap().open();
            assert_eq!(taken.map(|frame| frame[8..].to_vec()), opened.map(|_| plain));
            if opened.is_err() {
                break;
            }
            assert_eq!(taker.chain(), opener.chain());
        }
    }
}

#[test]
fn a_header_comes_back() {
    let segment = segment(&[]);
    assert_eq!(Header::decode(&segment.bytes), Ok(segment.header));
}

#[test]
fn every_changed_byte_of_a_header_is_found() {
    let segment = segment(&[]);
    for at in 0..HEADER_LEN {
        let mut bytes = segment.bytes.clone();
        bytes[at] ^= 0x10;
        assert!(Header::decode(&bytes).is_err(), "byte {at}");
    }
}

#[test]
fn every_changed_bit_of_a_whole_last_frame_is_damage() {
    for zeros in [0, 4096] {
        let mut segment = segment(&[10, 1500, 900]);
        let end = segment.bytes.len();
        segment.bytes.resize(end + zeros, 0);
        for at in segment.ends[1]..end {
            for bit in 0..8 {
                let mut bytes = segment.bytes.clone();
                bytes[at] ^= 1 << bit;
                let (count, _, tail) = read(&segment, &bytes);
                assert_eq!((count, tail), (2, Tail::Damaged), "byte {at} bit {bit}");
            }
        }
    }
}

#[test]
fn a_frame_cut_at_any_byte_is_torn_or_whole() {
    let whole = segment(&[10, 700]);
    for zeros in [false, true] {
        for cut in whole.ends[0]..whole.bytes.len() {
            let mut bytes = whole.bytes[..cut].to_vec();
            if zeros {
                bytes.resize(whole.bytes.len() + 3000, 0);
            }
            let (count, _, tail) = read(&whole, &bytes);
            // Only the end mark is missing: the frame is authentic, and taken.
            let expected = match whole.bytes.len() - cut {
                1..=8 => (2, Tail::Clean),
                _ if cut == whole.ends[0] => (1, Tail::Clean),
                _ => (1, Tail::Torn),
            };
            assert_eq!((count, tail), expected, "cut at {cut}, zeros {zeros}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, failure_persistence: None, ..Default::default() })]

    /// A power cut writes any of the sectors of the last frame and leaves the others as they were: zeros.
    #[test]
    fn sectors_lost_in_any_order_are_torn(
        lead in 0_usize..1200,
        size in 1_usize..6000,
        kept in prop::collection::vec(any::<bool>(), 16),
    ) {
        let whole = segment(&[lead, size]);
        let (from, to) = (whole.ends[0], whole.ends[1]);
        let mut bytes = whole.bytes.clone();
        bytes.resize(to + 2048, 0);
        let mut lost = 0;
        for at in from..to {
            if !kept[(at / 512 - from / 512) % kept.len()] {
                bytes[at] = 0;
                lost += 1;
            }
        }
        // Fewer than four bytes of the frame in its first sector cannot be told from damage.
        prop_assume!(512 - from % 512 >= 4 || kept[0]);
        let (count, _, tail) = read(&whole, &bytes);
        match (count, tail) {
            (2, Tail::Clean) => prop_assert!(lost <= 8),
            (1, Tail::Torn) => prop_assert!(lost > 0),
            (1, Tail::Clean) => prop_assert_eq!(lost, to - from),
            // A sector in which the frame has only its last few bytes: the mark tells.
            other => prop_assert!(false, "{:?} with {} bytes lost of {}", other, lost, to - from),
        }
    }

    #[test]
    fn arbitrary_tails_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), offset in 0_u64..2000) {
        let segment = segment(&[]);
        let mut plain = Vec::new();
        let _ = Opener::new(&segment.key, &segment.header).open(&bytes, &mut plain);
        let _ = tail_after(&bytes, offset, 7);
    }
}

#[test]
fn frames_open_only_in_their_own_place() {
    let one = segment(&[10, 10, 10]);
    let frame = |n: usize| {
        let from = if n == 0 { HEADER_LEN } else { one.ends[n - 1] };
        one.bytes[from..one.ends[n]].to_vec()
    };
    for order in [[1, 0, 2], [0, 2, 1], [0, 0, 1], [2, 1, 0]] {
        let mut bytes = one.bytes[..HEADER_LEN].to_vec();
        order.iter().for_each(|&n| bytes.extend(frame(n)));
        let (count, end, tail) = read(&one, &bytes);
        assert!(count < 3 && end.is_err() && tail == Tail::Damaged, "{order:?}");
    }
}

/// Any sector of a log of many frames lost, its last excepted: later frames prove that it is damage.
#[test]
fn a_lost_sector_with_frames_behind_it_is_damage() {
    let whole = segment(&[100; 40]);
    let last = whole.ends[38];
    for at in (512..last - 512).step_by(512) {
        let mut bytes = whole.bytes.clone();
        bytes[at..at + 512].fill(0);
        let (count, _, tail) = read(&whole, &bytes);
        assert!(count < 39 && tail == Tail::Damaged, "sector at {at}: {count} frames, {tail:?}");
    }
}
