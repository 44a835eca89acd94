//! Simulation: the engine, a disk that fails and forgets, and everybody who uses a log, all by one seed.
//!
//! A *step* is one operation on a disk, or one action of somebody. After each action it is checked what a power
//! cut right then would leave.

mod bucket;
mod disk;
mod faults;
mod odd_bucket;
mod opened_anew;
mod parts;
mod places;
mod scene;
mod several;
mod sweeps;
mod turns;
mod waits;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bucket::SimBucket;
use bytes::Bytes;
use disk::{Lost, SimDisk};
use fastrand::Rng;
use faults::{Errno, Fault, Kind, Plan, Process};
use lockstep_proto::store::{Fencing, Store};
use places::Spot;
use world::{Action, Place, Tally, Undecided, World};

/// Actions in the life of one log.
const ACTIONS: u32 = 120;

/// One log's life at one place.
fn live(seed: u64, steps: &Arc<AtomicU64>) -> Tally {
    let mut world = World::new(seed, steps);
    world.fail_one_in([0, 400, 120, 40][(seed % 4) as usize]);
    go_through(&mut world, steps);
    world.tally
}

/// One log's life at several places.
fn live_at_several(seed: u64, steps: &Arc<AtomicU64>) -> Tally {
    let mut rng = Rng::with_seed(seed);
    let (sync, quorum) =
        [(2, None), (3, Some(2)), (3, None), (3, Some(2)), (4, Some(3))][rng.usize(..5)];
    let following = rng.usize(..4) / 3;
    let place = |bucket| match bucket {
        true => Place::Bucket(SimBucket::default()),
        false => Place::Disk(SimDisk::new(false)),
    };
    let spots = (0..sync + following).map(|_| Spot::new(place(rng.u8(..4) == 0))).collect();
    let mut world = World::at_several(spots, (sync, quorum), rng, steps);
    world.fail_one_in([0, 2_000, 500, 150][(seed % 4) as usize]);
    world.slow_one_in([0, 1_000, 200, 60][(seed / 4 % 4) as usize]);
    match catch_unwind(AssertUnwindSafe(|| go_through(&mut world, steps))) {
        Ok(()) => {}
        Err(panic) if panic.is::<Undecided>() => {
            world.tally.undecided += 1;
            world.finish();
        }
        Err(panic) => resume_unwind(panic),
    }
    world.tally
}

fn go_through(world: &mut World, steps: &Arc<AtomicU64>) {
    let trace = std::env::var_os("LOCKSTEP_TRACE").is_some();
    for _ in 0..ACTIONS {
        let action = world.random_action();
        if trace {
            println!("{action:?}");
        }
        steps.fetch_add(1, Ordering::Relaxed);
        world.act(action);
        if trace {
            println!("  {}", world.listing().join("\n  "));
            println!("  {}", world.records().join("\n  "));
        }
    }
    world.end();
}

/// A request is lost while a writer finds out what the place promises. It must not take it for one that promises less: the
/// writer before it would not be shut out.
#[test]
fn a_lost_request_makes_no_place_advisory() {
    let steps = Arc::new(AtomicU64::new(0));
    for number in 0..40 {
        for fault in [Fault::Before(Errno::Io), Fault::Short(Errno::Io), Fault::After(Errno::Io)] {
            let bucket = SimBucket::default();
            let process = Process::new(Plan::At { number, fault, lasting: false }, &steps);
            let found = bucket.store("sim", &process).fencing();
            assert!(!matches!(found, Ok(Fencing::Advisory)), "request {number}, {fault:?}");
        }
    }
}

#[test]
fn a_seed_is_one_life() {
    for seed in 0..8 {
        // The steps may differ: threads that read ahead of a failure do so by no seed.
        for live in [live, live_at_several] {
            let lives = [(); 2].map(|()| live(seed, &Arc::new(AtomicU64::new(0))));
            assert_eq!(lives[0], lives[1], "LOCKSTEP_SEED={seed}");
        }
    }
}

/// The sync of a new folder's name fails, and the folder is looked at before it is written to.
#[test]
fn the_name_of_a_folder_is_synced_although_it_was_looked_at_before() {
    let steps = Arc::new(AtomicU64::new(0));
    let disk = SimDisk::new(true);
    let (died, next) = (Process::new(Plan::Never, &steps), Process::new(Plan::Never, &steps));
    disk.mount(&died).make_folder("epochs").unwrap();
    let store = disk.store("sim", &next);
    assert!(!store.exists("epochs/00000001").unwrap());
    store.create("epochs/00000001", b"claim").unwrap();
    disk.cut_power(Lost::All);
    // By another process: this one has the folder open, whether it has a name or not.
    let store = disk.store("sim", &Process::checker());
    assert_eq!(store.read("epochs/00000001").unwrap(), b"claim");
}

