//! Bytes as they come, and the messages in them.

use memchr::memmem;

/// What ends a message.
pub const END: &[u8] = b"\n\n";

/// Bytes that there is room for at least, each time.
const READ: usize = 64 * 1024;
/// A buffer that one huge message has grown past this is given back. Memory that is new costs a call of 1 MiB a third of
/// its processor time.
const BUFFER_KEPT: usize = 4 << 20;
/// Longest message that is taken. lightningd's own limits are far below.
const MESSAGE_MAX: usize = 1 << 30;

/// A message of more than 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl std::error::Error for TooLong {}

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a message of more than 1 GiB")
    }
}

/// Takes bytes, gives messages.
#[derive(Default)]
pub struct Framing {
    buffer: Vec<u8>,
    /// Bytes at the front that belong to the message given last.
    given: usize,
    /// Bytes that are known to hold no end of a message.
    searched: usize,
}

impl Framing {
    /// Goes to the next message: true where all of it is there, for [`message`](Self::message).
    ///
    /// # Errors
    /// [`TooLong`], from which there is no way on.
    pub fn advance(&mut self) -> Result<bool, TooLong> {
        self.forget_given();
        let from = self.searched.saturating_sub(1);
        if let Some(at) = memmem::find(&self.buffer[from..], END) {
            self.given = from + at + END.len();
            return Ok(true);
        }
        self.searched = self.buffer.len();
        if self.buffer.len() > MESSAGE_MAX { Err(TooLong) } else { Ok(false) }
    }

    /// The message that [`advance`](Self::advance) came to, without its end.
    pub fn message(&self) -> &[u8] {
        &self.buffer[..self.given.saturating_sub(END.len())]
    }

    fn forget_given(&mut self) {
        if self.given == 0 {
            return;
        }
        self.buffer.drain(..self.given);
        self.given = 0;
        self.searched = 0;
        if self.buffer.capacity() > BUFFER_KEPT && self.buffer.len() < READ {
            self.buffer.shrink_to(READ);
        }
    }

    /// What the next bytes are appended to: there is room for at least 64 KiB.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.buffer.reserve(READ);
        &mut self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of bytes that arrive in pieces of these sizes.
    fn messages(bytes: &[u8], sizes: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
        let (mut framing, mut messages, mut rest) = (Framing::default(), Vec::new(), bytes);
        for size in sizes {
            while framing.advance().unwrap() {
                messages.push(framing.message().to_vec());
            }
            let (piece, behind) = rest.split_at(size.min(rest.len()));
            framing.buffer().extend_from_slice(piece);
            rest = behind;
        }
        while framing.advance().unwrap() {
            messages.push(framing.message().to_vec());
        }
        messages
    }

    #[test]
    fn a_split_at_any_byte_changes_nothing() {
        let huge = vec![b'x'; 200_000];
        let bytes = [b"{}\n\n[\n]\n\n\n\n".as_slice(), &huge, b"\n\nlast\n\nnot ended\n"].concat();
        let expected: [&[u8]; 5] = [b"{}", b"[\n]", b"", &huge, b"last"];
        assert_eq!(messages(&bytes, std::iter::repeat_n(usize::MAX, 9)), expected);
        for at in (0..40).chain([65_535, 65_536, 65_537, 200_010, 200_015]) {
            let sizes = [at].into_iter().chain(std::iter::repeat_n(usize::MAX, 9));
            assert_eq!(messages(&bytes, sizes), expected, "split at {at}");
        }
        assert_eq!(messages(&bytes[..12], std::iter::repeat_n(1, 12)), expected[..3]);
    }

    #[test]
    fn the_memory_of_a_huge_message_is_given_back() {
        let huge = [vec![b'x'; 5 << 20], END.to_vec()].concat();
        let mut framing = Framing::default();
        for chunk in huge.chunks(READ) {
            framing.buffer().extend_from_slice(chunk);
        }
        assert!(framing.advance().unwrap() && framing.message().len() == 5 << 20);
        assert!(!framing.advance().unwrap());
        assert!(framing.buffer.capacity() <= BUFFER_KEPT);
    }
}
