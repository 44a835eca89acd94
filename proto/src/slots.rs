//! Key slots: the key ring, wrapped for each way in. Each is a standard `age` file that stock `age`
//! opens too; `backup.key` holds the same ring in the clear on the node's own disk.

use std::io::{Read, Write};
use std::iter;
use std::str::FromStr;

use age::secrecy::SecretString;
use age::{Decryptor, Encryptor, Identity, Recipient, scrypt, x25519};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::layout;
use crate::seal::KeyRing;
use crate::store::{Store, StoreErrorKind};

/// What lightningd's `makesecret` is asked for, to derive the node slot's identity.
pub const NODE_SECRET_INFO: &str = "cln-lockstep/v1";

/// What the file name of a slot ends with.
pub(crate) const SUFFIX: &str = ".age";

/// A kind of slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// Opened by the node's own secret: its words or `hsm_secret`.
    Node,
    /// Opened by a passphrase.
    Passphrase,
    /// Opened by the identity of an `age` recipient.
    Recipient,
}

impl SlotKind {
    fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Passphrase => "passphrase",
            Self::Recipient => "recipient",
        }
    }
}

impl std::fmt::Display for SlotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// A slot in a store: its file is `keys/NAME.age`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Kind, then, for all but the node slot, a number or word of its own: `passphrase-1`.
    pub name: String,
    /// What opens it.
    pub kind: SlotKind,
}

impl Slot {
    /// Reads a file name in the folder of the keys.
    fn parse(file: &str) -> Option<Self> {
        let name = file.strip_suffix(SUFFIX)?;
        let word = name.split_once('-').map_or(name, |(word, _)| word);
        let kind = [SlotKind::Node, SlotKind::Passphrase, SlotKind::Recipient]
            .into_iter()
            .find(|kind| kind.word() == word)?;
        Some(Self { name: name.into(), kind })
    }

    /// Name of its object.
    pub fn object(&self) -> String {
        format!("{}/{}{SUFFIX}", layout::KEYS, self.name)
    }
}

/// What opens a slot.
pub enum Unlock {
    /// The 32 bytes that `makesecret` gives for [`NODE_SECRET_INFO`].
    Node(Zeroizing<[u8; 32]>),
    /// A passphrase.
    Passphrase(SecretString),
    /// An `age` identity (`AGE-SECRET-KEY-1…`).
    Identity(x25519::Identity),
}

impl Unlock {
    /// Which slots it can open.
    pub fn kind(&self) -> SlotKind {
        match self {
            Self::Node(_) => SlotKind::Node,
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::Identity(_) => SlotKind::Recipient,
        }
    }

    /// Reads an identity file of `age-keygen`: comments, and one `AGE-SECRET-KEY-1…`.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is none.
    pub fn identity_file(text: &str) -> Result<Self> {
        text.lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'))
            .and_then(|line| x25519::Identity::from_str(line).ok())
            .map(Self::Identity)
            .ok_or_else(|| Error::Refused {
                what: "no age identity in this file".into(),
                hint: "give the file that 'age-keygen' wrote (AGE-SECRET-KEY-1…).".into(),
            })
    }
}

/// What a new slot is locked with.
pub enum Lock {
    /// The 32 bytes that `makesecret` gives for [`NODE_SECRET_INFO`].
    Node(Zeroizing<[u8; 32]>),
    /// A passphrase.
    Passphrase(SecretString),
    /// A recipient (`age1…`).
    Recipient(x25519::Recipient),
}

impl Lock {
    /// Reads a recipient.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is none.
    pub fn recipient(text: &str) -> Result<Self> {
        x25519::Recipient::from_str(text.trim()).map(Self::Recipient).map_err(|what| {
            Error::Refused {
                what: format!("'{text}' is no age recipient: {what}"),
                hint: "a recipient begins with age1 and is printed by 'age-keygen -y'.".into(),
            }
        })
    }

    fn kind(&self) -> SlotKind {
        match self {
            Self::Node(_) => SlotKind::Node,
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::Recipient(_) => SlotKind::Recipient,
        }
    }
}

