//! The file `hsm_secret`: its four forms, read, unlocked and written.
//!
//! | form | bytes | passphrase |
//! |---|---|---|
//! | plain | 32: the secret | no |
//! | encrypted | 73: 24 header, 49 secretstream-xchacha20poly1305 ciphertext | yes |
//! | words | 32 zero bytes, then English BIP39 words | no |
//! | words with a passphrase | SHA-256 of the seed, then the words | yes |
//!
//! lightningd tells them apart by length alone (below 32 invalid, 32 plain, 73
//! encrypted, else words), then by whether the first 32 bytes are zero. The
//! words stand there with one space between and nothing after them. The 73-byte
//! form is no longer made, but still read. A node with a remote signer has no
//! such file.
//!
//! Source: `detect_hsm_secret_type`, `extract_hsm_secret` and
//! `get_encryption_key` in `common/hsm_secret.c`, the same file in v25.12.1 and
//! v26.06.6; `create_hsm` in `hsmd/hsmd.c` for what a new node writes.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use crypto_secretstream::{Header, Key, PullStream, Stream};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::secret::{NodeSecret, RAW_LEN, SecretError, parse_words};

/// Bytes of the encrypted form: the stream's header, the secret, its tag.
pub const ENCRYPTED_LEN: usize = Header::BYTES + RAW_LEN + Stream::ABYTES;

/// The most bytes that an `hsm_secret` is read to. The longest possible one, 24
/// words of 8 letters, has 247: what is longer is another file.
pub const MAX_LEN: usize = 4096;

/// Argon2id's memory in KiB: libsodium's `MEMLIMIT_MODERATE`, 268 435 456 bytes.
const ARGON2_MEMORY_KIB: u32 = 262_144;

/// Argon2id's passes: libsodium's `OPSLIMIT_MODERATE`.
const ARGON2_PASSES: u32 = 3;

/// Argon2id's lanes: always one in libsodium.
const ARGON2_LANES: u32 = 1;

/// The salt of every encrypted `hsm_secret` there is.
const ARGON2_SALT: &[u8; 16] = b"c-lightning\0\0\0\0\0";

/// What an `hsm_secret` holds, before it is unlocked.
///
/// Holds secrets, so `Debug` tells the form alone and all of it is wiped on drop.
#[non_exhaustive]
pub enum HsmSecretFile {
    /// The 32 bytes themselves.
    Plain(NodeSecret),
    /// The 32 bytes, encrypted.
    Encrypted(Box<[u8; ENCRYPTED_LEN]>),
    /// Words without a passphrase.
    Mnemonic {
        /// The words, checked, in lowercase with one space between.
        words: Zeroizing<String>,
    },
    /// Words that need a passphrase.
    MnemonicWithPassphrase {
        /// SHA-256 of the 64-byte seed of the words with the passphrase.
        seed_hash: [u8; 32],
        /// The words, checked, in lowercase with one space between.
        words: Zeroizing<String>,
    },
}

impl fmt::Debug for HsmSecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HsmSecretFile({})", self.kind())
    }
}

