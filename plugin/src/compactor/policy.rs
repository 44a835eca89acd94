//! When to compact, and what a restore would take: numbers in, decisions out.

use std::time::Duration;

use lockstep_proto::config::Compaction;
use lockstep_proto::tail::Tail;

/// Bytes of stored log that are replayed a second, until that was measured. An eighth of what a machine of 2024
/// does while its database fits in memory.
const REPLAY_RATE: f64 = 1_048_576.0;
/// What a measurement is taken for at least and at most: it may be of a moment in which the machine did other
/// things.
const REPLAY_RATES: (f64, f64) = (65_536.0, 67_108_864.0);
/// Bytes of a database that are restored from snapshots a second, and of one that is checked; disks that hold
/// nodes do more.
const PAGE_RATE: f64 = 100e6;
/// A replay shorter than this says nothing of the rate.
const MEASURED_FOR: Duration = Duration::from_secs(1);

/// While the node writes, compaction rests so many times as long as it computed …
const REST: f64 = 9.0;
/// … and, while there is no hurry, so many times as long as it waited for the disk, if that was longer than this: the
/// node's own writes had to wait, too, and so fewer than one in a hundred of them do.
const PATIENT_REST: f64 = 249.0;
const LONG_WAIT: Duration = Duration::from_millis(1);
/// Such a rest is half as long for each time that a compaction has taken this …
const HALVED_AFTER: Duration = Duration::from_secs(1_800);
/// … and for each so many times the log that starts one by which there is more; but no shorter than [`REST`].
const HALVED_PER_TAIL: f64 = 0.6;

/// After an error the next automatic try is so much later, then twice that, and so on …
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// After a compaction the next automatic one begins no earlier than so many times its work's duration, and this.
const SHARE: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// How fast this machine does what a restore does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// Bytes of stored log a second.
    replay: Option<f64>,
    /// Bytes of database a second.
    check: Option<f64>,
}

impl Rates {
    /// Notes that so much of the log was replayed in so long.
    pub fn replayed(&mut self, bytes: u64, took: Duration) {
        if took >= MEASURED_FOR {
            let rate = bytes as f64 / took.as_secs_f64();
            self.replay = Some(rate.clamp(REPLAY_RATES.0, REPLAY_RATES.1));
        }
    }

    /// Notes that a database of so many bytes was checked in so long.
    pub fn checked(&mut self, bytes: u64, took: Duration) {
        if took >= MEASURED_FOR {
            self.check = Some(bytes as f64 / took.as_secs_f64());
        }
    }

    /// Seconds that the replay of so many bytes of log takes.
    pub fn replay_seconds(&self, bytes: u64) -> f64 {
        bytes as f64 / self.replay.unwrap_or(REPLAY_RATE)
    }

    /// Seconds that a restore takes: pages, then the tail, then the check.
    pub fn restore_seconds(&self, tail: &Tail) -> f64 {
        let database = tail.snapshot.as_ref().map_or(0, |newest| newest.database_bytes) as f64;
        database / PAGE_RATE
            + self.replay_seconds(tail.bytes)
            + database / self.check.unwrap_or(PAGE_RATE)
    }
}

/// True where so much log behind the newest snapshot is too much.
pub fn is_due(settings: &Compaction, rates: &Rates, tail_bytes: u64) -> bool {
    settings.enabled && tail_bytes > 0 && overdue(settings, rates, tail_bytes) >= 1.0
}

/// How many times the nearer threshold so much log behind the newest snapshot is.
pub fn overdue(settings: &Compaction, rates: &Rates, tail_bytes: u64) -> f64 {
    if tail_bytes == 0 {
        return 0.0;
    }
    let by_bytes = tail_bytes as f64 / settings.tail_bytes as f64;
    let by_seconds = rates.replay_seconds(tail_bytes) / settings.replay_seconds as f64;
    by_bytes.max(by_seconds)
}

/// How long to rest after a portion of work that computed and waited for so long, in a compaction that has taken
/// `running`, while the log behind the newest snapshot is so many times what starts one.
///
/// The share of the disk's time that compaction takes rises with the log behind it, from less than a half in a hundred
/// to a tenth: one that was patient for ever would fall behind a node that writes hard.
pub fn rest_after(
    computed: Duration,
    waited: Duration,
    overdue: f64,
    running: Duration,
) -> Duration {
    let late = running.as_secs_f64() / HALVED_AFTER.as_secs_f64();
    let behind = (overdue - 1.0).max(0.0) / HALVED_PER_TAIL;
    let patience = match waited < LONG_WAIT {
        true => REST,
        false => (PATIENT_REST / (late + behind).exp2()).max(REST),
    };
    computed.mul_f64(REST) + waited.mul_f64(patience)
}

