//! A log at several places: what is acknowledged is at as many as the policy says, byte for byte; who was away is
//! brought up; nobody else writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lockstep_proto::config::{LockFile, NamedDestination};
use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::log::{LogEnd, LogReader};
use lockstep_proto::marker::Marker;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::replica::{Mirror, Mode, Replicas, Standing};
use lockstep_proto::restore::Plan;
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::store::{FileStore, Store};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

struct Log {
    folder: TempDir,
    keys: KeyRing,
    lock: LockFile,
}

fn claimant() -> Claimant {
    Claimant::this_process("test", "node", "directory", 1).unwrap()
}

impl Log {
    /// At so many folders that count, and so many that do not.
    fn new(sync: usize, others: usize, quorum: Option<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let destinations = (0..sync + others).map(|index| NamedDestination {
            mode: if index < sync { Mode::Sync } else { Mode::Async },
            ..NamedDestination::new(
                index.to_string(),
                folder.path().join(index.to_string()).to_str().unwrap().parse().unwrap(),
            )
        });
        let mut lock =
            LockFile::new(keys.store(), "directory".into(), destinations.collect(), None);
        (lock.quorum, lock.stall_timeout_s) = (quorum, 2);
        let log = Self { folder, keys, lock };
        let first: Arc<dyn Store> = Arc::new(FileStore::create_root(&log.path(0)).unwrap());
        let mut writer = Writer::create(first.clone(), log.keys.clone(), claimant()).unwrap();
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).unwrap();
        writer.close(1);
        Marker::new(log.keys.store(), 1).create(&*first).unwrap();
        for index in 1..sync + others {
            let target = FileStore::create_root(&log.path(index)).unwrap();
            log.mirror(&*first, &target);
        }
        log
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.path().join(index.to_string())
    }

    fn mirror(&self, source: &dyn Store, target: &dyn Store) {
        Mirror { source, target, keys: &self.keys, before: None }.run(&mut |_| {}).unwrap();
    }

    fn replicas(&self) -> Result<Arc<Replicas>, Error> {
        let destinations = self.lock.destinations.clone();
        Replicas::open(&self.lock, destinations, &self.keys, Arc::new(|_| {}))
            .map(|(replicas, _)| Arc::new(replicas))
    }

    fn open(&self) -> (Arc<Replicas>, Writer) {
        let replicas = self.replicas().unwrap();
        let mut writer = Writer::open(replicas.clone(), self.keys.clone(), claimant(), 1).unwrap();
        writer.set_segment_bytes(4_000);
        (replicas, writer)
    }

    /// The folder is not there any more; a copy of it is kept.
    fn take_away(&self, index: usize) {
        let (path, away) = (self.path(index), self.folder.path().join(format!("{index}.away")));
        copy_folder(&path, &away);
        // Somebody may be writing to it.
        while path.exists() {
            let _ = fs::remove_dir_all(&path);
        }
    }

    fn bring_back(&self, index: usize) {
        fs::rename(self.folder.path().join(format!("{index}.away")), self.path(index)).unwrap();
    }

    /// The versions of the batches at a place, each proved to follow the last.
    fn versions(&self, index: usize) -> Vec<u32> {
        let store = FileStore::open(&self.path(index)).unwrap();
        let plan = Plan::newest(&store, &self.keys).unwrap();
        let mut versions = Vec::new();
        let mut committed = Committed::new(|batch| {
            versions.push(batch.data_version.0);
            Ok(())
        });
        LogReader::new(&store, &self.keys).read(&plan.segments, &mut committed).unwrap();
        committed.finish().unwrap();
        versions
    }

    #[track_caller]
    fn expect(&self, index: usize, versions: u32) {
        let all: Vec<u32> = (1..=versions).collect();
        assert_eq!(self.versions(index), all, "at {index}");
    }

    /// Byte for byte.
    #[track_caller]
    fn expect_same(&self, one: usize, other: usize) {
        let (one, other) = (content(&self.path(one)), content(&self.path(other)));
        let names = |of: &BTreeMap<PathBuf, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&one), names(&other));
        for (name, bytes) in &one {
            assert!(other[name] == *bytes, "{} differs", name.display());
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            // One that is being brought up has files that get another name meanwhile.
            false => drop(fs::copy(entry.path(), to)),
        }
    }
}

/// All files of a store, without the zeros behind the last record.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(below) = folders.pop() {
        for entry in fs::read_dir(&below).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let mut bytes = fs::read(entry.path()).unwrap();
            let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(end);
            all.insert(entry.path().strip_prefix(folder).unwrap().to_owned(), bytes);
        }
    }
    all
}

fn append(writer: &mut Writer, version: u32) -> Result<(), Error> {
    append_sized(writer, version, 100)
}

