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
