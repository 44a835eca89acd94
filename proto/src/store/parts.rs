//! Parts: the records of a segment that is being written where nothing can be appended to, one object each. No I/O.
//!
//! Where creates are exclusive a part is named by the number of its record alone, so that of two writers
//! which make the same record one fails. The part then says itself which segment it belongs to: it begins with the
//! segment's header. Where they are not, each writer's parts have names of their own.

#![cfg_attr(not(feature = "buckets"), allow(dead_code))]

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{self, SegmentName};
use crate::seal::HEADER_LEN;
use crate::store::{Entry, StoreError};

/// Epoch and index of a part's segment, where its name tells them.
pub type Owner = Option<(u32, u32)>;

/// One record's object. Small: there may be a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The record.
    pub seq: u64,
    /// Bytes of the object; 0 where it only keeps an older writer from taking the number.
    pub size: u64,
}

/// The parts that a listing shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    shared: Vec<Part>,
    owned: BTreeMap<(u32, u32), Vec<Part>>,
}

impl Parts {
    /// Adds an object of the folder of the parts, if it is one of record `from` or a later one. True where it is.
    pub fn add(&mut self, file: &str, size: u64, from: u64) -> bool {
        let Some((seq, owner)) = layout::parse_part(file).filter(|(seq, _)| *seq >= from) else {
            return false;
        };
        self.push(owner, Part { seq, size });
        true
    }

    /// Adds a part.
    pub fn push(&mut self, owner: Owner, part: Part) {
        match owner {
            None => self.shared.push(part),
            Some(owner) => self.owned.entry(owner).or_default().push(part),
        }
    }

    /// The newest record of those without an owner, and of the newest owner's.
    pub fn newest(&self) -> Vec<(Owner, u64)> {
        let shared = self.shared.last().map(|part| (None, part.seq));
        let owned = self.owned.last_key_value();
        let owned = owned.and_then(|(owner, parts)| Some((Some(*owner), parts.last()?.seq)));
        shared.into_iter().chain(owned).collect()
    }

    /// Those whose numbers alone are their names.
    pub fn shared(&self) -> &[Part] {
        &self.shared
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.owned.is_empty()
    }

    /// The highest record.
    pub fn last_seq(&self) -> Option<u64> {
        let all = std::iter::once(&self.shared).chain(self.owned.values());
        all.filter_map(|parts| parts.last()).map(|part| part.seq).max()
    }

    /// Puts them in order, each once: not every place lists in order, and what breaks off is listed again.
    pub fn sort(&mut self) {
        for parts in std::iter::once(&mut self.shared).chain(self.owned.values_mut()) {
            parts.sort_unstable();
            parts.dedup_by_key(|part| part.seq);
        }
    }
}

/// A segment in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// The name that it has once it is put together.
    pub name: SegmentName,
    /// True where the names of its parts tell whose they are.
    pub owned: bool,
    /// Its records, in order.
    pub parts: Vec<Part>,
}

impl Partial {
    /// The object that holds one of its records.
    pub fn object(&self, part: &Part) -> String {
        layout::part(part.seq, self.owned.then_some(self.name.age()))
    }

    /// The objects that hold its records, in order.
    pub fn objects(&self) -> Vec<String> {
        self.parts.iter().map(|part| self.object(part)).collect()
    }

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
                return Err(format!("part seq {seq} is missing, '{}' is there", self.object(part)));
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

