//! Reading a log: which segments there are, and their records in order, each proved to follow the last.

mod beginnings;
mod continuity;
mod end;

pub use self::beginnings::Beginnings;
pub use self::continuity::{After, first_needed};
use self::continuity::{Continuity, Follows};
pub use self::end::LogEnd;
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

impl Position {
    /// Without the history.
    pub fn mark(&self) -> Mark {
        Mark { seq: self.seq, chain: self.chain }
    }
}

/// A record and what it proves: the chain hash after it covers all that came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
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
    let beginnings = Beginnings::read(store)?;
    let entries = store.list(&layout::log_folder(generation))?;
    let mut segments: Vec<_> = entries
        .iter()
        .filter_map(|entry| {
            let name = SegmentName::parse(generation, &entry.name)?;
            Some(SegmentEntry { name, size: entry.size })
        })
        .filter(|entry| !beginnings.leaves_out(&entry.name))
        .collect();
    segments.sort_by_key(|segment| segment.name);
    Ok(segments)
}

/// All segments in the order in which they were written: by epoch, then by the writer's own count.
///
/// The newest history is that of the newest epoch that wrote anything, not that of the highest
/// generation number: a writer that was fenced while it began a generation must not hide what its
/// successor acknowledged.
///
/// # Errors
/// Where the store cannot be listed.
pub fn all_segments(store: &dyn Store) -> Result<Vec<SegmentEntry>> {
    Ok(all_with_leftovers(store)?.0)
}

/// The same; and the segments that retention has removed, and that are there all the same.
///
/// # Errors
/// Where the store cannot be listed.
pub fn all_with_leftovers(store: &dyn Store) -> Result<(Vec<SegmentEntry>, Vec<SegmentEntry>)> {
    let beginnings = Beginnings::read(store)?;
    let entries = store.list_all(layout::LOG)?;
    let segments = entries.iter().filter_map(|entry| {
        let name = SegmentName::parse_below(&entry.name)?;
        Some(SegmentEntry { name, size: entry.size })
    });
    let mut all: Vec<_> = segments.collect();
    all.sort_by_key(|entry| (entry.name.epoch, entry.name.index, entry.name.generation));
    Ok(all.into_iter().partition(|entry| !beginnings.leaves_out(&entry.name)))
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

impl LoadedSegment {
    /// All of it up to its last whole record, and how many records that are; each is opened.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::UnknownKey`].
    pub fn whole(&self, keys: &KeyRing) -> Result<(&[u8], u64)> {
        let mut records = self.records(keys)?;
        let (mut plain, mut count) = (Vec::new(), 0);
        while records.next(&mut plain)?.is_some() {
            count += 1;
        }
        let end = usize::try_from(records.offset()).unwrap_or(usize::MAX);
        Ok((self.bytes.get(..end).unwrap_or(&self.bytes), count))
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
    fn record(&mut self, name: SegmentName, at: Mark, record: Record<'_>) -> Result<()>;

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
        self.read_from(None, segments, visitor)
    }

    /// As [`read`](Self::read), and proves that the log leads on from `after`, or through it.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::Damaged`] where it is another log, or ends before `after`.
    pub fn read_from(
        &self,
        after: Option<After>,
        segments: &[SegmentEntry],
        visitor: &mut dyn Visitor,
    ) -> Result<Option<Position>> {
        let (reading, generation) = self.read_settled(after, segments, visitor)?;
        let last = reading.finish(visitor)?;
        let seq = last.map_or(0, |mark| mark.seq);
        if let Some(after) = after.filter(|after| seq < after.seq) {
            let what = format!("ends at seq {seq}, its snapshot is of seq {}", after.seq);
            return Err(Error::damaged(format!("'{}'", self.store.label()), what));
        }
        Ok(last.map(|Mark { seq, chain }| Position { generation, seq, chain }))
    }

    /// As [`read`](Self::read), with the records that a segment which is written next may be bound to.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_to_go_on(
        &self,
        segments: &[SegmentEntry],
        visitor: &mut dyn Visitor,
    ) -> Result<(Option<Position>, Vec<Mark>)> {
        let (reading, generation) = self.read_settled(None, segments, visitor)?;
        let bindable = reading.bindable();
        let last = reading.finish(visitor)?;
        Ok((last.map(|Mark { seq, chain }| Position { generation, seq, chain }), bindable))
    }

    /// As [`read_from`](Self::read_from), without the newest record: whoever writes may not have
    /// acknowledged it, and the next writer may void it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_acknowledged(
        &self,
        after: Option<After>,
        segments: &[SegmentEntry],
        visitor: &mut dyn Visitor,
    ) -> Result<()> {
        self.read_settled(after, segments, visitor).map(drop)
    }

    fn read_settled(
        &self,
        after: Option<After>,
        segments: &[SegmentEntry],
        visitor: &mut dyn Visitor,
    ) -> Result<(Reading, u32)> {
        let mut reading = Reading::default();
        reading.continuity.after = after;
        let mut generation = 0;
        for entry in segments {
            generation = entry.name.generation;
            if let Some(segment) = LoadedSegment::load(self.store, self.keys, entry.name)? {
                reading.segment(&segment, self.keys, visitor)?;
            }
            visitor.progress(entry.size);
        }
        Ok((reading, generation))
    }
}

