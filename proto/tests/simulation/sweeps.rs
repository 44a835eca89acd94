//! What is done to whole stores, with each operation failing in each way: a backup is made, a place is added, one is healed,
//! key slots come and go, a database is restored. Whatever fails, what is there is what was there before or what was to be, and
//! another try succeeds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use age::x25519::Identity;
use fastrand::Rng;
use lockstep_proto::error::Error;
use lockstep_proto::log::{Beginnings, LogEnd, segments};
use lockstep_proto::marker::Marker;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::replica::{Heal, Mirror};
use lockstep_proto::restore::{self, Plan as RestorePlan};
use lockstep_proto::retention::Policy;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::slots::{self, Lock, Unlock};
use lockstep_proto::store::Store;
use lockstep_proto::verify;
use rusqlite::Connection;

use crate::disk::{Lost, SimDisk};
use crate::faults::{Errno, Fault, Plan, Process};
use crate::places::{Places, Spot};
use crate::world::{Action, Place, World, rows_of};

/// When everything was written.
const LATER: u64 = 1 << 40;

type Result<T> = std::result::Result<T, Error>;

/// Runs `what` in a place that is first as in `before`, with each operation failing in each way; `check` is given what a
/// power cut then leaves, and whether all was said to be well.
fn sweep(
    before: &SimDisk,
    what: impl Fn(&Arc<dyn Store>) -> Result<()>,
    check: impl Fn(&dyn Store, bool),
) {
    let steps = Arc::new(AtomicU64::new(0));
    let run = |number, fault, lasting| {
        let disk = before.after_power_cut(Lost::All);
        let process = Process::new(Plan::At { number, fault, lasting }, &steps);
        let store: Arc<dyn Store> = Arc::new(disk.store("target", &process));
        let well = what(&store).is_ok();
        for lost in [Lost::All, Lost::Some(Rng::with_seed(number))] {
            let image = disk.after_power_cut(lost);
            check(&image.store("target", &Process::checker()), well);
        }
        (process.kinds(), well)
    };
    let (kinds, well) = run(u64::MAX, Fault::DieBefore, false);
    assert!(well, "it fails where nothing does");
    let mut points = Vec::new();
    for (number, kind) in (0..).zip(kinds) {
        for fault in Fault::all(kind) {
            points.push((number, fault, false));
            points.extend(fault.can_last().then_some((number, fault, true)));
        }
    }
    let stride = if std::env::var_os("LOCKSTEP_LONG").is_some() { 1 } else { 3 };
    let swept = points.iter().step_by(stride);
    println!("{} points of {}", swept.len(), points.len());
    swept.for_each(|&(number, fault, lasting)| drop(run(number, fault, lasting)));
}

/// A log of a few segments, with a snapshot.
struct Log {
    store: Arc<dyn Store>,
    keys: KeyRing,
    world: World,
}

impl Log {
    fn new() -> Self {
        use Action::{Commit, Compact, Kill};
        let actions = [Commit(1), Kill, Commit(2), Compact, Commit(1), Kill, Commit(3)];
        Self::after(&actions)
    }

    fn after(actions: &[Action]) -> Self {
        let disk = SimDisk::new(false);
        let store: Arc<dyn Store> = Arc::new(disk.store("source", &Process::checker()));
        let steps = Arc::new(AtomicU64::new(0));
        let world = World::at(Place::Disk(disk), Rng::with_seed(5), &steps);
        let mut log = Self { keys: world.keys.clone(), store, world };
        log.goes_on(actions);
        log
    }

    fn goes_on(&mut self, actions: &[Action]) {
        actions.iter().for_each(|action| self.world.act(*action));
    }

    /// A place that has what there is now.
    fn place(&self) -> SimDisk {
        let disk = SimDisk::new(false);
        self.copy_to(&disk.store("copy", &Process::checker())).unwrap();
        disk
    }

    fn copy_to(&self, target: &dyn Store) -> Result<()> {
        let (source, keys) = (&*self.store, &self.keys);
        Mirror { source, target, keys, before: None }.run(&mut |_| {}).map(drop)
    }

    fn heal(&self, target: &dyn Store) -> Result<()> {
        let (source, keys) = (&*self.store, &self.keys);
        let heal = Heal { source, target, keys, before: None };
        let faults = heal.plan(&mut |_| {})?;
        heal.run(&faults, &mut |_| {})?;
        self.copy_to(target)
    }

