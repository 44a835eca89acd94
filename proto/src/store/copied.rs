//! A folder that is a copy of a bucket: the segment that was being written lies in it in parts.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::file::FileStore;
use super::parts::{Fault, Owner, Partial, Parts, Tail};
use super::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind};
use crate::layout::{self, SegmentName};
use crate::seal::{HEADER_LEN, Header};

/// A folder that shows segments in parts like any other. What is written to it is written as to any folder.
pub struct CopiedBucket {
    folder: FileStore,
    /// What is in parts. Of a segment that was put together, too, some may be left.
    parts: Mutex<Vec<Partial>>,
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
        let tail = Tail::group(parts, segment_of).map_err(|fault| match fault {
            Fault::Store(error) => error,
            Fault::Damaged(name, what) => damaged(name.to_string(), what),
        })?;
        Ok(Ok(Self { folder, parts: Mutex::new(tail.segments) }))
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Partial>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment of that name, where it is in parts and not whole, too.
    fn partial(&self, name: &str) -> Result<Option<Partial>, StoreError> {
        let found = self.parts().iter().find(|partial| partial.name.to_string() == name).cloned();
        Ok(if found.is_some() && self.folder.exists(name)? { None } else { found })
    }

    /// Removes the parts of a segment, if there are any.
    fn remove_parts(&self, name: &str) -> Result<(), StoreError> {
        // One file goes whole or not at all. Parts without their beginning would be nobody's.
        if let Some(partial) = self.partial(name)? {
            match self.join(&partial) {
                Ok(whole) => self.folder.replace(name, &whole)?,
                Err(StoreError {
                    kind: StoreErrorKind::Damaged(_) | StoreErrorKind::NotFound,
                    ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut parts = self.parts();
        let Some(at) = parts.iter().position(|partial| partial.name.to_string() == name) else {
            return Ok(());
        };
        parts[at].objects().iter().try_for_each(|object| self.folder.remove(object))?;
        parts.remove(at);
        Ok(())
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
        self.partial(name)?.map_or_else(|| self.folder.read(name), |partial| self.join(&partial))
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        match self.partial(name)? {
            Some(partial) => Ok(Box::new(io::Cursor::new(self.join(&partial)?))),
            None => self.folder.read_stream(name),
        }
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.partial(name)?.is_some() || self.folder.exists(name)?)
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        Ok(Partial::show(&self.parts(), folder, self.folder.list(folder)?))
    }

    fn sync_names(&self, folder: &str) -> Result<(), StoreError> {
        self.folder.sync_names(folder)
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        match self.partial(name)? {
            None => self.folder.sync(name),
            Some(partial) => {
                partial.objects().iter().try_for_each(|object| self.folder.sync(object))
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.remove_parts(name)?;
        self.folder.remove(name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::seal::{Chain, KeyId, ObjectKind, StoreId};

    /// A folder with the first records of a segment in parts, as a bucket has them; its name, and its bytes so far.
    fn copy(owned: bool) -> (tempfile::TempDir, String, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let header = Header {
            kind: ObjectKind::Segment,
            key: KeyId([1; 4]),
            store: StoreId([1; 16]),
            generation: 1,
            epoch: 2,
            seq: 7,
            index: 0,
            prev: Chain::default(),
            nonce_prefix: Header::random_nonce_prefix().unwrap(),
        };
        let name = SegmentName::of(&header);
        let mut bytes = header.encode().to_vec();
        fs::create_dir(folder.path().join(layout::TAIL)).unwrap();
        for (seq, frame) in (7..).zip([[1; 50], [2; 50], [3; 50]]) {
            let part = folder.path().join(layout::part(seq, owned.then_some(name.age())));
            fs::write(part, [&header.encode()[..], &frame].concat()).unwrap();
            bytes.extend(frame);
        }
        (folder, name.to_string(), bytes)
    }

    /// The numbers by which the file system knows the files in a folder.
    fn files(store: &tempfile::TempDir, folder: &str) -> BTreeMap<OsString, u64> {
        let entries = fs::read_dir(store.path().join(folder)).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().ino())).collect()
    }

    fn open(folder: &tempfile::TempDir) -> CopiedBucket {
        let store = FileStore::open_root(folder.path()).unwrap();
        CopiedBucket::open(folder.path(), store).unwrap().ok().expect("it has parts")
    }

    #[track_caller]
    fn expect(store: &CopiedBucket, name: &str, bytes: &[u8]) {
        assert!(store.exists(name).unwrap());
        assert!(store.read(name).unwrap() == bytes);
        let mut streamed = Vec::new();
        store.read_stream(name).unwrap().read_to_end(&mut streamed).unwrap();
        assert!(streamed == bytes);
        let all = store.list_all(layout::LOG).unwrap();
        let all: Vec<_> = all.iter().map(|entry| (entry.name.as_str(), entry.size)).collect();
        assert_eq!(all, [(name.strip_prefix("log/").unwrap(), bytes.len() as u64)]);
    }

    #[track_caller]
    fn expect_nothing(store: &CopiedBucket, name: &str) {
        assert!(!store.exists(name).unwrap());
        let error = store.read(name).unwrap_err();
        assert!(matches!(error.kind, StoreErrorKind::NotFound), "{error}");
        assert_eq!(store.list_all(layout::LOG).unwrap(), []);
        assert_eq!(store.list(layout::TAIL).unwrap(), []);
    }

    #[test]
    fn a_segment_in_parts_is_there_like_any_other() {
        for owned in [false, true] {
            let (folder, name, bytes) = copy(owned);
            let store = open(&folder);
            assert_eq!(store.label(), folder.path().to_str().unwrap());
            expect(&store, &name, &bytes);
            let before = files(&folder, layout::TAIL);
            store.sync(&name).unwrap();
            let after = files(&folder, layout::TAIL);
            assert!(before.iter().all(|(name, id)| after[name] != *id), "not written anew");
            expect(&store, &name, &bytes);
            assert!(!store.exists("log/00000001/other").unwrap());
            store.create("keys/a", b"a key").unwrap();
            store.sync("keys/a").unwrap();
            assert_eq!(store.read("keys/a").unwrap(), b"a key");
            store.remove("keys/a").unwrap();
            assert!(!store.exists("keys/a").unwrap());
        }
    }

    #[test]
    fn a_segment_in_parts_that_was_brought_up_is_what_it_was_brought_up_to() {
        let (folder, name, mut bytes) = copy(false);
        let store = open(&folder);
        bytes.extend([4; 50]);
        store.replace(&name, &bytes).unwrap();
        expect(&store, &name, &bytes);
        expect(&open(&folder), &name, &bytes);
    }

    #[test]
    fn a_segment_in_parts_that_was_removed_is_gone() {
        for owned in [false, true] {
            let (folder, name, bytes) = copy(owned);
            let store = open(&folder);
            store.remove(&name).unwrap();
            expect_nothing(&store, &name);
            store.remove(&name).unwrap();
            // Also where one of its parts is missing, or where it was put together before.
            let (folder, name, _) = copy(owned);
            let store = open(&folder);
            fs::remove_file(folder.path().join(&store.parts()[0].objects()[1])).unwrap();
            store.remove(&name).unwrap();
            expect_nothing(&store, &name);
            let (folder, name, _) = copy(owned);
            let store = open(&folder);
            store.replace(&name, &bytes).unwrap();
            store.remove(&name).unwrap();
            expect_nothing(&store, &name);
        }
    }

    /// It was put together first, and only some of its parts are gone.
    #[test]
    fn a_segment_whose_removal_was_interrupted_is_whole() {
        let (folder, name, bytes) = copy(false);
        let whole = folder.path().join(&name);
        fs::create_dir_all(whole.parent().unwrap()).unwrap();
        fs::write(whole, &bytes).unwrap();
        fs::remove_file(folder.path().join(layout::part(7, None))).unwrap();
        let store = open(&folder);
        expect(&store, &name, &bytes);
        store.remove(&name).unwrap();
        expect_nothing(&store, &name);
    }
}
