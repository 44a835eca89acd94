//! A store in memory, each of whose operations can be made to fail, and whose power can be cut.
#![allow(dead_code, reason = "each test that takes this module uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use lockstep_proto::store::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error, and nothing happened.
    Before,
    /// It happened, and the answer was lost.
    After,
    /// Half of the bytes were written.
    Half,
}

/// Of an object whose name itself is not durable: its bytes were, before it got the name.
const NO_NAME: usize = usize::MAX;

#[derive(Default)]
pub struct Disk {
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Bytes of an object that are on the disk and not only in a cache, where that is not all.
    durable: BTreeMap<String, usize>,
    pub operations: usize,
    pub fail_at: Option<(usize, Fault)>,
    /// From a failure on everything fails, until the machine is started again.
    pub for_good: bool,
    pub dead: bool,
    /// There, and not shown by listings.
    pub unlisted: BTreeSet<String>,
    /// There, and reading them fails.
    pub unreadable: BTreeSet<String>,
    /// Shown by listings, and no longer there.
    pub gone: BTreeSet<String>,
    /// What is created next is not what was written.
    pub rots: bool,
    /// So many records find that another writer's has their number.
    pub taken: usize,
}

impl Disk {
    /// What was never synced is gone.
    pub fn cut_power(&mut self) {
        for (name, len) in std::mem::take(&mut self.durable) {
            if len == NO_NAME {
                self.objects.remove(&name);
            } else if let Some(bytes) = self.objects.get_mut(&name) {
                bytes.truncate(len);
            }
        }
    }

    /// Counts an operation; the fault that hits it, if one does.
    fn operation(&mut self) -> Option<Fault> {
        if self.dead {
            return Some(Fault::Before);
        }
        self.operations += 1;
        match self.fail_at {
            Some((at, fault)) if at == self.operations - 1 => {
                self.dead = self.for_good;
                Some(fault)
            }
            _ => None,
        }
    }
}

#[derive(Clone, Default)]
pub struct SimStore(pub Arc<Mutex<Disk>>);

fn failed(action: &'static str, name: &str) -> StoreError {
    let kind = StoreErrorKind::Io(io::Error::other("injected"));
    StoreError { store: "sim".into(), action, object: name.into(), kind }
}

impl SimStore {
    fn write(&self, name: &str, bytes: &[u8], new: bool) -> Result<(), StoreError> {
        let mut disk = self.0.lock().unwrap();
        let fault = disk.operation();
        if new && disk.objects.contains_key(name) {
            return Err(StoreError { kind: StoreErrorKind::Exists, ..failed("create", name) });
        }
        let written = match fault {
            Some(Fault::Before) => return Err(failed("write", name)),
            Some(Fault::Half) => &bytes[..bytes.len() / 2],
            Some(Fault::After) | None => bytes,
        };
        let len = disk.objects.get(name).map_or(0, Vec::len);
        disk.objects.entry(name.into()).or_default().extend_from_slice(written);
        if fault.is_none() {
            disk.durable.remove(name);
        } else {
            disk.durable.entry(name.into()).or_insert(len);
        }
        if fault.is_some() { Err(failed("write", name)) } else { Ok(()) }
    }
}

struct SimObject {
    store: SimStore,
    name: String,
    bytes: Vec<u8>,
}

impl NewObject for SimObject {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Whole or not at all, as the store's contract says.
    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        {
            let mut disk = self.store.0.lock().unwrap();
            if disk.fail_at == Some((disk.operations, Fault::Half)) {
                disk.operation();
                return Err(failed("create", &self.name));
            }
            if std::mem::take(&mut disk.rots)
                && let Some(last) = self.bytes.last_mut()
            {
                *last ^= 0x10;
            }
        }
        let written = self.store.write(&self.name, &self.bytes, true);
        if let Some(len) = self.store.0.lock().unwrap().durable.get_mut(&self.name) {
            *len = NO_NAME;
        }
        written
    }
}

impl Append for SimObject {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let mut disk = self.store.0.lock().unwrap();
        if disk.taken > 0 {
            disk.taken -= 1;
            // The first record makes the object where parts are put together.
            disk.objects.remove(&self.name);
            return Err(StoreError { kind: StoreErrorKind::Taken, ..failed("write", &self.name) });
        }
        drop(disk);
        self.store.write(&self.name, bytes, false)
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Store for SimStore {
    fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(Fencing::Real)
    }

    fn label(&self) -> &str {
        "sim"
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        Ok(Box::new(SimObject { store: self.clone(), name: name.into(), bytes: Vec::new() }))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        self.write(name, header, true)?;
        Ok(Box::new(SimObject { store: self.clone(), name: name.into(), bytes: Vec::new() }))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.lock().unwrap().objects.remove(name);
        self.write(name, bytes, true)
    }

    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        let whole =
            records.iter().fold(header.to_vec(), |whole, record| [&whole, &**record].concat());
        self.replace(name, &whole)?;
        Ok(Box::new(SimObject { store: self.clone(), name: name.into(), bytes: Vec::new() }))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let disk = self.0.lock().unwrap();
        if disk.dead || disk.unreadable.contains(name) {
            return Err(failed("read", name));
        }
        let not_there = || StoreError { kind: StoreErrorKind::NotFound, ..failed("read", name) };
        let found = disk.objects.get(name).filter(|_| !disk.gone.contains(name));
        found.cloned().ok_or_else(not_there)
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        Ok(Box::new(io::Cursor::new(self.read(name)?)))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        let mut disk = self.0.lock().unwrap();
        match disk.operation() {
            Some(_) => Err(failed("look up", name)),
            None => Ok(disk.objects.contains_key(name)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let disk = self.0.lock().unwrap();
        if disk.dead {
            return Err(failed("list", folder));
        }
        let prefix = format!("{folder}/");
        let mut entries: Vec<Entry> = Vec::new();
        for (name, bytes) in &disk.objects {
            let rest = name.strip_prefix(&prefix).filter(|_| !disk.unlisted.contains(name));
            let Some(rest) = rest else { continue };
            let (name, folder) =
                rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
            if entries.last().is_none_or(|last| last.name != name) {
                entries.push(Entry { name: name.into(), size: bytes.len() as u64, folder });
            }
        }
        Ok(entries)
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        let mut disk = self.0.lock().unwrap();
        match disk.operation() {
            Some(_) => Err(failed("sync", name)),
            None => {
                disk.durable.remove(name);
                Ok(())
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.0.lock().unwrap().objects.remove(name);
        Ok(())
    }
}
