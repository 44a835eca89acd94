//! Splitting a statement into its *shape* and its literal values, and putting it together again.
//!
//! lightningd reports `sqlite3_expanded_sql` text: the same few hundred statements over and over
//! with different literals in place. The shape is the text with every literal that has one
//! canonical spelling replaced by a marker byte; the values are kept in binary. The split is exact:
//! [`Shape::render`] gives back the original text byte for byte. A literal in any other spelling
//! (`0x10`, `1.5`, `X'AB'`, `007`) simply stays in the shape.

use std::ops::Range;

/// Marker of a non-negative integer literal in a shape.
pub const INTEGER: u8 = 0x01;
/// Marker of a text literal (`'…'`, quotes doubled) in a shape.
pub const TEXT: u8 = 0x02;
/// Marker of a blob literal (`x'…'`, lower-case hexadecimal digits) in a shape.
pub const BLOB: u8 = 0x03;

/// The highest byte that a shape keeps for markers: a statement that holds one is not split.
const LAST_MARKER: u8 = BLOB;

/// The literals of one statement in binary form, one after another, reused from call to call.
#[derive(Debug, Default, Clone)]
pub struct Values {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Values {
    /// Forgets all values, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True without any value.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all values together.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Value `index` in the encoding of its marker: an integer as LEB128, text and blob as they are.
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.range(index)]
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        start..self.ends[index] as usize
    }

    /// Appends one value.
    pub fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.end();
    }

    fn end(&mut self) {
        self.ends.push(self.bytes.len() as u32);
    }
}

/// Splits `sql` into `shape` and `values` (both are overwritten). Returns false where the statement
/// cannot be split, and must be kept as text.
pub fn split(sql: &str, shape: &mut Vec<u8>, values: &mut Values) -> bool {
    shape.clear();
    values.clear();
    if u32::try_from(sql.len()).is_err() {
        return false;
    }
    let bytes = sql.as_bytes();
    // What lies between literals is copied in one piece.
    let (mut at, mut kept) = (0, 0);
    while let Some(plain) = bytes[at..].iter().position(|&byte| may_begin_literal(byte)) {
        at += plain;
        // Nothing that ends below ends inside a word: so this tells its middle from its beginning.
        let in_word = at > 0 && is_word(bytes[at - 1]);
        let literal = match bytes[at] {
            b'\'' => take_text(bytes, at, values).map(|end| (TEXT, end)),
            byte if in_word && is_word(byte) => {
                at += 1;
                continue;
            }
            b'0'..=b'9' => match take_number(bytes, at, values) {
                Some(end) => Some((INTEGER, end)),
                None => {
                    at = end_of_word(bytes, at);
                    continue;
                }
            },
            b'x' | b'X' if bytes.get(at + 1) != Some(&b'\'') => {
                at += 1;
                continue;
            }
            b'x' | b'X' => match take_blob(bytes, at, values) {
                Some((true, end)) => Some((BLOB, end)),
                Some((false, end)) if may_keep(&bytes[at..end]) => {
                    at = end;
                    continue;
                }
                _ => None,
            },
            _ => {
                let end = end_of_other(bytes, at);
                if may_keep(&bytes[at..end]) {
                    at = end;
                    continue;
                }
                None
            }
        };
        let Some((marker, end)) = literal else { return false };
        shape.extend_from_slice(&bytes[kept..at]);
        shape.push(marker);
        (at, kept) = (end, end);
    }
    shape.extend_from_slice(&bytes[kept..]);
    true
}

/// False for most of what lies between literals: it needs no look at all.
fn may_begin_literal(byte: u8) -> bool {
    const MAY: [bool; 256] = {
        let mut may = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            let b = byte as u8;
            may[byte] = b <= LAST_MARKER
                || matches!(
                    b,
                    b'0'..=b'9' | b'x' | b'X' | b'\'' | b'"' | b'`' | b'[' | b'-' | b'/'
                );
            byte += 1;
        }
        may
    };
    MAY[usize::from(byte)]
}

/// Letters, digits, `_`, `$` and every byte of a non-ASCII character: what an identifier is made of.
fn is_word(byte: u8) -> bool {
    const WORD: [bool; 256] = {
        let mut word = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            let b = byte as u8;
            word[byte] = b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80;
            byte += 1;
        }
        word
    };
    WORD[usize::from(byte)]
}

