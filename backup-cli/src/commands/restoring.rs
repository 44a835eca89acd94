//! What `restore`, `drill`, `export` and `promote` have in common: a database is written under a name that lightningd
//! would never start from, and gets its own when everything else is done.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_node::{LightningDir, write_hsm_secret};
use lockstep_proto::companion::{FileSet, PutBack};
use lockstep_proto::config::{Files, LockFile, write_key_file};
use lockstep_proto::error::Error;
use lockstep_proto::fence::{self, Claimant};
use lockstep_proto::restore::{self, Plan, Progress, Restored};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::{Store, sync_parent};
use lockstep_proto::witness::Witness;
use lockstep_proto::writer::{RestoredState, Writer};

use super::live::wallet_of;
use super::{now, plugin_line, refuse_running};
use crate::PROGRAM;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::sources::Sources;
use crate::unlock::Opened;

/// Where the database goes.
pub struct Dest {
    /// The database.
    pub database: PathBuf,
    /// The node's directory, where it is one and not a single file.
    pub node: Option<LightningDir>,
}

impl Dest {
    /// DEST is a directory where it is one, or where its name has no extension of a database.
    pub fn find(dest: &Path) -> Result<Self> {
        let dest = std::path::absolute(dest).map_err(Failure::file("find", dest))?;
        let extension = dest.extension().and_then(|extension| extension.to_str());
        if !dest.is_dir() && matches!(extension, Some("sqlite3" | "sqlite" | "db")) {
            return Ok(Self { database: dest, node: None });
        }
        if dest.exists() && !dest.is_dir() {
            return Err(Failure::new(
                format!("'{}' already exists", dest.display()),
                "nothing was changed; give a new file or a directory.",
            ));
        }
        let used = std::fs::read_dir(&dest).is_ok_and(|mut entries| entries.next().is_some());
        let node = if used { LightningDir::locate(&dest)? } else { LightningDir::new(&dest) };
        let node = wallet_of(&node)?;
        Ok(Self { database: node.wallet().to_owned(), node: Some(node) })
    }

    /// Refuses where anything of a database is there already, or a lightningd runs.
    pub fn refuse_existing(&self, what: &str) -> Result<()> {
        let is_empty = is_empty(&self.database);
        for suffix in ["", JOURNAL, "-wal", "-shm"] {
            let path = beside(&self.database, suffix);
            let is_left = is_empty && ["", JOURNAL].contains(&suffix);
            if path.symlink_metadata().is_ok() && !is_left {
                return Err(Failure::new(
                    format!("failed to {what}: '{}' already exists", path.display()),
                    "nothing was changed; move the old database files aside first, and hsm_secret and emergency.recover, too, \
                     where a lightningd that was started too early made all of them.",
                ));
            }
        }
        self.node.as_ref().map_or(Ok(()), refuse_running)
    }

    /// The name that it has until then.
    pub fn temporary(&self) -> PathBuf {
        let mut name = self.database.file_name().unwrap_or_default().to_owned();
        name.push(".restoring");
        self.database.with_file_name(name)
    }
}

/// What lightningd leaves where it is told that it must not start: an empty file, and a journal that says so.
fn is_empty(database: &Path) -> bool {
    database.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == 0)
}

/// What SQLite calls its rollback journal: the database's name, and this.
const JOURNAL: &str = "-journal";

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a folder that only this user can read, where there is none.
pub fn private_folder(path: &Path) -> Result<()> {
    let mut folder = DirBuilder::new();
    folder.recursive(true).mode(0o700).create(path).map_err(Failure::file("create", path))
}

/// Writes the database that `plan` leads to into `path`, a new file, and proves it. A snapshot that turns out to be
/// damaged is gone around, where there is an older one.
pub fn write_database(
    store: &dyn Store,
    keys: &KeyRing,
    plan: &Plan,
    path: &Path,
    output: &Output,
) -> Result<Restored> {
    for passed_over in &plan.lineage.passed_over {
        output.note(&format!("warning: passed over a newer snapshot: {passed_over}"));
    }
    let restored = match write_once(store, keys, plan, path, output) {
        Err(error @ (Error::Damaged { .. } | Error::UnknownKind { .. })) => {
            match plan.around_damage(store, keys)? {
                Some(other) => {
                    output.note(&format!("warning: {error}; going on from an older snapshot"));
                    write_once(store, keys, &other, path, output)
                }
                None => Err(error),
            }
        }
        restored => restored,
    };
    Ok(restored?)
}

fn write_once(
    store: &dyn Store,
    keys: &KeyRing,
    plan: &Plan,
    path: &Path,
    output: &Output,
) -> std::result::Result<Restored, Error> {
    // One that an interrupted restore left: it never had the database's name.
    let _ = std::fs::remove_file(path);
    let bar = output.counter("reading");
    let mut progress = |step: Progress| match step {
        Progress::Pages(bytes) => {
            bar.set_message("bytes of the snapshot written:");
            bar.set_position(bytes);
        }
        Progress::Batches(batches) => {
            bar.set_message("batches replayed:");
            bar.set_position(batches);
        }
        Progress::Checking => bar.set_message("checking the database; batches replayed:"),
    };
    let restored = restore::run(store, keys, plan, path, &mut progress);
    bar.finish_and_clear();
    if restored.is_err() {
        let _ = std::fs::remove_file(path);
    }
    restored
}

/// The log goes over to another directory: claimed first, so that whoever wrote it is stopped before its next commit.
pub struct Succession {
    sources: Sources,
    lock: LockFile,
    keys: KeyRing,
    claimant: Claimant,
    epoch: u32,
    store: Arc<dyn Store>,
}

