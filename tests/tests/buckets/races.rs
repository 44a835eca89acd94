//! Two writers of one log: of a record of one number one is acknowledged, an older writer is not acknowledged once a
//! newer one has opened the log, and whatever was acknowledged is read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::log::LogReader;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::restore::Plan;
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::store::{BucketStore, FileStore, Options, Store};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};
use lockstep_tests::backed::ci_or_long;
use lockstep_tests::servers::{Server, moto, rgw};
use lockstep_tests::testdir::TestDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// Logs that are raced for at once.
const LOGS: u64 = 4;
/// How often all of the log is read.
pub const READ_EVERY: usize = 20;

/// Where the log is, as writers that take turns and a reader have it open.
pub type Places = [Arc<dyn Store>; 3];
const READER: usize = 2;

/// A place for logs, by its URL and what reaches it.
pub struct Site {
    pub url: String,
    pub env: Vec<(String, String)>,
}

impl Site {
    pub fn on(server: &Server) -> Self {
        Self { url: server.prefix("race"), env: server.env.clone() }
    }

    pub fn folder(dir: &TestDir) -> Self {
        Self { url: dir.file_url("store"), env: Vec::new() }
    }

    pub fn open(&self) -> Arc<dyn Store> {
        if let Some(path) = self.url.strip_prefix("file://") {
            return Arc::new(FileStore::create_root(Path::new(path)).unwrap());
        }
        let options = Options::from_vars(self.env.clone());
        Arc::new(BucketStore::connect(&self.url.parse().unwrap(), &options, PATIENCE).unwrap())
    }

    pub fn open_all(&self) -> Places {
        [self.open(), self.open(), self.open()]
    }
}

/// A log and what was acknowledged in it: seq → epoch and version.
pub struct Log {
    places: Places,
    pub keys: KeyRing,
    acknowledged: BTreeMap<u64, (u32, u32)>,
}

/// What a writer was told.
#[derive(Default)]
pub struct Told {
    pub acknowledged: Vec<(u64, u32)>,
    /// Of those, how many calls were made when the newer writer was there.
    pub too_late: usize,
}

impl Log {
    pub fn new(places: Places) -> (Self, Writer) {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let log = Self { places, keys, acknowledged: BTreeMap::new() };
        let place = log.places[1].clone();
        let mut writer = Writer::create(place, log.keys.clone(), claimant()).unwrap();
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).unwrap();
        (log, writer)
    }

    pub fn open(&self, place: usize) -> Writer {
        Writer::open(self.places[place].clone(), self.keys.clone(), claimant(), 1).unwrap()
    }

    #[track_caller]
    pub fn note(&mut self, epoch: u32, told: &Told) {
        assert_eq!(told.too_late, 0, "epoch {epoch} was acknowledged after the next had opened");
        for &(seq, version) in &told.acknowledged {
            let earlier = self.acknowledged.insert(seq, (epoch, version));
            assert_eq!(earlier, None, "seq {seq} is acknowledged twice, now to {epoch}");
        }
    }

    /// All that was acknowledged is in the log, and no version is missing or there twice.
    #[track_caller]
    pub fn check(&self) {
        let store = &self.places[READER];
        let plan = Plan::newest(&**store, &self.keys).unwrap();
        let mut logged = BTreeMap::new();
        let mut versions = Vec::new();
        let mut committed = Committed::new(|batch| {
            logged.insert(batch.at.seq, (batch.epoch, batch.data_version.0));
            versions.push(batch.data_version.0);
            Ok(())
        });
        LogReader::new(&**store, &self.keys).read(&plan.segments, &mut committed).unwrap();
        committed.finish().unwrap();
        for (seq, acknowledged) in &self.acknowledged {
            assert_eq!(logged.get(seq), Some(acknowledged), "seq {seq}");
        }
        let all: Vec<_> = (1..=versions.len() as u32).collect();
        assert_eq!(versions, all);
    }
}

pub fn claimant() -> Claimant {
    Claimant::this_process("test", "node", "directory", 1).unwrap()
}

