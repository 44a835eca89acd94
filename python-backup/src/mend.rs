//! Statements that an old lightningd spelled wrongly.
//!
//! Where the SQL of a statement had no space between a parameter and the next keyword (`SET a=?WHERE …`),
//! lightningd reported it with the value in place and still without the space: `SET a=123WHERE …`, or
//! `SET a=NULLWHERE …`, which SQLite does not read. The space is put back. A number that is followed by a
//! keyword is an error everywhere in SQL but in quotes, so nothing that was right is changed.

use std::borrow::Cow;

/// Keywords that may follow a value.
const KEYWORDS: [&str; 23] = [
    "WHERE",
    "AND",
    "OR",
    "ORDER",
    "GROUP",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "FROM",
    "ON",
    "IN",
    "IS",
    "NOT",
    "BETWEEN",
    "LIKE",
    "AS",
    "ASC",
    "DESC",
    "THEN",
    "ELSE",
    "WHEN",
    "END",
    "RETURNING",
];

/// `sql` with the spaces that it lacks; borrowed where it lacks none.
pub fn mend(sql: &str) -> Cow<'_, str> {
    let bytes = sql.as_bytes();
    let mut mended = String::new();
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'\'' | b'"' | b'`') => at = after(bytes, at + 1, quote),
            b'[' => at = after(bytes, at + 1, b']'),
            byte if is_word(byte) => {
                let end = at + bytes[at..].iter().take_while(|&&byte| is_word(byte)).count();
                // A word ends at bytes of ASCII or at the end: these are places between characters.
                if let Some(len) = value_before_keyword(&bytes[at..end]) {
                    mended.push_str(&sql[copied..at + len]);
                    mended.push(' ');
                    copied = at + len;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(sql);
    }
    mended.push_str(&sql[copied..]);
    Cow::Owned(mended)
}

/// Bytes of the value that `word` begins with, where a keyword is all the rest of it.
fn value_before_keyword(word: &[u8]) -> Option<usize> {
    let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let len = if digits > 0 { digits } else { word.starts_with(b"NULL").then_some(4)? };
    KEYWORDS.iter().any(|keyword| keyword.as_bytes() == &word[len..]).then_some(len)
}

/// Letters, digits, `_`, `$` and every byte of a non-ASCII character.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// Where the quoted stretch that has begun before `from` is over. A doubled quote begins the next stretch.
fn after(bytes: &[u8], from: usize, quote: u8) -> usize {
    let len = bytes[from..].iter().position(|&byte| byte == quote);
    len.map_or(bytes.len(), |len| from + len + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_is_put_back() {
        for (wrong, right) in [
            (
                "UPDATE outputs SET status=123, reserved_til=1891733WHERE prev_out_tx=x'01'",
                "UPDATE outputs SET status=123, reserved_til=1891733 WHERE prev_out_tx=x'01'",
            ),
            (
                "UPDATE channels SET peer_id=7WHERE channels.id=8AND a='9WHERE'",
                "UPDATE channels SET peer_id=7 WHERE channels.id=8 AND a='9WHERE'",
            ),
            ("UPDATE t SET a=NULLWHERE b=1", "UPDATE t SET a=NULL WHERE b=1"),
            ("UPDATE t SET é=1WHERE a='é'", "UPDATE t SET é=1 WHERE a='é'"),
        ] {
            assert_eq!(mend(wrong), right);
        }
    }

    #[test]
    fn what_is_right_is_left_alone() {
        for sql in [
            "",
            "UPDATE t SET a=123 WHERE b=0x1AND",
            "UPDATE t SET a=1e5, b=x'12', c='it''s 5WHERE', d=\"1WHERE\", [2AND]=3",
            "SELECT col1WHERE, NULLABLE, N1AND, t1.a FROM \"u",
            "INSERT INTO t VALUES ('unfinished 1WHERE",
        ] {
            assert!(matches!(mend(sql), Cow::Borrowed(same) if same == sql), "{sql}");
        }
    }
}
