//! `verify`: reads everything that is stored at every destination, and proves it.

use std::collections::BTreeSet;

use lockstep_proto::layout;
use lockstep_proto::log::LogEnd;
use lockstep_proto::replica::{Distance, Mirror, Seen, small_faults};
use lockstep_proto::store::Store;
use lockstep_proto::verify::{self, GenerationReport};
use serde::Serialize;

use super::heal::{self, Healed};
use crate::args::VerifyArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, counted, utc};
use crate::place::{Places, Site};

/// Folders of which each destination has the same objects.
const COMMON: [&str; 4] = [layout::KEYS, layout::EPOCHS, layout::HOLDS, layout::SNAPSHOTS];

/// What is said where nothing can be had from another destination.
const HINT_OF_ONE: &str = "the log and its snapshots are intact. A key slot is made anew by 'backup-cli key remove' and \
    'key add'; for the rest, use another copy of this folder if there is one.";

#[derive(Serialize)]
struct Report {
    /// The first that is intact, and what it holds.
    destination: String,
    generations: Vec<GenerationReport>,
    bytes: u64,
    destinations: Vec<DestinationReport>,
    /// Present with `--heal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    healed: Option<Healed>,
}

/// What was found at one destination.
#[derive(Serialize)]
struct DestinationReport {
    name: String,
    intact: bool,
    /// The first thing that is wrong.
    error: Option<String>,
    /// Slots, claims and such that do not prove themselves.
    faults: Vec<String>,
    /// Slots, claims, holds and snapshots that only others have.
    missing: Vec<String>,
    /// The newest destination has so many records more; that alone is no damage. `null` where it is not known.
    records_behind: Option<u64>,
    generations: Vec<GenerationReport>,
    bytes: u64,
}

/// Verifies.
pub fn run(args: &VerifyArgs, output: &Output) -> Result<()> {
    let mut places = Places::open(&args.place)?;
    let healed = match args.heal {
        true => Some(heal::run(&mut places, output)?),
        false => None,
    };
    let mut failures = Vec::new();
    let mut destinations = Vec::new();
    let ends = places.ends();
    for (site, end) in places.sites.iter().zip(&ends) {
        let found = verified(&places, &site.name, site.store(), output).and_then(|report| {
            let records_behind = records_behind(&places, &ends, site, end)?;
            // What is brought up anyway is not complete yet.
            let complete = report.missing.is_empty() || records_behind > 0;
            let intact = report.faults.is_empty() && complete;
            Ok(DestinationReport { records_behind: Some(records_behind), intact, ..report })
        });
        match found {
            Ok(report) => destinations.push(report),
            Err(failure) => {
                destinations.push(DestinationReport::failed(&site.name, &failure));
                failures.push(failure);
            }
        }
    }
    let good = destinations.iter().find(|found| found.error.is_none());
    let Some(good) = good.or(destinations.first()).filter(|_| failures.len() < places.sites.len())
    else {
        return Err(all_bad(failures, &destinations));
    };
    let report = Report {
        destination: good.name.clone(),
        generations: good.generations.clone(),
        bytes: good.bytes,
        healed,
        destinations,
    };
    output.result(&report, || text(&report));
    if let [only] = &report.destinations[..]
        && !only.intact
    {
        return Err(Failure::damaged(
            format!("'{}' is damaged: {}", only.name, only.faults.join("; ")),
            HINT_OF_ONE,
        ));
    }
    let bad = report.destinations.iter().filter(|found| !found.intact);
    let hint = match args.heal {
        true => "what no destination has intact cannot be healed: see docs/operations.md.",
        false => "'backup-cli verify --heal' replaces it from another destination.",
    };
    Failure::if_any(bad.map(|found| found.name.as_str()), "damaged, incomplete or away:", hint)
}

