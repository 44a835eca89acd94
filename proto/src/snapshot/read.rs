//! Reading snapshots.

use std::io::Read;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use super::{CHUNK_BYTES, DELTA, END, End, META, Meta, PAGES, Summary};
use crate::error::{Error, Result};
use crate::layout::SnapshotName;
use crate::log::Mark;
use crate::seal::{
    Chain, FrameError, HEADER_LEN, Header, KeyRing, ObjectKind, Opener, PREFIX_LEN, frame_size,
};
use crate::segment::SegmentError;
use crate::store::{Store, StoreErrorKind};

/// Frames that wait to be unpacked, at most.
const FRAMES_AHEAD: usize = 4;
/// What a frame of pages unpacks to, at most.
const PLAIN_MAX: usize = 2 * CHUNK_BYTES + 65_536;

/// What [`read`] gives the pages to.
pub trait PageVisitor {
    /// The snapshot's meta data, before any page.
    ///
    /// # Errors
    /// What ends the reading.
    fn begin(&mut self, _meta: &Meta) -> Result<()> {
        Ok(())
    }

    /// Pages that follow each other in the database, and the number of the first, which counts from 1.
    ///
    /// # Errors
    /// What ends the reading.
    fn pages(&mut self, meta: &Meta, first: u32, pages: &[u8]) -> Result<()>;
}

/// Reads pages only to prove them.
#[derive(Debug, Default)]
pub struct Proof {
    /// Bytes of all pages.
    pub bytes: u64,
}

impl PageVisitor for Proof {
    fn pages(&mut self, _meta: &Meta, _first: u32, pages: &[u8]) -> Result<()> {
        self.bytes += pages.len() as u64;
        Ok(())
    }
}

/// A snapshot that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// Where in the log it was made.
    pub position: Mark,
    /// What it holds.
    pub meta: Meta,
    /// Chain hash after its last frame.
    pub chain: Chain,
}

/// Reads the snapshot `name` to its end, proving every byte and, where `chain` is known, that it is the one
/// that was meant; gives `pages` its meta data, then each page with its number.
///
/// # Errors
/// [`Error::Damaged`] with the place; what `pages` returned.
pub fn read(
    store: &dyn Store,
    keys: &KeyRing,
    name: &str,
    chain: Option<Chain>,
    pages: &mut dyn PageVisitor,
) -> Result<Whole> {
    let mut reader = SnapshotReader::open(store, keys, name)?;
    let position = reader.position;
    let meta = reader.meta()?;
    pages.begin(&meta)?;
    let damaged = |what: &str| Error::damaged(format!("'{name}'"), what);
    let (sender, receiver) = sync_channel(FRAMES_AHEAD);
    // One thread reads and opens the frames, this one unpacks them and gives their pages.
    thread::scope(|scope| {
        let opened = scope.spawn(move || open_frames(&mut reader, &sender));
        let mut unzstd = zstd::bulk::Decompressor::new().map_err(|_| SegmentError::Compression)?;
        let mut plain = Vec::with_capacity(PLAIN_MAX);
        let mut count = 0;
        for packed in receiver {
            plain.clear();
            unzstd
                .decompress_to_buffer(&packed[1..], &mut plain)
                .map_err(|_| damaged("pages do not unpack"))?;
            let given = each_page(&plain, &meta, pages)?;
            count += given.ok_or_else(|| damaged("malformed pages"))?;
        }
        // Whatever is wrong with a frame is behind those whose pages were given.
        let ended = opened.join().unwrap_or_else(|_| Err(damaged("could not be read")));
        let (end, chain_at_end, more) = ended?;
        let all = meta.parent.is_some() || count == u64::from(meta.page_count);
        let meant = chain.is_none_or(|chain| chain == chain_at_end);
        if end.pages != count || !all || !meant || more {
            return Err(damaged("is not the snapshot that was meant"));
        }
        Ok(Whole { position, meta, chain: chain_at_end })
    })
}

/// Sends the frames of pages, their kind included. Returns the end frame, the chain hash after it, and whether
/// another one follows.
fn open_frames(
    reader: &mut SnapshotReader,
    sender: &SyncSender<Vec<u8>>,
) -> Result<(End, Chain, bool)> {
    loop {
        match reader.next()? {
            Some((PAGES, _)) => {
                if sender.send(std::mem::take(&mut reader.plain)).is_err() {
                    // The other half has given up, and says why.
                    return Err(reader.damaged("was not read to its end"));
                }
            }
            Some((END, body)) => {
                let end: End =
                    serde_json::from_slice(body).map_err(|_| reader.damaged("malformed"))?;
                let chain = reader.chain();
                return Ok((end, chain, reader.next()?.is_some()));
            }
            Some((kind, _)) => return Err(reader.unknown(kind)),
            None => return Err(reader.damaged("ends before its end frame")),
        }
    }
}

/// Reads no more than a snapshot's header and first frame. What follows them is not proved.
///
/// # Errors
/// As [`read`].
pub fn summary(
    store: &dyn Store,
    keys: &KeyRing,
    name: SnapshotName,
    size: u64,
) -> Result<Summary> {
    let mut reader = SnapshotReader::open(store, keys, &name.to_string())?;
    Ok(Summary { name, position: reader.position, meta: reader.meta()?, size })
}

