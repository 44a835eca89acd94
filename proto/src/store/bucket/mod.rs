//! A prefix of a bucket as a store: S3, Google Cloud Storage, Azure Blob, WebDAV.
//!
//! Such a place cannot append. So a segment that is being written is kept as *parts*, one object a record, and
//! put together once it is closed (docs/format.md, §3.1). Above this module there are only segments: a listing
//! shows those in parts like any other, and reading one joins them. Which segments the parts make up is said in
//! [`super::parts`].
//!
//! | module | idea |
//! |---|---|
//! | [`connect`] | from a URL and its options to a client |
//! | [`client`] | requests, as this store makes them: tried again, compared, explained |
//! | [`append`] | a segment that is being written |
//! | [`merge`] | one that is closed, put together |
//! | [`upload`] | an object of unknown size |
//! | [`probe`] | what the place really does about two creates of one name |
//! | [`remote_error`] | what a server's answer means to the person who reads it |
//! | [`runtime`] | from the blocking world to the asynchronous one, and back |

mod append;
mod client;
mod connect;
mod merge;
mod probe;
mod remote_error;
mod runtime;
mod upload;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use url::Url;

use self::append::PartAppend;
use self::client::Client;
use self::connect::Connection;
use self::runtime::{Lane, wait};
use self::upload::Upload;
use super::parts::{Fault, Owner, Part, Partial, Parts, Tail};
use super::{Append, Entry, Fencing, NewObject, Options, Store, StoreError, StoreErrorKind};
use crate::layout::{self, SegmentName};
use crate::seal::{HEADER_LEN, Header};
use crate::threads;

/// Segment headers that are remembered, by the number of a part: listings look for them again and again.
const HEADERS_KEPT: usize = 1 << 16;
/// Times that parts are listed again where they changed before their headers were read.
const TAIL_TRIES: usize = 20;

/// Makes one more connection to the same place.
type Connect = Box<dyn Fn() -> Result<Client, StoreError> + Send + Sync>;

/// A prefix of a bucket that keeps objects.
pub struct BucketStore {
    client: Client,
    /// For the lane.
    connect: Connect,
    /// What appends go through, once there are any.
    lane: OnceLock<Arc<Lane>>,
    /// Whether creates are exclusive; probed once, when it matters.
    exclusive: OnceLock<bool>,
    headers: Mutex<HashMap<u64, SegmentName>>,
    /// The epoch of the newest segment that was begun here; its first part stays.
    epoch: AtomicU64,
}

impl BucketStore {
    /// Connects to the place at `url`, whether there is a store or not. An append is tried again for `patience`.
    ///
    /// # Errors
    /// Where URL or options do not make sense. Nothing is asked of the server yet.
    pub fn connect(url: &Url, options: &Options, patience: Duration) -> Result<Self, StoreError> {
        let (url, options) = (url.clone(), options.clone());
        let connect = move || Ok(Client::new(connect::connect(&url, &options)?, patience));
        Ok(Self::of(connect()?, Box::new(connect)))
    }

    /// On any bucket; messages name it by `label`. Nobody waits between two tries, and all is done before a method
    /// returns: for simulations.
    pub fn on(label: String, store: Box<dyn ObjectStore>) -> Self {
        let connection = Connection { label, store, prefix: Path::default(), flat: true };
        let mut client = Client::new(connection, Duration::ZERO);
        client.at_once = true;
        let lane = client.clone();
        Self::of(client, Box::new(move || Ok(lane.clone())))
    }

    fn of(client: Client, connect: Connect) -> Self {
        Self {
            client,
            connect,
            lane: OnceLock::new(),
            exclusive: OnceLock::new(),
            headers: Mutex::default(),
            epoch: AtomicU64::new(0),
        }
    }

    /// True where two creates of one name are known to end well for one of them only.
    fn exclusive(&self) -> Result<bool, StoreError> {
        if let Some(exclusive) = self.exclusive.get() {
            return Ok(*exclusive);
        }
        let client = self.client.clone();
        let found = wait(&self.client, "probe", "", async move { probe::probe(&client).await })?;
        Ok(*self.exclusive.get_or_init(|| found))
    }

