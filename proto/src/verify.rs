//! Verifying: reads everything that a store holds, decodes it, and proves that nothing is missing.

use serde::Serialize;

use crate::error::Result;
use crate::layout;
use crate::log::{self, LogReader};
use crate::restore::batches::Committed;
use crate::restore::start_of;
use crate::seal::KeyRing;
use crate::snapshot;
use crate::store::Store;
use crate::version::DataVersion;

/// What one generation holds, proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GenerationReport {
    /// Its number.
    pub generation: u32,
    /// The snapshot that it begins with.
    pub snapshot: Option<String>,
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
    for generation in log::generations(store)? {
        let segments = log::segments(store, generation)?;
        let start = start_of(store, keys, &segments)?;
        let (mut batches, mut data_version, mut time) = (0, None, 0);
        let mut bytes = 0;
        if let Some(base) = start.as_ref().and_then(|start| start.base.as_ref()) {
            let mut proof = snapshot::Proof::default();
            let (meta, _) = snapshot::read(store, keys, &base.name, Some(base.chain), &mut proof)?;
            bytes += proof.bytes;
            (data_version, time) = (meta.data_version, meta.time);
        }
        let mut committed = Committed::new(|batch| {
            batches += 1;
            time = batch.time;
            if batch.transaction {
                data_version = Some(batch.data_version);
            }
            Ok(())
        });
        let position = LogReader::new(store, keys).read(&segments, &mut committed)?;
        committed.finish()?;
        let voided = committed.voided;
        bytes += committed.bytes;
        progress(bytes);
        reports.push(GenerationReport {
            generation,
            snapshot: start.and_then(|start| start.base).map(|base| base.name),
            segments: segments.len(),
            batches,
            voided,
            seq: position.map_or(0, |position| position.seq),
            data_version,
            time,
            bytes,
        });
    }
    Ok(reports)
}
