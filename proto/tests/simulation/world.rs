//! The whole of it: a node with its log, and everybody else who uses it; and what must hold of them.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use fastrand::Rng;
use lockstep_proto::capture::Capture;
use lockstep_proto::error::Error;
use lockstep_proto::fence::{self, Claimant};
use lockstep_proto::layout::{self, SegmentName};
use lockstep_proto::log::{LogEnd, LogReader, Mark, Visitor, segments};
use lockstep_proto::marker::Marker;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::record::{Record, Start, StartReason};
use lockstep_proto::replica::{Mirror, Replicas};
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::restore::{self, Plan as RestorePlan, Restored, Target};
use lockstep_proto::retention::Policy;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::shadow::Shadow;
use lockstep_proto::store::{Entry, Store, StoreErrorKind};
use lockstep_proto::verify;
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, RestoredState, Writer};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::bucket::SimBucket;
use crate::disk::{Lost, SimDisk};
use crate::faults::{Kind, Plan, Process};
use crate::places::{Places, Spot};

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The node commits a transaction of so many rows.
    Commit(u8),
    /// The node dies after a transaction was acknowledged and before it commits it.
    Lose,
    /// The node makes settings, outside of any transaction.
    Settings,
    /// The node stops in order and starts again.
    Restart,
    /// The node is killed and starts again.
    Kill,
    /// The power goes, and what was not synced with it.
    CutPower,
    /// A second node of the same directory opens the log; the first one tries to go on, and takes it back.
    SecondWriter,
    /// The node writes without its log, which then begins a new generation.
    Gap,
    /// The compactor publishes a snapshot.
    Compact,
    /// Another machine's compactor does.
    CompactElsewhere,
    /// Retention removes what its policy does not keep.
    Prune(u8),
    /// Somebody restores a state of any time.
    Restore,
    /// Somebody restores and takes the log over to another directory.
    TakeOver,
    /// The operator verifies everything.
    Verify,
    /// One of several places goes away, or loses its power.
    GoAway,
    /// All of them are back.
    ComeBack,
    /// A second node opens the log and goes on, while the first one does.
    Race,
    /// A place stops counting, or counts again.
    ChangePlaces,
}

/// How long the plugin waits at its end for places that are a little behind.
const SETTLE: Duration = Duration::from_secs(5);

/// How often what was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub actions: u64,
    pub acknowledged: u64,
    pub faults: u64,
    pub crashes: u64,
    pub restores: u64,
    pub snapshots: u64,
    pub takeovers: u64,
    pub checks: u64,
    /// Places went away.
    pub outages: u64,
    /// Two nodes at once.
    pub races: u64,
    /// Looks at a part of the places after which a person would have to say which of two records counts.
    pub refused: u64,
    /// Lives that ended so: not all of the places tell either.
    pub undecided: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.actions += other.actions;
        self.acknowledged += other.acknowledged;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.restores += other.restores;
        self.snapshots += other.snapshots;
        self.takeovers += other.takeovers;
        self.checks += other.checks;
        self.outages += other.outages;
        self.races += other.races;
        self.refused += other.refused;
        self.undecided += other.undecided;
    }
}

/// A batch that may be in the log: acknowledged, but not yet committed, or neither.
pub(crate) struct InFlight {
    pub version: u32,
    pub writes: Vec<String>,
}

impl InFlight {
    /// What tells it from all others.
    pub fn mark(&self) -> &String {
        self.writes.last().expect("a batch has a mark")
    }

    /// True for the attempt of that number.
    fn is(&self, attempt: i64) -> bool {
        *self.mark() == attempt_of(attempt)
    }
}

/// What tells a batch from all others.
pub(crate) fn attempt_of(number: i64) -> String {
    format!("INSERT OR REPLACE INTO vars VALUES ('attempt', {number})")
}

/// Where the log is.
pub enum Place {
    Disk(SimDisk),
    Bucket(SimBucket),
}

impl Place {
    pub fn store(&self, label: &str, process: &Process) -> Arc<dyn Store> {
        match self {
            Self::Disk(disk) => Arc::new(disk.store(label, process)),
            Self::Bucket(bucket) => Arc::new(bucket.store(label, process)),
        }
    }

    /// A place of its own with what is here now.
    pub fn copy(&self) -> Self {
        match self {
            Self::Disk(disk) => Self::Disk(disk.copy()),
            Self::Bucket(bucket) => {
                let copy = SimBucket::default();
                let objects = bucket.objects().into_iter();
                objects.for_each(|(name, bytes)| copy.arrives(&name, bytes));
                Self::Bucket(copy)
            }
        }
    }

    /// What a power cut now would leave.
    pub fn after_power_cut(&self, lost: Lost) -> Arc<dyn Store> {
        let process = Process::checker();
        match self {
            Self::Disk(disk) => Arc::new(disk.after_power_cut(lost).store("image", &process)),
            Self::Bucket(_) => self.store("image", &process),
        }
    }
}

/// The place of the log, or its places.
pub enum Site {
    One(Place),
    Several(Box<Places>),
}

