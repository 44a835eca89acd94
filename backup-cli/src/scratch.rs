//! A temporary folder for a database: it goes with the program, also where that is interrupted.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lockstep_proto::shadow::room::free_bytes;
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use crate::failure::{Failure, Result};
use crate::output::bytes;

const PREFIX: &str = "lockstep-scratch-";
/// Locked for as long as somebody uses the folder.
const LOCK: &str = "lock";
/// What a program ends with that was interrupted.
const INTERRUPTED: i32 = 130;
/// Free space that is left to others.
const SPARE_BYTES: u64 = 64 << 20;

/// A folder that only this user can read. It is removed when this value is dropped and when the program is told to
/// end; one that a `kill -9` left is removed by the next program that makes one in the same place.
pub struct Scratch {
    folder: TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes one in `place`, or else where the system keeps temporary files.
    ///
    /// Once for each program: a signal then ends it with exit code 130.
    pub fn new(place: Option<&Path>) -> Result<Self> {
        let place = place.map_or_else(std::env::temp_dir, Path::to_owned);
        let place = std::path::absolute(&place).map_err(Failure::file("find", &place))?;
        remove_left_over(&place);
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&place);
        let folder = made.map_err(Failure::file("make a folder in", &place))?;
        let lock = lock(folder.path()).map_err(Failure::file("lock", folder.path()))?;
        let path = folder.path().to_owned();
        let signals = Signals::new(TERM_SIGNALS);
        let mut signals = signals.map_err(Failure::file("wait for a signal in", &path))?;
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                // Who makes a file there at this moment makes the first try fail.
                let gone = (0..100).any(|_| remove(&path).is_ok());
                let said = if gone { "gone" } else { "still there" };
                eprintln!("interrupted; '{}' is {said}", path.display());
                std::process::exit(INTERRUPTED);
            }
        });
        Ok(Self { folder, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Refuses where so many bytes would leave next to nothing to others.
    pub fn require_room(&self, needed: u64) -> Result<()> {
        let Some(free) = free_bytes(self.path()) else { return Ok(()) };
        if free >= needed.saturating_add(SPARE_BYTES) {
            return Ok(());
        }
        Err(Failure::new(
            format!(
                "'{}' has {} free, and a restored database takes about {}",
                self.path().parent().unwrap_or(self.path()).display(),
                bytes(free),
                bytes(needed)
            ),
            "name a larger disk with '--folder DIR'.",
        ))
    }
}

fn lock(folder: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).write(true).truncate(false).mode(0o600);
    let file = file.open(folder.join(LOCK))?;
    file.try_lock()?;
    Ok(file)
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Nobody uses a folder whose lock is free. One without a lock is being made.
fn remove_left_over(place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
        if ours && path.join(LOCK).is_file() && lock(&path).is_ok() {
            // Another user's stays.
            let _ = remove(&path);
        }
    }
}
