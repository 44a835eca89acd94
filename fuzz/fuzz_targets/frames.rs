//! Arbitrary bytes behind a header: frames or an error, and a verdict on the tail, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_proto::seal::{Chain, DataKey, Header, ObjectKind, StoreId, tail_after};
use lockstep_proto::segment::SegmentReader;

fuzz_target!(|bytes: &[u8]| {
    let Ok(key) = DataKey::generate() else { return };
    let header = Header::decode(bytes).unwrap_or(Header {
        kind: ObjectKind::Segment,
        key: key.id(),
        store: StoreId([0; 16]),
        generation: 1,
        epoch: 1,
        seq: 1,
        index: 0,
        prev: Chain::default(),
        nonce_prefix: [0; 16],
    });
    let mut reader = SegmentReader::new(&key, &header, bytes);
    let mut plain = Vec::new();
    while let Ok(Some(_)) = reader.next(&mut plain) {}
    let _ = tail_after(bytes, bytes.len() as u64, 7);
});
