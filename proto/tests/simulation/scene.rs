//! Several places of one log, at any of which one may stop the clock: for tests of what is waited for.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::log::{LogEnd, Position};
use lockstep_proto::replica::{Replicas, Standing};
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::store::{Store, StoreError};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Writer};

use crate::disk::{Lost, SimDisk};
use crate::faults::{Plan, Process};
use crate::places::{Places, Spot};
use crate::world::{Place, World};

pub const SECOND: Duration = Duration::from_secs(1);
/// Longer than anybody waits.
pub const FOR_EVER: Duration = Duration::from_secs(1_000);

pub struct Scene {
    pub places: Places,
    pub keys: KeyRing,
    pub process: Process,
}

impl Scene {
    /// So many places that count, and so many that follow. An append waits for 10 seconds.
    pub fn new(sync: usize, others: usize, quorum: Option<u32>) -> Self {
        let disks = (0..sync + others).map(|_| Place::Disk(SimDisk::new(false)));
        Self::of(disks.collect(), sync, quorum)
    }

    pub fn of(places: Vec<Place>, sync: usize, quorum: Option<u32>) -> Self {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let process = Process::new(Plan::Never, &Arc::default());
        let spots: Vec<_> = places.into_iter().map(Spot::new).collect();
        let count = spots.len();
        let places = Places::new(spots, sync, quorum, &keys, Rng::with_seed(1));
        let scene = Self { places, keys, process };
        let first = scene.store(0);
        World::make(&first, &scene.keys).unwrap();
        for index in 1..count {
            scene.places.copy(&*first, &*scene.store(index)).unwrap();
        }
        scene
    }

    pub fn spot(&self, index: usize) -> Arc<Spot> {
        self.places.spot(index)
    }

    /// What is there, without the way to it.
    pub fn store(&self, index: usize) -> Arc<dyn Store> {
        self.spot(index).place.store("there", &Process::checker())
    }

    pub fn disk(&self, index: usize) -> SimDisk {
        match &self.spot(index).place {
            Place::Disk(disk) => disk.after_power_cut(Lost::All),
            Place::Bucket(_) => panic!("no disk"),
        }
    }

    pub fn end(&self, index: usize) -> Position {
        LogEnd::read(&*self.store(index), &self.keys).unwrap().position
    }

    pub fn replicas(&self) -> Arc<Replicas> {
        self.places.open(&self.process).unwrap()
    }

    pub fn writer(&self, store: Arc<dyn Store>) -> Writer {
        self.try_writer(store).unwrap()
    }

    pub fn try_writer(&self, store: Arc<dyn Store>) -> Result<Writer, Error> {
        let claimant = Claimant::this_process("test", "node", "a", 1).unwrap();
        Writer::open(store, self.keys.clone(), claimant, 1)
    }

    pub fn open(&self) -> (Arc<Replicas>, Writer) {
        let replicas = self.replicas();
        let writer = self.writer(replicas.clone());
        (replicas, writer)
    }

    pub fn sleep(&self, seconds: u32) {
        self.places.turns.sleep(seconds * SECOND);
    }

    /// How long it takes.
    pub fn took<T>(&self, what: impl FnOnce() -> T) -> (T, Duration) {
        let began = self.places.turns.now();
        (what(), self.places.turns.now() - began)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Threads of places that hang come to their end.
        if !std::thread::panicking() {
            self.process.kill();
            self.places.turns.finish();
        }
    }
}

pub fn append(writer: &mut Writer, versions: RangeInclusive<u32>) -> Result<(), Error> {
    for version in versions {
        let writes = [format!("INSERT INTO t VALUES ({version})")];
        let data_version = DataVersion(version);
        writer.append(&Call { data_version, transaction: true, writes: &writes }, 1)?;
    }
    Ok(())
}

/// Writes an object in a stream, as snapshots are.
pub fn write_stream(replicas: &Replicas, name: &str) -> Result<(), StoreError> {
    let mut object = replicas.create_stream(name)?;
    object.write(b"bytes")?;
    object.commit()
}

pub fn standing(replicas: &Replicas, index: usize) -> Standing {
    replicas.reports()[index].standing
}
