//! Whole blocks of a file that grows by records, for direct writes.
//!
//! Through the page cache a record is copied there, and the `fdatasync` behind it finds it again, writes it back and waits.
//! A direct write gives the disk the same block at once: a tenth less at the median on ext4 (`docs/performance.md`). It takes
//! whole blocks only, so the last one, which records share, is kept here and written with each that is in it: the same
//! bytes over the same bytes, as a write-back of the page would do.

/// Bytes of a block: what no common disk or file system wants larger.
pub const BLOCK: usize = 4096;
/// Bytes of the longest run of blocks.
const ROOM: usize = 64 * 1024;

/// Bytes that begin at a multiple of [`BLOCK`] in memory, as direct writes want them.
#[repr(align(4096))]
pub struct Aligned<const N: usize>(pub [u8; N]);

/// The last block of such a file.
pub struct Blocks {
    buffer: Box<Aligned<ROOM>>,
    /// Bytes of the file that are in its last block, at the front of the buffer.
    tail: usize,
}

impl Blocks {
    /// Of a file that holds `content`.
    pub fn of(content: &[u8]) -> Self {
        let mut blocks = Self { buffer: Box::new(Aligned([0; ROOM])), tail: 0 };
        blocks.appended(content);
        blocks
    }

    /// Bytes by which the run that [`with`](Self::with) gives begins before the end of the file.
    pub fn tail(&self) -> usize {
        self.tail
    }

    /// The run of blocks in which `bytes` lie behind what the file holds, zeros behind them; `None` where it is too long.
    pub fn with(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        let end = self.tail + bytes.len();
        let whole = end.next_multiple_of(BLOCK);
        let run = self.buffer.0.get_mut(..whole)?;
        run[self.tail..end].copy_from_slice(bytes);
        run[end..].fill(0);
        Some(run)
    }

    /// The file holds `bytes` more.
    pub fn appended(&mut self, bytes: &[u8]) {
        let end = self.tail + bytes.len();
        let from = if end < BLOCK { self.tail } else { 0 };
        let tail = end % BLOCK;
        self.buffer.0[from..tail].copy_from_slice(&bytes[bytes.len() - (tail - from)..]);
        self.tail = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is written in such runs is what was appended, and zeros to the end of the block.
    #[test]
    fn runs_of_blocks_make_up_the_file() {
        let sizes = [1, 100, 3867, 1, 4095, 4096, 4097, 8192, 20_000, 61_441, 7, 65_536, 300_000];
        for first in [0, 1, 128, 4095, 4096, 70_000] {
            let mut expected = vec![7; first];
            let mut blocks = Blocks::of(&expected);
            let mut file = expected.clone();
            for (record, size) in (1_u8..).zip(sizes.into_iter().cycle().take(60)) {
                let bytes = vec![record; size];
                let at = file.len() - blocks.tail();
                assert_eq!(at % BLOCK, 0);
                let run = blocks.with(&bytes).map(<[u8]>::to_vec);
                assert_eq!(run.is_none(), blocks.tail() + size > ROOM);
                expected.extend_from_slice(&bytes);
                let Some(run) = run else {
                    file.extend_from_slice(&bytes);
                    blocks.appended(&bytes);
                    continue;
                };
                file.truncate(at);
                file.extend_from_slice(&run);
                assert!(file.len() % BLOCK == 0 && file.starts_with(&expected));
                assert!(file[expected.len()..].iter().all(|&byte| byte == 0));
                file.truncate(expected.len());
                blocks.appended(&bytes);
            }
            assert!(file == expected);
        }
    }
}
