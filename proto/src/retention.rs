//! How far back one can go: which points in time stay, why, and which part of the log they need.
//!
//! Pure: no I/O and no clock. What must hold, whatever the policy says and whatever clocks said:
//!
//! 1. The newest point of the newest history stays, and the log from there on: the way to the head.
//! 2. What a kept point needs (the parents of a delta) stays.
//! 3. Every moment of `keep_within` can be restored: all points within it stay, the newest one before it,
//!    and the log from there on.
//! 4. What cannot be judged stays: a time in the future, a generation without a segment (somebody may
//!    be beginning it), a delta without its parent.

mod policy;
mod segments;

use std::collections::{HashMap, HashSet};
use std::fmt;

use jiff::civil::Date;
use jiff::tz::Offset;

use crate::layout::SnapshotName;
use crate::log::SegmentEntry;
use crate::record::TimeMs;

pub use policy::{Policy, PolicyError, Span};
pub use segments::{GenerationNeed, LogNeed, beginnings, removable_segments};

/// A snapshot that counts: one that was published and proved (docs/format.md §9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub name: SnapshotName,
    /// When the database was there: not before its newest record. A merge of deltas has the time of the newest of
    /// them, not its own.
    pub time: TimeMs,
    /// For a delta, the snapshot whose changed pages it holds.
    pub parent: Option<SnapshotName>,
    /// What it takes in the store.
    pub bytes: u64,
}

/// The generations that have a segment, in the order in which they were newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histories(Vec<u32>);

impl Histories {
    /// From the segments of all generations, in any order. `newest` is the generation of the newest history
    /// as reading the log found it (docs/format.md, R4): names alone do not say which segments count, and
    /// neither do those of snapshots, because a fenced writer leaves one with a high number.
    pub fn new(segments: &[SegmentEntry], newest: u32) -> Self {
        let mut last_written: HashMap<u32, (u32, u32)> = HashMap::new();
        for SegmentEntry { name, .. } in segments {
            let last = last_written.entry(name.generation).or_default();
            *last = (name.epoch, name.index).max(*last);
        }
        last_written.remove(&newest);
        let mut order: Vec<_> = last_written.into_iter().map(|(g, last)| (last, g)).collect();
        order.sort_unstable();
        Self(order.into_iter().map(|(_, generation)| generation).chain([newest]).collect())
    }

    fn rank(&self, generation: u32) -> Option<usize> {
        self.0.iter().position(|&known| known == generation)
    }
}

/// An hour, day, week or month, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    /// From the full hour, 0 to 23.
    Hour {
        /// The day.
        day: Date,
        /// The hour.
        hour: i8,
    },
    /// A calendar day.
    Day(Date),
    /// A week of ISO 8601, from Monday; its year is that of its Thursday.
    Week {
        /// Year of the week.
        year: i16,
        /// 1 to 53.
        week: i8,
    },
    /// A calendar month.
    Month {
        /// The year.
        year: i16,
        /// 1 to 12.
        month: i8,
    },
}

impl Period {
    fn hour(time: TimeMs) -> Self {
        let time = Offset::UTC.to_datetime(timestamp(time));
        Self::Hour { day: time.date(), hour: time.hour() }
    }

    fn day(time: TimeMs) -> Self {
        Self::Day(date(time))
    }

    fn week(time: TimeMs) -> Self {
        let week = date(time).iso_week_date();
        Self::Week { year: week.year(), week: week.week() }
    }

    fn month(time: TimeMs) -> Self {
        let date = date(time);
        Self::Month { year: date.year(), month: date.month() }
    }
}

fn timestamp(time: TimeMs) -> jiff::Timestamp {
    let known = i64::try_from(time).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    known.unwrap_or(jiff::Timestamp::MAX)
}

fn date(time: TimeMs) -> Date {
    Offset::UTC.to_datetime(timestamp(time)).date()
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hour { day, hour } => write!(f, "hourly {day} {hour:02}:00"),
            Self::Day(day) => write!(f, "daily {day}"),
            Self::Week { year, week } => write!(f, "weekly {year:04}-W{week:02}"),
            Self::Month { year, month } => write!(f, "monthly {year:04}-{month:02}"),
        }
    }
}