    fn lane(&self) -> Result<Arc<Lane>, StoreError> {
        if let Some(lane) = self.lane.get() {
            return Ok(lane.clone());
        }
        let lane = Arc::new(Lane::new((self.connect)()?)?);
        Ok(self.lane.get_or_init(|| lane).clone())
    }

    /// The parts that are there, by segment, and what is below `log/`.
    ///
    /// Parts are listed first: a segment that is put together meanwhile is then seen in both, never in neither.
    fn tail(&self) -> Result<(Tail, Vec<Entry>), StoreError> {
        let Listed { tail, .. } = self.tail_from(0, usize::MAX)?;
        Ok((tail, self.list_tree(layout::LOG)?))
    }

    /// The parts from record `from` on, by segment: all of them, or `most`.
    fn tail_from(&self, from: u64, most: usize) -> Result<Listed, StoreError> {
        let mut before = None;
        for _ in 0..TAIL_TRIES {
            let (parts, all) = self.list_parts(from, most)?;
            self.learn_headers(&parts);
            let last_seq = parts.last_seq();
            let grouped = Tail::group(parts, |seq, owner| self.segment_of(seq, owner));
            let error = match grouped {
                Ok(tail) => return Ok(Listed { tail, last_seq, all }),
                Err(Fault::Store(error)) => error,
                Err(Fault::Damaged(name, what)) => {
                    self.client.error("list", &name.to_string(), StoreErrorKind::Damaged(what))
                }
            };
            let said = error.to_string();
            if before.as_ref() == Some(&said) {
                return Err(error);
            }
            // A part was removed before its header was read: its segment is put together.
            before = Some(said);
        }
        let message = "its parts change faster than they are listed".to_owned();
        let hint = "try again once less is going on.";
        Err(self.client.error("list", layout::TAIL, StoreErrorKind::Remote { message, hint }))
    }

    fn list_parts(&self, from: u64, most: usize) -> Result<(Parts, bool), StoreError> {
        let client = self.client.clone();
        wait(&self.client, "list", layout::TAIL, async move { client.list_tail(from, most).await })
    }

    /// The segment that a part belongs to, by its header.
    fn segment_of(&self, seq: u64, owner: Owner) -> Result<SegmentName, StoreError> {
        let known = |headers: &HashMap<u64, SegmentName>| headers.get(&seq).copied();
        let lock = || self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = known(&lock()).filter(|_| owner.is_none()) {
            return Ok(name);
        }
        let object = layout::part(seq, owner);
        let client = self.client.clone();
        let path = object.clone();
        let bytes = wait(&self.client, "read", &object, async move {
            client.read_range(&path, 0..HEADER_LEN as u64).await
        })?;
        let header = Header::decode(&bytes).map_err(|error| {
            self.client.error("read", &object, StoreErrorKind::Damaged(error.to_string()))
        })?;
        let name = SegmentName::of(&header);
        if owner.is_none() {
            let mut headers = lock();
            if headers.len() >= HEADERS_KEPT {
                headers.clear();
            }
            headers.insert(seq, name);
        }
        Ok(name)
    }

    /// The segments that are in parts.
    fn partials(&self) -> Result<Vec<Partial>, StoreError> {
        let (tail, log) = self.tail()?;
        Ok(tail.unmerged(&names(&log)))
    }

    /// Whatever is there of the parts of a segment. No others are listed than those near it.
    fn partial(&self, name: SegmentName) -> Result<Option<Partial>, StoreError> {
        let mut most = 2 * append::PARTS_MAX;
        loop {
            let Listed { tail, last_seq, all } = self.tail_from(name.first_seq, most)?;
            let found = tail.segments.into_iter().find(|partial| partial.name == name);
            // A part that is two further is another segment's, and so are all behind it.
            let its_last = found.as_ref().and_then(|partial| partial.parts.last());
            let ends = its_last.is_none_or(|its| last_seq > Some(its.seq + 1));
            if all || ends {
                return Ok(found);
            }
            most *= 2;
        }
    }

