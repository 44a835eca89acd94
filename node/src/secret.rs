//! The node's secret, and what lightningd derives from it.
//!
//! A secret is 32 bytes (a node made before v25.12, or one that was given hex
//! or codex32 to recover from) or the 64 bytes of a BIP39 seed (every node that
//! v25.12 and later made by itself). Everything else follows from it, which is
//! why 12 words are enough to open a backup.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bip39::{Language, Mnemonic};
use hmac::{Hmac, KeyInit, Mac};
use k256::elliptic_curve::sec1::ToEncodedPoint;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a secret that did not come from words.
pub const RAW_LEN: usize = 32;

/// Bytes of a secret that came from words: a BIP39 seed.
pub const SEED_LEN: usize = 64;

/// Bytes of a node id: a compressed secp256k1 point.
pub const NODE_ID_LEN: usize = 33;

/// Why a node's secret could not be had.
///
/// No variant carries a secret, a passphrase or a word: a wrong word is named
/// by its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// A file operation failed.
    #[error("{action} '{}': {source}", path.display())]
    Io {
        /// What was being done, a verb phrase.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there already, and no secret is ever overwritten.
    #[error("'{}' already exists", path.display())]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// Too short for any of the four forms.
    #[error("hsm_secret has {found} bytes, expected at least {RAW_LEN}")]
    TooShort {
        /// Bytes found.
        found: usize,
    },
    /// Too long for any of the four forms: another file, most likely.
    #[error("hsm_secret has more than {limit} bytes")]
    TooLong {
        /// The most that is read.
        limit: usize,
    },
    /// Nothing but 32 zero bytes: the head of a file of words that was cut off.
    ///
    /// lightningd would take them for a secret, one that everybody knows.
    #[error("hsm_secret is 32 zero bytes, which is no secret")]
    Zeros,
    /// What should be words is not text.
    #[error("hsm_secret holds neither 32 bytes, nor an encrypted secret, nor words")]
    NotText,
    /// Not a number of words that a mnemonic can have.
    #[error("mnemonic has {found} words, expected 12, 15, 18, 21 or 24")]
    WordCount {
        /// Words found.
        found: usize,
    },
    /// A word that is not on the English BIP39 list.
    #[error("word {position} of the mnemonic is not on the English BIP39 list")]
    UnknownWord {
        /// Which word, from 1.
        position: usize,
    },
    /// All words are on the list, but not in this order.
    #[error("mnemonic's checksum does not match: a word is wrong or out of place")]
    Checksum,
    /// The secret cannot be had without its passphrase.
    #[error("hsm_secret needs its passphrase")]
    PassphraseRequired,
    /// A passphrase was given for words that have none: lightningd refuses this.
    #[error("hsm_secret's words have no passphrase, but one was given")]
    PassphraseNotNeeded,
    /// The passphrase does not open the file (or the file is damaged: for the
    /// encrypted form the two cannot be told apart).
    #[error("passphrase does not open hsm_secret")]
    WrongPassphrase,
    /// Argon2 could not run, for want of its 256 MiB of memory.
    #[error("derive the key of the encrypted hsm_secret: {0}")]
    KeyDerivation(String),
}

impl SecretError {
    /// What to do next, where that can be said.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io { .. } => Some(crate::LOOK_AT_THE_FILE),
            Self::Exists { .. } => {
                Some("nothing was changed; move the file aside only if it is not this node's.")
            }
            Self::TooShort { .. } | Self::TooLong { .. } | Self::Zeros | Self::NotText => {
                Some("check that this is the node's hsm_secret, whole and unchanged.")
            }
            Self::WordCount { .. } | Self::UnknownWord { .. } | Self::Checksum => {
                Some("compare the words and their order with the paper copy.")
            }
            Self::PassphraseRequired => {
                Some("give the passphrase that lightningd asks for with --hsm-passphrase.")
            }
            Self::PassphraseNotNeeded => Some("try again without a passphrase."),
            Self::WrongPassphrase => {
                Some("try again; if the passphrase is right, the file is damaged.")
            }
            Self::KeyDerivation(_) => Some("free 256 MiB of memory, then try again."),
        }
    }
}