/// The X25519 identity that 32 secret bytes are, in the spelling of `age`.
fn node_identity(secret: &[u8; 32]) -> Result<x25519::Identity> {
    let failed = || Error::Refused {
        what: "the node's secret gives no age identity".into(),
        hint: "this is a defect of the program; please report it.".into(),
    };
    let hrp = bech32::Hrp::parse("age-secret-key-").map_err(|_| failed())?;
    let text = bech32::encode_upper::<bech32::Bech32>(hrp, secret).map_err(|_| failed())?;
    let text = Zeroizing::new(text);
    x25519::Identity::from_str(&text).map_err(|_| failed())
}

/// The slots in a store, by name.
///
/// # Errors
/// Where the store cannot be listed.
pub fn list(store: &dyn Store) -> Result<Vec<Slot>> {
    let entries = store.list(layout::KEYS)?;
    Ok(entries.iter().filter_map(|entry| Slot::parse(&entry.name)).collect())
}

/// Adds a slot and proves it by opening it again, where what it is locked with can.
///
/// # Errors
/// Where there is a node slot already, or the store fails.
pub fn add(store: &dyn Store, keys: &KeyRing, lock: &Lock) -> Result<Slot> {
    let kind = lock.kind();
    let taken = list(store)?;
    let slot = match kind {
        SlotKind::Node => Slot { name: kind.word().into(), kind },
        _ => {
            let free = (1_u32..).map(|n| format!("{}-{n}", kind.word()));
            let free = free.into_iter().find(|name| taken.iter().all(|slot| slot.name != *name));
            Slot { name: free.unwrap_or_default(), kind }
        }
    };
    let sealed = wrap(keys, lock)?;
    match store.create(&slot.object(), &sealed) {
        Err(error) if matches!(error.kind, StoreErrorKind::Exists) => {
            return Err(Error::Refused {
                what: format!("'{}' has a slot '{}' already", store.label(), slot.name),
                hint: format!("'backup-cli key remove {}' removes it.", slot.name),
            });
        }
        created => created?,
    }
    let stored = store.read(&slot.object())?;
    let proved = match lock {
        Lock::Node(secret) => open_with(&stored, &node_identity(secret)?)
            .is_some_and(|found| found.store() == keys.store()),
        Lock::Passphrase(passphrase) => {
            open_with(&stored, &scrypt::Identity::new(passphrase.clone()))
                .is_some_and(|found| found.store() == keys.store())
        }
        // Only the owner of the identity can open it; that it is stored as made is what can be proved.
        Lock::Recipient(_) => stored == sealed,
    };
    if proved {
        Ok(slot)
    } else {
        Err(Error::damaged(format!("'{}'", slot.object()), "slot does not open"))
    }
}

/// True where the bytes of a slot can be all of it: an `age` header, and as many bytes behind it as this key ring takes
/// sealed. Whether it opens only its owner can tell.
///
/// # Errors
/// [`Error::Key`] where the ring holds no key.
pub fn looks_whole(sealed: &[u8], keys: &KeyRing) -> Result<bool> {
    const TAG: usize = 16;
    let mut behind_header = sealed;
    let has_header = Decryptor::new(&mut behind_header).is_ok();
    Ok(has_header && behind_header.len() == keys.encode()?.len() + TAG)
}

/// Removes a slot.
///
/// # Errors
/// Where there is no such slot, or the store fails.
pub fn remove(store: &dyn Store, name: &str) -> Result<Slot> {
    let slots = list(store)?;
    let Some(slot) = slots.iter().find(|slot| slot.name == name) else {
        let names: Vec<_> = slots.iter().map(|slot| slot.name.as_str()).collect();
        return Err(Error::Refused {
            what: format!("'{}' has no slot '{name}'", store.label()),
            hint: format!(
                "its slots: {}.",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            ),
        });
    };
    store.remove(&slot.object())?;
    Ok(slot.clone())
}

