//! Arbitrary records, sealed with the right key behind a real log: restored or refused, never a panic.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use lockstep_fuzz::Sample;
use lockstep_proto::layout::SegmentName;
use lockstep_proto::log::LogEnd;
use lockstep_proto::seal::{Header, ObjectKind, Sealer};
use lockstep_proto::verify;

fuzz_target!(|input: &[u8]| {
    static SAMPLE: OnceLock<(Sample, LogEnd)> = OnceLock::new();
    let (sample, end) = SAMPLE.get_or_init(|| {
        let sample = Sample::make();
        let end = LogEnd::read(&sample.store, &sample.keys).expect("it has an end");
        (sample, end)
    });
    let key = sample.keys.current().expect("it has a key");
    let header = Header {
        kind: ObjectKind::Segment,
        key: key.id(),
        store: sample.keys.store(),
        generation: end.position.generation,
        epoch: end.epoch + 1,
        seq: end.position.seq + 1,
        index: 0,
        prev: end.position.chain,
        nonce_prefix: [9; 16],
    };
    let mut bytes = header.encode().to_vec();
    let mut sealer = Sealer::new(key, &header);
    // Each record behind its length in two bytes.
    let mut rest = input;
    while let Some((len, behind)) = rest.split_first_chunk() {
        let (record, behind) = behind.split_at(behind.len().min(u16::from_le_bytes(*len).into()));
        sealer.seal(record, &mut bytes).expect("it is short");
        rest = behind;
    }
    let name = SegmentName::of(&header);
    let mut store = sample.store.clone();
    store.0.insert(name.to_string(), Arc::new(bytes));
    let _ = sample.restore(&store, false);
    let _ = verify::run(&store, &sample.keys, &mut |_| {});
});
