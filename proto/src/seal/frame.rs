//! Frames: length, sealed bytes, end mark; chained by hash.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::cipher::{ObjectCipher, TAG_LEN};
use super::header::Header;
use super::key::DataKey;
use crate::hex;

/// Bytes that a frame adds to what it holds: length, its complement, tag, end mark.
pub const FRAME_OVERHEAD: usize = PREFIX_LEN + TAG_LEN + MARK_LEN;
/// Most bytes that one frame holds.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

/// Bytes of a frame's prefix: its length and the complement of that.
pub const PREFIX_LEN: usize = 8;
const MARK_LEN: usize = 8;
/// What storage writes whole or not at all.
const SECTOR: usize = 512;

/// SHA-256 over everything up to and including a frame: the identity of a position.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    /// What precedes the first frame behind `header`.
    fn start(header: &Header) -> Self {
        Self(Sha256::digest(header.encode()).into())
    }

    fn next(self, sealed: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(sealed).finalize().into())
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

/// Where in its object's chain a cipher stands: the next frame's number and what precedes it.
struct Cursor {
    cipher: Arc<ObjectCipher>,
    number: u64,
    chain: Chain,
}

impl Cursor {
    fn new(key: &DataKey, header: &Header) -> Self {
        Self {
            cipher: Arc::new(ObjectCipher::new(key, header.nonce_prefix)),
            number: header.seq,
            chain: Chain::start(header),
        }
    }

    fn associated_data(&self) -> [u8; 40] {
        let mut data = [0; 40];
        data[..32].copy_from_slice(&self.chain.0);
        data[32..].copy_from_slice(&self.number.to_le_bytes());
        data
    }

    fn unseal(&self) -> Unseal {
        let associated_data = self.associated_data();
        Unseal { cipher: self.cipher.clone(), number: self.number, associated_data }
    }

    fn advance(&mut self, sealed: &[u8]) {
        self.chain = self.chain.next(sealed);
        self.number += 1;
    }
}

/// Seals the frames of one new object, in order.
///
/// It takes the header by value and numbers the frames itself: with the header's random nonce prefix
/// no nonce is used twice.
pub struct Sealer(Cursor);

impl Sealer {
    /// For the frames behind `header`, numbered from the header's seq.
    pub fn new(key: &DataKey, header: &Header) -> Self {
        Self(Cursor::new(key, header))
    }

    /// The number that the next frame gets: in a segment, its seq.
    pub fn next_number(&self) -> u64 {
        self.0.number
    }

    /// The chain hash after the last frame.
    pub fn chain(&self) -> Chain {
        self.0.chain
    }

    /// Starts a frame at the end of `out`: append what it holds, then call [`finish`](Self::finish).
    pub fn begin(out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.resize(start + PREFIX_LEN, 0);
        start
    }

    /// Seals what was appended to `out` since [`begin`](Self::begin) returned `start`, in place.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] past [`FRAME_BYTES_MAX`] bytes; `out` is as before `begin`.
    pub fn finish(&mut self, out: &mut Vec<u8>, start: usize) -> Result<(), FrameError> {
        let held = out.len() - start - PREFIX_LEN;
        let sealed = (held <= FRAME_BYTES_MAX).then(|| {
            let held = &mut out[start + PREFIX_LEN..];
            self.0.cipher.seal(self.0.number, &self.0.associated_data(), held)
        });
        let Some(tag) = sealed.flatten() else {
            out.truncate(start);
            return Err(FrameError::TooLarge(held));
        };
        out.extend_from_slice(&tag);
        out[start..start + PREFIX_LEN].copy_from_slice(&prefix((held + TAG_LEN) as u32));
        let mark = end_mark(self.0.number);
        self.0.advance(&out[start + PREFIX_LEN..]);
        out.extend_from_slice(&mark);
        Ok(())
    }

    /// Appends one frame that holds `plain` to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] past [`FRAME_BYTES_MAX`] bytes.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = Self::begin(out);
        out.extend_from_slice(plain);
        self.finish(out, start)
    }
}

/// Opens the frames of one object, in order.
pub struct Opener(Cursor);

impl Opener {
    /// For the frames behind `header`.
    pub fn new(key: &DataKey, header: &Header) -> Self {
        Self(Cursor::new(key, header))
    }

    /// The number of the next frame: in a segment, its seq.
    pub fn next_number(&self) -> u64 {
        self.0.number
    }

    /// The chain hash after the last frame opened.
    pub fn chain(&self) -> Chain {
        self.0.chain
    }

