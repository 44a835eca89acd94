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