fn append_sized(writer: &mut Writer, version: u32, bytes: usize) -> Result<(), Error> {
    // Nothing that compresses.
    let mut state = u64::from(version) << 32 | 1;
    let noise: String = std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 33) as u8 % 26)
    })
    .take(bytes)
    .collect();
    let writes = [format!("INSERT INTO t VALUES ({version}, '{noise}')")];
    let call = Call { data_version: DataVersion(version), transaction: true, writes: &writes };
    match writer.append(&call, 1)? {
        Outcome::Acknowledged { .. } => Ok(()),
        Outcome::Gap => panic!("version {version} leaves a gap"),
    }
}

fn append_all(writer: &mut Writer, versions: std::ops::RangeInclusive<u32>) {
    for version in versions {
        append(writer, version).unwrap();
    }
}

#[track_caller]
fn wait_until(replicas: &Replicas, index: usize, standing: Standing) {
    let began = Instant::now();
    loop {
        let report = replicas.reports().swap_remove(index);
        if report.standing == standing && (standing != Standing::Current || report.lacks == 0) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{report:?}");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn all_places_hold_the_same_bytes() {
    let log = Log::new(2, 1, None);
    for session in 0..3 {
        let (replicas, mut writer) = log.open();
        append_all(&mut writer, session * 100 + 1..=session * 100 + 100);
        writer.close(1);
        replicas.settle(PATIENCE);
    }
    for index in 0..3 {
        log.expect(index, 300);
    }
    log.expect_same(0, 1);
    log.expect_same(0, 2);
}

#[test]
fn what_is_acknowledged_is_at_every_place_that_counts() {
    let log = Log::new(3, 0, None);
    let (_replicas, mut writer) = log.open();
    for version in 1..=30 {
        append(&mut writer, version).unwrap();
        for index in 0..3 {
            log.expect(index, version);
        }
    }
}

#[test]
fn without_one_that_all_must_have_nothing_is_acknowledged() {
    let log = Log::new(2, 0, None);
    let (_replicas, mut writer) = log.open();
    append_all(&mut writer, 1..=10);
    log.take_away(1);
    let began = Instant::now();
    let error = append(&mut writer, 11).unwrap_err().to_string();
    assert!(began.elapsed() >= Duration::from_secs(2), "it was waited for");
    assert!(error.contains("'1'") && error.contains("2 of its destinations"), "{error}");
    drop(writer);
    log.bring_back(1);
    // The one that was there has the record, and it is nobody's harm.
    let (_replicas, mut writer) = log.open();
    let next = writer.session().newest().data_version.unwrap().0;
    assert!([10, 11].contains(&next), "{next}");
    append(&mut writer, next + 1).unwrap();
    for index in 0..2 {
        log.expect(index, next + 1);
    }
}

#[test]
fn one_that_does_not_count_takes_nobodys_place() {
    let log = Log::new(2, 1, None);
    let (replicas, mut writer) = log.open();
    append_all(&mut writer, 1..=10);
    log.take_away(1);
    let refused = append(&mut writer, 11);
    assert!(matches!(refused, Err(Error::Store(_))), "{refused:?}");
    replicas.settle(PATIENCE);
    assert_eq!(log.versions(2).last(), Some(&11), "the one that follows has it");
}

#[test]
fn one_that_comes_back_in_time_is_waited_for() {
    let mut log = Log::new(2, 0, None);
    log.lock.stall_timeout_s = 20;
    let (_replicas, mut writer) = log.open();
    append_all(&mut writer, 1..=10);
    log.take_away(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sleep(Duration::from_millis(500));
            log.bring_back(1);
        });
        append_all(&mut writer, 11..=200);
    });
    writer.close(1);
    log.expect_same(0, 1);
    log.expect(1, 200);
}

#[test]
fn a_quorum_goes_on_and_who_was_away_is_brought_up() {
    for (place, counts) in [(0, true), (2, true), (3, false)] {
        let log = Log::new(3, 1, Some(2));
        let (replicas, mut writer) = log.open();
        append_all(&mut writer, 1..=20);
        replicas.settle(PATIENCE);
        log.take_away(place);
        append_all(&mut writer, 21..=300);
        wait_until(&replicas, place, Standing::Behind);
        log.bring_back(place);
        wait_until(&replicas, place, Standing::Current);
        append_all(&mut writer, 301..=310);
        writer.close(1);
        replicas.settle(PATIENCE);
        for index in 0..4 {
            log.expect(index, 310);
            log.expect_same(0, index);
        }
        assert_eq!(log.lock.destinations[place].mode.is_sync(), counts);
    }
}

