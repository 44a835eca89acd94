//! Any statements come back from a segment as they went in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_proto::batch::codec::{Decoder, Encoder, Malformed, Statement};

fuzz_target!(|batches: Vec<Vec<String>>| {
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    for batch in batches {
        let (mut bytes, mut texts) = (Vec::new(), Vec::new());
        encoder.encode(&batch, &mut bytes);
        decoder
            .decode::<Malformed>(&bytes, |shapes, statement| {
                texts.push(match statement {
                    Statement::Text(text) => text.to_owned(),
                    Statement::Shaped(index, values) => {
                        let mut text = String::new();
                        shapes[index].render(values, &mut text).expect("renders");
                        text
                    }
                });
                Ok(())
            })
            .expect("decodes");
        assert_eq!(texts, batch);
    }
});
