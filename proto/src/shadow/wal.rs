//! Which pages a SQLite write-ahead log holds. Source: sqlite.org/fileformat2.html, 4.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use roaring::RoaringBitmap;

const HEADER_LEN: u64 = 32;
const FRAME_HEADER_LEN: u64 = 24;

/// The numbers of all pages that have a frame in the log at `path`, committed or not; none where there is no
/// log.
///
/// # Errors
/// Where it cannot be read.
pub fn pages(path: &Path) -> io::Result<RoaringBitmap> {
    let mut pages = RoaringBitmap::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pages),
        file => file?,
    };
    let len = file.metadata()?.len();
    let mut header = [0; HEADER_LEN as usize];
    if len < HEADER_LEN {
        return Ok(pages);
    }
    file.read_exact_at(&mut header, 0)?;
    let page_size = u64::from(u32::from_be_bytes([header[8], header[9], header[10], header[11]]));
    let mut at = HEADER_LEN;
    while at + FRAME_HEADER_LEN + page_size <= len {
        let mut number = [0; 4];
        file.read_exact_at(&mut number, at)?;
        pages.insert(u32::from_be_bytes(number));
        at += FRAME_HEADER_LEN + page_size;
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_that_changed_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(
            "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(20000));
             PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .unwrap();
        let before = std::fs::read(&path).unwrap();
        db.execute_batch("UPDATE t SET a = randomblob(20000); INSERT INTO t VALUES (1)").unwrap();
        let changed_pages = pages(&folder.path().join("db-wal")).unwrap();
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let after = std::fs::read(&path).unwrap();
        let mut changed = 0;
        for (number, page) in (1..).zip(after.chunks(1024)) {
            if before.get((number as usize - 1) * 1024..number as usize * 1024) != Some(page) {
                assert!(changed_pages.contains(number), "page {number}");
                changed += 1;
            }
        }
        assert!(changed > 19, "{changed}");
        assert!(pages(&folder.path().join("none")).unwrap().is_empty());
        assert!(pages(&path.join("db-wal")).is_err(), "nobody knows what is there");
    }
}