/// A sync fails, and the pages that it was for are clean from then on: they are read as if they were there, and the next
/// sync has nothing to say. The process that follows must not build on them.
#[test]
fn what_could_not_be_synced_is_not_built_on() {
    use Action::{Commit, CutPower, Kill, Lose};
    let steps = Arc::new(AtomicU64::new(0));
    let mut struck = 0;
    for number in 0..120 {
        let disk = Place::Disk(SimDisk::new(false));
        let mut world = World::at(disk, Rng::with_seed(1), &steps);
        world.fail_by(Plan::At { number, fault: Fault::Dropped, lasting: false });
        for action in [Commit(1), Commit(1), Kill, Commit(1), Lose, Commit(1), CutPower] {
            world.act(action);
        }
        struck += u64::from(world.kinds().get(number as usize) == Some(&Kind::Sync));
        world.end();
    }
    assert!(struck > 5, "{struck}");
}

/// Who publishes a snapshot dies before its name is durable. It is there for all to see, and retention must not rely on it.
#[test]
fn for_a_snapshot_whose_name_may_be_lost_nothing_is_removed() {
    use Action::{Commit, Compact, CutPower, Kill, Prune};
    let steps = Arc::new(AtomicU64::new(0));
    let script = [Commit(1), Kill, Commit(2), Kill, Commit(1), Compact, Prune(1), CutPower];
    let run = |number, seed| {
        let disk = Place::Disk(SimDisk::new(false));
        let mut world = World::at(disk, Rng::with_seed(seed), &steps);
        world.fail_by(Plan::At { number, fault: Fault::DieAfter, lasting: false });
        script.iter().for_each(|action| world.act(*action));
        let kinds = world.kinds();
        world.end();
        kinds
    };
    for seed in 0..8 {
        let kinds = (0..).zip(run(u64::MAX, seed));
        kinds.filter(|(_, kind)| *kind == Kind::Name).for_each(|(at, _)| drop(run(at, seed)));
    }
}

/// Whatever was in a bucket once and was removed comes back, as by a request that was given up and arrives late. It is left
/// out, and removed again.
#[test]
fn what_comes_back_after_its_removal_is_left_out() {
    use Action::{Commit, Compact, Kill, Prune};
    let bucket = SimBucket::default();
    let steps = Arc::new(AtomicU64::new(0));
    let mut world = World::at(Place::Bucket(bucket.clone()), Rng::with_seed(3), &steps);
    let mut ever = BTreeMap::new();
    for action in [
        [Commit(1), Commit(2), Kill, Commit(1), Compact],
        [Commit(1), Kill, Commit(3), Compact, Kill],
        [Commit(1), Commit(2), Compact, Commit(1), Prune(1)],
    ]
    .concat()
    {
        world.act(action);
        ever.extend(bucket.objects());
    }
    // Snapshots are not: one whose parent is gone would be taken for damage.
    ever.retain(|name, bytes| {
        (name.starts_with("log/") || name.starts_with("tail/")) && !bytes.is_empty()
    });
    let now = bucket.objects();
    ever.retain(|name, _| !now.contains_key(name));
    assert!(ever.len() > 5, "{}", ever.len());
    for (name, bytes) in &ever {
        bucket.arrives(name, bytes.clone());
        world.check_all();
        world.act(Prune(1));
        // Of the first of an epoch the number stays taken.
        assert!(bucket.objects().get(name).is_none_or(Bytes::is_empty), "{name}");
    }
    ever.iter().for_each(|(name, bytes)| bucket.arrives(name, bytes.clone()));
    world.check_all();
    world.act(Prune(1));
    world.end();
}

/// The places of a log are opened, then an older writer goes on at some of them, and only then the newer one claims it.
#[test]
fn where_the_log_ends_is_looked_for_at_all_places_after_the_claim() {
    several(0..30, (3, Some(2)), 0, &[Action::Commit(1), Action::Race, Action::Race, Action::Race]);
}

/// Where a writer begins segment after segment because one place is away, the others keep records that nobody was told of.
/// They are in nobody's way when the place is brought up.
#[test]
fn a_place_is_brought_up_behind_records_that_nobody_was_told_of() {
    use Action::{ComeBack, Commit, GoAway, Kill};
    let script = [Commit(1), GoAway, Commit(1), ComeBack, Commit(2), GoAway, Kill, Commit(1)];
    several(0..30, (3, None), 60, &script);
}

/// What each of several places has without the others, through a script by each seed.
fn several(seeds: Range<u64>, policy: (usize, Option<u32>), one_in: u32, script: &[Action]) {
    let steps = Arc::new(AtomicU64::new(0));
    for seed in seeds {
        let spots = (0..policy.0).map(|_| Spot::new(Place::Disk(SimDisk::new(false))));
        let mut world = World::at_several(spots.collect(), policy, Rng::with_seed(seed), &steps);
        world.fail_one_in(one_in);
        script.iter().for_each(|action| world.act(*action));
        world.end();
    }
}