fn end_of_word(bytes: &[u8], at: usize) -> usize {
    let len = bytes[at..].iter().position(|&byte| !is_word(byte));
    len.map_or(bytes.len(), |len| at + len)
}

/// False where a shape cannot hold these bytes, for they would be taken for markers.
fn may_keep(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte > LAST_MARKER)
}

/// The end of what begins at `at` and is neither a word nor a literal: a quoted identifier, a comment, or one
/// byte. A doubled quote simply starts the next quoted stretch.
fn end_of_other(bytes: &[u8], at: usize) -> usize {
    let until = |close: u8| {
        let len = memchr::memchr(close, &bytes[at + 1..]);
        len.map_or(bytes.len(), |len| at + 2 + len)
    };
    match (bytes[at], bytes.get(at + 1)) {
        (quote @ (b'"' | b'`'), _) => until(quote),
        (b'[', _) => until(b']'),
        (b'-', Some(b'-')) => until(b'\n'),
        (b'/', Some(b'*')) => {
            let len = bytes[at + 2..].windows(2).position(|pair| pair == b"*/");
            len.map_or(bytes.len(), |len| at + 4 + len)
        }
        _ => at + 1,
    }
}

/// A run of digits, with what sticks to it, is one word: only a canonical `i64` on its own is a value. Returns
/// its end.
fn take_number(bytes: &[u8], at: usize, values: &mut Values) -> Option<usize> {
    let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let end = at + digits;
    let alone = bytes.get(end).is_none_or(|&byte| !is_word(byte) && byte != b'.')
        && (at == 0 || bytes[at - 1] != b'.');
    let canonical = alone && (digits == 1 || bytes[at] != b'0') && digits <= 19;
    if !canonical {
        return None;
    }
    let value = bytes[at..end]
        .iter()
        .try_fold(0_i64, |sum, digit| sum.checked_mul(10)?.checked_add(i64::from(digit - b'0')))?;
    super::wire::put_varint(&mut values.bytes, value as u64);
    values.end();
    Some(end)
}

fn take_text(bytes: &[u8], at: usize, values: &mut Values) -> Option<usize> {
    let mut from = at + 1;
    loop {
        let len = memchr::memchr(b'\'', &bytes[from..])?;
        values.bytes.extend_from_slice(&bytes[from..from + len]);
        from += len + 1;
        if bytes.get(from) != Some(&b'\'') {
            values.end();
            return Some(from);
        }
        values.bytes.push(b'\'');
        from += 1;
    }
}

/// Whether it is a value, and its end; `None` where it has none.
fn take_blob(bytes: &[u8], at: usize, values: &mut Values) -> Option<(bool, usize)> {
    let digits = &bytes[at + 2..];
    let len = memchr::memchr(b'\'', digits)?;
    let start = values.bytes.len();
    let canonical = bytes[at] == b'x' && put_hex(&digits[..len], &mut values.bytes);
    if canonical {
        values.end();
    } else {
        values.bytes.truncate(start);
    }
    Some((canonical, at + 3 + len))
}

/// Appends what lower-case hexadecimal digits spell; false, with anything appended, where they do not.
fn put_hex(digits: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let (pairs, odd) = digits.as_chunks();
    out.resize(start + pairs.len(), 0);
    // In pieces of a fixed size: the compiler makes vectors of them.
    let (pieces, rest) = pairs.as_chunks::<16>();
    let (places, places_of_rest) = out[start..].as_chunks_mut::<16>();
    let mut wrong = [0; 16];
    for (place, piece) in places.iter_mut().zip(pieces) {
        for ((byte, wrong), &pair) in place.iter_mut().zip(&mut wrong).zip(piece) {
            let (spelled, is_wrong) = byte_of(pair);
            *byte = spelled;
            *wrong |= is_wrong;
        }
    }
    for (byte, &pair) in places_of_rest.iter_mut().zip(rest) {
        let (spelled, is_wrong) = byte_of(pair);
        *byte = spelled;
        wrong[0] |= is_wrong;
    }
    odd.is_empty() && wrong == [0; 16]
}

