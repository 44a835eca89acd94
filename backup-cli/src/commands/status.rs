//! `status`: how the backup is, against the database where there is one.

use lockstep_node::{Access, wallet};
use lockstep_proto::config::LockFile;
use lockstep_proto::destination::Destination;
use lockstep_proto::hold::Hold;
use lockstep_proto::log::LogEnd;
use lockstep_proto::seal::StoreId;
use lockstep_proto::shadow::{Digest, Proofs, Proven};
use lockstep_proto::slots;
use lockstep_proto::store::Fencing;
use lockstep_proto::tail::{NewestSnapshot, Tail};
use lockstep_proto::version::DataVersion;
use serde::Serialize;

use super::{missing_slots, now};
use crate::args::PlaceArgs;
use crate::failure::Result;
use crate::output::{Output, bytes, utc};
use crate::place::Place;

#[derive(Serialize)]
struct Report {
    store_id: StoreId,
    destinations: Vec<DestinationReport>,
    /// lightningd's version of the database, where there is one.
    database: Option<u32>,
    running: bool,
    /// Whether the plugin compares the database at each start; not where it is larger than `compare_max_bytes`.
    compared_at_start: Option<bool>,
    slots: Vec<String>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct DestinationReport {
    name: String,
    url: Destination,
    /// As it was found when the backup was made; `null` where only a URL was given.
    fencing: Option<Fencing>,
    state: &'static str,
    generation: u32,
    seq: u64,
    data_version: Option<u32>,
    epoch: u32,
    time: u64,
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

/// Shows it.
pub fn run(args: &PlaceArgs, output: &Output) -> Result<()> {
    let place = Place::open(args)?;
    let end = LogEnd::read(&*place.store, &place.keys)?;
    let mut warnings: Vec<String> = missing_slots(&*place.store)?.into_iter().collect();
    let mut running = false;
    let mut database = None;
    if let Some(node) = &place.node {
        running = node.running()?.is_some();
        database = wallet::data_version(node.wallet(), Access::Shared)?;
    }
    let tail = match Tail::read(&*place.store, &place.keys) {
        Ok(tail) => Some(tail),
        Err(error) => {
            warnings.push(format!("a restore would fail: {error}"));
            None
        }
    };
    warnings.extend(Hold::list(&*place.store)?.iter().map(Hold::warning));
    let (proofs, too_large) = proofs(&place)?;
    let head = end.head.data_version;
    let ahead = database.map(|version| DataVersion(version).ahead_of(head.unwrap_or_default()));
    let state = match ahead {
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
    };
    let report = Report {
        store_id: place.keys.store(),
        destinations: vec![DestinationReport {
            name: place.name,
            url: place.url,
            fencing: place.fencing,
            state,
            generation: end.position.generation,
            seq: end.position.seq,
            data_version: head.map(|version| version.0),
            epoch: end.epoch,
            time: end.time,
            tail_bytes: tail.as_ref().map(|tail| tail.bytes),
            tail_records: tail.as_ref().map(|tail| tail.records),
            snapshot: tail.and_then(|tail| tail.snapshot).map(SnapshotReport::from),
            proven: proofs.checked.map(ProvenReport::from),
            compared: proofs.compared.map(ProvenReport::from),
        }],
        compared_at_start: place.node.is_some().then_some(!too_large),
        database,
        running,
        slots: slots::list(&*place.store)?.into_iter().map(|slot| slot.name).collect(),
        warnings,
    };
    output.result(&report, || text(&report));
    Ok(())
}

/// What was last proved of the node's shadow, and whether its database is too large to be compared at each start.
fn proofs(place: &Place) -> Result<(Proofs, bool)> {
    let Some(node) = &place.node else { return Ok((Proofs::default(), false)) };
    let Some(lock) = LockFile::read(node.path())? else { return Ok((Proofs::default(), false)) };
    let (wallet, settings) = (lock.wallet, lock.compaction);
    let len = wallet.as_deref().unwrap_or(node.wallet()).metadata().map_or(0, |found| found.len());
    let folder = settings.shadow_in(node.path());
    Ok((Proofs::read(&folder, place.keys.store()), len > settings.compare_max_bytes))
}

/// Where and when, for one line.
fn place_and_time(proven: &ProvenReport) -> String {
    let version = proven.data_version.map_or("none".into(), |version| version.to_string());
    format!("seq {}, data_version {version} ({})", proven.seq, utc(proven.time))
}

fn text(report: &Report) -> String {
    let width = report.destinations.iter().map(|d| d.name.len()).max().unwrap_or(0).max(11);
    let mut text = format!(
        "{:width$}  {:>12}  {:>12}  {:>5}  {:7}  last written\n",
        "destination", "head", "data_version", "epoch", "state"
    );
    for d in &report.destinations {
        let version = d.data_version.map_or("none".into(), |version| version.to_string());
        text += &format!(
            "{:width$}  {:>12}  {:>12}  {:>5}  {:7}  {}\n",
            d.name,
            d.seq,
            version,
            d.epoch,
            d.state,
            utc(d.time)
        );
    }
    for d in &report.destinations {
        let (Some(tail), Some(records)) = (d.tail_bytes, d.tail_records) else { continue };
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
    for d in &report.destinations {
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
    for d in &report.destinations {
        let Some(fencing) = d.fencing else { continue };
        text += &format!("fencing of {}: {fencing}\n", d.name);
    }
    if let Some(version) = report.database {
        let running = if report.running { ", lightningd is running" } else { "" };
        text += &format!("database at data_version {version}{running}\n");
    }
    let slots = if report.slots.is_empty() { "nothing".into() } else { report.slots.join(", ") };
    text += &format!("opens with: {slots}\n");
    for warning in &report.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}
