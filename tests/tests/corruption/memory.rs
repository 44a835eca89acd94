//! A store whose bytes are changed without a disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use lockstep_proto::store::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind};
use lockstep_tests::backed::files_under;

/// Preallocated zeros that the sweeps keep behind the last record.
const ZEROS_KEPT: usize = 40;

/// A store in memory, to be read only.
#[derive(Clone, Default)]
pub struct Memory(pub BTreeMap<String, Arc<Vec<u8>>>);

impl Memory {
    /// Everything in a folder; of preallocated zeros only a few.
    pub fn load(folder: &Path) -> Self {
        let mut objects = BTreeMap::new();
        for file in files_under(folder) {
            let mut bytes = fs::read(folder.join(&file)).unwrap();
            let written = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(written + ZEROS_KEPT);
            objects.insert(file.to_str().unwrap().to_owned(), Arc::new(bytes));
        }
        Self(objects)
    }

    pub fn with(&self, name: &str, bytes: Vec<u8>) -> Self {
        let mut changed = self.clone();
        changed.0.insert(name.to_owned(), Arc::new(bytes));
        changed
    }

    pub fn without(&self, name: &str) -> Self {
        let mut changed = self.clone();
        changed.0.remove(name);
        changed
    }

    /// Writes it out, for a program to read.
    pub fn save(&self, folder: &Path) {
        for (name, bytes) in &self.0 {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &**bytes).unwrap();
        }
    }

    pub fn segments(&self) -> Vec<String> {
        self.0.keys().filter(|name| name.ends_with(".seg")).cloned().collect()
    }

    fn error(&self, object: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { store: "memory".into(), action: "use", object: object.into(), kind }
    }
}

impl Store for Memory {
    fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(Fencing::Real)
    }

    fn label(&self) -> &str {
        "memory"
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn create_append(&self, name: &str, _: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn replace(&self, name: &str, _: &[u8]) -> Result<(), StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn resume_append(
        &self,
        name: &str,
        _: &[u8],
        _: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let found = self.0.get(name).ok_or_else(|| self.error(name, StoreErrorKind::NotFound))?;
        Ok(found.to_vec())
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        Ok(Box::new(io::Cursor::new(self.read(name)?)))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.0.contains_key(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        for (name, bytes) in &self.0 {
            let Some(rest) = name.strip_prefix(&below) else { continue };
            let (name, is_folder) = match rest.split_once('/') {
                Some((name, _)) => (name.to_owned(), true),
                None => (rest.to_owned(), false),
            };
            let size = if is_folder { 0 } else { bytes.len() as u64 };
            entries.insert(name.clone(), Entry { name, size, folder: is_folder });
        }
        Ok(entries.into_values().collect())
    }

    fn sync(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }
}
