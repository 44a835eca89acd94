//! What a restore will read.

use super::batches::CommittedBatch;
use crate::error::{Error, Result};
use crate::log::{self, After, LoadedSegment, LogEnd, Mark, SegmentEntry};
use crate::record::{Record, Start, TimeMs};
use crate::seal::KeyRing;
use crate::snapshot::{self, Depth, Lineage, Summary};
use crate::store::Store;
use crate::version::DataVersion;

/// Which state is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The newest.
    Newest,
    /// After the batch of this seq.
    Seq(u64),
    /// At this version of lightningd's: the newest history that came by it.
    Version(DataVersion),
    /// At this time: after the newest batch that was appended before or then.
    Time(TimeMs),
}

impl Target {
    /// True where `batch` comes after the state that is wanted.
    pub(super) fn excludes(&self, batch: &CommittedBatch) -> bool {
        match *self {
            Self::Newest => false,
            Self::Seq(seq) => batch.at.seq > seq,
            Self::Version(version) => batch.data_version.ahead_of(version) > 0,
            Self::Time(time) => batch.time > time,
        }
    }

    /// True where exactly this record is wanted, and nothing behind it.
    pub(super) fn is_at(&self, last: Option<Mark>) -> bool {
        matches!((self, last), (Self::Seq(wanted), Some(last)) if last.seq == *wanted)
    }

    /// Refuses a state that the log never came by.
    /// `stopped` is true where a batch behind it was found.
    pub(super) fn expect_reached(
        &self,
        stopped: bool,
        seq: u64,
        version: Option<DataVersion>,
    ) -> Result<()> {
        let reached = match *self {
            Self::Newest | Self::Time(_) => true,
            Self::Seq(wanted) => stopped || wanted <= seq,
            Self::Version(wanted) => version == Some(wanted),
        };
        if reached {
            return Ok(());
        }
        let version = version.unwrap_or_default();
        Err(Error::Refused {
            what: format!(
                "the backup never came by {self}; it is at seq {seq}, data_version {version}"
            ),
            hint: "'backup-cli status' shows the newest.".into(),
        })
    }

    /// True where a snapshot is of the very state that is wanted.
    fn is_exactly(&self, point: &Summary) -> bool {
        match *self {
            Self::Newest => false,
            Self::Seq(wanted) => point.position.seq == wanted,
            Self::Version(wanted) => point.meta.data_version == Some(wanted),
            Self::Time(wanted) => point.meta.time == wanted,
        }
    }

    /// True where what is described is not behind the state that is wanted.
    fn admits(&self, seq: u64, time: TimeMs, data_version: Option<DataVersion>) -> bool {
        match *self {
            Self::Newest => true,
            Self::Seq(wanted) => seq <= wanted,
            Self::Version(wanted) => data_version.unwrap_or_default().ahead_of(wanted) <= 0,
            Self::Time(wanted) => time <= wanted,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Newest => f.write_str("the newest state"),
            Self::Seq(seq) => write!(f, "seq {seq}"),
            Self::Version(version) => write!(f, "data_version {version}"),
            Self::Time(time) => write!(f, "{time} ms since 1970"),
        }
    }
}

/// What a restore will read.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The history.
    pub generation: u32,
    /// How it began; `None` where what compaction replaced has been removed.
    pub beginning: Option<Beginning>,
    /// The snapshots.
    pub lineage: Lineage,
    /// The segments of the log that go on from there.
    pub segments: Vec<SegmentEntry>,
    /// Where to stop.
    pub target: Target,
    /// Where the log ended when this was looked up, whatever the target.
    pub end: LogEnd,
}

impl Plan {
    /// Looks up what is needed for the newest position.
    ///
    /// # Errors
    /// As [`to`](Self::to).
    pub fn newest(store: &dyn Store, keys: &KeyRing) -> Result<Self> {
        Self::to(store, keys, Target::Newest)
    }

    /// Looks up what is needed for `target`: in the newest history that came by it.
    ///
    /// # Errors
    /// [`Error::Nothing`] where there is no log; [`Error::Refused`] where the target lies before all that is
    /// kept; [`Error::Damaged`] where what the log goes on from is not there, for then what came after it
    /// cannot be restored.
    pub fn to(store: &dyn Store, keys: &KeyRing, target: Target) -> Result<Self> {
        LookUp { store, keys, target, depth: Depth::Summary }.plan()
    }

