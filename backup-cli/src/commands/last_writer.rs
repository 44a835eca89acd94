//! Whether the last writer of a backup looks alive, in words.

use lockstep_proto::liveness::{LastWriter, Liveness};
use lockstep_proto::record::TimeMs;
use serde::Serialize;

use super::now;
use crate::failure::{Failure, Result};
use crate::output::{Output, utc};

/// Refuses to shut out a writer that looks alive; a clock that is wrong is said.
pub fn refuse_alive(writer: Option<LastWriter>, output: &Output) -> Result<()> {
    let Some(writer) = writer else { return Ok(()) };
    let now = now();
    let for_ms = match writer.at(now) {
        Liveness::Ended | Liveness::Silent => return Ok(()),
        Liveness::Unknown { .. } => {
            output.note(&format!(
                "warning: {} was last seen {}: whether it is alive nobody can say; make sure that it is not",
                writer.who(),
                when(&writer, now)
            ));
            return Ok(());
        }
        Liveness::Alive { for_ms } => for_ms,
    };
    Err(Failure::fenced(
        format!(
            "the node that writes this backup looks alive: {}, last seen {}, at '{}'",
            writer.who(),
            when(&writer, now),
            writer.place
        ),
        format!(
            "two running copies lose channel funds: stop that node for good. Stopped in order it does not look \
             alive; where it died, wait {} or pass '--take-over', which shuts it out of this backup at once. \
             Nothing was changed.",
            span(for_ms)
        ),
    ))
}

/// Time, and how long ago that is by this machine's clock.
fn when(writer: &LastWriter, now: TimeMs) -> String {
    let time = utc(writer.seen);
    match now.checked_sub(writer.seen) {
        Some(ago) => format!("{time} ({} ago)", span(ago)),
        None => format!(
            "{time} ({} in the future: its clock or this machine's is wrong)",
            span(writer.seen - now)
        ),
    }
}

/// Roughly, in the unit that suits.
fn span(ms: u64) -> String {
    match ms.div_ceil(1000) {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds.div_ceil(60)),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// For `status`.
#[derive(Serialize)]
pub struct WriterReport {
    /// `ended` (in order, or a process of this machine that is gone), `alive`, `silent` (not heard of for three of its
    /// intervals), `unknown` (a clock is wrong by more than a day).
    state: &'static str,
    epoch: u32,
    /// Its newest sign of life, a record or a heartbeat.
    last_seen: TimeMs,
    /// 0 where that is in the future.
    age_seconds: u64,
    /// How often it gives one.
    interval_seconds: u64,
    /// Where that was found.
    place: String,
    writer: Option<String>,
    host: Option<String>,
    pid: Option<u32>,
    purpose: Option<String>,
    #[serde(skip)]
    words: String,
}

impl From<LastWriter> for WriterReport {
    fn from(last: LastWriter) -> Self {
        let now = now();
        let (state, looks) = match last.at(now) {
            Liveness::Ended if last.closed => ("ended", "ended in order"),
            Liveness::Ended => ("ended", "its process has ended"),
            Liveness::Silent => ("silent", "silent"),
            Liveness::Alive { .. } => ("alive", "looks alive"),
            Liveness::Unknown { .. } => ("unknown", "nobody can say whether it is alive"),
        };
        let words = format!("{}, last seen {}: {looks}", last.who(), when(&last, now));
        Self {
            state,
            epoch: last.epoch,
            last_seen: last.seen,
            age_seconds: now.saturating_sub(last.seen) / 1000,
            interval_seconds: last.interval_ms / 1000,
            place: last.place,
            writer: last.by.as_ref().map(|by| by.writer.clone()),
            host: last.by.as_ref().map(|by| by.host.clone()),
            pid: last.by.as_ref().map(|by| by.pid),
            purpose: last.by.as_ref().map(|by| by.purpose.clone()),
            words,
        }
    }
}

impl std::fmt::Display for WriterReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "written by {}", self.words)
    }
}
