//! Destinations: the URLs of the places that logs are written to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::store::{FileStore, Store, StoreError, StoreErrorKind};

/// A place for a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// `file:///folder`, or simply a path: a local disk or a mounted NAS.
    Folder(PathBuf),
}

impl Destination {
    /// Opens the store there.
    ///
    /// # Errors
    /// Where there is none, or it is not reachable.
    pub fn open(&self) -> Result<Arc<dyn Store>> {
        match self {
            Self::Folder(path) => Ok(Arc::new(FileStore::open(path)?)),
        }
    }

    /// Opens the place, whether there is a store or not.
    ///
    /// # Errors
    /// Where it is not reachable.
    pub fn open_any(&self) -> Result<Arc<dyn Store>> {
        match self {
            Self::Folder(path) => match FileStore::open_root(path) {
                Err(StoreError { kind: StoreErrorKind::Gone(what), store, .. }) => {
                    Err(Error::Nothing { store, what: what.into() })
                }
                store => Ok(Arc::new(store?)),
            },
        }
    }

    /// Opens the place to make a store there.
    ///
    /// # Errors
    /// Where the place is in use, or not writable.
    pub fn create(&self) -> Result<Arc<dyn Store>> {
        match self {
            Self::Folder(path) => {
                let store = FileStore::create_root(path)?;
                if !store.list("")?.is_empty() {
                    return Err(Error::Refused {
                        what: format!("'{}' is not empty", path.display()),
                        hint: "choose an empty folder; nothing was changed.".into(),
                    });
                }
                Ok(Arc::new(store))
            }
        }
    }
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |what: String| Error::Refused {
            what,
            hint: "give a folder as an absolute path or as file:///folder.".into(),
        };
        let path = match text.split_once("://") {
            Some(("file", path)) => path,
            Some((scheme, _)) => {
                return Err(refused(format!("'{scheme}://' is not a kind of destination")));
            }
            None => text,
        };
        if !Path::new(path).is_absolute() {
            return Err(refused(format!("'{text}' is not an absolute path")));
        }
        Ok(Self::Folder(path.into()))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
        }
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl TryFrom<String> for Destination {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}
