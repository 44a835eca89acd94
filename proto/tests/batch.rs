//! A batch comes back as it went in, text for text; and nothing that is read can make the reader panic.

use lockstep_proto::batch::codec::{
    Decoder, Encoder, Malformed, REMEMBERED_BYTES_MAX, SHAPES_MAX, Statement,
};
use lockstep_proto::batch::shape::{Shape, Values, split};
use proptest::prelude::*;

fn decode(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut texts = Vec::new();
    decoder.decode(bytes, |shapes, statement| {
        texts.push(match statement {
            Statement::Text(text) => text.to_owned(),
            Statement::Shaped(index, values) => {
                let mut text = String::new();
                shapes[index].render(values, &mut text).ok_or(Malformed("does not render"))?;
                text
            }
        });
        Ok(())
    })?;
    Ok(texts)
}

fn round_trip(batches: &[Vec<String>]) {
    let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
    for batch in batches {
        let mut bytes = Vec::new();
        encoder.encode(batch, &mut bytes);
        assert_eq!(&decode(&mut decoder, &bytes).unwrap(), batch);
    }
}

/// Statements such as lightningd's, and such as nobody would write.
fn statement() -> impl Strategy<Value = String> {
    let literal = prop_oneof![
        any::<u64>().prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        "[0-9]{1,25}",
        "0[0-9]{0,3}",
        "[0-9]{1,3}\\.[0-9]{0,3}(e[0-9]{1,2})?",
        "x'([0-9a-f]{2}){0,40}'",
        "[xX]'[0-9a-fA-F]{0,9}'",
        ".{0,20}".prop_map(|text| format!("'{}'", text.replace('\'', "''"))),
        Just("NULL".to_owned()),
    ];
    let glue = prop_oneof![
        Just(", ".to_owned()),
        Just(" AND a=".to_owned()),
        Just("".to_owned()),
        Just(" -- it's\n".to_owned()),
        Just("/* 'x' */".to_owned()),
        Just("\"quoted 1 '\"".to_owned()),
        Just("[a 2]".to_owned()),
        Just("WHERE".to_owned()),
        "\\PC{0,4}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec((literal, glue), 0..8).prop_map(|parts| {
        let mut sql = String::from("UPDATE t SET a=");
        for (literal, glue) in parts {
            sql += &literal;
            sql += &glue;
        }
        sql
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_batch_comes_back(batches in prop::collection::vec(prop::collection::vec(statement(), 0..6), 1..6)) {
        // Each twice, so that shapes are seen again with the same and with other values.
        let twice: Vec<_> = batches.iter().chain(&batches).cloned().collect();
        round_trip(&twice);
    }

    #[test]
    fn a_split_statement_renders_as_it_was(sql in statement()) {
        let (mut bytes, mut values) = (Vec::new(), Values::default());
        if split(&sql, &mut bytes, &mut values) {
            let shape = Shape::new(&bytes).unwrap();
            let mut text = String::new();
            shape.render(&values, &mut text).unwrap();
            prop_assert_eq!(text, sql);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&mut Decoder::default(), &bytes);
    }

    #[test]
    fn altered_bytes_never_panic(batch in prop::collection::vec(statement(), 1..6), at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut bytes = Vec::new();
        Encoder::default().encode(&batch, &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let _ = decode(&mut Decoder::default(), &bytes);
    }
}

fn shape_of(sql: &str) -> Shape {
    let (mut bytes, mut values) = (Vec::new(), Values::default());
    assert!(split(sql, &mut bytes, &mut values), "{sql}");
    Shape::new(&bytes).unwrap()
}

#[test]
fn more_shapes_than_the_table_holds_become_text() {
    let batch: Vec<String> = (0..SHAPES_MAX + 10).map(|n| format!("DELETE FROM t{n}")).collect();
    round_trip(&[batch.clone(), batch]);
}

#[test]
fn values_past_the_limit_are_not_remembered() {
    let long = "y".repeat(REMEMBERED_BYTES_MAX + 1);
    let batches: Vec<Vec<String>> = ["a", &long, "a", "b", &long, &long]
        .iter()
        .map(|label| vec![format!("INSERT INTO t VALUES (1, '{label}')")])
        .collect();
    round_trip(&batches);
}

#[test]
fn a_shape_first_seen_with_long_values_is_remembered_later() {
    let long = "y".repeat(REMEMBERED_BYTES_MAX + 1);
    let batches: Vec<Vec<String>> = [&long, "a", "a", &long, "a"]
        .iter()
        .map(|label| vec![format!("INSERT INTO t VALUES (1, '{label}')")])
        .collect();
    round_trip(&batches);
}

#[test]
fn only_plain_changes_are_bound() {
    let bound = |sql| shape_of(sql).parameterized();
    assert_eq!(
        bound("UPDATE t SET a=5 WHERE b=x'00'").as_deref(),
        Some("UPDATE t SET a=? WHERE b=?")
    );
    assert_eq!(bound("CREATE TABLE t (a INTEGER DEFAULT 5)"), None);
    assert_eq!(bound("INSERT INTO t SELECT a FROM u ORDER BY 1"), None);
    assert_eq!(bound("PRAGMA foreign_keys = 1"), None);
    assert_eq!(bound("DELETE FROM t WHERE a='?' AND \"?\"=1"), None);
}

#[test]
fn a_settings_batch_is_one_of_pragmas_alone() {
    use lockstep_proto::batch::is_settings;
    assert!(is_settings(&["PRAGMA foreign_keys = OFF;"]));
    assert!(is_settings(&[" pragma foreign_keys=ON"]));
    assert!(!is_settings(&["PRAGMA foreign_keys = OFF;", "DELETE FROM t"]));
    assert!(!is_settings(&["INSERT INTO t VALUES ('PRAGMA ')"]));
    assert!(!is_settings::<&str>(&[]));
}

fn encoded(encoder: &mut Encoder, batch: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoder.encode(batch, &mut bytes);
    bytes
}

/// docs/format.md, 8.2: what changed since a shape's last use, and nothing else.
#[test]
fn a_batch_is_the_bytes_that_the_format_says() {
    let mut encoder = Encoder::default();
    let first = encoded(&mut encoder, &["SET a=5 WHERE b=x'0a'", "SET a=300 WHERE b=x'0a'", "SET"]);
    let shape = b"SET a=\x01 WHERE b=\x03";
    // Three statements; a new shape of 17 bytes with both values; shape 0 with the first one changed; a new shape.
    let mut wanted = vec![3, 1, 17];
    wanted.extend_from_slice(shape);
    wanted.extend_from_slice(&[1, 5, 1, 0x0a]);
    wanted.extend_from_slice(&[2, 0b01, 2, 0xac, 0x02]);
    wanted.extend_from_slice(b"\x01\x03SET");
    assert_eq!(first, wanted);
    // The next batch of the segment goes on from there; what cannot be split is text.
    let second = encoded(&mut encoder, &["SET a=300 WHERE b=x'0b'", "SET '"]);
    assert_eq!(second, [&[2, 2, 0b10, 1, 0x0b, 0, 5][..], b"SET '"].concat());
}

#[test]
fn values_that_are_too_long_leave_nothing_to_differ_from() {
    let mut encoder = Encoder::default();
    let long = "y".repeat(REMEMBERED_BYTES_MAX + 1);
    encoded(&mut encoder, &[&format!("SET a='{long}'")]);
    assert_eq!(encoded(&mut encoder, &["SET a='b'"]), b"\x01\x02\x01b");
    assert_eq!(encoded(&mut encoder, &["SET a='b'"]), [1, 2, 0]);
    // Those of a later use leave what was remembered before.
    encoded(&mut encoder, &[&format!("SET a='{long}'")]);
    assert_eq!(encoded(&mut encoder, &["SET a='b'"]), [1, 2, 0]);
}

/// Of lightningd's tables some have more columns than a byte has bits.
#[test]
fn any_of_many_values_may_change() {
    let row = |changed: usize| {
        let values: Vec<_> = (0..20).map(|at| u8::from(at == changed).to_string()).collect();
        format!("INSERT INTO t VALUES ({})", values.join(", "))
    };
    round_trip(&(0..21).map(|changed| vec![row(20), row(changed)]).collect::<Vec<_>>());
}

#[test]
fn an_integer_beyond_63_bits_is_malformed() {
    use lockstep_proto::batch::wire::put_varint;
    for (value, is_one) in [(i64::MAX as u64, true), (1 << 63, false), (u64::MAX, false)] {
        let mut integer = Vec::new();
        put_varint(&mut integer, value);
        let bytes = [b"\x01\x01\x07SET a=\x01", &[integer.len() as u8][..], &integer].concat();
        assert_eq!(decode(&mut Decoder::default(), &bytes).is_ok(), is_one, "{value}");
    }
    // One more byte than the integer has.
    let bytes = b"\x01\x01\x07SET a=\x01\x02\x05\x00";
    assert!(decode(&mut Decoder::default(), bytes).is_err());
}

#[test]
fn no_more_shapes_are_read_than_are_written() {
    let longest = [&[1, 1, 0x80, 0x80, 4][..], &[b'a'; 65_536]].concat();
    assert_eq!(decode(&mut Decoder::default(), &longest).unwrap(), ["a".repeat(65_536)]);
    let longer = [&[1, 1, 0x81, 0x80, 4][..], &[b'a'; 65_537]].concat();
    assert!(decode(&mut Decoder::default(), &longer).is_err());
    let mut decoder = Decoder::default();
    for number in 0..SHAPES_MAX {
        let shape = format!("{number:04}");
        decode(&mut decoder, &[&[1, 1, 4][..], shape.as_bytes()].concat()).unwrap();
    }
    assert!(decode(&mut decoder, b"\x01\x01\x04more").is_err());
}

#[test]
fn a_blob_of_any_bytes_is_a_value() {
    for len in [16, 17, 255, 256] {
        let blob: Vec<u8> = (0..=255).cycle().skip(len).take(len).collect();
        let digits: String = blob.iter().map(|byte| format!("{byte:02x}")).collect();
        let (mut shape, mut values) = (Vec::new(), Values::default());
        assert!(split(&format!("SET a=x'{digits}'"), &mut shape, &mut values));
        assert_eq!(shape, b"SET a=\x03");
        assert_eq!(values.get(0), blob);
    }
}

#[test]
fn a_blob_with_a_wrong_digit_anywhere_comes_back() {
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    for len in [2, 32, 34, 64, 66] {
        for at in 0..len {
            for wrong in ('\u{1}'..='\u{e9}').filter(|&wrong| !is_digit(wrong)) {
                let mut digits = "a5".repeat(len / 2);
                digits.replace_range(at..=at, &wrong.to_string());
                round_trip(&[vec![format!("SET a=x'{digits}'")]]);
            }
        }
        for wrong in ["GG", "::", "gg"] {
            let digits = format!("{wrong}{}", "a5".repeat(len / 2 - 1));
            round_trip(&[vec![format!("SET a=x'{digits}'")]]);
        }
    }
}

#[test]
fn what_is_quoted_or_a_comment_holds_no_values() {
    for word in ["\"a 1 x'00'\"", "`a 1`", "[a 1 'b']", "-- 1 'b\n", "/* 1 'b */", "\"a\"\"1\""] {
        assert_eq!(shape_of(&format!("SET {word} =2")).markers(), [1], "{word}");
        assert_eq!(shape_of(&format!("SET a=2 {word}")).markers(), [1], "{word}");
    }
    assert_eq!(shape_of("SET a=1 - 2 / 3").markers(), [1, 1, 1]);
}

#[test]
fn only_an_integer_in_its_one_spelling_is_a_value() {
    for number in ["1.5", "1.", ".5", "007", "0x10", "1e5", "5x", "t1", "9223372036854775808"] {
        assert!(shape_of(&format!("SET a={number}")).markers().is_empty(), "{number}");
    }
    for number in ["0", "7", "12", "305", "9223372036854775807"] {
        assert_eq!(shape_of(&format!("SET a={number}")).markers(), [1], "{number}");
    }
    assert_eq!(shape_of("5").markers(), [1]);
}

#[test]
fn what_would_pass_for_a_marker_is_kept_as_text() {
    let (mut bytes, mut values) = (Vec::new(), Values::default());
    for marker in ['\0', '\u{1}', '\u{2}', '\u{3}'] {
        for place in [format!("a{marker}"), format!("x'{marker}'"), format!("/*{marker}*/")] {
            let sql = format!("SET {place}");
            assert!(!split(&sql, &mut bytes, &mut values), "{sql:?}");
            round_trip(&[vec![sql]]);
        }
    }
    for kept in ["a\u{4}", "x'A'", "x'\u{4}'", "/*\u{4}*/", "'\u{3}'"] {
        assert!(split(&format!("SET {kept}"), &mut bytes, &mut values), "{kept:?}");
    }
}

#[test]
fn an_integer_has_one_form_of_64_bits_at_most() {
    use lockstep_proto::batch::wire::{put_varint, take_varint};
    for value in [0, 1, 127, 128, 300, u64::MAX >> 1, u64::MAX] {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        assert_eq!(take_varint(&bytes), Some((value, &[][..])));
    }
    let ten = |last| [[0xff; 9].as_slice(), &[last]].concat();
    assert_eq!(take_varint(&ten(1)), Some((u64::MAX, &[][..])));
    assert_eq!(take_varint(&ten(2)), None, "65 bits");
    assert_eq!(take_varint(&ten(0)), None, "not its shortest form");
    assert_eq!(take_varint(&[0x80]), None, "cut short");
}