/// A short history in which each operation on the disk fails once, in every way; for once, and for as long as the process
/// lives. After each, the machine may lose its power at any moment.
#[test]
fn every_operation_may_fail_in_every_way() {
    use Action::{Commit, Gap, Lose, Prune, Restart, SecondWriter, Settings};
    let scripts: [&[Action]; 3] = [
        &[Commit(1), Commit(2), Lose, Settings, Commit(1), Restart, Commit(1)],
        &[Commit(1), SecondWriter, Commit(1), Lose, Lose, Commit(1), Prune(1)],
        &[Commit(1), Gap, Commit(1), Lose, Commit(1), Prune(1), Commit(1)],
    ];
    let began = Instant::now();
    let steps = Arc::new(AtomicU64::new(0));
    let all = Mutex::new((0, Tally::default()));
    // Prime to the number of faults of each kind: each comes with each operation of some script.
    let stride = if std::env::var_os("LOCKSTEP_LONG").is_some() { 1 } else { 13 };
    let places = [false, true];
    for (script, on_bucket) in scripts.into_iter().flat_map(|script| places.map(|on| (script, on)))
    {
        let run = |number, fault, lasting| {
            let place = match on_bucket {
                true => Place::Bucket(SimBucket::default()),
                false => Place::Disk(SimDisk::new(false)),
            };
            let mut world = World::at(place, Rng::with_seed(7), &steps);
            world.fail_by(Plan::At { number, fault, lasting });
            script.iter().for_each(|action| world.act(*action));
            let kinds = world.kinds();
            world.end();
            (kinds, world.tally)
        };
        let (kinds, _) = run(u64::MAX, Fault::DieBefore, false);
        let mut points = Vec::new();
        for (number, kind) in (0..).zip(kinds) {
            for fault in Fault::all(kind) {
                for lasting in [false, true].into_iter().take(1 + usize::from(fault.can_last())) {
                    points.push((number, fault, lasting));
                }
            }
        }
        on_all_cores(points.len() as u64 / stride, |point| {
            let (number, fault, lasting) = points[(point * stride) as usize];
            let tally = catch_unwind(|| run(number, fault, lasting).1).unwrap_or_else(|panic| {
                println!("operation {number}, {fault:?}, lasting: {lasting}, of {script:?}, on a bucket: {on_bucket}");
                resume_unwind(panic)
            });
            let mut all = all.lock().unwrap();
            all.0 += 1;
            all.1.add(&tally);
            true
        });
    }
    let (points, all) = all.into_inner().unwrap();
    println!("{points} points swept, {:.0} s: {all:?}", began.elapsed().as_secs_f64());
}

/// Does `what` with 0, 1, … up to `count` or until it says that it is enough.
fn on_all_cores(count: u64, what: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count || !what(number) {
                        return;
                    }
                }
            });
        }
    });
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Steps that a run takes, where nothing else is said.
const STEPS: u64 = 1_000_000;
/// Lives at several places.
const LIVES_AT_SEVERAL: u64 = 60;

#[test]
fn whatever_happens_nothing_acknowledged_is_lost() {
    lives(live, |steps, _| steps >= STEPS);
}

#[test]
fn whichever_places_fail_nothing_acknowledged_is_lost() {
    lives(live_at_several, |_, lives| lives >= LIVES_AT_SEVERAL);
}

/// One life after another, until there were enough steps, or lives.
fn lives(live: fn(u64, &Arc<AtomicU64>) -> Tally, enough: fn(u64, u64) -> bool) {
    let steps = Arc::new(AtomicU64::new(0));
    if let Some(seed) = variable("LOCKSTEP_SEED") {
        println!("{:?}", live(seed, &steps));
        return;
    }
    let began = Instant::now();
    let is_over = |number| match variable("LOCKSTEP_SECONDS") {
        Some(seconds) => began.elapsed() >= Duration::from_secs(seconds),
        None => enough(steps.load(Ordering::Relaxed), number),
    };
    let first = variable("LOCKSTEP_FIRST_SEED").unwrap_or(0);
    let all = Mutex::new((0, Tally::default()));
    on_all_cores(u64::MAX, |number| {
        if is_over(number) {
            return false;
        }
        let seed = first + number;
        let tally = catch_unwind(|| live(seed, &steps)).unwrap_or_else(|panic| {
            println!("again: LOCKSTEP_SEED={seed}");
            resume_unwind(panic)
        });
        let mut all = all.lock().unwrap();
        all.0 += 1;
        all.1.add(&tally);
        true
    });
    let (lives, all) = all.into_inner().unwrap();
    let steps = steps.load(Ordering::Relaxed);
    println!("{steps} steps in {lives} lives, {:.0} s: {all:?}", began.elapsed().as_secs_f64());
}