/// Why a point stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The newest point of the newest history that has one.
    Newest,
    /// Among the newest so many.
    Last(u32),
    /// Not older than that.
    Within(Span),
    /// The newest before that time.
    WindowStart(Span),
    /// The newest of its hour, day, week or month.
    Period(Period),
    /// Another kept point needs it.
    ParentOf(SnapshotName),
    /// Its time is in the future: this clock is wrong, or another was.
    Future,
    /// Its generation has no segment: somebody may be beginning it.
    NoSegment,
    /// It cannot be restored, because this one is not there; whether it will be again is not for a policy
    /// to say.
    ParentMissing(SnapshotName),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest: the way to the head"),
            Self::Last(count) => write!(f, "last {count}"),
            Self::Within(span) => write!(f, "within {span}"),
            Self::WindowStart(span) => {
                write!(f, "newest before {span}: where they are restored from")
            }
            Self::Period(period) => write!(f, "{period}"),
            Self::ParentOf(child) => write!(f, "parent of {child}"),
            Self::Future => f.write_str("time in the future: a clock is or was wrong"),
            Self::NoSegment => f.write_str("its generation has no segment: it may be beginning"),
            Self::ParentMissing(parent) => write!(f, "not judged: {parent} is missing"),
        }
    }
}

/// A point, and what keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The point.
    pub point: Point,
    /// Why it stays; empty where it is dropped.
    pub kept: Vec<Reason>,
}

impl Verdict {
    /// False where it is dropped.
    pub fn is_kept(&self) -> bool {
        !self.kept.is_empty()
    }
}

/// What a policy says about the points that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// For each point; the oldest of the oldest history first.
    pub verdicts: Vec<Verdict>,
    /// What the log is needed for.
    pub log: LogNeed,
}

impl Judgement {
    /// The dropped points in the order in which they must go: deltas before their parents, so that whatever
    /// interrupts leaves none that cannot be restored. Segments go after them.
    pub fn removable_points(&self) -> Vec<SnapshotName> {
        let parents: HashMap<_, _> = self
            .verdicts
            .iter()
            .filter(|verdict| !verdict.is_kept())
            .map(|verdict| (verdict.point.name, verdict.point.parent))
            .collect();
        let depth = |name: SnapshotName| {
            let next = |name: &SnapshotName| parents.get(name).copied().flatten();
            std::iter::successors(Some(name), next).take(parents.len() + 1).count()
        };
        let dropped = self.verdicts.iter().rev().filter(|verdict| !verdict.is_kept());
        let mut names: Vec<_> = dropped.map(|verdict| verdict.point.name).collect();
        names.sort_by_cached_key(|name| std::cmp::Reverse(depth(*name)));
        names
    }
}

/// Judges `points`, all that there are, in any order, at the time `now`.
///
/// The window of `keep_within` counts back from the newest point, so that neither a node that was switched
/// off nor a clock that runs ahead empties it. Of several snapshots at one position (a merge of deltas makes
/// them) the newest stands for it, and the others stay only as parents.
///
/// A policy that keeps nothing, which [`Policy::checked`] refuses, is taken as one that keeps the newest only.
pub fn judge(policy: &Policy, points: &[Point], histories: &Histories, now: TimeMs) -> Judgement {
    let mut court = Court::new(points, histories, now);
    court.keep_unjudged();
    court.keep_newest();
    court.keep_last(policy.keep_last);
    let log_from = policy.keep_within.map(|span| court.keep_within(span));
    court.keep_periods(policy.keep_hourly, Period::hour);
    court.keep_periods(policy.keep_daily, Period::day);
    court.keep_periods(policy.keep_weekly, Period::week);
    court.keep_periods(policy.keep_monthly, Period::month);
    court.keep_parents();
    let log = court.log_need(log_from);
    let verdicts =
        court.cases.into_iter().map(|case| Verdict { point: case.point, kept: case.kept });
    Judgement { verdicts: verdicts.collect(), log }
}

