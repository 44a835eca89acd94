//! What opens the node slot, by another way than the program's.

use lockstep_proto::slots::NODE_SECRET_INFO;
use sha2::{Digest, Sha256};

/// `makesecret` of DESIGN fact 11, for 32 raw bytes.
pub fn lockstep_node_secret(secret: &[u8]) -> [u8; 32] {
    let derived = hkdf(secret, b"derived secrets");
    hkdf(&derived, NODE_SECRET_INFO.as_bytes())
}

/// HKDF-SHA256 without salt, first block.
fn hkdf(ikm: &[u8], info: &[u8]) -> [u8; 32] {
    let prk = hmac(&[0; 32], &[ikm]);
    hmac(&prk, &[info, &[1]])
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        key.iter().zip(&mut block).for_each(|(key, byte)| *byte ^= key);
        block
    };
    let mut inner = Sha256::new().chain_update(pad(0x36));
    for part in parts {
        inner = inner.chain_update(part);
    }
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner.finalize()).finalize().into()
}
