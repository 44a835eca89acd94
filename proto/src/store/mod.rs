//! Stores: the only input and output of this library besides SQLite.
//!
//! A store keeps named objects. What all the rest relies on:
//! 1. [`Store::create`] is atomic and durable: when it returns, the object is there, whole, after any
//!    crash; before, it is there whole or not at all. Two creates of one name: one fails.
//! 2. [`Append::append`] is durable when it returns. After an error nothing is known of the bytes that
//!    it was given, and the appender is of no further use.
//! 3. [`Store::list`] shows every object whose creation was acknowledged before it was called.

mod append;
mod blocks;
#[cfg(feature = "buckets")]
mod bucket;
mod copied;
pub mod disk;
mod file;
mod options;
mod parts;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::log::LogEnd;
use crate::record::Destinations;

#[cfg(feature = "buckets")]
pub use bucket::BucketStore;
pub use copied::CopiedBucket;
pub use file::{FileStore, sync_parent};
pub use options::Options;

/// A large file is synced as it is written, each time that so much was: what waits in memory for the disk is
/// written in one go when the file system's journal is, and whoever syncs a record meanwhile waits for that.
pub(crate) const UNSYNCED_MAX: u64 = 2 << 20;

/// What is in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name within the folder.
    pub name: String,
    /// Bytes; 0 for a folder.
    pub size: u64,
    /// True for a folder.
    pub folder: bool,
}

/// One place that keeps objects.
pub trait Store: Send + Sync {
    /// How messages name the store: its URL without credentials.
    fn label(&self) -> &str;

    /// All the places that this one is made of, where there are several: for the log to say.
    fn destinations(&self) -> Destinations {
        Destinations::default()
    }

    /// How well the place keeps a second writer out. Where that is not known it is tried out, once: objects are
    /// written, and removed.
    ///
    /// # Errors
    /// Where the place cannot be written to.
    fn fencing(&self) -> Result<Fencing, StoreError>;

    /// An epoch was claimed, and its writer is about to read where the log ends: several places look for which of them
    /// has the newest state, for whoever wrote until now may have gone on since they were opened, and not at all of them.
    /// They give the end that they found; `None` where it is for the writer to look.
    ///
    /// # Errors
    /// Where too few answer, or have two histories.
    fn claimed(&self, _epoch: u32) -> Result<Option<LogEnd>, Error> {
        Ok(None)
    }

