//! A folder that is a copy of a bucket: the segment that was being written lies in it in parts.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::file::FileStore;
use super::parts::{Fault, Owner, Partial, Parts, Tail};
use super::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind};
use crate::layout::{self, SegmentName};
use crate::seal::{HEADER_LEN, Header};

/// A folder that shows segments in parts like any other. What is written to it is written as to any folder.
pub struct CopiedBucket {
    folder: FileStore,
    parts: Vec<Partial>,
}

impl CopiedBucket {
    /// Looks for parts in `folder`; without any it is a folder like others, and is given back.
    ///
    /// # Errors
    /// [`StoreErrorKind::Damaged`] where parts do not belong together.
    pub fn open(path: &Path, folder: FileStore) -> Result<Result<Self, FileStore>, StoreError> {
        let mut parts = Parts::default();
        for entry in folder.list(layout::TAIL)? {
            parts.add(&entry.name, entry.size, 0);
        }
        parts.sort();
        if parts.is_empty() {
            return Ok(Err(folder));
        }
        let damaged = |name: String, what: String| StoreError {
            store: path.display().to_string(),
            action: "read",
            object: name,
            kind: StoreErrorKind::Damaged(what),
        };
        let segment_of = |seq: u64, owner: Owner| {
            let object = layout::part(seq, owner);
            let bytes = folder.read(&object)?;
            let header =
                Header::decode(&bytes).map_err(|error| damaged(object, error.to_string()))?;
            Ok(SegmentName::of(&header))
        };
        let merged: BTreeSet<SegmentName> = folder
            .list_all(layout::LOG)?
            .iter()
            .filter_map(|entry| SegmentName::parse_below(&entry.name))
            .collect();
        let tail = Tail::group(parts, segment_of).map_err(|fault| match fault {
            Fault::Store(error) => error,
            Fault::Damaged(name, what) => damaged(name.to_string(), what),
        })?;
        let parts = tail.unmerged(&merged);
        Ok(Ok(Self { folder, parts }))
    }

    fn join(&self, partial: &Partial) -> Result<Vec<u8>, StoreError> {
        let damaged = |what: String| StoreError {
            store: self.label().into(),
            action: "read",
            object: partial.name.to_string(),
            kind: StoreErrorKind::Damaged(what),
        };
        partial.check_gapless().map_err(damaged)?;
        let mut whole = Vec::new();
        for object in partial.objects() {
            let bytes = self.folder.read(&object)?;
            let new = if whole.is_empty() { 0 } else { HEADER_LEN };
            whole.extend_from_slice(bytes.get(new..).unwrap_or_default());
        }
        Ok(whole)
    }
}

impl Store for CopiedBucket {
    fn label(&self) -> &str {
        self.folder.label()
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        self.folder.fencing()
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        self.folder.create_stream(name)
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        self.folder.create_append(name, header)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.folder.replace(name, bytes)
    }

    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        self.folder.resume_append(name, header, records)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let partial = self.parts.iter().find(|partial| partial.name.to_string() == name);
        partial.map_or_else(|| self.folder.read(name), |partial| self.join(partial))
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        self.folder.read_stream(name)
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        self.folder.exists(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        Ok(Partial::show(&self.parts, folder, self.folder.list(folder)?))
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        match self.parts.iter().find(|partial| partial.name.to_string() == name) {
            None => self.folder.sync(name),
            Some(partial) => {
                partial.objects().iter().try_for_each(|object| self.folder.sync(object))
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        if let Some(partial) = self.parts.iter().find(|partial| partial.name.to_string() == name) {
            return partial.objects().iter().try_for_each(|object| self.folder.remove(object));
        }
        self.folder.remove(name)
    }
}
