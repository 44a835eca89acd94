//! Destinations: the URLs of the places that logs are written to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, Result};
use crate::marker::Marker;
use crate::seal::StoreId;
use crate::store::{CopiedBucket, FileStore, Options, Store, StoreError, StoreErrorKind};

/// How long an append to a bucket is tried again, where nobody says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place for a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// `file:///folder`, or simply a path: a local disk or a mounted NAS.
    Folder(PathBuf),
    /// `s3://`, `gs://`, `az://` a bucket, `http(s)://` a WebDAV folder.
    Bucket(Bucket),
}

/// A prefix of a bucket, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    url: Url,
    options: Options,
    patience: Duration,
}

impl Bucket {
    #[cfg(feature = "buckets")]
    fn connect(&self) -> Result<Arc<dyn Store>> {
        use crate::store::BucketStore;
        Ok(Arc::new(BucketStore::connect(&self.url, &self.options, self.patience)?))
    }

    #[cfg(not(feature = "buckets"))]
    fn connect(&self) -> Result<Arc<dyn Store>> {
        Err(Error::Refused {
            what: format!("'{}' is a bucket, and this program was built without", self.url),
            hint: "build it with the feature 'buckets'.".into(),
        })
    }
}

impl Destination {
    /// With the credentials and settings that the URL does not have. A folder needs none.
    pub fn with_options(mut self, options: &Options) -> Self {
        if let Self::Bucket(bucket) = &mut self {
            bucket.options = options.clone();
        }
        self
    }

    /// With another time for which an append is tried again.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        if let Self::Bucket(bucket) = &mut self {
            bucket.patience = patience;
        }
        self
    }

    /// Opens the store there. Whether a bucket holds one is seen when its marker is read.
    ///
    /// # Errors
    /// Where there is none, or it is not reachable.
    pub fn open(&self) -> Result<Arc<dyn Store>> {
        match self {
            Self::Folder(path) => Ok(folder(path, FileStore::open(path)?)?),
            Self::Bucket(bucket) => bucket.connect(),
        }
    }

    /// Opens the store there, which must be the one that `expected` names.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Nothing`] where there is no store, [`Error::OtherStore`] where it is another.
    pub fn open_of(&self, expected: StoreId) -> Result<Arc<dyn Store>> {
        let store = self.open()?;
        Marker::read(&*store)?.require(expected)?;
        Ok(store)
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
                store => Ok(folder(path, store?)?),
            },
            Self::Bucket(_) => self.open(),
        }
    }

    /// Opens the place to make a store there.
    ///
    /// # Errors
    /// Where the place is in use, or not writable.
    pub fn create(&self) -> Result<Arc<dyn Store>> {
        let store: Arc<dyn Store> = match self {
            Self::Folder(path) => Arc::new(FileStore::create_root(path)?),
            Self::Bucket(bucket) => bucket.connect()?,
        };
        if !store.list("")?.is_empty() {
            let hint = match self {
                Self::Folder(_) => "choose an empty folder; nothing was changed.",
                Self::Bucket(_) => "choose a prefix that nothing lies below; nothing was changed.",
            };
            let what = format!("'{}' is not empty", store.label());
            return Err(Error::Refused { what, hint: hint.into() });
        }
        Ok(store)
    }
}

/// A folder, which may be a copy of a bucket.
fn folder(path: &Path, store: FileStore) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match CopiedBucket::open(path, store)? {
        Ok(copied) => Arc::new(copied),
        Err(store) => Arc::new(store),
    })
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |what: String| {
            Error::Refused {
            what,
            hint: "give a folder (an absolute path, file:///folder), s3://bucket/prefix, gs://bucket/prefix, \
                   az://container/prefix, or https://server/folder for WebDAV."
                .into(),
        }
        };
        let path = match text.split_once("://") {
            Some(("file", path)) => path,
            Some(("s3" | "gs" | "az" | "http" | "https", _)) => {
                let url: Url =
                    text.parse().map_err(|error| refused(format!("malformed URL: {error}")))?;
                if url.host_str().is_none_or(str::is_empty) {
                    return Err(refused(format!("'{}' names no bucket", text)));
                }
                if url.password().is_some() {
                    return Err(Error::Refused {
                        what: "a password in a URL would be kept in backup.lock and shown".into(),
                        hint: "give WEBDAV_USERNAME and WEBDAV_PASSWORD in the environment or in \
                               backup-credentials."
                            .into(),
                    });
                }
                let (options, patience) = (Options::default(), PATIENCE);
                return Ok(Self::Bucket(Bucket { url, options, patience }));
            }
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
            Self::Bucket(bucket) => write!(f, "{}", bucket.url),
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
