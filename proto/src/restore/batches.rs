//! From records to the batches that the node committed, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::batch::codec;
use crate::batch::shape::{Shape, Values};
use crate::error::{Error, Result};
use crate::layout::SegmentName;
use crate::log::{Mark, Visitor};
use crate::record::{Batch, Record, Start, TimeMs};
use crate::segment::{BatchDecoder, SegmentError};
use crate::version::DataVersion;

/// A batch that the node committed.
#[derive(Debug)]
pub struct CommittedBatch {
    /// Its record.
    pub at: Mark,
    /// The writer's epoch.
    pub epoch: u32,
    /// lightningd's version with it.
    pub data_version: DataVersion,
    /// False for settings, which are executed outside of any transaction.
    pub transaction: bool,
    /// When it was appended.
    pub time: TimeMs,
    /// Counts the sessions of the node: each begins with lightningd's own settings.
    pub session: u64,
    /// The statements in order.
    pub statements: Vec<OwnedStatement>,
}

/// One statement.
#[derive(Debug)]
pub enum OwnedStatement {
    /// As text.
    Text(String),
    /// As a shape with values.
    Shaped(Arc<Shape>, Values),
}

impl OwnedStatement {
    /// The statement's text.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Shaped(shape, values) => {
                let mut text = String::new();
                shape.render(values, &mut text)?;
                Some(text)
            }
        }
    }

    /// About how many bytes it takes.
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Shaped(_, values) => 64 + values.byte_len(),
        }
    }
}

/// Decodes the batches of a log, leaves out those that a rewind voids, and gives the others to `give`.
///
/// A batch is held back until the next transaction, a rewind or the log's end decides about it; settings
/// behind it wait with it.
pub struct Committed<F> {
    give: F,
    /// Up to this seq all was decided before: what voided a batch there is only read on the way.
    decided: u64,
    decoder: Option<(SegmentName, BatchDecoder, Vec<Arc<Shape>>)>,
    held: VecDeque<CommittedBatch>,
    time: TimeMs,
    session: (String, u64),
    /// How the generation began, once its first record was read.
    pub start: Option<Start>,
    /// Batches that were void: never committed by the node.
    pub voided: u64,
    /// Bytes of stored segments read.
    pub bytes: u64,
}

impl<F: FnMut(CommittedBatch) -> Result<()>> Committed<F> {
    /// Gives every committed batch to `give`.
    pub fn new(give: F) -> Self {
        Self::going_on(0, give)
    }

    /// As [`new`](Self::new), where a database holds everything up to seq `decided` already, and the log is
    /// read from somewhere before that.
    pub fn going_on(decided: u64, give: F) -> Self {
        Self {
            give,
            decided,
            decoder: None,
            held: VecDeque::new(),
            time: 0,
            session: (String::new(), 0),
            start: None,
            voided: 0,
            bytes: 0,
        }
    }

    /// The log has ended: what is held back is committed.
    ///
    /// # Errors
    /// What `give` returned.
    pub fn finish(&mut self) -> Result<()> {
        self.held.drain(..).try_for_each(&mut self.give)
    }

    fn batch(&mut self, name: SegmentName, at: Mark, batch: &Batch<'_>) -> Result<()> {
        let place = || format!("record seq {} in '{name}'", at.seq);
        let Some((_, decoder, shapes)) = &mut self.decoder else {
            return Err(Error::damaged(place(), "batch before any segment"));
        };
        self.time = self.time.saturating_add(batch.elapsed_ms);
        let mut statements = Vec::new();
        let decoded: Result<(), SegmentError> = decoder.decode(batch, |known, statement| {
            for shape in &known[shapes.len()..] {
                shapes.push(Arc::new(shape.clone()));
            }
            statements.push(match statement {
                codec::Statement::Text(text) => OwnedStatement::Text(text.into()),
                codec::Statement::Shaped(index, values) => {
                    OwnedStatement::Shaped(shapes[index].clone(), values.clone())
                }
            });
            Ok(())
        });
        decoded.map_err(|error| Error::damaged(place(), error))?;
        let batch = CommittedBatch {
            at,
            epoch: name.epoch,
            data_version: batch.data_version,
            transaction: batch.transaction,
            time: self.time,
            session: self.session.1,
            statements,
        };
        if batch.transaction {
            self.finish()?;
        }
        if batch.transaction || !self.held.is_empty() {
            self.held.push_back(batch);
            Ok(())
        } else {
            (self.give)(batch)
        }
    }

    fn rewind(&mut self, name: SegmentName, seq: u64, void: u64) -> Result<()> {
        match self.held.pop_front() {
            // What a snapshot holds cannot be taken out of it. (A snapshot of settings behind the void batch does not
            // hold that: they wait with it, so whoever made it had read this.)
            Some(batch) if batch.at.seq == void && void != self.decided => {
                self.voided += 1;
                self.finish()
            }
            None if seq <= self.decided || void < self.decided => Ok(()),
            _ => {
                let place = format!("record seq {seq} in '{name}'");
                Err(Error::damaged(
                    place,
                    format!("voids seq {void}, which is not the newest batch"),
                ))
            }
        }
    }
}

