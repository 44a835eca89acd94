//! Death at a chosen moment of a write.

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::{Answer, Fate, Node, SimError};
use crate::step::{Batch, Step};

/// The moment of death.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CrashPoint {
    /// The statements ran, nothing was sent to the plugin.
    BeforeHook,
    /// The request was sent, in part or whole, and some time went by.
    InsideHook {
        /// How much of it was sent.
        sent: Sent,
        /// How long after that.
        after: Duration,
    },
    /// The plugin acknowledged; the node did not commit.
    AfterAck,
    /// The node committed.
    AfterCommit,
}

/// How much of a request was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sent {
    /// This share of its bytes, less than 1.
    Part(f64),
    /// All but its closing blank line (lightningd's JSON is then complete).
    AllButBlankLine,
    /// All of it.
    All,
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The plugin, by SIGKILL. lightningd notices and stops; an answer that
    /// was in the pipe already is still read and acted on.
    Plugin,
    /// lightningd; the plugin finds its stdin closed and ends by itself.
    Node,
    /// Both at once, as by the kernel's out-of-memory killer.
    Both,
}

/// A death to be simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crash {
    /// When.
    pub point: CrashPoint,
    /// Who.
    pub victim: Victim,
    /// Leave the database half written beside its journal, if the
    /// transaction is still open.
    pub hot_journal: bool,
}

impl Crash {
    /// Plugin and node die at once.
    pub fn both(point: CrashPoint) -> Self {
        Self::of(Victim::Both, point)
    }

    /// One or both die.
    pub fn of(victim: Victim, point: CrashPoint) -> Self {
        Self { point, victim, hot_journal: false }
    }

    /// With a hot journal left behind.
    pub fn with_hot_journal(mut self) -> Self {
        self.hot_journal = true;
        self
    }

    /// Any death whatever, most often inside the hook and at most so long
    /// after the request was sent.
    pub fn random(rng: &mut Rng, after_max: Duration) -> Self {
        let point = match rng.u8(..10) {
            0 => CrashPoint::BeforeHook,
            1 => CrashPoint::AfterAck,
            2 => CrashPoint::AfterCommit,
            3 => CrashPoint::InsideHook {
                sent: Sent::Part(rng.f64()),
                after: after_max.mul_f64(rng.f64()),
            },
            4 => CrashPoint::InsideHook {
                sent: Sent::AllButBlankLine,
                after: after_max.mul_f64(rng.f64()),
            },
            // Squared: the early moments are the interesting ones.
            _ => CrashPoint::InsideHook {
                sent: Sent::All,
                after: after_max.mul_f64(rng.f64().powi(2)),
            },
        };
        let victim = match rng.u8(..4) {
            0 => Victim::Plugin,
            1 => Victim::Node,
            _ => Victim::Both,
        };
        Self { point, victim, hot_journal: rng.u8(..8) == 0 }
    }
}

/// What was left of a write after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashReport {
    /// The version that the batch leads to.
    pub data_version: u32,
    /// The plugin's answer, if one arrived.
    pub answer: Option<Answer>,
    /// Whether the node committed.
    pub committed: bool,
}

impl Node {
    /// Writes a step and dies at the given point. The node is down afterwards,
    /// whatever happened; [`Node::start`] begins the next session.
    pub fn crash(&mut self, step: &Step, crash: &Crash) -> Result<CrashReport, SimError> {
        let batch = self.begin(step)?;
        let answer = match crash.point {
            CrashPoint::BeforeHook => None,
            CrashPoint::InsideHook { sent, after } => {
                self.die_inside_hook(&batch, sent, after, crash.victim)?
            }
            CrashPoint::AfterAck | CrashPoint::AfterCommit => Some(self.ask(&batch)?),
        };
        let inside = matches!(crash.point, CrashPoint::InsideHook { .. });
        let reads_on = inside && crash.victim == Victim::Plugin;
        let committed = answer == Some(Answer::Continue)
            && (crash.point == CrashPoint::AfterCommit || reads_on);
        if committed {
            self.commit()?;
        }
        self.fall(crash.victim != Victim::Node, crash.hot_journal)?;
        Ok(CrashReport { data_version: batch.data_version, answer, committed })
    }

    /// Sends, waits, kills; gives the answer that came before the end.
    fn die_inside_hook(
        &mut self,
        batch: &Batch,
        sent: Sent,
        after: Duration,
        victim: Victim,
    ) -> Result<Option<Answer>, SimError> {
        let timeout = self.config.reply_timeout;
        let plugin = self.plugin.as_mut().ok_or(SimError::NotRunning)?;
        let (id, mut bytes) = plugin.prepare("db_write", batch);
        bytes.truncate(sent.of(bytes.len()));
        if !matches!(sent, Sent::Part(_)) {
            self.ledger.mark(Fate::Asked);
        }
        plugin.send(bytes, timeout)?;
        pause(after);
        // A dead node reads no answer that comes from now on; a dead plugin's
        // last one is still in the pipe.
        let patience = if victim == Victim::Node {
            Duration::ZERO
        } else {
            plugin.kill();
            timeout
        };
        match self.answer(&id, patience) {
            Ok(answer) => Ok(Some(answer)),
            Err(SimError::Timeout { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Sent {
    /// How many of a request's bytes that is. A part lacks at least its last
    /// brace, so that it can never be read as a request.
    fn of(self, length: usize) -> usize {
        const BLANK_LINE: usize = "\n\n".len();
        match self {
            Self::Part(share) => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                #[expect(clippy::cast_precision_loss)]
                let part = (length as f64 * share.clamp(0.0, 1.0)) as usize;
                part.min(length - BLANK_LINE - 1)
            }
            Self::AllButBlankLine => length - BLANK_LINE,
            Self::All => length,
        }
    }
}

/// Waits more precisely than the scheduler does.
fn pause(time: Duration) {
    const COARSE: Duration = Duration::from_millis(2);
    let end = Instant::now() + time;
    thread::sleep(time.saturating_sub(COARSE));
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_never_a_whole_request() {
        let length = "{\"params\":{}}\n\n".len();
        assert_eq!(Sent::All.of(length), 15);
        assert_eq!(Sent::AllButBlankLine.of(length), 13);
        assert_eq!(Sent::Part(1.0).of(length), 12);
        assert_eq!(Sent::Part(0.0).of(length), 0);
    }
}
