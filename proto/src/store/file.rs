//! A folder as a store: a local disk, or a mounted NAS.
//!
//! All paths are taken relative to one open descriptor of the folder, so that a mount which goes away
//! is an error, and never a write into what lies underneath.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::append::FileAppend;
use super::disk::{FOLDER_MODE, Folder, OpenFile, OsFolder};
use super::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind, UNSYNCED_MAX};
use crate::{hex, layout};

/// A temporary file that has not been written to for so many seconds is nobody's.
const LEFTOVER_S: u64 = 24 * 3600;
/// Room asked for to read an object, however little of it is used: glibc gives back what is larger than 32 MiB as soon
/// as it is freed. Of what is smaller it keeps more each time: 30 MiB in a process that reads segment after segment.
const ROOM: usize = 33 << 20;

/// A folder that keeps objects as files.
pub struct FileStore {
    label: String,
    root: Arc<dyn Folder>,
    /// Those that are open. Of a local file system only: a network client keeps what it saw of a folder until that is
    /// opened again.
    folders: Mutex<HashMap<String, Known>>,
}

/// A folder that is open.
struct Known {
    folder: Arc<dyn Folder>,
    /// Its name was synced: one that was only looked at may have been made by somebody who died before that.
    durable: bool,
}

impl FileStore {
    /// Opens a folder that holds a store.
    ///
    /// # Errors
    /// [`StoreErrorKind::Gone`] where the folder, or the marker in it, is not there: an empty folder
    /// where a store was is a mount that is missing, never a new store.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self::open_root(path)?;
        if store.exists(layout::MARKER)? {
            Ok(store)
        } else {
            Err(store.error(
                "open",
                layout::MARKER,
                StoreErrorKind::Gone("no backup in this folder; is the disk mounted?"),
            ))
        }
    }

    /// Opens a folder to make a store in it, creating the folder itself (not its parents).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn create_root(path: &Path) -> Result<Self, StoreError> {
        match DirBuilder::new().mode(FOLDER_MODE.as_raw_mode()).create(path) {
            Ok(()) => sync_parent(path).map_err(|error| path_error(path, "sync", error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(path_error(path, "create", error)),
        }
        Self::open_root(path)
    }

    /// Opens a folder that may or may not hold a store.
    ///
    /// # Errors
    /// [`StoreErrorKind::Gone`] where there is no folder.
    pub fn open_root(path: &Path) -> Result<Self, StoreError> {
        let root = OsFolder::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                path_kind(path, "open", StoreErrorKind::Gone("folder is not there"))
            }
            _ => path_error(path, "open", error),
        })?;
        Ok(Self::on(path.display().to_string(), Arc::new(root)))
    }

    /// On any disk; messages name it by `label`.
    pub fn on(label: String, root: Arc<dyn Folder>) -> Self {
        Self { label, root, folders: Mutex::default() }
    }

    fn error(&self, action: &'static str, object: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { store: self.label.clone(), action, object: object.into(), kind }
    }

    fn failed<'a>(
        &'a self,
        action: &'static str,
        object: &'a str,
    ) -> impl Fn(io::Error) -> StoreError + 'a {
        move |error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => StoreErrorKind::NotFound,
                io::ErrorKind::AlreadyExists => StoreErrorKind::Exists,
                _ => StoreErrorKind::Io(error),
            };
            self.error(action, object, kind)
        }
    }

    /// The folder of an object and the object's name in it.
    fn locate<'a>(
        &self,
        name: &'a str,
        make: bool,
    ) -> Result<(Arc<dyn Folder>, &'a str), StoreError> {
        match name.rsplit_once('/') {
            Some((folder, file)) => Ok((self.folder(folder, make)?, file)),
            None => Ok((self.folder("", make)?, name)),
        }
    }

    fn folder(&self, path: &str, make: bool) -> Result<Arc<dyn Folder>, StoreError> {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        let known = folders.get(path).filter(|known| self.root.is_local() && known.durable >= make);
        if let Some(known) = known {
            return Ok(known.folder.clone());
        }
        let failed = self.failed("open folder", path);
        let mut folder = self.root.open_folder(".").map_err(&failed)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if make {
                match folder.make_folder(part) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(failed(error));
                    }
                    // Whoever made it may have died before its name was durable.
                    _ => folder.sync().map_err(&failed)?,
                }
            }
            folder = folder.open_folder(part).map_err(&failed)?;
        }
        folders.insert(path.into(), Known { folder: folder.clone(), durable: make });
        Ok(folder)
    }
}

impl FileStore {
    /// Puts a file in place of the one of that name, if there is one.
    fn write_over(&self, name: &str, bytes: &[u8]) -> Result<Arc<dyn OpenFile>, StoreError> {
        let mut object = self.new_file(name)?;
        object.write(bytes)?;
        let failed = self.failed("replace", name);
        object.out.sync_all().map_err(&failed)?;
        object.folder.rename(&object.temporary, &object.file).map_err(&failed)?;
        object.folder.sync().map_err(&failed)?;
        Ok(object.out.clone())
    }

    fn new_file(&self, name: &str) -> Result<NewFile<'_>, StoreError> {
        let (folder, file) = self.locate(name, true)?;
        let token: [u8; 8] = crate::seal::random_token()
            .map_err(|error| self.error("create", name, io::Error::other(error).into()))?;
        let temporary = format!(".{file}.{}.tmp", hex::encode(&token));
        let out = folder.create(&temporary).map_err(self.failed("create", name))?;
        let (name, file) = (name.to_owned(), file.to_owned());
        Ok(NewFile { store: self, folder, name, file, temporary, out, at: 0 })
    }
}