pub fn append(writer: &mut Writer, version: u32) -> Result<u64, Error> {
    let writes = [format!("INSERT INTO t VALUES ({version}, {})", writer.epoch())];
    let call = Call { data_version: DataVersion(version), transaction: true, writes: &writes };
    match writer.append(&call, 1)? {
        Outcome::Acknowledged { position, .. } => Ok(position.seq),
        Outcome::Gap => panic!("version {version} leaves a gap"),
    }
}

/// What follows all that the log holds.
pub fn next_version(writer: &Writer) -> u32 {
    writer.session().newest().data_version.unwrap_or_default().0 + 1
}

/// Appends until it is told that it must not.
fn append_until_fenced(
    writer: &mut Writer,
    version: u32,
    pause: Duration,
    newer_is_open: &AtomicBool,
) -> Told {
    let mut told = Told::default();
    let deadline = Instant::now() + PATIENCE;
    for version in version + 1.. {
        assert!(Instant::now() < deadline, "epoch {} is never fenced", writer.epoch());
        let late = newer_is_open.load(Ordering::SeqCst);
        match append(writer, version) {
            Ok(seq) => {
                told.acknowledged.push((seq, version));
                told.too_late += usize::from(late);
            }
            Err(Error::Fenced { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        // The next one reads all of this one's records.
        thread::sleep(pause);
    }
    // Nor later.
    let again = append(writer, u32::try_from(told.acknowledged.len()).unwrap() + version + 1);
    assert!(matches!(again, Err(Error::Fenced { .. })), "{again:?}");
    told
}

/// Rounds in which a newer writer opens the log while the older one appends.
fn race(places: Places, seed: u64, rounds: usize) {
    let (mut log, mut writer) = Log::new(places);
    let mut random = Rng::with_seed(seed);
    let mut version = 0;
    for round in 0..rounds {
        let newer_is_open = AtomicBool::new(false);
        let pause = Duration::from_micros(random.u64(..15_000));
        let (older, at) = (&mut writer, version);
        let (told, newer, first) = thread::scope(|scope| {
            let appending = scope.spawn(|| append_until_fenced(older, at, pause, &newer_is_open));
            if round % 8 == 0 {
                // As a compaction on another machine does.
                scope.spawn(|| log.places[READER].tidy().unwrap());
            }
            thread::sleep(pause);
            let mut newer = log.open(round % 2);
            newer_is_open.store(true, Ordering::SeqCst);
            // In every second round it has what the log holds, and goes on at once; else it is on the older one's
            // database.
            let restored = round % 2 == 0;
            let first = restored.then(|| {
                let version = next_version(&newer);
                (append(&mut newer, version).unwrap(), version)
            });
            let told = appending.join().unwrap();
            let committed = told.acknowledged.last().map_or(at, |(_, version)| *version);
            let first = first.unwrap_or_else(|| {
                let version = committed + 1;
                (append(&mut newer, version).unwrap(), version)
            });
            (told, newer, first)
        });
        log.note(writer.epoch(), &told);
        (writer, version) = (newer, first.1);
        log.note(writer.epoch(), &Told { acknowledged: vec![first], too_late: 0 });
        if round % READ_EVERY == 0 {
            log.check();
        }
    }
    log.check();
    assert!(log.acknowledged.len() > rounds, "the older ones came to nothing");
}

#[test]
fn two_writers_race_in_a_folder() {
    let dir = TestDir::new();
    race(Site::folder(&dir).open_all(), 1, ci_or_long(100, 1000));
}

/// Races for several logs at once, since most of the time somebody waits.
pub fn races_on(server: &Server, rounds: usize, race: impl Fn(&Site, u64, usize) + Sync) {
    thread::scope(|scope| {
        for seed in 0..LOGS {
            let race = &race;
            scope.spawn(move || race(&Site::on(server), seed, rounds / LOGS as usize));
        }
    });
}

#[test]
fn two_writers_race_on_moto() {
    let Some(server) = moto::shared() else { return };
    races_on(server, ci_or_long(100, 1000), |site, seed, rounds| {
        race(site.open_all(), seed, rounds);
    });
}

#[test]
fn two_writers_race_on_ceph() {
    let Some(server) = rgw::shared() else { return };
    races_on(server, ci_or_long(40, 1000), |site, seed, rounds| {
        race(site.open_all(), seed, rounds);
    });
}