/// A node's root secret: 32 bytes, or the 64 bytes of a BIP39 seed.
///
/// Wiped when dropped, and never shown: `Debug` tells the length alone.
#[derive(Clone)]
pub struct NodeSecret {
    // On the heap, so that moving the value leaves no copy behind.
    bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeSecret({} bytes)", self.bytes.len())
    }
}

impl NodeSecret {
    /// The secret of a node whose `hsm_secret` is 32 plain bytes.
    pub fn from_raw(secret: &[u8; RAW_LEN]) -> Self {
        Self { bytes: Zeroizing::new(secret.to_vec()) }
    }

    /// The secret of a node that was made from English BIP39 words: the 64-byte
    /// seed. An empty `passphrase` is no passphrase: the seed is the same.
    ///
    /// The words are taken as people type them, in any case and with any white
    /// space between and around; their checksum is verified. The passphrase is
    /// taken byte for byte, as libwally takes it, *not* brought to Unicode's
    /// NFKD form as BIP39 has it, since what counts is what lightningd did.
    ///
    /// Fails with [`SecretError::WordCount`], [`SecretError::UnknownWord`] or
    /// [`SecretError::Checksum`].
    ///
    /// Source: `bip39_mnemonic_to_seed` in libwally's `bip39.c`, as called by
    /// `mnemonic_to_seed` in `common/hsm_secret.c`.
    pub fn from_words(words: &str, passphrase: &str) -> Result<Self, SecretError> {
        let mnemonic = parse_words(words)?;
        let mut seed = mnemonic.to_seed_normalized(passphrase);
        let bytes = Zeroizing::new(seed.to_vec());
        seed.zeroize();
        Ok(Self { bytes })
    }

    /// The other secret that the same words may stand for: the first 32 bytes of
    /// the seed. `None` if this secret has 32 bytes already.
    ///
    /// Before v25.12 `lightning-hsmtool generatehsm` wrote the first half of the
    /// seed as a plain 32-byte `hsm_secret` (`generate_hsm` in `tools/hsmtool.c`
    /// of v0.9.3 to v25.09). So words alone do not say which secret a node has:
    /// whoever starts from words tries both. The node id, for which lightningd
    /// uses the first 32 bytes in either case, does *not* tell them apart, yet
    /// on-chain and channel keys differ: a node that had the 32 bytes must get
    /// them back ([`NodeSecret::as_bytes`]), not a file with the words.
    pub fn first_half(&self) -> Option<Self> {
        if self.bytes.len() != SEED_LEN {
            return None;
        }
        let half = self.bytes.get(..RAW_LEN)?;
        Some(Self { bytes: Zeroizing::new(half.to_vec()) })
    }

    /// The bytes themselves, [`RAW_LEN`] or [`SEED_LEN`] of them.
    ///
    /// 32 bytes are also exactly what a plain `hsm_secret` holds.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// lightningd's `makesecret` for the string `info`.
    ///
    /// HKDF-SHA256 twice, without salt: the secret to "derived secrets", that to
    /// `info`. Source: `hsmd_init` (`derived_secret`) and `handle_derive_secret`
    /// in `hsmd/libhsmd.c`.
    pub fn make_secret(&self, info: &str) -> Zeroizing<[u8; 32]> {
        let derived = hkdf_sha256(&[], &self.bytes, b"derived secrets");
        hkdf_sha256(&[], derived.as_slice(), info.as_bytes())
    }

    /// The node id: the public key by which peers know the node.
    ///
    /// The private key is HKDF-SHA256 of the first 32 bytes with a u32 of zero
    /// as salt and "nodeid" as info; the salt counts up until the result is a
    /// valid key (it always is at 0). Source: `node_key` in `hsmd/libhsmd.c`.
    pub fn node_id(&self) -> [u8; NODE_ID_LEN] {
        let (ikm, _) = self.bytes.split_at(RAW_LEN.min(self.bytes.len()));
        let mut salt: u32 = 0;
        loop {
            // In memory order there: every machine that lightningd is built for
            // is little-endian, and zero has no order.
            let key = hkdf_sha256(&salt.to_le_bytes(), ikm, b"nodeid");
            if let Ok(key) = k256::SecretKey::from_slice(key.as_slice())
                && let Ok(id) = key.public_key().to_encoded_point(true).as_bytes().try_into()
            {
                return id;
            }
            salt = salt.wrapping_add(1);
        }
    }
}

