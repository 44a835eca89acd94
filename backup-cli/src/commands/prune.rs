//! `prune`: removes what a retention policy does not keep.

use lockstep_proto::error::Error;
use lockstep_proto::hold::Hold;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::retention::Policy;
use lockstep_proto::seal::KeyRing;
use serde::Serialize;

use super::now;
use crate::args::PruneArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, utc};
use crate::place::{Places, Site};

#[derive(Serialize)]
struct Report {
    destination: String,
    policy: Policy,
    dry_run: bool,
    points: Vec<PointReport>,
    segments_removed: usize,
    bytes_removed: u64,
    /// One for each other destination of the node.
    others: Vec<Other>,
}

/// The plan for one destination, and that it was carried out.
struct Done {
    points: Vec<PointReport>,
    segments: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Other {
    destination: String,
    snapshots_removed: usize,
    segments_removed: usize,
    bytes_removed: u64,
    /// Why nothing was removed there, or not all.
    error: Option<String>,
}

#[derive(Serialize)]
struct PointReport {
    snapshot: String,
    seq: u64,
    time: u64,
    bytes: u64,
    /// Empty: it goes.
    kept: Vec<String>,
}

/// Prunes.
pub fn run(args: &PruneArgs, output: &Output) -> Result<()> {
    let places = Places::open(&args.place)?;
    let policy = policy(args, &places)?;
    if args.release_hold {
        release_holds(&places, args.dry_run)?;
    }
    let newest = places.newest()?;
    let prune = |site: &Site| prune(site, &places.keys, &policy, args.dry_run, output);
    let done = prune(&places.sites[newest])?;
    let others = places.sites.iter().enumerate().filter(|(index, _)| *index != newest);
    let report = Report {
        destination: places.sites[newest].name.clone(),
        policy,
        dry_run: args.dry_run,
        points: done.points,
        segments_removed: done.segments,
        bytes_removed: done.bytes,
        others: others.map(|(_, site)| Other::new(site, prune(site))).collect(),
    };
    output.result(&report, || text(&report));
    let bad = report.others.iter().filter(|other| other.error.is_some());
    Failure::if_any(
        bad.map(|other| other.destination.as_str()),
        "not pruned:",
        "'backup-cli status' says how they are.",
    )
}

impl Other {
    fn new(site: &Site, done: Result<Done>) -> Self {
        let (done, error) = match done {
            Ok(done) => (done, None),
            Err(failure) => {
                let none = Done { points: Vec::new(), segments: 0, bytes: 0 };
                (none, Some(failure.message().to_owned()))
            }
        };
        Self {
            destination: site.name.clone(),
            snapshots_removed: done.points.iter().filter(|point| point.kept.is_empty()).count(),
            segments_removed: done.segments,
            bytes_removed: done.bytes,
            error,
        }
    }
}

fn prune(
    site: &Site,
    keys: &KeyRing,
    policy: &Policy,
    dry_run: bool,
    output: &Output,
) -> Result<Done> {
    let store = site.store()?;
    let plan = PrunePlan::new(store, keys, policy, now())?;
    let points = plan.judgement.verdicts.iter().map(|verdict| PointReport {
        snapshot: verdict.point.name.to_string(),
        seq: verdict.point.name.seq,
        time: verdict.point.time,
        bytes: verdict.point.bytes,
        kept: verdict.kept.iter().map(ToString::to_string).collect(),
    });
    let done =
        Done { points: points.collect(), segments: plan.segments.len(), bytes: plan.bytes() };
    if !dry_run {
        let bar = output.counter("removing");
        let removed = plan.run(store, &mut || Ok(()), &mut |removed| bar.set_position(removed));
        bar.finish_and_clear();
        removed?;
    }
    Ok(done)
}

/// A person has looked at what an alarm kept.
fn release_holds(places: &Places, dry_run: bool) -> Result<()> {
    // Where a hold stays, it comes back from.
    places.require_all()?;
    let newest = places.sites[places.newest()?].end(&places.keys)?.position.generation;
    for (_, store) in places.reachable() {
        let holds = Hold::list(store)?;
        if holds.iter().any(|hold| hold.generation == newest) {
            return Err(Failure::new(
                "the newest history is still the one that the database has parted from",
                "start lightningd first: a new generation then begins with a snapshot of the database.",
            ));
        }
        if !dry_run {
            holds.iter().try_for_each(|hold| hold.release(store))?;
        }
    }
    Ok(())
}

fn policy(args: &PruneArgs, places: &Places) -> Result<Policy> {
    let given = Policy {
        keep_last: args.keep_last,
        keep_within: args.keep_within,
        keep_hourly: args.keep_hourly,
        keep_daily: args.keep_daily,
        keep_weekly: args.keep_weekly,
        keep_monthly: args.keep_monthly,
    };
    if given != Policy::NOTHING {
        return Ok(given.checked().map_err(Error::from)?);
    }
    Ok(places.lock.as_ref().map(|lock| lock.retention).unwrap_or_default())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for point in &report.points {
        let verdict = match point.kept.as_slice() {
            [] if report.dry_run => "goes".into(),
            [] => "gone".into(),
            reasons => reasons.join(", "),
        };
        text += &format!(
            "{}  seq {:<10} {:>10}  {verdict}\n",
            utc(point.time),
            point.seq,
            bytes(point.bytes)
        );
    }
    let goes = report.points.iter().filter(|point| point.kept.is_empty()).count();
    let words = if report.dry_run { "would remove" } else { "removed" };
    text += &format!(
        "{words} {goes} snapshots and {} segments, {}{}\n",
        report.segments_removed,
        bytes(report.bytes_removed),
        if report.dry_run { "; nothing was changed" } else { "" },
    );
    for other in &report.others {
        text += &match &other.error {
            None => format!(
                "'{}': {words} {} snapshots and {} segments, {}\n",
                other.destination,
                other.snapshots_removed,
                other.segments_removed,
                bytes(other.bytes_removed)
            ),
            Some(error) => format!("'{}': {error}\n", other.destination),
        };
    }
    text
}
