//! `compact`: a snapshot of what the log came to.

use std::path::Path;
use std::time::Instant;

use lockstep_proto::config::{LockFile, SHADOW_FOLDER};
use lockstep_proto::error::Error;
use lockstep_proto::hold::Hold;
use lockstep_proto::replica::Mirror;
use lockstep_proto::shadow::{self, Expected, Proofs, Published, Shadow};
use serde::Serialize;

use super::live::{self, digest_of};
use super::now;
use crate::args::CompactArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};
use crate::place::{Place, Site};

#[derive(Serialize)]
struct Report {
    destination: String,
    /// The snapshot; `None` where nothing was new.
    snapshot: Option<String>,
    seq: u64,
    data_version: Option<u32>,
    batches: u64,
    pages: u64,
    page_count: u64,
    stored_bytes: u64,
    /// Snapshots that a restore reads.
    links: usize,
    /// Whether the database holds the same: true, or `null` where there is none, or lightningd runs; false where they
    /// are at places that cannot be compared.
    compared: Option<bool>,
    seconds: f64,
    /// One for each other destination of the node.
    others: Vec<Other>,
}

/// Another destination, which gets the snapshots that it lacks.
#[derive(Serialize)]
struct Other {
    destination: String,
    copied: u64,
    error: Option<String>,
}

/// What came of it.
struct Done {
    batches: u64,
    seq: u64,
    published: Option<Published>,
    compared: Option<bool>,
}

/// Compacts.
pub fn run(args: &CompactArgs, output: &Output) -> Result<()> {
    let began = Instant::now();
    let place = Place::open(&args.place)?;
    let temporary;
    let folder = match (&args.shadow, &place.node) {
        (Some(folder), _) => folder.clone(),
        (None, Some(node)) => {
            let lock = LockFile::read(node.path())?;
            let settings = lock.map(|lock| lock.compaction).unwrap_or_default();
            settings.shadow_in(node.path())
        }
        (None, None) => {
            temporary = tempfile::tempdir()
                .map_err(Failure::file("make a folder in", &std::env::temp_dir()))?;
            temporary.path().join(SHADOW_FOLDER)
        }
    };
    place.store.tidy().map_err(Error::from)?;
    let expected = match &place.node {
        Some(node) => live::expected(node, &*place.store, &place.keys, output)?,
        None => None,
    };
    let compact = || compact(&place, &folder, expected.as_ref(), output);
    let done = match compact() {
        Err(error) if shadow::may_be_wrong(&error) => {
            shadow::remove(&folder).and_then(|()| compact())
        }
        done => done,
    };
    if let Err(Error::Differs { generation, seq, .. }) = done {
        let hold = Hold { generation, seq, time: now() };
        hold.place(&*place.store)?;
        let others = place.others.iter().filter_map(|site| site.store().ok());
        others.map(|store| hold.place(store)).collect::<std::result::Result<Vec<_>, _>>()?;
    }
    let done = done.map_err(|error| Failure::from(error).doing("compact"))?;
    let others = share(&place, output);
    let report = report(&place, done, others, began);
    output.result(&report, || text(&report));
    let bad = report.others.iter().filter(|other| other.error.is_some());
    Failure::if_any(
        bad.map(|other| other.destination.as_str()),
        "the snapshot was not copied to",
        "the backup is whole where it was made; 'backup-cli verify --heal' brings the others up.",
    )
}

/// Copies the snapshots that the other destinations lack, as far as their own logs reach.
fn share(place: &Place, output: &Output) -> Vec<Other> {
    let copy = |site: &Site| -> Result<u64> {
        let (source, target) = (&*place.store, site.store()?);
        let bar = output.counter(&format!("copying to '{}', bytes:", site.name));
        let mirror = Mirror { source, target, keys: &place.keys, before: None };
        let done = mirror.snapshots(&mut |bytes| bar.inc(bytes));
        bar.finish_and_clear();
        Ok(done?.objects)
    };
    let others = place.others.iter().map(|site| {
        let (copied, error) = match copy(site) {
            Ok(copied) => (copied, None),
            Err(failure) => (0, Some(failure.message().to_owned())),
        };
        Other { destination: site.name.clone(), copied, error }
    });
    others.collect()
}

/// Replays, compares, proves, publishes: what is published is the next restore's.
fn compact(
    place: &Place,
    folder: &Path,
    expected: Option<&Expected>,
    output: &Output,
) -> std::result::Result<Done, Error> {
    let bar = output.counter("reading the newest snapshots");
    let (store, keys) = (&*place.store, &place.keys);
    let done = Shadow::open(store, keys, folder).and_then(|mut shadow| {
        bar.set_message("batches replayed:");
        let replayed = shadow.catch_up(&mut |batches| bar.set_position(batches))?;
        bar.set_message("checking");
        let mut proofs = Proofs::read(folder, keys.store());
        let compared = match expected {
            None => None,
            Some(expected) => Some(shadow.compare_at_end(expected, &digest_of)?),
        };
        if let (Some(expected), Some(true)) = (expected, compared) {
            proofs.compared = Some(expected.proven(now()));
        }
        proofs.checked = Some(shadow.prove_with(&digest_of, now())?);
        proofs.write(folder, keys.store())?;
        bar.set_message("bytes written:");
        let published = shadow.publish(&mut |bytes, _| bar.set_position(bytes))?;
        Ok(Done { batches: replayed.batches, seq: shadow.seq(), published, compared })
    });
    bar.finish_and_clear();
    done
}

fn report(place: &Place, done: Done, others: Vec<Other>, began: Instant) -> Report {
    let Done { batches, seq, published, compared } = done;
    let version = published.as_ref().and_then(|published| published.data_version);
    Report {
        destination: place.name.clone(),
        seq,
        data_version: version.map(|version| version.0),
        batches,
        pages: published.as_ref().map_or(0, |published| published.pages),
        page_count: published.as_ref().map_or(0, |published| published.page_count),
        links: published.as_ref().map_or(0, |published| published.links),
        stored_bytes: published.as_ref().map_or(0, |published| published.stored_bytes),
        snapshot: published.map(|published| published.base.name),
        compared,
        seconds: began.elapsed().as_secs_f64(),
        others,
    }
}

fn text(report: &Report) -> String {
    let mut text = own_text(report);
    for Other { destination, copied, error } in &report.others {
        text += &match error {
            None => format!("\n  copied to '{destination}': {copied} snapshots"),
            Some(error) => format!("\n  not copied to '{destination}': {error}"),
        };
    }
    text
}

fn own_text(report: &Report) -> String {
    let equal = match report.compared {
        Some(true) => "; the database holds the same",
        _ => "",
    };
    let Some(snapshot) = &report.snapshot else {
        return format!(
            "nothing new to compact in '{}': seq {}; SQLite's checks pass{equal}",
            report.destination, report.seq
        );
    };
    format!(
        "compacted '{}' up to seq {} in {:.1} s\n  {} batches replayed\n  {} of {} pages in {snapshot}, {}\n  \
         a restore reads {} snapshots, and the log from there; SQLite's checks pass{equal}",
        report.destination,
        report.seq,
        report.seconds,
        report.batches,
        report.pages,
        report.page_count,
        bytes(report.stored_bytes),
        report.links,
    )
}
