//! Vectors for each form were computed without this code, by Python's `hashlib`
//! and `hmac` and by libsodium 1.0.18 through `ctypes`:
//!
//! ```text
//! key    = crypto_pwhash(32, passphrase, b"c-lightning".ljust(16, b"\0"), 3, 268435456, 2)
//! state  = secretstream_xchacha20poly1305_init_pull(header, key)   # push with a chosen header
//! file   = header + secretstream_xchacha20poly1305_push(state, secret, ad="", tag=0)
//! seed   = hashlib.pbkdf2_hmac("sha512", words, b"mnemonic" + passphrase, 2048, 64)
//! file   = (bytes(32) or hashlib.sha256(seed).digest()) + words
//! hkdf   = lambda ikm, info: hmac(hmac(b"", ikm), info + b"\x01")  # both HMAC-SHA256
//! secret = hkdf(hkdf(secret or seed, b"derived secrets"), b"cln-lockstep/v1")
//! ```
//!
//! and each file was then given to `lightning-hsmtool getnodeid` (v26.06.6), whose
//! answers are the node ids below.

use super::*;
use hex_literal::hex;
use std::os::unix::fs::PermissionsExt;

const WORDS: &str = "legal winner thank year wave sausage worth useful legal winner thank yellow";

/// Node id of the bytes 00 01 02 … 1f.
const RAW_ID: [u8; 33] = hex!("02b2f83174660be98aca0f6ae36ed2c8eb33af0e3783a31b6f6b6816fa074054c7");

/// `makesecret` of the same.
const RAW_SECRET: [u8; 32] =
    hex!("42f33886361f452e551043c9e931dcb7604b79113a0a5c73277b3284f2c59669");

/// The bytes 00 01 02 … 1f under [`ENCRYPTED_PASSPHRASE`], header 40 41 … 57.
const ENCRYPTED: [u8; 73] = hex!(
    "404142434445464748494a4b4c4d4e4f5051525354555657"
    "50d2388922bf96f0f26026854331fe4f567f7901b51b25a6"
    "b7f93e47cefd25c4305942c9fee35565ff80a9dd0bc3398924"
);
const ENCRYPTED_PASSPHRASE: &str = "hunter2 \u{e9}";

/// SHA-256 of the seed of [`WORDS`] under [`WORDS_PASSPHRASE`].
const SEED_HASH: [u8; 32] =
    hex!("cccff883c8c6f63d25b224e38410d655a88b56fe5386a5b3e4124063f30cfb4b");
const WORDS_PASSPHRASE: &str = "caf\u{e9} \u{c5}";

fn raw() -> Vec<u8> {
    (0..32).collect()
}

fn with_words(head: [u8; 32], words: &str) -> Vec<u8> {
    [head.as_slice(), words.as_bytes()].concat()
}

fn error(bytes: &[u8]) -> SecretError {
    HsmSecretFile::parse(bytes).unwrap_err()
}

#[test]
fn plain() {
    let file = HsmSecretFile::parse(&raw()).unwrap();
    assert_eq!(file.kind(), "plain (32 bytes)");
    assert!(!file.needs_passphrase());
    let secret = file.unlock(None).unwrap();
    assert_eq!(secret.as_bytes(), raw());
    assert_eq!(secret.node_id(), RAW_ID);
    assert_eq!(*secret.make_secret("cln-lockstep/v1"), RAW_SECRET);
    // lightningd ignores a passphrase here.
    assert_eq!(file.unlock(Some("x")).unwrap().as_bytes(), raw());
}

#[test]
fn encrypted() {
    let file = HsmSecretFile::parse(&ENCRYPTED).unwrap();
    assert_eq!(file.kind(), "encrypted (73 bytes)");
    assert!(file.needs_passphrase());
    assert!(matches!(file.unlock(None), Err(SecretError::PassphraseRequired)));
    let secret = file.unlock(Some(ENCRYPTED_PASSPHRASE)).unwrap();
    assert_eq!(secret.as_bytes(), raw());
    assert_eq!(secret.node_id(), RAW_ID);
    assert_eq!(*secret.make_secret("cln-lockstep/v1"), RAW_SECRET);
}

