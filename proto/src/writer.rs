//! Writing a log: one writer, one epoch, one record at a time, each durable before it is acknowledged.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::fence::{self, Claimant};
use crate::layout::SegmentName;
use crate::log::{LogEnd, Position};
use crate::record::{Close, CloseReason, Head, Open, Record, Rewind, Start, TimeMs};
use crate::seal::{Chain, Header, KeyRing, ObjectKind};
use crate::segment::{SEGMENT_BYTES, SegmentEncoder, SegmentError};
use crate::session::{Session, Step};
use crate::store::{Append, Store, StoreError, StoreErrorKind};
use crate::version::DataVersion;

/// A new writer that finds the number of its first record taken looks this often again where the log ends, …
const OVERTAKEN_TRIES: u32 = 20;
/// … with a pause in between: the older writer looks for claims a few times a second.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(100);

/// One `db_write`, as far as the log is concerned.
#[derive(Debug)]
pub struct Call<'a, S> {
    /// lightningd's version with the batch.
    pub data_version: DataVersion,
    /// False for settings (`PRAGMA …`) that lightningd makes outside of any transaction.
    pub transaction: bool,
    /// The statements.
    pub writes: &'a [S],
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable: lightningd may commit.
    Acknowledged {
        /// Where the log stands now.
        position: Position,
        /// The batch that was found never to have been committed, where there was one.
        voided: Option<u64>,
    },
    /// The database holds transactions that the log does not. Nothing was written: begin a
    /// generation from a snapshot, then make the call again.
    Gap,
}

/// What [`Writer::take_over`] takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredState {
    /// The newest record that was read.
    pub position: Position,
    /// lightningd's version of the restored database.
    pub data_version: Option<DataVersion>,
    /// The epoch that was claimed before anything was read.
    pub claimed: u32,
}

/// The one writer of a log, for as long as nobody claims a newer epoch.
pub struct Writer {
    store: Arc<dyn Store>,
    keys: KeyRing,
    claimant: Claimant,
    epoch: u32,
    generation: u32,
    next_index: u32,
    /// Places that lack something of what was written before the claim are known.
    looked_behind_claim: bool,
    segment_bytes: u64,
    session: Session,
    /// Seq and chain hash of the newest record that was acknowledged.
    end: (u64, Chain),
    segment: Option<OpenSegment>,
    /// The next record goes into a new segment.
    ends_segment: bool,
    /// Bytes of all records that were acknowledged.
    appended_bytes: u64,
}

/// The segment that is being written.
struct OpenSegment {
    encoder: SegmentEncoder,
    object: Box<dyn Append>,
    bytes: u64,
    time: TimeMs,
}

impl Writer {
    /// Claims the next epoch, reads where the log ends, and opens a segment there.
    ///
    /// # Errors
    /// [`Error::RestoredElsewhere`] where the log belongs to another directory than the claimant's. Where it
    /// is an error of reading the log, the epoch is claimed all the same.
    pub fn open(
        store: Arc<dyn Store>,
        keys: KeyRing,
        claimant: Claimant,
        now: TimeMs,
    ) -> Result<Self> {
        let epoch = fence::claim(&*store, &keys, &claimant)?;
        let mut tries = 0;
        loop {
            let end = Self::end_behind_claim(&*store, &keys, epoch)?;
            end.expect_directory(&*store, &claimant.directory)?;
            match Self::go_on(store.clone(), keys.clone(), claimant.clone(), epoch, &end, now) {
                // An older writer was faster once more. It sees the claim soon, and its record counts.
                Err(Error::Overtaken { .. }) if tries < OVERTAKEN_TRIES => {
                    tries += 1;
                    std::thread::sleep(OVERTAKEN_PAUSE);
                }
                opened => return opened,
            }
        }
    }

