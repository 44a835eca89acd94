//! What a crash can leave at the end of a segment is told from what was altered there.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use lockstep_proto::record::{Record, RecordError};
use lockstep_proto::seal::{
    Chain, DataKey, FRAME_BYTES_MAX, FrameError, HEADER_LEN, Header, HeaderError, KeyRing,
    ObjectKind, Opener, Sealer, StoreId, Tail, frame_size, tail_after,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

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

/// docs/format.md, 6.2 to 6.4: by the key itself, under a nonce of its own, bound to its number and to all that came before.
#[test]
fn a_frame_is_the_bytes_that_the_format_says() {
    let (secret, store) = ("07".repeat(32), "01".repeat(16));
    let ring = format!(
        r#"{{"format":"lockstep-keyring","version":1,"store_id":"{store}","keys":["{secret}"]}}"#
    );
    let ring = KeyRing::decode(ring.as_bytes()).unwrap();
    let header = Header { key: ring.current().unwrap().id(), ..segment(&[]).header };
    let cipher = XChaCha20Poly1305::new(&[7; 32].into());
    let mut chain: [u8; 32] = Sha256::digest(header.encode()).into();
    let mut sealer = Sealer::new(ring.current().unwrap(), &header);
    for (number, plain) in (header.seq..).zip([&b"one"[..], b"", b"three"]) {
        let number: u64 = number;
        let mut nonce = XNonce::default();
        nonce[..16].copy_from_slice(&header.nonce_prefix);
        nonce[16..].copy_from_slice(&number.to_le_bytes());
        let aad = [&chain[..], &number.to_le_bytes()].concat();
        let sealed = cipher.encrypt(&nonce, Payload { msg: plain, aad: &aad }).unwrap();
        let len = sealed.len() as u32;
        let mark = [&(number as u32).to_le_bytes()[..], b"END."].concat();
        let prefix = [len.to_le_bytes(), (!len).to_le_bytes()].concat();
        let mut frame = Vec::new();
        sealer.seal(plain, &mut frame).unwrap();
        assert_eq!(frame, [prefix, sealed.clone(), mark].concat());
        chain = Sha256::new().chain_update(chain).chain_update(sealed).finalize().into();
        assert_eq!(sealer.chain(), Chain(chain));
    }
}

#[test]
fn each_object_has_a_nonce_prefix_of_its_own() {
    assert_ne!(Header::random_nonce_prefix().unwrap(), Header::random_nonce_prefix().unwrap());
}

/// Also where whoever wrote them there made the check fit.
#[test]
fn a_header_with_something_in_its_reserved_bytes_is_damaged() {
    let whole = segment(&[]).header.encode();
    for at in (11..12).chain(52..64) {
        let mut bytes = whole;
        bytes[at] = 1;
        let check: [u8; 32] = Sha256::digest(&bytes[..112]).into();
        bytes[112..].copy_from_slice(&check[..16]);
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Damaged), "byte {at}");
    }
}

#[test]
fn a_record_of_an_unknown_kind_is_named_as_such() {
    let close = br#"{"time":1,"reason":"full"}"#;
    let of_kind = |kind: u8| [&[kind], &close[..]].concat();
    assert!(matches!(Record::decode(&of_kind(4)), Ok(Record::Close(_))));
    for kind in [0, 6, 255] {
        assert_eq!(Record::decode(&of_kind(kind)), Err(RecordError::Kind(kind)));
    }
}

/// What one lost sector hides would pass for an interrupted write, were there not a whole frame behind it.
#[test]
fn a_lost_sector_before_a_whole_frame_is_damage() {
    for zeros in [0, 4096] {
        let whole = segment(&[10, 2000, 700]);
        let from = whole.ends[0];
        let mut bytes = whole.bytes.clone();
        bytes[from..from.next_multiple_of(512)].fill(0);
        bytes.resize(whole.bytes.len() + zeros, 0);
        assert_eq!(read(&whole, &bytes).2, Tail::Damaged);
        bytes.truncate(whole.ends[1]);
        assert_eq!(read(&whole, &bytes).2, Tail::Torn, "nothing is behind it");
    }
}

/// Of an interrupted write of so few bytes only as many frames can be behind it.
#[test]
fn a_mark_of_a_frame_that_cannot_be_there_yet_proves_nothing() {
    let whole = segment(&[10, 500]);
    let cut = &whole.bytes[whole.ends[0]..][..50];
    for (ahead, wanted) in [(0, Tail::Torn), (1, Tail::Damaged), (2, Tail::Torn), (500, Tail::Torn)]
    {
        let mark = [&(41_u32 + ahead).to_le_bytes()[..], b"END."].concat();
        let rest = [cut, &mark].concat();
        assert_eq!(tail_after(&rest, whole.ends[0] as u64, 41), wanted, "{ahead}");
    }
}

#[test]
fn a_part_of_a_prefix_is_an_interrupted_write_and_a_wrong_one_is_damage() {
    assert_eq!(tail_after(&[1; 7], 4096, 7), Tail::Torn);
    assert_eq!(tail_after(&[1; 8], 4096, 7), Tail::Damaged);
    let key = DataKey::generate().unwrap();
    let open = |bytes| Opener::new(&key, &segment(&[]).header).open(bytes, &mut Vec::new());
    assert_eq!(open(&[0; 3]), Err(FrameError::End));
    assert_eq!(open(&[1; 3]), Err(FrameError::Short));
}

/// Of a prefix across two sectors the second was written: what is seen of the length must reach as far as what is there.
#[test]
fn a_prefix_that_lost_its_first_sector_fits_what_was_written() {
    let offset = 4096 - 6;
    // All that is seen of the length is that it is 0x1____: of at most 0x1ffff bytes, prefix and mark besides.
    for (written, wanted) in [(0x1_ffff + 16, Tail::Torn), (0x1_ffff + 17, Tail::Damaged)] {
        let mut rest = vec![0x5a; written];
        rest[..6].fill(0);
        rest[6..8].copy_from_slice(&(!1_u16).to_le_bytes());
        assert_eq!(tail_after(&rest, offset, 7), wanted, "{written}");
    }
}

#[test]
fn a_length_is_taken_up_to_what_the_format_allows() {
    let size = |len: usize| {
        let len = len as u32;
        let mut prefix = [0; 8];
        prefix[..4].copy_from_slice(&len.to_le_bytes());
        prefix[4..].copy_from_slice(&(!len).to_le_bytes());
        frame_size(&prefix)
    };
    assert_eq!(size(16), Ok(Some(32)));
    assert_eq!(size(FRAME_BYTES_MAX + 16), Ok(Some(FRAME_BYTES_MAX + 32)));
    for len in [1, 15, FRAME_BYTES_MAX + 17] {
        assert_eq!(size(len), Err(FrameError::Damaged), "{len}");
    }
}
