//! The marker: in the clear, as only holds are besides. It says that here is a store, and which.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::MARKER;
use crate::record::TimeMs;
use crate::seal::StoreId;
use crate::store::{Store, StoreErrorKind};
use crate::version::FORMAT_VERSION;

const FORMAT: &str = "lockstep";

/// The content of the marker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    format: String,
    version: u16,
    /// The store's name for ever.
    pub store_id: StoreId,
    /// When it was made.
    pub created: TimeMs,
}

impl Marker {
    /// For a new store.
    pub fn new(store_id: StoreId, created: TimeMs) -> Self {
        Self { format: FORMAT.into(), version: FORMAT_VERSION, store_id, created }
    }

    /// Writes it into a place that holds no store.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is one.
    pub fn create(&self, store: &dyn Store) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|error| Error::damaged("marker", error))?;
        match store.create(MARKER, &bytes) {
            Err(error) if matches!(error.kind, StoreErrorKind::Exists) => Err(Error::Refused {
                what: format!("'{}' holds a backup already", store.label()),
                hint: "choose an empty folder; nothing was changed.".into(),
            }),
            created => Ok(created?),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Error::Nothing`] where there is no store, [`Error::FormatVersion`] where it is a newer one's.
    pub fn read(store: &dyn Store) -> Result<Self> {
        let bytes = match store.read(MARKER) {
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound) => {
                let what = format!("there is no {MARKER}");
                return Err(Error::Nothing { store: store.label().into(), what });
            }
            bytes => bytes?,
        };
        let marker: Self = serde_json::from_slice(&bytes)
            .map_err(|_| Error::damaged(format!("'{MARKER}'"), "not a marker of lockstep"))?;
        if marker.format != FORMAT {
            return Err(Error::damaged(format!("'{MARKER}'"), "not a marker of lockstep"));
        }
        if marker.version != FORMAT_VERSION {
            return Err(Error::FormatVersion { object: MARKER.into(), found: marker.version });
        }
        Ok(marker)
    }

    /// Checks that the store is the one that `expected` names.
    ///
    /// # Errors
    /// [`Error::OtherStore`].
    pub fn require(&self, expected: StoreId) -> Result<()> {
        if self.store_id == expected {
            return Ok(());
        }
        Err(Error::OtherStore { object: MARKER.into(), expected, found: self.store_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FileStore;

    #[test]
    fn a_place_that_holds_a_backup_is_told_from_one_that_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::create_root(&folder.path().join("store")).unwrap();
        let marker = Marker::new(StoreId([1; 16]), 5);
        marker.create(&store).unwrap();
        let again = marker.create(&store);
        assert!(matches!(again, Err(Error::Refused { .. })), "{again:?}");
        std::fs::remove_dir_all(folder.path().join("store")).unwrap();
        let gone = marker.create(&store);
        assert!(matches!(gone, Err(Error::Store(_))), "{gone:?}");
    }

    #[test]
    fn the_marker_of_another_store_is_refused_by_both_names() {
        let marker = Marker::new(StoreId([1; 16]), 5);
        assert!(marker.require(StoreId([1; 16])).is_ok());
        match marker.require(StoreId([2; 16])) {
            Err(Error::OtherStore { expected, found, .. }) => {
                assert_eq!((expected, found), (StoreId([2; 16]), StoreId([1; 16])));
            }
            other => panic!("{other:?}"),
        }
    }
}
