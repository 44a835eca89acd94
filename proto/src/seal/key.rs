//! Data keys, and the ring of them that a store has used.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::hex;

/// Names a store for ever: 128 random bits, in the marker, in every header, in every lock file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreId(pub [u8; 16]);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<StoreId> for String {
    fn from(id: StoreId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for StoreId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        hex::decode(&text).map(Self).ok_or("a store id is 32 hexadecimal digits")
    }
}

/// Names a data key without giving anything away of it: see [`DataKey::id`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A random 256-bit key that seals objects. Wiped from memory when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// A fresh key from the operating system.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(random()?))
    }

    /// The key's name: the first four bytes of SHA-256("lockstep key id" ‖ key).
    pub fn id(&self) -> KeyId {
        let digest: [u8; 32] =
            Sha256::new().chain_update(b"lockstep key id").chain_update(self.0).finalize().into();
        KeyId([digest[0], digest[1], digest[2], digest[3]])
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id())
    }
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
    Ok(bytes)
}

impl StoreId {
    /// A fresh random id.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(random()?))
    }
}

/// Every data key that a store's objects are sealed with; the last one seals new objects.
///
/// This is what `backup.key` holds in the clear and what each key slot wraps.
#[derive(Clone, Debug)]
pub struct KeyRing {
    store: StoreId,
    keys: Vec<DataKey>,
}

/// The form of a key ring in a file.
#[derive(Serialize, Deserialize)]
struct KeyRingFile {
    format: String,
    version: u16,
    store_id: StoreId,
    keys: Vec<Zeroizing<String>>,
}

const KEY_RING_FORMAT: &str = "lockstep-keyring";

impl KeyRing {
    /// A ring for a new store, with one fresh key.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn generate(store: StoreId) -> Result<Self, KeyError> {
        Ok(Self { store, keys: vec![DataKey::generate()?] })
    }

    /// The store that these keys belong to.
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// The key that seals new objects.
    ///
    /// # Errors
    /// Never for a ring that [`generate`](Self::generate) or [`decode`](Self::decode) gave.
    pub fn current(&self) -> Result<&DataKey, KeyError> {
        self.keys.last().ok_or(KeyError::Malformed)
    }

    /// The key of that name.
    pub fn get(&self, id: KeyId) -> Option<&DataKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    /// The ring as JSON, for `backup.key` and for the inside of a key slot.
    ///
    /// # Errors
    /// Never in practice: the form has nothing that JSON cannot say.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let file = KeyRingFile {
            format: KEY_RING_FORMAT.into(),
            version: crate::version::FORMAT_VERSION,
            store_id: self.store,
            keys: self.keys.iter().map(|key| Zeroizing::new(hex::encode(&key.0))).collect(),
        };
        serde_json::to_vec(&file).map(Zeroizing::new).map_err(|_| KeyError::Malformed)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`KeyError::Malformed`] for anything else, [`KeyError::Version`] for a newer form.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let file: KeyRingFile = serde_json::from_slice(bytes).map_err(|_| KeyError::Malformed)?;
        if file.format != KEY_RING_FORMAT {
            return Err(KeyError::Malformed);
        }
        if file.version != crate::version::FORMAT_VERSION {
            return Err(KeyError::Version(file.version));
        }
        let keys = file
            .keys
            .iter()
            .map(|key| hex::decode(key).map(DataKey).ok_or(KeyError::Malformed))
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(KeyError::Malformed);
        }
        Ok(Self { store: file.store_id, keys })
    }
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
    /// Not a key ring.
    #[error("not a key ring of lockstep")]
    Malformed,
    /// A key ring in a form that this program does not know.
    #[error("key ring has format version {0}, this program knows {known}", known = crate::version::FORMAT_VERSION)]
    Version(u16),
}
