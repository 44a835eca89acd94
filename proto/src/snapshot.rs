//! Snapshots: the pages of a database at a position, as one sealed object.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::SnapshotName;
use crate::log::Position;
use crate::record::{Base, TimeMs};
use crate::seal::{
    Chain, FrameError, HEADER_LEN, Header, KeyRing, ObjectKind, Opener, PREFIX_LEN, Sealer,
    frame_size,
};
use crate::segment::SegmentError;
use crate::store::{Store, StoreErrorKind};
use crate::version::DataVersion;

const META: u8 = 0x10;
const PAGES: u8 = 0x11;
const END: u8 = 0x12;

/// Bytes of pages that one frame holds, at most.
const CHUNK_BYTES: usize = 256 * 1024;
/// Pages compress well at little cost; higher levels gain a few per cent for several times the time.
const ZSTD_LEVEL: i32 = 3;

/// What a snapshot holds: its first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// When it was taken.
    pub time: TimeMs,
    /// Bytes of one page.
    pub page_size: u32,
    /// Pages of the database.
    pub page_count: u32,
    /// lightningd's version of the database; `None` where it has none.
    pub data_version: Option<DataVersion>,
}

#[derive(Serialize, Deserialize)]
struct End {
    pages: u64,
}

/// Writes the database file at `path`, which nothing else writes meanwhile, as the snapshot `name` of
/// `position`. Durable on return, and proved by reading it back.
///
/// # Errors
/// Where the file is no SQLite database, or cannot be read, or the store fails.
pub fn write(
    store: &dyn Store,
    keys: &KeyRing,
    name: SnapshotName,
    position: Position,
    (path, time, data_version): (&Path, TimeMs, Option<DataVersion>),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Base> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let (page_size, page_count) = geometry(&file, path)?;
    let key = keys.current()?;
    let header = Header {
        kind: ObjectKind::Snapshot,
        key: key.id(),
        store: keys.store(),
        generation: name.generation,
        epoch: name.epoch,
        seq: name.seq,
        index: name.index,
        prev: position.chain,
        nonce_prefix: Header::random_nonce_prefix()?,
    };
    let name = name.to_string();
    let mut object = store.create_stream(&name)?;
    let mut sealer = Sealer::new(key, &header);
    object.write(&header.encode())?;
    let mut frame = Vec::new();
    let meta = Meta { time, page_size, page_count, data_version };
    seal_json(&mut sealer, META, &meta, &mut frame)?;
    object.write(&frame)?;
    let per_chunk = (CHUNK_BYTES as u32 / page_size).max(1);
    let mut chunk = Chunk::new()?;
    for first in (1..=page_count).step_by(per_chunk as usize) {
        let count = per_chunk.min(page_count - first + 1);
        chunk.read(&file, path, page_size, first, count)?;
        chunk.seal(&mut sealer, &mut frame)?;
        object.write(&frame)?;
        progress(
            u64::from(first - 1 + count) * u64::from(page_size),
            file_size(page_size, page_count),
        );
    }
    seal_json(&mut sealer, END, &End { pages: u64::from(page_count) }, &mut frame)?;
    object.write(&frame)?;
    object.commit()?;
    let base = Base { name, chain: sealer.chain() };
    read(store, keys, &base, &mut Proof::default())?;
    Ok(base)
}

fn file_size(page_size: u32, page_count: u32) -> u64 {
    u64::from(page_size) * u64::from(page_count)
}

/// Page size and count from the header of a SQLite database file.
fn geometry(file: &File, path: &Path) -> Result<(u32, u32)> {
    let not_sqlite = || Error::Database {
        place: format!("'{}'", path.display()),
        what: "not a SQLite database of whole pages".into(),
    };
    let mut header = [0; 100];
    file.read_exact_at(&mut header, 0).map_err(|_| not_sqlite())?;
    let size = file.metadata().map_err(Error::file("look at", path))?.len();
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u32::from(size),
    };
    if !header.starts_with(b"SQLite format 3\0")
        || !page_size.is_power_of_two()
        || page_size < 512
        || size % u64::from(page_size) != 0
    {
        return Err(not_sqlite());
    }
    let page_count = u32::try_from(size / u64::from(page_size)).map_err(|_| not_sqlite())?;
    Ok((page_size, page_count))
}

fn seal_json(
    sealer: &mut Sealer,
    kind: u8,
    value: &impl Serialize,
    frame: &mut Vec<u8>,
) -> Result<()> {
    frame.clear();
    let start = Sealer::begin(frame);
    frame.push(kind);
    serde_json::to_writer(&mut *frame, value).map_err(|error| Error::damaged("snapshot", error))?;
    sealer.finish(frame, start).map_err(SegmentError::from)?;
    Ok(())
}

/// A run of pages on their way into a frame: their count, their numbers, then the pages.
struct Chunk {
    zstd: zstd::bulk::Compressor<'static>,
    plain: Vec<u8>,
}