    /// Claims the next epoch for a database that was restored: from here on the log belongs to the claimant's
    /// directory, and no other may continue it.
    ///
    /// # Errors
    /// [`Error::Refused`] where the log has gone on since; nothing was changed but the claim.
    pub fn take_over(
        store: Arc<dyn Store>,
        keys: KeyRing,
        claimant: Claimant,
        restored: &RestoredState,
        now: TimeMs,
    ) -> Result<Self> {
        let epoch = fence::claim(&*store, &keys, &claimant)?;
        let end = Self::end_behind_claim(&*store, &keys, epoch)?;
        let (at, found) = (restored.position, end.position);
        let gone_on = Error::Refused {
            what: format!(
                "the node on {} wrote to '{}' meanwhile: restored was seq {}",
                end.host,
                store.label(),
                at.seq
            ),
            hint: "stop that node for good, then restore again.".into(),
        };
        // What an older writer wrote since the claim was fenced before it was acknowledged: one record. (Not where
        // numbers are exclusive: there it counts, and this writer finds its number taken.)
        let fenced = found.seq == at.seq + 1 && end.epoch < restored.claimed;
        if found != at && !fenced {
            return Err(gone_on);
        }
        // The restored database has committed all that is in it: nothing is in doubt.
        let head = Head { data_version: restored.data_version, batch_seq: None, in_doubt: false };
        let end = LogEnd { position: at, head, ..end };
        match Self::go_on(store, keys, claimant, epoch, &end, now) {
            Err(Error::Overtaken { .. }) => Err(gone_on),
            opened => opened,
        }
    }