/// Opens the store's key ring with whichever slot `unlock` fits.
///
/// # Errors
/// [`Error::WrongKey`] where it fits none, which says which slots there are.
pub fn open(store: &dyn Store, unlock: &Unlock) -> Result<(KeyRing, Slot)> {
    let slots = list(store)?;
    let identity: Box<dyn Identity> = match unlock {
        Unlock::Node(secret) => Box::new(node_identity(secret)?),
        Unlock::Passphrase(passphrase) => Box::new(scrypt::Identity::new(passphrase.clone())),
        Unlock::Identity(identity) => Box::new(identity.clone()),
    };
    for slot in slots.iter().filter(|slot| slot.kind == unlock.kind()) {
        if let Some(keys) = open_with(&store.read(&slot.object())?, &*identity) {
            return Ok((keys, slot.clone()));
        }
    }
    let kinds: Vec<_> = slots.iter().map(|slot| slot.name.as_str()).collect();
    let there = if kinds.is_empty() {
        "it has no slot at all".into()
    } else {
        format!("its slots: {}", kinds.join(", "))
    };
    Err(Error::WrongKey {
        store: store.label().into(),
        what: format!("no {} slot opens with what was given ({there})", unlock.kind()),
    })
}

fn wrap(keys: &KeyRing, lock: &Lock) -> Result<Vec<u8>> {
    let plain = keys.encode()?;
    let recipient: Box<dyn Recipient> = match lock {
        Lock::Node(secret) => Box::new(node_identity(secret)?.to_public()),
        Lock::Passphrase(passphrase) => Box::new(scrypt::Recipient::new(passphrase.clone())),
        Lock::Recipient(recipient) => Box::new(recipient.clone()),
    };
    let failed = |what: String| Error::Refused {
        what: format!("key slot cannot be made: {what}"),
        hint: "this is a defect of the program; please report it.".into(),
    };
    let encryptor = Encryptor::with_recipients(iter::once(&*recipient))
        .map_err(|error| failed(error.to_string()))?;
    let mut sealed = Vec::new();
    let mut writer =
        encryptor.wrap_output(&mut sealed).map_err(|error| failed(error.to_string()))?;
    writer
        .write_all(&plain)
        .and_then(|()| writer.finish())
        .map_err(|error| failed(error.to_string()))?;
    Ok(sealed)
}

fn open_with(sealed: &[u8], identity: &dyn Identity) -> Option<KeyRing> {
    let decryptor = Decryptor::new(sealed).ok()?;
    let mut plain = Zeroizing::new(Vec::new());
    decryptor.decrypt(iter::once(identity)).ok()?.read_to_end(&mut plain).ok()?;
    KeyRing::decode(&plain).ok()
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;
    use crate::seal::StoreId;
    use crate::store::FileStore;

    /// What `age-keygen` writes, and others add.
    #[test]
    fn an_identity_stands_between_comments() {
        let identity = x25519::Identity::generate();
        let line = identity.to_string();
        let text = format!(
            "# created: today\n# public key: {}\n\n {}\n# the end\n",
            identity.to_public(),
            line.expose_secret()
        );
        match Unlock::identity_file(&text).unwrap() {
            Unlock::Identity(found) => {
                assert_eq!(found.to_public().to_string(), identity.to_public().to_string());
            }
            _ => panic!("no identity"),
        }
        for text in ["", "# nothing\n\n", "not one\n"] {
            assert!(matches!(Unlock::identity_file(text), Err(Error::Refused { .. })), "{text}");
        }
    }

    #[test]
    fn a_second_node_slot_is_refused_and_a_failure_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::create_root(&folder.path().join("store")).unwrap();
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let lock = Lock::Node(Zeroizing::new([7; 32]));
        add(&store, &keys, &lock).unwrap();
        let again = add(&store, &keys, &lock);
        assert!(matches!(again, Err(Error::Refused { .. })), "{again:?}");
        std::fs::remove_dir_all(folder.path().join("store/keys")).unwrap();
        std::fs::write(folder.path().join("store/keys"), b"in the way").unwrap();
        let failed = add(&store, &keys, &lock);
        assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
    }
}
