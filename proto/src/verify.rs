//! Verifying: reads everything that a store holds, decodes it, and proves that nothing is missing.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::layout::{self, SnapshotName};
use crate::log::{self, After, LoadedSegment, LogEnd, LogReader, Mark, SegmentEntry};
use crate::restore::batches::{Committed, CommittedBatch};
use crate::restore::beginning_of;
use crate::seal::{Chain, KeyRing};
use crate::snapshot::{self, Proof, Whole};
use crate::store::Store;
use crate::version::DataVersion;

/// What one generation holds, proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GenerationReport {
    /// Its number.
    pub generation: u32,
    /// The snapshot that it begins with.
    pub snapshot: Option<String>,
    /// Snapshots, that one included.
    pub snapshots: usize,
    /// Segments of its log.
    pub segments: usize,
    /// Batches that the node committed.
    pub batches: u64,
    /// Batches that it did not.
    pub voided: u64,
    /// Its newest record.
    pub seq: u64,
    /// lightningd's version there.
    pub data_version: Option<DataVersion>,
    /// When the newest batch was appended, or the snapshot taken; milliseconds since 1970.
    pub time: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Bytes that [`run`] will read.
///
/// # Errors
/// Where the store cannot be listed.
pub fn stored_bytes(store: &dyn Store) -> Result<u64> {
    let mut bytes = 0;
    for generation in log::generations(store)? {
        for folder in [layout::log_folder(generation), layout::snapshot_folder(generation)] {
            bytes += store.list(&folder)?.iter().map(|entry| entry.size).sum::<u64>();
        }
    }
    Ok(bytes)
}

/// Verifies every generation, oldest first. `progress` is told the bytes read since it was called last.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn run(
    store: &dyn Store,
    keys: &KeyRing,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<GenerationReport>> {
    let mut reports = Vec::new();
    let mut newest = None;
    for generation in log::generations(store)? {
        let segments = log::segments(store, generation)?;
        let start = beginning_of(store, keys, &segments)?.map(|beginning| beginning.start);
        let mut snapshots = Snapshots::read(store, keys, generation, progress)?;
        let base = start.as_ref().and_then(|start| start.base.as_ref());
        let mut is_newest = || -> Result<bool> {
            let found = match newest {
                Some(newest) => newest,
                None => *newest.insert(LogEnd::read(store, keys)?.position.generation),
            };
            Ok(found == generation)
        };
        let whole = match base {
            // It may have been removed, with what a later one stands for, or as the first of an older history's.
            Some(base) if snapshots.has(&base.name) || !snapshots.compacted() && is_newest()? => {
                snapshots.require(&base.name, base.chain)?;
                true
            }
            Some(_) => false,
            None => start.is_some(),
        };
        let after = match whole {
            true => None,
            false => match snapshots.after(segments.first()) {
                Some(after) => Some(after),
                // A writer that died before its first record was durable began nothing.
                None if !holds_records(store, keys, &segments)? => continue,
                // Of an older history the log may be gone up to its last segment, and its points be kept; or it is
                // being removed, and that was interrupted.
                None if !is_newest()? => None,
                None => return Err(snapshot::nothing_to_go_on_from(store, generation)?),
            },
        };
        let points_alone = !whole && after.is_none();
        let (mut batches, mut data_version, mut time) = (0, snapshots.data_version, snapshots.time);
        // Where the log begins anywhere, what its first rewind voids is not in it.
        let decided = match points_alone {
            true => u64::MAX,
            false => after.map_or(0, |after| after.seq),
        };
        let mut committed = Committed::going_on(decided, |batch: CommittedBatch| {
            batches += 1;
            time = batch.time;
            if batch.transaction {
                data_version = Some(batch.data_version);
            }
            snapshots.pass(batch.at)
        });
        let position = LogReader::new(store, keys).read_from(after, &segments, &mut committed)?;
        committed.finish()?;
        let (voided, bytes) = (committed.voided, committed.bytes);
        progress(bytes);
        snapshots.expect_all_passed(segments.first())?;
        reports.push(GenerationReport {
            generation,
            snapshot: start.and_then(|start| start.base).map(|base| base.name),
            snapshots: snapshots.made.len(),
            segments: segments.len(),
            batches,
            voided,
            seq: position.map_or(0, |position| position.seq),
            data_version,
            time,
            bytes: bytes + snapshots.bytes,
        });
    }
    Ok(reports)
}

