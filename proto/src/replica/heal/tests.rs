use std::collections::BTreeMap;
use std::path::Path;

use super::super::two::Two;
use super::*;
use crate::replica::Distance;
use crate::seal::StoreId;

/// A name, and what is done to 'b'.
type Harm<'a> = (&'a str, &'a dyn Fn(&Two));

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, bytes: usize) {
    let whole = std::fs::read(path).unwrap();
    std::fs::write(path, &whole[..bytes]).unwrap();
}

#[test]
fn what_is_intact_is_left_alone() {
    let two = Two::new();
    two.expect_same();
    assert_eq!(two.heal("a", "b").unwrap(), []);
    assert_eq!(two.mirror("a", "b").objects, 0);
}

#[test]
fn each_kind_of_damage_is_found_and_replaced() {
    let last = |path: &Path| std::fs::metadata(path).unwrap().len() as usize - 1;
    let harms: [Harm<'_>; 8] = [
        ("header", &|two| flip(&two.segments("b")[1], 40)),
        ("record", &|two| flip(&two.segments("b")[1], 200)),
        ("newest segment", &|two| flip(two.segments("b").last().unwrap(), 200)),
        ("end of a segment", &|two| {
            let path = &two.segments("b")[1];
            flip(path, last(path));
        }),
        ("cut segment", &|two| truncate(&two.segments("b")[1], 300)),
        ("claim", &|two| flip(&two.path("b").join("epochs/00000002"), 150)),
        ("slot", &|two| truncate(&two.path("b").join("keys/node.age"), 100)),
        ("marker", &|two| truncate(&two.path("b").join(layout::MARKER), 10)),
    ];
    for (what, harm) in harms {
        let two = Two::new();
        harm(&two);
        let faults = two.heal("a", "b").unwrap();
        assert_eq!(faults.len(), 1, "{what}: {faults:?}");
        assert!(faults[0].healable, "{what}: {faults:?}");
        two.expect_same();
    }
}

#[test]
fn a_slot_that_lost_one_byte_is_found() {
    let two = Two::new();
    let path = two.path("b").join("keys/node.age");
    let len = std::fs::read(&path).unwrap().len();
    truncate(&path, len - 1);
    assert_eq!(two.heal("a", "b").unwrap().len(), 1);
    two.expect_same();
}

#[test]
fn what_is_damaged_in_both_is_healed_from_neither() {
    let two = Two::new();
    flip(&two.segments("a")[1], 200);
    flip(&two.segments("b")[1], 210);
    let before = two.content("b");
    let faults = two.heal("a", "b").unwrap();
    assert!(!faults[0].healable, "{faults:?}");
    assert_eq!(two.content("b"), before);
    // Elsewhere they heal each other.
    let two = Two::new();
    flip(&two.segments("a")[1], 200);
    flip(&two.segments("b")[2], 200);
    two.heal("a", "b").unwrap();
    two.heal("b", "a").unwrap();
    two.expect_same();
}

#[test]
fn a_source_that_is_behind_does_not_shorten_a_log() {
    let two = Two::new();
    let newest = two.segments("b").pop().unwrap();
    let name = newest.strip_prefix(two.path("b")).unwrap();
    // As where 'b' did not get the last records of the session.
    truncate(&newest, 400);
    flip(&two.path("a").join(name), 200);
    let before = two.content("a");
    let faults = two.heal("b", "a").unwrap();
    assert!(!faults.is_empty() && !faults[0].healable, "{faults:?}");
    assert_eq!(two.content("a"), before);
}

/// Zeros behind the newest record are nothing that the source lacks.
#[test]
fn a_newest_segment_that_is_zeroed_ahead_is_healed() {
    let two = Two::new();
    let path = two.segments("b").pop().unwrap();
    flip(&path, 200);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.resize(bytes.len() + 5_000, 0);
    std::fs::write(&path, bytes).unwrap();
    assert!(two.heal("a", "b").unwrap()[0].healable);
    two.expect_same();
}

