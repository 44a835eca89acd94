//! Writing a snapshot from a database file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::{CHUNK_BYTES, DELTA, END, End, FRAMES_AHEAD, META, Meta, PAGES, Proof, read};
use crate::error::{Error, Result};
use crate::layout::SnapshotName;
use crate::log::Mark;
use crate::record::{Base, TimeMs};
use crate::seal::{FRAME_OVERHEAD, HEADER_LEN, Header, KeyRing, ObjectKind, Sealer};
use crate::segment::SegmentError;
use crate::store::{NewObject, Store};
use crate::threads;
use crate::version::DataVersion;

/// Pages compress well at little cost; higher levels gain a few per cent for several times the time.
const ZSTD_LEVEL: i32 = 3;

/// Sealed frames that wait while the store makes durable what it has, at most.
const SEALED_AHEAD: usize = 16;

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
    let (numbers, total): (Box<dyn Iterator<Item = u32> + Send>, u64) = match content.pages {
        Pages::All => (Box::new(1..=page_count), page_count.into()),
        Pages::Changed { numbers, .. } => {
            (Box::new(numbers.range(1..=page_count)), numbers.range_cardinality(1..=page_count))
        }
    };
    let (page_size, mut written) = (u64::from(page_size), 0);
    let mut stored = (HEADER_LEN + frame.len()) as u64;
    let header = content.header;
    let reader = PageReader { file: &file, path, page_size: page_size as usize, header, numbers };
    let mut sealer = write_pages(&mut *object, sealer, reader, &mut |pages, bytes| {
        stored += bytes;
        written += pages;
        progress(written * page_size, total * page_size);
    })?;
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

/// One thread reads and packs the pages, one seals them, and this one writes, and tells how many pages and bytes it wrote.
fn write_pages(
    object: &mut dyn NewObject,
    sealer: Sealer,
    reader: PageReader<'_>,
    written: &mut dyn FnMut(u64, u64),
) -> Result<Sealer> {
    let (packed, to_seal) = sync_channel(FRAMES_AHEAD);
    let (sealed, to_write) = sync_channel(SEALED_AHEAD);
    thread::scope(|scope| {
        let packing = threads::start(scope, "packing", move || pack(reader, &packed))?;
        let sealing = threads::start(scope, "sealing", move || seal(sealer, &to_seal, &sealed))?;
        for Frame { bytes, pages } in to_write {
            object.write(&bytes)?;
            written(pages, bytes.len() as u64);
        }
        threads::join(packing)?;
        threads::join(sealing)
    })
}

/// A run of pages on its way into the object: at first packed, with room for what sealing puts before it, then sealed.
struct Frame {
    bytes: Vec<u8>,
    pages: u64,
}

/// Sends the pages packed, a run at a time.
fn pack(mut reader: PageReader<'_>, packed: &SyncSender<Frame>) -> Result<()> {
    let mut zstd =
        zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|_| SegmentError::Compression)?;
    let (mut plain, mut compressed) = (Vec::new(), Vec::new());
    loop {
        let pages = reader.read(&mut plain)?;
        if pages == 0 {
            return Ok(());
        }
        compressed.clear();
        compressed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        zstd.compress_to_buffer(&plain, &mut compressed).map_err(|_| SegmentError::Compression)?;
        let mut bytes = Vec::with_capacity(FRAME_OVERHEAD + 1 + compressed.len());
        Sealer::begin(&mut bytes);
        bytes.push(PAGES);
        bytes.extend_from_slice(&compressed);
        if packed.send(Frame { bytes, pages }).is_err() {
            // Whoever writes has given up, and says why.
            return Ok(());
        }
    }
}

/// Sends each frame sealed, and gives the sealer back behind the last.
fn seal(
    mut sealer: Sealer,
    packed: &Receiver<Frame>,
    sealed: &SyncSender<Frame>,
) -> Result<Sealer> {
    for mut frame in packed {
        sealer.finish(&mut frame.bytes, 0).map_err(SegmentError::from)?;
        if sealed.send(frame).is_err() {
            // Whoever writes has given up, and says why.
            break;
        }
    }
    Ok(sealer)
}

/// The pages of a database file, as many at a time as a frame holds.
struct PageReader<'a> {
    file: &'a File,
    path: &'a Path,
    page_size: usize,
    /// Put into the first page of the database.
    header: Option<HeaderFields>,
    numbers: Box<dyn Iterator<Item = u32> + Send + 'a>,
}

impl PageReader<'_> {
    /// Puts the next into `plain`: their count, their numbers, then the pages. Gives their count; 0 where there are none
    /// left.
    fn read(&mut self, plain: &mut Vec<u8>) -> Result<u64> {
        let most = (CHUNK_BYTES / self.page_size).max(1);
        let numbers: Vec<u32> = self.numbers.by_ref().take(most).collect();
        plain.clear();
        plain.extend_from_slice(&(numbers.len() as u32).to_le_bytes());
        plain.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let start = plain.len();
        plain.resize(start + numbers.len() * self.page_size, 0);
        let mut rest = &mut plain[start..];
        for run in numbers.chunk_by(|a, b| a + 1 == *b) {
            let (pages, after) = rest.split_at_mut(run.len() * self.page_size);
            let at = u64::from(run[0] - 1) * self.page_size as u64;
            self.file.read_exact_at(pages, at).map_err(Error::file("read", self.path))?;
            if let (1, Some(header)) = (run[0], self.header) {
                header.put(pages);
            }
            rest = after;
        }
        Ok(numbers.len() as u64)
    }
}