impl HsmSecretFile {
    /// Recognise the bytes of an `hsm_secret`.
    ///
    /// Words are checked here, so that a damaged file is found before anybody is
    /// asked for a passphrase. White space around and between the words and
    /// capitals are forgiven, as an editor leaves a newline, though lightningd
    /// refuses to start with them; from a NUL byte on nothing is read, as there.
    ///
    /// Fails with [`SecretError::TooShort`], [`SecretError::TooLong`],
    /// [`SecretError::Zeros`], [`SecretError::NotText`] or what [`NodeSecret::from_words`] says of words.
    pub fn parse(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() > MAX_LEN {
            return Err(SecretError::TooLong { limit: MAX_LEN });
        }
        if let Ok(secret) = <&[u8; RAW_LEN]>::try_from(bytes) {
            if *secret == [0; RAW_LEN] {
                return Err(SecretError::Zeros);
            }
            return Ok(Self::Plain(NodeSecret::from_raw(secret)));
        }
        if let Ok(encrypted) = <[u8; ENCRYPTED_LEN]>::try_from(bytes) {
            return Ok(Self::Encrypted(Box::new(encrypted)));
        }
        let Some((seed_hash, text)) = bytes.split_first_chunk::<32>() else {
            return Err(SecretError::TooShort { found: bytes.len() });
        };
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|_| SecretError::NotText)?;
        let words = canonical_words(text)?;
        if *seed_hash == [0; 32] {
            Ok(Self::Mnemonic { words })
        } else {
            Ok(Self::MnemonicWithPassphrase { seed_hash: *seed_hash, words })
        }
    }

    /// Read and recognise an `hsm_secret`. Reads at most [`MAX_LEN`] bytes.
    ///
    /// Fails with [`SecretError::Io`] and whatever [`HsmSecretFile::parse`] says.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        // Room for all of it, so that no copy is left behind by growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN + 1));
        File::open(path)
            .and_then(|file| file.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes))
            .map_err(io_error("read", path))?;
        Self::parse(&bytes)
    }

    /// Whether [`HsmSecretFile::unlock`] needs a passphrase.
    pub fn needs_passphrase(&self) -> bool {
        matches!(self, Self::Encrypted(_) | Self::MnemonicWithPassphrase { .. })
    }

    /// The form in words, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Plain(_) => "plain (32 bytes)",
            Self::Encrypted(_) => "encrypted (73 bytes)",
            Self::Mnemonic { .. } => "words",
            Self::MnemonicWithPassphrase { .. } => "words with a passphrase",
        }
    }

    /// The secret itself.
    ///
    /// The encrypted form takes about a second and 256 MiB of memory. A
    /// passphrase for the plain form is ignored, one for words without a
    /// passphrase refused, both as lightningd does.
    ///
    /// Fails with [`SecretError::PassphraseRequired`],
    /// [`SecretError::PassphraseNotNeeded`], [`SecretError::WrongPassphrase`] or
    /// [`SecretError::KeyDerivation`].
    pub fn unlock(&self, passphrase: Option<&str>) -> Result<NodeSecret, SecretError> {
        match (self, passphrase) {
            (Self::Plain(secret), _) => Ok(secret.clone()),
            (Self::Mnemonic { words }, None) => NodeSecret::from_words(words, ""),
            (Self::Mnemonic { .. }, Some(_)) => Err(SecretError::PassphraseNotNeeded),
            (_, None) => Err(SecretError::PassphraseRequired),
            (Self::Encrypted(bytes), Some(passphrase)) => decrypt(bytes, passphrase),
            (Self::MnemonicWithPassphrase { seed_hash, words }, Some(passphrase)) => {
                let secret = NodeSecret::from_words(words, passphrase)?;
                let found = Sha256::digest(secret.as_bytes());
                if bool::from(found.ct_eq(seed_hash)) {
                    Ok(secret)
                } else {
                    Err(SecretError::WrongPassphrase)
                }
            }
        }
    }
}

impl Drop for HsmSecretFile {
    fn drop(&mut self) {
        // The other fields wipe themselves; the ciphertext and the hash are no
        // secrets but are enough to try passphrases on.
        match self {
            Self::Encrypted(bytes) => bytes.zeroize(),
            Self::MnemonicWithPassphrase { seed_hash, .. } => seed_hash.zeroize(),
            Self::Plain(_) | Self::Mnemonic { .. } => {}
        }
    }
}

/// The bytes of the `hsm_secret` that a node made from these words would have.
///
/// `None` gives 32 zero bytes and the words, `Some` the SHA-256 of the seed and
/// the words. `Some("")` is a form of its own, as in lightningd: the seed is that
/// of `None`, but the node then asks for a passphrase, which is empty. Pass `None`
/// when somebody just pressed enter.
///
/// Only right for a node whose secret is the 64-byte seed; see
/// [`NodeSecret::first_half`] for the other kind, whose file is the 32 bytes.
///
/// Fails as [`NodeSecret::from_words`] does.
pub fn encode_words(
    words: &str,
    passphrase: Option<&str>,
) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let words = canonical_words(words)?;
    let mut seed_hash = [0; 32];
    if let Some(passphrase) = passphrase {
        seed_hash = Sha256::digest(NodeSecret::from_words(&words, passphrase)?.as_bytes()).into();
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(seed_hash.len() + words.len()));
    bytes.extend_from_slice(&seed_hash);
    bytes.extend_from_slice(words.as_bytes());
    Ok(bytes)
}