impl Succession {
    /// Claims the next epoch at all places that answer.
    pub fn claim(sources: Sources, keys: &KeyRing, purpose: &str) -> Result<Self> {
        let directory = LockFile::new_directory()?;
        let mut lock = sources.lock(keys, directory.clone());
        let claimant = Claimant::this_process(PROGRAM, purpose, &directory, now())?;
        let store = sources.writable(keys, &lock)?;
        let epoch = fence::claim(&*store, keys, &claimant)?;
        sources.note_fencing(&mut lock);
        Ok(Self { sources, lock, keys: keys.clone(), claimant, epoch, store })
    }

    /// The log. Whatever the writer before acknowledged is in what is read of it from here on.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The epoch that was claimed.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Makes the log the directory's own, at what was restored of it, and puts companion files back. The database only
    /// gets its name after that.
    pub fn take_over(
        mut self,
        node: &LightningDir,
        opened: &Opened,
        restored: &Restored,
        output: &Output,
    ) -> Result<PutBack> {
        let files = self.prepare(node, opened, output)?;
        let Self { store, keys, claimant, epoch: claimed, .. } = self;
        let Restored { position, data_version, .. } = *restored;
        let state = RestoredState { position, data_version, claimed };
        Writer::take_over(store, keys, claimant, &state, now())?.close(now());
        Ok(files)
    }

    /// The same for an older state, with which the caller begins a generation.
    pub fn roll_back(
        mut self,
        node: &LightningDir,
        opened: &Opened,
        output: &Output,
    ) -> Result<(Writer, PutBack)> {
        let files = self.prepare(node, opened, output)?;
        Ok((Writer::roll_back(self.store, self.keys, self.claimant)?, files))
    }

    fn prepare(
        &mut self,
        node: &LightningDir,
        opened: &Opened,
        output: &Output,
    ) -> Result<PutBack> {
        let mut lock = self.lock.clone();
        let set = companion_files(&*self.store, &self.keys, output);
        if let Some(FileSet { include, include_secret, .. }) = set.clone() {
            lock.files = Files { include, include_secret, ..lock.files };
        }
        make_startable(node, lock, &self.keys, opened)?;
        let files = set.map(|set| set.put_back(node.path())).transpose()?.unwrap_or_default();
        self.sources.bring_up(&self.keys, output)?;
        self.claimant = self.claimant.renewed(now())?;
        Ok(files)
    }
}

/// What is kept beside the database. A restore does without where that cannot be read.
fn companion_files(store: &dyn Store, keys: &KeyRing, output: &Output) -> Option<FileSet> {
    FileSet::newest(store, keys).unwrap_or_else(|error| {
        output.note(&format!("warning: no companion files are put back: {error}"));
        None
    })
}

/// What a report says of companion files.
pub fn files_text(files: &PutBack) -> String {
    let mut text = String::new();
    if !files.put.is_empty() {
        text += &format!("  put back, too: {}\n", files.put.join(", "));
    }
    if !files.left.is_empty() {
        text += &format!(
            "  not put back, for it is there already or belongs elsewhere: {} ('backup-cli files get NAME --to FILE')\n",
            files.left.join(", ")
        );
    }
    text
}

/// What a report says of a directory that is a node's now.
pub fn next_step(node: &LightningDir) -> String {
    let secret = match node.hsm_secret().exists() {
        true => "",
        false => "put the node's hsm_secret here; ",
    };
    format!(
        "the old node is shut out of this backup; never start it again.\nnext: {secret}see that '{}' is in lightningd's \
         config, then start lightningd here",
        plugin_line()
    )
}

/// Notes in the directory how far its log had come: the last step of a restore.
pub fn note(node: &LightningDir, keys: &KeyRing, restored: &Restored) -> Result<()> {
    let (seq, version) = (restored.position.seq, restored.data_version);
    Ok(Witness::new(keys.store(), seq, version, now()).write(node.path())?)
}

/// What the plugin needs in the directory, and the node's secret where that opened the backup.
fn make_startable(
    node: &LightningDir,
    lock: LockFile,
    keys: &KeyRing,
    opened: &Opened,
) -> Result<()> {
    if let Some(secret) = &opened.hsm_secret
        && !node.hsm_secret().exists()
    {
        write_hsm_secret(&node.hsm_secret(), secret)?;
    }
    if !node.key_file().exists() {
        write_key_file(&node.key_file(), keys)?;
    }
    let lock = match LockFile::read(node.path())? {
        // Its settings stay.
        Some(mut there) if there.store_id == keys.store() => {
            there.directory = lock.directory;
            if lock.destinations.len() > 1 {
                (there.destinations, there.quorum) = (lock.destinations, lock.quorum);
            }
            there
        }
        _ => lock,
    };
    Ok(lock.write(node.path())?)
}

/// Gives a finished database its name, which no other file may have by now.
pub fn publish(temporary: &Path, database: &Path) -> Result<()> {
    if is_empty(database) {
        // The journal goes first: it must never meet another database.
        for path in [beside(database, JOURNAL), database.to_owned()] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Failure::file("replace", &path)(error));
                }
                _ => {}
            }
        }
        sync_parent(database).map_err(Failure::file("sync the folder of", database))?;
    }
    std::fs::hard_link(temporary, database)
        .and_then(|()| std::fs::remove_file(temporary))
        .or_else(|error| match error.kind() {
            ErrorKind::Unsupported | ErrorKind::PermissionDenied => {
                std::fs::rename(temporary, database)
            }
            _ => Err(error),
        })
        .map_err(Failure::file("publish", database))?;
    sync_parent(database).map_err(Failure::file("sync the folder of", database))
}
