//! `verify`: reads everything that is stored, and proves it.

use lockstep_proto::verify::{self, GenerationReport};
use serde::Serialize;

use crate::args::PlaceArgs;
use crate::failure::Result;
use crate::output::{Output, bytes, utc};
use crate::place::Place;

#[derive(Serialize)]
struct Report {
    destination: String,
    generations: Vec<GenerationReport>,
    bytes: u64,
}

/// Verifies.
pub fn run(args: &PlaceArgs, output: &Output) -> Result<()> {
    let place = Place::open(args)?;
    let bar = output.bar("verifying", verify::stored_bytes(&*place.store)?);
    let generations = verify::run(&*place.store, &place.keys, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let generations = generations?;
    let bytes = generations.iter().map(|generation| generation.bytes).sum();
    let report = Report { destination: place.name, generations, bytes };
    output.result(&report, || text(&report));
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for g in &report.generations {
        let version = g.data_version.map_or("none".into(), |version| version.to_string());
        text += &format!(
            "generation {}: {} batches in {} segments{}, up to seq {}, data_version {version}, {}\n",
            g.generation,
            g.batches,
            g.segments,
            if g.snapshot.is_some() { " and a snapshot" } else { "" },
            g.seq,
            utc(g.time),
        );
    }
    text + &format!("'{}' is intact: {} read and proved", report.destination, bytes(report.bytes))
}
