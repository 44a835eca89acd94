//! Parts: the records of a segment that is being written where nothing can be appended to, one object each. No I/O.
//!
//! Where creates are exclusive a part is named by the number of its record alone, so that of two writers
//! which make the same record one fails. The part then says itself which segment it belongs to: it begins with the
//! segment's header. Where they are not, each writer's parts have names of their own.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{self, SegmentName};
use crate::seal::HEADER_LEN;
use crate::store::{Entry, StoreError};

/// One record's object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Epoch and index of the segment, where the name tells them.
    pub owner: Option<(u32, u32)>,
    /// The record.
    pub seq: u64,
    /// Bytes of the object; 0 where it only keeps an older writer from taking the number.
    pub size: u64,
}

impl Part {
    /// Reads a file name in the folder of the parts.
    pub fn parse(file: &str, size: u64) -> Option<Self> {
        let (seq, owner) = layout::parse_part(file)?;
        Some(Self { owner, seq, size })
    }

    /// Its object name.
    pub fn name(&self) -> String {
        layout::part(self.seq, self.owner)
    }
}

/// A segment in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// The name that it has once it is put together.
    pub name: SegmentName,
    /// Its records, in order.
    pub parts: Vec<Part>,
}

impl Partial {
    /// Bytes of the segment.
    pub fn size(&self) -> u64 {
        let all: u64 = self.parts.iter().map(|part| part.size).sum();
        all.saturating_sub(HEADER_LEN as u64 * (self.parts.len() as u64).saturating_sub(1))
    }

    /// Checks that no part is missing in the middle.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn check_gapless(&self) -> Result<(), String> {
        for (part, seq) in self.parts.iter().zip(self.name.first_seq..) {
            if part.seq != seq {
                return Err(format!("part seq {seq} is missing, '{}' is there", part.name()));
            }
        }
        Ok(())
    }

    /// Adds segments in parts to the listing of a folder, as if they were whole.
    pub fn show(partials: &[Self], folder: &str, mut listing: Vec<Entry>) -> Vec<Entry> {
        let log = folder == layout::LOG;
        for partial in partials {
            let name = partial.name.to_string();
            let Some((of, file)) = name.rsplit_once('/') else { continue };
            if of == folder {
                listing.push(Entry { name: file.into(), size: partial.size(), folder: false });
            } else if let Some((_, generation)) = of.rsplit_once('/').filter(|_| log) {
                listing.push(Entry { name: generation.into(), size: 0, folder: true });
            }
        }
        listing.sort_by(|a, b| a.name.cmp(&b.name));
        listing.dedup_by(|a, b| a.name == b.name);
        listing
    }
}

/// All segments in parts, in the order in which they were written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// The segments.
    pub segments: Vec<Partial>,
}

/// What keeps parts from being read.
#[derive(Debug)]
pub enum Fault {
    /// The store failed.
    Store(StoreError),
    /// Parts of a segment are missing or misplaced.
    Damaged(SegmentName, String),
}

impl Tail {
    /// Those that were not put together yet; of the others only parts are left that were not removed yet.
    pub fn unmerged(self, merged: &BTreeSet<SegmentName>) -> Vec<Partial> {
        self.segments.into_iter().filter(|partial| !merged.contains(&partial.name)).collect()
    }

    /// Groups parts by segment. `segment_of` reads the header of one; it is asked once a segment.
    ///
    /// A segment that lacks a part in the middle is given as it is: whether it matters is for its reader to
    /// say, for one that was put together already may be half removed.
    ///
    /// # Errors
    /// What `segment_of` returns; [`Fault::Damaged`] where a part lies before its segment's first.
    pub fn group(
        mut parts: Vec<Part>,
        mut segment_of: impl FnMut(&Part) -> Result<SegmentName, StoreError>,
    ) -> Result<Self, Fault> {
        parts.retain(|part| part.size > 0);
        parts.sort_unstable();
        let named = parts.partition_point(|part| part.owner.is_none());
        let mut owned: BTreeMap<(u32, u32), Vec<Part>> = BTreeMap::new();
        for part in parts.split_off(named) {
            owned.entry(part.owner.unwrap_or_default()).or_default().push(part);
        }
        let mut segments = Vec::new();
        // From the newest back: a part tells where its segment begins, none where it ends.
        while let Some(last) = parts.last() {
            let name = segment_of(last).map_err(Fault::Store)?;
            if name.first_seq > last.seq {
                let what = format!("'{}' lies before its first record", last.name());
                return Err(Fault::Damaged(name, what));
            }
            let first = parts.partition_point(|part| part.seq < name.first_seq);
            segments.push(Partial { name, parts: parts.split_off(first) });
        }
        for (_, parts) in owned {
            let Some(first) = parts.first() else { continue };
            let name = segment_of(first).map_err(Fault::Store)?;
            segments.push(Partial { name, parts });
        }
        segments.sort_by_key(|partial| {
            let name = partial.name;
            (name.epoch, name.index, name.generation)
        });
        Ok(Self { segments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(first_seq: u64) -> SegmentName {
        SegmentName { generation: 1, epoch: first_seq as u32, index: 0, first_seq }
    }

    fn part(seq: u64) -> Part {
        Part { owner: None, seq, size: 200 }
    }

    #[test]
    fn parts_are_grouped_by_the_header_of_the_last() {
        let parts = vec![part(7), part(3), part(4), part(5), part(6), part(8)];
        let mut asked = Vec::new();
        let tail = Tail::group(parts, |part| {
            asked.push(part.seq);
            Ok(name(if part.seq >= 7 { 7 } else { 3 }))
        })
        .unwrap();
        assert_eq!(asked, [8, 6]);
        let found: Vec<_> =
            tail.segments.iter().map(|p| (p.name.first_seq, p.parts.len(), p.size())).collect();
        assert_eq!(found, [(3, 4, 800 - 3 * 128), (7, 2, 400 - 128)]);
    }

    #[test]
    fn what_only_keeps_a_number_is_no_part() {
        let kept = Part { size: 0, ..part(3) };
        let tail = Tail::group(vec![kept, part(9)], |_| Ok(name(9))).unwrap();
        assert_eq!(tail.segments.len(), 1);
        assert_eq!(tail.segments[0].parts, [part(9)]);
    }

    #[test]
    fn parts_of_two_writers_are_told_by_name_where_creates_are_not_exclusive() {
        let owned = |epoch, seq| Part { owner: Some((epoch, 0)), seq, size: 200 };
        let parts = vec![owned(2, 5), owned(1, 4), owned(1, 5), owned(2, 6)];
        let tail = Tail::group(parts, |part| {
            let epoch = part.owner.unwrap().0;
            Ok(SegmentName { generation: 1, epoch, index: 0, first_seq: part.seq })
        })
        .unwrap();
        let found: Vec<_> =
            tail.segments.iter().map(|p| (p.name.epoch, p.name.first_seq, p.parts.len())).collect();
        assert_eq!(found, [(1, 4, 2), (2, 5, 2)]);
    }

    #[test]
    fn names_parse_back() {
        for part in [part(0x1234), Part { owner: Some((7, 0)), seq: 9, size: 200 }] {
            let name = part.name();
            let file = name.strip_prefix("tail/").unwrap();
            assert_eq!(Part::parse(file, 200), Some(part));
        }
        for other in ["", "0.part", "000000000000000g.part", "0000000000000001-1-1.part"] {
            assert_eq!(Part::parse(other, 1), None, "{other}");
        }
    }
}
