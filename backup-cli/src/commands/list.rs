//! `list`: what is stored.

use lockstep_proto::store::Store;
use lockstep_proto::{layout, log};
use serde::Serialize;

use crate::args::PlaceArgs;
use crate::failure::Result;
use crate::output::{Output, bytes};
use crate::place::Place;

#[derive(Serialize)]
struct Report {
    destination: String,
    generations: Vec<GenerationList>,
    /// Other destinations of the node that cannot be read.
    unreachable: Vec<Away>,
}

#[derive(Serialize)]
struct Away {
    name: String,
    error: String,
}

#[derive(Serialize)]
struct GenerationList {
    generation: u32,
    snapshots: Vec<Object>,
    segments: Vec<Object>,
}

#[derive(Serialize)]
struct Object {
    name: String,
    bytes: u64,
}

/// Lists.
pub fn run(args: &PlaceArgs, output: &Output) -> Result<()> {
    let place = Place::open(args)?;
    let mut generations = Vec::new();
    for generation in log::generations(&*place.store)? {
        let segments = log::segments(&*place.store, generation)?
            .iter()
            .map(|segment| Object { name: segment.name.to_string(), bytes: segment.size })
            .collect();
        let snapshots = snapshots(&*place.store, generation)?;
        generations.push(GenerationList { generation, snapshots, segments });
    }
    let away = place.others.iter().filter_map(|site| {
        let failure = site.store().err()?;
        Some(Away { name: site.name.clone(), error: failure.message().into() })
    });
    let unreachable = away.collect();
    let report = Report { destination: place.name, generations, unreachable };
    output.result(&report, || text(&report));
    Ok(())
}

fn snapshots(store: &dyn Store, generation: u32) -> Result<Vec<Object>> {
    let folder = layout::snapshot_folder(generation);
    let entries = store.list(&folder)?;
    Ok(entries
        .into_iter()
        .map(|entry| Object { name: format!("{folder}/{}", entry.name), bytes: entry.size })
        .collect())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for generation in &report.generations {
        text += &format!("generation {}\n", generation.generation);
        for object in generation.snapshots.iter().chain(&generation.segments) {
            text += &format!("  {:>12}  {}\n", bytes(object.bytes), object.name);
        }
    }
    for away in &report.unreachable {
        text += &format!("'{}' is unreachable: {}\n", away.name, away.error);
    }
    text
}
