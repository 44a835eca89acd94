//! A folder as a store: a local disk, or a mounted NAS.
//!
//! All paths are taken relative to one open descriptor of the folder, so that a mount which goes away
//! is an error, and never a write into what lies underneath.

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, fdatasync, fstatfs, fsync, linkat, mkdirat, openat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::append::FileAppend;
use super::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind, UNSYNCED_MAX};
use crate::{hex, layout};

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
/// A temporary file that has not been written to for so many seconds is nobody's.
const LEFTOVER_S: u64 = 24 * 3600;
/// For an object of this size or more …
const LARGE: u64 = 1 << 20;
/// … so much room is asked for, however little of it is used. glibc gives back what is larger than 32 MiB as soon
/// as it is freed. Of what is smaller it keeps more each time: 30 MiB in a process that reads segment after segment.
const ROOM: usize = 33 << 20;
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);

/// A folder that keeps objects as files.
pub struct FileStore {
    label: String,
    root: OwnedFd,
    /// On a local file system: its zeros are worth while, and its folders are the same for everybody. A
    /// network client keeps what it saw of a folder until that is opened again.
    local: bool,
    fencing: Fencing,
    folders: Mutex<HashMap<String, Arc<OwnedFd>>>,
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
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => path_kind(path, "open", StoreErrorKind::Gone("folder is not there")),
            _ => path_error(path, "open", errno.into()),
        })?;
        let local = is_local(&root);
        let fencing = fencing_of(&root);
        let label = path.display().to_string();
        Ok(Self { label, root, local, fencing, folders: Mutex::default() })
    }

    fn error(&self, action: &'static str, object: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { store: self.label.clone(), action, object: object.into(), kind }
    }

    fn failed<'a>(
        &'a self,
        action: &'static str,
        object: &'a str,
    ) -> impl Fn(Errno) -> StoreError + 'a {
        move |errno| {
            let kind = match errno {
                Errno::NOENT => StoreErrorKind::NotFound,
                Errno::EXIST => StoreErrorKind::Exists,
                _ => StoreErrorKind::Io(errno.into()),
            };
            self.error(action, object, kind)
        }
    }

    /// The folder of an object and the object's name in it.
    fn locate<'a>(&self, name: &'a str, make: bool) -> Result<(Arc<OwnedFd>, &'a str), StoreError> {
        match name.rsplit_once('/') {
            Some((folder, file)) => Ok((self.folder(folder, make)?, file)),
            None => Ok((self.folder("", make)?, name)),
        }
    }

    fn folder(&self, path: &str, make: bool) -> Result<Arc<OwnedFd>, StoreError> {
        let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = folders.get(path).filter(|_| self.local) {
            return Ok(folder.clone());
        }
        let failed = self.failed("open folder", path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = openat(&self.root, ".", flags, Mode::empty()).map_err(&failed)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if make {
                match mkdirat(&folder, part, FOLDER_MODE) {
                    // Whoever made it may have died before its name was durable.
                    Ok(()) | Err(Errno::EXIST) => fsync(&folder).map_err(&failed)?,
                    Err(errno) => return Err(failed(errno)),
                }
            }
            folder =
                openat(&folder, part, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(&failed)?;
        }
        let folder = Arc::new(folder);
        folders.insert(path.into(), folder.clone());
        Ok(folder)
    }

    fn open_file(&self, name: &str) -> Result<File, StoreError> {
        let (folder, file) = self.locate(name, false)?;
        openat(&*folder, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .map(File::from)
            .map_err(self.failed("open", name))
    }
}

impl FileStore {
    /// Puts a file in place of the one of that name, if there is one.
    fn write_over(&self, name: &str, bytes: &[u8]) -> Result<File, StoreError> {
        let mut object = self.new_file(name)?;
        object.write(bytes)?;
        let failed = self.failed("replace", name);
        fsync(&object.out).map_err(&failed)?;
        let (folder, file) = (&*object.folder, object.file.as_str());
        rustix::fs::renameat(folder, &object.temporary, folder, file).map_err(&failed)?;
        fsync(folder).map_err(&failed)?;
        object.out.try_clone().map_err(|error| self.error("replace", name, error.into()))
    }

    fn new_file(&self, name: &str) -> Result<NewFile<'_>, StoreError> {
        let (folder, file) = self.locate(name, true)?;
        let token: [u8; 8] = crate::seal::random_token()
            .map_err(|error| self.error("create", name, io::Error::other(error).into()))?;
        let temporary = format!(".{file}.{}.tmp", hex::encode(&token));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let out =
            openat(&*folder, &temporary, flags, FILE_MODE).map_err(self.failed("create", name))?;
        let (name, file) = (name.to_owned(), file.to_owned());
        Ok(NewFile { store: self, folder, name, file, temporary, out: out.into(), at: 0 })
    }
}

