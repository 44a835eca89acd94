//! Where a log ends.

use super::{LoadedSegment, Position, SegmentEntry, all_segments, decode_record};
use crate::error::{Error, Result};
use crate::layout::SegmentName;
use crate::record::{CloseReason, Destinations, Head, Open, Record, TimeMs};
use crate::seal::{Chain, KeyRing, Tail};
use crate::session::Session;
use crate::store::Store;
use crate::version::DataVersion;

/// lightningd commits right after the answer. A database written to this much later, in ms, was written to
/// by somebody else.
const COMMIT_MS: TimeMs = 5_000;

/// The newest state of a log, as its next writer finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// The newest record.
    pub position: Position,
    /// What the log holds there.
    pub head: Head,
    /// When the newest record was written.
    pub time: TimeMs,
    /// When the newest transaction was appended, where that is in the last segment.
    pub batch_time: Option<TimeMs>,
    /// The epoch that wrote it.
    pub epoch: u32,
    /// The segment that holds it.
    pub segment: SegmentName,
    /// The directory that the log belongs to.
    pub directory: String,
    /// Machine name of the writer.
    pub host: String,
    /// All places of the log, where there are several.
    pub destinations: Destinations,
    /// Its writer has said that it ends.
    pub closed: bool,
}

impl LogEnd {
    /// Reads where the log ends: the last segment that holds a record, no other.
    ///
    /// # Errors
    /// [`Error::Nothing`] where there is no log; [`Error::Damaged`] where its end is not to be trusted.
    pub fn read(store: &dyn Store, keys: &KeyRing) -> Result<Self> {
        Self::read_listed(store, keys, &all_segments(store)?)
    }

    /// The same, of segments that were just listed, in the order in which they were written.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_listed(store: &dyn Store, keys: &KeyRing, all: &[SegmentEntry]) -> Result<Self> {
        for entry in all.iter().rev() {
            let Some(segment) = LoadedSegment::load(store, keys, entry.name)? else { continue };
            if let Some(end) = Self::of_segment(&segment, keys)? {
                return Ok(end);
            }
        }
        Err(Error::Nothing { store: store.label().into(), what: "the log has no record".into() })
    }

    /// As [`read_listed`](Self::read_listed); where the log's end is damaged, the newest record before that, and what is
    /// wrong. No writer may go on there: it is for a restore of an older state.
    ///
    /// # Errors
    /// As [`read`](Self::read), where nothing is intact either.
    pub fn read_intact(
        store: &dyn Store,
        keys: &KeyRing,
        all: &[SegmentEntry],
    ) -> Result<(Self, Option<Error>)> {
        let damage = match Self::read_listed(store, keys, all) {
            Err(error @ Error::Damaged { .. }) => error,
            end => return Ok((end?, None)),
        };
        for entry in all.iter().rev() {
            let segment = match LoadedSegment::load(store, keys, entry.name) {
                Err(Error::Damaged { .. }) | Ok(None) => continue,
                segment => segment?,
            };
            if let Some(end) = segment.and_then(|segment| Self::of_beginning(&segment, keys)) {
                return Ok((end, Some(damage)));
            }
        }
        Err(damage)
    }

    /// Epoch, and index of the segment, and seq, of the newest record: of two ends of one log the later one has the higher.
    /// (A writer may have begun several segments with one number, before one of them was acknowledged.)
    pub fn age(&self) -> (u32, u32, u64) {
        (self.epoch, self.segment.index, self.position.seq)
    }

    /// Checks that the log belongs to `directory`.
    ///
    /// # Errors
    /// [`Error::RestoredElsewhere`].
    pub fn expect_directory(&self, store: &dyn Store, directory: &str) -> Result<()> {
        if self.directory == directory {
            return Ok(());
        }
        Err(Error::RestoredElsewhere {
            store: store.label().into(),
            host: self.host.clone(),
            head: self.head.data_version.unwrap_or_default(),
        })
    }

    /// Up to which seq the log, without batches that were never committed, gives a database at `version`; `None`
    /// where it is neither at the head nor right before a batch in doubt.
    pub fn seq_of(&self, version: DataVersion) -> Option<u64> {
        match self.head.data_version?.ahead_of(version) {
            0 => Some(self.position.seq),
            1 if self.head.in_doubt => self.head.batch_seq?.checked_sub(1),
            _ => None,
        }
    }

    /// True where a database at the head's version that was last written to at `written` is what the log
    /// holds. False where somebody wrote to it since: lightningd without the plugin, in place of a batch
    /// that it lost, or a person. Versions do not show either.
    ///
    /// It goes by the clock, and so it is right about whoever writes more than five seconds after the batch;
    /// a file system with another clock only costs a snapshot.
    pub fn explains(&self, written: TimeMs) -> bool {
        // Only a batch is followed by a commit. What comes behind it, such as the end of a session that was quiet, is
        // written at any time; and a restored database is finished before the segment that takes the log over.
        let batch = self.batch_time.filter(|_| self.head.in_doubt);
        let after = batch.is_none_or(|batch| written >= batch.saturating_sub(COMMIT_MS));
        after && written <= self.time + COMMIT_MS
    }

    /// `None` where the segment's writer died before its open record was durable.
    fn of_segment(segment: &LoadedSegment, keys: &KeyRing) -> Result<Option<Self>> {
        let mut reached = None;
        walk(segment, keys, &mut reached)?;
        Ok(reached.map(|reached| reached.end(segment.name)))
    }

    /// Of a segment that is damaged somewhere: as far as it goes.
    fn of_beginning(segment: &LoadedSegment, keys: &KeyRing) -> Option<Self> {
        let mut reached = None;
        // What is wrong there is said by whoever reads on.
        let _ = walk(segment, keys, &mut reached);
        reached.map(|reached: Reached| reached.end(segment.name))
    }
}