fn each_page(plain: &[u8], meta: &Meta, pages: &mut dyn PageVisitor) -> Result<Option<u64>> {
    let Some((count, rest)) = plain.split_first_chunk::<4>() else { return Ok(None) };
    let count = u32::from_le_bytes(*count) as usize;
    let page_size = meta.page_size as usize;
    if count.checked_mul(page_size + 4) != Some(rest.len()) {
        return Ok(None);
    }
    let (numbers, mut content) = rest.split_at(4 * count);
    let numbers: Vec<u32> = numbers
        .chunks_exact(4)
        .map(|number| u32::from_le_bytes([number[0], number[1], number[2], number[3]]))
        .collect();
    if numbers.iter().any(|&number| number == 0 || number > meta.page_count) {
        return Ok(None);
    }
    for run in numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
        let (these, others) = content.split_at(run.len() * page_size);
        pages.pages(meta, run[0], these)?;
        content = others;
    }
    Ok(Some(count as u64))
}

/// Reads the frames of a snapshot from a stream.
struct SnapshotReader {
    name: String,
    /// Where in the log it was made.
    position: Mark,
    stream: Box<dyn Read + Send>,
    opener: Opener,
    frame: Vec<u8>,
    plain: Vec<u8>,
}

impl SnapshotReader {
    fn open(store: &dyn Store, keys: &KeyRing, name: &str) -> Result<Self> {
        let mut stream = match store.read_stream(name) {
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound) => {
                return Err(Error::damaged(
                    format!("'{name}'"),
                    "is missing, and what comes after it is of no use without it",
                ));
            }
            stream => stream?,
        };
        let mut bytes = [0; HEADER_LEN];
        let damaged = |what: String| Error::damaged(format!("'{name}'"), what);
        stream.read_exact(&mut bytes).map_err(|error| damaged(error.to_string()))?;
        let header = Header::decode(&bytes).map_err(|error| Error::header(name, error))?;
        if header.store != keys.store() {
            return Err(Error::OtherStore {
                object: name.into(),
                expected: keys.store(),
                found: header.store,
            });
        }
        let Header { generation, epoch, seq, index, .. } = header;
        if header.kind != ObjectKind::Snapshot
            || (SnapshotName { generation, seq, epoch, index }).to_string() != name
        {
            return Err(damaged("header does not go with the object's name".into()));
        }
        let key = keys
            .get(header.key)
            .ok_or_else(|| Error::UnknownKey { object: name.into(), key: header.key })?;
        let opener = Opener::new(key, &header);
        let (name, position) = (name.into(), Mark { seq, chain: header.prev });
        Ok(Self { name, position, stream, opener, frame: Vec::new(), plain: Vec::new() })
    }

    fn damaged(&self, what: impl ToString) -> Error {
        Error::damaged(format!("'{}'", self.name), what)
    }

    fn unknown(&self, kind: u8) -> Error {
        let what = format!("frame kind {kind}, this program knows {META} to {DELTA}");
        Error::UnknownKind { place: format!("'{}'", self.name), what }
    }

    /// The first frame.
    fn meta(&mut self) -> Result<Meta> {
        let (kind, meta) = match self.next()? {
            Some((kind @ (META | DELTA), body)) => {
                (kind, serde_json::from_slice::<Meta>(body).ok())
            }
            Some((kind, _)) if !(META..=DELTA).contains(&kind) => return Err(self.unknown(kind)),
            _ => return Err(self.damaged("does not begin with its meta data")),
        };
        let meta = meta.ok_or_else(|| self.damaged("malformed"))?;
        if (kind == DELTA) != meta.parent.is_some() {
            return Err(self.damaged("a delta has a parent, and a base has none"));
        }
        if !meta.page_size.is_power_of_two() || !(512..=65_536).contains(&meta.page_size) {
            return Err(self.damaged("impossible page size"));
        }
        Ok(meta)
    }

    fn chain(&self) -> Chain {
        self.opener.chain()
    }

    /// Kind and body of the next frame; `None` at the end of the object.
    fn next(&mut self) -> Result<Option<(u8, &[u8])>> {
        let mut prefix = [0; PREFIX_LEN];
        match self.stream.read_exact(&mut prefix) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(|error| self.damaged(error))?,
        }
        let size = frame_size(&prefix).map_err(|error| self.damaged(error))?;
        let Some(size) = size.filter(|&size| size <= 4 * CHUNK_BYTES) else {
            return Err(self.damaged(FrameError::Damaged));
        };
        self.frame.clear();
        self.frame.extend_from_slice(&prefix);
        self.frame.resize(size, 0);
        self.stream
            .read_exact(&mut self.frame[PREFIX_LEN..])
            .map_err(|error| Error::damaged(format!("'{}'", self.name), error))?;
        self.opener
            .open(&self.frame, &mut self.plain)
            .map_err(|error| Error::damaged(format!("'{}'", self.name), error))?;
        Ok(self.plain.split_first().map(|(&kind, body)| (kind, body)))
    }
}
