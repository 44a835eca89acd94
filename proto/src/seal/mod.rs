//! Sealing: what leaves this machine is authenticated, encrypted and bound to its place.
//!
//! Every object is a *sealed stream*: a plain [`Header`] of 128 bytes that says where the object
//! belongs, then frames. Each frame is sealed with XChaCha20-Poly1305 under the data key that the
//! header names; its associated data is the hash of everything before it (the *chain*), so that no
//! frame can be moved, dropped, repeated or carried to another object. See `docs/format.md`.

mod cipher;
mod frame;
mod header;
mod key;

pub use frame::{
    Chain, FRAME_BYTES_MAX, FRAME_OVERHEAD, FrameError, Opener, PREFIX_LEN, SealedFrame, Sealer,
    Tail, frame_size, tail_after,
};
pub use header::{HEADER_LEN, Header, HeaderError, ObjectKind};
pub(crate) use key::random as random_token;
pub use key::{DataKey, KeyError, KeyId, KeyRing, StoreId};
