//! `files`: what is kept beside the database.

use std::io::Write;
use std::path::PathBuf;

use lockstep_proto::companion::{CompanionFile, FileSet};
use serde::Serialize;

use crate::args::{FilesArgs, FilesCommand, FilesGetArgs, PlaceArgs};
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, utc};
use crate::place::Place;

#[derive(Serialize)]
struct Report {
    destination: String,
    /// When the newest set was made; `None` where there is none.
    time: Option<u64>,
    files: Vec<FileReport>,
}

#[derive(Serialize)]
struct FileReport {
    name: String,
    bytes: usize,
    /// Permissions, in octal.
    mode: String,
    modified: u64,
}

#[derive(Serialize)]
struct Written {
    name: String,
    path: PathBuf,
    bytes: usize,
}

/// Lists, or gets.
pub fn run(args: &FilesArgs, output: &Output) -> Result<()> {
    match &args.command {
        FilesCommand::List(place) => list(place, output),
        FilesCommand::Get(args) => get(args, output),
    }
}

fn list(args: &PlaceArgs, output: &Output) -> Result<()> {
    let place = Place::open(args)?;
    let set = FileSet::newest(&*place.store, &place.keys)?;
    let time = set.as_ref().map(|set| set.time);
    let files = set.into_iter().flat_map(|set| set.files).map(|file| FileReport {
        bytes: file.content.len(),
        mode: format!("{:04o}", file.mode),
        modified: file.modified,
        name: file.name,
    });
    let report = Report { destination: place.name, time, files: files.collect() };
    output.result(&report, || text(&report));
    Ok(())
}

fn text(report: &Report) -> String {
    let Some(time) = report.time else { return "no companion files are kept".into() };
    let mut text = format!("companion files as of {}\n", utc(time));
    for file in &report.files {
        let size = bytes(file.bytes as u64);
        text += &format!("  {:>12}  {}  {}  {}\n", size, file.mode, utc(file.modified), file.name);
    }
    text
}

fn get(args: &FilesGetArgs, output: &Output) -> Result<()> {
    if output.is_json() && args.to.is_none() {
        return Err(Failure::new(
            "--json needs '--to FILE'",
            "without it, the file's content is all that is written to stdout.",
        ));
    }
    let place = Place::open(&args.place)?;
    let set = FileSet::newest(&*place.store, &place.keys)?;
    let mut files = set.into_iter().flat_map(|set| set.files);
    let file = files.find(|file| file.name == args.file).ok_or_else(|| {
        Failure::new(
            format!("'{}' keeps no file '{}'", place.name, args.file),
            "'backup-cli files list' shows what there is.",
        )
    })?;
    match &args.to {
        Some(path) => write(file, path.clone(), output),
        None => {
            // A reader that has seen enough closes the pipe.
            let _ = std::io::stdout().write_all(&file.content);
            Ok(())
        }
    }
}

fn write(file: CompanionFile, path: PathBuf, output: &Output) -> Result<()> {
    let path = std::path::absolute(&path).map_err(Failure::file("find", &path))?;
    if path.symlink_metadata().is_ok() {
        return Err(Failure::new(
            format!("'{}' already exists", path.display()),
            "nothing was changed; give a new file.",
        ));
    }
    file.write(&path)?;
    let written = Written { name: file.name, path, bytes: file.content.len() };
    output.result(&written, || format!("wrote {}", written.path.display()));
    Ok(())
}
