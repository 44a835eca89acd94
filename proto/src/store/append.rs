//! One open segment file: each record durable when `append` returns, as fast as the disk allows.
//!
//! On a file system that overwrites in place the file is kept zeroed ahead: writing over zeros changes no
//! metadata, and that is what makes an `fdatasync` slow. What is written over them goes to the disk past the page cache,
//! in whole [blocks](super::blocks).

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::blocks::{Aligned, BLOCK, Blocks};
use super::disk::OpenFile;
use super::{Append, StoreError, StoreErrorKind};

/// The file grows by this many zeroed bytes at a time: a few milliseconds in a thousand records. (With a quarter
/// of it each write between waits 7 µs longer in `fdatasync` on ext4; with more nothing is gained.)
const ZEROED_AHEAD: usize = 1 << 20;

static ZEROS: Aligned<ZEROED_AHEAD> = Aligned([0; ZEROED_AHEAD]);

/// One open segment file.
pub struct FileAppend {
    store: String,
    name: String,
    file: Arc<dyn OpenFile>,
    /// Bytes written.
    at: u64,
    /// Up to here the file holds data or durable zeros. 0: it is not zeroed ahead.
    zeroed: u64,
    zeroes_ahead: bool,
    /// Writes are direct.
    blocks: Option<Blocks>,
}

impl FileAppend {
    /// For a file that was just created.
    pub fn new(store: &str, name: &str, file: Arc<dyn OpenFile>) -> Self {
        let (store, name) = (store.into(), name.into());
        Self { store, name, file, at: 0, zeroed: 0, zeroes_ahead: false, blocks: None }
    }

    /// For a file that holds `at` bytes, durable.
    pub fn going_on(store: &str, name: &str, file: Arc<dyn OpenFile>, at: u64) -> Self {
        Self { at, ..Self::new(store, name, file) }
    }

    /// From here on keeps the file, which holds `content`, zeroed ahead, and writes directly where that can be.
    pub fn zero_ahead(&mut self, content: &[u8]) {
        self.zeroes_ahead = true;
        self.blocks = self.file.write_directly(true).is_ok().then(|| Blocks::of(content));
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> StoreError + '_ {
        move |error| StoreError {
            store: self.store.clone(),
            action,
            object: self.name.clone(),
            kind: error.into(),
        }
    }

    /// Makes sure that there are zeros up to `end` and on. A disk without room for them may still have
    /// room for the record.
    fn make_zeros(&mut self, end: u64) -> Result<(), StoreError> {
        if !self.zeroes_ahead || end <= self.zeroed {
            return Ok(());
        }
        let from = end.next_multiple_of(BLOCK as u64);
        let made = match &self.blocks {
            Some(_) => self.file.write_durably(&ZEROS.0, from),
            None => write_and_sync(&*self.file, &ZEROS.0, from),
        };
        match made {
            Ok(()) => self.zeroed = from + ZEROED_AHEAD as u64,
            Err(error) if is_full(&error) => {
                self.zeroes_ahead = false;
                self.leave_blocks()?;
            }
            Err(error) if self.blocks.is_some() && is_unable(&error) => {
                self.leave_blocks()?;
                return self.make_zeros(end);
            }
            Err(error) => return Err(self.failed("write zeros to")(error)),
        }
        Ok(())
    }

    /// From here on writes go through the page cache.
    fn leave_blocks(&mut self) -> Result<(), StoreError> {
        self.blocks = None;
        self.file.write_directly(false).map_err(self.failed("write"))
    }

    /// Writes `bytes` behind what is there, durably.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { file, blocks, at, .. } = self;
        if let Some(blocks) = blocks {
            let start = *at - blocks.tail() as u64;
            match blocks.with(bytes) {
                Some(run) => file.write_durably(run, start)?,
                // So long a record is not worth the memory for a copy.
                None => {
                    file.write_directly(false)?;
                    write_and_sync(&**file, bytes, *at)?;
                    file.write_directly(true)?;
                }
            }
            blocks.appended(bytes);
        } else {
            write_and_sync(&**file, bytes, *at)?;
        }
        *at += bytes.len() as u64;
        Ok(())
    }
}

fn write_and_sync(file: &dyn OpenFile, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_at(bytes, at)?;
    file.sync_data()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What a system says that cannot write directly, or only other blocks than these.
fn is_unable(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM)
    )
}

impl Append for FileAppend {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.make_zeros(self.at + bytes.len() as u64)?;
        self.write(bytes).map_err(self.failed("write"))?;
        // Somebody may have deleted the folder under us: what has no name is no backup.
        if self.file.links().map_err(self.failed("look at"))? == 0 {
            let gone = StoreErrorKind::Gone("it was deleted while it was being written");
            return Err(StoreError {
                kind: gone,
                ..self.failed("sync")(io::ErrorKind::NotFound.into())
            });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        if self.zeroed > self.at {
            self.file.set_len(self.at).map_err(self.failed("truncate"))?;
            self.file.sync_all().map_err(self.failed("sync"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use super::*;

    /// Records of all sizes are there as they were written, and behind them only zeros.
    fn what_is_appended_is_what_is_read(of: impl FnOnce(File) -> Arc<dyn OpenFile>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).unwrap();
        let mut append = FileAppend::new("test", "segment", of(file));
        append.append(&[9; 128]).unwrap();
        append.zero_ahead(&[9; 128]);
        let mut expected = vec![9; 128];
        let sizes =
            [1, 100, 3867, 1, 4095, 4096, 4097, 8192, 20_000, 300_000, 7, 131_072, 131_073, 500];
        for (record, size) in (1_u8..).zip(sizes.into_iter().cycle().take(60)) {
            append.append(&vec![record; size]).unwrap();
            expected.resize(expected.len() + size, record);
            let read = std::fs::read(&path).unwrap();
            assert!(read[..expected.len()] == expected, "record {record} of {size} bytes");
            assert!(read[expected.len()..].iter().all(|&byte| byte == 0));
        }
        append.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn what_is_appended_directly_is_what_is_read() {
        what_is_appended_is_what_is_read(|file| Arc::new(file));
    }

    /// On a file system that only says that it writes directly.
    #[test]
    fn where_nothing_can_be_written_directly_it_is_written_all_the_same() {
        struct Unable(File);
        impl OpenFile for Unable {
            fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
                OpenFile::write_at(&self.0, bytes, at)
            }
            fn write_directly(&self, _directly: bool) -> io::Result<()> {
                Ok(())
            }
            fn write_durably(&self, _bytes: &[u8], _at: u64) -> io::Result<()> {
                Err(Errno::INVAL.into())
            }
            fn sync_data(&self) -> io::Result<()> {
                OpenFile::sync_data(&self.0)
            }
            fn sync_all(&self) -> io::Result<()> {
                OpenFile::sync_all(&self.0)
            }
            fn set_len(&self, bytes: u64) -> io::Result<()> {
                OpenFile::set_len(&self.0, bytes)
            }
            fn links(&self) -> io::Result<u64> {
                self.0.links()
            }
        }
        what_is_appended_is_what_is_read(|file| Arc::new(Unable(file)));
    }
}
