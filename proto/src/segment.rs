//! Segments: consecutive records of one writer as sealed bytes, and back. No I/O.

use zstd::stream::raw::{
    CParameter, DParameter, Decoder as Unzstd, Encoder as Zstd, InBuffer, Operation, OutBuffer,
};

use crate::batch::codec;
use crate::record::{Batch, Record, RecordError};
use crate::seal::{
    Chain, DataKey, FrameError, HEADER_LEN, Header, Opener, Sealer, Tail, tail_after,
};
use crate::version::DataVersion;

/// A segment that has grown past this many bytes is closed, and the next one opened.
pub const SEGMENT_BYTES: u64 = 8 << 20;
/// Most bytes of encoded statements in one batch.
pub const BATCH_BYTES_MAX: usize = 1 << 30;

/// Level 1 was the smallest as well as the fastest over recorded nodes once shapes are taken out.
const ZSTD_LEVEL: i32 = 1;
/// Any value but 0 leaves literals as they are. A Huffman table for the few of each batch is 0.3 % smaller over
/// recorded nodes, and a third of what a batch costs the processor.
const ZSTD_TARGET_LENGTH: u32 = 1;
/// 16 KiB of table, where the level takes 64: it stays in a processor's nearest cache, which each call finds full of something
/// else, and takes a third off the compression of a batch, for 0.9 % more over recorded nodes.
const ZSTD_HASH_LOG: u32 = 12;
/// 512 KiB of history: what the level takes by itself, fixed here for the reader's memory.
const ZSTD_WINDOW_LOG: u32 = 19;
/// zstd output is taken in pieces of this size.
const PIECE: usize = 16 * 1024;

/// Encodes the records of one segment.
pub struct SegmentEncoder {
    sealer: Sealer,
    zstd: Zstd<'static>,
    statements: codec::Encoder,
    encoded: Vec<u8>,
    frame: Vec<u8>,
}

impl SegmentEncoder {
    /// For the segment of `header`, which the caller writes first.
    ///
    /// # Errors
    /// Where zstd cannot have its memory.
    pub fn new(key: &DataKey, header: &Header) -> Result<Self, SegmentError> {
        let mut zstd = Zstd::new(ZSTD_LEVEL).map_err(|_| SegmentError::Compression)?;
        for parameter in [
            CParameter::WindowLog(ZSTD_WINDOW_LOG),
            CParameter::HashLog(ZSTD_HASH_LOG),
            CParameter::TargetLength(ZSTD_TARGET_LENGTH),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
        ] {
            zstd.set_parameter(parameter).map_err(|_| SegmentError::Compression)?;
        }
        Ok(Self {
            sealer: Sealer::new(key, header),
            zstd,
            statements: codec::Encoder::default(),
            encoded: Vec::new(),
            frame: Vec::new(),
        })
    }

    /// The seq of the next record.
    pub fn next_seq(&self) -> u64 {
        self.sealer.next_number()
    }

    /// The chain hash after the last record.
    pub fn chain(&self) -> Chain {
        self.sealer.chain()
    }

    /// Encodes one batch and returns its frame.
    ///
    /// # Errors
    /// [`SegmentError`]. The encoder is then of no further use: open another segment.
    pub fn batch<S: AsRef<str>>(
        &mut self,
        data_version: DataVersion,
        transaction: bool,
        elapsed_ms: u64,
        writes: &[S],
    ) -> Result<&[u8], SegmentError> {
        self.shrink();
        self.encoded.clear();
        self.statements.encode(writes, &mut self.encoded);
        if self.encoded.len() > BATCH_BYTES_MAX {
            return Err(SegmentError::TooLarge(self.encoded.len()));
        }
        self.frame.clear();
        let start = Sealer::begin(&mut self.frame);
        Batch::put_head(data_version, transaction, elapsed_ms, &mut self.frame);
        compress(&mut self.zstd, &self.encoded, &mut self.frame)?;
        self.sealer.finish(&mut self.frame, start)?;
        Ok(&self.frame)
    }

    /// Encodes a record that is no batch and returns its frame.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn control(&mut self, record: &Record<'_>) -> Result<&[u8], SegmentError> {
        self.frame.clear();
        let start = Sealer::begin(&mut self.frame);
        record.encode(&mut self.frame)?;
        self.sealer.finish(&mut self.frame, start)?;
        Ok(&self.frame)
    }

    /// Gives back the memory that one huge batch took.
    fn shrink(&mut self) {
        const KEEP: usize = 1 << 20;
        for buffer in [&mut self.encoded, &mut self.frame] {
            if buffer.capacity() > KEEP {
                *buffer = Vec::new();
            }
        }
    }
}

