//! `prune`: removes what a retention policy does not keep.

use lockstep_proto::config::LockFile;
use lockstep_proto::error::Error;
use lockstep_proto::hold::Hold;
use lockstep_proto::log::LogEnd;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::retention::Policy;
use serde::Serialize;

use super::now;
use crate::args::PruneArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, utc};
use crate::place::Place;

#[derive(Serialize)]
struct Report {
    destination: String,
    policy: Policy,
    dry_run: bool,
    points: Vec<PointReport>,
    segments_removed: usize,
    bytes_removed: u64,
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
    let place = Place::open(&args.place)?;
    let policy = policy(args, &place)?;
    if args.release_hold {
        release_holds(&place, args.dry_run)?;
    }
    let plan = PrunePlan::new(&*place.store, &place.keys, &policy, now())?;
    let points = plan.judgement.verdicts.iter().map(|verdict| PointReport {
        snapshot: verdict.point.name.to_string(),
        seq: verdict.point.name.seq,
        time: verdict.point.time,
        bytes: verdict.point.bytes,
        kept: verdict.kept.iter().map(ToString::to_string).collect(),
    });
    let report = Report {
        destination: place.name,
        policy,
        dry_run: args.dry_run,
        points: points.collect(),
        segments_removed: plan.segments.len(),
        bytes_removed: plan.bytes(),
    };
    if !args.dry_run {
        let bar = output.counter("removing");
        let done =
            plan.run(&*place.store, &mut || Ok(()), &mut |removed| bar.set_position(removed));
        bar.finish_and_clear();
        done?;
    }
    output.result(&report, || text(&report));
    Ok(())
}

/// A person has looked at what an alarm kept.
fn release_holds(place: &Place, dry_run: bool) -> Result<()> {
    let newest = LogEnd::read(&*place.store, &place.keys)?.position.generation;
    let holds = Hold::list(&*place.store)?;
    if holds.iter().any(|hold| hold.generation == newest) {
        return Err(Failure::new(
            "the newest history is still the one that the database has parted from",
            "start lightningd first: a new generation then begins with a snapshot of the database.",
        ));
    }
    if !dry_run {
        holds.iter().try_for_each(|hold| hold.release(&*place.store))?;
    }
    Ok(())
}

fn policy(args: &PruneArgs, place: &Place) -> Result<Policy> {
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
    let lock = match &place.node {
        Some(node) => LockFile::read(node.path())?,
        None => None,
    };
    Ok(lock.map(|lock| lock.retention).unwrap_or_default())
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
    text + &format!(
        "{words} {goes} snapshots and {} segments, {}{}",
        report.segments_removed,
        bytes(report.bytes_removed),
        if report.dry_run { "; nothing was changed" } else { "" },
    )
}
