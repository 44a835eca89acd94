//! `status`: how the backup is, against the database where there is one.

use std::time::Duration;

use lockstep_node::{Access, wallet};
use lockstep_proto::config::LockFile;
use lockstep_proto::destination::Destination;
use lockstep_proto::drill::Drill;
use lockstep_proto::error::Error;
use lockstep_proto::hold::Hold;
use lockstep_proto::liveness::LastWriter;
use lockstep_proto::log::LogEnd;
use lockstep_proto::replica::{Distance, Mode, Seen};
use lockstep_proto::seal::StoreId;
use lockstep_proto::shadow::{Digest, Proofs, Proven};
use lockstep_proto::slots;
use lockstep_proto::store::Fencing;
use lockstep_proto::tail::{NewestSnapshot, Tail};
use lockstep_proto::version::DataVersion;
use serde::Serialize;

use super::last_writer::WriterReport;
use super::{missing_slots, now};
use crate::args::{PlaceArgs, StatusArgs};
use crate::failure::{Failure, Result};
use crate::output::{Output, Tone, bytes, utc};
use crate::place::{Places, Site};

#[derive(Serialize)]
struct Report {
    store_id: StoreId,
    destinations: Vec<DestinationReport>,
    /// So many of the `sync` ones have what was acknowledged; `null` where only a URL was given.
    quorum: Option<usize>,
    /// lightningd's version of the database, where there is one.
    database: Option<u32>,
    running: bool,
    /// Whether the plugin compares the database at each start; not where it is larger than `compare_max_bytes`.
    compared_at_start: Option<bool>,
    slots: Vec<String>,
    /// What became of the last rehearsal of a restore; `null` where there was none, or only a URL was given.
    drill: Option<DrillReport>,
    /// Who wrote last, and whether that looks alive to a restore.
    writer: Option<WriterReport>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct DrillReport {
    passed: bool,
    time: u64,
    age_seconds: u64,
    /// The longest of its restores.
    seconds: f64,
    opened_with: String,
    /// The newest record that was restored.
    seq: Option<u64>,
    /// The destinations from which it failed.
    failed: Vec<String>,
}

impl From<Drill> for DrillReport {
    fn from(drill: Drill) -> Self {
        let failed = drill.destinations.iter().filter(|one| one.error.is_some());
        let restored = drill.destinations.iter().filter_map(|one| one.restored.as_ref());
        Self {
            passed: drill.passed,
            time: drill.time,
            age_seconds: now().saturating_sub(drill.time) / 1000,
            seconds: drill.seconds(),
            seq: restored.map(|found| found.seq).max(),
            failed: failed.map(|one| one.name.clone()).collect(),
            opened_with: drill.opened_with,
        }
    }
}

#[derive(Serialize)]
struct DestinationReport {
    name: String,
    url: Destination,
    /// As it was found when the backup was made; `null` where only a URL was given.
    fencing: Option<Fencing>,
    mode: Mode,
    /// Of the newest one, against the database: `current`, `behind`, `ahead`, or `ok` where there is none. Of the others
    /// the same, or `behind` where they lack records, `diverged`, `damaged`, `unreachable`.
    state: &'static str,
    /// Why it is in one of the last three.
    error: Option<String>,
    /// What the newest one has more; `null` where that is not known.
    records_behind: Option<u64>,
    generation: Option<u32>,
    seq: Option<u64>,
    data_version: Option<u32>,
    epoch: Option<u32>,
    time: Option<u64>,
    /// The newest snapshot; `null` where the log alone leads to the database.
    snapshot: Option<SnapshotReport>,
    /// About the bytes of log behind it, …
    tail_bytes: Option<u64>,
    /// … and their records: batches, and the few that begin and end segments.
    tail_records: Option<u64>,
    /// Up to where SQLite last found every page of the node's shadow in order; `null` where that is not known.
    proven: Option<ProvenReport>,
    /// Where the shadow last held what the node's database held.
    compared: Option<ProvenReport>,
}

#[derive(Serialize)]
struct ProvenReport {
    generation: u32,
    seq: u64,
    data_version: Option<u32>,
    digest: Digest,
    time: u64,
    age_seconds: u64,
}

impl From<Proven> for ProvenReport {
    fn from(proven: Proven) -> Self {
        Self {
            generation: proven.generation,
            seq: proven.seq,
            data_version: proven.data_version.map(|version| version.0),
            digest: proven.digest,
            time: proven.time,
            age_seconds: now().saturating_sub(proven.time) / 1000,
        }
    }
}

#[derive(Serialize)]
struct SnapshotReport {
    seq: u64,
    data_version: Option<u32>,
    /// When the newest batch in it was appended.
    time: u64,
    age_seconds: u64,
    /// Objects that a restore reads for it.
    objects: usize,
    database_bytes: u64,
}

impl From<NewestSnapshot> for SnapshotReport {
    fn from(newest: NewestSnapshot) -> Self {
        Self {
            seq: newest.seq,
            data_version: newest.data_version.map(|version| version.0),
            time: newest.time,
            age_seconds: now().saturating_sub(newest.time) / 1000,
            objects: newest.objects,
            database_bytes: newest.database_bytes,
        }
    }
}

/// Shows it; with `--watch` again and again.
pub fn run(args: &StatusArgs, output: &Output) -> Result<()> {
    let Some(seconds) = args.watch else { return show(&args.place, output) };
    while !output.is_unread() {
        output.clear();
        // A place that is away now may be back the next time.
        if let Err(failure) = show(&args.place, output) {
            output.failure(&failure);
        }
        std::thread::sleep(Duration::from_secs(seconds));
    }
    Ok(())
}

fn show(args: &PlaceArgs, output: &Output) -> Result<()> {
    let places = Places::open(args)?;
    let ends = places.ends();
    let newest = places.newest_of(&ends)?;
    let (store, end) = (places.sites[newest].store()?, ends[newest].clone()?);
    let mut warnings: Vec<String> = missing_slots(store)?.into_iter().collect();
    let (mut running, mut database) = (false, None);
    if let Some(node) = &places.node {
        running = node.running()?.is_some();
        database = wallet::data_version(node.wallet(), Access::Shared)?;
    }
    if places.node.is_none() && !end.destinations.is_empty() {
        let named = end.destinations.named.iter();
        let named: Vec<_> = named.map(|known| format!("{} ({})", known.name, known.url)).collect();
        warnings.push(format!(
            "this is one of several destinations, and others may be newer: {}",
            named.join(", ")
        ));
    }
    let writer = last_writer(&places, &ends)?;
    let against_database = against_database(&end, database, running, &mut warnings);
    let (proofs, too_large) = proofs(&places)?;
    let seen = Seen { store, end: &end };
    let mut destinations = Vec::new();
    for (site, end) in places.sites.iter().zip(ends) {
        destinations.push(report_of(
            site,
            end,
            &seen,
            against_database,
            &places,
            &proofs,
            &mut warnings,
        )?);
    }
    let policy = places.lock.as_ref().map(LockFile::policy).transpose()?;
    let node = places.node.as_ref();
    let drill = node.and_then(|node| Drill::read(node.path(), places.keys.store()));
    if drill.as_ref().is_some_and(|drill| !drill.passed) {
        warnings.push("the last drill failed: run 'backup-cli drill' again".into());
    }
    let report = Report {
        store_id: places.keys.store(),
        destinations,
        quorum: policy.map(|policy| policy.to_acknowledge()),
        compared_at_start: places.node.is_some().then_some(!too_large),
        database,
        running,
        drill: drill.map(DrillReport::from),
        slots: slots::list(store)?.into_iter().map(|slot| slot.name).collect(),
        writer,
        warnings,
    };
    output.result(&report, || text(&report, output));
    let bad = report.destinations.iter().filter(|d| d.error.is_some());
    Failure::if_any(
        bad.map(|d| d.name.as_str()),
        "not all destinations can be relied on:",
        "mend what the lines above name; 'backup-cli verify --heal' brings them up again.",
    )
}

/// Who wrote last, by all destinations that can be read.
fn last_writer(places: &Places, ends: &[Result<LogEnd>]) -> Result<Option<WriterReport>> {
    let readable = places.sites.iter().zip(ends);
    let seen: Vec<Seen<'_>> = readable
        .filter_map(|(site, end)| Some(Seen { store: site.store().ok()?, end: end.as_ref().ok()? }))
        .collect();
    Ok(LastWriter::look(&seen, &places.keys)?.map(WriterReport::from))
}

/// How the newest destination stands to the database.
pub fn against_database(
    end: &LogEnd,
    database: Option<u32>,
    running: bool,
    warnings: &mut Vec<String>,
) -> &'static str {
    let head = end.head.data_version.unwrap_or_default();
    match database.map(|version| DataVersion(version).ahead_of(head)) {
        Some(1..) if !running => {
            warnings.push(
                "the database is ahead of the backup: the next start takes a snapshot".into(),
            );
            "behind"
        }
        Some(-1) if end.head.in_doubt => "current",
        Some(i32::MIN..=-1) => {
            warnings.push("this database is older than its backup; do not start it".into());
            "ahead"
        }
        Some(_) => "current",
        None => "ok",
    }
}