impl<F: FnMut(CommittedBatch) -> Result<()>> Visitor for Committed<F> {
    fn segment(&mut self, name: SegmentName) -> Result<()> {
        self.decoder = Some((name, BatchDecoder::new()?, Vec::new()));
        Ok(())
    }

    fn record(&mut self, name: SegmentName, at: Mark, record: Record<'_>) -> Result<()> {
        let seq = at.seq;
        match record {
            Record::Open(open) => {
                self.time = open.time;
                if open.session != self.session.0 {
                    self.session = (open.session, self.session.1 + 1);
                }
                if let Some(start) = open.start {
                    if self.start.is_some() {
                        let place = format!("record seq {seq} in '{name}'");
                        return Err(Error::damaged(place, "a second start of one generation"));
                    }
                    self.start = Some(start);
                }
                Ok(())
            }
            Record::Batch(batch) => self.batch(name, at, &batch),
            Record::Rewind(rewind) => {
                self.time = self.time.max(rewind.time);
                self.rewind(name, seq, rewind.seq)
            }
            Record::Close(_) => Ok(()),
        }
    }

    fn progress(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Head, Open, Rewind};
    use crate::seal::Chain;

    const NAME: SegmentName = SegmentName { generation: 1, epoch: 1, index: 0, first_seq: 1 };

    enum Step {
        Open(&'static str),
        Batch,
        Settings,
        Rewind(u64),
    }
    use Step::{Batch as Write, Open as Begin, Rewind as Void, Settings};

    /// Reads these records, the first of which has seq `from`, where all up to `decided` is held already. Gives seq and
    /// session of the batches that were committed, and how many were void.
    fn read(decided: u64, from: u64, steps: &[Step]) -> Result<(Vec<(u64, u64)>, u64)> {
        let mut encoded = Vec::new();
        codec::Encoder::default().encode(&[""; 0], &mut encoded);
        let statements = &zstd::bulk::compress(&encoded, 1).unwrap();
        let mut given = Vec::new();
        let mut committed = Committed::going_on(decided, |batch: CommittedBatch| {
            given.push((batch.at.seq, batch.session));
            Ok(())
        });
        for (seq, step) in (from..).zip(steps) {
            // Each batch is one frame of zstd here, as the first of a segment is.
            committed.segment(NAME)?;
            let transaction = matches!(step, Write);
            let (data_version, elapsed_ms) = (DataVersion(1), 0);
            let record = match step {
                Begin(session) => Record::Open(Box::new(Open {
                    time: 0,
                    writer: String::new(),
                    session: (*session).into(),
                    host: String::new(),
                    directory: String::new(),
                    head: Head::default(),
                    start: None,
                    destinations: Default::default(),
                })),
                Write | Settings => {
                    Record::Batch(Batch { data_version, transaction, elapsed_ms, statements })
                }
                Void(seq) => Record::Rewind(Rewind { seq: *seq, data_version, time: 0 }),
            };
            committed.record(NAME, Mark { seq, chain: Chain::default() }, record)?;
        }
        committed.finish()?;
        let voided = committed.voided;
        Ok((given, voided))
    }

    #[test]
    fn a_rewind_voids_the_newest_batch_and_no_other() {
        let steps = [Begin("a"), Write, Write, Settings, Void(3), Write];
        assert_eq!(read(0, 1, &steps).unwrap(), (vec![(2, 1), (4, 1), (6, 1)], 1));
        for steps in [
            &[Begin("a"), Write, Write, Void(2)][..],
            &[Begin("a"), Write, Void(2), Void(2)],
            &[Begin("a"), Settings, Void(2)],
        ] {
            let error = read(0, 1, steps).unwrap_err().to_string();
            assert!(error.contains("voids seq 2, which is not the newest batch"), "{error}");
        }
    }

    #[test]
    fn what_a_snapshot_holds_is_not_taken_out_of_it() {
        let steps = [Begin("a"), Write, Void(2), Write];
        // Voided before the snapshot was made, or behind it.
        assert_eq!(read(4, 1, &steps).unwrap().1, 1);
        assert_eq!(read(1, 1, &steps).unwrap(), (vec![(4, 1)], 1));
        let error = read(2, 1, &steps).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        // The same where the log is read from behind it.
        assert!(read(2, 3, &[Begin("b"), Void(2)]).is_err());
        // Of what came before there is nothing to be said.
        read(4, 3, &[Begin("b"), Void(2)]).unwrap();
        read(3, 4, &[Begin("b"), Void(2)]).unwrap();
    }

    #[test]
    fn each_writer_is_a_session() {
        let steps = [Begin("a"), Write, Begin("a"), Write, Begin("b"), Write, Begin("a"), Write];
        let sessions = read(0, 1, &steps).unwrap().0;
        assert_eq!(sessions, [(2, 1), (4, 1), (6, 2), (8, 3)]);
    }
}