/// Nobody goes on by itself: a person must say which of two records counts.
pub struct Undecided;

/// A state that the node had.
struct State {
    /// The newest statement that led to it.
    text: String,
    rows: Vec<String>,
}

pub struct World {
    pub(crate) rng: Rng,
    pub(crate) site: Site,
    pub(crate) keys: KeyRing,
    steps: Arc<AtomicU64>,
    pub(crate) process: Process,
    pub(crate) writer: Option<Writer>,
    /// What it writes to, where there are several places.
    pub(crate) replicas: Option<Arc<Replicas>>,
    /// Nodes that were fenced, and whose threads go on for a while.
    pub(crate) fenced: Vec<(Process, Writer)>,
    directory: String,
    /// The node's database.
    pub(crate) node: Connection,
    pub(crate) version: u32,
    row: u64,
    attempt: i64,
    pub(crate) time: u64,
    /// What the node committed, and what its database was then.
    committed: BTreeMap<u32, State>,
    pub(crate) in_flight: Option<InFlight>,
    /// The one that it was to replace, where that failed: either may be in the log.
    pub(crate) replaced: Option<InFlight>,
    /// What the node's process has claimed the log with.
    tokens: Vec<String>,
    pub(crate) folder: TempDir,
    /// One operation in so many fails; 0: none does.
    one_in: u32,
    pub tally: Tally,
}

/// Files of SQLite's are made in memory where there is a place for that.
fn folder() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let builder = tempfile::Builder::new();
    if memory.is_dir() { builder.tempdir_in(memory) } else { builder.tempdir() }.unwrap()
}

impl World {
    /// A log that was just made, of a node with an empty schema.
    pub fn new(seed: u64, steps: &Arc<AtomicU64>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let place = match rng.u8(..32) {
            0 => Place::Disk(SimDisk::new(true)),
            1..20 => Place::Disk(SimDisk::new(false)),
            _ => Place::Bucket(SimBucket::default()),
        };
        Self::at(place, rng, steps)
    }

    /// As [`new`](Self::new), at a place.
    pub fn at(place: Place, rng: Rng, steps: &Arc<AtomicU64>) -> Self {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let process = Process::new(Plan::Never, steps);
        Self::make(&place.store("sim", &process), &keys).unwrap();
        Self::of(Site::One(place), keys, process, rng, steps)
    }

    /// A log that was just made at several places.
    pub fn at_several(
        spots: Vec<Arc<Spot>>,
        (sync, quorum): (usize, Option<u32>),
        mut rng: Rng,
        steps: &Arc<AtomicU64>,
    ) -> Self {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let process = Process::new(Plan::Never, steps);
        let places = Places::new(spots, sync, quorum, &keys, rng.fork());
        let stores: Vec<_> =
            places.all().iter().map(|&at| places.spot(at).place.store("sim", &process)).collect();
        Self::make(&stores[0], &keys).unwrap();
        stores[1..].iter().for_each(|store| places.copy(&*stores[0], &**store).unwrap());
        Self::of(Site::Several(Box::new(places)), keys, process, rng, steps)
    }