/// What is known after a record.
struct Reached {
    session: Session,
    time: TimeMs,
    batch_time: Option<TimeMs>,
    open: Box<Open>,
    seq: u64,
    chain: Chain,
    closed: bool,
}

impl Reached {
    fn end(self, name: SegmentName) -> LogEnd {
        let Self { session, time, batch_time, open, seq, chain, closed } = self;
        LogEnd {
            position: Position { generation: name.generation, seq, chain },
            head: session.newest(),
            time,
            batch_time,
            epoch: name.epoch,
            segment: name,
            directory: open.directory,
            host: open.host,
            destinations: open.destinations,
            closed,
        }
    }
}

/// Reads a segment record by record; `reached` is the newest one.
fn walk(segment: &LoadedSegment, keys: &KeyRing, reached: &mut Option<Reached>) -> Result<()> {
    let mut records = segment.records(keys)?;
    let mut plain = Vec::new();
    while let Some(seq) = records.next(&mut plain)? {
        let chain = records.chain();
        let record = decode_record(segment.name, seq, &plain)?;
        let Some(now) = reached else {
            let Record::Open(open) = record else {
                let place = format!("record seq {seq} in '{}'", segment.name);
                return Err(Error::damaged(place, "a segment begins with an open record"));
            };
            let (session, time) = (Session::new(open.head), open.time);
            *reached =
                Some(Reached { session, time, batch_time: None, open, seq, chain, closed: false });
            continue;
        };
        (now.seq, now.chain, now.closed) = (seq, chain, false);
        match &record {
            Record::Open(_) => {}
            Record::Batch(batch) => {
                now.session.appended(batch.data_version, batch.transaction, seq);
                now.time = now.time.saturating_add(batch.elapsed_ms);
                if batch.transaction {
                    now.batch_time = Some(now.time);
                }
            }
            Record::Rewind(rewind) => {
                now.session.rewound();
                now.time = now.time.max(rewind.time);
            }
            Record::Close(close) => {
                (now.time, now.closed) = (close.time, close.reason == CloseReason::Shutdown);
            }
        }
    }
    debug_assert_ne!(records.tail(), Tail::Damaged);
    Ok(())
}