    /// Opens the frame at the front of `bytes` into `plain` and returns how many bytes it took.
    ///
    /// # Errors
    /// [`FrameError`]; the opener has not moved, and `plain` holds nothing of use.
    pub fn open(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> Result<usize, FrameError> {
        plain.clear();
        let (sealed, len) = self.sealed(bytes)?;
        plain.extend_from_slice(sealed);
        self.0.unseal().open(plain)?;
        plain.truncate(sealed.len() - TAG_LEN);
        self.0.advance(sealed);
        Ok(len)
    }

    /// Takes the one frame that `bytes` are, to be opened by another thread, and goes on behind it.
    ///
    /// The chain holds it from then on, but **nothing about it is proved** before it was opened.
    ///
    /// # Errors
    /// As [`open`](Self::open), which alone tells whether it is authentic.
    pub fn take(&mut self, bytes: Vec<u8>) -> Result<SealedFrame, FrameError> {
        let (sealed, len) = self.sealed(&bytes)?;
        if len != bytes.len() {
            return Err(FrameError::Damaged);
        }
        let (end, unseal) = (PREFIX_LEN + sealed.len(), self.0.unseal());
        self.0.advance(&bytes[PREFIX_LEN..end]);
        Ok(SealedFrame { unseal, bytes, end })
    }

    /// The sealed bytes of the frame at the front of `bytes`, and how many bytes the whole of it takes.
    fn sealed<'a>(&self, bytes: &'a [u8]) -> Result<(&'a [u8], usize), FrameError> {
        let Some(len) = frame_len(bytes)? else { return Err(FrameError::End) };
        let (sealed, rest) = bytes[PREFIX_LEN..].split_at_checked(len).ok_or(FrameError::Short)?;
        let mark = marked(rest, self.0.number).ok_or(FrameError::Damaged)?;
        Ok((sealed, PREFIX_LEN + len + mark))
    }
}

/// A frame that was taken from its object and not opened yet.
pub struct SealedFrame {
    unseal: Unseal,
    bytes: Vec<u8>,
    /// Where the tag ends.
    end: usize,
}

impl SealedFrame {
    /// Proves and opens it, in place: what it holds begins at [`PREFIX_LEN`] of what is returned.
    ///
    /// # Errors
    /// [`FrameError::Damaged`].
    pub fn open(self) -> Result<Vec<u8>, FrameError> {
        let Self { unseal, mut bytes, end } = self;
        unseal.open(&mut bytes[PREFIX_LEN..end])?;
        bytes.truncate(end - TAG_LEN);
        Ok(bytes)
    }
}

/// What opens one frame, at its place.
struct Unseal {
    cipher: Arc<ObjectCipher>,
    number: u64,
    associated_data: [u8; 40],
}

impl Unseal {
    /// Opens `sealed`, whose last bytes are the tag, in place.
    fn open(&self, sealed: &mut [u8]) -> Result<(), FrameError> {
        let opened = self.cipher.open(self.number, &self.associated_data, sealed);
        opened.then_some(()).ok_or(FrameError::Damaged)
    }
}

/// Bytes of the frame that begins with `prefix`, prefix and end mark included; `None` at the end of the
/// object. For readers of streams, which must know how much to read.
///
/// # Errors
/// [`FrameError::Damaged`].
pub fn frame_size(prefix: &[u8; PREFIX_LEN]) -> Result<Option<usize>, FrameError> {
    Ok(frame_len(prefix)?.map(|len| PREFIX_LEN + len + MARK_LEN))
}

/// The length that a frame's prefix gives; `None` where there are only zeros or nothing.
fn frame_len(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_LEN>() else {
        let end = bytes.iter().all(|&byte| byte == 0);
        return if end { Ok(None) } else { Err(FrameError::Short) };
    };
    if *prefix == [0; PREFIX_LEN] {
        return Ok(None);
    }
    let len = u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
    let complement = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
    let len_usize = len as usize;
    if len != !complement || !(TAG_LEN..=FRAME_BYTES_MAX + TAG_LEN).contains(&len_usize) {
        return Err(FrameError::Damaged);
    }
    Ok(Some(len_usize))
}

/// Why there is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No further frame: nothing, or the zeros of preallocated space.
    #[error("no further frame")]
    End,
    /// The object ends inside the frame.
    #[error("cut short")]
    Short,
    /// Altered, or sealed by another key, or not the frame that belongs here.
    #[error("authentication failed")]
    Damaged,
    /// More bytes than a frame may hold.
    #[error("{0} bytes in one record, the format allows {FRAME_BYTES_MAX}")]
    TooLarge(usize),
}

/// What lies behind the last good frame of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing, or preallocated zeros.
    Clean,
    /// One write that a crash or power cut left incomplete: it was never acknowledged.
    Torn,
    /// Something that no interrupted write leaves: a frame was altered.
    Damaged,
}