/// What a destination lacks; fails where it holds another history than the newest.
fn records_behind(
    places: &Places,
    ends: &[Result<LogEnd>],
    site: &Site,
    end: &Result<LogEnd>,
) -> Result<u64> {
    let newest = places.newest_of(ends)?;
    let (Ok(of_newest), Ok(end)) = (&ends[newest], end) else { return Ok(0) };
    let seen = Seen { store: places.sites[newest].store()?, end: of_newest };
    match seen.compare(&Seen { store: site.store()?, end }, &places.keys)? {
        Distance::Current => Ok(0),
        Distance::Behind { records } => Ok(records),
    }
}

/// Fails as the first does, and names the others.
fn all_bad(failures: Vec<Failure>, destinations: &[DestinationReport]) -> Failure {
    let Some(first) = failures.into_iter().next() else {
        return Failure::new("no destination", "look at backup.lock.");
    };
    if destinations.len() < 2 {
        return first;
    }
    let errors = destinations
        .iter()
        .filter_map(|found| found.error.as_ref().map(|error| format!("'{}': {error}", found.name)));
    first.saying(format!("no destination is intact: {}", errors.collect::<Vec<_>>().join("; ")))
}

fn verified(
    places: &Places,
    name: &str,
    store: Result<&dyn Store>,
    output: &Output,
) -> Result<DestinationReport> {
    let (store, keys) = (store?, &places.keys);
    let what =
        if places.sites.len() > 1 { format!("verifying '{name}'") } else { "verifying".into() };
    let bar = output.bar(&what, verify::stored_bytes(store)?);
    let generations = verify::run(store, keys, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let generations = generations?;
    let faults = small_faults(store, keys)?.into_iter().map(|fault| fault.what).collect();
    let missing = missing_of(places, name, store)?;
    Ok(DestinationReport {
        name: name.into(),
        intact: false,
        error: None,
        faults,
        missing,
        records_behind: None,
        bytes: generations.iter().map(|generation| generation.bytes).sum(),
        generations,
    })
}

/// What only other destinations have, of what all must have.
fn missing_of(places: &Places, name: &str, store: &dyn Store) -> Result<Vec<String>> {
    let mut missing = BTreeSet::new();
    for (_, other) in places.reachable().filter(|(other, _)| *other != name) {
        let mirror = Mirror { source: other, target: store, keys: &places.keys, before: None };
        for folder in COMMON {
            missing.extend(mirror.missing(folder)?);
        }
    }
    Ok(missing.into_iter().collect())
}

impl DestinationReport {
    fn failed(name: &str, failure: &Failure) -> Self {
        Self {
            name: name.into(),
            intact: false,
            error: Some(failure.message().into()),
            faults: Vec::new(),
            missing: Vec::new(),
            records_behind: None,
            generations: Vec::new(),
            bytes: 0,
        }
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(healed) = &report.healed {
        text += &heal::text(healed);
    }
    for found in &report.destinations {
        if report.destinations.len() > 1 {
            text += &format!("destination '{}'\n", found.name);
        }
        for g in &found.generations {
            text += &generation(g);
        }
        if let Some(error) = &found.error {
            text += &format!("'{}' cannot be relied on: {error}\n", found.name);
        }
        for fault in &found.faults {
            text += &format!("'{}' is damaged: {fault}\n", found.name);
        }
        for object in &found.missing {
            text += &format!("'{}' lacks '{object}'\n", found.name);
        }
        if let Some(records @ 1..) = found.records_behind {
            text += &format!("'{}' is {records} records behind the newest\n", found.name);
        }
        if found.intact {
            text +=
                &format!("'{}' is intact: {} read and proved\n", found.name, bytes(found.bytes));
        }
    }
    text
}

fn generation(g: &GenerationReport) -> String {
    let version = g.data_version.map_or("none".into(), |version| version.to_string());
    format!(
        "generation {}: {} in {}{}, up to seq {}, data_version {version}, {}\n",
        g.generation,
        counted(g.batches, "batch"),
        counted(g.segments as u64, "segment"),
        if g.snapshot.is_some() { " and a snapshot" } else { "" },
        g.seq,
        utc(g.time),
    )
}
