//! Whether there is room for a shadow: it must not take what the node's own database needs.

use std::path::Path;

use super::database_in;
use crate::error::{Error, Result};

/// Bytes that a shadow leaves free, beside a tenth of the database.
const SPARE_BYTES: u64 = 256 << 20;

/// Bytes of a file; 0 where there is none.
///
/// # Errors
/// Where it cannot be looked at.
pub fn len_of(file: &Path) -> Result<u64> {
    match file.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        found => Ok(found.map_err(Error::file("look at", file))?.len()),
    }
}

/// Bytes that this user may still write to the file system of `path`, or of what it will lie in; `None` where that
/// cannot be told.
pub fn free_bytes(path: &Path) -> Option<u64> {
    // Nothing is known of a folder that is not there yet but for what it lies in.
    let place = path.ancestors().find(|folder| folder.exists())?;
    let found = rustix::fs::statvfs(place).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes that must be free for the shadow in `folder` of a database of so many bytes, if they are not.
///
/// # Errors
/// Where the folder cannot be looked at.
pub fn lacking(folder: &Path, database: u64) -> Result<Option<u64>> {
    let there = len_of(&database_in(folder))?;
    Ok(free_bytes(folder).and_then(|free| beyond(database, there, free)))
}

fn beyond(database: u64, there: u64, free: u64) -> Option<u64> {
    let needed = database.saturating_sub(there) + database / 10 + SPARE_BYTES;
    (free < needed).then_some(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_leaves_room_for_the_node() {
        const GIB: u64 = 1 << 30;
        assert_eq!(beyond(GIB, 0, 2 * GIB), None);
        assert_eq!(beyond(GIB, 0, GIB), Some(GIB + GIB / 10 + SPARE_BYTES));
        assert_eq!(beyond(GIB, GIB, GIB / 2), None);
        assert_eq!(beyond(0, 0, 0), Some(SPARE_BYTES));
    }

    #[test]
    fn what_is_not_there_yet_takes_nothing_and_has_room_where_it_will_lie() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(len_of(&file).unwrap(), 3);
        assert_eq!(len_of(&folder.path().join("none")).unwrap(), 0);
        assert!(len_of(&file.join("none")).is_err());
        let later = folder.path().join("later/shadow");
        assert!(free_bytes(&later).unwrap() > 4096);
        let database = u64::MAX / 4;
        assert!(lacking(&later, database).unwrap().unwrap() > database);
    }
}
