//! Several places of one log, of which one is slow, hangs, goes away or comes back as something else: who is waited for, how
//! long, and what is said of whom.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use lockstep_proto::error::Error;
use lockstep_proto::layout;
use lockstep_proto::log::LogEnd;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::replica::{Mode, Replicas, Standing};
use lockstep_proto::restore::{self, Plan};
use lockstep_proto::retention::Policy;
use lockstep_proto::shadow::Shadow;
use lockstep_proto::store::{Fencing, Store, StoreErrorKind};
use lockstep_proto::verify;
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Writer};

use crate::bucket::SimBucket;
use crate::faults::Process;
use crate::scene::{FOR_EVER, SECOND, Scene, append, standing, write_stream};
use crate::world::Place;

#[test]
fn at_the_end_who_answers_is_waited_for() {
    let scene = Scene::new(1, 2, None);
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=3).unwrap();
    replicas.settle(60 * SECOND);
    scene.spot(1).takes(SECOND / 2);
    scene.spot(2).go_away();
    append(&mut writer, 4..=8).unwrap();
    assert_ne!(scene.end(1), scene.end(0));
    let ((), took) = scene.took(|| replicas.settle(60 * SECOND));
    assert_eq!(scene.end(1), scene.end(0));
    assert!(took < 30 * SECOND, "for one that is away, too: {took:?}");
    scene.spot(1).takes(FOR_EVER);
    append(&mut writer, 9..=9).unwrap();
    let ((), took) = scene.took(|| replicas.settle(5 * SECOND));
    assert!((5 * SECOND..7 * SECOND).contains(&took), "{took:?}");
}