fn report_of(
    site: &Site,
    end: Result<LogEnd>,
    newest: &Seen<'_>,
    current: &'static str,
    places: &Places,
    proofs: &Proofs,
    warnings: &mut Vec<String>,
) -> Result<DestinationReport> {
    let (distance, at) = match (end, site.store()) {
        (Ok(end), Ok(store)) => {
            let compared = newest.compare(&Seen { store, end: &end }, &places.keys);
            (compared.map_err(Failure::from), Some((store, end)))
        }
        (Err(failure), _) | (_, Err(failure)) => (Err(failure), None),
    };
    let (state, error, records_behind) = match distance {
        Ok(Distance::Current) => (current, None, Some(0)),
        Ok(Distance::Behind { records }) => ("behind", None, Some(records)),
        Err(failure) => {
            let state = match (failure.is_damage(), &at) {
                (true, Some(_)) => "diverged",
                (true, None) => "damaged",
                (false, _) => "unreachable",
            };
            warnings.push(format!("'{}' is {state}: {}", site.name, failure.message()));
            (state, Some(failure.message().to_owned()), None)
        }
    };
    let mut tail = None;
    if let Some((store, _)) = &at {
        tail = Tail::read(*store, &places.keys)
            .map_err(|error| warnings.push(would_fail(site, &error, places)))
            .ok();
        for warning in Hold::list(*store)?.iter().map(Hold::warning) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    let end = at.map(|(_, end)| end);
    let end = end.as_ref();
    Ok(DestinationReport {
        name: site.name.clone(),
        url: site.url.clone(),
        fencing: site.fencing,
        mode: site.mode,
        state,
        error,
        records_behind,
        generation: end.map(|end| end.position.generation),
        seq: end.map(|end| end.position.seq),
        data_version: end.and_then(|end| end.head.data_version).map(|version| version.0),
        epoch: end.map(|end| end.epoch),
        time: end.map(|end| end.time),
        tail_bytes: tail.as_ref().map(|tail| tail.bytes),
        tail_records: tail.as_ref().map(|tail| tail.records),
        snapshot: tail.and_then(|tail| tail.snapshot).map(SnapshotReport::from),
        proven: proofs.checked.map(ProvenReport::from),
        compared: proofs.compared.map(ProvenReport::from),
    })
}

fn would_fail(site: &Site, error: &Error, places: &Places) -> String {
    match places.sites.len() {
        1 => format!("a restore would fail: {error}"),
        _ => format!("a restore from '{}' would fail: {error}", site.name),
    }
}

/// What was last proved of the node's shadow, and whether its database is too large to be compared at each start.
fn proofs(places: &Places) -> Result<(Proofs, bool)> {
    let (Some(node), Some(lock)) = (&places.node, &places.lock) else {
        return Ok((Proofs::default(), false));
    };
    let (wallet, settings) = (&lock.wallet, &lock.compaction);
    let len = wallet.as_deref().unwrap_or(node.wallet()).metadata().map_or(0, |found| found.len());
    let folder = settings.shadow_in(node.path());
    Ok((Proofs::read(&folder, places.keys.store()), len > settings.compare_max_bytes))
}

/// Where and when, for one line.
fn place_and_time(proven: &ProvenReport) -> String {
    let version = proven.data_version.map_or("none".into(), |version| version.to_string());
    format!("seq {}, data_version {version} ({})", proven.seq, utc(proven.time))
}

fn text(report: &Report, output: &Output) -> String {
    let several = report.destinations.len() > 1;
    let of = |d: &DestinationReport| if several { format!("{}: ", d.name) } else { String::new() };
    let mut text = table(&report.destinations, output);
    if several {
        let sync = report.destinations.iter().filter(|d| d.mode.is_sync()).count();
        let quorum = report.quorum.unwrap_or(sync);
        text += &format!("a transaction waits for {quorum} of {sync} 'sync' destinations\n");
    }
    for d in &report.destinations {
        let (Some(tail), Some(records)) = (d.tail_bytes, d.tail_records) else { continue };
        text += &of(d);
        text += &match &d.snapshot {
            Some(newest) => format!(
                "newest snapshot: seq {}, {} ({}); behind it {} in {records} records\n",
                newest.seq,
                utc(newest.time),
                bytes(newest.database_bytes),
                bytes(tail),
            ),
            None => format!("no snapshot; the log is {} in {records} records\n", bytes(tail)),
        };
    }
    // They are about the node's own shadow, and the same for all.
    for d in report.destinations.iter().take(1) {
        if let Some(proven) = &d.proven {
            text += &format!("last proved: {}\n", place_and_time(proven));
        }
        match &d.compared {
            Some(compared) => {
                text += &format!("last equal to the database: {}\n", place_and_time(compared));
            }
            None if report.database.is_some() => text += "never compared with the database\n",
            None => {}
        }
    }
    if report.compared_at_start == Some(false) {
        text += "the database is larger than 'compare_max_bytes': it is compared by 'backup-cli compact' while \
                 lightningd is stopped\n";
    }
    if let Some(seq) = report.destinations.iter().filter_map(|d| d.seq).max() {
        text += &format!(
            "to write down elsewhere: seq {seq}; with '--expect-seq {seq}' no restore takes an older state\n"
        );
    }
    for d in &report.destinations {
        let Some(fencing) = d.fencing else { continue };
        text += &format!("fencing of {}: {fencing}\n", d.name);
    }
    if let Some(version) = report.database {
        let running = if report.running { ", lightningd is running" } else { "" };
        text += &format!("database at data_version {version}{running}\n");
    }
    if let Some(writer) = &report.writer {
        text += &format!("{writer}\n");
    }
    match &report.drill {
        Some(drill) => {
            text += &format!(
                "last drill: {} {}, {:.1} s, with {}\n",
                if drill.passed { "passed" } else { "failed" },
                utc(drill.time),
                drill.seconds,
                drill.opened_with
            );
        }
        None if report.quorum.is_some() => text += "never rehearsed: 'backup-cli drill'\n",
        None => {}
    }
    let slots = if report.slots.is_empty() { "nothing".into() } else { report.slots.join(", ") };
    text += &format!("opens with: {slots}\n");
    for warning in &report.warnings {
        text += &format!("{} {warning}\n", output.paint(Tone::Unusual, "warning:"));
    }
    text
}

fn tone(state: &str) -> Tone {
    match state {
        "current" | "ok" => Tone::Good,
        "behind" => Tone::Unusual,
        _ => Tone::Bad,
    }
}

fn table(destinations: &[DestinationReport], output: &Output) -> String {
    let width = |min: usize, len: &dyn Fn(&DestinationReport) -> usize| {
        destinations.iter().map(len).max().unwrap_or(0).max(min)
    };
    let (name, state) = (width(11, &|d| d.name.len()), width(7, &|d| d.state.len()));
    let heading = format!(
        "{:name$}  {:>12}  {:>12}  {:>5}  {:state$}  last written",
        "destination", "head", "data_version", "epoch", "state"
    );
    let mut text = output.paint(Tone::Quiet, &heading) + "\n";
    for d in destinations {
        let number = |value: Option<u64>| value.map_or("none".into(), |value| value.to_string());
        let behind = match d.records_behind {
            Some(records @ 1..) => format!(", {records} records behind the newest"),
            _ => String::new(),
        };
        let mode = if d.mode.is_sync() { "" } else { ", async" };
        text += &format!(
            "{:name$}  {:>12}  {:>12}  {:>5}  {}  {}{mode}{behind}\n",
            d.name,
            number(d.seq),
            number(d.data_version.map(u64::from)),
            number(d.epoch.map(u64::from)),
            output.paint(tone(d.state), &format!("{:state$}", d.state)),
            d.time.map_or("unknown".into(), utc),
        );
    }
    text
}