/// Two places are opened anew, and each is to be compared with the third; but that is gone by then.
#[test]
fn who_cannot_be_compared_any_more_counts_by_its_own_log() {
    let log = Log::new(3, 0, Some(2));
    let (replicas, mut writer) = log.open();
    append_all(&mut writer, 1..=10);
    replicas.settle(PATIENCE);
    (0..2).for_each(|place| log.take_away(place));
    append(&mut writer, 11).unwrap_err();
    (0..2).for_each(|place| wait_until(&replicas, place, Standing::Behind));
    log.take_away(2);
    (0..2).for_each(|place| log.bring_back(place));
    let third = log.path(2).display().to_string();
    let names_it = |place: usize| replicas.reports()[place].error.as_ref()?.find(&third);
    let began = Instant::now();
    while names_it(0).is_none() || names_it(1).is_none() {
        assert!(began.elapsed() < PATIENCE, "{:?}", replicas.reports());
        sleep(Duration::from_millis(5));
    }
    while let Err(error) = append(&mut writer, 11) {
        assert!(began.elapsed() < PATIENCE, "{error}");
    }
    log.expect(0, 11);
    log.expect(1, 11);
}

#[test]
fn who_was_away_for_longer_than_is_kept_is_copied_from_another() {
    let log = Log::new(3, 0, Some(2));
    let (replicas, mut writer) = log.open();
    writer.set_segment_bytes(1 << 20);
    append_all(&mut writer, 1..=5);
    log.take_away(1);
    for version in 6..=60 {
        append_sized(&mut writer, version, 1 << 20).unwrap();
    }
    log.bring_back(1);
    for version in 61..=70 {
        append_sized(&mut writer, version, 100_000).unwrap();
    }
    wait_until(&replicas, 1, Standing::Current);
    append(&mut writer, 71).unwrap();
    writer.close(1);
    replicas.settle(PATIENCE);
    log.expect(1, 71);
    log.expect_same(0, 1);
}

#[test]
fn one_that_comes_back_as_an_older_copy_is_brought_up() {
    let log = Log::new(3, 0, Some(2));
    let (replicas, mut writer) = log.open();
    append_all(&mut writer, 1..=20);
    replicas.settle(PATIENCE);
    let older = log.folder.path().join("older");
    copy_folder(&log.path(1), &older);
    append_all(&mut writer, 21..=200);
    replicas.settle(PATIENCE);
    log.take_away(1);
    fs::rename(older, log.path(1)).unwrap();
    append_all(&mut writer, 201..=210);
    wait_until(&replicas, 1, Standing::Current);
    writer.close(1);
    replicas.settle(PATIENCE);
    log.expect(1, 210);
    log.expect_same(0, 1);
}

#[test]
fn who_is_away_at_the_start_is_brought_up_and_too_few_are_refused() {
    let log = Log::new(3, 0, Some(2));
    let (_, mut writer) = log.open();
    append_all(&mut writer, 1..=50);
    drop(writer);
    log.take_away(0);
    let (replicas, mut writer) = log.open();
    append_all(&mut writer, 51..=80);
    log.bring_back(0);
    wait_until(&replicas, 0, Standing::Current);
    append_all(&mut writer, 81..=90);
    writer.close(1);
    replicas.settle(PATIENCE);
    log.expect(0, 90);
    log.expect_same(0, 2);
    drop((replicas, writer));
    log.take_away(0);
    log.take_away(1);
    let error = log.replicas().err().unwrap().to_string();
    assert!(error.contains("2 of the destinations that count must answer, 1 did"), "{error}");
    assert!(error.contains("'0'") && error.contains("'1'"), "{error}");
}

/// The newest state is on the places that the next writer does not have at first.
#[test]
fn the_next_writer_has_what_was_acknowledged_whichever_places_it_finds() {
    for away in 0..3 {
        let log = Log::new(3, 0, Some(2));
        let (_, mut writer) = log.open();
        append_all(&mut writer, 1..=10);
        log.take_away((away + 1) % 3);
        append_all(&mut writer, 11..=30);
        drop(writer);
        log.bring_back((away + 1) % 3);
        log.take_away(away);
        let (replicas, mut writer) = log.open();
        append_all(&mut writer, 31..=40);
        log.bring_back(away);
        wait_until(&replicas, away, Standing::Current);
        writer.close(1);
        replicas.settle(PATIENCE);
        for index in 0..3 {
            log.expect(index, 40);
        }
    }
}

#[test]
fn a_newer_writer_fences_an_older_one_wherever_it_claims() {
    let log = Log::new(3, 1, Some(2));
    let (_old, mut older) = log.open();
    append_all(&mut older, 1..=10);
    let (new, mut newer) = log.open();
    let refused = append(&mut older, 11);
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    append_all(&mut newer, 11..=20);
    let again = append(&mut older, 11);
    assert!(matches!(again, Err(Error::Fenced { .. })), "{again:?}");
    for index in 0..3 {
        wait_until(&new, index, Standing::Current);
        assert!(log.versions(index).len() >= 19, "at {index}");
    }
}

