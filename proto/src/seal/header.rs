//! The first 128 bytes of every sealed object: in the clear, bound into every frame behind it.

use sha2::{Digest, Sha256};

use super::frame::Chain;
use super::key::{KeyError, KeyId, StoreId, random};
use crate::version::FORMAT_VERSION;

/// Bytes of a header.
pub const HEADER_LEN: usize = 128;

const MAGIC: &[u8; 8] = b"LOCKSTEP";

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ObjectKind {
    /// Consecutive records of the log.
    Segment = 1,
    /// Pages of the database at a position.
    Snapshot = 2,
    /// A writer's claim of an epoch.
    Claim = 3,
    /// A quiet writer's word that it is alive.
    Heartbeat = 4,
    /// Files that belong to the node beside its database.
    Files = 5,
}

impl ObjectKind {
    fn from_byte(byte: u8) -> Option<Self> {
        let known = [Self::Segment, Self::Snapshot, Self::Claim, Self::Heartbeat, Self::Files];
        known.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Where an object belongs. Field by field in `docs/format.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: ObjectKind,
    /// The key that seals it.
    pub key: KeyId,
    /// The store that it belongs to.
    pub store: StoreId,
    /// The history that it belongs to.
    pub generation: u32,
    /// The writer that made it.
    pub epoch: u32,
    /// Segment: seq of its first record. Snapshot: seq of its position. Claim: 0.
    pub seq: u64,
    /// Segment, snapshot: how many objects this epoch began before it. Files: how many of them. Claim: 0.
    pub index: u32,
    /// Segment: chain hash of the record before its first. Snapshot: of its position. Claim: zeros.
    pub prev: Chain,
    /// First 16 bytes of the nonce of each frame, random for each object.
    pub nonce_prefix: [u8; 16],
}

impl Header {
    /// A fresh random nonce prefix. Every object that is written takes its own, which is why a nonce
    /// never repeats: not after a crash, nor from an old copy of a folder.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn random_nonce_prefix() -> Result<[u8; 16], KeyError> {
        random()
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10] = self.kind as u8;
        bytes[12..16].copy_from_slice(&self.key.0);
        bytes[16..32].copy_from_slice(&self.store.0);
        bytes[32..36].copy_from_slice(&self.generation.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.seq.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.index.to_le_bytes());
        bytes[64..96].copy_from_slice(&self.prev.0);
        bytes[96..112].copy_from_slice(&self.nonce_prefix);
        let check = check(&bytes);
        bytes[112..].copy_from_slice(&check);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`HeaderError`]; a version this program does not know is told from damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Short(bytes.len()));
        };
        if bytes[..8] != *MAGIC || bytes[112..] != check(bytes) {
            return Err(HeaderError::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        let kind = ObjectKind::from_byte(bytes[10]).ok_or(HeaderError::Kind(bytes[10]))?;
        if bytes[11] != 0 || bytes[52..64] != [0; 12] {
            return Err(HeaderError::Damaged);
        }
        Ok(Self {
            kind,
            key: KeyId(array(bytes, 12)),
            store: StoreId(array(bytes, 16)),
            generation: u32::from_le_bytes(array(bytes, 32)),
            epoch: u32::from_le_bytes(array(bytes, 36)),
            seq: u64::from_le_bytes(array(bytes, 40)),
            index: u32::from_le_bytes(array(bytes, 48)),
            prev: Chain(array(bytes, 64)),
            nonce_prefix: array(bytes, 96),
        })
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// Tells an accident from another version, kind, store or key; authentication is the frames' part.
fn check(bytes: &[u8; HEADER_LEN]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(&bytes[..112]).into();
    let mut check = [0; 16];
    check.copy_from_slice(&digest[..16]);
    check
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer bytes than a header has.
    #[error("{0} bytes, a header has {HEADER_LEN}")]
    Short(usize),
    /// Altered, or never a header.
    #[error("header is damaged")]
    Damaged,
    /// Written in a format that this program does not know.
    #[error("format version {0}, this program knows {FORMAT_VERSION}")]
    Version(u16),
    /// An object of a kind that this program does not know.
    #[error("object kind {0} of format version {FORMAT_VERSION}, this program knows 1 to 5")]
    Kind(u8),
}