#[test]
fn encrypted_wrong_passphrase() {
    let file = HsmSecretFile::parse(&ENCRYPTED).unwrap();
    let error = file.unlock(Some("hunter2 e\u{301}")).unwrap_err();
    assert!(matches!(error, SecretError::WrongPassphrase));
}

#[test]
fn encrypted_damaged() {
    let key = encryption_key(ENCRYPTED_PASSPHRASE).unwrap();
    for at in [24, 25, 56, 57, 72] {
        let mut bytes = ENCRYPTED;
        bytes[at] ^= 1;
        let header = Header::try_from(&bytes[..24]).unwrap();
        let mut rest = bytes[24..].to_vec();
        assert!(PullStream::init(header, &Key::from(*key)).pull(&mut rest, &[]).is_err(), "{at}");
    }
}

#[test]
fn words() {
    let file = HsmSecretFile::parse(&with_words([0; 32], WORDS)).unwrap();
    assert_eq!(file.kind(), "words");
    assert!(!file.needs_passphrase());
    let secret = file.unlock(None).unwrap();
    assert_eq!(
        secret.as_bytes(),
        hex!(
            "878386efb78845b3355bd15ea4d39ef97d179cb712b77d5c12b6be415fffeffe"
            "5f377ba02bf3f8544ab800b955e51fbff09828f682052a20faa6addbbddfb096"
        )
    );
    assert_eq!(
        secret.node_id(),
        hex!("023d304e610cddddfb7d89005ef65df730d01f24a3dfac788c927787a7cb9c4cca")
    );
    assert_eq!(
        *secret.make_secret("cln-lockstep/v1"),
        hex!("e499e97af6a8de1a6f1665bdee31cda55a2a0278b9b9616e5921def3645031c7")
    );
    assert!(matches!(file.unlock(Some("x")), Err(SecretError::PassphraseNotNeeded)));
}

#[test]
fn words_with_passphrase() {
    let file = HsmSecretFile::parse(&with_words(SEED_HASH, WORDS)).unwrap();
    assert_eq!(file.kind(), "words with a passphrase");
    assert!(file.needs_passphrase());
    let secret = file.unlock(Some(WORDS_PASSPHRASE)).unwrap();
    assert_eq!(
        secret.node_id(),
        hex!("03b8e7b31d50d507d371cb10b50e7033b4f36746433ca669797ebbf0b5d1f647b2")
    );
    assert_eq!(
        *secret.make_secret("cln-lockstep/v1"),
        hex!("629368116c609df1339f0e3622a057ee87eb82a76b75b70de95cf43975a4fb9e")
    );
    assert!(matches!(file.unlock(None), Err(SecretError::PassphraseRequired)));
    for wrong in ["", "cafe A", "cafe\u{301} A\u{30a}"] {
        assert!(matches!(file.unlock(Some(wrong)), Err(SecretError::WrongPassphrase)), "{wrong}");
    }
}

#[test]
fn wrong_lengths() {
    assert!(matches!(error(&[]), SecretError::TooShort { found: 0 }));
    assert!(matches!(error(&[1; 31]), SecretError::TooShort { found: 31 }));
    // From 33 bytes on it must be words; too few of them for a mnemonic.
    assert!(matches!(error(&with_words([0; 32], "a")), SecretError::WordCount { found: 1 }));
    assert!(matches!(error(&[b' '; 40]), SecretError::WordCount { found: 0 }));
    assert!(matches!(error(&[0; MAX_LEN + 1]), SecretError::TooLong { limit: MAX_LEN }));
    // Cut anywhere, words are never taken for fewer words or for a plain secret;
    // at 73 bytes lightningd, too, takes them for an encrypted one.
    let whole = with_words([0; 32], WORDS);
    for len in (0..whole.len()).filter(|len| *len != ENCRYPTED_LEN) {
        assert!(HsmSecretFile::parse(&whole[..len]).is_err(), "{len}");
    }
    assert!(matches!(error(&whole[..32]), SecretError::Zeros));
}

