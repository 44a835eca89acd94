//! JSON-RPC messages on stdin and stdout, each ended by a blank line.

use std::io;
use std::sync::{Mutex, PoisonError};

use lockstep_wire::{END, Framing};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;
use rustix::stdio::{stdin, stdout};

/// What stdin gave.
pub enum Next<'a> {
    /// A message, without its blank line.
    Message(&'a [u8]),
    /// Nothing came for as long as was asked for.
    Quiet,
    /// lightningd closed the pipe.
    End,
}

/// Bytes that stdin is to hold until they are read: Linux lets a user have no larger pipe, unless told otherwise.
const PIPE: usize = 1 << 20;

/// Reads messages from stdin.
pub struct Input(Framing);

impl Input {
    /// With as large a pipe as there may be: a long message comes in one piece then, else the two processes take turns.
    pub fn new() -> Self {
        // Best effort: it is no pipe, or the user has too many large ones.
        let _ = fcntl_setpipe_size(stdin(), PIPE);
        Self(Framing::default())
    }

    /// The next message; with `quiet_ms`, waits no longer than that for anything to come.
    ///
    /// # Errors
    /// Where stdin cannot be read, or a message is longer than 1 GiB.
    pub fn next(&mut self, quiet_ms: Option<u64>) -> io::Result<Next<'_>> {
        while !self.0.advance().map_err(io::Error::other)? {
            if quiet_ms.is_some_and(|ms| !readable_within(ms)) {
                return Ok(Next::Quiet);
            }
            if self.read()? == 0 {
                return Ok(Next::End);
            }
        }
        Ok(Next::Message(self.0.message()))
    }

    fn read(&mut self) -> io::Result<usize> {
        loop {
            match rustix::io::read(stdin(), spare_capacity(self.0.buffer())) {
                Ok(read) => return Ok(read),
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

/// The answer that stops lightningd without a commit. lightningd prints it in its last words.
pub fn refusal(id: &str, reason: &str) -> String {
    let reason = serde_json::Value::from(reason);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32603,"message":{reason}}}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_cannot_break_out_of_its_answer() {
        let answer = refusal("\"cln:db_write#1\"", "a \"quoted\"\n\nreason");
        assert!(!answer.contains("\n\n"));
        assert!(serde_json::from_str::<serde_json::Value>(&answer).is_ok());
    }
}