/// True where some segment holds a record.
fn holds_records(store: &dyn Store, keys: &KeyRing, segments: &[SegmentEntry]) -> Result<bool> {
    let mut plain = Vec::new();
    for entry in segments {
        if let Some(segment) = LoadedSegment::load(store, keys, entry.name)?
            && segment.records(keys)?.next(&mut plain)?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The snapshots of a generation, each read to its end.
struct Snapshots {
    made: Vec<Made>,
    bytes: u64,
    /// Of the oldest.
    data_version: Option<DataVersion>,
    time: u64,
}

struct Made {
    name: SnapshotName,
    /// Where in the log.
    at: Mark,
    /// After its last frame.
    chain: Chain,
    passed: bool,
}

impl Snapshots {
    fn read(
        store: &dyn Store,
        keys: &KeyRing,
        generation: u32,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let mut all = Self { made: Vec::new(), bytes: 0, data_version: None, time: 0 };
        for (name, size) in snapshot::published(store, generation)? {
            let mut proof = Proof::default();
            let Whole { position: at, meta, chain } =
                snapshot::read(store, keys, &name.to_string(), None, &mut proof)?;
            progress(size);
            if let Some(parent) = &meta.parent {
                all.require(&parent.name, parent.chain)?;
            }
            if all.made.is_empty() {
                (all.data_version, all.time) = (meta.data_version, meta.time);
            }
            all.bytes += proof.bytes;
            all.made.push(Made { name, at, chain, passed: false });
        }
        Ok(all)
    }

    fn has(&self, name: &str) -> bool {
        self.made.iter().any(|made| made.name.to_string() == name)
    }

    /// True where compaction made one.
    fn compacted(&self) -> bool {
        self.made.iter().any(|made| made.name.is_compacted())
    }

    /// Checks that the snapshot that something names is there, and the one that was meant.
    fn require(&self, name: &str, chain: Chain) -> Result<()> {
        let what = match self.made.iter().find(|made| made.name.to_string() == name) {
            Some(made) if made.chain == chain => return Ok(()),
            Some(_) => "is not the snapshot that was meant",
            None => "is missing, and what comes after it is of no use without it",
        };
        Err(Error::damaged(format!("'{name}'"), what))
    }

    /// The oldest that a log, whose beginning was removed, goes on from.
    fn after(&self, first: Option<&SegmentEntry>) -> Option<After> {
        let first = first?.name.first_seq;
        let mut compacted = self.made.iter().filter(|made| made.name.is_compacted());
        let oldest = compacted.find(|made| made.at.seq + 1 >= first)?;
        Some(oldest.at.into())
    }

    /// Checks those that were made at a batch.
    fn pass(&mut self, at: Mark) -> Result<()> {
        let made = self.made.iter_mut().filter(|made| made.at.seq == at.seq);
        for made in made.filter(|made| made.name.is_compacted()) {
            if made.at != at {
                return Err(not_of_this_log(made));
            }
            made.passed = true;
        }
        Ok(())
    }

    fn expect_all_passed(&self, first: Option<&SegmentEntry>) -> Result<()> {
        let first = first.map_or(0, |first| first.name.first_seq);
        let mut made = self.made.iter().filter(|made| made.name.is_compacted());
        match made.find(|made| !made.passed && made.at.seq >= first) {
            Some(made) => Err(not_of_this_log(made)),
            None => Ok(()),
        }
    }
}

fn not_of_this_log(made: &Made) -> Error {
    Error::damaged(format!("'{}'", made.name), "was not made of the log that is here")
}