impl Store for FileStore {
    fn label(&self) -> &str {
        &self.label
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(self.fencing)
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        if name.starts_with(layout::SNAPSHOTS) {
            remove_leftovers(&self.locate(name, true)?.0);
        }
        Ok(Box::new(self.new_file(name)?))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        let (folder, file) = self.locate(name, true)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let out = openat(&*folder, file, flags, FILE_MODE).map_err(|errno| match errno {
            Errno::NOENT => {
                self.error("create", name, StoreErrorKind::Gone("its folder was deleted"))
            }
            _ => self.failed("create", name)(errno),
        })?;
        let mut append = FileAppend::new(&self.label, name, out.into());
        append.append(header)?;
        fsync(&*folder).map_err(self.failed("sync folder of", name))?;
        if self.local {
            append.zero_ahead();
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
        if self.local {
            append.zero_ahead();
        }
        Ok(Box::new(append))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let failed = |error: io::Error| self.error("read", name, error.into());
        let mut file = self.open_file(name)?;
        let len = file.metadata().map_err(failed)?.len();
        let mut bytes = Vec::new();
        if len >= LARGE {
            bytes.reserve(ROOM);
        }
        file.read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        Ok(Box::new(self.open_file(name)?))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        let found = self.locate(name, false).and_then(|(folder, file)| {
            statat(&*folder, file, AtFlags::SYMLINK_NOFOLLOW).map_err(self.failed("look up", name))
        });
        match found {
            Ok(_) => Ok(true),
            Err(StoreError { kind: StoreErrorKind::NotFound, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let fd = match self.folder(folder, false) {
            Err(StoreError { kind: StoreErrorKind::NotFound, .. }) => return Ok(Vec::new()),
            fd => fd?,
        };
        let failed = self.failed("list", folder);
        let mut entries = Vec::new();
        for entry in Dir::read_from(&*fd).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let stat = match statat(&*fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(&failed)?,
            };
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let size = if is_folder { 0 } else { stat.st_size as u64 };
            entries.push(Entry { name: name.into(), size, folder: is_folder });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        let file = self.open_file(name)?;
        fsync(&file).map_err(self.failed("sync", name))?;
        let (folder, _) = self.locate(name, false)?;
        fsync(&*folder).map_err(self.failed("sync folder of", name))
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let (folder, file) = match self.locate(name, false) {
            Err(StoreError { kind: StoreErrorKind::NotFound, .. }) => return Ok(()),
            located => located?,
        };
        match unlinkat(&*folder, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {
                fsync(&*folder).map_err(self.failed("sync folder of", name))
            }
            Err(errno) => Err(self.failed("remove", name)(errno)),
        }
    }
}

/// A file under a temporary name.
struct NewFile<'a> {
    store: &'a FileStore,
    folder: Arc<OwnedFd>,
    name: String,
    file: String,
    temporary: String,
    out: File,
    at: u64,
}

impl NewObject for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.out
            .write_all_at(bytes, self.at)
            .map_err(|error| self.store.error("write", &self.name, error.into()))?;
        let before = self.at / UNSYNCED_MAX;
        self.at += bytes.len() as u64;
        if self.at / UNSYNCED_MAX > before {
            fdatasync(&self.out).map_err(self.store.failed("sync", &self.name))?;
        }
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let failed = self.store.failed("create", &self.name);
        fsync(&self.out).map_err(&failed)?;
        match linkat(&*self.folder, &self.temporary, &*self.folder, &self.file, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
                self.rename_new()?
            }
            Err(errno) => return Err(failed(errno)),
        }
        fsync(&*self.folder).map_err(&failed)
    }
}

impl NewFile<'_> {
    /// Where there are no hard links: takes the name with an exclusive create, then renames over it.
    fn rename_new(&self) -> Result<(), StoreError> {
        let failed = self.store.failed("create", &self.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(&*self.folder, &self.file, flags, FILE_MODE).map_err(&failed)?;
        rustix::fs::renameat(&*self.folder, &self.temporary, &*self.folder, &self.file)
            .map_err(failed)
    }
}

/// Removes what processes left that died while they wrote a large object: what has not been written to for a
/// day. Best effort: it costs space, nothing else.
fn remove_leftovers(folder: &OwnedFd) {
    let Ok(entries) = Dir::read_from(folder) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let temporary = name.to_bytes().starts_with(b".") && name.to_bytes().ends_with(b".tmp");
        if temporary
            && let Ok(found) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
            && now.saturating_sub(u64::try_from(found.st_mtime).unwrap_or(u64::MAX)) > LEFTOVER_S
        {
            let _ = unlinkat(folder, name, AtFlags::empty());
        }
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        // Best effort: a leftover begins with a dot and is never listed.
        let _ = unlinkat(&*self.folder, &self.temporary, AtFlags::empty());
    }
}

/// True on file systems of this machine's own disks that overwrite in place; copy-on-write and network
/// ones gain nothing from zeros.
fn is_local(root: &OwnedFd) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    fstatfs(root.as_fd()).is_ok_and(|stat| matches!(stat.f_type as u64, EXT | XFS))
}

/// FUSE file systems (sshfs, rclone, bindfs …) may show what another machine made only after a while. NFS and SMB show it
/// to whoever opens the folder anew, and create exclusively (measured on knfsd and Samba).
fn fencing_of(root: &OwnedFd) -> Fencing {
    const FUSE: u64 = 0x6573_5546;
    match fstatfs(root.as_fd()) {
        Ok(stat) if stat.f_type as u64 != FUSE => Fencing::Real,
        Ok(_) | Err(_) => Fencing::Advisory,
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let path: PathBuf = std::path::absolute(path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn path_kind(path: &Path, action: &'static str, kind: StoreErrorKind) -> StoreError {
    StoreError { store: path.display().to_string(), action, object: "folder".into(), kind }
}

fn path_error(path: &Path, action: &'static str, error: io::Error) -> StoreError {
    path_kind(path, action, StoreErrorKind::Io(error))
}
