//! Values as `sqlite3_expanded_sql` renders them, drawn from a seed.

use fastrand::Rng;

/// Text that broke some tool once: SQL, JSON and Unicode at their edges. No
/// NUL: the expanded text of a statement ends there.
const NASTY_TEXT: [&str; 30] = [
    "",
    "'",
    "''''",
    "it's \"quoted\" `so` [much]",
    "'; DROP TABLE channels; --",
    "-- no comment",
    "/* neither */",
    "semi;colon;",
    "two\nlines",
    "carriage\r\nreturn\ttab",
    "\u{1}\u{8}\u{1f}\u{7f}",
    "⚡🦀👩‍👩‍👧‍👦",
    "e\u{301} \u{202e}right to left\u{202c} \u{feff}",
    "\u{2028}\u{2029}\u{85}",
    "\u{10ffff}\u{fffd}\u{d7ff}",
    "\\",
    "\\u0041\\n\\\"",
    "{\"json\": [true, null]}",
    "x'00ff'",
    "NULL",
    "0",
    "007",
    "-1",
    "9223372036854775807",
    "18446744073709551615",
    "1e5",
    "0x1F",
    " 12 ",
    "? ?1 :name @name $name %s %n",
    "Łódź 東京 Ελλάδα עברית",
];

const EDGE_INTEGERS: [i64; 14] = [
    0,
    1,
    -1,
    127,
    -128,
    255,
    65_536,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    281_474_976_710_655,
    i64::MAX,
    i64::MIN,
    i64::MIN + 1,
];

const EDGE_REALS: [&str; 12] = [
    "0.0",
    "0.1",
    "-0.5",
    "1.0",
    "3.14159265358979",
    "1.0e+308",
    "-1.7976931348623157e308",
    "5.0e-324",
    "1.0e-10",
    "9007199254740993.0",
    "-123456789.125",
    "1.0e+15",
];

/// NULL.
pub(super) const NULL: &str = "NULL";

/// Single quotes, doubled within.
pub(super) fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// `x'…'`, in lower case.
pub(super) fn blob(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut literal = String::with_capacity(bytes.len() * 2 + 3);
    literal.push_str("x'");
    for byte in bytes {
        literal.push(char::from(DIGITS[usize::from(byte >> 4)]));
        literal.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    literal.push('\'');
    literal
}

/// So many random bytes.
pub(super) fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}

/// A random blob of a length, as a literal.
pub(super) fn random_blob(rng: &mut Rng, length: usize) -> String {
    blob(&bytes(rng, length))
}

/// A hash, as a literal.
pub(super) fn hash(rng: &mut Rng) -> String {
    random_blob(rng, 32)
}

/// A public key, as a literal.
pub(super) fn public_key(rng: &mut Rng) -> String {
    let mut key = bytes(rng, 33);
    key[0] = 2 + (key[0] & 1);
    blob(&key)
}

/// One of the texts that break things, or a plain one.
pub(super) fn any_text(rng: &mut Rng) -> String {
    match rng.u8(..8) {
        0 => String::new(),
        1..=4 => NASTY_TEXT[rng.usize(..NASTY_TEXT.len())].to_owned(),
        5 => {
            let parts = (0..rng.usize(2..6)).map(|_| NASTY_TEXT[rng.usize(..NASTY_TEXT.len())]);
            parts.collect()
        }
        6 => (0..rng.usize(1..40)).map(|_| printable(rng)).collect(),
        _ => format!("lnbcrt{}", rng.u64(..)),
    }
}

/// Any character but NUL.
fn printable(rng: &mut Rng) -> char {
    match rng.u8(..4) {
        0 => rng.char('\u{1}'..='\u{10ffff}'),
        _ => rng.char(' '..='~'),
    }
}

/// Any integer, the extremes more often than chance.
pub(super) fn any_integer(rng: &mut Rng) -> i64 {
    match rng.u8(..4) {
        0 => EDGE_INTEGERS[rng.usize(..EDGE_INTEGERS.len())],
        1 => rng.i64(..),
        _ => rng.i64(0..1_000_000),
    }
}

/// A literal of any type.
pub(super) fn any_value(rng: &mut Rng) -> String {
    match rng.u8(..8) {
        0 => NULL.to_owned(),
        1 | 2 => any_integer(rng).to_string(),
        3 => EDGE_REALS[rng.usize(..EDGE_REALS.len())].to_owned(),
        4 | 5 => text(&any_text(rng)),
        6 => blob(b""),
        _ => {
            let length = rng.usize(1..80);
            random_blob(rng, length)
        }
    }
}

/// Either a literal or NULL.
pub(super) fn nullable(rng: &mut Rng, literal: impl FnOnce(&mut Rng) -> String) -> String {
    if rng.bool() { NULL.to_owned() } else { literal(rng) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;
    use rusqlite::types::Value;

    #[test]
    fn literals_are_what_sqlite_renders() {
        assert_eq!(text("it's"), "'it''s'");
        assert_eq!(blob(&[0, 0xab]), "x'00ab'");
        assert_eq!(blob(b""), "x''");
    }

    #[test]
    fn nasty_text_comes_back_from_sqlite_as_it_was() {
        let db = Connection::open_in_memory().unwrap();
        for nasty in NASTY_TEXT {
            let sql = format!("SELECT {}", text(nasty));
            let back: String = db.query_row(&sql, [], |row| row.get(0)).unwrap();
            assert_eq!(back, nasty);
        }
    }

    #[test]
    fn every_edge_keeps_its_type() {
        let db = Connection::open_in_memory().unwrap();
        let get = |literal: &str| -> Value {
            let sql = format!("SELECT {literal}");
            db.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        for edge in EDGE_INTEGERS {
            assert_eq!(get(&edge.to_string()), Value::Integer(edge));
        }
        for edge in EDGE_REALS {
            assert!(matches!(get(edge), Value::Real(_)), "{edge}");
        }
    }
}
