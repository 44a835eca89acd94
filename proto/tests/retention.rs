//! Which points and segments stay: by example, with dates that are easy to get wrong, and by property.

use std::collections::{BTreeMap, HashMap, HashSet};

use lockstep_proto::layout::{SegmentName, SnapshotName};
use lockstep_proto::log::SegmentEntry;
use lockstep_proto::record::TimeMs;
use lockstep_proto::retention::{
    GenerationNeed, Histories, Judgement, LogNeed, Point, Policy, PolicyError, Reason, Span,
    beginnings, judge, removable_segments,
};
use proptest::prelude::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// Milliseconds of "2026-11-20T14:00".
fn at(text: &str) -> TimeMs {
    let time: jiff::civil::DateTime = text.parse().unwrap();
    let time = jiff::tz::Offset::UTC.to_timestamp(time).unwrap();
    time.as_millisecond().try_into().unwrap()
}

fn name(generation: u32, epoch: u32, seq: u64) -> SnapshotName {
    SnapshotName { generation, seq, epoch, index: SnapshotName::FIRST_COMPACTED }
}

fn point(generation: u32, seq: u64, time: TimeMs) -> Point {
    Point { name: name(generation, generation, seq), time, parent: None, bytes: 1 }
}

fn segment(generation: u32, epoch: u32, index: u32, first_seq: u64) -> SegmentEntry {
    SegmentEntry { name: SegmentName { generation, epoch, index, first_seq }, size: 1 }
}

/// Generations, each written by one epoch, oldest first.
fn histories(generations: &[u32]) -> Histories {
    let segments: Vec<_> = generations.iter().map(|&g| segment(g, g, 0, 1)).collect();
    Histories::new(&segments, *generations.last().unwrap())
}

/// One generation with a point at each of `times`, seq 10, 20, …
fn judge_times(policy: Policy, times: &[&str], now: &str) -> Judgement {
    let points: Vec<_> =
        (1..).zip(times).map(|(index, time)| point(1, index * 10, at(time))).collect();
    judge(&policy, &points, &histories(&[1]), at(now))
}

fn reasons(judgement: &Judgement) -> Vec<String> {
    let text = |kept: &[Reason]| kept.iter().map(ToString::to_string).collect::<Vec<_>>();
    judgement.verdicts.iter().map(|verdict| text(&verdict.kept).join(", ")).collect()
}

fn kept(judgement: &Judgement) -> HashSet<SnapshotName> {
    let kept = judgement.verdicts.iter().filter(|verdict| verdict.is_kept());
    kept.map(|verdict| verdict.point.name).collect()
}

const NEWEST: &str = "newest: the way to the head";

#[test]
fn spans_are_read_as_they_are_written() {
    for (text, ms) in [
        ("30m", HOUR / 2),
        ("48h", 2 * DAY),
        ("7d", 7 * DAY),
        ("2w", 14 * DAY),
        ("1y", 365 * DAY),
        ("4294967295y", u64::MAX),
    ] {
        let span: Span = text.parse().unwrap();
        assert_eq!((span.as_ms(), span.to_string().as_str()), (ms, text));
    }
    for text in [
        "",
        "d",
        "7",
        "0d",
        "-7d",
        "+7d",
        "7 d",
        " 7d",
        "7D",
        "1.5d",
        "7d2h",
        "99999999999d",
        "7é",
        "7M",
    ] {
        assert_eq!(text.parse::<Span>(), Err(PolicyError::Span(text.into())), "{text}");
    }
}