impl Store for FileStore {
    fn label(&self) -> &str {
        &self.label
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(self.root.fencing())
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        if name.starts_with(layout::SNAPSHOTS) {
            remove_leftovers(&*self.locate(name, true)?.0);
        }
        Ok(Box::new(self.new_file(name)?))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        let (folder, file) = self.locate(name, true)?;
        let out = folder.create(file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.error("create", name, StoreErrorKind::Gone("its folder was deleted"))
            }
            _ => self.failed("create", name)(error),
        })?;
        let mut append = FileAppend::new(&self.label, name, out);
        append.append(header)?;
        folder.sync().map_err(self.failed("sync folder of", name))?;
        if self.root.is_local() {
            append.zero_ahead(header);
        }
        Ok(Box::new(append))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_over(name, bytes).map(drop)
    }

    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        // Anew: of a file that could not be written to, nothing is trusted.
        let bytes = [&[header], &records.iter().map(|record| &**record).collect::<Vec<_>>()[..]]
            .concat()
            .concat();
        let file = self.write_over(name, &bytes)?;
        let mut append = FileAppend::going_on(&self.label, name, file, bytes.len() as u64);
        if self.root.is_local() {
            append.zero_ahead(&bytes);
        }
        Ok(Box::new(append))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::with_capacity(ROOM);
        self.read_stream(name)?
            .read_to_end(&mut bytes)
            .map_err(|error| self.error("read", name, error.into()))?;
        Ok(bytes)
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        let (folder, file) = self.locate(name, false)?;
        folder.open(file).map_err(self.failed("open", name))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        let found = self
            .locate(name, false)
            .and_then(|(folder, file)| folder.look_up(file).map_err(self.failed("look up", name)));
        match found {
            Ok(_) => Ok(true),
            Err(StoreError { kind: StoreErrorKind::NotFound, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let opened = match self.folder(folder, false) {
            Err(StoreError { kind: StoreErrorKind::NotFound, .. }) => return Ok(Vec::new()),
            opened => opened?,
        };
        let failed = self.failed("list", folder);
        let mut entries = Vec::new();
        for name in opened.names().map_err(&failed)? {
            if name.starts_with('.') {
                continue;
            }
            match opened.look_up(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                found => {
                    let found = found.map_err(&failed)?;
                    entries.push(Entry { name, size: found.size, folder: found.folder });
                }
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        // Written anew: a sync that failed is not told again. What it dropped is still read from the cache, and another
        // sync says that all is well.
        let bytes = self.read(name)?;
        self.write_over(name, &bytes).map(drop)
    }

    fn sync_names(&self, folder: &str) -> Result<(), StoreError> {
        match self.folder(folder, false) {
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound) => return Ok(()),
            there => drop(there?),
        }
        let names = self.folder(folder, true)?.sync();
        names.map_err(self.failed("sync folder", folder))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let (folder, file) = match self.locate(name, false) {
            Err(StoreError { kind: StoreErrorKind::NotFound, .. }) => return Ok(()),
            located => located?,
        };
        match folder.remove(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", name)(error))
            }
            _ => folder.sync().map_err(self.failed("sync folder of", name)),
        }
    }
}

/// A file under a temporary name.
struct NewFile<'a> {
    store: &'a FileStore,
    folder: Arc<dyn Folder>,
    name: String,
    file: String,
    temporary: String,
    out: Arc<dyn OpenFile>,
    at: u64,
}

impl NewObject for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.out
            .write_at(bytes, self.at)
            .map_err(|error| self.store.error("write", &self.name, error.into()))?;
        let before = self.at / UNSYNCED_MAX;
        self.at += bytes.len() as u64;
        if self.at / UNSYNCED_MAX > before {
            self.out.sync_data().map_err(self.store.failed("sync", &self.name))?;
        }
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let failed = self.store.failed("create", &self.name);
        self.out.sync_all().map_err(&failed)?;
        match self.folder.link(&self.temporary, &self.file) {
            Ok(()) => {}
            Err(error) if knows_no_links(&error) => self.rename_new()?,
            Err(error) => return Err(failed(error)),
        }
        self.folder.sync().map_err(&failed)
    }
}

/// True where the file system has no hard links.
fn knows_no_links(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)
    )
}

impl NewFile<'_> {
    /// Where there are no hard links: takes the name with an exclusive create, then renames over it.
    fn rename_new(&self) -> Result<(), StoreError> {
        let failed = self.store.failed("create", &self.name);
        self.folder.create(&self.file).map_err(&failed)?;
        self.folder.rename(&self.temporary, &self.file).map_err(failed)
    }
}

/// Removes what processes left that died while they wrote a large object: what has not been written to for a
/// day. Best effort: it costs space, nothing else.
fn remove_leftovers(folder: &dyn Folder) {
    let Ok(names) = folder.names() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for name in names.iter().filter(|name| name.starts_with('.') && name.ends_with(".tmp")) {
        if let Ok(found) = folder.look_up(name)
            && now.saturating_sub(found.modified_s) > LEFTOVER_S
        {
            let _ = folder.remove(name);
        }
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        // Best effort: a leftover begins with a dot and is never listed.
        let _ = self.folder.remove(&self.temporary);
    }
}

/// Makes the name of a file or folder durable: syncs what it lies in.
///
/// # Errors
/// The system's.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let path: PathBuf = std::path::absolute(path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn path_kind(path: &Path, action: &'static str, kind: StoreErrorKind) -> StoreError {
    StoreError { store: path.display().to_string(), action, object: "folder".into(), kind }
}

fn path_error(path: &Path, action: &'static str, error: io::Error) -> StoreError {
    path_kind(path, action, StoreErrorKind::Io(error))
}

#[cfg(test)]
mod tests;