/// What two lower-case hexadecimal digits spell, and 0; anything else with any other bytes. Both at once, each in its half.
fn byte_of(digits: [u8; 2]) -> (u8, u16) {
    const EACH: u16 = 0x0101;
    let digits = u16::from_le_bytes(digits);
    let values = (digits & (15 * EACH)) + 9 * (digits >> 6 & EACH);
    let is_letter = (values + 6 * EACH) >> 4 & EACH;
    let spelled = values + u16::from(b'0') * EACH + u16::from(b'a' - b'9' - 1) * is_letter;
    let is_wrong = (spelled ^ digits) | (values & (0xf0 * EACH));
    ((values << 4 | values >> 8) as u8, is_wrong)
}

/// One literal, as bound to a prepared statement or written into the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Literal<'a> {
    /// A non-negative integer.
    Integer(i64),
    /// Text, quotes not doubled.
    Text(&'a str),
    /// A blob.
    Blob(&'a [u8]),
}

impl<'a> Literal<'a> {
    /// Reads the value that `marker` stands for; `None` where it is not well formed.
    pub fn decode(marker: u8, value: &'a [u8]) -> Option<Self> {
        match marker {
            INTEGER => {
                let (integer, rest) = super::wire::take_varint(value)?;
                (rest.is_empty() && integer <= i64::MAX as u64)
                    .then_some(Literal::Integer(integer as i64))
            }
            TEXT => std::str::from_utf8(value).ok().map(Literal::Text),
            BLOB => Some(Literal::Blob(value)),
            _ => None,
        }
    }
}

/// A shape as a reader keeps it: its text with markers, and which markers there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    text: String,
    markers: Vec<u8>,
}

impl Shape {
    /// Takes the bytes of a shape; `None` where they are not UTF-8, or hold a NUL.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?.to_owned();
        let markers =
            bytes.iter().copied().filter(|byte| (INTEGER..=LAST_MARKER).contains(byte)).collect();
        Some(Self { text, markers })
    }

    /// Bytes of its text and markers.
    pub fn byte_len(&self) -> usize {
        self.text.len() + self.markers.len()
    }

    /// The markers in order: the type of each value.
    pub fn markers(&self) -> &[u8] {
        &self.markers
    }

    /// The statement with `?` for each value where binding is the same as spelling out, else `None`.
    ///
    /// That holds for plain INSERT, UPDATE, DELETE and REPLACE. Not for DDL, where a parameter is an
    /// error, and not where a bare integer names a column (`ORDER BY 1`, `GROUP BY 1`).
    pub fn parameterized(&self) -> Option<String> {
        let first = self.text.trim_start().get(..6)?.to_ascii_uppercase();
        let upper = self.text.to_ascii_uppercase();
        let plain = matches!(&*first, "INSERT" | "UPDATE" | "DELETE" | "REPLAC")
            && !upper.split(|c: char| !c.is_alphanumeric()).any(|word| word == "BY")
            && !self.text.contains('?');
        plain.then(|| {
            self.text
                .chars()
                .map(|c| if (c as u32) <= u32::from(LAST_MARKER) { '?' } else { c })
                .collect()
        })
    }

    /// Writes the original text of the statement to `out`; `None` where `values` do not fit.
    pub fn render(&self, values: &Values, out: &mut String) -> Option<()> {
        if values.len() != self.markers.len() {
            return None;
        }
        let mut index = 0;
        let mut rest = self.text.as_str();
        while let Some(at) = rest.bytes().position(|byte| byte <= LAST_MARKER) {
            out.push_str(&rest[..at]);
            render_literal(Literal::decode(rest.as_bytes()[at], values.get(index))?, out);
            index += 1;
            rest = &rest[at + 1..];
        }
        out.push_str(rest);
        Some(())
    }
}

fn render_literal(literal: Literal<'_>, out: &mut String) {
    match literal {
        Literal::Integer(integer) => out.push_str(&integer.to_string()),
        Literal::Text(text) => {
            out.push('\'');
            for (index, part) in text.split('\'').enumerate() {
                if index > 0 {
                    out.push_str("''");
                }
                out.push_str(part);
            }
            out.push('\'');
        }
        Literal::Blob(blob) => {
            out.push_str("x'");
            for byte in blob {
                out.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
                out.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
            }
            out.push('\'');
        }
    }
}
