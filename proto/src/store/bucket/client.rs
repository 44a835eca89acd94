//! Requests, as this store makes them.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload,
};
use tokio::sync::mpsc::{Receiver, channel};

use super::connect::Connection;
use super::remote_error::{broke_off, explain, io_error};
use crate::jitter::jittered;
use crate::layout;
use crate::seal::HEADER_LEN;
use crate::store::parts::{Part, Partial, Parts};
use crate::store::{Entry, StoreError, StoreErrorKind};

/// Requests that are under way at once where many objects are read or removed.
pub(super) const PARALLEL: usize = 32;
/// Pieces of an object that wait to be read.
const PIECES: usize = 64;
/// Times that a new object is tried, beyond what the connection tries by itself.
const TRIES: u32 = 4;
/// How long one request that writes may take, and …
const REQUEST: Duration = Duration::from_secs(10);
/// … for each so many bytes of it a second more: a slow uplink is no failure.
const SLOWEST_BYTES_S: u64 = 64 * 1024;

pub type Result<T, E = StoreErrorKind> = std::result::Result<T, E>;

/// A connection to a prefix of a bucket. Cheap to copy.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
    /// How long an append is tried again.
    pub patience: Duration,
    /// True where nobody waits between two tries, and nothing is done beside the caller.
    pub at_once: bool,
}

impl Client {
    pub fn new(connection: Connection, patience: Duration) -> Self {
        Self { connection: Arc::new(connection), patience, at_once: false }
    }

    /// How messages name the place.
    pub fn label(&self) -> &str {
        &self.connection.label
    }

    /// An error of this store.
    pub fn error(&self, action: &'static str, object: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { store: self.label().into(), action, object: object.into(), kind }
    }

    /// False where a place is known to overwrite whatever it is asked to create.
    pub fn can_create(&self) -> bool {
        self.connection.flat
    }

    pub(super) fn store(&self) -> &dyn ObjectStore {
        &*self.connection.store
    }

    pub(super) fn path(&self, name: &str) -> Path {
        let prefix = &self.connection.prefix;
        if name.is_empty() {
            return prefix.clone();
        }
        prefix.parts().chain(Path::from(name).parts()).collect()
    }

    /// One request to write an object.
    ///
    /// # Errors
    /// What the server says, or that it says nothing.
    pub async fn put(&self, name: &str, bytes: Bytes, mode: PutMode) -> Result<(), Error> {
        let more = Duration::from_secs(bytes.len() as u64 / SLOWEST_BYTES_S);
        let path = self.path(name);
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.store().put_opts(&path, PutPayload::from(bytes), options);
        match tokio::time::timeout(REQUEST + more, put).await {
            Ok(put) => put.map(drop),
            Err(_) => Err(Error::Generic { store: "", source: "no answer in time".into() }),
        }
    }

    /// Creates an object. Whatever the answer is, what is there afterwards decides: an answer may be lost on
    /// the way, and the object be ours all the same.
    ///
    /// # Errors
    /// [`StoreErrorKind::Exists`] where another one is there.
    pub async fn create(&self, name: &str, bytes: Bytes, exclusive: bool) -> Result<()> {
        if !exclusive && self.exists(name).await? {
            return Err(StoreErrorKind::Exists);
        }
        let mode = if exclusive { PutMode::Create } else { PutMode::Overwrite };
        let mut last = StoreErrorKind::Exists;
        for attempt in 0..TRIES {
            match self.put(name, bytes.clone(), mode.clone()).await {
                Ok(()) if exclusive => return Ok(()),
                Ok(()) | Err(Error::AlreadyExists { .. }) => {}
                Err(error) => last = explain(error),
            }
            match self.read(name).await {
                Ok(found) if found == bytes => return Ok(()),
                Ok(_) => return Err(StoreErrorKind::Exists),
                Err(StoreErrorKind::NotFound) => {}
                Err(error) => last = error,
            }
            self.rest(attempt, Duration::MAX).await;
        }
        Err(last)
    }

