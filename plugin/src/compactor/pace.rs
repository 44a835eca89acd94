//! Keeps compaction off the disk for most of the time in which the node writes: the lowest priority is one of
//! processor time only, and whoever syncs a record waits for what the disk is at.

use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockstep_proto::store::{Append, Entry, Fencing, NewObject, Store, StoreError};

use super::Shared;

/// Work goes on for at least so long …
const PORTION: Duration = Duration::from_millis(3);
/// … and then rests so many times as long, but no longer than this.
const REST: u32 = 9;
const LONGEST_REST: Duration = Duration::from_millis(300);
/// The node writes where it has written within this.
const LATELY: Duration = Duration::from_secs(1);

/// When the work rests.
pub struct Pace {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

struct State {
    /// Since when the work has gone on.
    since: Instant,
    /// What the hook had appended when that last changed, and when.
    bytes: u64,
    changed: Option<Instant>,
    /// How long it rested since somebody asked.
    rested: Duration,
}

impl Pace {
    /// For the work that begins now.
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let bytes = shared.signal.bytes.load(Ordering::Relaxed);
        let state = State { since: Instant::now(), bytes, changed: None, rested: Duration::ZERO };
        Arc::new(Self { shared: shared.clone(), state: Mutex::new(state) })
    }

    /// How long it rested since this was last asked.
    pub fn rested(&self) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.rested)
    }

    /// A little was done: rests, where it is time to, and the node writes.
    pub fn rest(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let worked = state.since.elapsed();
        if worked < PORTION {
            return;
        }
        let bytes = self.shared.signal.bytes.load(Ordering::Relaxed);
        if bytes != state.bytes {
            (state.bytes, state.changed) = (bytes, Some(Instant::now()));
        }
        if state.changed.is_some_and(|changed| changed.elapsed() < LATELY) {
            let began = Instant::now();
            std::thread::sleep((REST * worked).min(LONGEST_REST));
            state.rested += began.elapsed();
        }
        state.since = Instant::now();
    }
}

/// A store that rests after each piece that is written or read.
pub struct Paced {
    /// The store.
    pub store: Arc<dyn Store>,
    /// When it rests.
    pub pace: Arc<Pace>,
}

impl Store for Paced {
    fn label(&self) -> &str {
        self.store.label()
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        self.store.fencing()
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        let object = self.store.create_stream(name)?;
        Ok(Box::new(PacedObject { object, pace: self.pace.clone() }))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        self.store.create_append(name, header)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.store.replace(name, bytes)
    }

    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        self.store.resume_append(name, header, records)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let bytes = self.store.read(name);
        self.pace.rest();
        bytes
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        let stream = self.store.read_stream(name)?;
        Ok(Box::new(PacedRead { stream, pace: self.pace.clone() }))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        self.store.exists(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        self.store.list(folder)
    }

    fn list_all(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        self.store.list_all(folder)
    }

    fn tidy(&self) -> Result<(), StoreError> {
        self.store.tidy()
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        self.store.sync(name)
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.store.remove(name)
    }
}

struct PacedObject<'a> {
    object: Box<dyn NewObject + 'a>,
    pace: Arc<Pace>,
}

impl NewObject for PacedObject<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.object.write(bytes);
        self.pace.rest();
        written
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.object.commit()
    }
}

struct PacedRead {
    stream: Box<dyn Read + Send>,
    pace: Arc<Pace>,
}

impl Read for PacedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer);
        self.pace.rest();
        read
    }
}
