//! The statements of one write batch as bytes, and back: shapes, values, and what did not change.
//!
//! An encoder and a decoder see the same batches in the same order and so hold the same table of
//! shapes. A statement is a new shape, a shape seen before in this segment, or text. Of a shape seen
//! before only the values that differ from its last use are written. See `docs/format.md`.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::shape::{self, Shape, Values};
use super::wire::{put_varint, take, take_varint};

/// A statement kept as text.
const TEXT: u64 = 0;
/// A statement whose shape is written out here, and is known from here on.
const NEW_SHAPE: u64 = 1;
/// The tag of shape 0; shape n is `FIRST_SHAPE + n`.
const FIRST_SHAPE: u64 = 2;

/// Most shapes that one segment's table holds; the statements of further ones are text.
pub const SHAPES_MAX: usize = 4096;
/// Longest shape in bytes; a longer one is text.
pub const SHAPE_BYTES_MAX: usize = 64 * 1024;
/// Values are remembered for the next use of their shape up to this many bytes a statement.
pub const REMEMBERED_BYTES_MAX: usize = 4096;

/// Why the bytes of a batch are no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed write batch: {0}")]
pub struct Malformed(pub &'static str);

/// Turns the statements of successive batches of one segment into bytes.
#[derive(Default)]
pub struct Encoder {
    /// Hashed without protection from collisions: what others have a say in is in values, not in shapes.
    shapes: HashMap<Box<[u8]>, usize, RandomState>,
    last: Vec<Values>,
    shape: Vec<u8>,
    values: Values,
}

impl Encoder {
    /// Appends the encoding of one batch to `out`.
    pub fn encode<S: AsRef<str>>(&mut self, writes: &[S], out: &mut Vec<u8>) {
        put_varint(out, writes.len() as u64);
        for sql in writes {
            self.encode_statement(sql.as_ref(), out);
        }
    }

    fn encode_statement(&mut self, sql: &str, out: &mut Vec<u8>) {
        let split = shape::split(sql, &mut self.shape, &mut self.values)
            && self.shape.len() <= SHAPE_BYTES_MAX;
        let known = if split { self.shapes.get(self.shape.as_slice()).copied() } else { None };
        match known {
            Some(index) => {
                put_varint(out, FIRST_SHAPE + index as u64);
                put_changes(&self.values, &self.last[index], out);
                if self.values.byte_len() <= REMEMBERED_BYTES_MAX {
                    std::mem::swap(&mut self.last[index], &mut self.values);
                }
            }
            None if split && self.last.len() < SHAPES_MAX => {
                put_varint(out, NEW_SHAPE);
                put_bytes(&self.shape, out);
                put_changes(&self.values, &Values::default(), out);
                self.shapes.insert(self.shape.as_slice().into(), self.last.len());
                self.last.push(remembered(&self.values));
            }
            None => {
                put_varint(out, TEXT);
                put_bytes(sql.as_bytes(), out);
            }
        }
    }
}

/// What a new shape's first values leave behind: nothing where they are too many bytes.
fn remembered(values: &Values) -> Values {
    if values.byte_len() <= REMEMBERED_BYTES_MAX { values.clone() } else { Values::default() }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Writes a bit for each value, set where it differs from `last`, then those values. Without any
/// remembered values all are written, and no bits.
fn put_changes(values: &Values, last: &Values, out: &mut Vec<u8>) {
    let all = last.is_empty();
    if !all {
        let bits = out.len();
        out.resize(bits + values.len().div_ceil(8), 0);
        for index in 0..values.len() {
            if values.get(index) != last.get(index) {
                out[bits + index / 8] |= 1 << (index % 8);
            }
        }
    }
    for index in 0..values.len() {
        if all || values.get(index) != last.get(index) {
            put_bytes(values.get(index), out);
        }
    }
}

/// One decoded statement.
#[derive(Debug)]
pub enum Statement<'a> {
    /// The text as it came.
    Text(&'a str),
    /// A shape of the decoder's table and the values in it.
    Shaped(usize, &'a Values),
}

/// Turns the bytes of successive batches of one segment into statements.
#[derive(Default)]
pub struct Decoder {
    shapes: Vec<Shape>,
    last: Vec<Values>,
    values: Values,
}

impl Decoder {
    /// The shape that [`Statement::Shaped`] names.
    pub fn shape(&self, index: usize) -> Option<&Shape> {
        self.shapes.get(index)
    }

    /// Decodes one batch, giving each statement with the decoder's shapes to `visit` in order.
    ///
    /// # Errors
    /// [`Malformed`] where the bytes are no batch; what `visit` returned where it failed.
    pub fn decode<E: From<Malformed>>(
        &mut self,
        bytes: &[u8],
        mut visit: impl FnMut(&[Shape], Statement<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (count, mut rest) = varint(bytes)?;
        for _ in 0..count {
            rest = self.decode_statement(rest, &mut visit)?;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed("bytes after the last statement").into())
        }
    }

    fn decode_statement<'a, E: From<Malformed>>(
        &mut self,
        bytes: &'a [u8],
        visit: &mut impl FnMut(&[Shape], Statement<'_>) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        let (tag, rest) = varint(bytes)?;
        if tag == TEXT {
            let (text, rest) = take_bytes(rest)?;
            let text = std::str::from_utf8(text).map_err(|_| Malformed("text is not UTF-8"))?;
            visit(&self.shapes, Statement::Text(text))?;
            return Ok(rest);
        }
        let (index, rest) = if tag == NEW_SHAPE {
            let (shape, rest) = take_bytes(rest)?;
            if self.shapes.len() == SHAPES_MAX || shape.len() > SHAPE_BYTES_MAX {
                return Err(Malformed("more or longer shapes than the format allows").into());
            }
            self.shapes.push(Shape::new(shape).ok_or(Malformed("shape is not UTF-8"))?);
            self.last.push(Values::default());
            (self.shapes.len() - 1, rest)
        } else {
            let index = usize::try_from(tag - FIRST_SHAPE).unwrap_or(usize::MAX);
            (index, rest)
        };
        let shape = self.shapes.get(index).ok_or(Malformed("unknown shape"))?;
        let rest = take_changes(rest, shape, &self.last[index], &mut self.values)?;
        visit(&self.shapes, Statement::Shaped(index, &self.values))?;
        if self.values.byte_len() <= REMEMBERED_BYTES_MAX {
            std::mem::swap(&mut self.last[index], &mut self.values);
        }
        Ok(rest)
    }
}

fn varint(bytes: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    take_varint(bytes).ok_or(Malformed("bad integer"))
}

fn take_bytes(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (len, rest) = varint(bytes)?;
    take(rest, len).ok_or(Malformed("cut short"))
}

fn take_changes<'a>(
    bytes: &'a [u8],
    shape: &Shape,
    last: &Values,
    values: &mut Values,
) -> Result<&'a [u8], Malformed> {
    let count = shape.markers().len();
    values.clear();
    let all = last.is_empty();
    let bits = if all { 0 } else { count.div_ceil(8) };
    let (bits, mut rest) = take(bytes, bits as u64).ok_or(Malformed("cut short"))?;
    for index in 0..count {
        if all || bits[index / 8] & (1 << (index % 8)) != 0 {
            let (value, after) = take_bytes(rest)?;
            values.push(value);
            rest = after;
        } else {
            values.push(last.get(index));
        }
    }
    Ok(rest)
}