#[test]
fn a_claim_on_some_places_fences_who_needs_one_of_them() {
    let log = Log::new(3, 0, Some(2));
    let (_old, mut older) = log.open();
    append_all(&mut older, 1..=10);
    // The older writer goes on as if that one were away: the newer one did not reach it.
    log.take_away(0);
    let (_new, mut newer) = log.open();
    log.bring_back(0);
    let refused = append(&mut older, 11);
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    append_all(&mut newer, 11..=12);
}

#[test]
fn two_histories_are_never_mixed() {
    let log = Log::new(2, 0, None);
    let (_, mut writer) = log.open();
    append_all(&mut writer, 1..=10);
    writer.close(1);
    drop(writer);
    // Each place goes on alone.
    for (index, versions) in [(0, 11..=20), (1, 11..=15)] {
        let store: Arc<dyn Store> = Arc::new(FileStore::open(&log.path(index)).unwrap());
        let mut alone = Writer::open(store, log.keys.clone(), claimant(), 1).unwrap();
        append_all(&mut alone, versions);
    }
    let before = [content(&log.path(0)), content(&log.path(1))];
    let stores = [0, 1].map(|index| FileStore::open(&log.path(index)).unwrap());
    for (source, target) in [(0, 1), (1, 0)] {
        let mirror = Mirror {
            source: &stores[source],
            target: &stores[target],
            keys: &log.keys,
            before: None,
        };
        let refused = mirror.run(&mut |_| {});
        assert!(matches!(refused, Err(Error::TwoHistories { .. })), "{refused:?}");
    }
    // Nor does a writer go on with them.
    if let Ok(replicas) = log.replicas() {
        let writer = Writer::open(replicas, log.keys.clone(), claimant(), 1);
        let refused = writer.and_then(|mut writer| append(&mut writer, 21));
        assert!(refused.is_err(), "{refused:?}");
    }
    for (index, before) in before.iter().enumerate() {
        let now = content(&log.path(index));
        let kept = before.iter().filter(|(name, _)| name.starts_with("log"));
        for (name, bytes) in kept {
            assert!(now[name].starts_with(bytes), "{} was changed", name.display());
        }
    }
}

#[test]
fn the_log_names_all_its_places() {
    let log = Log::new(2, 1, None);
    drop(log.open());
    let store = FileStore::open(&log.path(1)).unwrap();
    let known = LogEnd::read(&store, &log.keys).unwrap().destinations;
    let names: Vec<_> = known.named.iter().map(|of| (of.name.as_str(), of.mode)).collect();
    assert_eq!(names, [("0", Mode::Sync), ("1", Mode::Sync), ("2", Mode::Async)]);
    assert!(known.named[2].url.ends_with("/2"), "{known:?}");
}

/// Places go away and come back, writers die and are followed by others: whatever was acknowledged is in the log, in
/// order, and at the end all places are the same.
#[test]
fn nothing_acknowledged_is_lost_whoever_goes_away() {
    let rounds = if std::env::var_os("LOCKSTEP_LONG").is_some() { 100 } else { 4 };
    let seed = std::env::var("LOCKSTEP_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in seed.map_or(0..rounds, |seed: u64| seed..seed + 1) {
        println!("LOCKSTEP_SEED={seed}");
        random_outages(seed);
    }
}

fn random_outages(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut log = Log::new(3, 1, Some(2));
    log.lock.stall_timeout_s = 20;
    let (mut replicas, mut writer) = log.open();
    let (mut acknowledged, mut away) = (0, None);
    for _ in 0..40 {
        match random.u32(..10) {
            0..5 => {
                for _ in 0..random.u32(1..60) {
                    acknowledged += 1;
                    append_sized(&mut writer, acknowledged, random.usize(10..2_000)).unwrap();
                }
            }
            5 | 6 => match away.take() {
                Some(place) => {
                    log.bring_back(place);
                    // Until it has all, a second one that goes away is one too many.
                    acknowledged += 1;
                    append(&mut writer, acknowledged).unwrap();
                    wait_until(&replicas, place, Standing::Current);
                }
                None => {
                    // What it has answered for is not taken back.
                    replicas.settle(PATIENCE);
                    let place = random.usize(..4);
                    log.take_away(place);
                    away = Some(place);
                }
            },
            _ => {
                if random.bool() {
                    writer.close(1);
                }
                drop((writer, replicas));
                (replicas, writer) = log.open();
                let found = writer.session().newest().data_version.map_or(0, |version| version.0);
                assert_eq!(found, acknowledged);
            }
        }
    }
    if let Some(place) = away {
        log.bring_back(place);
    }
    acknowledged += 1;
    append(&mut writer, acknowledged).unwrap();
    for place in 0..4 {
        wait_until(&replicas, place, Standing::Current);
    }
    writer.close(1);
    replicas.settle(PATIENCE);
    for place in 0..4 {
        log.expect(place, acknowledged);
    }
}
