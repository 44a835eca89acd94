use super::super::two::Two;
use super::*;
use crate::store::FileStore;

fn log_of(two: &Two, name: &str) -> Vec<(String, Vec<u8>)> {
    let mut content = two.content(name);
    content.retain(|(name, _)| name.starts_with(layout::LOG));
    content
}

#[track_caller]
fn expect_two_histories(two: &Two) {
    let before = log_of(two, "b");
    let mirrored = two.try_mirror("a", "b");
    assert!(matches!(mirrored, Err(Error::TwoHistories { .. })), "{mirrored:?}");
    assert_eq!(log_of(two, "b"), before);
}

#[test]
fn what_is_copied_is_counted_and_leads_to_the_end() {
    let mut two = Two::new();
    FileStore::create_root(&two.path("c")).unwrap();
    let (source, target) = (&two.store("a"), &two.store("c"));
    let mut told = 0;
    let mirror = Mirror { source, target, keys: &two.keys, before: None };
    let mirrored = mirror.run(&mut |bytes| told += bytes).unwrap();
    let content = two.content("c");
    let bytes = content.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!((mirrored.objects, mirrored.bytes, told), (content.len() as u64, bytes, bytes));
    let end = two.end("a").position;
    assert_eq!(mirrored.end, Some(end));
    assert!(mirrored.bindable.contains(&end.mark()));
    // Only the rest is copied later.
    two.write("a", 1);
    let mirrored = two.mirror("a", "c");
    assert_eq!((mirrored.objects, mirrored.end), (2, Some(two.end("a").position)));
}

#[test]
fn one_record_that_nobody_was_told_of_may_be_there_more() {
    let two = Two::longer_at_b(1);
    let mirrored = two.mirror("a", "b");
    assert_eq!(mirrored.end, Some(two.end("a").position));
    assert_eq!(two.end("b").position, two.end("a").position);
    expect_two_histories(&Two::longer_at_b(2));
}

#[test]
fn a_segment_that_only_the_target_has_holds_one_record_at_most() {
    let two = Two::only_at_b(0);
    two.mirror("a", "b");
    assert_eq!(two.end("b").position, two.end("a").position);
    expect_two_histories(&Two::only_at_b(1));
}

#[test]
fn a_segment_that_lost_its_end_is_brought_up() {
    let two = Two::new();
    let path = &two.segments("b")[1];
    let whole = std::fs::read(path).unwrap();
    std::fs::write(path, &whole[..300]).unwrap();
    two.mirror("a", "b");
    two.expect_same();
}

/// It was kept zeroed ahead, and its writer's machine lost its power.
#[test]
fn of_the_newest_segment_the_size_says_nothing() {
    let mut two = Two::new();
    let mut after = two.write_and_die("a", 4);
    two.mirror("a", "b");
    let (mut less, whole) = (after.swap_remove(1), after.swap_remove(2));
    less.resize(whole.len(), 0);
    std::fs::write(two.segments("a").pop().unwrap(), &whole).unwrap();
    std::fs::write(two.segments("b").pop().unwrap(), less).unwrap();
    two.mirror("a", "b");
    two.expect_same();
}

/// What the source has no more, the target may keep: it need not lead on to what is copied, then or later.
#[test]
fn one_is_brought_up_from_where_the_source_begins() {
    let mut two = Two::new();
    two.write("a", 2);
    two.write("a", 2);
    two.keep_newest_segment("a");
    for _ in 0..2 {
        let mirrored = two.mirror("a", "b");
        assert_eq!(mirrored.end, Some(two.end("a").position));
        two.write("a", 2);
    }
}

/// Retention has removed all but the newest segment at 'a'.
fn prune(two: &Two) -> SegmentName {
    let begins = two.end("a").segment;
    Beginnings::note(&two.store("a"), begins.generation, begins.age()).unwrap();
    two.keep_newest_segment("a");
    begins
}

#[test]
fn where_a_log_begins_is_copied_with_what_is_behind_it() {
    let mut two = Two::new();
    two.write("a", 2);
    let begins = prune(&two);
    two.mirror("a", "b");
    let names: Vec<_> = all_segments(&two.store("b")).unwrap().iter().map(|of| of.name).collect();
    assert_eq!(names, [begins]);
}

#[test]
fn what_is_before_a_beginning_counts_while_nothing_is_behind_it() {
    let mut two = Two::new();
    two.write("a", 2);
    let begins = prune(&two);
    let before = two.end("b").position;
    let snapshots = || {
        let (source, target) = (&two.store("a"), &two.store("b"));
        let mirror = Mirror { source, target, keys: &two.keys, before: None };
        mirror.snapshots(&mut |_| {}).unwrap();
    };
    snapshots();
    assert_eq!(two.end("b").position, before);
    let name = begins.to_string();
    std::fs::copy(two.path("a").join(&name), two.path("b").join(&name)).unwrap();
    snapshots();
    assert_eq!(two.segments("b"), [two.path("b").join(&name)]);
}