#[test]
fn who_answers_a_little_later_is_heard_and_who_hangs_is_not_waited_for() {
    let scene = Scene::new(3, 0, Some(2));
    let replicas = scene.replicas();
    // Another writer reached this one alone.
    scene.store(2).create("epochs/00000009", b"another's").unwrap();
    let claims = || {
        let claims = replicas.list("epochs").unwrap();
        claims.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    scene.spot(2).takes(SECOND / 2);
    assert_eq!(claims(), ["00000001", "00000009"]);
    scene.spot(2).takes(FOR_EVER);
    let (claims, took) = scene.took(claims);
    assert_eq!(claims, ["00000001"]);
    assert!(took < 5 * SECOND, "{took:?}");
}

#[test]
fn what_too_few_places_take_is_an_error_until_they_are_back() {
    let scene = Scene::new(3, 0, Some(2));
    let replicas = scene.replicas();
    let stream = || write_stream(&replicas, "files/stream");
    let create = || replicas.create("files/one", b"bytes");
    scene.spot(1).go_away();
    scene.spot(2).go_away();
    create().unwrap_err();
    stream().unwrap_err();
    replicas.replace("files/one", b"other").unwrap_err();
    replicas.remove("files/one").unwrap_err();
    scene.spot(0).go_away();
    replicas.sync("lockstep.json").unwrap_err();
    (0..3).for_each(|index| scene.spot(index).come_back());
    scene.sleep(30);
    create().unwrap();
    replicas.sync("files/one").unwrap();
    replicas.replace("files/one", b"other").unwrap();
    for index in 0..3 {
        assert_eq!(scene.store(index).read("files/one").unwrap(), b"other");
    }
    replicas.remove("files/one").unwrap();
    assert!((0..3).all(|index| !scene.store(index).exists("files/one").unwrap()));
}

/// It lacks the snapshot that the others go on from, which was made of records of the segment that is being written.
#[test]
fn a_place_that_is_brought_up_ends_like_the_others_only_once_it_can_be_restored_from() {
    expect_to_be_brought_up_whole(None);
    // It is copied in several rounds then.
    (0..30).step_by(3).for_each(|tenths| expect_to_be_brought_up_whole(Some(tenths)));
}

/// Something else is written meanwhile, after so many tenths of a second.
fn expect_to_be_brought_up_whole(writes_after: Option<u32>) {
    let scene = Scene::new(3, 0, Some(2));
    let (replicas, mut writer) = scene.open();
    let mut version = 0;
    let mut write = |writer: &mut Writer, sql: &str| {
        version += 1;
        let writes = [sql.into(), format!("UPDATE vars SET intval = {version}")];
        let call = Call { data_version: DataVersion(version), transaction: true, writes: &writes };
        writer.append(&call, 1).unwrap();
    };
    let table = "CREATE TABLE vars (name, intval); INSERT INTO vars VALUES ('data_version', 0)";
    table.split("; ").for_each(|sql| write(&mut writer, sql));
    replicas.settle(60 * SECOND);
    scene.spot(0).go_away();
    for _ in 0..2 {
        (0..5).for_each(|_| write(&mut writer, "DELETE FROM vars WHERE name = 'none'"));
        drop(writer);
        writer = scene.writer(replicas.clone());
    }
    (0..5).for_each(|_| write(&mut writer, "DELETE FROM vars WHERE name = 'none'"));
    let folder = tempfile::tempdir().unwrap();
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    let [one, other] = [1, 2].map(|index| scene.store(index));
    let mut shadow = Shadow::open(&*one, &scene.keys, &folder.path().join("shadow")).unwrap();
    shadow.catch_up(&mut |_| {}).unwrap();
    shadow.publish(&mut |_, _| {}).unwrap();
    scene.places.copy(&*one, &*other).unwrap();
    for store in [one, other] {
        let plan = PrunePlan::new(&*store, &scene.keys, &policy, 2).unwrap();
        plan.run(&*store, &mut || Ok(()), &mut |_| {}).unwrap();
        assert_eq!(store.list_all("log").unwrap().len(), 1);
    }
    scene.spot(0).takes(SECOND / 10);
    scene.spot(0).come_back();
    if let Some(tenths) = writes_after {
        scene.places.turns.sleep(tenths * SECOND / 10);
        write_stream(&replicas, "files/stream").unwrap();
    }
    let mut equal = 0;
    while equal < 20 {
        scene.places.turns.sleep(SECOND / 20);
        let store = scene.store(0);
        if scene.end(0) == scene.end(1) {
            equal += 1;
            let to = folder.path().join(equal.to_string());
            let plan = Plan::newest(&*store, &scene.keys).unwrap();
            restore::run(&*store, &scene.keys, &plan, &to, &mut |_| {}).unwrap();
            verify::run(&*store, &scene.keys, &mut |_| {}).unwrap();
        }
    }
}

/// Those that have everything get it; what is copied was listed before.
#[test]
fn what_is_written_while_a_place_is_brought_up_is_there_in_the_end() {
    for tenths in 0..50 {
        let scene = Scene::new(3, 0, Some(2));
        let (replicas, mut writer) = scene.open();
        scene.spot(0).go_away();
        append(&mut writer, 1..=1).unwrap();
        drop(writer);
        let mut writer = scene.writer(replicas.clone());
        scene.spot(0).takes(SECOND / 10);
        scene.spot(0).come_back();
        scene.places.turns.sleep(tenths * SECOND / 10);
        write_stream(&replicas, "files/stream").unwrap();
        append(&mut writer, 2..=2).unwrap();
        scene.sleep(60);
        assert_eq!(standing(&replicas, 0), Standing::Current);
        assert!(scene.store(0).exists("files/stream").unwrap(), "after {tenths} tenths");
    }
}

/// But for what is one's own: the answer may have been lost.
#[test]
fn what_one_place_has_already_is_not_created() {
    let scene = Scene::new(3, 0, Some(2));
    let replicas = scene.replicas();
    scene.store(1).create("files/one", b"another's").unwrap();
    let error = replicas.create("files/one", b"ours").unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::Exists), "{error}");
    scene.store(1).create("files/two", b"ours").unwrap();
    replicas.create("files/two", b"ours").unwrap();
    for index in 0..3 {
        assert_eq!(scene.store(index).read("files/two").unwrap(), b"ours");
    }
}

#[test]
fn what_one_place_cannot_give_another_does() {
    let scene = Scene::new(3, 0, Some(2));
    let (replicas, mut writer) = scene.open();
    scene.spot(0).go_away();
    replicas.read("lockstep.json").unwrap();
    scene.spot(0).come_back();
    // What is not there is not there, whoever else is away.
    append(&mut writer, 1..=1).unwrap();
    scene.sleep(20);
    scene.spot(2).go_away();
    let error = replicas.read("files/none").unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::NotFound), "{error}");
    scene.spot(2).come_back();
    // Each has gone away and come back once.
    scene.spot(1).go_away();
    append(&mut writer, 2..=2).unwrap();
    scene.spot(1).come_back();
    scene.sleep(20);
    append(&mut writer, 3..=3).unwrap();
    scene.sleep(20);
    assert!((0..3).all(|index| standing(&replicas, index) == Standing::Current));
    replicas.read("lockstep.json").unwrap();
    (0..3).for_each(|index| scene.spot(index).go_away());
    replicas.read("lockstep.json").unwrap_err();
}

