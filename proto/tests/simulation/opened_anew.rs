//! Several places of one log, and who opens it behind another writer, or behind itself: what the older one left somewhere is
//! gone on from, or is in nobody's way.

use std::sync::Arc;
use std::time::Duration;

use lockstep_proto::layout;
use lockstep_proto::log::{LogEnd, segments};
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::replica::Standing;
use lockstep_proto::verify;

use crate::bucket::SimBucket;
use crate::faults::{Errno, Fault, Kind, Plan, Process};
use crate::scene::{FOR_EVER, SECOND, Scene, append, standing, write_stream};
use crate::world::Place;

/// Whoever had the newest record when the places were opened went away before the claim, and the others have it by then.
#[test]
fn who_is_newest_behind_the_claim_has_everything() {
    let mut scene = Scene::new(3, 0, Some(2));
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=5).unwrap();
    replicas.settle(60 * SECOND);
    [1, 2].iter().for_each(|&index| scene.spot(index).takes(FOR_EVER));
    append(&mut writer, 6..=6).unwrap_err();
    scene.process.kill();
    drop((replicas, writer));
    scene.sleep(2_000);
    [1, 2].iter().for_each(|&index| scene.spot(index).takes(Duration::ZERO));
    scene.process = Process::new(Plan::Never, &Arc::default());
    assert_ne!(scene.end(0), scene.end(1));
    let replicas = scene.replicas();
    scene.spot(0).go_away();
    for index in [1, 2] {
        scene.places.copy(&*scene.store(0), &*scene.store(index)).unwrap();
    }
    let mut writer = scene.writer(replicas.clone());
    append(&mut writer, 7..=7).unwrap();
    assert_eq!((standing(&replicas, 1), scene.end(1)), (Standing::Current, scene.end(2)));
}

/// Its own claim is in the way of the record that is left.
#[test]
fn a_record_that_was_given_up_is_in_nobodys_way_when_the_same_process_opens_the_log_anew() {
    let buckets = (0..3).map(|_| Place::Bucket(SimBucket::default()));
    let scene = Scene::of(buckets.collect(), 3, Some(2));
    let (replicas, mut writer) = scene.open();
    (0..3).for_each(|index| scene.spot(index).takes(15 * SECOND));
    // The first is written too late, the second one not before the next claim.
    (0..2).for_each(|_| assert!(append(&mut writer, 1..=1).is_err()));
    drop(writer);
    (0..3).for_each(|index| scene.spot(index).takes(Duration::ZERO));
    let mut writer = scene.writer(replicas.clone());
    append(&mut writer, 1..=3).unwrap();
    replicas.settle(60 * SECOND);
    for index in 0..3 {
        assert_eq!(standing(&replicas, index), Standing::Current);
        assert_eq!(scene.end(index), scene.end(0));
    }
}

/// Wrote what all places have, and writes to one of them, which is slow, once more after so many tenths of a second. Gives
/// its epoch.
fn older_writer(scene: &Scene, at: usize, tenths: u32) -> u32 {
    let mut older = scene.writer(scene.places.at(at, &scene.process).unwrap());
    append(&mut older, 1..=3).unwrap();
    for of in (0..3).filter(|&of| of != at) {
        scene.places.copy(&*scene.store(at), &*scene.store(of)).unwrap();
    }
    scene.spot(at).takes(SECOND / 5);
    let (turns, epoch) = (scene.places.turns.clone(), older.epoch());
    scene.places.turns.start(Box::new(move || {
        turns.sleep(tenths * SECOND / 10);
        let _ = append(&mut older, 4..=4);
    }));
    epoch
}

/// It has not seen the newer claim yet. Its record is at one place only, and nobody was told of it.
#[test]
fn what_an_older_writer_writes_while_the_log_is_opened_is_not_built_on() {
    for tenths in 0..30 {
        let scene = Scene::new(3, 0, None);
        older_writer(&scene, 0, tenths);
        let (replicas, mut writer) = scene.open();
        append(&mut writer, 4..=6).unwrap();
        replicas.settle(60 * SECOND);
        for index in 0..3 {
            verify::run(&*scene.store(index), &scene.keys, &mut |_| {})
                .unwrap_or_else(|error| panic!("after {tenths} tenths: {error}"));
            assert_eq!(scene.end(index), scene.end(0));
        }
    }
}

