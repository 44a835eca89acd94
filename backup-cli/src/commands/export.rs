//! `export`: the newest state as a file that other programs read.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write, copy};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lockstep_node::dump;
use lockstep_proto::restore::{Plan, Restored};
use lockstep_python_backup::format;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::restoring::{publish, write_database};
use crate::args::{ExportArgs, ExportFormat};
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, utc};
use crate::place::Place;
use crate::scratch::Scratch;

const WRITE: &str = "write";

#[derive(Serialize)]
struct Report {
    file: PathBuf,
    format: ExportFormat,
    bytes: u64,
    /// Which place it is from.
    destination: String,
    generation: u32,
    seq: u64,
    data_version: Option<u32>,
    /// When the newest batch in it was appended.
    as_of: u64,
}

/// Exports. The file gets its name as the last step.
pub fn run(args: &ExportArgs, output: &Output) -> Result<()> {
    let file = std::path::absolute(&args.to).map_err(Failure::file("find", &args.to))?;
    let format = match args.format {
        Some(format) => format,
        None => format_of(&file)?,
    };
    if file.symlink_metadata().is_ok() {
        return Err(Failure::new(
            format!("'{}' already exists", file.display()),
            "nothing was changed; give a new file.",
        ));
    }
    let place = Place::open(&args.place)?;
    let plan = Plan::newest(&*place.store, &place.keys)?;
    // Beside the file: it is moved there.
    let scratch = Scratch::new(file.parent())?;
    let database = scratch.file("exported.sqlite3");
    let restored = write_database(&*place.store, &place.keys, &plan, &database, output)
        .map_err(|failure| failure.doing("export"))?;
    let written = match format {
        ExportFormat::Sqlite => database,
        ExportFormat::Sql => write_sql(&database, &scratch)?,
        ExportFormat::Python => write_python(&database, &restored, &scratch)?,
    };
    publish(&written, &file)?;
    let report = Report {
        bytes: file.metadata().map_err(Failure::file("look at", &file))?.len(),
        file,
        format,
        destination: place.name,
        generation: restored.position.generation,
        seq: restored.position.seq,
        data_version: restored.data_version.map(|version| version.0),
        as_of: restored.time,
    };
    output.result(&report, || text(&report));
    Ok(())
}

fn format_of(file: &Path) -> Result<ExportFormat> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("sqlite3" | "sqlite" | "db") => Ok(ExportFormat::Sqlite),
        Some("sql") => Ok(ExportFormat::Sql),
        Some("bkp" | "dbak") => Ok(ExportFormat::Python),
        _ => Err(Failure::new(
            format!("the name '{}' does not say what it is to hold", file.display()),
            "give --format sqlite, sql or python.",
        )),
    }
}

/// A new file that only this user can read.
fn create(scratch: &Scratch) -> Result<(PathBuf, File)> {
    let path = scratch.file("exported");
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(&path);
    let file = file.map_err(Failure::file("create", &path))?;
    Ok((path, file))
}

fn write_sql(database: &Path, scratch: &Scratch) -> Result<PathBuf> {
    let (path, file) = create(scratch)?;
    let failed = |what: String| {
        Failure::new(format!("failed to export: {what}"), "'--format sqlite' needs no text.")
    };
    let db = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let db = db.map_err(|error| failed(error.to_string()))?;
    let mut text = BufWriter::new(file);
    dump::dump(&db, &mut text).map_err(|error| failed(error.to_string()))?;
    let synced = text.into_inner().map_err(std::io::IntoInnerError::into_error);
    synced.and_then(|file| file.sync_all()).map_err(Failure::file(WRITE, &path))?;
    Ok(path)
}

fn write_python(database: &Path, restored: &Restored, scratch: &Scratch) -> Result<PathBuf> {
    let read = Failure::file("read", database);
    let mut source = File::open(database).map_err(Failure::file("open", database))?;
    let len = source.metadata().map_err(read)?.len();
    let Some(version) = restored.data_version else {
        return Err(Failure::new(
            "the backup holds no transaction yet",
            "start lightningd with the plugin once.",
        ));
    };
    let Some(head) = format::with_one_snapshot(version.0, len) else {
        return Err(Failure::new(
            format!("the database has {}, and that format has room for 4 GiB", bytes(len)),
            "use '--format sqlite'.",
        ));
    };
    let (path, mut file) = create(scratch)?;
    file.write_all(&head)
        .and_then(|()| copy(&mut source, &mut file))
        .and_then(|_| file.sync_all())
        .map_err(Failure::file(WRITE, &path))?;
    Ok(path)
}

fn text(report: &Report) -> String {
    let version = report.data_version.map_or("none".into(), |version| version.to_string());
    let mut text = format!(
        "exported {} ({})\n  data_version {version}, generation {}, seq {}, as of {}\n",
        report.file.display(),
        bytes(report.bytes),
        report.generation,
        report.seq,
        utc(report.as_of)
    );
    text += &match report.format {
        ExportFormat::Sqlite => "  a SQLite database, not sealed any more\n".into(),
        ExportFormat::Sql => format!(
            "  SQL text, not sealed any more: 'sqlite3 NEW.sqlite3 < {}' makes a database of it\n",
            report.file.display()
        ),
        ExportFormat::Python => format!(
            "  a backup of the Python plugin 'backup', not sealed. To go on with that plugin: with lightningd stopped, \
             move backup.lock and backup.key aside, and write {{\"backend_url\": \"file://{}\"}} into backup.lock\n",
            report.file.display()
        ),
    };
    text + "the node that writes this backup goes on: what it commits from here on is not in this file. Start no \
            second node from it"
}