/// A log that is being read, up to the newest record, which is held back until it is known not to be void.
#[derive(Default)]
struct Reading {
    continuity: Continuity,
    held: Option<Held>,
    /// The newest segments, as long as they have one record only: if the next one follows what was read before one of
    /// *these*, its writer had not seen what came after, and that is void whole.
    single: Vec<Single>,
    /// The end of the newest segment is damaged: harmless only if the next continues from there all the same.
    broken: Option<Error>,
}

/// A segment of which one record was read so far.
struct Single {
    /// What was read before it.
    before: Continuity,
    /// The newest record of that, and whether the segment makes it void.
    held: Option<Held>,
    voids: bool,
}

/// A record that was not given to the visitor yet.
struct Held {
    name: SegmentName,
    first: bool,
    at: Mark,
    plain: Vec<u8>,
}

impl Held {
    fn give(self, visitor: &mut dyn Visitor) -> Result<()> {
        if self.first {
            visitor.segment(self.name)?;
        }
        visitor.record(self.name, self.at, decode_record(self.name, self.at.seq, &self.plain)?)
    }
}

impl Reading {
    fn segment(
        &mut self,
        segment: &LoadedSegment,
        keys: &KeyRing,
        visitor: &mut dyn Visitor,
    ) -> Result<()> {
        let mut records = segment.records(keys)?;
        let mut plain = Vec::new();
        let mut first = true;
        loop {
            match records.next(&mut plain) {
                Ok(Some(seq)) => {
                    if first {
                        // Only now is the header proved: until here it is anybody's.
                        self.follow(segment, visitor)?;
                    } else {
                        self.settle(visitor)?;
                        self.give_held(visitor)?;
                    }
                    let at = Mark { seq, chain: records.chain() };
                    self.continuity.record(at);
                    let plain = std::mem::take(&mut plain);
                    self.held = Some(Held { name: segment.name, first, at, plain });
                    first = false;
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.broken = Some(error);
                    return Ok(());
                }
            }
        }
    }

    /// A segment begins behind what was read, or behind what was read before one that is void then.
    fn follow(&mut self, segment: &LoadedSegment, visitor: &mut dyn Visitor) -> Result<()> {
        let (name, header) = (segment.name, &segment.header);
        let mut before = self.continuity;
        let mut followed = self.continuity.segment(name, header);
        while let Err(error) = followed {
            let Some(single) = self.single.pop() else {
                // What is missing was damaged: that is the better place to name.
                return Err(self.broken.take().unwrap_or(error));
            };
            if let Some(void) = std::mem::replace(&mut self.held, single.held) {
                visitor.void(void.name, void.at.seq);
            }
            (self.continuity, before) = (single.before, single.before);
            followed = self.continuity.segment(name, header).map_err(|_| error);
        }
        self.broken = None;
        let voids = matches!(followed, Ok(Follows::VoidingLast));
        // The first one of all is what the others are compared with.
        if before.last.is_some() {
            self.single.push(Single { before, held: self.held.take(), voids });
        }
        Ok(())
    }

    /// The newest segment's first record was acknowledged: what was held back is given, or void.
    fn settle(&mut self, visitor: &mut dyn Visitor) -> Result<()> {
        for single in std::mem::take(&mut self.single) {
            match single.held {
                Some(void) if single.voids => visitor.void(void.name, void.at.seq),
                held => self.give(held, visitor)?,
            }
        }
        Ok(())
    }

    /// The records that a segment which is written next may be bound to.
    fn bindable(&self) -> Vec<Mark> {
        let before = self.single.iter().map(|single| &single.before);
        before.chain([&self.continuity]).flat_map(Continuity::bindable).collect()
    }

    fn give_held(&mut self, visitor: &mut dyn Visitor) -> Result<()> {
        let held = self.held.take();
        self.give(held, visitor)
    }

    fn give(&self, held: Option<Held>, visitor: &mut dyn Visitor) -> Result<()> {
        let Some(held) = held else { return Ok(()) };
        if let Some(after) = self.continuity.after {
            after.passes(held.name, held.at)?;
        }
        held.give(visitor)
    }

    fn finish(mut self, visitor: &mut dyn Visitor) -> Result<Option<Mark>> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        self.settle(visitor)?;
        self.give_held(visitor)?;
        Ok(self.continuity.last)
    }
}
