//! XChaCha20-Poly1305, for the frames of one object.
//!
//! The first 16 bytes of the nonce are the same for all of them: so the key that HChaCha20 makes of those and the data
//! key (draft-irtf-cfrg-xchacha-03, 2.3) is made once, and each frame is sealed with it and ChaCha20-Poly1305 (RFC 8439).
//! That is ring's, in assembly: a small frame takes it a fifth of the time that the crate `chacha20poly1305` needs.

use chacha20::{R20, hchacha};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::key::DataKey;

/// Bytes that sealing adds.
pub const TAG_LEN: usize = 16;

/// The cipher of one object. (`None` never: ring takes each key of 32 bytes.)
pub struct ObjectCipher(Option<LessSafeKey>);

impl ObjectCipher {
    /// For the object whose nonces begin with `nonce_prefix`.
    pub fn new(key: &DataKey, nonce_prefix: [u8; 16]) -> Self {
        let key = Zeroizing::new(hchacha::<R20>(key.bytes().into(), &nonce_prefix.into()).0);
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*key);
        Self(key.ok().map(LessSafeKey::new))
    }

    /// Seals `bytes` in place as the frame of that number, and returns the tag. `None` where they are more than the
    /// cipher takes, 256 GiB. One number must never seal twice.
    pub fn seal(&self, number: u64, associated: &[u8], bytes: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        let cipher = self.0.as_ref()?;
        let tag = cipher.seal_in_place_separate_tag(nonce(number), Aad::from(associated), bytes);
        tag.ok()?.as_ref().try_into().ok()
    }

    /// Opens `sealed`, whose last bytes are the tag, in place: false where it is not what was sealed.
    #[must_use]
    pub fn open(&self, number: u64, associated: &[u8], sealed: &mut [u8]) -> bool {
        let opened = |cipher: &LessSafeKey| {
            cipher.open_in_place(nonce(number), Aad::from(associated), sealed).is_ok()
        };
        self.0.as_ref().is_some_and(opened)
    }
}

/// What is left of the 24 bytes behind the prefix, as XChaCha20 takes it: behind four zeros.
fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
