//! Reading a log: which segments there are, and their records in order, each proved to follow the last.

use crate::error::{Error, Result};
use crate::layout::{self, SegmentName};
use crate::record::{Record, RecordError};
use crate::seal::{Chain, FrameError, HEADER_LEN, Header, HeaderError, KeyRing, ObjectKind, Tail};
use crate::segment::SegmentReader;
use crate::store::Store;

/// A segment as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Its name.
    pub name: SegmentName,
    /// Its bytes, preallocated ones included.
    pub size: u64,
}

/// Where a log stands after a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The history.
    pub generation: u32,
    /// The record.
    pub seq: u64,
    /// Chain hash after it.
    pub chain: Chain,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seq {} of generation {}", self.seq, self.generation)
    }
}

/// The generations that have a folder, oldest first.
///
/// # Errors
/// Where the store cannot be listed.
pub fn generations(store: &dyn Store) -> Result<Vec<u32>> {
    let folders = store.list(layout::LOG)?;
    Ok(folders.iter().filter_map(|entry| layout::parse_generation(&entry.name)).collect())
}

/// The segments of a generation in the order in which they were written.
///
/// # Errors
/// Where the store cannot be listed.
pub fn segments(store: &dyn Store, generation: u32) -> Result<Vec<SegmentEntry>> {
    let entries = store.list(&layout::log_folder(generation))?;
    let mut segments: Vec<_> = entries
        .iter()
        .filter_map(|entry| {
            let name = SegmentName::parse(generation, &entry.name)?;
            Some(SegmentEntry { name, size: entry.size })
        })
        .collect();
    segments.sort_by_key(|segment| segment.name);
    Ok(segments)
}

/// A segment's bytes and header, checked against the name and the store.
pub struct LoadedSegment {
    /// Its name.
    pub name: SegmentName,
    /// Its header.
    pub header: Header,
    bytes: Vec<u8>,
}

impl LoadedSegment {
    /// Reads a segment. `None` where its writer died before the header was there: it never held anything.
    ///
    /// # Errors
    /// Where it cannot be read, is damaged, of another store, key or format version.
    pub fn load(store: &dyn Store, keys: &KeyRing, name: SegmentName) -> Result<Option<Self>> {
        let object = name.to_string();
        let bytes = store.read(&object)?;
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(HeaderError::Short(_) | HeaderError::Damaged) if header_is_torn(&bytes) => {
                return Ok(None);
            }
            Err(error) => return Err(Error::header(&object, error)),
        };
        if header.store != keys.store() {
            let (expected, found) = (keys.store(), header.store);
            return Err(Error::OtherStore { object, expected, found });
        }
        let SegmentName { generation, epoch, index, first_seq } = name;
        if (header.kind, header.generation, header.epoch, header.index, header.seq)
            != (ObjectKind::Segment, generation, epoch, index, first_seq)
        {
            let place = format!("'{object}'");
            return Err(Error::damaged(place, "header does not go with the object's name"));
        }
        if keys.get(header.key).is_none() {
            return Err(Error::UnknownKey { object, key: header.key });
        }
        Ok(Some(Self { name, header, bytes }))
    }

    /// Reads the segment's records from the first.
    ///
    /// # Errors
    /// [`Error::UnknownKey`].
    pub fn records(&self, keys: &KeyRing) -> Result<Records<'_>> {
        let key = keys.get(self.header.key).ok_or_else(|| Error::UnknownKey {
            object: self.name.to_string(),
            key: self.header.key,
        })?;
        Ok(Records { name: self.name, reader: SegmentReader::new(key, &self.header, &self.bytes) })
    }
}

/// True where a segment's writer died before the header was durable: nothing follows it.
fn header_is_torn(bytes: &[u8]) -> bool {
    bytes.iter().skip(HEADER_LEN).all(|&byte| byte == 0)
}

/// The records of one segment.
pub struct Records<'a> {
    name: SegmentName,
    reader: SegmentReader<'a>,
}

impl Records<'_> {
    /// Opens the next record's frame into `plain` and returns its seq; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the place.
    pub fn next(&mut self, plain: &mut Vec<u8>) -> Result<Option<u64>> {
        self.reader.next(plain).map_err(|error| self.damaged(error))
    }

    fn damaged(&self, error: FrameError) -> Error {
        let place = format!(
            "record seq {} in '{}' at byte {}",
            self.reader.next_seq(),
            self.name,
            self.reader.offset()
        );
        Error::damaged(place, error)
    }

    /// Chain hash after the last record.
    pub fn chain(&self) -> Chain {
        self.reader.chain()
    }

    /// Bytes up to and including the last record.
    pub fn offset(&self) -> u64 {
        self.reader.offset()
    }

    /// What lies behind the last record.
    pub fn tail(&self) -> Tail {
        self.reader.tail()
    }
}

/// Reads a record and says where one is that cannot be read.
///
/// # Errors
/// [`Error::UnknownKind`] or [`Error::Damaged`].
pub fn decode_record(name: SegmentName, seq: u64, plain: &[u8]) -> Result<Record<'_>> {
    Record::decode(plain).map_err(|error| {
        let place = format!("record seq {seq} in '{name}'");
        match error {
            RecordError::Kind(_) => Error::UnknownKind { place, what: error.to_string() },
            RecordError::Malformed => Error::damaged(place, error),
        }
    })
}