#[test]
fn wrong_words() {
    assert!(matches!(
        error(&with_words([0; 32], &WORDS.replace("yellow", "year"))),
        SecretError::Checksum
    ));
    assert!(matches!(
        error(&with_words(SEED_HASH, &WORDS.replace("thank", "danke"))),
        SecretError::UnknownWord { position: 3 }
    ));
}

#[test]
fn garbage() {
    let garbage: Vec<u8> = (0..200u8).map(|i| i.wrapping_mul(73) | 0x80).collect();
    assert!(matches!(error(&garbage), SecretError::NotText));
    assert!(matches!(
        error(b"SQLite format 3\0 and whatever comes then in such a file"),
        SecretError::WordCount { .. }
    ));
}

#[test]
fn an_editor_s_newline_is_forgiven_and_nul_ends_the_words() {
    for tail in ["\n", " \r\n", "\0garbage \u{e9}"] {
        let bytes = with_words([0; 32], &format!("{WORDS}{tail}"));
        let HsmSecretFile::Mnemonic { ref words } = HsmSecretFile::parse(&bytes).unwrap() else {
            panic!("not recognised as words");
        };
        assert_eq!(words.as_str(), WORDS);
    }
}

#[test]
fn debug_shows_the_form_alone() {
    let file = HsmSecretFile::parse(&with_words([0; 32], WORDS)).unwrap();
    assert_eq!(format!("{file:?}"), "HsmSecretFile(words)");
}

#[test]
fn encoded_words_are_what_lightningd_writes() {
    let typed = WORDS.to_uppercase().replace(' ', "\n ");
    assert_eq!(*encode_words(&typed, None).unwrap(), with_words([0; 32], WORDS));
    assert_eq!(
        *encode_words(&typed, Some(WORDS_PASSPHRASE)).unwrap(),
        with_words(SEED_HASH, WORDS)
    );
    assert!(matches!(encode_words("abandon", None), Err(SecretError::WordCount { found: 1 })));
}

#[test]
fn an_empty_passphrase_is_a_form_of_its_own() {
    let bytes = encode_words(WORDS, Some("")).unwrap();
    let file = HsmSecretFile::parse(&bytes).unwrap();
    assert!(file.needs_passphrase());
    assert_eq!(
        file.unlock(Some("")).unwrap().as_bytes(),
        NodeSecret::from_words(WORDS, "").unwrap().as_bytes()
    );
}

#[test]
fn a_written_file_is_private_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hsm_secret");
    let bytes = encode_words(WORDS, None).unwrap();
    // A file that a crash left behind is no obstacle.
    fs::write(beside(&path), b"half").unwrap();
    write_hsm_secret(&path, &bytes).unwrap();
    assert_eq!(fs::read(&path).unwrap(), *bytes);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o400);
    assert!(!beside(&path).exists());
    assert_eq!(HsmSecretFile::read(&path).unwrap().kind(), "words");
}

#[test]
fn a_secret_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hsm_secret");
    fs::write(&path, b"another").unwrap();
    let error = write_hsm_secret(&path, &raw()).unwrap_err();
    assert!(matches!(error, SecretError::Exists { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"another");
    assert!(!beside(&path).exists());

    let dangling = dir.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    let error = write_hsm_secret(&dangling, &raw()).unwrap_err();
    assert!(matches!(error, SecretError::Exists { .. }), "{error}");
}

/// Between the first look and the link another process may have been faster.
#[test]
fn a_secret_that_appears_meanwhile_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("new"), dir.path().join("hsm_secret"));
    fs::write(&from, b"new").unwrap();
    fs::write(&to, b"another").unwrap();
    assert!(matches!(publish(&from, &to), Err(SecretError::Exists { .. })));
    assert_eq!(fs::read(&to).unwrap(), b"another");
}

#[test]
fn what_lightningd_could_not_read_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hsm_secret");
    assert!(write_hsm_secret(&path, &[7; 31]).is_err());
    assert!(!path.exists());
}

#[test]
fn reading_names_the_file() {
    let error = HsmSecretFile::read(Path::new("/nonexistent/hsm_secret")).unwrap_err();
    assert!(error.to_string().starts_with("read '/nonexistent/hsm_secret': "), "{error}");
}