    /// As [`take_over`](Self::take_over), for a database that is older than the log, or another: the log
    /// goes on with the generation that the caller begins next.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn roll_back(store: Arc<dyn Store>, keys: KeyRing, claimant: Claimant) -> Result<Self> {
        let epoch = fence::claim(&*store, &keys, &claimant)?;
        let end = Self::end_behind_claim(&*store, &keys, epoch)?;
        store.sync(&end.segment.to_string())?;
        let mut writer = Self::new(store, keys, claimant, epoch);
        writer.generation = end.position.generation;
        writer.end = (end.position.seq, end.position.chain);
        Ok(writer)
    }

    /// Where the log ends, of which `epoch` was just claimed: what was read before that may have been gone on from.
    fn end_behind_claim(store: &dyn Store, keys: &KeyRing, epoch: u32) -> Result<LogEnd> {
        match store.claimed(epoch)? {
            Some(end) => Ok(end),
            None => LogEnd::read(store, keys),
        }
    }

    fn go_on(
        store: Arc<dyn Store>,
        keys: KeyRing,
        claimant: Claimant,
        epoch: u32,
        end: &LogEnd,
        now: TimeMs,
    ) -> Result<Self> {
        // What is read may be in a cache only: a writer that died never synced it.
        store.sync(&end.segment.to_string())?;
        let mut writer = Self::new(store, keys, claimant, epoch);
        writer.generation = end.position.generation;
        writer.session = Session::new(end.head);
        writer.end = (end.position.seq, end.position.chain);
        writer.open_segment(None, now)?;
        Ok(writer)
    }

    /// Claims the first epoch of a new store. The log begins with [`begin`](Self::begin).
    ///
    /// # Errors
    /// Where the store fails.
    pub fn create(store: Arc<dyn Store>, keys: KeyRing, claimant: Claimant) -> Result<Self> {
        let epoch = fence::claim(&*store, &keys, &claimant)?;
        Ok(Self::new(store, keys, claimant, epoch))
    }

    fn new(store: Arc<dyn Store>, keys: KeyRing, claimant: Claimant, epoch: u32) -> Self {
        Self {
            store,
            keys,
            claimant,
            epoch,
            generation: 0,
            next_index: 0,
            looked_behind_claim: true,
            segment_bytes: SEGMENT_BYTES,
            session: Session::new(Head::default()),
            end: (0, Chain::default()),
            segment: None,
            ends_segment: false,
            appended_bytes: 0,
        }
    }

    /// Ends segments at another size than [`SEGMENT_BYTES`].
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.segment_bytes = bytes;
    }

    /// The epoch of this writer.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The version rules as they stand.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Who writes.
    pub fn claimant(&self) -> &Claimant {
        &self.claimant
    }

    /// The store that is written to.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The keys that seal.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Where the log stands: the newest record that was acknowledged.
    pub fn position(&self) -> Position {
        Position { generation: self.generation, seq: self.end.0, chain: self.end.1 }
    }

    /// Bytes of all records that this writer appended, as they are stored.
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes
    }

    /// The generation that [`begin`](Self::begin) would start. A generation is named after the epoch
    /// that began it, so that no two writers can begin the same one.
    ///
    /// # Errors
    /// Where this epoch has begun one already and the next cannot be claimed.
    pub fn next_generation(&mut self, now: TimeMs) -> Result<u32> {
        fence::check(&*self.store, &self.keys, self.epoch)?;
        if self.generation == self.epoch {
            self.close_segment(CloseReason::Full, now);
            self.claimant = self.claimant.renewed(now)?;
            let next = fence::claim(&*self.store, &self.keys, &self.claimant)?;
            if next != self.epoch + 1 {
                // Another writer came between, and may have written.
                fence::check(&*self.store, &self.keys, self.epoch)?;
            }
            (self.epoch, self.next_index, self.looked_behind_claim) = (next, 0, false);
        }
        // The claim is in the way of what places that are slower had not done yet. Nobody can have come in between: should
        // this fail, it is tried again with the next try to begin.
        if !self.looked_behind_claim {
            self.looked_behind_claim = self.store.claimed(self.epoch).is_ok();
        }
        Ok(self.epoch)
    }

    /// Begins a new generation whose database is `start.base`, at `data_version`.
    ///
    /// # Errors
    /// [`Error`]; the old generation is then still the newest.
    pub fn begin(
        &mut self,
        start: Start,
        data_version: Option<DataVersion>,
        now: TimeMs,
    ) -> Result<()> {
        let generation = self.next_generation(now)?;
        self.close_segment(CloseReason::Full, now);
        let before = (self.generation, self.session);
        self.generation = generation;
        self.session = Session::new(Head { data_version, batch_seq: None, in_doubt: false });
        let opened = self.open_segment(Some(start), now);
        if opened.is_err() {
            (self.generation, self.session) = before;
        }
        opened
    }

    /// Makes one call durable, by the version rules of [`Session`].
    ///
    /// # Errors
    /// [`Error::Behind`], [`Error::Fenced`]: final. [`Error::Store`]: nothing was acknowledged; the same
    /// call may be made again, and goes into a new segment.
    pub fn append<S: AsRef<str>>(&mut self, call: &Call<'_, S>, now: TimeMs) -> Result<Outcome> {
        let mut voided = None;
        self.session.refuse_behind(call.data_version, call.transaction)?;
        match self.session.step(call.data_version, call.transaction) {
            Step::Append => {}
            Step::RewindThenAppend { void } => {
                let rewind = Rewind { time: now, seq: void, data_version: call.data_version };
                self.write(now, |encoder, _| encoder.control(&Record::Rewind(rewind)))?;
                self.session.rewound();
                voided = Some(void);
            }
            Step::Gap | Step::Behind => return Ok(Outcome::Gap),
        }
        self.write(now, |encoder, elapsed| {
            encoder.batch(call.data_version, call.transaction, elapsed, call.writes)
        })?;
        self.session.appended(call.data_version, call.transaction, self.end.0);
        Ok(Outcome::Acknowledged { position: self.position(), voided })
    }

    /// Goes on in a store that was opened anew, after an error of the one before. It must be the same log:
    /// everything acknowledged, and at most the one record that was not.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is another state of the log, as a folder that lay under a mount.
    pub fn reattach(&mut self, store: Arc<dyn Store>) -> Result<()> {
        fence::check(&*store, &self.keys, self.epoch)?;
        let found = LogEnd::read(&*store, &self.keys)?;
        let (seq, chain) = self.end;
        let at = found.position;
        if (at.seq, at.chain) != (seq, chain) && at.seq != seq + 1 {
            let what = format!("holds the log up to seq {}, not {seq}", at.seq);
            return Err(Error::damaged(format!("'{}'", store.label()), what));
        }
        store.sync(&found.segment.to_string())?;
        self.segment = None;
        self.store = store;
        Ok(())
    }

    /// Goes on in another view of the same log, whose places are others: in a new segment, which names them.
    pub fn move_to(&mut self, store: Arc<dyn Store>) {
        self.store = store;
        self.ends_segment = self.segment.is_some();
    }

    /// A number that no other object of this epoch has in its name.
    pub fn take_index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index - 1
    }

    /// Ends the segment in order. The writer can go on, in another.
    pub fn close(&mut self, now: TimeMs) {
        self.close_segment(CloseReason::Shutdown, now);
    }

    /// Writes one record: durable, then not fenced, then acknowledged. After an error the segment is
    /// not touched again.
    fn write(
        &mut self,
        now: TimeMs,
        encode: impl FnOnce(&mut SegmentEncoder, u64) -> Result<&[u8], SegmentError>,
    ) -> Result<()> {
        let full = self
            .segment
            .as_ref()
            .is_some_and(|segment| segment.bytes >= self.segment_bytes || segment.object.is_full());
        if std::mem::take(&mut self.ends_segment) || full {
            self.close_segment(CloseReason::Full, now);
        }
        if self.segment.is_none() {
            self.open_segment(None, now)?;
        }
        self.write_here(now, encode)
    }

    /// Writes one record into the open segment, which is given up where that fails.
    fn write_here(
        &mut self,
        now: TimeMs,
        encode: impl FnOnce(&mut SegmentEncoder, u64) -> Result<&[u8], SegmentError>,
    ) -> Result<()> {
        let Some(mut segment) = self.segment.take() else { return Ok(()) };
        let before = segment.bytes;
        match segment.write(now, encode) {
            Err(Error::Store(StoreError { kind: StoreErrorKind::Taken, .. })) => {
                return Err(self.overtaken());
            }
            // A newer writer puts the same bytes in its place.
            Err(gone @ Error::Store(StoreError { kind: StoreErrorKind::Gone(_), .. })) => {
                return fence::check(&*self.store, &self.keys, self.epoch).and(Err(gone));
            }
            written => written?,
        }
        if !segment.object.is_exclusive() {
            fence::check(&*self.store, &self.keys, self.epoch)?;
        }
        self.appended_bytes += segment.bytes - before;
        self.end = (segment.encoder.next_seq() - 1, segment.encoder.chain());
        self.segment = Some(segment);
        Ok(())
    }

    /// Why another writer's record is where this one's belongs.
    fn overtaken(&self) -> Error {
        match fence::check(&*self.store, &self.keys, self.epoch) {
            Err(error) => error,
            Ok(()) => Error::Overtaken { store: self.store.label().into(), seq: self.end.0 + 1 },
        }
    }

    fn open_segment(&mut self, start: Option<Start>, now: TimeMs) -> Result<()> {
        // A segment of a writer that is fenced already would only be in its successor's way.
        fence::check(&*self.store, &self.keys, self.epoch)?;
        let index = self.take_index();
        let key = self.keys.current()?;
        let header = Header {
            kind: ObjectKind::Segment,
            key: key.id(),
            store: self.keys.store(),
            generation: self.generation,
            epoch: self.epoch,
            seq: self.end.0 + 1,
            index,
            prev: self.end.1,
            nonce_prefix: Header::random_nonce_prefix()?,
        };
        let name = SegmentName {
            generation: self.generation,
            epoch: self.epoch,
            index,
            first_seq: header.seq,
        };
        let encoder = SegmentEncoder::new(key, &header)?;
        let bytes = header.encode();
        let name = name.to_string();
        let object = self.store.create_append(&name, &bytes).inspect_err(|error| {
            // It holds no record, so nobody can be bound to it: best effort not to leave it behind.
            if !matches!(error.kind, StoreErrorKind::Exists) {
                let _ = self.store.remove(&name);
            }
        })?;
        self.segment = Some(OpenSegment { encoder, object, bytes: bytes.len() as u64, time: now });
        let open = Box::new(Open {
            time: now,
            writer: self.claimant.writer.clone(),
            session: self.claimant.token.clone(),
            host: self.claimant.host.clone(),
            directory: self.claimant.directory.clone(),
            head: self.session.head(),
            start,
            destinations: self.store.destinations(),
        });
        self.write_here(now, |encoder, _| encoder.control(&Record::Open(open)))
    }

    /// Best effort: every record is durable without it.
    fn close_segment(&mut self, reason: CloseReason, now: TimeMs) {
        let close = Record::Close(Close { time: now, reason });
        let written = self.write_here(now, |encoder, _| encoder.control(&close));
        if let (Ok(()), Some(mut segment)) = (written, self.segment.take()) {
            let _ = segment.object.finish();
        }
        self.segment = None;
    }
}

impl OpenSegment {
    fn write(
        &mut self,
        now: TimeMs,
        encode: impl FnOnce(&mut SegmentEncoder, u64) -> Result<&[u8], SegmentError>,
    ) -> Result<()> {
        let elapsed = now.saturating_sub(self.time);
        let frame = encode(&mut self.encoder, elapsed)?;
        self.object.append(frame).map_err(|error: StoreError| Error::Store(error))?;
        self.bytes += frame.len() as u64;
        self.time += elapsed;
        Ok(())
    }
}
