//! What a restore to the newest position would have to read, in numbers: the newest snapshot, and the log behind it.

use crate::error::Result;
use crate::log::SegmentEntry;
use crate::record::TimeMs;
use crate::restore::Plan;
use crate::seal::KeyRing;
use crate::store::Store;
use crate::version::DataVersion;

/// The newest snapshot and what is behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    /// The newest snapshot; `None` where the whole log is the tail.
    pub snapshot: Option<NewestSnapshot>,
    /// Seq of the newest record.
    pub head_seq: u64,
    /// Records behind the snapshot: batches, and the few that begin and end segments.
    pub records: u64,
    /// About their bytes, as they are stored. Of the segment that a snapshot falls into, the share of its records
    /// that is behind it.
    pub bytes: u64,
}

/// The newest snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestSnapshot {
    /// The newest record in it.
    pub seq: u64,
    /// When the newest batch in it was appended.
    pub time: TimeMs,
    /// lightningd's version of it.
    pub data_version: Option<DataVersion>,
    /// Objects that a restore reads for it, one on another.
    pub objects: usize,
    /// Bytes of the database.
    pub database_bytes: u64,
}

impl Tail {
    /// Looks it up.
    ///
    /// # Errors
    /// Where a restore would fail for want of a snapshot or of a log.
    pub fn read(store: &dyn Store, keys: &KeyRing) -> Result<Self> {
        let plan = Plan::newest(store, keys)?;
        let snapshot = plan.lineage.links.last().map(|link| NewestSnapshot {
            seq: link.summary.position.seq,
            time: link.summary.meta.time,
            data_version: link.summary.meta.data_version,
            objects: plan.lineage.links.len(),
            database_bytes: u64::from(link.summary.meta.page_size)
                * u64::from(link.summary.meta.page_count),
        });
        let after = snapshot.as_ref().map_or(0, |snapshot| snapshot.seq);
        let head_seq = plan.end.position.seq;
        Ok(Self {
            snapshot,
            head_seq,
            records: head_seq.saturating_sub(after),
            bytes: bytes_behind(&plan.segments, after, head_seq),
        })
    }
}

/// About how many bytes of `segments`, which end at record `head`, are of records behind `after`.
fn bytes_behind(segments: &[SegmentEntry], after: u64, head: u64) -> u64 {
    let ends = segments.iter().skip(1).map(|next| next.name.first_seq).chain([head + 1]);
    let share = |(segment, end): (&SegmentEntry, u64)| {
        let first = segment.name.first_seq;
        let (all, behind) = (end.saturating_sub(first), end.saturating_sub(first.max(after + 1)));
        match all {
            0 => 0,
            _ => (u128::from(segment.size) * u128::from(behind) / u128::from(all)) as u64,
        }
    };
    segments.iter().zip(ends).map(share).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::SegmentName;

    #[test]
    fn of_a_segment_that_a_snapshot_falls_into_a_share_is_behind_it() {
        let segment = |first_seq, size| {
            let name = SegmentName { generation: 1, epoch: 1, index: 0, first_seq };
            SegmentEntry { name, size }
        };
        let segments = [segment(1, 1_000), segment(101, 500), segment(151, 300)];
        assert_eq!(bytes_behind(&segments, 0, 160), 1_800);
        assert_eq!(bytes_behind(&segments, 50, 160), 1_300);
        assert_eq!(bytes_behind(&segments, 125, 160), 550);
        assert_eq!(bytes_behind(&segments, 155, 160), 150);
        assert_eq!(bytes_behind(&segments, 160, 160), 0);
        assert_eq!(bytes_behind(&segments, 200, 160), 0);
        assert_eq!(bytes_behind(&[], 0, 0), 0);
        // A segment without a record has no share, and the one before it ends where that one would begin.
        assert_eq!(bytes_behind(&[segment(1, 100), segment(11, 44)], 5, 10), 50);
    }
}