    /// Reads the headers that many segments need, several at once.
    fn learn_headers(&self, parts: &Parts) {
        let parts = parts.shared();
        if parts.len() > 2 * append::PARTS_MAX {
            thread::scope(|scope| {
                for chunk in parts.chunks(parts.len().div_ceil(client::PARALLEL)) {
                    // Best effort: what is not known then is asked for when it is needed.
                    let _ = threads::start(scope, "headers", || {
                        self.learn_headers_of(chunk);
                        Ok(())
                    });
                }
            });
        }
    }

    fn learn_headers_of(&self, mut parts: &[Part]) {
        while let Some((last, before)) = parts.split_last() {
            parts = before;
            if last.size > 0 {
                // What cannot be read now is asked for again.
                let Ok(name) = self.segment_of(last.seq, None) else { return };
                parts = &parts[..parts.partition_point(|part| part.seq < name.first_seq)];
            }
        }
    }

    /// All objects below `folder`, segments in parts not among them.
    fn list_tree(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let (client, path) = (self.client.clone(), folder.to_owned());
        wait(&self.client, "list", folder, async move { client.list_tree(&path).await })
    }
}

/// Segments in parts.
struct Listed {
    tail: Tail,
    /// The highest record that was listed.
    last_seq: Option<u64>,
    /// Nothing is behind them.
    all: bool,
}

/// The segments among what is below `log/`.
fn names(log: &[Entry]) -> BTreeSet<SegmentName> {
    log.iter().filter_map(|entry| SegmentName::parse_below(&entry.name)).collect()
}

impl Store for BucketStore {
    fn label(&self) -> &str {
        self.client.label()
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(if self.exclusive()? { Fencing::Real } else { Fencing::Advisory })
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let exclusive = self.exclusive()?;
        let (client, path, bytes) = (self.client.clone(), name.to_owned(), bytes.to_vec());
        wait(&self.client, "create", name, async move {
            client.create(&path, bytes.into(), exclusive).await
        })
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        Ok(Box::new(Upload::new(self.client.clone(), name, self.exclusive()?)))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        Ok(Box::new(self.part_append(self.segment_name("create", name)?, header)?))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (client, path, bytes) = (self.client.clone(), name.to_owned(), bytes.to_vec());
        wait(
            &self.client,
            "replace",
            name,
            async move { client.replace(&path, bytes.into()).await },
        )
    }

    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        let segment = self.segment_name("resume", name)?;
        if self.exclusive()? {
            self.make_room(segment)?;
        }
        let mut append = self.part_append(segment, header)?;
        // What is there already is read back, compared, and taken for written.
        records.iter().try_for_each(|record| append.append(record))?;
        Ok(Box::new(append))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let (client, path) = (self.client.clone(), name.to_owned());
        let whole = wait(&self.client, "read", name, async move { client.read(&path).await });
        match (whole, SegmentName::parse_object(name)) {
            (Err(StoreError { kind: StoreErrorKind::NotFound, .. }), Some(segment)) => {
                self.read_parts(name, segment)
            }
            (whole, _) => whole.map(Into::into),
        }
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        let (client, path) = (self.client.clone(), name.to_owned());
        let pieces =
            wait(&self.client, "read", name, async move { client.read_stream(&path).await });
        match (pieces, SegmentName::parse_object(name)) {
            (Err(StoreError { kind: StoreErrorKind::NotFound, .. }), Some(segment)) => {
                Ok(Box::new(io::Cursor::new(self.read_parts(name, segment)?)))
            }
            (pieces, _) => Ok(Box::new(runtime::Reader::new(pieces?))),
        }
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        let (client, path) = (self.client.clone(), name.to_owned());
        let whole = wait(&self.client, "look up", name, async move { client.exists(&path).await })?;
        match SegmentName::parse_object(name) {
            Some(segment) if !whole => Ok(self.partial(segment)?.is_some()),
            _ => Ok(whole),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let log = folder == layout::LOG || folder.starts_with("log/");
        // Before the folder, for the reason that parts are listed first.
        let partials = if log { self.partials()? } else { Vec::new() };
        let (client, path) = (self.client.clone(), folder.to_owned());
        let entries = wait(&self.client, "list", folder, async move { client.list(&path).await })?;
        Ok(if log { Partial::show(&partials, folder, entries) } else { entries })
    }

