//! Which segments of a log nothing needs any more.

use std::collections::BTreeMap;

use crate::layout::SegmentName;
use crate::log::SegmentEntry;

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
/// From names alone, it cannot be seen whether a segment counts: its writer may have died before its first
/// record, or its single record may be void (docs/format.md, R9 to R12). The log must not begin with one
/// of those, for what follows is bound to what was before it. So the first that stays is one that surely
/// counts: the next begins at least two records later, or, if it is the newest, the needed position
/// is behind its first record. (Whatever does not count is followed, or preceded, by a record of the number
/// that it begins with.)
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
            Some(GenerationNeed::From(seq)) => first_needed(*seq, &names),
        };
        names.truncate(first_that_stays);
        removable.append(&mut names);
    }
    removable
}

/// Index of the last segment that surely counts and holds a record before `seq`; the first where there is none.
fn first_needed(seq: u64, names: &[SegmentName]) -> usize {
    // Up to the first that begins too late; a later one may have a lower number, but is not to be relied on.
    let begun = names.iter().take_while(|name| name.first_seq < seq).count();
    (0..begun)
        .rev()
        .find(|&index| {
            let second = names[index].first_seq.saturating_add(1);
            names.get(index + 1).is_none_or(|next| next.first_seq > second)
        })
        .unwrap_or(0)
}