    /// Writes an object, whatever is there, and reads it back.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        let mut last = StoreErrorKind::NotFound;
        for attempt in 0..TRIES {
            if let Err(error) = self.put(name, bytes.clone(), PutMode::Overwrite).await {
                last = explain(error);
            }
            match self.read(name).await {
                Ok(found) if found == bytes => return Ok(()),
                Ok(_) => {}
                Err(error) => last = error,
            }
            self.rest(attempt, Duration::MAX).await;
        }
        Err(last)
    }

    /// A whole object.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn read(&self, name: &str) -> Result<Bytes> {
        let path = self.path(name);
        whole(|| async { self.store().get(&path).await?.bytes().await }).await.map_err(explain)
    }

    /// A piece of an object.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let path = self.path(name);
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        whole(|| async { self.store().get_opts(&path, options.clone()).await?.bytes().await })
            .await
            .map_err(explain)
    }

    /// An object, piece by piece.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`].
    pub async fn read_stream(&self, name: &str) -> Result<Receiver<std::io::Result<Bytes>>> {
        let path = self.path(name);
        let answer = whole(|| self.store().get(&path)).await.map_err(explain)?;
        let (sender, pieces) = channel(PIECES);
        tokio::spawn(async move {
            let mut stream = answer.into_stream();
            while let Some(piece) = stream.next().await {
                if sender.send(piece.map_err(io_error)).await.is_err() {
                    return;
                }
            }
        });
        Ok(pieces)
    }

    /// True where there is such an object.
    ///
    /// # Errors
    /// Never where it is simply not there.
    pub async fn exists(&self, name: &str) -> Result<bool> {
        match self.store().head(&self.path(name)).await.map_err(explain) {
            Ok(_) => Ok(true),
            Err(StoreErrorKind::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What is in a folder.
    ///
    /// # Errors
    /// Where the place cannot be listed.
    pub async fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        let path = self.path(folder);
        let prefix = Some(&path).filter(|path| !path.as_ref().is_empty());
        let listing = whole(|| self.store().list_with_delimiter(prefix)).await.map_err(explain)?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        let folders = listing
            .common_prefixes
            .iter()
            .filter_map(|path| Some(Entry { name: name(path)?, size: 0, folder: true }));
        let files = listing.objects.iter().filter_map(|found| {
            Some(Entry { name: name(&found.location)?, size: found.size, folder: false })
        });
        let mut entries: Vec<_> = folders.chain(files).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        Ok(entries)
    }

    /// All objects below a folder, named from there.
    ///
    /// # Errors
    /// Where the place cannot be listed.
    pub async fn list_tree(&self, folder: &str) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        if !self.connection.flat {
            // WebDAV: not every server lists folders within folders.
            let mut folders = vec![String::new()];
            while let Some(below) = folders.pop() {
                for entry in self.list(&join(folder, &below)).await? {
                    let name = join(&below, &entry.name);
                    if entry.folder {
                        folders.push(name);
                    } else {
                        entries.push(Entry { name, ..entry });
                    }
                }
            }
            return Ok(entries);
        }
        let prefix = self.path(folder);
        self.list_below(&prefix, None, &mut |object| {
            if let Some(parts) = object.location.prefix_match(&prefix) {
                let name: Vec<_> = parts.map(|part| part.as_ref().to_owned()).collect();
                entries.push(Entry { name: name.join("/"), size: object.size, folder: false });
            }
            ControlFlow::Continue(())
        })
        .await?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        Ok(entries)
    }

    /// Lists what is below `prefix`, or of that what comes `after` a name, until told to stop; false where it was. What
    /// breaks off begins again: an object may be shown twice.
    async fn list_below(
        &self,
        prefix: &Path,
        after: Option<Path>,
        each: &mut (dyn FnMut(ObjectMeta) -> ControlFlow<()> + Send),
    ) -> Result<bool> {
        for attempt in 0.. {
            let mut listing = match &after {
                None => self.store().list(Some(prefix)),
                Some(after) => self.store().list_with_offset(Some(prefix), after),
            };
            let error = loop {
                match listing.next().await {
                    None => return Ok(true),
                    Some(Err(error)) => break error,
                    Some(Ok(object)) => {
                        if each(object).is_break() {
                            return Ok(false);
                        }
                    }
                }
            };
            if !broke_off(&error) || attempt == TRIES {
                return Err(explain(error));
            }
            self.rest(attempt, Duration::MAX).await;
        }
        Ok(true)
    }

    /// The parts from record `from` on, in order: all of them, or `most`. With them, whether that is all. A listing may
    /// lag behind: whether the newest is the newest is asked for by name.
    ///
    /// # Errors
    /// Where the place cannot be listed.
    pub async fn list_tail(&self, from: u64, most: usize) -> Result<(Parts, bool)> {
        let mut parts = Parts::default();
        let mut all = true;
        if self.connection.flat {
            let after = (from > 0).then(|| self.path(&layout::before_part(from)));
            // Where a place does not list in order nothing is known before its listing ends.
            let (mut count, mut last, mut in_order) = (0, String::new(), true);
            let mut add = |object: ObjectMeta| {
                let file = object.location.filename().unwrap_or_default();
                in_order &= last.as_str() < file;
                file.clone_into(&mut last);
                // Not every place starts where it is asked to.
                count += usize::from(parts.add(file, object.size, from));
                if in_order && count >= most {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            all = self.list_below(&self.path(layout::TAIL), after, &mut add).await?;
        } else {
            for entry in self.list(layout::TAIL).await? {
                parts.add(&entry.name, entry.size, from);
            }
        }
        parts.sort();
        if all {
            self.look_behind(&mut parts).await?;
        }
        Ok((parts, all))
    }

    /// Asks by name for what follows the newest parts, as long as there is something.
    async fn look_behind(&self, parts: &mut Parts) -> Result<()> {
        for (owner, newest) in parts.newest() {
            for seq in newest + 1.. {
                let name = layout::part(seq, owner);
                match self.store().head(&self.path(&name)).await.map_err(explain) {
                    Ok(found) => parts.push(owner, Part { seq, size: found.size }),
                    Err(StoreErrorKind::NotFound) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Puts the parts of a segment together.
    ///
    /// # Errors
    /// [`StoreErrorKind::Damaged`] where one is missing, or belongs to another segment.
    pub async fn join(&self, partial: &Partial) -> Result<Vec<u8>> {
        partial.check_gapless().map_err(StoreErrorKind::Damaged)?;
        let mut pieces = stream::iter(partial.objects())
            .map(|name| async move { self.read(&name).await.map(|bytes| (name, bytes)) })
            .buffered(PARALLEL);
        let mut whole: Vec<u8> = Vec::new();
        while let Some((name, bytes)) = pieces.try_next().await? {
            if bytes.is_empty() {
                // It was put together meanwhile: only the number is kept.
                return Err(StoreErrorKind::Damaged(format!("'{name}' is empty")));
            }
            if whole.is_empty() {
                whole.extend_from_slice(&bytes);
            } else if bytes.get(..HEADER_LEN) == whole.get(..HEADER_LEN) {
                whole.extend_from_slice(&bytes[HEADER_LEN..]);
            } else {
                let what = format!("'{name}' has the header of another segment");
                return Err(StoreErrorKind::Damaged(what));
            }
        }
        Ok(whole)
    }

    /// Removes an object; fine where there is none.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn remove(&self, name: &str) -> Result<()> {
        match self.store().delete(&self.path(name)).await.map_err(explain) {
            Ok(()) | Err(StoreErrorKind::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the parts of a segment that is put together, or is not wanted any more. With `keep_first` the
    /// first stays, empty: an older writer that wakes up late must still find its number taken.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn remove_parts(&self, partial: &Partial, keep_first: bool) -> Result<()> {
        let mut objects = partial.objects();
        // Where that was interrupted, it is empty already, and none of the parts.
        let has_first =
            partial.parts.first().is_some_and(|part| part.seq == partial.name.first_seq);
        if keep_first && has_first {
            let first = objects.remove(0);
            self.put(&first, Bytes::new(), PutMode::Overwrite).await.map_err(explain)?;
        }
        stream::iter(objects)
            .map(|name| async move { self.remove(&name).await })
            .buffer_unordered(PARALLEL)
            .try_for_each(|()| async { Ok(()) })
            .await
    }

    /// Waits before try `attempt` + 1.
    pub async fn rest(&self, attempt: u32, most: Duration) {
        if !self.at_once {
            tokio::time::sleep(pause(attempt).min(most)).await;
        }
    }

    /// How much patience is left with what `began` then.
    pub fn left(&self, began: Instant) -> Duration {
        self.patience.saturating_sub(began.elapsed())
    }
}

/// Asks again where an answer broke off in its middle. The connection does so by itself for an object, not for a listing
/// or for what a server says of an object that is not there.
async fn whole<T, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> Result<T, Error> {
    for attempt in 0..TRIES {
        match ask().await {
            Err(error) if broke_off(&error) => tokio::time::sleep(pause(attempt)).await,
            answer => return answer,
        }
    }
    ask().await
}

fn join(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("", name) => name.into(),
        (folder, "") => folder.into(),
        (folder, name) => format!("{folder}/{name}"),
    }
}

/// How long to wait before try `attempt` + 1: longer each time, and not at the same moment as everybody else.
fn pause(attempt: u32) -> Duration {
    jittered(Duration::from_millis(50 << attempt.min(6)))
}
