//! JSON-RPC messages on stdin and stdout, each ended by a blank line.

use std::borrow::Cow;
use std::io;
use std::sync::{Mutex, PoisonError};

use memchr::memmem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes read at a time.
const READ: usize = 64 * 1024;
/// A buffer that one huge message has grown past this is given back.
const BUFFER_KEPT: usize = 1 << 20;
/// Longest message that is taken. lightningd's own limits are far below.
const MESSAGE_MAX: usize = 1 << 30;

const END: &[u8] = b"\n\n";

/// What stdin gave.
pub enum Next<'a> {
    /// A message, without its blank line.
    Message(&'a [u8]),
    /// Nothing came for as long as was asked for.
    Quiet,
    /// lightningd closed the pipe.
    End,
}

/// Reads messages from stdin.
#[derive(Default)]
pub struct Input {
    buffer: Vec<u8>,
    filled: usize,
    /// Bytes at the front that belong to the message given last.
    given: usize,
    /// Bytes that are known to hold no end of a message.
    searched: usize,
}

impl Input {
    /// The next message; with `quiet_ms`, waits no longer than that for anything to come.
    ///
    /// # Errors
    /// Where stdin cannot be read, or a message is longer than 1 GiB.
    pub fn next(&mut self, quiet_ms: Option<u64>) -> io::Result<Next<'_>> {
        self.forget_given();
        loop {
            let from = self.searched.saturating_sub(1);
            if let Some(at) = memmem::find(&self.buffer[from..self.filled], END) {
                let end = from + at;
                self.given = end + END.len();
                return Ok(Next::Message(&self.buffer[..end]));
            }
            self.searched = self.filled;
            if self.filled > MESSAGE_MAX {
                return Err(io::Error::other("a message of more than 1 GiB"));
            }
            if quiet_ms.is_some_and(|ms| !readable_within(ms)) {
                return Ok(Next::Quiet);
            }
            if self.read()? == 0 {
                return Ok(Next::End);
            }
        }
    }

    fn forget_given(&mut self) {
        self.buffer.copy_within(self.given..self.filled, 0);
        self.filled -= self.given;
        self.given = 0;
        self.searched = 0;
        if self.buffer.len() > BUFFER_KEPT && self.filled < READ {
            self.buffer.truncate(READ);
            self.buffer.shrink_to_fit();
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        if self.buffer.len() < self.filled + READ {
            self.buffer.resize((self.filled + READ).max(2 * self.buffer.len()), 0);
        }
        loop {
            match rustix::io::read(stdin(), &mut self.buffer[self.filled..]) {
                Ok(read) => {
                    self.filled += read;
                    return Ok(read);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn readable_within(ms: u64) -> bool {
    let input = stdin();
    let mut fds = [PollFd::new(&input, PollFlags::IN)];
    let timeout = Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000 * 1_000_000) as _ };
    // An error is not quiet: the read that follows will say what it is.
    !matches!(poll(&mut fds, Some(&timeout)), Ok(0))
}

/// A message, with its parameters as `P`: left alone until it is known who takes them, or read at once.
#[derive(Deserialize)]
pub struct Message<'a, P = &'a RawValue> {
    /// Absent in notifications. Kept as it came: lightningd's ids are strings.
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    /// What is called.
    #[serde(borrow, default)]
    pub method: Cow<'a, str>,
    /// What it is called with.
    pub params: Option<P>,
}

impl<'a, P: Deserialize<'a>> Message<'a, P> {
    /// Reads a message.
    ///
    /// # Errors
    /// Where it is not JSON, or its parameters are no `P`.
    pub fn parse(bytes: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

/// How lightningd marks a line of its log.
#[derive(Debug, Clone, Copy)]
pub enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// What happened.
    Info,
    /// What should be looked at.
    Unusual,
    /// What must be looked at.
    Broken,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Unusual => "unusual",
            Self::Broken => "broken",
        }
    }
}

/// Writes whole messages to stdout, from any thread.
#[derive(Default)]
pub struct Output(Mutex<()>);

impl Output {
    /// Sends one message; `json` has no blank line. Where lightningd has closed the pipe nobody is left
    /// to tell, and stdin will end.
    pub fn send(&self, json: &str) {
        let mut message = Vec::with_capacity(json.len() + END.len());
        message.extend_from_slice(json.as_bytes());
        message.extend_from_slice(END);
        self.send_bytes(&message);
    }

    /// Sends messages that have their blank lines.
    pub fn send_bytes(&self, mut message: &[u8]) {
        let _one_at_a_time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !message.is_empty() {
            match rustix::io::write(stdout(), message) {
                Ok(written) => message = &message[written..],
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Writes a line to lightningd's log.
    pub fn log(&self, level: Level, line: &str) {
        let (level, line) = (level.word(), serde_json::Value::from(line));
        self.send(&format!(
            r#"{{"jsonrpc":"2.0","method":"log","params":{{"level":"{level}","message":{line}}}}}"#
        ));
    }
}
