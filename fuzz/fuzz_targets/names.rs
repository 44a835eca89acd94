//! Arbitrary text as object names: none, or one that is written the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_proto::layout::{self, SegmentName, SnapshotName};

fuzz_target!(|text: &str| {
    if let Some(name) = SegmentName::parse_object(text) {
        assert_eq!(name.to_string(), text);
    }
    if let Some(name) = SegmentName::parse_below(text) {
        assert_eq!(name.to_string(), format!("log/{text}"));
    }
    if let Some(name) = SnapshotName::parse_object(text) {
        assert_eq!(name.to_string(), text);
    }
    if let Some(epoch) = layout::parse_claim(text) {
        assert_eq!(layout::claim(epoch), format!("epochs/{text}"));
    }
    if let Some(epoch) = layout::parse_heartbeat(text) {
        assert_eq!(layout::heartbeat(epoch), format!("heartbeats/{text}"));
    }
    if let Some((generation, seq)) = layout::parse_hold(text) {
        assert_eq!(layout::hold(generation, seq), format!("holds/{text}"));
    }
    if let Some((seq, owner)) = layout::parse_part(text) {
        assert_eq!(layout::part(seq, owner), format!("tail/{text}"));
    }
    let _ = layout::parse_generation(text);
});
