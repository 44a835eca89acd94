//! One open segment file: each record durable when `append` returns, as fast as the disk allows.
//!
//! On a file system that overwrites in place the file is kept zeroed ahead: writing over zeros changes no
//! metadata, and that is what makes an `fdatasync` slow. Direct writes with `O_DSYNC` were measured at
//! 3 % less at the median than write and `fdatasync`, and left out for that.

use std::io;
use std::sync::Arc;

use super::disk::OpenFile;
use super::{Append, StoreError, StoreErrorKind};

/// The file grows by this many zeroed bytes at a time: a few milliseconds in a thousand records. (With a quarter
/// of it each write between waits 7 µs longer in `fdatasync` on ext4; with more nothing is gained.)
const ZEROED_AHEAD: usize = 1 << 20;

static ZEROS: [u8; ZEROED_AHEAD] = [0; ZEROED_AHEAD];

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
}

impl FileAppend {
    /// For a file that was just created.
    pub fn new(store: &str, name: &str, file: Arc<dyn OpenFile>) -> Self {
        let (store, name) = (store.into(), name.into());
        Self { store, name, file, at: 0, zeroed: 0, zeroes_ahead: false }
    }

    /// For a file that holds `at` bytes, durable.
    pub fn going_on(store: &str, name: &str, file: Arc<dyn OpenFile>, at: u64) -> Self {
        Self { at, ..Self::new(store, name, file) }
    }

    /// From here on keeps the file zeroed ahead.
    pub fn zero_ahead(&mut self) {
        self.zeroes_ahead = true;
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
        let made = self.file.write_at(&ZEROS, end).and_then(|()| self.file.sync_data());
        match made.map_err(|error| (error.kind(), error)) {
            Ok(()) => self.zeroed = end + ZEROS.len() as u64,
            Err((io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _)) => {
                self.zeroes_ahead = false;
            }
            Err((_, error)) => return Err(self.failed("write zeros to")(error)),
        }
        Ok(())
    }
}

impl Append for FileAppend {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let end = self.at + bytes.len() as u64;
        self.make_zeros(end)?;
        self.file.write_at(bytes, self.at).map_err(self.failed("write"))?;
        self.file.sync_data().map_err(self.failed("sync"))?;
        // Somebody may have deleted the folder under us: what has no name is no backup.
        if self.file.links().map_err(self.failed("look at"))? == 0 {
            let gone = StoreErrorKind::Gone("it was deleted while it was being written");
            return Err(StoreError {
                kind: gone,
                ..self.failed("sync")(io::ErrorKind::NotFound.into())
            });
        }
        self.at = end;
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
    use std::fs::OpenOptions;

    use super::*;

    /// Records of all sizes are there as they were written, and behind them only zeros.
    #[test]
    fn what_is_appended_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).unwrap();
        let mut append = FileAppend::new("test", "segment", Arc::new(file));
        append.append(&[9; 128]).unwrap();
        append.zero_ahead();
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
}
