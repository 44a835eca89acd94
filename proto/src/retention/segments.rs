//! Which segments of a log nothing needs any more.

use std::collections::BTreeMap;

use crate::layout::SegmentName;
use crate::log::{self, SegmentEntry};

/// What a policy needs of a generation's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationNeed {
    /// The records behind `seq`, and with them every moment from there on. 0: all that there is.
    From(u64),
    /// Nothing: its points are restored exactly where they are. The last segment stays to show that the
    /// generation existed.
    Points,
    /// Nothing, and it has no point either: it may go whole.
    Gone,
}

/// What a policy needs of the log, by generation. One that is not named is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogNeed {
    /// For each generation that had a segment when the points were judged.
    pub generations: BTreeMap<u32, GenerationNeed>,
}

/// The segments that nothing needs, oldest of each generation first: in this order they must go, after the
/// points that are dropped, so that whatever interrupts leaves a log without a hole.
///
/// `segments` are those of one or of many generations. For a generation that stays, they must be all that
/// it has.
///
/// The first that stays is [`log::first_needed`].
pub fn removable_segments(need: &LogNeed, segments: &[SegmentEntry]) -> Vec<SegmentName> {
    let mut by_generation: BTreeMap<u32, Vec<SegmentName>> = BTreeMap::new();
    for SegmentEntry { name, .. } in segments {
        by_generation.entry(name.generation).or_default().push(*name);
    }
    let mut removable = Vec::new();
    for (generation, mut names) in by_generation {
        names.sort_unstable();
        let first_that_stays = match need.generations.get(&generation) {
            None => 0,
            Some(GenerationNeed::Gone) => names.len(),
            Some(GenerationNeed::Points) => names.len() - 1,
            Some(GenerationNeed::From(seq)) => log::first_needed(*seq, &names),
        };
        names.truncate(first_that_stays);
        removable.append(&mut names);
    }
    removable
}

/// Where the log of each generation begins, as epoch and index, once the segments that are `removed` are gone: with
/// the first of `segments` that stays; where none does, behind all of them.
///
/// Not right behind what goes: another place, which is told the same, may have a segment there that does not count,
/// and with such a one reading must not begin.
pub fn beginnings(removed: &[SegmentName], segments: &[SegmentEntry]) -> BTreeMap<u32, (u32, u32)> {
    // Of each generation the last counts.
    let last: BTreeMap<u32, &SegmentName> =
        removed.iter().map(|name| (name.generation, name)).collect();
    let begins = last.into_iter().map(|(generation, last)| {
        let own = segments.iter().filter(|entry| entry.name.generation == generation);
        let behind = own.map(|entry| entry.name.age()).filter(|age| *age > last.age());
        (generation, behind.min().unwrap_or((last.epoch, last.index.saturating_add(1))))
    });
    begins.collect()
}
