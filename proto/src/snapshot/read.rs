//! Reading snapshots.

use std::io::Read;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::{CHUNK_BYTES, DELTA, END, End, FRAMES_AHEAD, META, Meta, PAGES, Summary};
use crate::error::{Error, Result};
use crate::layout::SnapshotName;
use crate::log::Mark;
use crate::seal::{
    Chain, FrameError, HEADER_LEN, Header, KeyRing, ObjectKind, Opener, PREFIX_LEN, SealedFrame,
    frame_size,
};
use crate::segment::SegmentError;
use crate::store::{Store, StoreErrorKind};
use crate::threads;

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
    let (taken, frames) = sync_channel(FRAMES_AHEAD);
    let (opened, packed) = sync_channel(FRAMES_AHEAD);
    // One thread reads the frames, one opens them, and this one unpacks them and gives their pages.
    thread::scope(|scope| {
        let reading = threads::start(scope, "frames", move || take_frames(reader, &taken))?;
        let opening =
            threads::start(scope, "opening", move || open_frames(name, &frames, &opened))?;
        let mut unzstd = zstd::bulk::Decompressor::new().map_err(|_| SegmentError::Compression)?;
        let mut plain = Vec::with_capacity(PLAIN_MAX);
        let mut count = 0;
        for packed in packed {
            plain.clear();
            unzstd
                .decompress_to_buffer(&packed[PREFIX_LEN + 1..], &mut plain)
                .map_err(|_| damaged("pages do not unpack"))?;
            let given = each_page(&plain, &meta, pages)?;
            count += given.ok_or_else(|| damaged("malformed pages"))?;
        }
        // Whatever is wrong with a frame is behind those whose pages were given.
        let ended = threads::join(opening)?;
        let chain_at_end = threads::join(reading)?;
        let Some((end, more)) = ended else { return Err(damaged("ends before its end frame")) };
        let all = meta.parent.is_some() || count == u64::from(meta.page_count);
        let meant = chain.is_none_or(|chain| chain == chain_at_end);
        if end.pages != count || !all || !meant || more {
            return Err(damaged("is not the snapshot that was meant"));
        }
        Ok(Whole { position, meta, chain: chain_at_end })
    })
}

/// Sends each frame, and returns the chain hash after the last.
fn take_frames(mut reader: SnapshotReader, taken: &SyncSender<SealedFrame>) -> Result<Chain> {
    while let Some(frame) = reader.take()? {
        if taken.send(frame).is_err() {
            // Whoever opens them has given up, and says why.
            break;
        }
    }
    Ok(reader.opener.chain())
}

/// Sends what the frames of pages hold. Returns the end frame, and whether another one follows; `None` where there is
/// none.
fn open_frames(
    name: &str,
    frames: &Receiver<SealedFrame>,
    opened: &SyncSender<Vec<u8>>,
) -> Result<Option<(End, bool)>> {
    let damaged = |what: String| Error::damaged(format!("'{name}'"), what);
    for frame in frames {
        let plain = frame.open().map_err(|error| damaged(error.to_string()))?;
        match plain.get(PREFIX_LEN) {
            Some(&PAGES) => {
                if opened.send(plain).is_err() {
                    // Whoever unpacks them has given up, and says why.
                    return Ok(None);
                }
            }
            Some(&END) => {
                let end = serde_json::from_slice(&plain[PREFIX_LEN + 1..]);
                let end = end.map_err(|_| damaged("malformed".into()))?;
                return Ok(Some((end, frames.recv().is_ok())));
            }
            Some(&kind) => return Err(unknown(name, kind)),
            None => return Err(damaged("a frame that holds nothing".into())),
        }
    }
    Ok(None)
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
        Ok(Self { name, position, stream, opener })
    }

    fn damaged(&self, what: impl ToString) -> Error {
        Error::damaged(format!("'{}'", self.name), what)
    }

    /// The first frame.
    fn meta(&mut self) -> Result<Meta> {
        let plain = self.take()?.map(SealedFrame::open).transpose();
        let plain = plain.map_err(|error| self.damaged(error))?.unwrap_or_default();
        let (kind, meta) = match plain.get(PREFIX_LEN..).and_then(<[u8]>::split_first) {
            Some((kind @ &(META | DELTA), body)) => {
                (*kind, serde_json::from_slice::<Meta>(body).ok())
            }
            Some((kind, _)) if !(META..=DELTA).contains(kind) => {
                return Err(unknown(&self.name, *kind));
            }
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

    /// The next frame; `None` at the end of the object.
    fn take(&mut self) -> Result<Option<SealedFrame>> {
        let mut prefix = [0; PREFIX_LEN];
        match self.stream.read_exact(&mut prefix) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(|error| self.damaged(error))?,
        }
        let size = frame_size(&prefix).map_err(|error| self.damaged(error))?;
        let Some(size) = size.filter(|&size| size <= 4 * CHUNK_BYTES) else {
            return Err(self.damaged(FrameError::Damaged));
        };
        let mut frame = Vec::with_capacity(size);
        frame.extend_from_slice(&prefix);
        let rest = (&mut self.stream).take((size - PREFIX_LEN) as u64).read_to_end(&mut frame);
        if rest.map_err(|error| self.damaged(error))? < size - PREFIX_LEN {
            return Err(self.damaged(FrameError::Short));
        }
        self.opener.take(frame).map(Some).map_err(|error| self.damaged(error))
    }
}

fn unknown(name: &str, kind: u8) -> Error {
    let what = format!("frame kind {kind}, this program knows {META} to {DELTA}");
    Error::UnknownKind { place: format!("'{name}'"), what }
}