/// Parse and check English BIP39 words in any case and spacing.
pub(crate) fn parse_words(words: &str) -> Result<Mnemonic, SecretError> {
    let lower = Zeroizing::new(words.to_ascii_lowercase());
    Mnemonic::parse_in_normalized(Language::English, &lower).map_err(|e| match e {
        bip39::Error::BadWordCount(found) => SecretError::WordCount { found },
        bip39::Error::UnknownWord(index) => SecretError::UnknownWord { position: index + 1 },
        _ => SecretError::Checksum,
    })
}

/// HKDF-SHA256 (RFC 5869) with 32 bytes of output, so one round of expansion.
///
/// From HMAC rather than the `hkdf` crate, whose `expand` can fail, for output
/// longer than this: there is no good answer to a failure that cannot happen.
/// `salt` is at most one SHA-256 block; longer ones are not used here.
fn hkdf_sha256(salt: &[u8], ikm: &[u8], info: &[u8]) -> Zeroizing<[u8; 32]> {
    let prk = hmac_sha256(salt, &[ikm]);
    hmac_sha256(prk.as_slice(), &[info, &[1]])
}

/// HMAC-SHA256 of `parts` in a row, with a key of at most one block (64 bytes).
fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    debug_assert!(key.len() <= 64, "longer keys would have to be hashed first");
    let mut block = Zeroizing::new([0; 64]);
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon \
                           abandon abandon abandon about";
    const LEGAL: &str =
        "legal winner thank year wave sausage worth useful legal winner thank yellow";

    fn raw() -> NodeSecret {
        let mut bytes = [0; 32];
        for (i, byte) in (0..).zip(bytes.iter_mut()) {
            *byte = i;
        }
        NodeSecret::from_raw(&bytes)
    }

    /// VECTORS.md, from a real lightningd v26.06.6 (`makesecret`, `getinfo`).
    #[test]
    fn raw_secret_gives_what_lightningd_gave() {
        let secret = raw();
        assert_eq!(
            *secret.make_secret("cln-lockstep/v1"),
            hex!("42f33886361f452e551043c9e931dcb7604b79113a0a5c73277b3284f2c59669")
        );
        assert_eq!(
            secret.node_id(),
            hex!("02b2f83174660be98aca0f6ae36ed2c8eb33af0e3783a31b6f6b6816fa074054c7")
        );
    }

    /// VECTORS.md, from a real lightningd v26.06.6.
    #[test]
    fn words_give_what_lightningd_gave() {
        let secret = NodeSecret::from_words(ABANDON, "").unwrap();
        assert_eq!(secret.as_bytes().len(), SEED_LEN);
        assert_eq!(
            *secret.make_secret("cln-lockstep/v1"),
            hex!("5defb332f92661274cafd6e95b381ad2964d36e38175250f96069540213a250b")
        );
        assert_eq!(
            secret.node_id(),
            hex!("03653e90c1ce4660fd8505dd6d643356e93cfe202af109d382787639dd5890e87d")
        );
    }

    /// VECTORS.md, by the formula.
    #[test]
    fn words_with_passphrase_give_the_formula() {
        let secret = NodeSecret::from_words(ABANDON, "correct horse").unwrap();
        assert_eq!(
            *secret.make_secret("cln-lockstep/v1"),
            hex!("f09943e320ef389af3690fa971871ca4db8c936c53f31b660b6612e373027480")
        );
    }

    /// RFC 5869, test case 1, cut to the first 32 bytes of its output.
    #[test]
    fn hkdf_is_rfc_5869() {
        let okm = hkdf_sha256(
            &hex!("000102030405060708090a0b0c"),
            &[0x0b; 22],
            &hex!("f0f1f2f3f4f5f6f7f8f9"),
        );
        assert_eq!(*okm, hex!("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"));
    }

    /// RFC 5869, test case 3 (no salt, no info), cut likewise.
    #[test]
    fn hkdf_without_salt_is_rfc_5869() {
        assert_eq!(
            *hkdf_sha256(&[], &[0x0b; 22], &[]),
            hex!("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d")
        );
    }

    #[test]
    fn words_are_taken_in_any_case_and_spacing() {
        let typed = format!("\n  {}\t\n", LEGAL.to_uppercase().replace(' ', " \t "));
        assert_eq!(
            NodeSecret::from_words(&typed, "").unwrap().as_bytes(),
            NodeSecret::from_words(LEGAL, "").unwrap().as_bytes()
        );
    }

    /// Recompute: `hashlib.pbkdf2_hmac("sha512", LEGAL, b"mnemonic" + p, 2048, 64)`
    /// with p = "caf\u{e9} \u{c5}" in UTF-8, not decomposed. The node id is what
    /// `lightning-hsmtool getnodeid` v26.06.6 printed for that passphrase.
    #[test]
    fn passphrase_is_taken_byte_for_byte() {
        let secret = NodeSecret::from_words(LEGAL, "caf\u{e9} \u{c5}").unwrap();
        assert_eq!(
            secret.as_bytes(),
            hex!(
                "156b12067cda02e6a21ac1fa42173e49f15ca0c3e847c1fbaa41491086eca4a9"
                "c2166194b9c76139da9b33852b13903b7d48d9e03313131b22f71550549be4c2"
            )
        );
        assert_eq!(
            secret.node_id(),
            hex!("03b8e7b31d50d507d371cb10b50e7033b4f36746433ca669797ebbf0b5d1f647b2")
        );
        let decomposed = NodeSecret::from_words(LEGAL, "cafe\u{301} A\u{30a}").unwrap();
        assert_ne!(secret.as_bytes(), decomposed.as_bytes());
    }

    /// The node id is hsmtool's for both files (32 bytes, and words): the same,
    /// which is why it cannot tell which of the two a node had.
    #[test]
    fn first_half_has_the_same_node_id_and_another_secret() {
        let seed = NodeSecret::from_words(LEGAL, "").unwrap();
        let half = seed.first_half().unwrap();
        let id = hex!("023d304e610cddddfb7d89005ef65df730d01f24a3dfac788c927787a7cb9c4cca");
        assert_eq!(seed.node_id(), id);
        assert_eq!(half.node_id(), id);
        assert_eq!(
            *seed.make_secret("cln-lockstep/v1"),
            hex!("e499e97af6a8de1a6f1665bdee31cda55a2a0278b9b9616e5921def3645031c7")
        );
        assert_eq!(
            *half.make_secret("cln-lockstep/v1"),
            hex!("d3916799d017bb6ed429b754802f82ef167a1842290f74804bf90e69ad70866e")
        );
        assert!(half.first_half().is_none());
    }

    #[test]
    fn wrong_words_are_named_by_place_only() {
        let short = NodeSecret::from_words("abandon about", "").unwrap_err();
        assert!(matches!(short, SecretError::WordCount { found: 2 }));
        let empty = NodeSecret::from_words("  ", "").unwrap_err();
        assert!(matches!(empty, SecretError::WordCount { found: 0 }));
        let unknown = NodeSecret::from_words(&LEGAL.replace("year", "jahr"), "").unwrap_err();
        assert_eq!(unknown.to_string(), "word 4 of the mnemonic is not on the English BIP39 list");
        let swapped = NodeSecret::from_words(&ABANDON.replace("about", "zoo"), "").unwrap_err();
        assert!(matches!(swapped, SecretError::Checksum));
        assert!(swapped.hint().is_some());
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        assert_eq!(format!("{:?}", raw()), "NodeSecret(32 bytes)");
    }
}
