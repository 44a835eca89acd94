//! Keeps compaction off the disk for most of the time in which the node writes: the lowest priority is one of
//! processor time only, and whoever syncs a record waits for what the disk is at.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_proto::config::Compaction;
use lockstep_proto::store::{Append, Entry, Fencing, NewObject, Store, StoreError};
use rustix::time::{ClockId, clock_gettime};

use super::Shared;
use super::policy::{overdue, rest_after};

/// Work goes on for at least so long, which a call of the hook may have to wait for, and then rests …
const PORTION_MIN: Duration = Duration::from_micros(250);
/// … but no longer than this.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// The node writes where it has written within this.
const LATELY: Duration = Duration::from_secs(1);
/// How often it looks whether the node still writes.
const LOOK: Duration = Duration::from_millis(50);

/// When the work rests.
pub struct Pace {
    shared: Arc<Shared>,
    settings: Compaction,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    /// What the hook had appended when that last changed, and when.
    bytes: u64,
    changed: Option<Instant>,
    /// How long it has rested.
    rested: Duration,
}

/// Work of one thread without a rest.
#[derive(Clone, Copy)]
struct Portion {
    /// How long it computed …
    computed: Duration,
    /// … and waited, which is for the disk.
    waited: Duration,
    /// Up to when that is known, and [`processor_time`] then.
    until: (Instant, Duration),
}

impl Portion {
    fn begin() -> Self {
        let until = (Instant::now(), processor_time());
        Self { computed: Duration::ZERO, waited: Duration::ZERO, until }
    }

    /// Takes in what was since.
    fn go_on(&mut self) {
        let (since, processor) = std::mem::replace(&mut self.until, Self::begin().until);
        let all = self.until.0 - since;
        let computed = self.until.1.saturating_sub(processor).min(all);
        self.computed += computed;
        self.waited += all - computed;
    }
}

thread_local! {
    /// The one that goes on.
    static PORTION: Cell<Portion> = Cell::new(Portion::begin());
}

/// What this thread has had, with what it waited for one because others computed; Linux tells that.
fn processor_time() -> Duration {
    let had: Duration = clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = told.split_whitespace().nth(1).and_then(|field| field.parse().ok());
    had + Duration::from_nanos(waited.unwrap_or(0))
}

impl Pace {
    /// For the work that begins now.
    pub fn new(shared: &Arc<Shared>, settings: &Compaction) -> Arc<Self> {
        let bytes = shared.signal.bytes.load(Ordering::Relaxed);
        let state = State { bytes, changed: None, rested: Duration::ZERO };
        let (shared, settings) = (shared.clone(), settings.clone());
        Arc::new(Self { shared, settings, began: Instant::now(), state: Mutex::new(state) })
    }

    /// How long it has rested.
    pub fn rested(&self) -> Duration {
        self.lock().rested
    }

    /// A little was done: rests, where it is time to.
    pub fn rest(&self) {
        let mut portion = PORTION.get();
        if portion.computed + portion.waited + portion.until.0.elapsed() < PORTION_MIN {
            return;
        }
        portion.go_on();
        self.rest_after(portion.computed, portion.waited);
        PORTION.set(Portion::begin());
    }

    /// Does what may wait for the disk, and rests where it is time to. What this thread waited for before was another
    /// thread.
    fn paced<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut portion = PORTION.get();
        let waited = portion.waited;
        portion.go_on();
        PORTION.set(Portion { waited, ..portion });
        let done = work();
        self.rest();
        done
    }

    /// Rests after so much work, as long as the node writes.
    pub fn rest_after(&self, computed: Duration, waited: Duration) {
        let began = Instant::now();
        let rest = rest_after(computed, waited, self.overdue(), self.began.elapsed());
        let rest = rest.min(LONGEST_REST);
        while self.node_writes() {
            let left = rest.saturating_sub(began.elapsed());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(LOOK));
        }
        self.lock().rested += began.elapsed();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node_writes(&self) -> bool {
        let mut state = self.lock();
        let bytes = self.shared.signal.bytes.load(Ordering::Relaxed);
        if bytes != state.bytes {
            (state.bytes, state.changed) = (bytes, Some(Instant::now()));
        }
        state.changed.is_some_and(|changed| changed.elapsed() < LATELY)
    }

    /// How many times the log behind the newest snapshot is what starts a compaction.
    fn overdue(&self) -> f64 {
        let known = self.shared.lock();
        let tail = known.tail_now(&self.shared.signal);
        tail.map_or(0.0, |tail| overdue(&self.settings, &known.rates, tail.bytes))
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
        self.pace.paced(|| self.store.replace(name, bytes))
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
        self.pace.paced(|| self.store.read(name))
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
        self.pace.paced(|| self.store.remove(name))
    }
}

struct PacedObject<'a> {
    object: Box<dyn NewObject + 'a>,
    pace: Arc<Pace>,
}

impl NewObject for PacedObject<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.pace.paced(|| self.object.write(bytes))
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let Self { object, pace } = *self;
        pace.paced(|| object.commit())
    }
}

struct PacedRead {
    stream: Box<dyn Read + Send>,
    pace: Arc<Pace>,
}

impl Read for PacedRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pace.paced(|| self.stream.read(buffer))
    }
}
