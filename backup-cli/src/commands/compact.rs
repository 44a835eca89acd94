//! `compact`: a snapshot of what the log came to.

use std::path::Path;
use std::time::Instant;

use lockstep_proto::config::{LockFile, SHADOW_FOLDER};
use lockstep_proto::error::Error;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::shadow::{self, Published, Shadow};
use lockstep_proto::store::Store;
use serde::Serialize;

use crate::args::CompactArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};
use crate::place::Place;

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
    seconds: f64,
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
    let (store, keys) = (&*place.store, &place.keys);
    store.tidy().map_err(Error::from)?;
    let done = match compact(store, keys, &folder, output) {
        Err(error) if shadow::may_be_wrong(&error) => {
            shadow::remove(&folder).and_then(|()| compact(store, keys, &folder, output))
        }
        done => done,
    };
    let (batches, seq, published) = done.map_err(|error| Failure::from(error).doing("compact"))?;
    let report = report(&place, batches, seq, published, began);
    output.result(&report, || text(&report));
    Ok(())
}

fn compact(
    store: &dyn Store,
    keys: &KeyRing,
    folder: &Path,
    output: &Output,
) -> std::result::Result<(u64, u64, Option<Published>), Error> {
    let bar = output.counter("reading the newest snapshots");
    let replayed = Shadow::open(store, keys, folder).and_then(|mut shadow| {
        bar.set_message("batches replayed:");
        let replayed = shadow.catch_up(&mut |batches| bar.set_position(batches))?;
        bar.set_message("bytes written:");
        let published = shadow.publish(&mut |bytes, _| bar.set_position(bytes))?;
        bar.set_message("checking; bytes written:");
        shadow.prove()?;
        Ok((replayed.batches, shadow.seq(), published))
    });
    bar.finish_and_clear();
    replayed
}

fn report(
    place: &Place,
    batches: u64,
    seq: u64,
    published: Option<Published>,
    began: Instant,
) -> Report {
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
        seconds: began.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let Some(snapshot) = &report.snapshot else {
        return format!("nothing new to compact in '{}': seq {}", report.destination, report.seq);
    };
    format!(
        "compacted '{}' up to seq {} in {:.1} s\n  {} batches replayed\n  {} of {} pages in {snapshot}, {}\n  \
         a restore reads {} snapshots, and the log from there; SQLite's checks pass",
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
