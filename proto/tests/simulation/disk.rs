//! A disk in memory, below the real [`FileStore`]: files whose bytes and names are durable only once they are synced, and
//! a power that can be cut.
//!
//! What was not synced may be there after a cut or not, whatever else is: of each write any sectors, or its first bytes;
//! of the names any. That is more than most file systems do, and no more than they are allowed to.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use lockstep_proto::store::disk::{Folder, Found, OpenFile};
use lockstep_proto::store::{Fencing, FileStore};

use crate::faults::{Fault, Kind, Process};

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
const ROOT: usize = 0;

#[derive(Clone)]
enum Inode {
    File(Content),
    Folder(Names),
}

/// A file: as it is read, as it is on the disk, and what leads from there to here.
#[derive(Clone, Default)]
struct Content {
    cached: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<Dirty>,
    links: u64,
}

#[derive(Clone)]
enum Dirty {
    Write { at: usize, bytes: Vec<u8> },
    Len(usize),
}

#[derive(Clone, Default)]
struct Names {
    cached: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    dirty: Vec<(String, Option<usize>)>,
}

impl Content {
    fn write(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
        if bytes.len() < at + new.len() {
            bytes.resize(at + new.len(), 0);
        }
        bytes[at..at + new.len()].copy_from_slice(new);
    }

    fn sync(&mut self) {
        for dirty in std::mem::take(&mut self.dirty) {
            match dirty {
                Dirty::Write { at, bytes } => Self::write(&mut self.durable, at, &bytes),
                Dirty::Len(len) => self.durable.resize(len, 0),
            }
        }
    }

    fn cut_power(&mut self, lost: &mut Lost) {
        let len = self.cached.len();
        let unsynced = !self.dirty.is_empty();
        for dirty in std::mem::take(&mut self.dirty) {
            match dirty {
                Dirty::Len(len) if lost.keeps() => self.durable.resize(len, 0),
                Dirty::Len(_) => {}
                Dirty::Write { at, bytes } => lost.keep_some(&mut self.durable, at, &bytes),
            }
        }
        // The length alone may have been durable: what is not there reads as zeros.
        if unsynced && self.durable.len() < len && lost.keeps() {
            self.durable.resize(len, 0);
        }
        self.cached.clone_from(&self.durable);
    }
}

impl Names {
    fn set(names: &mut BTreeMap<String, usize>, name: &str, inode: Option<usize>) {
        match inode {
            Some(inode) => names.insert(name.into(), inode),
            None => names.remove(name),
        };
    }

    fn change(&mut self, name: &str, inode: Option<usize>) {
        Self::set(&mut self.cached, name, inode);
        self.dirty.push((name.into(), inode));
    }

    fn sync(&mut self) {
        for (name, inode) in std::mem::take(&mut self.dirty) {
            Self::set(&mut self.durable, &name, inode);
        }
    }

    fn cut_power(&mut self, lost: &mut Lost) {
        for (name, inode) in std::mem::take(&mut self.dirty) {
            if lost.keeps() {
                Self::set(&mut self.durable, &name, inode);
            }
        }
        self.cached.clone_from(&self.durable);
    }
}

/// What a power cut takes of what was not synced.
pub enum Lost {
    All,
    Some(Rng),
}

impl Lost {
    fn keeps(&mut self) -> bool {
        match self {
            Self::All => false,
            Self::Some(rng) => rng.bool(),
        }
    }

    fn keep_some(&mut self, durable: &mut Vec<u8>, at: usize, bytes: &[u8]) {
        let Self::Some(rng) = self else { return };
        match rng.u8(..4) {
            0 => {}
            1 => Content::write(durable, at, bytes),
            2 => Content::write(durable, at, &bytes[..rng.usize(..=bytes.len())]),
            _ => {
                let mut from = 0;
                while from < bytes.len() {
                    let to = (from + SECTOR - (at + from) % SECTOR).min(bytes.len());
                    if rng.bool() {
                        Content::write(durable, at + from, &bytes[from..to]);
                    }
                    from = to;
                }
            }
        }
    }
}

#[derive(Clone)]
struct State {
    inodes: Vec<Inode>,
    local: bool,
}

