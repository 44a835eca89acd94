//! Arbitrary bytes as names, records, key rings, URLs: an error or a value that encodes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_proto::destination::Destination;
use lockstep_proto::layout::{SegmentName, parse_claim};
use lockstep_proto::record::Record;
use lockstep_proto::seal::KeyRing;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = Record::decode(bytes) {
        let mut again = Vec::new();
        record.encode(&mut again).expect("encodes");
        assert_eq!(Record::decode(&again), Ok(record));
    }
    let _ = KeyRing::decode(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = parse_claim(text);
        let _ = text.parse::<Destination>();
        if let Some(name) = SegmentName::parse(1, text) {
            assert_eq!(name.to_string(), format!("log/00000001/{text}"));
        }
    }
});