/// A point that is being judged.
struct Case {
    point: Point,
    /// Of its generation among the histories.
    rank: Option<usize>,
    /// Its time, or, where that was in the future and a later point's is not, the later one's.
    time: TimeMs,
    /// True where rules may count it: it can be restored, and stands for its position.
    counts: bool,
    kept: Vec<Reason>,
}

/// The points in the order of history, and what is known of all.
struct Court {
    cases: Vec<Case>,
    index: HashMap<SnapshotName, usize>,
    generations: Vec<u32>,
    now: TimeMs,
}

impl Court {
    fn new(points: &[Point], histories: &Histories, now: TimeMs) -> Self {
        let mut cases: Vec<_> = points
            .iter()
            .map(|&point| {
                let rank = histories.rank(point.name.generation);
                Case { point, rank, time: point.time, counts: rank.is_some(), kept: Vec::new() }
            })
            .collect();
        cases.sort_by_key(|case| {
            let SnapshotName { generation, seq, epoch, index } = case.point.name;
            (case.rank, generation, epoch, seq, index)
        });
        cases.dedup_by_key(|case| case.point.name);
        let index = cases.iter().enumerate().map(|(at, case)| (case.point.name, at)).collect();
        let mut court = Self { cases, index, generations: histories.0.clone(), now };
        court.mend_times();
        court
    }

    /// A point that a later one of its generation shows to have had a wrong clock takes that one's time.
    fn mend_times(&mut self) {
        let mut later: Option<(u32, TimeMs)> = None;
        for case in self.cases.iter_mut().rev() {
            let generation = case.point.name.generation;
            if case.time <= self.now {
                later = Some((generation, case.time));
            } else if let Some((_, time)) = later.filter(|later| later.0 == generation) {
                case.time = time;
            }
        }
    }

    /// Keeps what no rule can judge, and finds what rules may count.
    fn keep_unjudged(&mut self) {
        for at in 0..self.cases.len() {
            let missing = self.missing_parent(at);
            let case = &mut self.cases[at];
            if case.rank.is_none() {
                case.kept.push(Reason::NoSegment);
            }
            if let Some(missing) = missing {
                case.kept.push(Reason::ParentMissing(missing));
                case.counts = false;
            }
        }
        let mut positions = HashSet::new();
        for case in self.cases.iter_mut().rev().filter(|case| case.counts) {
            case.counts = positions.insert((case.point.name.generation, case.point.name.seq));
            if case.counts && case.time > self.now {
                case.kept.push(Reason::Future);
            }
        }
    }

    /// The parent, however far up, that is not there; or the one with which parents begin to repeat.
    fn missing_parent(&self, at: usize) -> Option<SnapshotName> {
        let mut seen = HashSet::from([at]);
        let mut parent = self.cases[at].point.parent;
        while let Some(name) = parent {
            let Some(&at) = self.index.get(&name) else { return Some(name) };
            if !seen.insert(at) {
                return Some(name);
            }
            parent = self.cases[at].point.parent;
        }
        None
    }

    /// Those that rules may count, newest last.
    fn counting(&mut self) -> impl DoubleEndedIterator<Item = &mut Case> {
        self.cases.iter_mut().filter(|case| case.counts)
    }

    fn keep_newest(&mut self) {
        if let Some(case) = self.counting().next_back() {
            case.kept.push(Reason::Newest);
        }
    }

    /// By history, not by time: no clock has a say.
    fn keep_last(&mut self, count: u32) {
        for case in self.counting().rev().take(count as usize) {
            case.kept.push(Reason::Last(count));
        }
    }

    fn keep_periods(&mut self, count: u32, period_of: fn(TimeMs) -> Period) {
        let now = self.now;
        let mut by_time: Vec<_> = self.counting().filter(|case| case.time <= now).collect();
        // Stable: of equal times, the later in history is the later.
        by_time.sort_by_key(|case| case.time);
        let (mut left, mut last) = (count, None);
        for case in by_time.into_iter().rev() {
            let period = period_of(case.time);
            if last == Some(period) {
                continue;
            }
            if left == 0 {
                return;
            }
            (left, last) = (left - 1, Some(period));
            case.kept.push(Reason::Period(period));
        }
    }

