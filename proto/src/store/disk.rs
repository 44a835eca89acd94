//! What a folder of a file system can do: all that a [`FileStore`](super::FileStore) asks of a disk, so that a test can be
//! the disk. Each method is one operation of the system, which may fail, and which a power cut may undo until it is synced.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, fstatfs, fsync,
    linkat, mkdirat, openat, renameat, statat, statx, unlinkat,
};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use super::Fencing;

const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
pub(super) const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);

/// An open folder.
#[allow(
    clippy::missing_errors_doc,
    reason = "each is one operation of the system, with its errors"
)]
pub trait Folder: Send + Sync {
    /// The folder `name` in this one; `.` for this one, opened anew.
    fn open_folder(&self, name: &str) -> io::Result<Arc<dyn Folder>>;
    /// Makes the folder `name`. Its name is durable once this one is synced.
    fn make_folder(&self, name: &str) -> io::Result<()>;
    /// Creates the file `name`, which must not be there. Its name is durable once this folder is synced.
    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>>;
    /// Opens the file `name` for reading.
    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>>;
    /// Gives the file `from` the name `to`, too, which must not be there.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Gives the file `from` the name `to` instead, in place of what has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes the name `name` away.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// All names in it.
    fn names(&self) -> io::Result<Vec<String>>;
    /// What has the name `name`.
    fn look_up(&self, name: &str) -> io::Result<Found>;
    /// Makes the names in it durable.
    fn sync(&self) -> io::Result<()>;
    /// On a local file system that overwrites in place: zeros ahead are worth while, and what was opened once is the
    /// same for everybody.
    fn is_local(&self) -> bool;
    /// Whether of two creates of one name one fails for certain.
    fn fencing(&self) -> Fencing;
}

/// A file that is being written.
#[allow(
    clippy::missing_errors_doc,
    reason = "each is one operation of the system, with its errors"
)]
pub trait OpenFile: Send + Sync {
    /// Writes all of `bytes`, or fails after any part of them.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// From here on writes go past the page cache, or not any more: of whole blocks of memory and file only.
    fn write_directly(&self, directly: bool) -> io::Result<()>;
    /// [`write_at`](Self::write_at) and [`sync_data`](Self::sync_data) in one.
    fn write_durably(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes its content durable, and its length.
    fn sync_data(&self) -> io::Result<()>;
    /// As [`sync_data`](Self::sync_data), and everything else about it.
    fn sync_all(&self) -> io::Result<()>;
    /// Cuts it off, or adds zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// How many names it has.
    fn links(&self) -> io::Result<u64>;
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Bytes; 0 for a folder.
    pub size: u64,
    /// True for a folder.
    pub folder: bool,
    /// When it was written to; seconds since 1970.
    pub modified_s: u64,
}

/// A folder of the operating system's.
pub(super) struct OsFolder {
    fd: OwnedFd,
    local: bool,
    fencing: Fencing,
}

const FOLDER_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl OsFolder {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(path, FOLDER_FLAGS, Mode::empty())?;
        let (local, fencing) = (is_local(&fd), fencing_of(&fd));
        Ok(Self { fd, local, fencing })
    }
}

impl Folder for OsFolder {
    fn open_folder(&self, name: &str) -> io::Result<Arc<dyn Folder>> {
        let fd = openat(&self.fd, name, FOLDER_FLAGS | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Arc::new(Self { fd, ..*self }))
    }

    fn make_folder(&self, name: &str) -> io::Result<()> {
        Ok(mkdirat(&self.fd, name, FOLDER_MODE)?)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(Arc::new(File::from(openat(&self.fd, name, flags, FILE_MODE)?)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Box::new(File::from(openat(&self.fd, name, flags, Mode::empty())?)))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn look_up(&self, name: &str) -> io::Result<Found> {
        let found = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        Ok(Found {
            size: if folder { 0 } else { found.st_size as u64 },
            folder,
            modified_s: u64::try_from(found.st_mtime).unwrap_or(u64::MAX),
        })
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.fd)?)
    }

    fn is_local(&self) -> bool {
        self.local
    }

    fn fencing(&self) -> Fencing {
        self.fencing
    }
}

impl OpenFile for File {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn write_directly(&self, directly: bool) -> io::Result<()> {
        let mut flags = fcntl_getfl(self)?;
        flags.set(OFlags::DIRECT, directly);
        Ok(fcntl_setfl(self, flags)?)
    }

    /// One request to a disk that can write past its own cache, where a write and a sync are two.
    fn write_durably(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            let rest = [IoSlice::new(&bytes[written..])];
            match pwritev2(self, &rest, at + written as u64, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    /// Not by `fstat`: to whoever was told when a file changed, the next change must not look like none, so Linux gives it a
    /// time of its own from 6.13 on, and writes that down with each sync.
    fn links(&self) -> io::Result<u64> {
        match statx(self, "", AtFlags::EMPTY_PATH, StatxFlags::NLINK) {
            Ok(found) => Ok(found.stx_nlink.into()),
            Err(Errno::NOSYS | Errno::PERM) => Ok(self.metadata()?.nlink()),
            Err(errno) => Err(errno.into()),
        }
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
