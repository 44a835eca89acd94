//! Whether the log's last writer is alive, as far as its log shows: what a restore looks at before it shuts it out.
//!
//! A writer that ends in order says so in its last record. Of one that did not, the newest sign of life counts: a
//! record, or a heartbeat, at whichever place of the log. This protects nobody from a second writer, which is what
//! claims are for (see [`crate::fence`]): it asks a person before the harm of stopping a node that runs. So whoever
//! hides a sign of life gains only that the question is not asked.

use crate::error::Result;
use crate::fence::{self, Claimant};
use crate::heartbeat::{Heartbeat, INTERVAL_S};
use crate::record::TimeMs;
use crate::replica::Seen;
use crate::seal::KeyRing;

/// A writer that missed so many heartbeats is not taken for alive any more, …
const MISSED: u64 = 3;
/// … with so much more for two clocks that differ, but no more than one interval. Milliseconds.
const SKEW_MS: u64 = 60_000;
/// A sign of life from further in the future than this says nothing: a clock is wrong by that much. Milliseconds.
const FUTURE_MS: u64 = 24 * 3_600_000;
/// No interval counts as longer than this. Milliseconds.
const INTERVAL_MS_MAX: u64 = 24 * 3_600_000;

/// What is known of the newest writer of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastWriter {
    /// Its epoch.
    pub epoch: u32,
    /// Its newest sign of life, by its own clock.
    pub seen: TimeMs,
    /// Where that was found: the store's label.
    pub place: String,
    /// How often it gives one. Milliseconds.
    pub interval_ms: u64,
    /// It has said that it ends.
    pub closed: bool,
    /// Who it is, where its claim can be read.
    pub by: Option<Claimant>,
    /// It was a process of this machine, which has ended.
    pub gone: bool,
}

/// How a writer looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It ended in order, or its process is known to have ended.
    Ended,
    /// It has not been heard of for too long.
    Silent,
    /// It may be running.
    Alive {
        /// So many milliseconds from now on, if it stays silent.
        for_ms: u64,
    },
    /// Its newest sign of life lies so many milliseconds ahead: a clock is wrong, and nobody can say.
    Unknown {
        /// More than a day.
        ahead_ms: u64,
    },
}

impl LastWriter {
    /// Looks for signs of life at all places of one log; `None` where there is no place.
    ///
    /// # Errors
    /// Where a place cannot be read. A heartbeat or claim that does not open is none.
    pub fn look(places: &[Seen<'_>], keys: &KeyRing) -> Result<Option<Self>> {
        let mut signs = Vec::new();
        for place in places {
            let beat = Heartbeat::newest(place.store, keys)?;
            // That of an older epoch than wrote here last is of no interest.
            signs.push((place, beat.filter(|(epoch, _)| *epoch >= place.end.epoch)));
        }
        let epochs = signs.iter().map(|(place, beat)| match beat {
            Some((epoch, _)) => *epoch,
            None => place.end.epoch,
        });
        let Some(epoch) = epochs.max() else { return Ok(None) };
        let mut writer = Self::unseen(epoch);
        for (place, beat) in &signs {
            if place.end.epoch == epoch {
                writer.closed |= place.end.closed;
                writer.note(place.end.time, place);
                writer.by = writer.by.or_else(|| fence::read(place.store, keys, epoch).ok());
            }
            if let Some((_, beat)) = beat.as_ref().filter(|(of, _)| *of == epoch) {
                writer.note(beat.time, place);
                writer.interval_ms = beat.interval_s.saturating_mul(1000).min(INTERVAL_MS_MAX);
                writer.by = Some(beat.by.clone());
            }
        }
        writer.gone = writer.by.as_ref().is_some_and(Claimant::is_gone);
        Ok(Some(writer))
    }

    fn unseen(epoch: u32) -> Self {
        Self {
            epoch,
            seen: 0,
            place: String::new(),
            interval_ms: INTERVAL_S * 1000,
            closed: false,
            by: None,
            gone: false,
        }
    }

    fn note(&mut self, time: TimeMs, place: &Seen<'_>) {
        if time >= self.seen {
            (self.seen, self.place) = (time, place.store.label().into());
        }
    }

    /// How it looks at `now`, by this machine's clock. No I/O.
    pub fn at(&self, now: TimeMs) -> Liveness {
        if self.closed || self.gone {
            return Liveness::Ended;
        }
        let ahead_ms = self.seen.saturating_sub(now);
        if ahead_ms > FUTURE_MS {
            return Liveness::Unknown { ahead_ms };
        }
        let fresh_ms = MISSED * self.interval_ms + SKEW_MS.min(self.interval_ms);
        match self.seen.saturating_add(fresh_ms).checked_sub(now) {
            Some(for_ms @ 1..) => Liveness::Alive { for_ms },
            _ => Liveness::Silent,
        }
    }

    /// Who it is, in words.
    pub fn who(&self) -> String {
        self.by.as_ref().map_or_else(|| "an unknown writer".into(), ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: TimeMs = 1_700_000_000_000;

    fn seen(seen: TimeMs) -> LastWriter {
        LastWriter { seen, ..LastWriter::unseen(3) }
    }

    #[test]
    fn one_that_was_heard_of_lately_may_be_alive() {
        assert_eq!(seen(NOW).at(NOW), Liveness::Alive { for_ms: 960_000 });
        assert_eq!(seen(NOW - 959_999).at(NOW), Liveness::Alive { for_ms: 1 });
        assert_eq!(seen(NOW - 960_000).at(NOW), Liveness::Silent);
        let often = LastWriter { interval_ms: 1_000, ..seen(NOW - 3_999) };
        assert_eq!(
            often.at(NOW),
            Liveness::Alive { for_ms: 1 },
            "the allowance is no longer than that"
        );
        assert_eq!(often.at(NOW + 1), Liveness::Silent);
    }

    #[test]
    fn one_that_ended_is_not_however_fresh_its_signs_are() {
        assert_eq!(LastWriter { closed: true, ..seen(NOW) }.at(NOW), Liveness::Ended);
        assert_eq!(LastWriter { gone: true, ..seen(NOW) }.at(NOW), Liveness::Ended);
    }

    #[test]
    fn a_sign_from_the_future_is_one_unless_it_is_absurd() {
        assert!(matches!(seen(NOW + 5_000).at(NOW), Liveness::Alive { for_ms: 965_000 }));
        assert!(matches!(seen(NOW + FUTURE_MS).at(NOW), Liveness::Alive { .. }));
        let ahead_ms = FUTURE_MS + 1;
        assert_eq!(seen(NOW + ahead_ms).at(NOW), Liveness::Unknown { ahead_ms });
        assert!(matches!(seen(TimeMs::MAX).at(0), Liveness::Unknown { .. }));
    }
}
