//! What a restore will read.

use crate::error::{Error, Result};
use crate::log::{self, LoadedSegment, SegmentEntry};
use crate::record::{Record, Start};
use crate::seal::KeyRing;
use crate::snapshot::{self, Lineage};
use crate::store::Store;
use crate::writer::LogEnd;

/// What a restore will read.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The newest history that holds a record.
    pub generation: u32,
    /// How it began; `None` where what compaction replaced has been removed.
    pub start: Option<Start>,
    /// The snapshots.
    pub lineage: Lineage,
    /// The segments of the log that go on from there.
    pub segments: Vec<SegmentEntry>,
}

impl Plan {
    /// Looks up what is needed for the newest position.
    ///
    /// # Errors
    /// [`Error::Nothing`] where there is no log; [`Error::Damaged`] where what the log goes on from is not
    /// there, for then what came after it cannot be restored.
    pub fn newest(store: &dyn Store, keys: &KeyRing) -> Result<Self> {
        let generation = LogEnd::read(store, keys)?.position.generation;
        let mut segments = log::segments(store, generation)?;
        let start = start_of(store, keys, &segments)?;
        let lineage = snapshot::newest(store, keys, generation, start.as_ref(), &mut |_| true)?;
        if let Some(after) = lineage.after() {
            segments.drain(..after.first_segment(&segments));
        }
        Ok(Self { generation, start, lineage, segments })
    }

    /// Bytes of the segments, preallocated ones included.
    pub fn log_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }
}

/// How a generation began; `None` where its first segment is not there: compaction replaced it, or no record
/// of it was ever durable.
///
/// # Errors
/// Where a segment cannot be read.
pub(crate) fn start_of(
    store: &dyn Store,
    keys: &KeyRing,
    segments: &[SegmentEntry],
) -> Result<Option<Start>> {
    let mut found: Option<(u64, Start)> = None;
    for entry in segments {
        if found.as_ref().is_some_and(|(seq, _)| *seq != entry.name.first_seq) {
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
            Some(start) => found = Some((seq, start)),
            None => break,
        }
    }
    Ok(found.map(|(_, start)| start))
}