    fn expect_whole(&self, store: &dyn Store) {
        Marker::read(store).unwrap().require(self.keys.store()).unwrap();
        verify::run(store, &self.keys, &mut |_| {}).unwrap();
        let ends = [store, &*self.store].map(|store| LogEnd::read(store, &self.keys).unwrap());
        assert_eq!(ends[0].position, ends[1].position);
    }
}

/// All objects, without the zeros behind the last record.
fn content(store: &dyn Store) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for folder in ["keys", "epochs", "log", "snapshots", "files"] {
        for entry in store.list_all(folder).unwrap() {
            let name = format!("{folder}/{}", entry.name);
            let mut bytes = store.read(&name).unwrap();
            bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1));
            all.insert(name, bytes);
        }
    }
    all
}

#[test]
fn a_backup_is_made_or_there_is_none() {
    let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
    sweep(
        &SimDisk::new(false),
        |store| World::make(store, &keys),
        |store, well| match Marker::read(store) {
            Ok(_) => drop(verify::run(store, &keys, &mut |_| {}).unwrap()),
            Err(Error::Nothing { .. }) => assert!(!well, "it was said to be there"),
            Err(error) => panic!("{error}"),
        },
    );
}

#[test]
fn a_place_that_is_added_is_whole_or_no_backup() {
    let log = Log::new();
    sweep(
        &SimDisk::new(false),
        |store| log.copy_to(&**store),
        |store, well| {
            match Marker::read(store) {
                Ok(_) => log.expect_whole(store),
                Err(Error::Nothing { .. }) => assert!(!well, "it was said to be there"),
                Err(error) => panic!("{error}"),
            }
            log.copy_to(store).unwrap();
            log.expect_whole(store);
        },
    );
}

/// The place that it is copied from fails, for once or for good.
#[test]
fn what_could_not_be_read_is_not_left_out_of_a_place_that_is_added() {
    let log = Log::new();
    let source = SimDisk::new(false);
    log.copy_to(&source.store("source", &Process::checker())).unwrap();
    let steps = Arc::new(AtomicU64::new(0));
    let copy = |number, lasting| {
        let fault = Fault::Before(Errno::Io);
        let process = Process::new(Plan::At { number, fault, lasting }, &steps);
        let (disk, checker) = (SimDisk::new(false), Process::checker());
        let (source, target) = (source.store("source", &process), disk.store("target", &checker));
        let (source, keys) = (&source, &log.keys);
        let copied = Mirror { source, target: &target, keys, before: None }.run(&mut |_| {});
        if copied.is_ok() {
            assert_eq!(content(&target), content(&*log.store), "operation {number}");
        }
        (copied.is_ok(), process.kinds().len() as u64)
    };
    let (well, operations) = copy(u64::MAX, false);
    assert!(well);
    for number in 0..operations {
        for lasting in [false, true] {
            copy(number, lasting);
        }
    }
}

/// Brings up a place that has the log of `actions`, and not what is done `then`: whatever fails, the place alone can be
/// restored from, also as a process leaves it that dies.
fn expect_to_be_restorable_at_any_moment(actions: &[Action], then: &[Action]) {
    let mut log = Log::after(actions);
    let before = log.place();
    log.goes_on(then);
    sweep(
        &before,
        |store| log.copy_to(&**store),
        |store, well| {
            let folder = tempfile::tempdir().unwrap();
            let plan = RestorePlan::newest(store, &log.keys).unwrap();
            restore::run(store, &log.keys, &plan, &folder.path().join("db"), &mut |_| {}).unwrap();
            if well {
                log.expect_whole(store);
                let there = content(store);
                for (name, bytes) in content(&*log.store) {
                    assert_eq!(there.get(&name), Some(&bytes), "{name}");
                }
            }
        },
    );
}

/// It stays what it was, or has the new generation with the snapshot that this begins with.
#[test]
fn a_place_that_lacks_a_generation_can_be_restored_from_at_any_moment() {
    use Action::{Commit, Compact, Gap, Kill};
    let then = [Gap, Commit(2), Compact];
    expect_to_be_restorable_at_any_moment(&[Commit(1), Kill, Commit(2)], &then);
}

/// It has the whole log until it has the snapshot that the others go on from.
#[test]
fn a_place_that_lacks_the_snapshot_which_the_log_goes_on_from_can_be_restored_from_at_any_moment() {
    use Action::{Commit, Compact, Kill, Prune};
    let actions = [Commit(1), Kill, Commit(2), Kill, Commit(1)];
    expect_to_be_restorable_at_any_moment(&actions, &[Compact, Prune(1)]);
}

