//! Writing a snapshot from a database file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::{CHUNK_BYTES, DELTA, END, End, META, Meta, PAGES, Proof, read};
use crate::error::{Error, Result};
use crate::layout::SnapshotName;
use crate::log::Mark;
use crate::record::{Base, TimeMs};
use crate::seal::{HEADER_LEN, Header, KeyRing, ObjectKind, Sealer};
use crate::segment::SegmentError;
use crate::store::Store;
use crate::version::DataVersion;

/// Pages compress well at little cost; higher levels gain a few per cent for several times the time.
const ZSTD_LEVEL: i32 = 3;

/// What a snapshot is made of.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The database file, which nothing else writes meanwhile.
    pub path: &'a Path,
    /// When the database was so.
    pub time: TimeMs,
    /// lightningd's version of it.
    pub data_version: Option<DataVersion>,
    /// Which pages.
    pub pages: Pages<'a>,
    /// Written in place of the file's own.
    pub header: Option<HeaderFields>,
}

/// Which pages of a database file.
#[derive(Debug, Clone, Copy)]
pub enum Pages<'a> {
    /// All: a base.
    All,
    /// Those that changed: a delta.
    Changed {
        /// Since this snapshot.
        parent: &'a Base,
        /// Their numbers.
        numbers: &'a RoaringBitmap,
    },
}

/// The fields of a database file's first page that whoever keeps the file may use for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderFields {
    /// Journal mode: file format write and read version, 1 or 2 (WAL).
    pub journal: [u8; 2],
    /// `PRAGMA user_version`.
    pub user_version: [u8; 4],
    /// `PRAGMA application_id`.
    pub application_id: [u8; 4],
}

impl HeaderFields {
    /// Bytes of a database's first page that hold all of them.
    pub const BYTES: usize = 72;

    /// From the beginning of a database's first page. Source: sqlite.org/fileformat2.html, 1.3.
    pub fn of(page: &[u8; Self::BYTES]) -> Self {
        let four = |at: usize| [page[at], page[at + 1], page[at + 2], page[at + 3]];
        Self { journal: [page[18], page[19]], user_version: four(60), application_id: four(68) }
    }

    /// Puts them into a database's first page.
    fn put(self, page: &mut [u8]) {
        page[18..20].copy_from_slice(&self.journal);
        page[60..64].copy_from_slice(&self.user_version);
        page[68..72].copy_from_slice(&self.application_id);
    }
}

/// Writes the snapshot `name` of the log at `position`. Durable on return, and proved by reading it back. Returns
/// its bytes, too.
///
/// # Errors
/// Where the file is no SQLite database, or cannot be read, or the store fails.
pub fn write(
    store: &dyn Store,
    keys: &KeyRing,
    name: SnapshotName,
    position: Mark,
    content: &Content<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Base, u64)> {
    let path = content.path;
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
    let (kind, parent) = match content.pages {
        Pages::All => (META, None),
        Pages::Changed { parent, .. } => (DELTA, Some(parent.clone())),
    };
    let (time, data_version) = (content.time, content.data_version);
    let meta = Meta { time, page_size, page_count, data_version, parent };
    seal_json(&mut sealer, kind, &meta, &mut frame)?;
    object.write(&frame)?;
    let (mut numbers, total): (Box<dyn Iterator<Item = u32>>, u64) = match content.pages {
        Pages::All => (Box::new(1..=page_count), page_count.into()),
        Pages::Changed { numbers, .. } => {
            (Box::new(numbers.range(1..=page_count)), numbers.range_cardinality(1..=page_count))
        }
    };
    let mut chunk = Chunk::new(&file, path, page_size as usize, content.header)?;
    let mut written = 0;
    let mut stored = (HEADER_LEN + frame.len()) as u64;
    while chunk.read(&mut numbers)? {
        chunk.seal(&mut sealer, &mut frame)?;
        object.write(&frame)?;
        stored += frame.len() as u64;
        written += chunk.numbers.len() as u64;
        progress(written * u64::from(page_size), total * u64::from(page_size));
    }
    seal_json(&mut sealer, END, &End { pages: written }, &mut frame)?;
    object.write(&frame)?;
    stored += frame.len() as u64;
    object.commit()?;
    let base = Base { name, chain: sealer.chain() };
    read(store, keys, &base.name, Some(base.chain), &mut Proof::default())?;
    Ok((base, stored))
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
struct Chunk<'a> {
    file: &'a File,
    path: &'a Path,
    page_size: usize,
    header: Option<HeaderFields>,
    zstd: zstd::bulk::Compressor<'static>,
    numbers: Vec<u32>,
    plain: Vec<u8>,
}

impl<'a> Chunk<'a> {
    fn new(
        file: &'a File,
        path: &'a Path,
        page_size: usize,
        header: Option<HeaderFields>,
    ) -> Result<Self> {
        let zstd =
            zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|_| SegmentError::Compression)?;
        let (numbers, plain) = (Vec::new(), Vec::new());
        Ok(Self { file, path, page_size, header, zstd, numbers, plain })
    }

    /// Reads the next pages; false where there are none left.
    fn read(&mut self, numbers: &mut dyn Iterator<Item = u32>) -> Result<bool> {
        let most = (CHUNK_BYTES / self.page_size).max(1);
        self.numbers.clear();
        self.numbers.extend(numbers.take(most));
        self.plain.clear();
        self.plain.extend_from_slice(&(self.numbers.len() as u32).to_le_bytes());
        self.plain.extend(self.numbers.iter().flat_map(|number| number.to_le_bytes()));
        let start = self.plain.len();
        self.plain.resize(start + self.numbers.len() * self.page_size, 0);
        let mut rest = &mut self.plain[start..];
        for run in self.numbers.chunk_by(|a, b| a + 1 == *b) {
            let (pages, after) = rest.split_at_mut(run.len() * self.page_size);
            let at = u64::from(run[0] - 1) * self.page_size as u64;
            self.file.read_exact_at(pages, at).map_err(Error::file("read", self.path))?;
            if let (1, Some(header)) = (run[0], self.header) {
                header.put(pages);
            }
            rest = after;
        }
        Ok(!self.numbers.is_empty())
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