    /// Looks up the same another time where a restore found damage, and reads every snapshot before it
    /// counts on it: an older one, with more of the log, may do. `None` where nothing else would be read.
    ///
    /// # Errors
    /// As [`to`](Self::to).
    pub fn around_damage(&self, store: &dyn Store, keys: &KeyRing) -> Result<Option<Self>> {
        let other = LookUp { store, keys, target: self.target, depth: Depth::Whole }.plan()?;
        Ok((other.lineage.links != self.lineage.links).then_some(other))
    }

    /// The point that is wanted, where it is exactly that of a snapshot, and the log behind it is not kept any more.
    pub(super) fn point_alone(&self) -> Option<Mark> {
        self.after().filter(|_| self.segments.is_empty())
    }

    /// True where the log is read from a segment that holds record `seq`, at which a snapshot was made.
    pub(super) fn reads_past(&self, seq: u64) -> bool {
        let compacted =
            self.lineage.links.last().is_some_and(|link| link.summary.name.is_compacted());
        compacted && self.segments.first().is_some_and(|first| first.name.first_seq <= seq)
    }

    /// Checks the batch that the newest snapshot was made at.
    pub(super) fn expect_version(&self, batch: &CommittedBatch) -> Result<()> {
        let Some(newest) = self.lineage.links.last().map(|link| &link.summary) else {
            return Ok(());
        };
        if !batch.transaction || newest.meta.data_version == Some(batch.data_version) {
            return Ok(());
        }
        let what = format!(
            "is of another data_version than the batch that it was made at, {}",
            batch.data_version
        );
        Err(Error::damaged(format!("'{}'", newest.name), what))
    }

    /// What is said where record `seq` is no batch.
    pub(super) fn not_a_batch(&self, seq: u64) -> Error {
        let name = self.lineage.links.last().map(|link| link.summary.name.to_string());
        let place = format!("'{}'", name.unwrap_or_default());
        Error::damaged(place, format!("was made at record seq {seq}, which is no committed batch"))
    }

    /// The newest record that the snapshots stand for.
    pub fn after(&self) -> Option<Mark> {
        let newest = self.lineage.links.last().map(|link| &link.summary);
        match newest.filter(|newest| newest.name.is_compacted()) {
            Some(newest) => Some(newest.position),
            None => self.beginning.as_ref().map(|beginning| beginning.after),
        }
    }

    /// Bytes of the segments, preallocated ones included.
    pub fn log_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }
}

/// Finds what a restore will read.
struct LookUp<'a> {
    store: &'a dyn Store,
    keys: &'a KeyRing,
    target: Target,
    depth: Depth,
}

/// A generation, before any snapshot of it is looked at.
struct History {
    generation: u32,
    segments: Vec<SegmentEntry>,
    beginning: Option<Beginning>,
    /// What is wrong with its beginning. Where compaction has made a snapshot that is not needed.
    damage: Option<Error>,
}