/// There is a segment of an older history yet that its writer never finished.
#[test]
fn a_place_that_has_an_older_history_which_the_others_removed_is_brought_up() {
    use Action::{Commit, Gap, Kill, Prune};
    let mut log = Log::after(&[Commit(1), Kill, Commit(2), Gap, Commit(1), Kill]);
    let before = log.place();
    log.goes_on(&[Prune(1), Commit(1), Kill]);
    log.store.create("log/00000009/00000001-00000009-0000000000000001.seg", b"").unwrap();
    let target = before.store("target", &Process::checker());
    assert!(target.list_all("log/00000001").unwrap().len() > 1);
    assert_eq!(log.store.list_all("log/00000001").unwrap(), []);
    log.copy_to(&target).unwrap();
    log.expect_whole(&target);
}

/// What the source was brought up from had removed it.
#[test]
fn a_place_that_has_more_of_an_older_history_is_no_other_nodes() {
    use Action::{Commit, Gap, Kill};
    let mut log = Log::after(&[Commit(1), Kill, Commit(2), Gap, Commit(1), Kill]);
    let before = log.place();
    log.goes_on(&[Commit(1), Kill]);
    let end_of_older = segments(&*log.store, 1).unwrap().pop().unwrap().name.to_string();
    log.store.remove(&end_of_older).unwrap();
    let target = before.store("target", &Process::checker());
    log.copy_to(&target).unwrap();
    log.expect_whole(&target);
    assert!(target.exists(&end_of_older).unwrap());
}

/// There was a hole before the segment that the log begins with where it was removed.
#[test]
fn a_history_of_which_the_beginning_was_being_brought_along_when_it_was_removed_has_no_hole() {
    use Action::{Commit, Compact, Gap, Kill, Prune};
    let mut log = Log::after(&[Commit(1), Kill]);
    let before = log.place();
    for _ in 0..4 {
        log.goes_on(&[Commit(2), Compact, Kill]);
    }
    log.goes_on(&[Compact, Prune(1)]);
    let pruned = log.place();
    log.goes_on(&[Gap, Commit(2), Kill, Prune(1)]);
    assert_eq!(log.store.list_all("log/00000001").unwrap(), []);
    let pruned = pruned.store("pruned", &Process::checker());
    let first = Mirror { source: &pruned, target: &pruned, keys: &log.keys, before: None };
    sweep(
        &before,
        |target| Mirror { target: &**target, ..first }.run(&mut |_| {}).map(drop),
        |target, _| {
            log.copy_to(target).unwrap();
            log.expect_whole(target);
        },
    );
}

/// They came back from elsewhere, after the log that they were made of was removed.
#[test]
fn snapshots_alone_of_an_older_history_are_not_brought_along() {
    use Action::{Commit, Compact, Gap, Kill};
    let mut log = Log::after(&[Commit(1), Kill]);
    let before = log.place();
    let then = [Commit(2), Commit(1), Kill, Commit(1), Commit(2), Compact, Gap, Commit(1), Kill];
    log.goes_on(&then);
    let older = segments(&*log.store, 1).unwrap();
    let (epoch, index) = older.last().unwrap().name.age();
    Beginnings::note(&*log.store, 1, (epoch, index + 1)).unwrap();
    older.iter().for_each(|entry| log.store.remove(&entry.name.to_string()).unwrap());
    let target = before.store("target", &Process::checker());
    log.copy_to(&target).unwrap();
    log.expect_whole(&target);
    assert_eq!(log.store.list("snapshots/00000001").unwrap().len(), 1);
    assert_eq!(target.list("snapshots/00000001").unwrap(), []);
}

/// Retention began to look at it when all that it had was an older history.
#[test]
fn a_place_that_is_brought_up_while_retention_looks_at_it_loses_nothing() {
    use Action::{Commit, Compact, Gap, Kill};
    let mut log = Log::after(&[Commit(1), Compact, Commit(1), Kill, Compact, Commit(2)]);
    let before = log.place();
    log.goes_on(&[Gap, Commit(2), Gap, Commit(2), Kill]);
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    for tenths in 0..40 {
        let target = Spot::new(Place::Disk(before.after_power_cut(Lost::All)));
        let places = Places::new(vec![target.clone()], 1, None, &log.keys, Rng::with_seed(1));
        target.takes(Duration::from_millis(100));
        let at = |process: &Process| places.at(0, process).unwrap();
        let process = Process::checker();
        let (source, its_target, keys) = (log.store.clone(), at(&process), log.keys.clone());
        let copied = Arc::new(AtomicU64::new(0));
        let done = copied.clone();
        places.turns.start(Box::new(move || {
            let (source, target) = (&*source, &*its_target);
            Mirror { source, target, keys: &keys, before: None }.run(&mut |_| {}).unwrap();
            done.store(1, Ordering::Relaxed);
        }));
        let store = at(&process);
        places.turns.sleep(tenths * Duration::from_millis(100));
        let plan = PrunePlan::new(&*store, &log.keys, &policy, LATER).unwrap();
        plan.run(&*store, &mut || Ok(()), &mut |_| {}).unwrap();
        while copied.load(Ordering::Relaxed) == 0 {
            places.turns.sleep(Duration::from_secs(1));
        }
        log.expect_whole(&*target.place.store("target", &Process::checker()));
        places.turns.finish();
    }
}