/// Tells an interrupted write from damage, in what follows the last good frame at `offset` of an object;
/// `number` is that of the frame that would be next.
///
/// Frames are written one at a time into zeros, or past the end. An interrupted write is recognised by
/// what it did not write: a whole sector of the frame, or all of it from some byte on, is missing or
/// still zeros. A frame that was all there and then changed shows none of these. And where the end mark
/// of a *later* frame is found, this one was durable before that was begun.
pub fn tail_after(rest: &[u8], offset: u64, number: u64) -> Tail {
    let Some(last) = rest.iter().rposition(|&byte| byte != 0) else { return Tail::Clean };
    let written = last + 1;
    if later_mark(&rest[..written], number) {
        return Tail::Damaged;
    }
    let (end, cut) = match frame_len(rest) {
        Ok(Some(len)) => {
            let end = PREFIX_LEN + len + MARK_LEN;
            (end, written + MARK_LEN <= end)
        }
        _ => (written, written < PREFIX_LEN),
    };
    let frame = &rest[..end.min(rest.len())];
    let lost = lost_sector(frame, offset) || lost_prefix_part(&rest[..written], offset);
    if written <= end && (cut || lost) { Tail::Torn } else { Tail::Damaged }
}

/// True where the end mark of a frame behind `number` stands in `rest`: of as many as can be there. By
/// chance that is so once in 2^27 interrupted writes of 2 MB, which are then called damage.
fn later_mark(rest: &[u8], number: u64) -> bool {
    let most = u32::try_from(rest.len() / FRAME_OVERHEAD).unwrap_or(u32::MAX);
    rest.windows(MARK_LEN).any(|window| {
        window.ends_with(MARK_WORD) && {
            let found = u32::from_le_bytes([window[0], window[1], window[2], window[3]]);
            let ahead = found.wrapping_sub(number as u32);
            (1..=most).contains(&ahead)
        }
    })
}

/// True where the part of `frame` that lies in one sector of the object is all zeros, and is long
/// enough that it was not so by chance: the whole prefix, or 16 sealed bytes.
fn lost_sector(frame: &[u8], offset: u64) -> bool {
    let (head, rest) = frame.split_at(first_part(offset).min(frame.len()));
    let lost = |part: &[u8], enough| part.len() >= enough && part.iter().all(|&byte| byte == 0);
    lost(head, PREFIX_LEN) || rest.chunks(SECTOR).any(|part| lost(part, TAG_LEN))
}

/// True where a frame's prefix crosses into the next sector, the first was not written, and what is seen
/// of the complement is that of a length that fits what was written. Of fewer than four bytes in the
/// first sector nothing is said: one that was altered looks the same.
fn lost_prefix_part(written: &[u8], offset: u64) -> bool {
    let first = first_part(offset);
    let Some(prefix) = written.first_chunk::<PREFIX_LEN>() else { return false };
    if !(4..PREFIX_LEN).contains(&first) || prefix[..first].iter().any(|&byte| byte != 0) {
        return false;
    }
    // The bytes that are not seen make the length uncertain: this is the greatest that it can be.
    let complement = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
    let longest = (!complement as usize).min(FRAME_BYTES_MAX + TAG_LEN);
    written.len() <= PREFIX_LEN + longest + MARK_LEN
}

/// Bytes from `offset` to the end of its sector.
fn first_part(offset: u64) -> usize {
    SECTOR - (offset % SECTOR as u64) as usize
}

const MARK_WORD: &[u8] = b"END.";

/// What stands behind the frame of `number`: the low 32 bits of the number, then a word.
fn end_mark(number: u64) -> [u8; MARK_LEN] {
    let mut mark = [0; MARK_LEN];
    mark[..4].copy_from_slice(&(number as u32).to_le_bytes());
    mark[4..].copy_from_slice(MARK_WORD);
    mark
}

/// The length of the sealed bytes, then its complement.
fn prefix(len: u32) -> [u8; PREFIX_LEN] {
    let mut prefix = [0; PREFIX_LEN];
    prefix[..4].copy_from_slice(&len.to_le_bytes());
    prefix[4..].copy_from_slice(&(!len).to_le_bytes());
    prefix
}

/// How many bytes of the end mark of `number` begin `rest`. A mark that the object's end cuts off, or
/// whose end and all behind it are zeros, is that of a write interrupted in its last bytes.
fn marked(rest: &[u8], number: u64) -> Option<usize> {
    let mark = end_mark(number);
    if rest.starts_with(&mark) {
        return Some(MARK_LEN);
    }
    let there = rest.iter().zip(mark).take_while(|(byte, mark)| *byte == mark).count();
    rest[there..].iter().all(|&byte| byte == 0).then_some(rest.len().min(MARK_LEN))
}