/// A disk.
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty one. With `local` files are zeroed ahead on it.
    pub fn new(local: bool) -> Self {
        let inodes = vec![Inode::Folder(Names::default())];
        Self(Arc::new(Mutex::new(State { inodes, local })))
    }

    /// The folder at its root, as `process` uses it.
    pub fn mount(&self, process: &Process) -> Arc<dyn Folder> {
        Arc::new(SimFolder { disk: self.0.clone(), process: process.clone(), inode: ROOT })
    }

    /// A store at its root.
    pub fn store(&self, label: &str, process: &Process) -> FileStore {
        FileStore::on(label.into(), self.mount(process))
    }

    /// The power goes and comes back. Whoever had it open must be dead.
    pub fn cut_power(&self, mut lost: Lost) {
        let mut state = lock(&self.0);
        for inode in &mut state.inodes {
            match inode {
                Inode::File(file) => file.cut_power(&mut lost),
                Inode::Folder(names) => names.cut_power(&mut lost),
            }
        }
        // Files have as many names as are left.
        let mut links = vec![0; state.inodes.len()];
        for inode in &state.inodes {
            if let Inode::Folder(names) = inode {
                names.cached.values().for_each(|&inode| links[inode] += 1);
            }
        }
        for (inode, links) in state.inodes.iter_mut().zip(links) {
            if let Inode::File(file) = inode {
                file.links = links;
            }
        }
    }

    /// What a power cut now would leave.
    pub fn after_power_cut(&self, lost: Lost) -> Self {
        let copy = self.copy();
        copy.cut_power(lost);
        copy
    }

    /// Another one with the same in it, synced or not.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(lock(&self.0).clone())))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn names(&mut self, inode: usize) -> io::Result<&mut Names> {
        match &mut self.inodes[inode] {
            Inode::Folder(names) => Ok(names),
            Inode::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&mut self, inode: usize) -> io::Result<&mut Content> {
        match &mut self.inodes[inode] {
            Inode::File(file) => Ok(file),
            Inode::Folder(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn find(&mut self, folder: usize, name: &str) -> io::Result<usize> {
        let found = self.names(folder)?.cached.get(name).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn refuse_existing(&mut self, folder: usize, name: &str) -> io::Result<()> {
        match self.names(folder)?.cached.contains_key(name) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => Ok(()),
        }
    }

    fn add(&mut self, folder: usize, name: &str, inode: Inode) -> io::Result<usize> {
        self.refuse_existing(folder, name)?;
        self.inodes.push(inode);
        let inode = self.inodes.len() - 1;
        self.names(folder)?.change(name, Some(inode));
        Ok(inode)
    }

    fn unlink(&mut self, folder: usize, name: &str) -> io::Result<()> {
        let inode = self.find(folder, name)?;
        self.file(inode)?.links -= 1;
        self.names(folder)?.change(name, None);
        Ok(())
    }
}

struct SimFolder {
    disk: Arc<Mutex<State>>,
    process: Process,
    inode: usize,
}

/// An operation that happens whole or not at all, with what goes wrong around it.
fn run<T>(
    process: &Process,
    kind: Kind,
    disk: &Mutex<State>,
    what: impl FnOnce(&mut State) -> io::Result<T>,
) -> io::Result<T> {
    let fault = process.step(kind);
    let mut state = lock(disk);
    match fault {
        None => what(&mut state),
        Some(Fault::After(errno)) => what(&mut state).and(Err(errno.error())),
        Some(Fault::DieAfter) => what(&mut state).and(Err(dead())),
        Some(Fault::Before(errno) | Fault::Short(errno)) => Err(errno.error()),
        Some(Fault::Dropped | Fault::DieBefore | Fault::DieHalfway) => Err(dead()),
    }
}

fn dead() -> io::Error {
    crate::faults::Errno::Io.error()
}

impl SimFolder {
    fn run<T>(&self, kind: Kind, what: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        run(&self.process, kind, &self.disk, what)
    }
}

impl Folder for SimFolder {
    fn open_folder(&self, name: &str) -> io::Result<Arc<dyn Folder>> {
        let inode = self.run(Kind::Read, |state| match name {
            "." => Ok(self.inode),
            name => {
                let found = state.find(self.inode, name)?;
                state.names(found).map(|_| found)
            }
        })?;
        Ok(Arc::new(Self { disk: self.disk.clone(), process: self.process.clone(), inode }))
    }

    fn make_folder(&self, name: &str) -> io::Result<()> {
        let new = || Inode::Folder(Names::default());
        self.run(Kind::Name, |state| state.add(self.inode, name, new()).map(drop))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        let file = Inode::File(Content { links: 1, ..Content::default() });
        let inode = self.run(Kind::Name, |state| state.add(self.inode, name, file))?;
        let (disk, process) = (self.disk.clone(), self.process.clone());
        Ok(Arc::new(SimFile { disk, process, inode, directly: AtomicBool::new(false) }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        self.run(Kind::Read, |state| {
            let inode = state.find(self.inode, name)?;
            let bytes: Box<dyn Read + Send> =
                Box::new(io::Cursor::new(state.file(inode)?.cached.clone()));
            Ok(bytes)
        })
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.run(Kind::Name, |state| {
            let inode = state.find(self.inode, from)?;
            state.refuse_existing(self.inode, to)?;
            state.file(inode)?.links += 1;
            state.names(self.inode)?.change(to, Some(inode));
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.run(Kind::Name, |state| {
            let inode = state.find(self.inode, from)?;
            if state.find(self.inode, to).is_ok() {
                state.unlink(self.inode, to)?;
                // The new name takes the old one's place in one step.
                state.names(self.inode)?.dirty.pop();
            }
            let names = state.names(self.inode)?;
            names.change(to, Some(inode));
            names.change(from, None);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.run(Kind::Name, |state| state.unlink(self.inode, name))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.run(Kind::Read, |state| Ok(state.names(self.inode)?.cached.keys().cloned().collect()))
    }

    fn look_up(&self, name: &str) -> io::Result<Found> {
        self.run(Kind::Read, |state| {
            let inode = state.find(self.inode, name)?;
            Ok(match &state.inodes[inode] {
                Inode::File(file) => {
                    let size = file.cached.len() as u64;
                    Found { size, folder: false, modified_s: u64::MAX }
                }
                Inode::Folder(_) => Found { size: 0, folder: true, modified_s: u64::MAX },
            })
        })
    }

    fn sync(&self) -> io::Result<()> {
        let fault = self.process.step(Kind::SyncNames);
        let mut state = lock(&self.disk);
        let names = state.names(self.inode)?;
        sync(fault, |drops| match drops {
            true => names.dirty.clear(),
            false => names.sync(),
        })
    }

    fn is_local(&self) -> bool {
        lock(&self.disk).local
    }

    fn fencing(&self) -> Fencing {
        Fencing::Real
    }
}

struct SimFile {
    disk: Arc<Mutex<State>>,
    process: Process,
    inode: usize,
    /// As a disk wants it then: whole blocks only.
    directly: AtomicBool,
}

impl SimFile {
    fn sync(&self) -> io::Result<()> {
        let fault = self.process.step(Kind::Sync);
        let mut state = lock(&self.disk);
        let file = state.file(self.inode)?;
        sync(fault, |drops| match drops {
            true => file.dirty.clear(),
            false => file.sync(),
        })
    }
}

/// A sync; told true, `what` drops what was to be synced.
fn sync(fault: Option<Fault>, mut what: impl FnMut(bool)) -> io::Result<()> {
    match fault {
        None => what(false),
        Some(Fault::Before(errno) | Fault::Short(errno)) => return Err(errno.error()),
        Some(Fault::After(errno)) => {
            what(false);
            return Err(errno.error());
        }
        Some(Fault::DieAfter) => {
            what(false);
            return Err(dead());
        }
        Some(Fault::Dropped) => {
            what(true);
            return Err(dead());
        }
        Some(Fault::DieBefore | Fault::DieHalfway) => return Err(dead()),
    }
    Ok(())
}

impl OpenFile for SimFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let fault = self.process.step(Kind::Write);
        let mut state = lock(&self.disk);
        let file = state.file(self.inode)?;
        let at = at as usize;
        if self.directly.load(Ordering::Relaxed) {
            let aligned = [at, bytes.len(), bytes.as_ptr() as usize].map(|n| n % BLOCK) == [0; 3];
            assert!(aligned, "a direct write of {} bytes at {at}", bytes.len());
        }
        let mut write = |bytes: &[u8]| {
            Content::write(&mut file.cached, at, bytes);
            file.dirty.push(Dirty::Write { at, bytes: bytes.into() });
        };
        match fault {
            None => write(bytes),
            Some(Fault::Before(errno)) => return Err(errno.error()),
            Some(Fault::After(errno)) => {
                write(bytes);
                return Err(errno.error());
            }
            Some(Fault::DieAfter) => {
                write(bytes);
                return Err(dead());
            }
            Some(Fault::Short(errno)) => {
                write(&bytes[..bytes.len() / 2]);
                return Err(errno.error());
            }
            Some(Fault::DieHalfway) => {
                write(&bytes[..bytes.len() / 2]);
                return Err(dead());
            }
            Some(Fault::DieBefore | Fault::Dropped) => return Err(dead()),
        }
        Ok(())
    }

    fn write_directly(&self, directly: bool) -> io::Result<()> {
        self.directly.store(directly, Ordering::Relaxed);
        Ok(())
    }

    fn write_durably(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_at(bytes, at)?;
        self.sync_data()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        run(&self.process, Kind::Write, &self.disk, |state| {
            let file = state.file(self.inode)?;
            file.cached.resize(bytes as usize, 0);
            file.dirty.push(Dirty::Len(bytes as usize));
            Ok(())
        })
    }

    fn links(&self) -> io::Result<u64> {
        run(&self.process, Kind::Read, &self.disk, |state| Ok(state.file(self.inode)?.links))
    }
}
