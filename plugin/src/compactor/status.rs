//! What `backup-status` shows of compaction.

use std::sync::atomic::Ordering;

use lockstep_proto::record::TimeMs;
use lockstep_proto::shadow::{Digest, Proven};
use serde::Serialize;

use super::proof::Comparison;
use super::work::Outcome;
use super::{Compactor, Phase};
use crate::clock::now;

/// What `backup-status` shows of compaction. Fields only ever get more.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CompactionStatus {
    /// False where only `backup-compact` starts one.
    enabled: bool,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotStatus>,
    /// Bytes of log behind it.
    pub tail_bytes: Option<u64>,
    /// Records behind it: batches, and the few that begin and end segments.
    tail_records: Option<u64>,
    /// Seconds that a restore would take: the database at 100 MB/s, the tail at the rate of the last replay or else
    /// 1 MiB/s, the check at the rate of the last or else 100 MB/s.
    pub restore_seconds: Option<u64>,
    /// The one that runs.
    running: Option<RunningStatus>,
    /// The last one that ended well.
    last: Option<LastRun>,
    /// The last time that SQLite found every page of the shadow in order.
    pub proven: Option<ProvenStatus>,
    /// The last time that the shadow held what the node's database held.
    pub compared: Option<ProvenStatus>,
    /// What became of comparing the database of this start.
    comparison: Comparison,
    /// The last error, until a compaction ends well.
    error: Option<LastError>,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotStatus {
    seq: u64,
    data_version: Option<u32>,
    /// Seconds since the newest batch in it was appended.
    age_seconds: u64,
    /// Objects that a restore reads for it.
    objects: usize,
    /// Bytes of the database in it.
    database_bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
struct RunningStatus {
    id: u64,
    phase: Phase,
    done: u64,
    /// 0 where the phase does not count.
    all: u64,
    seconds: u64,
}

/// A compaction that ended well.
#[derive(Debug, Clone, Serialize)]
pub struct LastRun {
    /// Which.
    pub id: u64,
    /// When it ended.
    pub time: TimeMs,
    /// How long it took.
    pub seconds: f64,
    /// What came of it.
    pub result: Outcome,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize)]
pub struct LastError {
    /// 0 where it came up without a compaction.
    pub id: u64,
    /// When.
    pub time: TimeMs,
    /// In words.
    pub message: String,
}

/// Something that was found out about the shadow.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ProvenStatus {
    generation: u32,
    /// The newest batch in it then.
    seq: u64,
    data_version: Option<u32>,
    /// Of its content.
    digest: Digest,
    time: TimeMs,
    /// Seconds since then.
    age_seconds: u64,
}

impl SnapshotStatus {
    /// Seconds since the newest batch in it was appended.
    pub fn age(&self) -> f64 {
        self.age_seconds as f64
    }
}

impl ProvenStatus {
    /// Seconds since then.
    pub fn age(&self) -> f64 {
        self.age_seconds as f64
    }
}

impl From<Proven> for ProvenStatus {
    fn from(proven: Proven) -> Self {
        Self {
            generation: proven.generation,
            seq: proven.seq,
            data_version: proven.data_version.map(|version| version.0),
            digest: proven.digest,
            time: proven.time,
            age_seconds: now().saturating_sub(proven.time) / 1000,
        }
    }
}

impl Compactor {
    /// What is known, without looking at the store; `None` where the backup is not open.
    pub fn status(&self) -> Option<CompactionStatus> {
        let known = self.0.lock();
        let settings = known.settings.as_ref()?;
        let tail = known.tail_now(&self.0.signal);
        let progress = &self.0.progress;
        Some(CompactionStatus {
            enabled: settings.enabled,
            snapshot: tail.as_ref().and_then(|tail| {
                let newest = tail.snapshot.as_ref()?;
                Some(SnapshotStatus {
                    seq: newest.seq,
                    data_version: newest.data_version.map(|version| version.0),
                    age_seconds: now().saturating_sub(newest.time) / 1000,
                    objects: newest.objects,
                    database_bytes: newest.database_bytes,
                })
            }),
            tail_bytes: tail.as_ref().map(|tail| tail.bytes),
            tail_records: tail.as_ref().map(|tail| tail.records),
            restore_seconds: tail.map(|tail| known.rates.restore_seconds(&tail).ceil() as u64),
            running: known.running.map(|running| RunningStatus {
                id: running.id,
                phase: running.phase,
                done: progress.done.load(Ordering::Relaxed),
                all: progress.all.load(Ordering::Relaxed),
                seconds: running.since.elapsed().as_secs(),
            }),
            last: known.last.clone(),
            proven: known.proofs.checked.map(ProvenStatus::from),
            compared: known.proofs.compared.map(ProvenStatus::from),
            comparison: known.at_start.comparison,
            error: known.error.clone(),
        })
    }
}