/// What it holds more there nobody was told of.
#[test]
fn a_damaged_segment_that_the_source_has_gone_on_from_is_replaced_by_a_shorter_one() {
    let two = Two::longer_at_b(1);
    let path = two.segments("b").pop().unwrap();
    let name = path.strip_prefix(two.path("b")).unwrap();
    flip(&path, 200);
    assert!(two.heal("a", "b").unwrap()[0].healable);
    let [healed, wanted] = ["b", "a"].map(|of| std::fs::read(two.path(of).join(name)).unwrap());
    assert_eq!(healed, wanted);
}

#[test]
fn the_segment_that_is_being_written_is_left_alone() {
    let two = Two::new();
    flip(two.segments("b").last().unwrap(), 200);
    flip(&two.segments("b")[1], 200);
    let before = Some(two.end("a").segment.age());
    let (source, target) = (&two.store("a"), &two.store("b"));
    let heal = Heal { source, target, keys: &two.keys, before };
    let faults = heal.plan(&mut |_| {}).unwrap();
    let older = &two.segments("b")[1];
    let name = older.strip_prefix(two.path("b")).unwrap().to_str().unwrap();
    assert_eq!(faults.iter().map(|fault| fault.object.as_str()).collect::<Vec<_>>(), [name]);
    let healed = heal.run(&faults, &mut |_| {}).unwrap();
    assert_eq!((healed.objects, healed.bytes), (1, std::fs::read(older).unwrap().len() as u64));
}

#[test]
fn a_marker_alone_makes_no_store_of_what_lies_there() {
    let two = Two::new();
    two.segments("b").iter().for_each(|path| flip(path, 40));
    truncate(&two.path("b").join(layout::MARKER), 10);
    let faults = two.heal("a", "b").unwrap();
    let healable = |fault: &&Fault| fault.healable;
    assert_eq!(faults.iter().filter(healable).count(), two.segments("b").len(), "{faults:?}");
    assert!(Marker::read(&two.store("b")).is_err());
}

/// Holds count by their names, and what is no slot is none that is damaged. Of companion files the source may have none.
#[test]
fn what_is_damaged_besides_is_named_and_nothing_else() {
    let two = Two::new();
    let write = |name: &str, bytes: &[u8]| {
        let path = two.path("b").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write(&layout::hold(1, 5), b"");
    write("keys/README", b"whose they are");
    let files = layout::files(1, 7);
    write(&files, b"none of ours");
    let named = || {
        let faults = two.heal("a", "b").unwrap();
        let named = faults.into_iter().map(|fault| (fault.object, fault.healable));
        named.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(named(), BTreeMap::from([(files.clone(), false)]));
    truncate(&two.path("b").join(layout::MARKER), 10);
    assert_eq!(named(), BTreeMap::from([(files, false), (layout::MARKER.into(), true)]));
}

#[test]
fn two_histories_are_refused() {
    let mut two = Two::new();
    let version = two.version;
    two.write("a", 3);
    two.version = version;
    two.write("b", 3);
    let error = two.compare().unwrap_err();
    assert!(matches!(error, Error::TwoHistories { .. }), "{error}");
    let before = two.content("b");
    assert!(matches!(two.heal("a", "b"), Err(Error::TwoHistories { .. })));
    assert_eq!(two.content("b"), before);
}

#[test]
fn one_that_is_behind_is_told_from_one_that_went_another_way() {
    let mut two = Two::new();
    two.write("a", 3);
    let (newest, other) = (two.end("a"), two.end("b"));
    assert!(newest.age() > other.age());
    let records = newest.position.seq - other.position.seq;
    assert_eq!(two.compare().unwrap(), Distance::Behind { records });
    two.mirror("a", "b");
    assert_eq!(two.compare().unwrap(), Distance::Current);
}

#[test]
fn another_store_is_never_healed() {
    let (two, mut other) = (Two::new(), Two::new());
    other.keys = KeyRing::generate(StoreId([2; 16])).unwrap();
    std::fs::remove_file(other.path("a").join(layout::MARKER)).unwrap();
    Marker::new(other.keys.store(), 1).create(&other.store("a")).unwrap();
    let (source, target) = (&two.store("a"), &other.store("a"));
    let heal = Heal { source, target, keys: &two.keys, before: None };
    assert!(matches!(heal.plan(&mut |_| {}), Err(Error::OtherStore { .. })));
}