/// Write an `hsm_secret`, readable by its owner alone (mode 0400).
///
/// What is at `path` afterwards is either nothing or the whole file, also after a
/// crash: cut at 32 bytes, words without a passphrase would read as a plain secret
/// of zeros. So the bytes go into a file beside it, `<name>.lockstep-new`, which is
/// synced and then linked to its name; a link, unlike a rename, never replaces.
/// On return the file and its directory are synced.
///
/// Fails with [`SecretError::Exists`] if anything has the name already, with what
/// [`HsmSecretFile::parse`] says if lightningd could not read the bytes, and with
/// [`SecretError::Io`].
pub fn write_hsm_secret(path: &Path, bytes: &[u8]) -> Result<(), SecretError> {
    HsmSecretFile::parse(bytes)?;
    // Also for a dangling link, which a link would not replace but "exists" denies.
    if fs::symlink_metadata(path).is_ok() {
        return Err(SecretError::Exists { path: path.to_owned() });
    }
    let beside = beside(path);
    let written = write_beside(&beside, bytes).and_then(|()| publish(&beside, path));
    let removed = match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &beside)(e)),
        _ => Ok(()),
    };
    written.and(removed)?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", directory))
}

/// The name that the file has until it is whole.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".lockstep-new");
    path.with_file_name(name)
}

/// Write and sync the file under its first name, over what a crash left there.
fn write_beside(path: &Path, bytes: &[u8]) -> Result<(), SecretError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", path)(e)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o400);
    let mut file = options.open(path).map_err(io_error("create", path))?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("sync", path))
}

/// Give the whole file its name, unless something has it.
fn publish(from: &Path, to: &Path) -> Result<(), SecretError> {
    fs::hard_link(from, to).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => SecretError::Exists { path: to.to_owned() },
        _ => io_error("link", to)(e),
    })
}

/// Words as lightningd writes them: checked, lowercase, one space between.
fn canonical_words(words: &str) -> Result<Zeroizing<String>, SecretError> {
    let mnemonic = parse_words(words)?;
    let mut canonical = Zeroizing::new(String::with_capacity(words.len()));
    for (i, word) in mnemonic.words().enumerate() {
        if i > 0 {
            canonical.push(' ');
        }
        canonical.push_str(word);
    }
    Ok(canonical)
}

/// Open the 73-byte form.
fn decrypt(bytes: &[u8; ENCRYPTED_LEN], passphrase: &str) -> Result<NodeSecret, SecretError> {
    let key = encryption_key(passphrase)?;
    let (header, ciphertext) = bytes.split_at(Header::BYTES);
    let header = Header::try_from(header).map_err(|_| SecretError::WrongPassphrase)?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    // The stream's own tag (message, final …) is not looked at, as there.
    PullStream::init(header, &Key::from(*key))
        .pull(&mut *buffer, &[])
        .map_err(|_| SecretError::WrongPassphrase)?;
    match <&[u8; RAW_LEN]>::try_from(buffer.as_slice()) {
        Ok(secret) => Ok(NodeSecret::from_raw(secret)),
        Err(_) => Err(SecretError::WrongPassphrase),
    }
}

/// libsodium's `crypto_pwhash` (Argon2id 1.3) with lightningd's parameters.
fn encryption_key(passphrase: &str) -> Result<Zeroizing<[u8; 32]>, SecretError> {
    let failed = |e: argon2::Error| SecretError::KeyDerivation(e.to_string());
    let mut key = Zeroizing::new([0; 32]);
    let params = Params::new(ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES, Some(key.len()))
        .map_err(failed)?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), ARGON2_SALT, key.as_mut_slice())
        .map_err(failed)?;
    Ok(key)
}

/// Wrap an I/O error with what was being done to which file.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretError {
    move |source| SecretError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
