//! The pages of snapshots on their way into a database file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use roaring::RoaringBitmap;

use super::Progress;
use crate::error::{Error, Result};
use crate::seal::{Chain, KeyRing};
use crate::snapshot::{self, Lineage, Meta, PageVisitor};
use crate::store::Store;

/// A database file that snapshots' pages are written to.
pub struct PageFile<'a> {
    file: &'a File,
    path: &'a Path,
    written: u64,
    numbers: RoaringBitmap,
    progress: &'a mut (dyn FnMut(Progress) + Send),
}

impl<'a> PageFile<'a> {
    /// For the open file at `path`.
    pub fn new(
        file: &'a File,
        path: &'a Path,
        progress: &'a mut (dyn FnMut(Progress) + Send),
    ) -> Self {
        Self { file, path, written: 0, numbers: RoaringBitmap::new(), progress }
    }

    /// Writes a base and its deltas, and returns for each of them the chain hash after it and its pages.
    ///
    /// # Errors
    /// Where a snapshot is damaged or cannot be read, or the file cannot be written.
    pub fn read(
        &mut self,
        store: &dyn Store,
        keys: &KeyRing,
        lineage: &Lineage,
    ) -> Result<Vec<(Chain, RoaringBitmap)>> {
        let mut of_each = Vec::new();
        for link in &lineage.links {
            let name = link.summary.name.to_string();
            let chain = snapshot::read(store, keys, &name, link.chain, self)?.chain;
            of_each.push((chain, std::mem::take(&mut self.numbers)));
        }
        Ok(of_each)
    }
}

impl PageVisitor for PageFile<'_> {
    fn begin(&mut self, meta: &Meta) -> Result<()> {
        let size = u64::from(meta.page_size) * u64::from(meta.page_count);
        self.file.set_len(size).map_err(Error::file("extend", self.path))
    }

    fn pages(&mut self, meta: &Meta, first: u32, pages: &[u8]) -> Result<()> {
        let at = u64::from(first - 1) * u64::from(meta.page_size);
        self.file.write_all_at(pages, at).map_err(Error::file("write", self.path))?;
        let count = (pages.len() / meta.page_size as usize) as u32;
        self.numbers.insert_range(first..=first + (count - 1));
        self.written += pages.len() as u64;
        (self.progress)(Progress::Pages(self.written));
        Ok(())
    }
}