    /// Writes a new object.
    ///
    /// # Errors
    /// [`StoreErrorKind::Exists`] where there is one of that name, which is left as it is. (One that holds the very same
    /// bytes may be our own, whose answer was lost: that is no error where it can be told.)
    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let mut object = self.create_stream(name)?;
        object.write(bytes)?;
        object.commit()
    }

    /// Starts a new object of unknown size, which is there once it is committed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError>;

    /// Creates an object that begins with `header` and grows. Durable, with its name, on return.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError>;

    /// Makes an object be exactly `bytes`, whatever was there; atomic and durable. Only for what is known to be the same
    /// object at another destination.
    ///
    /// # Errors
    /// [`StoreError`]; what was there is as it was.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Goes on with an object that [`create_append`](Self::create_append) began, or should have begun: afterwards it
    /// is exactly `header` and `records`, durable, and grows from there. What lies in its way was left by a writer
    /// that was never acknowledged.
    ///
    /// # Errors
    /// [`StoreError`].
    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError>;

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`] where there is none.
    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError>;

    /// Reads an object from its beginning, piece by piece.
    ///
    /// # Errors
    /// [`StoreErrorKind::NotFound`] where there is none.
    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError>;

    /// True where there is an object of that name.
    ///
    /// # Errors
    /// [`StoreError`]; never where the object is simply not there.
    fn exists(&self, name: &str) -> Result<bool, StoreError>;

    /// What is in a folder, sorted by name; nothing where there is no folder.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError>;

    /// All objects below a folder, named from there, sorted by name.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list_all(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let mut all = Vec::new();
        for entry in self.list(folder)? {
            if !entry.folder {
                all.push(entry);
                continue;
            }
            let below = self.list_all(&format!("{folder}/{}", entry.name))?;
            let named =
                |below: Entry| Entry { name: format!("{}/{}", entry.name, below.name), ..below };
            all.extend(below.into_iter().map(named));
        }
        Ok(all)
    }

    /// Brings what was written into the form that is read fastest. Slow: nothing that waits does this.
    ///
    /// # Errors
    /// [`StoreError`]; everything can be read as before.
    fn tidy(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Makes an object durable that an earlier process may have left without: what is read may still be
    /// in a cache, and a writer must not build on it.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sync(&self, name: &str) -> Result<(), StoreError>;

    /// Makes the names durable that objects in a folder have: whoever made one may have died right after, and others must
    /// not remove anything because it is there.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sync_names(&self, _folder: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// Removes an object, durably; fine where there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    fn remove(&self, name: &str) -> Result<(), StoreError>;
}

/// An object that grows by whole records.
pub trait Append: Send {
    /// Appends `bytes`; they are durable on return.
    ///
    /// # Errors
    /// [`StoreError`]; the appender is then of no further use.
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Ends the object: gives back preallocated space.
    ///
    /// # Errors
    /// [`StoreError`]; what was appended stays as durable as it was.
    fn finish(&mut self) -> Result<(), StoreError>;

    /// True where an append fails with [`StoreErrorKind::Taken`] if another writer made a record of the same number:
    /// then nobody need look for a newer claim after each.
    fn is_exclusive(&self) -> bool {
        false
    }

    /// True where the object had better end, however few bytes it has.
    fn is_full(&self) -> bool {
        false
    }
}

/// How well a place keeps a second writer out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fencing {
    /// Of two creates of one name one fails, always.
    Real,
    /// The place does not promise that: a second writer is found out, though perhaps after it has done harm.
    Advisory,
}

impl std::fmt::Display for Fencing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Real => "real",
            Self::Advisory => "advisory",
        })
    }
}

/// An object that is being written. Dropped without [`commit`](Self::commit), it never was.
pub trait NewObject {
    /// Adds bytes.
    ///
    /// # Errors
    /// [`StoreError`].
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes the object durable, then visible under its name, then the name durable.
    ///
    /// # Errors
    /// As [`Store::create`].
    fn commit(self: Box<Self>) -> Result<(), StoreError>;
}

/// A store that did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("'{store}': {action} {object}: {kind}")]
pub struct StoreError {
    /// [`Store::label`].
    pub store: String,
    /// Verb.
    pub action: &'static str,
    /// Object name.
    pub object: String,
    /// What happened.
    pub kind: StoreErrorKind,
}

/// What happened.
#[derive(Debug, thiserror::Error)]
pub enum StoreErrorKind {
    /// No such object.
    #[error("not there")]
    NotFound,
    /// There is one already.
    #[error("exists already")]
    Exists,
    /// Another writer has made the record, or claimed the log.
    #[error("another writer was there first")]
    Taken,
    /// It is not what was written there.
    #[error("damaged: {0}")]
    Damaged(String),
    /// A server's answer, or that there is none.
    #[error("{message}")]
    Remote {
        /// What happened, in one line, without credentials.
        message: String,
        /// What to do next.
        hint: &'static str,
    },
    /// Another file system, or nothing, is where the store was.
    #[error("{0}")]
    Gone(&'static str),
    /// The operating system's words.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    /// The next step for the person who reads the message.
    pub fn hint(&self) -> Option<String> {
        Some(match &self.kind {
            StoreErrorKind::Gone(_) => {
                format!("mount what belongs at {}, then start again.", self.store)
            }
            StoreErrorKind::Io(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    format!("free space on {}, then start again.", self.store)
                }
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    format!("make {} writable for this user.", self.store)
                }
                _ => format!("check the disk or network behind {}.", self.store),
            },
            StoreErrorKind::Remote { hint, .. } => (*hint).into(),
            StoreErrorKind::NotFound | StoreErrorKind::Exists | StoreErrorKind::Taken => {
                "find out who else writes there or removes things, then try again.".into()
            }
            StoreErrorKind::Damaged(_) => "use another copy of this backup if there is one.".into(),
        })
    }
}