    /// Groups sorted parts by segment. `segment_of` reads the header of one; it is asked once a segment.
    ///
    /// A segment that lacks a part in the middle is given as it is: whether it matters is for its reader to
    /// say, for one that was put together already may be half removed.
    ///
    /// # Errors
    /// What `segment_of` returns; [`Fault::Damaged`] where a part lies before its segment's first.
    pub fn group(
        parts: Parts,
        mut segment_of: impl FnMut(u64, Owner) -> Result<SegmentName, StoreError>,
    ) -> Result<Self, Fault> {
        let Parts { mut shared, owned } = parts;
        shared.retain(|part| part.size > 0);
        let mut segments = Vec::new();
        // From the newest back: a part tells where its segment begins, none where it ends.
        while let Some(last) = shared.last() {
            let name = segment_of(last.seq, None).map_err(Fault::Store)?;
            if name.first_seq > last.seq {
                let object = layout::part(last.seq, None);
                let what = format!("'{object}' lies before its first record");
                return Err(Fault::Damaged(name, what));
            }
            let first = shared.partition_point(|part| part.seq < name.first_seq);
            segments.push(Partial { name, owned: false, parts: shared.split_off(first) });
            // No part is in memory twice.
            shared.shrink_to_fit();
        }
        for (owner, mut parts) in owned {
            parts.retain(|part| part.size > 0);
            let Some(first) = parts.first() else { continue };
            let name = segment_of(first.seq, Some(owner)).map_err(Fault::Store)?;
            segments.push(Partial { name, owned: true, parts });
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

    /// As a listing shows them.
    fn parts(listed: &[(Owner, u64, u64)]) -> Parts {
        let mut parts = Parts::default();
        for &(owner, seq, size) in listed {
            let object = layout::part(seq, owner);
            assert!(parts.add(object.strip_prefix("tail/").unwrap(), size, 0));
        }
        parts.sort();
        parts
    }

    #[test]
    fn parts_are_grouped_by_the_header_of_the_last() {
        let listed = [7, 3, 4, 5, 6, 8].map(|seq| (None, seq, 200));
        let mut asked = Vec::new();
        let tail = Tail::group(parts(&listed), |seq, _| {
            asked.push(seq);
            Ok(name(if seq >= 7 { 7 } else { 3 }))
        })
        .unwrap();
        assert_eq!(asked, [8, 6]);
        let found: Vec<_> =
            tail.segments.iter().map(|p| (p.name.first_seq, p.parts.len(), p.size())).collect();
        assert_eq!(found, [(3, 4, 800 - 3 * 128), (7, 2, 400 - 128)]);
    }

    #[test]
    fn what_only_keeps_a_number_is_no_part() {
        let listed = parts(&[(None, 3, 0), (None, 9, 200)]);
        let tail = Tail::group(listed, |_, _| Ok(name(9))).unwrap();
        assert_eq!(tail.segments.len(), 1);
        assert_eq!(tail.segments[0].parts, [Part { seq: 9, size: 200 }]);
        // As a write that was interrupted leaves on some WebDAV servers.
        let listed = parts(&[(Some((1, 0)), 3, 200), (Some((1, 0)), 4, 0), (Some((2, 0)), 4, 0)]);
        let tail = Tail::group(listed, |seq, owner| {
            assert_eq!((seq, owner), (3, Some((1, 0))));
            Ok(name(3))
        });
        assert_eq!(tail.unwrap().segments[0].parts, [Part { seq: 3, size: 200 }]);
    }

    #[test]
    fn parts_of_two_writers_are_told_by_name_where_creates_are_not_exclusive() {
        let listed = [(2, 5), (1, 4), (1, 5), (2, 6)];
        let listed = parts(&listed.map(|(epoch, seq)| (Some((epoch, 0)), seq, 200)));
        assert_eq!(listed.last_seq(), Some(6));
        let tail = Tail::group(listed, |seq, owner| {
            let (epoch, index) = owner.unwrap();
            Ok(SegmentName { generation: 1, epoch, index, first_seq: seq })
        })
        .unwrap();
        let found: Vec<_> =
            tail.segments.iter().map(|p| (p.name.epoch, p.name.first_seq, p.parts.len())).collect();
        assert_eq!(found, [(1, 4, 2), (2, 5, 2)]);
        assert_eq!(tail.segments[0].objects()[0], "tail/0000000000000004-00000001-00000000.part");
    }

    #[test]
    fn a_part_that_is_missing_is_named() {
        let partial = |seqs: &[u64]| {
            let parts = seqs.iter().map(|&seq| Part { seq, size: 200 }).collect();
            Partial { name: name(3), owned: false, parts }
        };
        assert_eq!(partial(&[3, 4, 5]).check_gapless(), Ok(()));
        assert!(partial(&[3, 5]).check_gapless().unwrap_err().contains("seq 4 is missing"));
        assert!(partial(&[4, 5]).check_gapless().unwrap_err().contains("seq 3 is missing"));
    }

    #[test]
    fn parts_of_either_kind_are_parts() {
        assert!(!parts(&[(None, 3, 200)]).is_empty());
        assert!(!parts(&[(Some((1, 0)), 3, 200)]).is_empty());
    }

    #[test]
    fn other_objects_are_no_parts() {
        let mut parts = Parts::default();
        for other in ["", "0.part", "000000000000000g.part", "0000000000000001-1-1.part"] {
            assert!(!parts.add(other, 1, 0), "{other}");
        }
        assert!(!parts.add("0000000000000006.part", 1, 7));
        assert!(parts.is_empty());
    }
}