    fn list_all(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let mut entries;
        if folder == layout::LOG {
            let (tail, log) = self.tail()?;
            let partials = tail.unmerged(&names(&log));
            entries = log;
            for partial in partials {
                let name = partial.name.to_string();
                let name = name.strip_prefix("log/").unwrap_or(&name).to_owned();
                entries.push(Entry { name, size: partial.size(), folder: false });
            }
        } else {
            entries = self.list_tree(folder)?;
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// What a server has answered for is as durable as it will ever be.
    fn sync(&self, _name: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        // Also where it is put together already: a merge may have been interrupted before it removed them.
        let parts = match SegmentName::parse_object(name) {
            Some(segment) => self.partial(segment)?,
            None => None,
        };
        let exclusive = parts.is_some() && self.exclusive()?;
        let (client, path) = (self.client.clone(), name.to_owned());
        wait(&self.client, "remove", name, async move {
            if let Some(partial) = parts {
                // One object goes whole or not at all. Parts without their beginning would be nobody's.
                match merge::merge(&client, &partial, exclusive, true).await {
                    // They came back, late, after the others had been removed.
                    Err(StoreErrorKind::Damaged(_)) => client.remove_parts(&partial, false).await?,
                    merged => merged?,
                }
            }
            client.remove(&path).await
        })
    }

    fn tidy(&self) -> Result<(), StoreError> {
        let (tail, log) = self.tail()?;
        let exclusive = self.exclusive()?;
        for (partial, keep_first) in merge::due(tail, &names(&log)) {
            let (client, name) = (self.client.clone(), partial.name.to_string());
            wait(&self.client, "merge", &name, async move {
                merge::merge(&client, &partial, exclusive, keep_first).await
            })?;
        }
        Ok(())
    }
}

impl BucketStore {
    fn segment_name(&self, action: &'static str, name: &str) -> Result<SegmentName, StoreError> {
        SegmentName::parse_object(name).ok_or_else(|| {
            let what = StoreErrorKind::Damaged("not the name of a segment".into());
            self.client.error(action, name, what)
        })
    }

    fn part_append(&self, segment: SegmentName, header: &[u8]) -> Result<PartAppend, StoreError> {
        let epoch = u64::from(segment.epoch);
        let first_of_epoch = self.epoch.swap(epoch, Ordering::Relaxed) != epoch;
        let (lane, exclusive) = (self.lane()?, self.exclusive()?);
        Ok(PartAppend::new(lane, &self.client, segment, header, exclusive, first_of_epoch))
    }

    /// Puts segments of older writers together whose last record, which nobody was told of, has a number of
    /// `segment`'s.
    fn make_room(&self, segment: SegmentName) -> Result<(), StoreError> {
        for partial in self.partials()? {
            let last = partial.parts.last().map_or(0, |part| part.seq);
            if last >= segment.first_seq && partial.name.age() < segment.age() {
                let (client, name) = (self.client.clone(), partial.name.to_string());
                wait(&self.client, "merge", &name, async move {
                    merge::merge(&client, &partial, true, false).await
                })?;
            }
        }
        Ok(())
    }

    fn read_parts(&self, name: &str, segment: SegmentName) -> Result<Vec<u8>, StoreError> {
        let Some(partial) = self.partial(segment)? else {
            // It may have been put together meanwhile.
            let (client, path) = (self.client.clone(), name.to_owned());
            return wait(&self.client, "read", name, async move { client.read(&path).await })
                .map(Into::into);
        };
        let (client, path) = (self.client.clone(), name.to_owned());
        wait(&self.client, "read", name, async move {
            match client.join(&partial).await {
                Ok(whole) => Ok(whole),
                // It may have been put together meanwhile.
                Err(error) => client.read(&path).await.map(Into::into).map_err(|_| error),
            }
        })
    }
}