impl LookUp<'_> {
    fn plan(&self) -> Result<Plan> {
        // Once: the parts of a bucket may be a million.
        let all = log::all_segments(self.store)?;
        let end = match self.target {
            Target::Newest => LogEnd::read_listed(self.store, self.keys, &all)?,
            // An older state may be intact where the newest is not.
            _ => LogEnd::read_intact(self.store, self.keys, &all)?.0,
        };
        let newest = end.position.generation;
        if self.target == Target::Newest {
            return self.within(self.history(newest, &all)?, end);
        }
        // Newest history first: that is the order of the epochs that wrote, not of the numbers.
        let mut generations: Vec<u32> = Vec::new();
        for entry in all.iter().rev() {
            if !generations.contains(&entry.name.generation) {
                generations.push(entry.name.generation);
            }
        }
        let from = generations.iter().position(|&generation| generation == newest).unwrap_or(0);
        for generation in generations.split_off(from) {
            let history = self.history(generation, &all)?;
            if self.is_held_by(&history)? {
                return self.within(history, end);
            }
            // What it began with may be what is wanted; an older history is never taken instead.
            if let Some(damage) = history.damage {
                return Err(damage);
            }
        }
        Err(Error::Refused {
            what: format!(
                "{} lies before everything that '{}' keeps",
                self.target,
                self.store.label()
            ),
            hint: "'backup-cli list' shows what there is.".into(),
        })
    }

    fn history(&self, generation: u32, all: &[SegmentEntry]) -> Result<History> {
        let its = all.iter().filter(|entry| entry.name.generation == generation);
        let mut segments: Vec<_> = its.copied().collect();
        segments.sort_by_key(|segment| segment.name);
        let (beginning, damage) = match beginning_of(self.store, self.keys, &segments) {
            Err(error @ Error::Store(_)) => return Err(error),
            Err(error) => (None, Some(error)),
            Ok(beginning) => (beginning, None),
        };
        Ok(History { generation, segments, beginning, damage })
    }

    /// True where the oldest state of a generation that is kept is not behind the target.
    fn is_held_by(&self, history: &History) -> Result<bool> {
        let beginning = history.beginning.as_ref();
        let base = beginning.map(|beginning| beginning.start.base.as_ref());
        if base == Some(None) {
            // It began with an empty database.
            return Ok(true);
        }
        let base = base.flatten().map(|base| base.name.as_str());
        if let (Some(Beginning { after, .. }), Target::Seq(wanted)) = (beginning, self.target)
            && wanted <= after.seq
        {
            // Its base is newer than that record, which is in the history before.
            return Ok(false);
        }
        for (name, size) in snapshot::published(self.store, history.generation)? {
            if (name.is_compacted() || base == Some(&name.to_string()))
                && self.suits(&snapshot::summary(self.store, self.keys, name, size)?)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True where a snapshot is not behind the target.
    fn suits(&self, found: &Summary) -> bool {
        self.target.admits(found.position.seq, found.meta.time, found.meta.data_version)
    }

    fn within(&self, history: History, end: LogEnd) -> Result<Plan> {
        let History { generation, segments, beginning, damage } = history;
        let start = beginning.as_ref().map(|beginning| &beginning.start);
        let mut suits = |found: &Summary| self.suits(found);
        let lineage =
            snapshot::newest(self.store, self.keys, generation, start, &mut suits, self.depth);
        let lineage = lineage.map_err(|error| damage.unwrap_or(error))?;
        let target = self.target;
        let mut plan = Plan { generation, beginning, lineage, segments, target, end };
        let Some(after) = plan.after() else { return Ok(plan) };
        let first = After::from(after).first_segment(&plan.segments);
        plan.segments.drain(..first);
        let gone = plan.segments.first().filter(|first| first.name.first_seq > after.seq + 1);
        if let Some(first) = gone.filter(|_| target != Target::Newest) {
            let at = plan.lineage.links.last().map(|link| &link.summary);
            if !at.is_some_and(|point| target.is_exactly(point)) {
                return Err(Error::Refused {
                    what: format!(
                        "{target} lies between seq {} and {}, of which '{}' keeps no log",
                        after.seq,
                        first.name.first_seq,
                        self.store.label()
                    ),
                    hint: "'backup-cli list' shows what there is.".into(),
                });
            }
            plan.segments.clear();
        }
        Ok(plan)
    }
}

/// How a generation began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// What its first segment is bound to: where the generation before ended.
    pub after: Mark,
    /// From what database.
    pub start: Start,
}

/// How a generation began; `None` where its first segment is not there: compaction replaced it, or no record
/// of it was ever durable.
///
/// # Errors
/// Where a segment cannot be read.
pub(crate) fn beginning_of(
    store: &dyn Store,
    keys: &KeyRing,
    segments: &[SegmentEntry],
) -> Result<Option<Beginning>> {
    let mut found: Option<Beginning> = None;
    for entry in segments {
        if found.as_ref().is_some_and(|found| found.after.seq + 1 != entry.name.first_seq) {
            break;
        }
        let Some(segment) = LoadedSegment::load(store, keys, entry.name)? else { continue };
        let mut plain = Vec::new();
        let Some(seq) = segment.records(keys)?.next(&mut plain)? else { continue };
        let place = format!("record seq {seq} in '{}'", entry.name);
        let Record::Open(open) = log::decode_record(entry.name, seq, &plain)? else {
            return Err(Error::damaged(place, "a segment begins with an open record"));
        };
        // A second one of the same seq voids the first: its writer failed, and began again.
        match open.start {
            Some(start) => {
                let after = Mark { seq: seq.saturating_sub(1), chain: segment.header.prev };
                found = Some(Beginning { after, start });
            }
            None => break,
        }
    }
    Ok(found)
}