#[test]
fn who_keeps_a_record_from_being_acknowledged_is_named() {
    let scene = Scene::new(3, 1, None);
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=2).unwrap();
    replicas.settle(60 * SECOND);
    scene.spot(1).takes(FOR_EVER);
    scene.spot(3).go_away();
    let error = append(&mut writer, 3..=3).unwrap_err().to_string();
    assert!(error.contains("'1': no answer"), "{error}");
    assert!(["'0':", "'2':", "'3':"].iter().all(|other| !error.contains(other)), "{error}");
}

#[test]
fn who_is_away_is_tried_again_with_pauses() {
    let scene = Scene::new(3, 0, Some(2));
    let (_replicas, mut writer) = scene.open();
    scene.spot(2).go_away();
    append(&mut writer, 1..=1).unwrap();
    let before = scene.spot(2).opened.load(Relaxed);
    scene.sleep(60);
    let tried = scene.spot(2).opened.load(Relaxed) - before;
    assert!((10..30).contains(&tried), "{tried}");
}

#[test]
fn how_a_place_stands_is_told_when_it_changes() {
    let scene = Scene::new(3, 0, Some(2));
    let told = Arc::new(Mutex::new(Vec::new()));
    let open = || {
        let told = told.clone();
        let observer = move |report: &lockstep_proto::replica::Report| {
            told.lock().unwrap().push((report.name.clone(), report.standing));
        };
        let replicas = scene.places.open_observed(&scene.process, Arc::new(observer)).unwrap();
        let writer = scene.writer(replicas.clone());
        (replicas, writer)
    };
    let expect = |expected: &[Standing]| {
        let told = std::mem::take(&mut *told.lock().unwrap());
        let expected: Vec<_> = expected.iter().map(|standing| ("2".into(), *standing)).collect();
        assert_eq!(told, expected);
    };
    let (replicas, mut writer) = open();
    append(&mut writer, 1..=20).unwrap();
    replicas.settle(60 * SECOND);
    expect(&[]);
    scene.spot(2).go_away();
    append(&mut writer, 21..=30).unwrap();
    scene.sleep(20);
    expect(&[Standing::Behind]);
    let lacks = replicas.reports()[2].lacks;
    assert!((10..15).contains(&lacks), "{lacks}");
    scene.spot(2).come_back();
    scene.sleep(20);
    expect(&[Standing::Current]);
    assert_eq!(replicas.reports()[2].lacks, 0);
    // One that is there, and lacks something from the beginning, goes away.
    scene.spot(2).go_away();
    append(&mut writer, 31..=31).unwrap();
    drop((replicas, writer));
    scene.sleep(20);
    scene.spot(2).come_back();
    told.lock().unwrap().clear();
    let (replicas, mut writer) = open();
    scene.spot(2).go_away();
    append(&mut writer, 32..=32).unwrap();
    scene.sleep(20);
    assert_eq!(standing(&replicas, 2), Standing::Behind);
    assert!(told.lock().unwrap().contains(&("2".into(), Standing::Behind)));
}

#[test]
fn one_is_brought_up_while_another_is_away() {
    let scene = Scene::new(5, 0, Some(3));
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=5).unwrap();
    scene.spot(0).go_away();
    scene.spot(4).go_away();
    append(&mut writer, 6..=10).unwrap();
    scene.sleep(20);
    scene.spot(4).come_back();
    scene.sleep(20);
    assert_eq!((standing(&replicas, 4), scene.end(4)), (Standing::Current, scene.end(1)));
    assert_eq!(standing(&replicas, 0), Standing::Behind);
}

#[test]
fn who_is_there_gets_each_record_once() {
    let scene = Scene::new(3, 0, None);
    let (_replicas, mut writer) = scene.open();
    append(&mut writer, 1..=20).unwrap();
    assert!((0..3).all(|index| scene.spot(index).resumed.load(Relaxed) == 0));
}

