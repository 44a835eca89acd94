//! Several places of one log: disks and buckets that go away and come back, each of which somebody's thread waits for.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_proto::config::{LockFile, NamedDestination};
use lockstep_proto::error::Error;
use lockstep_proto::log::LogEnd;
use lockstep_proto::marker::Marker;
use lockstep_proto::replica::{Ground, Mirror, Mode, Observer, Replicas, Simulated, leading};
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::store::{Append, Entry, Fencing, NewObject, Store, StoreError};

use crate::disk::{Lost, SimDisk};
use crate::faults::Process;
use crate::turns::Turns;
use crate::world::Place;

/// One of them.
pub struct Spot {
    pub place: Place,
    away: AtomicBool,
    /// So often it has come back: what was open before is of no use.
    returns: AtomicU64,
    /// Milliseconds that each operation takes there.
    takes: AtomicU64,
    /// What is opened from here on is this, as a folder is that lay under a mount.
    pub under: Mutex<Option<SimDisk>>,
    /// It does not keep a second writer out.
    pub is_advisory: AtomicBool,
    /// How often it was opened, and how often a segment was begun anew there with all its records.
    pub opened: AtomicU64,
    pub resumed: AtomicU64,
}

impl Spot {
    pub fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            place,
            away: AtomicBool::new(false),
            returns: AtomicU64::new(0),
            takes: AtomicU64::new(0),
            under: Mutex::new(None),
            is_advisory: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
        })
    }

    /// From here on each operation takes so long there.
    pub fn takes(&self, time: Duration) {
        self.takes.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    pub fn go_away(&self) {
        self.away.store(true, Ordering::Relaxed);
    }

    pub fn come_back(&self) {
        if self.away.swap(false, Ordering::Relaxed) {
            self.returns.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The machine that it is on loses its power, and is back at once.
    pub fn cut_power(&self, lost: Lost) {
        self.returns.fetch_add(1, Ordering::Relaxed);
        if let Place::Disk(disk) = &self.place {
            disk.cut_power(lost);
        }
    }
}

/// Those that there ever were, by their numbers.
type Spots = Arc<Mutex<Vec<Arc<Spot>>>>;

/// All of them, and whose turn it is.
#[derive(Clone)]
pub struct Places {
    spots: Spots,
    /// What the node's directory says.
    pub lock: LockFile,
    /// The same, while a place that it names does not count yet.
    pub wanted: Option<LockFile>,
    pub turns: Arc<Turns>,
    keys: KeyRing,
    slow: Arc<Mutex<Rng>>,
    /// One operation in so many takes seconds; 0: none.
    slow_one_in: Arc<AtomicU64>,
}

/// How a destination of this number is named.
pub fn destination(index: usize, mode: Mode) -> NamedDestination {
    let url = format!("/{index}").parse().unwrap();
    NamedDestination { mode, ..NamedDestination::new(index.to_string(), url) }
}

impl Places {
    /// So many that count, and others that follow.
    pub fn new(
        spots: Vec<Arc<Spot>>,
        sync: usize,
        quorum: Option<u32>,
        keys: &KeyRing,
        mut rng: Rng,
    ) -> Self {
        let mode = |index| if index < sync { Mode::Sync } else { Mode::Async };
        let destinations = (0..spots.len()).map(|index| destination(index, mode(index))).collect();
        let mut lock = LockFile::new(keys.store(), "a".into(), destinations, None);
        (lock.quorum, lock.stall_timeout_s) = (quorum, 10);
        let slow = Arc::new(Mutex::new(rng.fork()));
        let turns = Turns::begin(rng);
        let (slow_one_in, wanted) = (Arc::default(), None);
        let spots = Arc::new(Mutex::new(spots));
        Self { spots, lock, wanted, turns, keys: keys.clone(), slow, slow_one_in }
    }

    pub fn spot(&self, index: usize) -> Arc<Spot> {
        self.spots.lock().unwrap()[index].clone()
    }

    /// Another one; gives its number.
    pub fn add(&self, spot: Arc<Spot>) -> usize {
        let mut spots = self.spots.lock().unwrap();
        spots.push(spot);
        spots.len() - 1
    }

    /// From here on one operation in so many takes its time.
    pub fn slow_one_in(&self, one_in: u64) {
        self.slow_one_in.store(one_in, Ordering::Relaxed);
    }

    fn ground(&self, process: &Process) -> Arc<SimGround> {
        Arc::new(SimGround {
            spots: self.spots.clone(),
            turns: self.turns.clone(),
            process: process.clone(),
            store: self.keys.store(),
            slow: self.slow.clone(),
            slow_one_in: self.slow_one_in.clone(),
        })
    }

    /// All of them, as a process that writes opens them.
    pub fn open(&self, process: &Process) -> Result<Arc<Replicas>, Error> {
        self.open_observed(process, Arc::new(|_| {}))
    }

    /// The same; the observer is told when one goes away or comes back.
    pub fn open_observed(
        &self,
        process: &Process,
        observer: Observer,
    ) -> Result<Arc<Replicas>, Error> {
        let ground = Ground::simulated(self.ground(process));
        let destinations = self.lock.destinations.clone();
        let opened = Replicas::open_on(ground, &self.lock, destinations, &self.keys, observer);
        opened.map(|(replicas, _)| Arc::new(replicas))
    }

    /// One of them, as a process uses it.
    pub fn at(&self, index: usize, process: &Process) -> Result<Arc<dyn Store>, Error> {
        self.ground(process).open(&destination(index, Mode::Sync))
    }

    /// Copies from one to another what that lacks.
    pub fn copy(&self, source: &dyn Store, target: &dyn Store) -> Result<(), Error> {
        let keys = &self.keys;
        Mirror { source, target, keys, before: None }.run(&mut |_| {}).map(drop)
    }

    /// The numbers of those that are written to.
    pub fn all(&self) -> Vec<usize> {
        self.lock.destinations.iter().map(|of| of.name.parse().unwrap()).collect()
    }

    /// The numbers of those that count.
    pub fn counting(&self) -> Vec<usize> {
        let counting = self.lock.destinations.iter().filter(|of| of.mode.is_sync());
        counting.map(|of| of.name.parse().unwrap()).collect()
    }

    /// Of so many places that count any have what was acknowledged.
    pub fn few(&self) -> usize {
        let policy = self.lock.policy().unwrap();
        match self.wanted {
            // What was acknowledged by those that counted before, as docs/design.md has it.
            Some(_) => policy.to_acknowledge(),
            None => policy.to_claim(),
        }
    }

    /// Of `some` the one with the newest state. All must answer.
    pub fn newest_of(
        &self,
        some: &[usize],
        open: impl Fn(usize) -> Result<Arc<dyn Store>, Error>,
    ) -> Result<Arc<dyn Store>, Error> {
        let stores = some.iter().map(|&index| open(index)).collect::<Result<Vec<_>, _>>()?;
        let ends = stores.iter().map(|store| LogEnd::read(&**store, &self.keys));
        let ends = ends.collect::<Result<Vec<_>, _>>()?;
        let numbered: Vec<(usize, &LogEnd)> = ends.iter().enumerate().collect();
        match leading(&numbered, self.lock.policy()?) {
            Ok(newest) => Ok(stores[newest].clone()),
            Err((one, other)) => Err(Error::TwoHistories {
                one: some[one].to_string(),
                other: some[other].to_string(),
                at: ends[one].segment.to_string(),
            }),
        }
    }
}

/// What the threads of a process's places stand on.
struct SimGround {
    spots: Spots,
    turns: Arc<Turns>,
    process: Process,
    store: StoreId,
    slow: Arc<Mutex<Rng>>,
    slow_one_in: Arc<AtomicU64>,
}

impl Simulated for SimGround {
    fn open(&self, destination: &NamedDestination) -> Result<Arc<dyn Store>, Error> {
        let index: usize = destination.name.parse().unwrap();
        let spot = self.spots.lock().unwrap()[index].clone();
        let line = Line {
            returns: spot.returns.load(Ordering::Relaxed),
            turns: self.turns.clone(),
            slow: self.slow.clone(),
            slow_one_in: self.slow_one_in.clone(),
            label: destination.name.clone(),
            spot,
        };
        line.spot.opened.fetch_add(1, Ordering::Relaxed);
        let process = self.process.at(index);
        let store: Arc<dyn Store> = match &*line.spot.under.lock().unwrap() {
            Some(disk) => Arc::new(disk.store(&destination.name, &process)),
            None => line.spot.place.store(&destination.name, &process),
        };
        let store = Arc::new(Far { store, line: Arc::new(line) });
        Marker::read(&*store)?.require(self.store)?;
        Ok(store)
    }

    fn now(&self) -> Instant {
        self.turns.now()
    }

    fn start(&self, work: Box<dyn FnOnce() + Send>) {
        self.turns.start(work);
    }

    fn wait(&self, until: Option<Instant>) {
        self.turns.wait(until);
    }

    fn wake(&self) {
        self.turns.wake();
    }
}

/// The way to a place.
struct Line {
    spot: Arc<Spot>,
    returns: u64,
    turns: Arc<Turns>,
    slow: Arc<Mutex<Rng>>,
    slow_one_in: Arc<AtomicU64>,
    label: String,
}

impl Line {
    /// Before each operation: others may come first, and the place may have gone away.
    fn pass(&self, action: &'static str, object: &str) -> Result<(), StoreError> {
        self.turns.pass();
        let one_in = self.slow_one_in.load(Ordering::Relaxed);
        let takes = {
            let mut rng = self.slow.lock().unwrap();
            (one_in > 0 && rng.u64(..one_in) == 0).then(|| rng.u64(10..15_000))
        };
        let always = self.spot.takes.load(Ordering::Relaxed);
        if let Some(takes) = takes.or((always > 0).then_some(always)) {
            self.turns.sleep(Duration::from_millis(takes));
        }
        self.expect_there(action, object)
    }

    fn expect_there(&self, action: &'static str, object: &str) -> Result<(), StoreError> {
        let came_back = self.spot.returns.load(Ordering::Relaxed) != self.returns;
        if !self.spot.is_away() && !came_back {
            return Ok(());
        }
        let kind = io::Error::from(io::ErrorKind::StaleNetworkFileHandle).into();
        Err(StoreError { store: self.label.clone(), action, object: object.into(), kind })
    }
}

/// A store at the other end of such a line.
struct Far {
    store: Arc<dyn Store>,
    line: Arc<Line>,
}

impl Far {
    fn append(&self, object: Box<dyn Append>, name: &str) -> Box<dyn Append> {
        Box::new(FarAppend { object, line: self.line.clone(), name: name.into() })
    }
}

impl Store for Far {
    fn label(&self) -> &str {
        self.store.label()
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        self.line.pass("probe", "")?;
        if self.line.spot.is_advisory.load(Ordering::Relaxed) {
            return Ok(Fencing::Advisory);
        }
        self.store.fencing()
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.line.pass("create", name)?;
        self.store.create(name, bytes)
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        self.line.pass("create", name)?;
        let object = self.store.create_stream(name)?;
        Ok(Box::new(FarObject { object, line: &self.line, name: name.into() }))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        self.line.pass("create", name)?;
        Ok(self.append(self.store.create_append(name, header)?, name))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.line.pass("replace", name)?;
        self.store.replace(name, bytes)
    }

    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        // Nobody comes in between: a rename that hangs until another writer has built on what it replaces undoes that.
        self.line.expect_there("resume", name)?;
        self.line.spot.resumed.fetch_add(1, Ordering::Relaxed);
        Ok(self.append(self.store.resume_append(name, header, records)?, name))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        self.line.pass("read", name)?;
        self.store.read(name)
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        self.line.pass("read", name)?;
        self.store.read_stream(name)
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        self.line.pass("look up", name)?;
        self.store.exists(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        self.line.pass("list", folder)?;
        self.store.list(folder)
    }

    fn list_all(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        self.line.pass("list", folder)?;
        self.store.list_all(folder)
    }

    fn tidy(&self) -> Result<(), StoreError> {
        self.line.pass("tidy", "")?;
        self.store.tidy()
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        self.line.pass("sync", name)?;
        self.store.sync(name)
    }

    fn sync_names(&self, folder: &str) -> Result<(), StoreError> {
        self.line.pass("sync", folder)?;
        self.store.sync_names(folder)
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.line.pass("remove", name)?;
        self.store.remove(name)
    }
}

struct FarAppend {
    object: Box<dyn Append>,
    line: Arc<Line>,
    name: String,
}

impl Append for FarAppend {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.line.pass("write", &self.name)?;
        self.object.append(bytes)
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        self.line.pass("end", &self.name)?;
        self.object.finish()
    }

    fn is_exclusive(&self) -> bool {
        self.object.is_exclusive()
    }

    fn is_full(&self) -> bool {
        self.object.is_full()
    }
}

struct FarObject<'a> {
    object: Box<dyn NewObject + 'a>,
    line: &'a Line,
    name: String,
}

impl NewObject for FarObject<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.line.pass("write", &self.name)?;
        self.object.write(bytes)
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.line.pass("create", &self.name)?;
        self.object.commit()
    }
}
