//! Arbitrary bytes from lightningd, in arbitrary pieces: the same messages as in one piece, and none that is a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_wire::{DbWrite, Framing, Message};
use serde_json::value::RawValue;

fn messages(pieces: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let (mut framing, mut messages) = (Framing::default(), Vec::new());
    for piece in pieces {
        for part in piece.chunks(64 * 1024) {
            framing.buffer().extend_from_slice(part);
            while framing.advance().expect("it is short") {
                messages.push(framing.message().to_vec());
            }
        }
    }
    messages
}

// How long the pieces are, how often all of it is repeated, and the bytes.
fuzz_target!(|input: (Vec<u8>, u8, &[u8])| {
    let (sizes, times, bytes) = input;
    let bytes = bytes.repeat(usize::from(times) + 1);
    let whole = messages(std::iter::once(bytes.clone()));
    let (mut rest, mut sizes) = (&bytes[..], sizes.iter().cycle());
    let mut split = Vec::new();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |&size| usize::from(size) + 1);
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        split.push(piece.to_vec());
        rest = behind;
    }
    assert_eq!(messages(split.into_iter()), whole);
    for message in &whole {
        if let Ok(Message { params: Some(call), .. }) = Message::<DbWrite<'_>>::parse(message) {
            assert!(call.writes.iter().all(|sql| sql.as_ref().len() <= message.len()));
        }
        let _ = Message::<&RawValue>::parse(message);
    }
});
