use super::super::two::Two;
use super::*;

fn behind(records: u64) -> Distance {
    Distance::Behind { records }
}

#[track_caller]
fn expect_two_histories(two: &Two) {
    let compared = two.compare();
    assert!(matches!(compared, Err(Error::TwoHistories { .. })), "{compared:?}");
}

#[test]
fn one_that_lacks_the_end_of_a_segment_is_behind() {
    let mut two = Two::new();
    let after = two.write_and_die("a", 4);
    two.mirror("a", "b");
    assert_eq!(two.compare().unwrap(), Distance::Current);
    std::fs::write(two.segments("b").pop().unwrap(), &after[1]).unwrap();
    assert_eq!(two.compare().unwrap(), behind(2));
}

#[test]
fn one_record_more_in_a_segment_that_was_given_up_is_nobodys() {
    let two = Two::longer_at_b(1);
    assert!(matches!(two.compare().unwrap(), Distance::Behind { .. }));
    expect_two_histories(&Two::longer_at_b(2));
}

#[test]
fn a_segment_that_the_newest_has_not_holds_one_record_at_most() {
    assert!(matches!(Two::only_at_b(0).compare().unwrap(), Distance::Behind { .. }));
    expect_two_histories(&Two::only_at_b(1));
    // But for those that were removed at the newest.
    let mut two = Two::new();
    two.write("a", 2);
    two.keep_newest_segment("a");
    assert!(matches!(two.compare().unwrap(), Distance::Behind { .. }));
}