    /// Keeps what every moment of the window is restored from. Returns, for each generation that may have
    /// been written in it, the case from which its log is needed, or `None` for all of it.
    fn keep_within(&mut self, span: Span) -> HashMap<u32, Option<usize>> {
        let (now, generations) = (self.now, self.generations.clone());
        let times = self.counting().map(|case| case.time).filter(|&time| time <= now);
        let start = times.max().unwrap_or(now).saturating_sub(span.as_ms());
        for case in self.counting().filter(|case| case.time > start) {
            case.kept.push(Reason::Within(span));
        }

        let mut written_in_it = HashMap::new();
        // The newest time before the window at which a later history had begun.
        let mut begun: Option<TimeMs> = None;
        for generation in generations.into_iter().rev() {
            let of_it = self.cases.iter().enumerate();
            let of_it: Vec<_> = of_it
                .filter(|(_, case)| case.counts && case.point.name.generation == generation)
                .collect();
            let before = of_it.iter().take_while(|(_, case)| case.time <= start);
            // By time: one whose clock had fallen back does not pass for the newest.
            let newest_before = before.max_by_key(|(at, case)| (case.time, *at));
            let newest = of_it.iter().map(|(_, case)| case.time).max();
            let ended_before =
                begun.is_some_and(|begun| newest.is_none_or(|newest| newest <= begun));
            if ended_before {
                continue;
            }
            let from = newest_before.map(|&(at, case)| (at, case.time));
            written_in_it.insert(generation, from.map(|(at, _)| at));
            if let Some((at, time)) = from {
                self.cases[at].kept.push(Reason::WindowStart(span));
                begun = begun.max(Some(time));
            }
        }
        written_in_it
    }

    fn keep_parents(&mut self) {
        let mut next: Vec<_> =
            (0..self.cases.len()).filter(|&at| !self.cases[at].kept.is_empty()).collect();
        while let Some(at) = next.pop() {
            let Point { name, parent, .. } = self.cases[at].point;
            let Some(&parent) = parent.and_then(|parent| self.index.get(&parent)) else { continue };
            let kept = &mut self.cases[parent].kept;
            if kept.is_empty() {
                next.push(parent);
            }
            if !kept.contains(&Reason::ParentOf(name)) {
                kept.push(Reason::ParentOf(name));
            }
        }
    }

    fn log_need(&self, window: Option<HashMap<u32, Option<usize>>>) -> LogNeed {
        let newest = self.generations.last().copied();
        let need = |generation: u32| {
            let of_it = || {
                let cases = self.cases.iter().enumerate();
                cases.filter(move |(_, case)| case.point.name.generation == generation)
            };
            let from = match &window {
                Some(window) => window.get(&generation).copied(),
                None if Some(generation) == newest => {
                    Some(of_it().filter(|(_, case)| case.counts).map(|(at, _)| at).next_back())
                }
                None => None,
            };
            // What a generation began with is known by its first record alone.
            let begins_with_point = of_it().any(|(_, case)| {
                let for_itself = |reason: &Reason| !matches!(reason, Reason::ParentOf(_));
                !case.point.name.is_compacted() && case.kept.iter().any(for_itself)
            });
            match from {
                _ if begins_with_point => GenerationNeed::From(0),
                Some(Some(from)) => {
                    // Also what a later writer took at a lower position.
                    let behind = of_it().filter(|(at, case)| case.counts && *at >= from);
                    let lowest = behind.map(|(_, case)| case.point.name.seq).min();
                    GenerationNeed::From(lowest.unwrap_or(0))
                }
                Some(None) => GenerationNeed::From(0),
                None if of_it().any(|(_, case)| !case.kept.is_empty()) => GenerationNeed::Points,
                None => GenerationNeed::Gone,
            }
        };
        let generations = self.generations.iter().map(|&generation| (generation, need(generation)));
        LogNeed { generations: generations.collect() }
    }
}