impl Chunk {
    fn new() -> Result<Self> {
        let zstd =
            zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|_| SegmentError::Compression)?;
        Ok(Self { zstd, plain: Vec::new() })
    }

    fn read(
        &mut self,
        file: &File,
        path: &Path,
        page_size: u32,
        first: u32,
        count: u32,
    ) -> Result<()> {
        self.plain.clear();
        self.plain.extend_from_slice(&count.to_le_bytes());
        for page in first..first + count {
            self.plain.extend_from_slice(&page.to_le_bytes());
        }
        let start = self.plain.len();
        self.plain.resize(start + (count * page_size) as usize, 0);
        let at = u64::from(first - 1) * u64::from(page_size);
        file.read_exact_at(&mut self.plain[start..], at).map_err(Error::file("read", path))
    }

    fn seal(&mut self, sealer: &mut Sealer, frame: &mut Vec<u8>) -> Result<()> {
        frame.clear();
        let start = Sealer::begin(frame);
        frame.push(PAGES);
        let packed = self.zstd.compress(&self.plain).map_err(|_| SegmentError::Compression)?;
        frame.extend_from_slice(&packed);
        sealer.finish(frame, start).map_err(SegmentError::from)?;
        Ok(())
    }
}

/// What [`read`] gives the pages to.
pub trait PageVisitor {
    /// The snapshot's meta data, before any page.
    ///
    /// # Errors
    /// What ends the reading.
    fn begin(&mut self, _meta: &Meta) -> Result<()> {
        Ok(())
    }

    /// One page and its number, which counts from 1.
    ///
    /// # Errors
    /// What ends the reading.
    fn page(&mut self, meta: &Meta, number: u32, page: &[u8]) -> Result<()>;
}

/// Reads pages only to prove them.
#[derive(Debug, Default)]
pub struct Proof {
    /// Bytes of all pages.
    pub bytes: u64,
}

impl PageVisitor for Proof {
    fn page(&mut self, _meta: &Meta, _number: u32, page: &[u8]) -> Result<()> {
        self.bytes += page.len() as u64;
        Ok(())
    }
}

/// Reads a snapshot to its end, proving every byte and that it is the one that `base` binds; gives its
/// meta data, then each page with its number.
///
/// # Errors
/// [`Error::Damaged`] with the place; what the callbacks returned.
pub fn read(
    store: &dyn Store,
    keys: &KeyRing,
    base: &Base,
    pages: &mut dyn PageVisitor,
) -> Result<Meta> {
    let mut reader = SnapshotReader::open(store, keys, &base.name)?;
    let meta: Meta = match reader.next()? {
        Some((META, body)) => {
            serde_json::from_slice(body).map_err(|_| reader.damaged("malformed"))?
        }
        _ => return Err(reader.damaged("does not begin with its meta data")),
    };
    if !meta.page_size.is_power_of_two() || !(512..=65_536).contains(&meta.page_size) {
        return Err(reader.damaged("impossible page size"));
    }
    pages.begin(&meta)?;
    let mut count = 0;
    let mut unzstd = zstd::bulk::Decompressor::new().map_err(|_| SegmentError::Compression)?;
    loop {
        match reader.next()? {
            Some((PAGES, packed)) => {
                let plain = unzstd.decompress(packed, 2 * CHUNK_BYTES + 65_536);
                let Ok(plain) = plain else { return Err(reader.damaged("pages do not unpack")) };
                let Some(given) = each_page(&plain, &meta, pages)? else {
                    return Err(reader.damaged("malformed pages"));
                };
                count += given;
            }
            Some((END, body)) => {
                let end: End =
                    serde_json::from_slice(body).map_err(|_| reader.damaged("malformed"))?;
                let whole = end.pages == count && count == u64::from(meta.page_count);
                if !whole || reader.chain() != base.chain || reader.next()?.is_some() {
                    return Err(reader.damaged("is not the snapshot that the log names"));
                }
                return Ok(meta);
            }
            Some((kind, _)) => {
                let what = format!("frame kind {kind}, this program knows {META} to {END}");
                return Err(Error::UnknownKind { place: format!("'{}'", base.name), what });
            }
            None => return Err(reader.damaged("ends before its end frame")),
        }
    }
}

fn each_page(plain: &[u8], meta: &Meta, pages: &mut dyn PageVisitor) -> Result<Option<u64>> {
    let Some((count, rest)) = plain.split_first_chunk::<4>() else { return Ok(None) };
    let count = u32::from_le_bytes(*count) as usize;
    let page_size = meta.page_size as usize;
    if count.checked_mul(page_size + 4) != Some(rest.len()) {
        return Ok(None);
    }
    let (numbers, content) = rest.split_at(4 * count);
    for (number, page) in numbers.chunks_exact(4).zip(content.chunks_exact(page_size)) {
        let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        if number == 0 || number > meta.page_count {
            return Ok(None);
        }
        pages.page(meta, number, page)?;
    }
    Ok(Some(count as u64))
}

/// Reads the frames of a snapshot from a stream.
struct SnapshotReader {
    name: String,
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
                    "is missing, and the log begins with it",
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
        Ok(Self { name: name.into(), stream, opener, frame: Vec::new(), plain: Vec::new() })
    }

    fn damaged(&self, what: impl ToString) -> Error {
        Error::damaged(format!("'{}'", self.name), what)
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