fn compress(zstd: &mut Zstd<'_>, input: &[u8], out: &mut Vec<u8>) -> Result<(), SegmentError> {
    let mut input = InBuffer::around(input);
    let mut flushing = false;
    loop {
        let at = out.len();
        out.reserve(PIECE);
        let mut piece = OutBuffer::around_pos(out, at);
        let left = if flushing {
            zstd.flush(&mut piece).map_err(|_| SegmentError::Compression)?
        } else {
            zstd.run(&mut input, &mut piece).map_err(|_| SegmentError::Compression)?;
            flushing = input.pos() == input.src.len();
            1
        };
        if flushing && left == 0 {
            return Ok(());
        }
    }
}

/// Turns the statements of a segment's batches back, in order.
pub struct BatchDecoder {
    unzstd: Unzstd<'static>,
    /// Shapes and values, in step with the writer's.
    statements: codec::Decoder,
    encoded: Vec<u8>,
}

impl BatchDecoder {
    /// For the batches of one segment.
    ///
    /// # Errors
    /// Where zstd cannot have its memory.
    pub fn new() -> Result<Self, SegmentError> {
        let mut unzstd = Unzstd::new().map_err(|_| SegmentError::Compression)?;
        unzstd
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
            .map_err(|_| SegmentError::Compression)?;
        Ok(Self { unzstd, statements: codec::Decoder::default(), encoded: Vec::new() })
    }

    /// Decodes the next batch, giving each statement to `visit`.
    ///
    /// # Errors
    /// [`SegmentError`] where the bytes are no batch; what `visit` returned where it failed.
    pub fn decode<E: From<SegmentError> + From<codec::Malformed>>(
        &mut self,
        batch: &Batch<'_>,
        visit: impl FnMut(&[crate::batch::shape::Shape], codec::Statement<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.encoded.clear();
        let mut input = InBuffer::around(batch.statements);
        loop {
            let at = self.encoded.len();
            if at > BATCH_BYTES_MAX {
                return Err(SegmentError::TooLarge(at).into());
            }
            self.encoded.resize(at + PIECE, 0);
            let mut piece = OutBuffer::around(&mut self.encoded[at..]);
            let ran = self.unzstd.run(&mut input, &mut piece);
            let wrote = piece.pos();
            self.encoded.truncate(at + wrote);
            ran.map_err(|_| SegmentError::Compression)?;
            if input.pos() == input.src.len() && wrote < PIECE {
                break;
            }
        }
        self.statements.decode(&self.encoded, visit)
    }
}

/// Reads the frames of one segment out of its bytes, in order.
pub struct SegmentReader<'a> {
    opener: Opener,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> SegmentReader<'a> {
    /// For `bytes`, whose first are the header, already decoded.
    pub fn new(key: &DataKey, header: &Header, bytes: &'a [u8]) -> Self {
        Self { opener: Opener::new(key, header), bytes, at: HEADER_LEN.min(bytes.len()) }
    }

    /// Opens the next frame into `plain` and returns its seq; `None` at the end of the segment.
    ///
    /// # Errors
    /// [`FrameError::Damaged`] with the reader standing at the frame; an interrupted write is an end.
    pub fn next(&mut self, plain: &mut Vec<u8>) -> Result<Option<u64>, FrameError> {
        let rest = &self.bytes[self.at..];
        let seq = self.opener.next_number();
        match self.opener.open(rest, plain) {
            Ok(len) => {
                self.at += len;
                Ok(Some(seq))
            }
            Err(_) if self.tail() != Tail::Damaged => Ok(None),
            Err(FrameError::End | FrameError::Short) => Err(FrameError::Damaged),
            Err(error) => Err(error),
        }
    }

    /// What lies behind the last frame that was opened.
    pub fn tail(&self) -> Tail {
        tail_after(&self.bytes[self.at..], self.at as u64, self.next_seq())
    }

    /// Bytes up to and including the last frame that was opened.
    pub fn offset(&self) -> u64 {
        self.at as u64
    }

    /// The seq of the next frame.
    pub fn next_seq(&self) -> u64 {
        self.opener.next_number()
    }

    /// The chain hash after the last frame that was opened.
    pub fn chain(&self) -> Chain {
        self.opener.chain()
    }
}

/// What is wrong with a segment's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// A frame that cannot be made.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A record that cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Statements that cannot be decoded, although authentic.
    #[error(transparent)]
    Malformed(#[from] codec::Malformed),
    /// zstd failed.
    #[error("compression failed")]
    Compression,
    /// A batch past the limit.
    #[error("{0} bytes in one batch, the format allows {BATCH_BYTES_MAX}")]
    TooLarge(usize),
}
