//! How segments follow each other, and what was known before.

use super::{Mark, SegmentEntry};
use crate::error::{Error, Result};
use crate::layout::SegmentName;
use crate::seal::Header;

/// Index of the segment to read from where everything up to record `seq` is known: the last that surely counts
/// and holds a record before that; the first where there is none. `names` are in the order of
/// [`segments`](super::segments).
///
/// From names alone, it cannot be seen whether a segment counts: its writer may have died before its first
/// record, or its single record may be void (docs/format.md, R9 to R12). Reading must not begin with one
/// of those, for what follows is bound to what was before it. One surely counts where the next begins at least
/// two records later, or, if it is the newest, where `seq` is behind its first record. (Whatever does not
/// count is followed, or preceded, by a record of the number that it begins with.)
pub fn first_needed(seq: u64, names: &[SegmentName]) -> usize {
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

/// Where a snapshot stands in the log that goes on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct After {
    /// The newest record that is in it.
    pub seq: u64,
    /// The first bytes of the chain hash after that record …
    chain: [u8; 32],
    /// … and how many of them are known.
    known: usize,
}

impl After {
    /// Where the first bytes of the chain hash after record `seq` are known.
    pub fn new(seq: u64, chain: &[u8]) -> Self {
        let known = chain.len().min(32);
        let mut bytes = [0; 32];
        bytes[..known].copy_from_slice(&chain[..known]);
        Self { seq, chain: bytes, known }
    }

    /// The first segment that is needed to go on from here.
    pub fn first_segment(&self, segments: &[SegmentEntry]) -> usize {
        let names: Vec<SegmentName> = segments.iter().map(|entry| entry.name).collect();
        first_needed(self.seq, &names)
    }

    /// Checks the place before the first segment that is read.
    fn begins(self, name: SegmentName, bound: Mark) -> Result<()> {
        if bound.seq > self.seq {
            let what =
                format!("records seq {} to {} are missing before it", self.seq + 1, bound.seq);
            return Err(Error::damaged(format!("'{name}'"), what));
        }
        self.passes(name, bound)
    }

    /// Checks a record that is not void.
    pub(super) fn passes(self, name: SegmentName, at: Mark) -> Result<()> {
        if at.seq == self.seq && at.chain.0[..self.known] != self.chain[..self.known] {
            let what =
                format!("record seq {} is not the one that the snapshot was made at", at.seq);
            return Err(Error::damaged(format!("'{name}'"), what));
        }
        Ok(())
    }
}

impl From<Mark> for After {
    fn from(at: Mark) -> Self {
        Self::new(at.seq, &at.chain.0)
    }
}

/// Proves that segments follow each other, and finds the one record that a writer which died or was
/// fenced may have left behind what the next writer bound to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Continuity {
    /// Seq and chain hash after the newest record, and after the one before it.
    pub last: Option<Mark>,
    before: Option<Mark>,
    /// What was known before anything was read: the log must lead on from there, or through it.
    pub after: Option<After>,
}

/// How a segment follows what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// Directly.
    Directly,
    /// The newest record was never acknowledged and is void.
    VoidingLast,
}

impl Continuity {
    pub fn record(&mut self, at: Mark) {
        self.before = self.last.replace(at);
    }

    /// The newest record, and the one before it.
    pub fn bindable(&self) -> impl Iterator<Item = Mark> {
        self.last.into_iter().chain(self.before)
    }

    /// Checks the header of a segment whose first record has been opened.
    pub fn segment(&mut self, name: SegmentName, header: &Header) -> Result<Follows> {
        let bound = Mark { seq: header.seq.saturating_sub(1), chain: header.prev };
        let Some(Mark { seq, .. }) = self.last else {
            self.last = Some(bound);
            return match self.after {
                Some(after) => after.begins(name, bound).map(|()| Follows::Directly),
                None => Ok(Follows::Directly),
            };
        };
        if self.last == Some(bound) {
            return Ok(Follows::Directly);
        }
        if self.before == Some(bound) {
            self.last = self.before.take();
            return Ok(Follows::VoidingLast);
        }
        let what = if bound.seq > seq {
            format!("records seq {} to {} are missing before it", seq + 1, bound.seq)
        } else {
            format!("it does not continue the log, which goes on to seq {seq}")
        };
        Err(Error::damaged(format!("'{name}'"), what))
    }
}