/// A place that was away lacks a file, and nothing else.
#[test]
fn who_lacks_anything_is_brought_up() {
    let scene = Scene::new(3, 0, Some(2));
    let replicas = scene.replicas();
    scene.spot(2).go_away();
    replicas.create("files/00000001-00000001", b"while it was away").unwrap();
    assert!(!replicas.is_current(&scene.places.lock.destinations[2].url.to_string()));
    scene.spot(2).come_back();
    scene.sleep(20);
    let mut writer = scene.writer(replicas.clone());
    append(&mut writer, 1..=1).unwrap();
    scene.sleep(20);
    assert!(scene.store(2).exists("files/00000001-00000001").unwrap());
    assert_eq!(standing(&replicas, 2), Standing::Current);
}

/// A disk came back as it was before, and the mount of the place that it is brought up from is gone: below it is the same.
#[test]
fn what_is_copied_must_lead_to_what_is_written() {
    let scene = Scene::new(3, 0, Some(2));
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=5).unwrap();
    replicas.settle(60 * SECOND);
    let older = [0, 2].map(|index| scene.disk(index));
    writer.set_segment_bytes(600);
    append(&mut writer, 6..=20).unwrap();
    replicas.settle(60 * SECOND);
    for (index, older) in [0, 2].into_iter().zip(older) {
        *scene.spot(index).under.lock().unwrap() = Some(older);
    }
    scene.spot(2).go_away();
    append(&mut writer, 21..=25).unwrap();
    scene.spot(2).come_back();
    scene.sleep(60);
    let report = replicas.reports().swap_remove(2);
    assert_eq!(report.standing, Standing::Behind);
    let error = report.error.unwrap();
    assert!(error.contains("'0'") && error.contains("is written next"), "{error}");
    *scene.spot(0).under.lock().unwrap() = None;
    scene.sleep(60);
    assert_eq!(standing(&replicas, 2), Standing::Current);
}

#[test]
fn one_with_another_history_is_apart_and_stays_as_it_is() {
    let scene = Scene::new(1, 1, None);
    let mut alone = scene.writer(scene.store(1));
    append(&mut alone, 1..=3).unwrap();
    let before = scene.end(1);
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=5).unwrap();
    scene.sleep(20);
    assert_eq!(standing(&replicas, 1), Standing::Apart);
    assert_eq!(scene.end(1), before);
}

#[test]
fn how_well_others_are_kept_out_is_said_by_those_that_count() {
    let scene = Scene::new(2, 1, None);
    let replicas = scene.replicas();
    assert_eq!(replicas.fencing().unwrap(), Fencing::Real);
    scene.spot(2).is_advisory.store(true, Relaxed);
    assert_eq!(replicas.fencing().unwrap(), Fencing::Real);
    scene.spot(1).is_advisory.store(true, Relaxed);
    assert_eq!(replicas.fencing().unwrap(), Fencing::Advisory);
}

#[test]
fn an_object_that_is_given_up_leaves_no_thread_behind() {
    let scene = Scene::new(2, 0, None);
    let replicas = scene.replicas();
    let mut object = replicas.create_stream("files/given-up").unwrap();
    object.write(b"bytes").unwrap();
    drop(object);
    drop(replicas);
    scene.sleep(60);
    assert!(scene.places.turns.is_alone());
    assert!((0..2).all(|index| !scene.store(index).exists("files/given-up").unwrap()));
}

#[test]
fn a_place_that_hangs_holds_an_object_up_once() {
    let scene = Scene::new(3, 0, Some(2));
    let replicas = scene.replicas();
    scene.spot(2).takes(FOR_EVER);
    let ((), took) = scene.took(|| {
        let mut object = replicas.create_stream("files/stream").unwrap();
        (0..20).for_each(|_| object.write(b"bytes").unwrap());
        object.commit().unwrap();
    });
    assert!(took < 25 * SECOND, "{took:?}");
    assert_eq!(scene.store(1).read("files/stream").unwrap().len(), 100);
}