/// Proves that segments follow each other, and finds the one record that a writer which died or was
/// fenced may have left behind what the next writer bound to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Continuity {
    /// Seq and chain hash after the newest record, and after the one before it.
    last: Option<(u64, Chain)>,
    before: Option<(u64, Chain)>,
}

/// How a segment follows what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// Directly.
    Directly,
    /// The newest record was never acknowledged and is void.
    VoidingLast,
}

impl Continuity {
    /// Notes a record.
    pub fn record(&mut self, seq: u64, chain: Chain) {
        self.before = self.last.replace((seq, chain));
    }

    /// Seq and chain hash after the newest record.
    pub fn last(&self) -> Option<(u64, Chain)> {
        self.last
    }

    /// Checks the next segment's header.
    ///
    /// # Errors
    /// [`Error::Damaged`] where records are missing, or where two histories meet.
    pub fn segment(&mut self, name: SegmentName, header: &Header) -> Result<Follows> {
        let bound = (header.seq.saturating_sub(1), header.prev);
        let Some((seq, _)) = self.last else {
            self.last = Some(bound);
            return Ok(Follows::Directly);
        };
        if self.last == Some(bound) {
            return Ok(Follows::Directly);
        }
        if self.before == Some(bound) {
            self.last = self.before.take();
            return Ok(Follows::VoidingLast);
        }
        let what = if bound.0 > seq {
            format!("records seq {} to {} are missing before it", seq + 1, bound.0)
        } else {
            format!("it does not continue the log, which goes on to seq {seq}")
        };
        Err(Error::damaged(format!("'{name}'"), what))
    }
}

/// Reads every record of a generation, in order, each proved to follow the one before.
pub struct LogReader<'a> {
    store: &'a dyn Store,
    keys: &'a KeyRing,
}

/// What [`LogReader::read`] tells as it goes.
pub trait Visitor {
    /// A segment begins.
    ///
    /// # Errors
    /// What ends the reading.
    fn segment(&mut self, name: SegmentName) -> Result<()>;

    /// A record, known not to be void.
    ///
    /// # Errors
    /// What ends the reading.
    fn record(&mut self, name: SegmentName, seq: u64, record: Record<'_>) -> Result<()>;

    /// A record of `seq` was left by a writer that died or was fenced, and is void.
    fn void(&mut self, _name: SegmentName, _seq: u64) {}

    /// `bytes` of stored segments have been read.
    fn progress(&mut self, _bytes: u64) {}
}

impl<'a> LogReader<'a> {
    /// For the log in `store`.
    pub fn new(store: &'a dyn Store, keys: &'a KeyRing) -> Self {
        Self { store, keys }
    }

    /// Reads `segments`, which are consecutive ones of one generation, and returns the last position.
    ///
    /// Only the last segment may end in an interrupted write that nobody voids; anything altered or
    /// missing anywhere is an error.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place; or what `visitor` returned.
    pub fn read(
        &self,
        segments: &[SegmentEntry],
        visitor: &mut dyn Visitor,
    ) -> Result<Option<Position>> {
        let mut continuity = Continuity::default();
        let mut held = Held::default();
        let mut broken = None;
        let mut generation = 0;
        for entry in segments {
            let Some(segment) = LoadedSegment::load(self.store, self.keys, entry.name)? else {
                continue;
            };
            generation = entry.name.generation;
            match continuity.segment(entry.name, &segment.header) {
                Ok(Follows::Directly) => held.give(visitor)?,
                Ok(Follows::VoidingLast) => held.void(visitor),
                // What is missing was damaged: that is the better place to name.
                Err(error) => return Err(broken.unwrap_or(error)),
            }
            broken = None;
            visitor.segment(entry.name)?;
            let mut records = segment.records(self.keys)?;
            loop {
                match records.next(&mut held.incoming) {
                    Ok(Some(seq)) => {
                        continuity.record(seq, records.chain());
                        held.give(visitor)?;
                        held.take(entry.name, seq);
                    }
                    Ok(None) => break,
                    // Harmless only if the next segment continues from here all the same.
                    Err(error) => {
                        broken = Some(error);
                        break;
                    }
                }
            }
            visitor.progress(entry.size);
        }
        if let Some(error) = broken {
            return Err(error);
        }
        held.give(visitor)?;
        Ok(continuity.last().map(|(seq, chain)| Position { generation, seq, chain }))
    }
}

/// The newest record, held back until it is known not to be void.
#[derive(Default)]
struct Held {
    incoming: Vec<u8>,
    plain: Vec<u8>,
    at: Option<(SegmentName, u64)>,
}

impl Held {
    fn take(&mut self, name: SegmentName, seq: u64) {
        std::mem::swap(&mut self.incoming, &mut self.plain);
        self.at = Some((name, seq));
    }

    fn give(&mut self, visitor: &mut dyn Visitor) -> Result<()> {
        match self.at.take() {
            Some((name, seq)) => visitor.record(name, seq, decode_record(name, seq, &self.plain)?),
            None => Ok(()),
        }
    }

    fn void(&mut self, visitor: &mut dyn Visitor) {
        if let Some((name, seq)) = self.at.take() {
            visitor.void(name, seq);
        }
    }
}