#[test]
fn policies_are_stored_by_what_they_name() {
    let text = r#"{"keep_last":2,"keep_within":"7d","keep_daily":30}"#;
    let policy: Policy = serde_json::from_str(text).unwrap();
    assert_eq!(policy, Policy::default());
    assert_eq!(serde_json::to_string(&policy).unwrap(), text);

    for (text, message) in [
        ("{}", "keeps nothing"),
        (r#"{"keep_last":0,"keep_weekly":0}"#, "keeps nothing"),
        (r#"{"keep_last":1,"keep_yearly":3}"#, "unknown field `keep_yearly`"),
        (r#"{"keep_last":-1}"#, "invalid value"),
        (r#"{"keep_within":"7 days"}"#, "'7 days' is not a length of time"),
        (r#"{"keep_within":7}"#, "expected a string"),
    ] {
        let error = serde_json::from_str::<Policy>(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
    assert_eq!(Policy::NOTHING.checked(), Err(PolicyError::Nothing));
    assert!(PolicyError::Nothing.hint().ends_with('.'));
}

#[test]
fn days_end_at_midnight_utc_also_at_a_leap_day() {
    let policy = Policy { keep_daily: 4, ..Policy::NOTHING };
    let times = [
        "2028-02-27T12:00",
        "2028-02-28T23:59:59.999",
        "2028-02-29T00:00",
        "2028-02-29T23:59:59.999",
        "2028-03-01T00:00",
        "2028-03-05T08:00",
    ];
    let judgement = judge_times(policy, &times, "2028-03-05T09:00");
    let newest = format!("{NEWEST}, daily 2028-03-05");
    let expected =
        ["", "daily 2028-02-28", "", "daily 2028-02-29", "daily 2028-03-01", newest.as_str()];
    assert_eq!(reasons(&judgement), expected);
}

#[test]
fn months_have_their_own_ends() {
    let policy = Policy { keep_monthly: 3, ..Policy::NOTHING };
    let times = [
        "2026-11-30T23:00",
        "2026-12-01T00:00",
        "2026-12-31T23:59:59.999",
        "2027-01-01T00:00",
        "2027-01-31T10:00",
        "2027-02-28T23:59",
        "2027-02-28T23:59:30",
    ];
    let judgement = judge_times(policy, &times, "2027-03-01T00:00");
    let newest = format!("{NEWEST}, monthly 2027-02");
    let expected = ["", "", "monthly 2026-12", "", "monthly 2027-01", "", newest.as_str()];
    assert_eq!(reasons(&judgement), expected);
}

#[test]
fn weeks_are_iso_weeks_and_some_years_have_53() {
    let policy = Policy { keep_weekly: 3, ..Policy::NOTHING };
    let times = [
        "2026-12-27T12:00", // Sunday of week 52
        "2026-12-28T00:00", // Monday of week 53
        "2027-01-03T23:59", // its Sunday, in the next year
        "2027-01-04T00:00", // Monday of week 1
        "2027-01-11T12:00",
    ];
    let judgement = judge_times(policy, &times, "2027-01-11T13:00");
    let newest = format!("{NEWEST}, weekly 2027-W02");
    let expected = ["", "", "weekly 2026-W53", "weekly 2027-W01", newest.as_str()];
    assert_eq!(reasons(&judgement), expected);
    // A year's last days can be in week 1 of the next.
    let judgement = judge_times(policy, &["2024-12-30T00:00"], "2024-12-31T00:00");
    assert_eq!(reasons(&judgement), [format!("{NEWEST}, weekly 2025-W01")]);
}

#[test]
fn hours_count_only_where_there_is_a_point() {
    let policy = Policy { keep_hourly: 2, ..Policy::NOTHING };
    let times = ["2026-11-20T01:10", "2026-11-20T14:00", "2026-11-20T14:59", "2026-11-21T00:00"];
    let judgement = judge_times(policy, &times, "2026-11-25T00:00");
    let newest = format!("{NEWEST}, hourly 2026-11-21 00:00");
    assert_eq!(reasons(&judgement), ["", "", "hourly 2026-11-20 14:00", newest.as_str()]);
}

#[test]
fn the_window_has_a_point_before_it_and_the_log_from_there() {
    let policy = Policy { keep_within: Some(Span::days(7)), ..Policy::NOTHING };
    let times = [
        "2026-11-10T00:00",
        "2026-11-12T00:00",
        "2026-11-14T00:01",
        "2026-11-20T00:00",
        "2026-11-21T00:00",
    ];
    let judgement = judge_times(policy, &times, "2026-11-21T01:00");
    let newest = format!("{NEWEST}, within 7d");
    let start = "newest before 7d: where they are restored from";
    assert_eq!(reasons(&judgement), ["", start, "within 7d", "within 7d", newest.as_str()]);
    assert_eq!(judgement.log.generations, BTreeMap::from([(1, GenerationNeed::From(20))]));
    // A point at the window's very start is the one that it is restored from.
    let judgement =
        judge_times(policy, &["2026-11-14T00:00", "2026-11-21T00:00"], "2026-11-21T00:00");
    assert_eq!(reasons(&judgement), [start, newest.as_str()]);
    // None before: all of the log.
    let judgement =
        judge_times(policy, &["2026-11-20T00:00", "2026-11-21T00:00"], "2026-11-21T00:00");
    assert_eq!(judgement.log.generations, BTreeMap::from([(1, GenerationNeed::From(0))]));
}

#[test]
fn without_a_window_the_log_is_needed_from_the_newest_point() {
    let policy = Policy { keep_last: 2, ..Policy::NOTHING };
    let times = ["2026-11-19T00:00", "2026-11-20T00:00", "2026-11-21T00:00"];
    let judgement = judge_times(policy, &times, "2026-11-21T01:00");
    assert_eq!(reasons(&judgement), ["", "last 2", &format!("{NEWEST}, last 2")]);
    assert_eq!(judgement.log.generations, BTreeMap::from([(1, GenerationNeed::From(30))]));
}

#[test]
fn parents_stay_and_dropped_deltas_go_before_theirs() {
    let times = [1, 2, 3, 4, 5].map(|day| at("2026-11-01T00:00") + day * DAY);
    let mut points: Vec<_> = (1..).zip(times).map(|(n, time)| point(1, n * 10, time)).collect();
    points[1].parent = Some(points[0].name);
    points[2].parent = Some(points[1].name);
    points[4].parent = Some(points[3].name);
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    let judgement = judge(&policy, &points, &histories(&[1]), at("2026-11-09T00:00"));
    let parent = format!("parent of {}", points[4].name);
    let newest = format!("{NEWEST}, last 1");
    assert_eq!(reasons(&judgement), ["", "", "", parent.as_str(), newest.as_str()]);
    assert_eq!(judgement.removable_points(), [points[2].name, points[1].name, points[0].name]);
}

#[test]
fn a_delta_without_its_parent_is_not_the_way_to_the_head() {
    let day = at("2026-11-01T00:00");
    let mut points = [point(1, 10, day), point(1, 20, day + DAY), point(1, 30, day + 2 * DAY)];
    points[1].parent = Some(name(1, 1, 15));
    points[2].parent = Some(points[1].name);
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    let judgement = judge(&policy, &points, &histories(&[1]), day + 3 * DAY);
    let missing = format!("not judged: {} is missing", name(1, 1, 15));
    let child = format!("{missing}, parent of {}", points[2].name);
    assert_eq!(reasons(&judgement), [format!("{NEWEST}, last 1"), child, missing]);
    assert_eq!(judgement.log.generations[&1], GenerationNeed::From(10));
    // Parents in a circle are no better.
    points[1].parent = Some(points[2].name);
    let judgement = judge(&policy, &points, &histories(&[1]), day + 3 * DAY);
    assert!(judgement.verdicts[0].kept.contains(&Reason::Newest));
}

#[test]
fn of_two_snapshots_at_one_position_the_newer_stands_for_it() {
    let day = at("2026-11-01T00:00");
    let (base, mut delta, mut merged) = (point(1, 10, day), point(1, 20, day), point(1, 20, day));
    delta.parent = Some(base.name);
    merged.name.index = SnapshotName::FIRST_COMPACTED + 7;
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    let judgement = judge(&policy, &[base, merged, delta], &histories(&[1]), day);
    assert_eq!(kept(&judgement), HashSet::from([merged.name]));
    assert_eq!(judgement.removable_points(), [delta.name, base.name]);
}

#[test]
fn the_newest_history_is_not_that_of_the_highest_number() {
    // Epoch 5 was fenced while it began generation 5; epoch 6 went on with generation 3.
    let segments = [segment(3, 3, 0, 1), segment(5, 5, 0, 50), segment(3, 6, 0, 50)];
    let histories = Histories::new(&segments, 3);
    let day = at("2026-11-01T00:00");
    let points = [point(3, 10, day), point(5, 49, day + DAY)];
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    let judgement = judge(&policy, &points, &histories, day + DAY);
    assert_eq!(kept(&judgement), HashSet::from([points[0].name]));
    let needs = BTreeMap::from([(3, GenerationNeed::From(10)), (5, GenerationNeed::Gone)]);
    assert_eq!(judgement.log.generations, needs);
    assert_eq!(removable_segments(&judgement.log, &segments), [segments[1].name]);
}

/// Another place may have a segment right behind what goes of which nobody was told.
#[test]
fn a_log_begins_with_the_first_segment_that_stays() {
    let segments = [
        segment(3, 3, 0, 1),
        segment(3, 4, 0, 50),
        segment(3, 6, 0, 57),
        segment(7, 7, 1, 60),
        segment(7, 7, 2, 70),
    ];
    let names = segments.map(|entry| entry.name);
    let begins = |removed: &[SegmentName]| beginnings(removed, &segments);
    assert_eq!(begins(&names[..2]), BTreeMap::from([(3, (6, 0))]));
    assert_eq!(begins(&names[..4]), BTreeMap::from([(3, (6, 1)), (7, (7, 2))]));
    assert_eq!(begins(&[]), BTreeMap::new());
}

#[test]
fn a_generation_that_may_be_beginning_is_left_alone() {
    let day = at("2026-11-01T00:00");
    let points = [point(1, 10, day), point(2, 20, day)];
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    let judgement = judge(&policy, &points, &histories(&[1]), day);
    assert_eq!(kept(&judgement).len(), 2);
    assert!(!judgement.log.generations.contains_key(&2));
    assert!(
        removable_segments(&judgement.log, &[segment(2, 2, 0, 21), segment(2, 2, 1, 30)])
            .is_empty()
    );
}

#[test]
fn a_window_reaches_into_the_generation_before() {
    let policy = Policy { keep_within: Some(Span::days(7)), ..Policy::NOTHING };
    let day = |day: u64| at("2026-11-01T00:00") + day * DAY;
    // Generation 1 began empty and long ago, 2 was there at the window's start, 3 began within.
    let points =
        [point(2, 20, day(3)), point(2, 30, day(5)), point(3, 50, day(20)), point(3, 60, day(24))];
    let judgement = judge(&policy, &points, &histories(&[1, 2, 3]), day(24));
    assert_eq!(kept(&judgement), HashSet::from([points[1].name, points[2].name, points[3].name]));
    let needs =
        [(1, GenerationNeed::Gone), (2, GenerationNeed::From(30)), (3, GenerationNeed::From(0))];
    assert_eq!(judgement.log.generations, BTreeMap::from(needs));
    // Later, 3 was there at the window's start.
    let points = [points[1], points[2], point(3, 70, day(28))];
    let judgement = judge(&policy, &points, &histories(&[2, 3]), day(28));
    let needs = [(2, GenerationNeed::Gone), (3, GenerationNeed::From(50))];
    assert_eq!(judgement.log.generations, BTreeMap::from(needs));
    // A first generation without any point is needed whole while the window reaches into it.
    let points = [point(2, 20, day(3))];
    let judgement = judge(&policy, &points, &histories(&[1, 2]), day(4));
    assert_eq!(judgement.log.generations[&1], GenerationNeed::From(0));
}

#[test]
fn an_older_generation_with_a_point_keeps_its_last_segment() {
    let day = |day: u64| at("2026-11-01T00:00") + day * DAY;
    let points = [point(1, 10, day(1)), point(2, 40, day(20))];
    let policy = Policy { keep_daily: 5, ..Policy::NOTHING };
    let judgement = judge(&policy, &points, &histories(&[1, 2]), day(20));
    let needs = [(1, GenerationNeed::Points), (2, GenerationNeed::From(40))];
    assert_eq!(judgement.log.generations, BTreeMap::from(needs));
    let segments = [segment(1, 1, 0, 1), segment(1, 1, 1, 20), segment(2, 2, 0, 42)];
    assert_eq!(removable_segments(&judgement.log, &segments), [segments[0].name]);
}

/// Without the record that names it, nobody would know it for one.
#[test]
fn a_generation_that_began_with_a_kept_point_keeps_its_beginning() {
    let day = |day: u64| at("2026-11-01T00:00") + day * DAY;
    let mut points = [point(1, 10, day(1)), point(1, 20, day(2)), point(2, 40, day(20))];
    points[0].name.index = 0;
    let policy = Policy { keep_daily: 3, ..Policy::NOTHING };
    let judgement = judge(&policy, &points, &histories(&[1, 2]), day(20));
    assert_eq!(judgement.log.generations[&1], GenerationNeed::From(0));
    // As a parent it is named by its child.
    points[1].parent = Some(points[0].name);
    let policy = Policy { keep_daily: 2, ..Policy::NOTHING };
    let judgement = judge(&policy, &points, &histories(&[1, 2]), day(20));
    assert_eq!(kept(&judgement).len(), 3);
    assert_eq!(judgement.log.generations[&1], GenerationNeed::Points);
}

#[test]
fn wrong_clocks() {
    let policy = Policy { keep_within: Some(Span::days(7)), keep_daily: 2, ..Policy::NOTHING };
    let times: Vec<_> = (1..=28).map(|day| at("2026-11-01T00:00") + day * DAY).collect();
    let points: Vec<_> = (1..).zip(&times).map(|(n, &time)| point(1, n * 10, time)).collect();
    let judge = |points: &[Point], now| judge(&policy, points, &histories(&[1]), now);
    let expected = kept(&judge(&points, times[27]));
    assert_eq!(expected.len(), 8);
    // This one is years ahead: the window counts from the newest point.
    assert_eq!(kept(&judge(&points, times[27] + 4000 * DAY)), expected);
    // This one is at 1970: nothing can be judged.
    assert_eq!(kept(&judge(&points, 5)).len(), 28);
    // The newest was made with a clock far ahead: it takes no place of another.
    let mut ahead = points.clone();
    ahead[27].time += 4000 * DAY;
    let judgement = judge(&ahead, times[27]);
    assert!(judgement.verdicts[27].kept.contains(&Reason::Future));
    assert!(expected.is_subset(&kept(&judgement)));
    // An older one was: a later one shows it, so that it does not stay until then.
    let mut ahead = points.clone();
    ahead[3].time += 4000 * DAY;
    assert_eq!(kept(&judge(&ahead, times[27])), expected);
    // One within the window was made with a clock at 1970: the log is still needed from before the window.
    let mut behind = points.clone();
    behind[25].time = 5;
    let judgement = judge(&behind, times[27]);
    assert_eq!(judgement.log.generations[&1], GenerationNeed::From(210));
    // The first after the window's start was: it does not pass for the newest before.
    let mut behind = points;
    behind[21].time = 5;
    assert_eq!(judge(&behind, times[27]).log.generations[&1], GenerationNeed::From(210));
    let far = judge_times(policy, &[], "2026-11-01T00:00");
    assert_eq!(far.log.generations[&1], GenerationNeed::From(0));
}

#[test]
fn segments_go_up_to_the_one_with_the_needed_record() {
    let segments = [1, 100, 200, 300].map(|first| segment(1, 1, first as u32, first));
    let removable = |seq| {
        let need = LogNeed { generations: BTreeMap::from([(1, GenerationNeed::From(seq))]) };
        removable_segments(&need, &segments).len()
    };
    let expected = [
        (0, 0),
        (1, 0),
        (99, 0),
        (100, 0),
        (101, 1),
        (200, 1),
        (201, 2),
        (300, 2),
        (301, 3),
        (9999, 3),
    ];
    for (seq, count) in expected {
        assert_eq!(removable(seq), count, "{seq}");
    }
}

#[test]
fn a_log_does_not_begin_with_a_segment_that_may_be_void() {
    // Epoch 5 failed at its record 100 and began anew behind 99, while epoch 6 was bound to 100.
    let segments =
        [segment(1, 5, 0, 1), segment(1, 5, 1, 100), segment(1, 6, 0, 101), segment(1, 6, 1, 200)];
    for (seq, count) in [(100, 0), (101, 0), (102, 2), (150, 2), (201, 3)] {
        let need = LogNeed { generations: BTreeMap::from([(1, GenerationNeed::From(seq))]) };
        assert_eq!(removable_segments(&need, &segments).len(), count, "{seq}");
    }
    // Not even while it is the newest: who is bound to 100 may yet come.
    let need = LogNeed { generations: BTreeMap::from([(1, GenerationNeed::From(100))]) };
    assert!(removable_segments(&need, &segments[..2]).is_empty());
}

#[test]
fn times_beyond_any_calendar_are_only_far() {
    let policy = Policy {
        keep_hourly: 1,
        keep_daily: 1,
        keep_weekly: 1,
        keep_monthly: 1,
        ..Policy::default()
    };
    let points = [point(1, 1, 0), point(1, 2, u64::MAX)];
    for now in [0, 1, u64::MAX] {
        let judgement = judge(&policy, &points, &histories(&[1]), now);
        assert!(judgement.verdicts[1].kept.contains(&Reason::Newest));
        assert!(!reasons(&judgement).is_empty());
    }
}

/// A store with a few generations, deltas, wrong clocks and parents that are missing.
fn world() -> impl Strategy<Value = (Vec<Point>, Histories, u32, TimeMs)> {
    let start = at("2026-01-01T00:00");
    let time = prop_oneof![
        12 => (0..60 * DAY).prop_map(move |ms| start + ms),
        1 => 0..DAY,
        1 => (0..3000 * DAY).prop_map(move |ms| start + ms),
        1 => any::<u64>(),
    ];
    let parent = prop_oneof![3 => Just(None), 6 => (1..4usize).prop_map(Some), 1 => (0..60usize).prop_map(Some)];
    let made = (1..5u32, 0..3u32, 1..40u64, time.clone(), parent);
    let sorted = any::<bool>();
    (prop::collection::vec(made, 0..40), sorted, 1..5u32, time).prop_map(
        |(made, sorted, newest, now)| {
            let mut made = made;
            if sorted {
                made.sort_by_key(|made| made.3);
            }
            let mut points = Vec::<Point>::new();
            for (index, (generation, late, seq, time, parent)) in made.into_iter().enumerate() {
                let seq = if sorted { index as u64 + 1 } else { seq };
                let name =
                    SnapshotName { generation, seq, epoch: generation + late, index: index as u32 };
                let parent = parent.map(|back| match index.checked_sub(back) {
                    Some(at) if at < points.len() => points[at].name,
                    _ => SnapshotName { index: 999, ..name },
                });
                points.push(Point { name, time, parent, bytes: 1 });
            }
            // Generation 4 has no segment unless it is the newest.
            let segments: Vec<_> = (1..4).map(|g| segment(g, g, 0, 1)).collect();
            (points, Histories::new(&segments, newest), newest, now)
        },
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    let within = prop::option::of((1..40u32).prop_map(Span::days));
    (0..4u32, within, 0..4u32, 0..4u32, 0..4u32, 0..4u32).prop_map(
        |(last, within, hourly, daily, weekly, monthly)| Policy {
            keep_last: last,
            keep_within: within,
            keep_hourly: hourly,
            keep_daily: daily,
            keep_weekly: weekly,
            keep_monthly: monthly,
        },
    )
}

/// True where everything up to the base is in `there`.
fn restorable(
    name: SnapshotName,
    points: &HashMap<SnapshotName, Point>,
    there: &HashSet<SnapshotName>,
) -> bool {
    let mut next = Some(name);
    for _ in 0..=points.len() {
        let Some(name) = next else { return true };
        if !there.contains(&name) {
            return false;
        }
        next = points[&name].parent;
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_the_policy_the_way_to_the_head_stays(
        (points, histories, newest, now) in world(),
        policy in policies(),
    ) {
        let by_name: HashMap<_, _> = points.iter().map(|point| (point.name, *point)).collect();
        let all: HashSet<_> = by_name.keys().copied().collect();
        let judgement = judge(&policy, &points, &histories, now);
        let kept = kept(&judgement);
        prop_assert_eq!(judgement.verdicts.len(), all.len());

        // The newest point of the newest history that can be restored still can, and so can every kept one that could.
        let of_newest = points.iter().map(|point| point.name).filter(|name| name.generation == newest);
        let whole = of_newest.filter(|name| restorable(*name, &by_name, &all));
        let head = whole.max_by_key(|name| (name.epoch, name.seq, name.index));
        if let Some(head) = head {
            prop_assert!(kept.contains(&head));
        }
        for name in &kept {
            prop_assert_eq!(restorable(*name, &by_name, &kept), restorable(*name, &by_name, &all));
        }
        // Any prefix of the removals leaves nothing without its parent.
        let mut there = all.clone();
        for gone in judgement.removable_points() {
            prop_assert!(there.remove(&gone) && !kept.contains(&gone));
            for name in &there {
                prop_assert_eq!(restorable(*name, &by_name, &there), restorable(*name, &by_name, &all));
            }
        }
        prop_assert_eq!(&there, &kept);

        // The log goes on from the newest point; from 0 where there is none.
        let GenerationNeed::From(from) = judgement.log.generations[&newest] else {
            return Err(TestCaseError::fail("the newest generation's log is not needed"));
        };
        prop_assert!(head.map_or(from == 0, |head| from <= head.seq));
        // What goes whole has no point.
        for (generation, need) in &judgement.log.generations {
            let points = kept.iter().any(|name| name.generation == *generation);
            prop_assert!(*need != GenerationNeed::Gone || !points);
        }
        // What is in the future is not judged away unless something stands for it.
        if points.iter().all(|point| point.time > now) {
            let positions = |names: &HashSet<SnapshotName>| {
                names.iter().map(|name| (name.generation, name.seq)).collect::<HashSet<_>>()
            };
            prop_assert_eq!(positions(&kept), positions(&all));
        }
        // Order does not matter.
        let reversed: Vec<_> = points.iter().rev().copied().collect();
        prop_assert_eq!(&judge(&policy, &reversed, &histories, now), &judgement);
        // Judging again, with nothing changed but what was dropped, drops nothing that is needed: still the same head.
        let left: Vec<_> = points.iter().filter(|point| kept.contains(&point.name)).copied().collect();
        let again = judge(&policy, &left, &histories, now);
        if let Some(head) = head {
            prop_assert!(self::kept(&again).contains(&head));
        }
    }

    #[test]
    fn every_moment_of_the_window_is_restorable(
        (points, histories, newest, now) in world(),
        policy in policies(),
        days in 1..40u32,
    ) {
        let policy = Policy { keep_within: Some(Span::days(days)), ..policy };
        let points: Vec<_> = points
            .into_iter()
            .filter(|point| point.name.generation == newest)
            .map(|point| Point { parent: None, ..point })
            .collect();
        // One a position: of several the newest stands for it, which has a test of its own.
        let stands = |point: &Point| {
            let at = points.iter().filter(|other| other.name.seq == point.name.seq);
            at.map(|other| (other.name.epoch, other.name.index)).max() == Some((point.name.epoch, point.name.index))
        };
        let points: Vec<_> = points.iter().filter(|point| stands(point)).copied().collect();
        let judgement = judge(&policy, &points, &histories, now);
        let kept = kept(&judgement);
        let start = now.saturating_sub(Span::days(days).as_ms());
        let positions: HashSet<_> = kept.iter().map(|name| name.seq).collect();
        for point in points.iter().filter(|point| point.time > start && point.time <= now) {
            prop_assert!(positions.contains(&point.name.seq), "{:?}", point);
        }
        // With clocks that go forward, the newest before the window stays, and the log behind it.
        let mut order = points.clone();
        order.sort_by_key(|point| (point.name.epoch, point.name.seq, point.name.index));
        let forward = order.is_sorted_by_key(|point| point.time) && order.is_sorted_by_key(|point| point.name.seq);
        let before = order.iter().rev().find(|point| point.time <= start);
        if let (true, Some(before)) = (forward, before) {
            prop_assert!(positions.contains(&before.name.seq));
            let GenerationNeed::From(from) = judgement.log.generations[&newest] else { unreachable!() };
            prop_assert!(from <= before.name.seq);
        }
    }

    #[test]
    fn what_stays_of_a_log_can_be_read_from_the_needed_record(
        steps in prop::collection::vec((0..7u8, 1..6u64), 1..30),
        seq in 0..60u64,
    ) {
        let log = Written::new(&steps);
        let seq = seq.min(log.end);
        let need = LogNeed { generations: BTreeMap::from([(1, GenerationNeed::From(seq))]) };
        let removed = removable_segments(&need, &log.segments).len();
        let names: Vec<_> = log.segments.iter().map(|entry| entry.name).collect();
        prop_assert_eq!(removable_segments(&need, &log.segments), &names[..removed]);
        prop_assert!(removed < names.len());
        if removed > 0 {
            prop_assert!(log.segments[removed].name.first_seq <= seq);
            // What it begins with counts, and the needed record is there.
            prop_assert!(log.holder.values().any(|&holder| holder == removed), "begins with {:?}", names[removed]);
            prop_assert!(log.holder.range(seq..).all(|(_, &holder)| holder >= removed));
        }
    }
}

/// A log as writers that die, fail and fence each other leave it, and which segment holds each record that counts.
struct Written {
    segments: Vec<SegmentEntry>,
    holder: BTreeMap<u64, usize>,
    end: u64,
}

impl Written {
    fn new(steps: &[(u8, u64)]) -> Self {
        let mut log = Self { segments: Vec::new(), holder: BTreeMap::new(), end: 0 };
        log.begin();
        let count = steps[0].1;
        log.append(count + 1);
        for &(step, count) in &steps[1..] {
            match step {
                // Goes on, in the same segment or in one that follows directly.
                0 => log.append(count),
                1 | 2 => {
                    log.begin();
                    log.append(count);
                }
                // Its last record was never acknowledged: the next writer is bound to the one before.
                3 => {
                    log.end -= 1;
                    log.holder.split_off(&(log.end + 1));
                    log.begin();
                    log.append(count);
                }
                // A segment whose writer died before its first record; and one in the place of a last record.
                4 => log.begin(),
                5 => log.put(log.end),
                // A segment of one record in the place of the last, while the next writer is bound to that.
                _ => {
                    log.put(log.end);
                    log.begin();
                    log.append(count);
                }
            }
            // What goes on does so in a segment that counts.
            if step > 3 {
                log.begin();
                log.append(1);
            }
        }
        log
    }

    fn put(&mut self, first_seq: u64) {
        self.segments.push(segment(1, 1, self.segments.len() as u32, first_seq));
    }

    fn begin(&mut self) {
        self.put(self.end + 1);
    }

    fn append(&mut self, count: u64) {
        for _ in 0..count {
            self.end += 1;
            self.holder.insert(self.end, self.segments.len() - 1);
        }
    }
}