/// How long after a compaction the next automatic one may begin, where `failures` have failed one after another
/// and the last worked for `worked`.
pub fn pause(failures: u32, worked: Duration) -> Duration {
    match failures.checked_sub(1) {
        Some(doublings) => (FIRST_PAUSE * (1 << doublings.min(16))).min(LONGEST_PAUSE),
        None => (SHARE * worked).max(SHORTEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::tail::NewestSnapshot;

    #[test]
    fn either_threshold_is_enough() {
        let settings = Compaction { tail_bytes: 1 << 20, replay_seconds: 10, ..Default::default() };
        let mut rates = Rates::default();
        assert!(!is_due(&settings, &rates, (1 << 20) - 1));
        assert!(is_due(&settings, &rates, 1 << 20));
        rates.replayed(200_000, Duration::from_secs(2));
        assert!(!is_due(&settings, &rates, 999_000));
        assert!(is_due(&settings, &rates, 1_000_000));
        let off = Compaction { enabled: false, ..settings };
        assert!(!is_due(&off, &rates, u64::MAX));
        let always = Compaction { tail_bytes: 0, ..Default::default() };
        assert!(!is_due(&always, &rates, 0), "nothing is behind the snapshot");
        assert!(is_due(&always, &rates, 1));
    }

    #[test]
    fn short_measurements_and_absurd_ones_count_for_little() {
        let mut rates = Rates::default();
        rates.replayed(1, Duration::from_millis(10));
        assert_eq!(rates.replay_seconds(10 << 20), 10.0);
        rates.replayed(1, Duration::from_secs(1_000));
        assert_eq!(rates.replay_seconds(1 << 16), 1.0);
    }

    #[test]
    fn a_restore_reads_pages_replays_and_checks() {
        let mut rates = Rates::default();
        let snapshot = NewestSnapshot {
            seq: 1,
            time: 0,
            data_version: None,
            objects: 1,
            database_bytes: 1_000_000_000,
        };
        let tail = Tail { snapshot: Some(snapshot), head_seq: 9, records: 8, bytes: 5 << 20 };
        assert_eq!(rates.restore_seconds(&tail), 10.0 + 5.0 + 10.0);
        rates.checked(1_000_000_000, Duration::from_secs(20));
        assert_eq!(rates.restore_seconds(&tail), 10.0 + 5.0 + 20.0);
        assert_eq!(rates.restore_seconds(&Tail::default()), 0.0);
    }

    #[test]
    fn the_longer_the_tail_the_shorter_the_rests_but_never_none() {
        let ms = Duration::from_millis;
        let rest = |overdue| rest_after(ms(0), ms(1), overdue, ms(0));
        assert_eq!([0.0, 0.5, 1.0].map(rest), [ms(249); 3], "no hurry");
        let rests: Vec<_> = (10..=40).map(|tenths| rest(f64::from(tenths) / 10.0)).collect();
        assert!(rests.is_sorted_by(|one, next| next < one || *next == ms(9)), "{rests:?}");
        assert_eq!([4.0, 100.0, f64::INFINITY].map(rest), [ms(9); 3], "a tenth of the time");
        assert_eq!(rest_after(ms(1), ms(0), 0.0, ms(0)), ms(9), "whatever the disk does");
    }

    #[test]
    fn a_page_that_is_read_is_no_long_wait() {
        let us = Duration::from_micros;
        assert_eq!(rest_after(us(100), us(900), 0.0, us(0)), us(9_000));
    }

    #[test]
    fn what_has_taken_hours_is_no_longer_patient() {
        let ms = Duration::from_millis;
        let rest = |minutes| rest_after(ms(0), ms(8), 0.0, Duration::from_secs(minutes * 60));
        assert_eq!([0, 30, 60].map(rest), [ms(8 * 249), ms(4 * 249), ms(2 * 249)]);
        assert_eq!(rest(180), ms(72));
        assert_eq!(rest(u64::MAX / 60), ms(72));
    }

    #[test]
    fn pauses_grow_after_errors_only() {
        let s = Duration::from_secs;
        assert_eq!(pause(0, s(0)), s(1));
        assert_eq!(pause(0, s(20)), s(60));
        assert_eq!([1, 2, 3].map(|failures| pause(failures, s(20))), [s(60), s(120), s(240)]);
        assert_eq!(pause(u32::MAX, s(0)), LONGEST_PAUSE);
    }
}