/// It was there before ours, and ours is acknowledged by nobody: either may turn out to count.
#[test]
fn what_an_older_writer_has_put_in_the_way_stays_while_our_record_is_not_acknowledged() {
    let mut in_the_way = 0;
    for (tenths, hang) in (28..38).step_by(2).flat_map(|at| (24..38).map(move |hang| (at, hang))) {
        let buckets: Vec<_> = (0..3).map(|_| SimBucket::default()).collect();
        let scene = Scene::of(buckets.iter().cloned().map(Place::Bucket).collect(), 3, Some(2));
        let epoch = older_writer(&scene, 2, tenths);
        let next = scene.end(2).seq + 1;
        [0, 1].iter().for_each(|&of| scene.spot(of).takes(SECOND / 10));
        let (turns, others) = (scene.places.turns.clone(), [0, 1].map(|of| scene.spot(of)));
        scene.places.turns.start(Box::new(move || {
            turns.sleep(hang * SECOND / 10);
            others.iter().for_each(|spot| spot.takes(FOR_EVER));
        }));
        let Ok(replicas) = scene.places.open(&scene.process) else { continue };
        if scene.try_writer(replicas.clone()).is_ok() {
            continue;
        }
        scene.sleep(30);
        // What it wrote before the log was looked at is built on.
        let end = LogEnd::read(&*scene.store(2), &scene.keys).unwrap();
        in_the_way += u32::from((end.epoch, end.position.seq) == (epoch, next));
        let own = segments(&*scene.store(2), 1).unwrap();
        let older: Vec<_> = own.into_iter().filter(|of| of.name.epoch <= epoch).collect();
        let older = LogEnd::read_listed(&*scene.store(2), &scene.keys, &older).unwrap();
        let both = older.position.seq == next && end.segment.first_seq == next;
        assert!(!both, "after {tenths} tenths, others hang after {hang}");
    }
    assert!(in_the_way > 0);
}

/// It came to too few places, and those do not answer when it tries again.
#[test]
fn nobody_is_fenced_by_what_it_claimed_itself() {
    let scene = Scene::new(3, 0, Some(2));
    let (replicas, writer) = scene.open();
    let epoch = writer.epoch();
    drop(writer);
    [0, 1].iter().for_each(|&index| scene.spot(index).go_away());
    (0..2).for_each(|_| assert!(scene.try_writer(replicas.clone()).is_err()));
    assert!(scene.store(2).exists(&layout::claim(epoch + 2)).unwrap());
    scene.spot(2).go_away();
    [0, 1].iter().for_each(|&index| scene.spot(index).come_back());
    let mut writer = (0..20)
        .find_map(|_| {
            scene.sleep(5);
            scene.try_writer(replicas.clone()).ok()
        })
        .unwrap();
    // Before each segment it looks for a newer claim.
    writer.set_segment_bytes(1);
    append(&mut writer, 1..=3).unwrap();
    scene.spot(2).come_back();
    scene.sleep(20);
    append(&mut writer, 4..=6).unwrap();
    replicas.settle(60 * SECOND);
    assert_eq!(scene.end(2), scene.end(0));
}

/// One was slow when it claimed the next epoch, the other had not taken all that was written before.
#[test]
fn who_is_passed_over_when_the_same_writer_claims_again_is_brought_up() {
    let scene = Scene::new(3, 0, Some(2));
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=2).unwrap();
    writer.begin(Start { reason: StartReason::Gap, base: None }, None, 1).unwrap();
    replicas.settle(60 * SECOND);
    scene.spot(2).go_away();
    append(&mut writer, 1..=1).unwrap();
    scene.spot(2).come_back();
    scene.spot(1).takes(5 * SECOND);
    let before = writer.epoch();
    assert_eq!(writer.next_generation(1).unwrap(), before + 1);
    scene.spot(1).takes(Duration::ZERO);
    scene.sleep(60);
    assert!(replicas.reports().iter().all(|report| report.standing == Standing::Current));
    // As the snapshot that a generation begins with, before there is a segment of it.
    scene.spot(0).go_away();
    write_stream(&replicas, "files/stream").unwrap();
}

/// Of so many places: a first process with `first` going wrong, then a second one with `second`. Each place then has the
/// whole log, also without what was never synced. Gives what the operations of each were.
fn after_two_processes(first: Plan, second: Plan) -> [Vec<Kind>; 2] {
    let mut scene = Scene::new(3, 0, Some(2));
    scene.process = Process::new(first, &Arc::default());
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=3).unwrap();
    let kinds = scene.process.kinds();
    scene.process.kill();
    drop((replicas, writer));
    scene.sleep(100);
    scene.process = Process::new(second, &Arc::default());
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 4..=6).unwrap();
    replicas.settle(60 * SECOND);
    scene.sleep(100);
    for index in 0..3 {
        let place = scene.disk(index).store("there", &Process::checker());
        verify::run(&place, &scene.keys, &mut |_| {}).unwrap();
        assert_eq!(LogEnd::read(&place, &scene.keys).unwrap().position, scene.end(0));
    }
    [kinds, scene.process.kinds()]
}

/// What is read there may be in a cache only: a write failed before it was synced, and so did what would have synced it.
#[test]
fn what_a_place_has_already_is_durable_there_once_it_is_brought_up() {
    let never = || Plan::At { number: u64::MAX, fault: Fault::DieBefore, lasting: false };
    let kinds = after_two_processes(never(), never());
    let all = |of: &[Kind], kind: Kind| -> Vec<u64> {
        let numbered = (0..).zip(of).filter(|(_, of)| **of == kind);
        numbered.map(|(number, _)| number).collect()
    };
    let writes = all(&kinds[0], Kind::Write);
    for &write in &writes[writes.len() - 3..] {
        for name in all(&kinds[1], Kind::Name) {
            let fault = Fault::After(Errno::Io);
            let first = Plan::At { number: write, fault, lasting: false };
            let fault = Fault::Before(Errno::NoSpace);
            after_two_processes(first, Plan::At { number: name, fault, lasting: false });
        }
    }
}
