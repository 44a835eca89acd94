//! Arbitrary bytes as the batches of a segment: an error or statements that render, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_proto::batch::codec::{Decoder, Malformed, Statement};

fuzz_target!(|batches: Vec<Vec<u8>>| {
    let mut decoder = Decoder::default();
    for batch in batches {
        let decoded: Result<(), Malformed> = decoder.decode(&batch, |shapes, statement| {
            if let Statement::Shaped(index, values) = statement {
                let mut text = String::new();
                let _ = shapes[index].render(values, &mut text);
                let _ = shapes[index].parameterized();
            }
            Ok(())
        });
        if decoded.is_err() {
            break;
        }
    }
});