    /// Makes an empty log.
    pub(crate) fn make(store: &Arc<dyn Store>, keys: &KeyRing) -> Result<(), Error> {
        let claimant = Claimant::this_process("test", "init", "a", 1)?;
        let mut writer = Writer::create(store.clone(), keys.clone(), claimant)?;
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1)?;
        writer.close(1);
        Marker::new(keys.store(), 1).create(&**store)
    }

    fn of(site: Site, keys: KeyRing, process: Process, rng: Rng, steps: &Arc<AtomicU64>) -> Self {
        let node = Connection::open_in_memory().unwrap();
        let mut world = Self {
            rng,
            site,
            keys,
            steps: steps.clone(),
            process,
            writer: None,
            replicas: None,
            fenced: Vec::new(),
            directory: "a".into(),
            node,
            version: 0,
            row: 0,
            attempt: 0,
            time: 1_000,
            committed: BTreeMap::new(),
            in_flight: None,
            replaced: None,
            tokens: Vec::new(),
            folder: folder(),
            one_in: 0,
            tally: Tally::default(),
        };
        world.replace_process();
        world.commit(vec![
            "CREATE TABLE vars (name TEXT PRIMARY KEY, intval INTEGER)".into(),
            "INSERT INTO vars VALUES ('data_version', 0)".into(),
            "CREATE TABLE rows (id INTEGER PRIMARY KEY, what TEXT)".into(),
        ]);
        world
    }

    /// From here on one operation in so many fails.
    pub fn fail_one_in(&mut self, one_in: u32) {
        self.one_in = one_in;
        self.replace_process();
    }

    /// From here on one operation in so many, at one of several places, takes its time.
    pub fn slow_one_in(&self, one_in: u64) {
        if let Site::Several(places) = &self.site {
            places.slow_one_in(one_in);
        }
    }

    /// From here on operations fail by this plan, once.
    pub fn fail_by(&mut self, plan: Plan) {
        self.one_in = 0;
        self.die();
        self.process = Process::new(plan, &self.steps);
    }

    /// What its operations did, of all its processes since the plan was made.
    pub fn kinds(&self) -> Vec<Kind> {
        self.process.kinds()
    }

    /// The node's process is gone.
    pub(crate) fn die(&mut self) {
        self.process.kill();
        (self.writer, self.replicas) = (None, None);
        self.tally.faults += self.process.struck();
    }

    pub(crate) fn replace_process(&mut self) {
        self.die();
        self.next_process();
    }

    /// The node has another process from here on.
    pub(crate) fn next_process(&mut self) {
        self.process = self.other_process();
        self.tokens.clear();
    }

    /// A process after or beside the node's, with faults of its own, or by the same plan.
    pub(crate) fn other_process(&mut self) -> Process {
        match self.one_in {
            0 => self.process.another(),
            one_in => {
                let plan = Plan::Random { rng: self.rng.fork(), one_in };
                Process::new(plan, &self.steps)
            }
        }
    }

    /// What a process that writes opens.
    pub(crate) fn store(&self, process: &Process) -> Result<Arc<dyn Store>, Error> {
        match &self.site {
            Site::One(place) => Ok(place.store("sim", process)),
            Site::Several(places) => Ok(places.open(process)?),
        }
    }

    /// What a process that reads opens: of several places that with the newest state. All must answer.
    fn source(&self, process: &Process) -> Result<Arc<dyn Store>, Error> {
        match &self.site {
            Site::One(place) => Ok(place.store("sim", process)),
            Site::Several(places) => {
                places.newest_of(&places.counting(), |index| places.at(index, process))
            }
        }
    }

    /// What there is, whoever can reach it.
    pub(crate) fn all_there_is(&self) -> Result<Arc<dyn Store>, Error> {
        let process = Process::checker();
        match &self.site {
            Site::One(place) => Ok(place.store("sim", &process)),
            Site::Several(places) => places.newest_of(&places.counting(), |index| {
                Ok(places.spot(index).place.store("sim", &process))
            }),
        }
    }

    pub(crate) fn claimant(&self, purpose: &str) -> Claimant {
        Claimant::this_process("test", purpose, &self.directory, self.time).unwrap()
    }

    /// The node's writer, opened if need be: however often that fails, it goes in the end.
    pub(crate) fn writer(&mut self) -> &mut Writer {
        let mut tries = 0;
        while self.writer.is_none() {
            tries += 1;
            if self.process.is_dead() {
                self.crash();
            }
            if tries > 4 {
                self.process.mend();
            }
            let (claimant, time) = (self.claimant("node"), self.time);
            self.tokens.push(claimant.token.clone());
            let opened = self
                .node_store()
                .and_then(|store| Writer::open(store, self.keys.clone(), claimant, time));
            match opened {
                Ok(mut writer) => {
                    writer.set_segment_bytes(self.rng.u64(600..6_000));
                    self.writer = Some(writer);
                }
                Err(error) => {
                    assert!(tries < 16, "the log does not open: {error}");
                    self.failed(&error);
                    self.rest();
                }
            }
            if tries > 6 {
                self.all_come_back();
            }
        }
        self.writer.as_mut().unwrap()
    }

    /// Between two tries, as the plugin does.
    fn rest(&mut self) {
        if let Site::Several(places) = &self.site {
            places.turns.sleep(Duration::from_millis(self.rng.u64(20..2_000)));
        }
    }

    /// What the node writes to: several places are opened once.
    fn node_store(&mut self) -> Result<Arc<dyn Store>, Error> {
        if let (Site::Several(places), None) = (&self.site, &self.replicas) {
            self.replicas = Some(places.open(&self.process)?);
        }
        match &self.replicas {
            Some(replicas) => Ok(replicas.clone()),
            None => self.store(&self.process),
        }
    }

    /// Whatever a disk does, nobody takes it for another history, for damage, or for another writer.
    #[track_caller]
    pub(crate) fn expect_fault(&self, error: &Error) {
        let several = matches!(self.site, Site::Several(_));
        let fine = match error {
            Error::Store(error) => !matches!(error.kind, StoreErrorKind::Damaged(_)),
            // What a bucket made of a request that was given up may be in the way: the next process counts it.
            Error::Overtaken { .. } => self.has_bucket(),
            Error::Refused { what, hint } => {
                let away = what.contains("must answer") || hint.contains("behind it");
                several && away && !what.contains("damaged")
            }
            Error::TwoHistories { .. } if several => resume_unwind(Box::new(Undecided)),
            Error::Fenced { newer, .. } => self.is_anothers_at_some(*newer),
            _ => false,
        };
        assert!(fine, "{error}: {error:?}");
    }

    /// Another process claimed this epoch, and died before all places had the claim; who came next asked others, and meets
    /// it later.
    fn is_anothers_at_some(&self, epoch: u32) -> bool {
        let Site::Several(places) = &self.site else { return false };
        let claim = layout::claim(epoch);
        let stores = places
            .counting()
            .into_iter()
            .map(|index| places.spot(index).place.store("there", &Process::checker()));
        let (with, without): (Vec<_>, Vec<_>) =
            stores.partition(|store| store.exists(&claim).unwrap());
        let is_ours = |store: &Arc<dyn Store>| {
            fence::read(&**store, &self.keys, epoch)
                .is_ok_and(|found| self.tokens.contains(&found.token))
        };
        !without.is_empty() && !with.iter().any(is_ours)
    }

    fn has_bucket(&self) -> bool {
        let is_bucket = |place: &Place| matches!(place, Place::Bucket(_));
        match &self.site {
            Site::One(place) => is_bucket(place),
            Site::Several(places) => {
                places.all().iter().any(|&index| is_bucket(&places.spot(index).place))
            }
        }
    }

    /// As the plugin does: what is not to be tried again ends the node, and it is started again.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.expect_fault(error);
        if !matches!(error, Error::Store(_)) {
            self.replace_process();
        }
    }

    /// A process that died is followed by another; perhaps the machine died with it.
    pub(crate) fn crash(&mut self) {
        self.tally.crashes += 1;
        self.die();
        if self.rng.bool() {
            self.cut_power();
        }
        self.replace_process();
    }

    fn cut_power(&mut self) {
        let mut lost = || match self.rng.u8(..4) {
            0 => Lost::All,
            _ => Lost::Some(self.rng.fork()),
        };
        match &self.site {
            Site::One(Place::Disk(disk)) => disk.cut_power(lost()),
            Site::One(Place::Bucket(_)) => {}
            Site::Several(places) => {
                places.all().iter().for_each(|&index| places.spot(index).cut_power(lost()));
            }
        }
    }

    pub(crate) fn rows(&mut self, rows: u8) -> Vec<String> {
        let mut writes = Vec::new();
        for _ in 0..rows {
            self.row += 1;
            let row = self.row;
            let what = format!("{row} ").repeat(1 + self.rng.usize(..60));
            writes.push(match self.rng.u8(..4) {
                0 => format!("DELETE FROM rows WHERE id = {}", self.rng.u64(..row)),
                1 => format!("UPDATE rows SET what = '{what}' WHERE id = {}", self.rng.u64(..row)),
                _ => format!("INSERT INTO rows VALUES ({row}, '{what}')"),
            });
        }
        writes
    }

    /// One call until it is acknowledged, by this process or the one after its death.
    fn call(&mut self, version: u32, transaction: bool, writes: &[String]) {
        let mut tries = 0;
        loop {
            self.time += self.rng.u64(1..50);
            let time = self.time;
            let call = Call { data_version: DataVersion(version), transaction, writes };
            match self.writer().append(&call, time) {
                Ok(Outcome::Acknowledged { .. }) => break,
                Ok(Outcome::Gap) => panic!("a gap at {version}, the node is at {}", self.version),
                Err(error) => {
                    assert!(tries < 19, "never acknowledged: {error}");
                    self.failed(&error);
                }
            }
            tries += 1;
            if self.process.is_dead() {
                self.crash();
            } else if self.rng.bool() && self.replicas.is_none() {
                // As the plugin does: a store that failed is opened anew.
                let store = self.store(&self.process);
                if let Some(writer) = &mut self.writer
                    && let Err(error) = store.and_then(|store| writer.reattach(store))
                {
                    self.failed(&error);
                }
            }
            if tries > 4 {
                self.all_come_back();
            }
            if tries > 6 {
                self.process.mend();
            }
            self.rest();
        }
        self.tally.acknowledged += 1;
    }

    pub(crate) fn next_batch(&mut self, mut writes: Vec<String>) -> InFlight {
        self.attempt += 1;
        let version = self.version + 1;
        writes.push(format!(
            "UPDATE vars SET intval = {version} WHERE name = 'data_version' AND intval = {}",
            self.version
        ));
        // No two attempts are the same.
        writes.push(attempt_of(self.attempt));
        InFlight { version, writes }
    }

    /// Numbers for so many attempts; gives the first.
    pub(crate) fn take_attempts(&mut self, count: i64) -> i64 {
        self.attempt += count;
        self.attempt - count + 1
    }

    /// Another batch that may be in the log behind what was committed.
    pub(crate) fn may_be_in_flight(&mut self, batch: InFlight) {
        self.replaced = self.in_flight.replace(batch).or(self.replaced.take());
    }

    pub(crate) fn commit(&mut self, writes: Vec<String>) {
        let batch = self.next_batch(writes);
        let (version, writes) = (batch.version, batch.writes.clone());
        self.in_flight = Some(batch);
        self.call(version, true, &writes);
        self.commit_in_flight();
    }

    pub(crate) fn commit_in_flight(&mut self) {
        let Some(InFlight { version, writes }) = self.in_flight.take() else { return };
        self.replaced = None;
        self.node.execute_batch(&format!("BEGIN; {}; COMMIT", writes.join(";"))).unwrap();
        self.version = version;
        self.note(writes.last().cloned().unwrap_or_default());
    }

    fn note(&mut self, text: String) {
        let rows = rows_of(&self.node);
        self.committed.insert(self.version, State { text, rows });
    }

    pub fn act(&mut self, action: Action) {
        self.tally.actions += 1;
        if !self.fenced.is_empty() && self.rng.u8(..4) == 0 {
            self.forget_fenced();
        }
        match action {
            Action::Commit(rows) => {
                let writes = self.rows(rows);
                self.commit(writes);
            }
            Action::Lose => {
                let writes = self.rows(1);
                let batch = self.next_batch(writes);
                let (version, writes) = (batch.version, batch.writes.clone());
                self.in_flight = Some(batch);
                self.call(version, true, &writes);
                self.replaced = None;
                self.crash();
            }
            Action::Settings => {
                // What was in flight is decided before anything else is done.
                let version = self.version;
                self.call(version, false, &["PRAGMA foreign_keys = ON".into()]);
            }
            Action::Restart => {
                let time = self.time;
                if let Some(mut writer) = self.writer.take() {
                    writer.close(time);
                }
                if let Some(replicas) = &self.replicas {
                    replicas.settle(SETTLE);
                }
                self.replace_process();
                self.writer();
            }
            Action::Kill => self.replace_process(),
            Action::CutPower => {
                self.tally.crashes += 1;
                self.die();
                self.cut_power();
                self.replace_process();
            }
            Action::SecondWriter => self.second_writer(),
            Action::Gap => self.gap(),
            Action::Compact => self.compact("shadow"),
            Action::CompactElsewhere => self.compact("elsewhere"),
            Action::Prune(keep) => self.prune(keep),
            Action::Restore => self.restore_any(),
            Action::TakeOver => self.take_over(),
            Action::Verify => self.verify(),
            Action::GoAway => self.go_away(),
            Action::ComeBack => self.all_come_back(),
            Action::Race => self.race(),
            Action::ChangePlaces => self.change_places(),
        }
        self.check();
    }

    fn second_writer(&mut self) {
        self.writer();
        let process = self.other_process();
        let second = self.store(&process).and_then(|store| {
            Writer::open(store, self.keys.clone(), self.claimant("node"), self.time)
        });
        let mut second = match second {
            Ok(second) => second,
            Err(error) => {
                self.expect_fault(&error);
                // It may have claimed its epoch before it failed.
                return self.replace_process();
            }
        };
        self.tally.takeovers += 1;
        let before = self.time;
        let writes = self.rows(1);
        let batch = self.next_batch(writes);
        let call =
            |writes| Call { data_version: DataVersion(batch.version), transaction: true, writes };
        // The first one is refused before its node commits, whatever else goes wrong.
        let mut first = self.writer.take().unwrap();
        let stale = [format!("INSERT INTO vars VALUES ('stale', {before})")];
        let refused = first.append(&call(&stale), before);
        assert!(refused.is_err(), "two writers: {refused:?}");
        let of_first = self.process.clone();
        // The second goes on, and this is its node from now on.
        let acknowledged = second.append(&call(&batch.writes), before);
        self.may_be_in_flight(batch);
        match acknowledged {
            Ok(_) => {
                self.tally.acknowledged += 1;
                self.commit_in_flight();
            }
            Err(error) => self.expect_fault(&error),
        }
        drop(second);
        process.kill();
        self.tally.faults += process.struck();
        if self.replicas.take().is_some() {
            // Its threads do not know yet.
            self.fenced.push((of_first, first));
            self.next_process();
        } else {
            drop(first);
            self.replace_process();
        }
    }

    fn gap(&mut self) {
        let rows = self.rows(2);
        let batch = self.next_batch(rows);
        self.in_flight = Some(batch);
        // Committed, and never in the log.
        self.commit_in_flight();
        let copy = self.folder.path().join("node");
        let _ = std::fs::remove_file(&copy);
        self.node.execute("VACUUM INTO ?1", [copy.to_str()]).unwrap();
        let capture = Capture::take(&copy, self.folder.path().join("copy"), &mut |_| {}).unwrap();
        let mut tries = 0;
        loop {
            tries += 1;
            let time = self.time;
            let begun = capture.begin(self.writer(), StartReason::Gap, time, &mut |_, _| {});
            match begun {
                Ok(()) => return,
                // By its own claim, which was made at too few of its places: the next process goes on.
                Err(Error::Fenced { .. }) if self.replicas.is_some() => self.replace_process(),
                Err(error) => {
                    assert!(tries < 20, "no generation begins: {error}");
                    self.failed(&error);
                }
            }
            self.rest();
            if self.process.is_dead() {
                self.crash();
            }
            if tries > 4 {
                self.all_come_back();
            }
            if tries > 6 {
                self.process.mend();
            }
        }
    }

    fn compact(&mut self, shadow: &str) {
        self.writer();
        let process = self.other_process();
        let folder = self.folder.path().join(shadow);
        let compacted = (|| {
            let (store, others) = self.current(&process)?;
            let mut shadow = Shadow::open(&*store, &self.keys, &folder)?;
            shadow.catch_up(&mut |_| {})?;
            shadow.prove()?;
            let published = shadow.publish(&mut |_, _| {})?;
            for other in others {
                let (source, target, keys) = (&*store, &*other?, &self.keys);
                Mirror { source, target, keys, before: None }.snapshots(&mut |_| {})?;
            }
            Ok(published)
        })();
        match compacted {
            Ok(published) => self.tally.snapshots += u64::from(published.is_some()),
            Err(error) => self.expect_fault(&error),
        }
        self.tally.faults += process.struck();
        if self.rng.u8(..4) == 0 {
            let _ = std::fs::remove_dir_all(folder);
        }
    }

    fn prune(&mut self, keep: u8) {
        let process = self.other_process();
        let policy = Policy { keep_last: keep.max(1).into(), ..Policy::NOTHING };
        for store in self.each(&process) {
            let pruned = store.and_then(|store| {
                store.tidy()?;
                PrunePlan::new(&*store, &self.keys, &policy, self.time)?.run(
                    &*store,
                    &mut || Ok(()),
                    &mut |_| {},
                )
            });
            if let Err(error) = pruned {
                self.expect_fault(&error);
            }
        }
        self.tally.faults += process.struck();
    }

    fn restore(&self, store: &dyn Store, target: Target) -> Result<(Restored, PathBuf), Error> {
        let path = self.folder.path().join("restored.sqlite3");
        for file in ["restored.sqlite3", "restored.sqlite3-journal"] {
            let _ = std::fs::remove_file(self.folder.path().join(file));
        }
        let plan = RestorePlan::to(store, &self.keys, target)?;
        let restored = restore::run(store, &self.keys, &plan, &path, &mut |_| {})?;
        Ok((restored, path))
    }

    /// A state of any time: what the node had then, or nothing.
    fn restore_any(&mut self) {
        let process = self.other_process();
        let oldest = self.committed.keys().next().copied().unwrap_or(0);
        let wanted = self.rng.u32(oldest..=self.version);
        let target = Target::Version(DataVersion(wanted));
        match self.source(&process).and_then(|store| self.restore(&*store, target)) {
            Ok((restored, path)) => {
                self.tally.restores += 1;
                assert_eq!(restored.data_version, Some(DataVersion(wanted)));
                let rows = rows_of(&Connection::open(path).unwrap());
                let was = &self.committed[&wanted];
                let in_flight =
                    self.in_flight.as_ref().is_some_and(|batch| batch.version == wanted);
                assert!(rows == was.rows || in_flight, "version {wanted} is another state");
            }
            // Retention, or a gap.
            Err(Error::Refused { .. }) => {}
            Err(error) => self.expect_fault(&error),
        }
        self.tally.faults += process.struck();
    }

    /// As a restore into a directory that goes on: the old one never does.
    fn take_over(&mut self) {
        let process = self.other_process();
        let directory = format!("{}", self.tally.actions);
        let taken = (|| {
            let store = self.store(&process)?;
            let claimant = Claimant::this_process("test", "restore", &directory, self.time)?;
            let claimed = fence::claim(&*store, &self.keys, &claimant)?;
            let (restored, path) = self.restore(&*store, Target::Newest)?;
            let state = RestoredState {
                position: restored.position,
                data_version: restored.data_version,
                claimed,
            };
            let taken =
                Writer::take_over(store.clone(), self.keys.clone(), claimant, &state, self.time);
            Ok((taken, restored, path))
        })();
        self.tally.faults += process.struck();
        // Whatever became of it, the old directory has lost the log once the new one is in it.
        self.replace_process();
        let there = self.all_there_is().unwrap_or_else(|error| {
            self.expect_fault(&error);
            panic!("{error}");
        });
        let owner = LogEnd::read(&*there, &self.keys).unwrap().directory;
        match taken {
            Ok((taken, restored, path)) if owner == directory => {
                if let Err(error) = &taken {
                    self.expect_fault(error);
                }
                match self.opens_as(&self.directory.clone(), taken.is_err()) {
                    // Nobody was told that the new one has the log, and the places that say so did not answer in time.
                    Ok(()) if taken.is_err() => return,
                    Ok(()) => panic!("the old directory goes on"),
                    Err(Error::RestoredElsewhere { .. }) => {}
                    Err(error) => self.expect_fault(&error),
                }
                if taken.is_err() {
                    // It tries again, or the old one could go on later.
                    self.opens_as(&directory, true).unwrap();
                }
                // The restored database is the node's from now on, the batch in flight with it, or not.
                self.tally.takeovers += 1;
                self.adopt(restored.data_version, &path);
                self.directory = directory;
            }
            Ok((taken, ..)) => {
                if let Err(error) = &taken {
                    self.expect_fault(error);
                }
                assert!(taken.is_err(), "it took over, and the log is not its own");
            }
            Err(error) => {
                assert_ne!(owner, directory);
                self.expect_fault(&error);
            }
        }
    }

    /// Whether the log is gone on with by a directory; with `insists` once all places answer.
    fn opens_as(&mut self, directory: &str, insists: bool) -> Result<(), Error> {
        let claimant = Claimant::this_process("test", "node", directory, self.time)?;
        loop {
            let store = self.store(&Process::checker());
            let opened = store.and_then(|store| {
                Writer::open(store, self.keys.clone(), claimant.clone(), self.time)
            });
            match opened {
                Err(error) if insists && !matches!(error, Error::RestoredElsewhere { .. }) => {
                    self.expect_fault(&error);
                    self.all_come_back();
                }
                opened => return opened.map(drop),
            }
        }
    }

    fn adopt(&mut self, version: Option<DataVersion>, path: &std::path::Path) {
        let restored = Connection::open(path).unwrap();
        if version == Some(DataVersion(self.version + 1)) {
            let query = "SELECT intval FROM vars WHERE name = 'attempt'";
            let attempt: i64 = restored.query_row(query, [], |row| row.get(0)).unwrap();
            let replaced = self.replaced.take().filter(|batch| batch.is(attempt));
            self.in_flight = replaced.or(self.in_flight.take());
            self.commit_in_flight();
        }
        (self.in_flight, self.replaced) = (None, None);
        assert_eq!(version, Some(DataVersion(self.version)));
        let rows = rows_of(&restored);
        assert!(rows == self.committed[&self.version].rows, "another state was restored");
    }

    fn verify(&mut self) {
        let process = self.other_process();
        let behind = self.behind();
        for (number, store) in self.each(&process).into_iter().enumerate() {
            match store.and_then(|store| verify::run(&*store, &self.keys, &mut |_| {})) {
                Ok(_) => {}
                Err(Error::Damaged { .. }) if behind.contains(&number) => {
                    self.expect_whole_once_brought_up(number);
                }
                Err(error) => self.expect_fault(&error),
            }
        }
        self.tally.faults += process.struck();
    }

    /// What must hold at any moment, were the power cut right now: all that was committed is in the log, from a
    /// snapshot on without a hole, and nothing else but the batch in flight.
    fn check(&mut self) {
        self.tally.checks += 1;
        let Some(store) = self.after_power_cut() else { return };
        let plan = RestorePlan::newest(&*store, &self.keys).unwrap();
        let base = plan.lineage.links.last().and_then(|link| link.summary.meta.data_version);
        let mut next = base.map_or(1, |version| version.0 + 1);
        let held = plan.after().map_or(0, |after| after.seq);
        let mut found = base.map_or(0, |version| version.0);
        let mut committed = Committed::going_on(held, |batch| {
            if !batch.transaction || batch.at.seq <= held {
                return Ok(());
            }
            assert_eq!(batch.data_version, DataVersion(next), "a hole, or two of one version");
            let text = batch.statements.last().and_then(|statement| statement.text());
            let expected = match self.committed.get(&next) {
                Some(state) => vec![&state.text],
                None => self.possible().filter_map(|batch| batch.writes.last()).collect(),
            };
            let is_one = text.as_ref().is_some_and(|text| expected.contains(&text));
            assert!(is_one, "version {next} is {text:?}, not one of {expected:?}");
            (found, next) = (next, next + 1);
            Ok(())
        });
        let after = plan.after().map(Into::into);
        LogReader::new(&*store, &self.keys)
            .read_from(after, &plan.segments, &mut committed)
            .unwrap();
        committed.finish().unwrap();
        let most = self.version + u32::from(self.in_flight.is_some());
        assert!(
            (self.version..=most).contains(&found),
            "committed: {}, in the log: {found}",
            self.version
        );
        if self.rng.u8(..16) == 0 {
            self.check_whole(&*store);
        }
    }

    /// What a power cut now would leave; of several places any that a restore may find. `None` where a person must say
    /// which of two records counts.
    fn after_power_cut(&mut self) -> Option<Arc<dyn Store>> {
        let places = match &self.site {
            Site::One(place) => {
                let lost = if self.rng.bool() { Lost::All } else { Lost::Some(self.rng.fork()) };
                return Some(place.after_power_cut(lost));
            }
            Site::Several(places) => places,
        };
        let mut some = places.counting();
        let few = places.few();
        self.rng.shuffle(&mut some);
        some.truncate(self.rng.usize(few..=some.len()));
        let mut lost = || if self.rng.bool() { Lost::All } else { Lost::Some(self.rng.fork()) };
        let images: BTreeMap<usize, Arc<dyn Store>> = some
            .iter()
            .map(|&index| (index, places.spot(index).place.after_power_cut(lost())))
            .collect();
        match places.newest_of(&some, |index| Ok(images[&index].clone())) {
            Ok(newest) => Some(newest),
            Err(Error::TwoHistories { .. }) => {
                self.tally.refused += 1;
                None
            }
            Err(error) => panic!("{error}: {error:?}"),
        }
    }

    /// The batches of which one may be in the log behind what was committed.
    fn possible(&self) -> impl Iterator<Item = &InFlight> {
        self.in_flight.iter().chain(&self.replaced)
    }

    /// As [`check_whole`](Self::check_whole), of what there is.
    pub fn check_all(&mut self) {
        let store = self.all_there_is().unwrap();
        self.check_whole(&*store);
    }

    /// All of it verifies, and the restored database is the node's.
    pub(crate) fn check_whole(&mut self, store: &dyn Store) {
        verify::run(store, &self.keys, &mut |_| {}).unwrap();
        let (restored, path) = self.restore(store, Target::Newest).unwrap();
        self.tally.restores += 1;
        let found = restored.data_version.unwrap().0;
        let rows = rows_of(&Connection::open(path).unwrap());
        if found == self.version {
            assert!(rows == self.committed[&found].rows, "another state was restored");
            return;
        }
        let whole = self.possible().any(|batch| {
            self.node.execute_batch(&format!("BEGIN; {}", batch.writes.join(";"))).unwrap();
            let expected = rows_of(&self.node);
            self.node.execute_batch("ROLLBACK").unwrap();
            rows == expected
        });
        assert!(whole, "the batch in flight is there in part");
    }

    /// Nothing fails any more: everybody goes on, and all is well.
    pub fn end(&mut self) {
        self.die();
        self.one_in = 0;
        self.process = Process::new(Plan::Never, &self.steps);
        self.all_come_back();
        self.slow_one_in(0);
        for action in [Action::Commit(1), Action::Compact, Action::Commit(1), Action::Restart] {
            self.act(action);
        }
        match &self.site {
            Site::One(place) => {
                let store = place.after_power_cut(Lost::All);
                self.check_whole(&*store);
            }
            Site::Several(_) => self.all_become_equal(),
        }
        self.tally.faults += self.process.struck();
    }

    pub fn random_action(&mut self) -> Action {
        if matches!(self.site, Site::Several(_)) {
            match self.rng.u8(..32) {
                0..3 => return Action::GoAway,
                3..5 => return Action::ComeBack,
                5 => return Action::Race,
                6 => return Action::ChangePlaces,
                _ => {}
            }
        }
        match self.rng.u8(..64) {
            0..26 => Action::Commit(self.rng.u8(1..6)),
            26..30 => Action::Lose,
            30..32 => Action::Settings,
            32..36 => Action::Restart,
            36..39 => Action::Kill,
            39..42 => Action::CutPower,
            42..44 => Action::SecondWriter,
            44 => Action::Gap,
            45..51 => Action::Compact,
            51..53 => Action::CompactElsewhere,
            53..57 => Action::Prune(self.rng.u8(1..4)),
            57..61 => Action::Restore,
            61 => Action::TakeOver,
            _ => Action::Verify,
        }
    }

    /// The records of the newest history, for whoever looks for what went wrong.
    pub fn records(&self) -> Vec<String> {
        struct Records(Vec<String>);
        impl Visitor for Records {
            fn segment(&mut self, name: SegmentName) -> Result<(), Error> {
                self.0.push(name.to_string());
                Ok(())
            }

            fn record(
                &mut self,
                _name: SegmentName,
                at: Mark,
                record: Record<'_>,
            ) -> Result<(), Error> {
                self.0.push(format!("{} {record:?}", at.seq).chars().take(160).collect());
                Ok(())
            }

            fn void(&mut self, name: SegmentName, seq: u64) {
                self.0.push(format!("{seq} of '{name}' is void"));
            }
        }
        let Ok(store) = self.all_there_is() else { return Vec::new() };
        let mut records = Records(Vec::new());
        let generation = LogEnd::read(&*store, &self.keys).unwrap().position.generation;
        let segments = segments(&*store, generation).unwrap();
        let read = LogReader::new(&*store, &self.keys).read(&segments, &mut records);
        records.0.push(format!("{read:?}"));
        records.0
    }

    /// What there is, for whoever looks for what went wrong.
    pub fn listing(&self) -> Vec<String> {
        let process = Process::checker();
        let stores = match &self.site {
            Site::One(place) => vec![place.store("", &process)],
            Site::Several(places) => {
                places.all().iter().map(|&at| places.spot(at).place.store("", &process)).collect()
            }
        };
        let mut all = Vec::new();
        for (index, store) in stores.iter().enumerate() {
            for folder in ["epochs", "log", "snapshots"] {
                for Entry { name, size, .. } in store.list_all(folder).unwrap() {
                    all.push(format!("{index} {folder}/{name} {size}"));
                }
            }
        }
        all
    }
}

/// Every row.
pub(crate) fn rows_of(db: &Connection) -> Vec<String> {
    let mut rows = Vec::new();
    for sql in [
        "SELECT name || ' ' || intval FROM vars ORDER BY name",
        "SELECT id || ' ' || what FROM rows ORDER BY id",
    ] {
        // Before the first transaction there is nothing.
        let Ok(mut found) = db.prepare(sql) else { continue };
        let found = found.query_map([], |row| row.get(0)).unwrap();
        rows.extend(found.map(Result::unwrap));
    }
    rows
}