#[test]
fn a_snapshot_that_is_damaged_is_not_copied() {
    let log = Log::new();
    let (name, mut bytes) = content(&*log.store)
        .into_iter()
        .find(|(name, _)| name.starts_with("snapshots/"))
        .expect("no snapshot");
    *bytes.last_mut().unwrap() ^= 1;
    log.store.replace(&name, &bytes).unwrap();
    let target = SimDisk::new(false).store("target", &Process::checker());
    let copied = log.copy_to(&target);
    assert!(matches!(copied, Err(Error::Damaged { .. })), "{copied:?}");
    assert!(!target.exists(&name).unwrap());
}

#[test]
fn what_is_healed_is_never_worse_than_before() {
    let log = Log::new();
    let wanted = content(&*log.store);
    let damaged = SimDisk::new(false);
    let store = damaged.store("target", &Process::checker());
    log.copy_to(&store).unwrap();
    let mut wrong = Vec::new();
    for folder in ["log", "snapshots", "epochs"] {
        let entries = store.list_all(folder).unwrap();
        let name = format!("{folder}/{}", entries[entries.len() / 2].name);
        let mut bytes = store.read(&name).unwrap();
        bytes[180] ^= 1;
        store.replace(&name, &bytes).unwrap();
        wrong.push(name);
    }
    let last = store.list_all("log").unwrap().pop().unwrap().name;
    store.remove(&format!("log/{last}")).unwrap();
    wrong.push(format!("log/{last}"));
    sweep(
        &damaged,
        |store| log.heal(&**store),
        |store, well| {
            let found = content(store);
            for (name, bytes) in wanted.iter().filter(|(name, _)| well || !wrong.contains(name)) {
                assert!(found.get(name) == Some(bytes), "{name} is not what it was");
            }
            log.heal(store).unwrap();
            log.expect_whole(store);
        },
    );
}

#[test]
fn while_key_slots_change_one_of_them_opens() {
    let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
    let owners = [Identity::generate(), Identity::generate()];
    let locks = owners.each_ref().map(|owner| Lock::Recipient(owner.to_public()));
    let opens = |store: &dyn Store, owner: &Identity| {
        slots::open(store, &Unlock::Identity(owner.clone())).is_ok()
    };
    let before = SimDisk::new(false);
    slots::add(&before.store("target", &Process::checker()), &keys, &locks[0]).unwrap();
    sweep(
        &before,
        |store| {
            slots::add(&**store, &keys, &locks[1])?;
            slots::remove(&**store, "recipient-1").map(drop)
        },
        |store, well| {
            let [old, new] = owners.each_ref().map(|owner| opens(store, owner));
            assert!(old || new, "nobody has a key");
            assert!(!well || new && !old, "old: {old}, new: {new}");
            slots::add(store, &keys, &locks[1]).unwrap();
            assert!(opens(store, &owners[1]));
        },
    );
}

#[test]
fn a_restore_that_cannot_read_fails() {
    let log = Log::new();
    let disk = SimDisk::new(false);
    log.copy_to(&disk.store("target", &Process::checker())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("restored.sqlite3");
    let restore = |store: &dyn Store, path: &Path| -> Result<Vec<String>> {
        let _ = std::fs::remove_file(path);
        let plan = RestorePlan::newest(store, &log.keys)?;
        restore::run(store, &log.keys, &plan, path, &mut |_| {})?;
        Ok(rows_of(&Connection::open(path).unwrap()))
    };
    let rows = restore(&*log.store, &database).unwrap();
    sweep(
        &disk,
        |store| restore(&**store, &database).map(|found| assert!(found == rows)),
        |_, _| {},
    );
}
