//! Small sealed objects: a header and one frame, which holds JSON. They belong to an epoch, not to a place in the log.
//! `index` tells those of one kind and epoch apart, where there are several.

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::seal::{Chain, HEADER_LEN, Header, KeyRing, ObjectKind, Opener, Sealer};

/// The bytes of an object of `epoch`. Each call takes fresh random bytes for its nonce.
///
/// # Errors
/// Where the operating system has no randomness to give.
pub fn seal(
    keys: &KeyRing,
    kind: ObjectKind,
    (epoch, index): (u32, u32),
    content: &impl Serialize,
) -> Result<Vec<u8>> {
    let key = keys.current()?;
    let header = Header {
        kind,
        key: key.id(),
        store: keys.store(),
        generation: 0,
        epoch,
        seq: 0,
        index,
        prev: Chain::default(),
        nonce_prefix: Header::random_nonce_prefix()?,
    };
    let plain = serde_json::to_vec(content).map(Zeroizing::new);
    let plain = plain.map_err(|error| Error::damaged("sealed object", error))?;
    let mut bytes = header.encode().to_vec();
    Sealer::new(key, &header)
        .seal(&plain, &mut bytes)
        .map_err(crate::segment::SegmentError::from)?;
    Ok(bytes)
}

/// What the bytes of the object `name` hold.
///
/// # Errors
/// Where they are damaged, sealed with another key, or of another kind, epoch or store.
pub fn open<T: DeserializeOwned>(
    keys: &KeyRing,
    kind: ObjectKind,
    (epoch, index): (u32, u32),
    name: &str,
    bytes: &[u8],
) -> Result<T> {
    let header = Header::decode(bytes).map_err(|error| Error::header(name, error))?;
    let key = keys
        .get(header.key)
        .ok_or_else(|| Error::UnknownKey { object: name.into(), key: header.key })?;
    let damaged = |what: String| Error::damaged(format!("'{name}'"), what);
    let found = (header.kind, header.epoch, header.index, header.store);
    if found != (kind, epoch, index, keys.store()) {
        return Err(damaged("does not belong here".into()));
    }
    let mut plain = Zeroizing::new(Vec::new());
    Opener::new(key, &header)
        .open(&bytes[HEADER_LEN..], &mut plain)
        .map_err(|error| damaged(error.to_string()))?;
    serde_json::from_slice(&plain).map_err(|_| damaged("malformed, although authentic".into()))
}