#[test]
fn a_place_counts_only_once_it_has_everything() {
    let scene = Scene::new(2, 1, None);
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=3).unwrap();
    replicas.settle(60 * SECOND);
    let lock = &scene.places.lock;
    let url = |index: usize| lock.destinations[index].url.to_string();
    let current = |replicas: &Replicas| [0, 1, 2].map(|index| replicas.is_current(&url(index)));
    assert_eq!(current(&replicas), [true; 3]);
    assert!(!replicas.is_current("/nowhere"));
    let mut counting = lock.clone();
    counting.destinations[2].mode = Mode::Sync;
    scene.spot(2).go_away();
    append(&mut writer, 4..=4).unwrap();
    scene.sleep(20);
    assert_eq!(current(&replicas), [true, true, false]);
    let refused = replicas.with_places(&counting, counting.destinations.clone());
    assert!(matches!(refused.err(), Some(Error::Refused { .. })));
    scene.spot(2).come_back();
    scene.sleep(20);
    counting.quorum = Some(2);
    let three = replicas.with_places(&counting, counting.destinations.clone()).unwrap();
    // And none that was removed counts, or is written to.
    let mut two = counting.clone();
    two.destinations.pop();
    let two = Arc::new(three.with_places(&two, two.destinations.clone()).unwrap());
    assert_eq!(two.reports().len(), 2);
    assert_eq!(current(&two), [true, true, false]);
    let before = scene.end(2);
    writer.move_to(two.clone());
    append(&mut writer, 5..=9).unwrap();
    two.settle(60 * SECOND);
    assert_eq!(scene.end(2), before);
    let known = LogEnd::read(&*scene.store(0), &scene.keys).unwrap().destinations;
    assert_eq!(known.named.len(), 2);
}

/// Another writer's record has arrived at one of the buckets under the number that is next: it may count as long as ours does
/// not.
#[test]
fn what_another_writer_has_put_in_the_way_stays_while_our_record_is_not_acknowledged() {
    let buckets: Vec<_> = (0..3).map(|_| SimBucket::default()).collect();
    let scene = Scene::of(buckets.iter().cloned().map(Place::Bucket).collect(), 3, Some(2));
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=5).unwrap();
    replicas.settle(60 * SECOND);
    let in_the_way = layout::part(scene.end(2).seq + 1, None);
    // It made that record where nobody else was.
    let alone = SimBucket::default();
    buckets[2].objects().into_iter().for_each(|(name, bytes)| alone.arrives(&name, bytes));
    drop(scene.writer(Arc::new(alone.store("alone", &Process::checker()))));
    buckets[2].arrives(&in_the_way, alone.objects().remove(&in_the_way).unwrap());
    let there = buckets[2].objects();
    scene.spot(0).takes(FOR_EVER);
    scene.spot(1).takes(FOR_EVER);
    let refused = append(&mut writer, 6..=6);
    assert!(matches!(refused, Err(Error::Store(_))), "nobody has claimed the log: {refused:?}");
    assert!(buckets[2].objects() == there);
}

#[test]
fn what_is_ended_is_put_together_at_each_place() {
    let buckets: Vec<_> = (0..3).map(|_| SimBucket::default()).collect();
    let scene = Scene::of(buckets.iter().cloned().map(Place::Bucket).collect(), 3, None);
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=5).unwrap();
    let segment = LogEnd::read(&*scene.store(0), &scene.keys).unwrap().segment.to_string();
    assert!(buckets.iter().all(|bucket| !bucket.objects().contains_key(&segment)));
    writer.close(1);
    replicas.settle(60 * SECOND);
    assert!(buckets.iter().all(|bucket| bucket.objects().contains_key(&segment)));
}

#[test]
fn who_was_slow_for_longer_than_is_kept_is_copied_from_another() {
    let scene = Scene::new(3, 0, Some(2));
    let (replicas, mut writer) = scene.open();
    append(&mut writer, 1..=1).unwrap();
    replicas.settle(60 * SECOND);
    writer.set_segment_bytes(1 << 20);
    scene.spot(2).takes(FOR_EVER);
    let mut rng = Rng::with_seed(1);
    for version in 2..=20 {
        let noise: String = std::iter::repeat_with(|| rng.alphanumeric()).take(3 << 20).collect();
        let (writes, data_version) = ([noise], DataVersion(version));
        writer.append(&Call { data_version, transaction: true, writes: &writes }, 1).unwrap();
    }
    scene.spot(2).takes(Duration::ZERO);
    scene.sleep(2_000);
    append(&mut writer, 21..=21).unwrap();
    replicas.settle(60 * SECOND);
    assert_eq!((standing(&replicas, 2), scene.end(2)), (Standing::Current, scene.end(0)));
}
