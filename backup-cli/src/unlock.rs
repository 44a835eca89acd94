//! Every way to the key ring: the node's secret, `backup.key`, a passphrase, an age identity.

use std::io::{BufRead, IsTerminal, stdin};
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use lockstep_node::{HsmSecretFile, LightningDir, NodeSecret, encode_words};
use lockstep_proto::config::read_key_file;
use lockstep_proto::error::Error;
use lockstep_proto::marker::Marker;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::slots::{self, Lock, NODE_SECRET_INFO, SlotKind, Unlock};
use lockstep_proto::store::Store;
use zeroize::Zeroizing;

use crate::args::UnlockArgs;
use crate::failure::{Failure, Result};

impl UnlockArgs {
    /// True where any way was chosen.
    pub fn is_given(&self) -> bool {
        self.hsm_secret.is_some()
            || self.words
            || self.key_file.is_some()
            || self.passphrase_file.is_some()
            || self.identity.is_some()
    }
}

/// How a backup was opened.
pub struct Opened {
    /// In words, for the report.
    pub by: String,
    /// The `hsm_secret` that opened it, or that the words are.
    pub hsm_secret: Option<Zeroizing<Vec<u8>>>,
}

/// What opens a backup, read and asked for once: it may be tried on several stores.
pub enum Means {
    /// A `backup.key`.
    KeyFile(PathBuf),
    /// A slot of the store.
    Slot(Unlock),
    /// The node's secret, and the bytes of its file.
    HsmSecret {
        /// The secret.
        secret: NodeSecret,
        /// The file.
        file: Zeroizing<Vec<u8>>,
    },
    /// The node's words.
    Words {
        /// The words as they were typed.
        words: Zeroizing<String>,
        /// Their passphrase, where they have one.
        passphrase: Option<Zeroizing<String>>,
    },
}

impl Means {
    /// The way that the arguments choose; asks for what is to be typed. `None` where they choose none.
    pub fn chosen(args: &UnlockArgs) -> Result<Option<Self>> {
        if let Some(path) = &args.key_file {
            return Ok(Some(Self::KeyFile(path.clone())));
        }
        if let Some(path) = &args.hsm_secret {
            return Self::hsm_secret(path, args).map(Some);
        }
        if args.words {
            return Self::words(args).map(Some);
        }
        if let Some(path) = &args.passphrase_file {
            let passphrase = SecretString::from(first_line(path)?.to_string());
            return Ok(Some(Self::Slot(Unlock::Passphrase(passphrase))));
        }
        if let Some(path) = &args.identity {
            let text =
                Zeroizing::new(std::fs::read_to_string(path).map_err(Failure::file("read", path))?);
            return Ok(Some(Self::Slot(Unlock::identity_file(&text)?)));
        }
        Ok(None)
    }

    /// What is in the node's directory: `backup.key`, or else `hsm_secret`.
    pub fn in_directory(node: &LightningDir, args: &UnlockArgs) -> Result<Option<Self>> {
        let (key_file, hsm_secret) = (node.key_file(), node.hsm_secret());
        if key_file.exists() {
            return Ok(Some(Self::KeyFile(key_file)));
        }
        if hsm_secret.exists() {
            return Self::hsm_secret(&hsm_secret, args).map(Some);
        }
        Ok(None)
    }

    /// The same where nobody is to be asked: a secret that needs a passphrase is passed over, unless it is in a file.
    pub fn at_hand(node: &LightningDir, args: &UnlockArgs) -> Option<Self> {
        if node.key_file().exists() {
            return Some(Self::KeyFile(node.key_file()));
        }
        let secret = node.hsm_secret();
        let locked = HsmSecretFile::read(&secret).ok()?.needs_passphrase();
        let asks = locked && args.secret_passphrase_file.is_none();
        if asks { None } else { Self::hsm_secret(&secret, args).ok() }
    }

    /// An `hsm_secret`, whose passphrase is asked for where it has one.
    pub fn hsm_secret(path: &Path, args: &UnlockArgs) -> Result<Self> {
        let secret = node_secret(path, args.secret_passphrase_file.as_deref())?;
        let file = std::fs::read(path).map_err(Failure::file("read", path))?;
        Ok(Self::HsmSecret { secret, file: Zeroizing::new(file) })
    }

    fn words(args: &UnlockArgs) -> Result<Self> {
        let words = ask("words of the node: ")?;
        let passphrase = match &args.secret_passphrase_file {
            Some(path) => Some(first_line(path)?),
            None if stdin().is_terminal() => {
                Some(ask("passphrase of the words (enter for none): ")?)
                    .filter(|text| !text.is_empty())
            }
            None => None,
        };
        Ok(Self::Words { words, passphrase })
    }

    /// Opens a store's key ring.
    pub fn open(&self, store: &dyn Store) -> Result<(KeyRing, Opened)> {
        match self {
            Self::KeyFile(path) => open_key_file(store, path),
            Self::Slot(unlock) => open_slot(store, unlock),
            Self::HsmSecret { secret, file } => {
                let (keys, opened) = open_slot(store, &node_unlock(secret))?;
                Ok((keys, Opened { hsm_secret: Some(file.clone()), ..opened }))
            }
            Self::Words { words, passphrase } => open_words(store, words, passphrase.as_ref()),
        }
    }

    /// What it is, for a person.
    pub fn describe(&self) -> String {
        match self {
            Self::KeyFile(path) => format!("the key file '{}'", path.display()),
            Self::Slot(Unlock::Passphrase(_)) => "the passphrase".into(),
            Self::Slot(_) => "the age identity".into(),
            Self::HsmSecret { .. } => "the node's hsm_secret".into(),
            Self::Words { .. } => "the words you typed".into(),
        }
    }
}

/// Opens the store's key ring by the way that was chosen, or else with what is in `node`'s directory.
pub fn open(
    store: &dyn Store,
    args: &UnlockArgs,
    node: Option<&LightningDir>,
) -> Result<(KeyRing, Opened)> {
    if let Some(means) = Means::chosen(args)? {
        return means.open(store);
    }
    let found = node.map(|node| Means::in_directory(node, args)).transpose()?.flatten();
    let (Some(node), Some(means)) = (node, found) else { return Err(no_means(store)?) };
    means.open(store).map_err(|failure| match failure.is_wrong_key() {
        false => failure,
        // Nothing was given: what was tried lies there, perhaps made by a lightningd that was started too early.
        true => failure.hinting(format!(
            "what was tried is {} in '{}'; give '--words', '--hsm-secret FILE' or another way in, and move that aside \
             where it is not this node's.",
            means.describe(),
            node.path().display()
        )),
    })
}

/// What is said where nothing is there that could open a store.
pub fn no_means(store: &dyn Store) -> Result<Failure> {
    let slots: Vec<_> = slots::list(store)?.into_iter().map(|slot| slot.name).collect();
    let there = if slots.is_empty() { "none".into() } else { slots.join(", ") };
    Ok(Failure::wrong_key(
        format!("'{}' needs a key (its slots: {there})", store.label()),
        "give --words, --hsm-secret FILE, --key-file FILE, --passphrase-file FILE or --identity FILE.",
    ))
}

fn open_slot(store: &dyn Store, unlock: &Unlock) -> Result<(KeyRing, Opened)> {
    let (keys, slot) = slots::open(store, unlock)?;
    Marker::read(store)?.require(keys.store())?;
    Ok((keys, Opened { by: format!("slot '{}'", slot.name), hsm_secret: None }))
}

fn open_key_file(store: &dyn Store, path: &Path) -> Result<(KeyRing, Opened)> {
    let keys = read_key_file(path)?;
    let marker = Marker::read(store)?;
    if marker.store_id != keys.store() {
        return Err(Failure::wrong_key(
            format!(
                "'{}' is the key of store {}, not of '{}' ({})",
                path.display(),
                keys.store(),
                store.label(),
                marker.store_id
            ),
            "use the backup.key of the node that made this backup.",
        ));
    }
    Ok((keys, Opened { by: format!("'{}'", path.display()), hsm_secret: None }))
}

fn node_unlock(secret: &NodeSecret) -> Unlock {
    Unlock::Node(secret.make_secret(NODE_SECRET_INFO))
}

/// Refuses an `hsm_secret` in the directory that is another node's: lightningd makes one where it is started before its
/// node is there. Of one with a passphrase, and of a backup without the node's slot, nobody can tell.
pub fn refuse_other_secret(store: &dyn Store, node: &LightningDir, what: &str) -> Result<()> {
    let path = node.hsm_secret();
    let secret = HsmSecretFile::read(&path).ok().and_then(|file| file.unlock(None).ok());
    let has_slot = slots::list(store)?.iter().any(|slot| slot.kind == SlotKind::Node);
    let Some(secret) = secret.filter(|_| has_slot) else { return Ok(()) };
    match slots::open(store, &node_unlock(&secret)) {
        Err(Error::WrongKey { .. }) => Err(Failure::wrong_key(
            format!(
                "failed to {what}: '{}' is another node's: it does not open this backup",
                path.display()
            ),
            "move it aside ('--words' or '--hsm-secret FILE' then writes the right one); lightningd makes such a file where it \
             is started too early. Nothing was changed.",
        )),
        opened => opened.map(|_| ()).map_err(Failure::from),
    }
}

/// Before v25.12 hsmtool made an `hsm_secret` of the first half of the words' seed: whichever form opens
/// the backup is the one that the node had.
fn open_words(
    store: &dyn Store,
    words: &str,
    passphrase: Option<&Zeroizing<String>>,
) -> Result<(KeyRing, Opened)> {
    let passphrase = passphrase.map(|text| text.as_str());
    let whole = NodeSecret::from_words(words, passphrase.unwrap_or(""))?;
    let tried = open_slot(store, &node_unlock(&whole));
    let (opened, hsm_secret) = match (tried, whole.first_half()) {
        (Ok(opened), _) => (opened, encode_words(words, passphrase)?),
        (Err(error), None) => return Err(error),
        (Err(error), Some(half)) => {
            let opened = open_slot(store, &node_unlock(&half));
            (opened.map_err(|_| error)?, Zeroizing::new(half.as_bytes().to_vec()))
        }
    };
    let (keys, opened) = opened;
    Ok((keys, Opened { hsm_secret: Some(hsm_secret), ..opened }))
}

/// The secret in an `hsm_secret` file, asking for its passphrase where it has one.
pub fn node_secret(path: &Path, passphrase_file: Option<&Path>) -> Result<NodeSecret> {
    let file = HsmSecretFile::read(path)?;
    if !file.needs_passphrase() {
        return Ok(file.unlock(None)?);
    }
    let passphrase = match passphrase_file {
        Some(file) => first_line(file)?,
        None => ask(&format!("passphrase of {} ({}): ", path.display(), file.kind()))?,
    };
    Ok(file.unlock(Some(&passphrase))?)
}

/// What a new slot is locked with, from the arguments of `key add` and `init`.
pub fn passphrase_lock(path: &Path) -> Result<Lock> {
    let passphrase = first_line(path)?;
    if passphrase.is_empty() {
        return Err(Failure::new(
            format!("the first line of '{}' is empty", path.display()),
            "an empty passphrase protects nothing; write one there.",
        ));
    }
    Ok(Lock::Passphrase(SecretString::from(passphrase.to_string())))
}

/// The lock that a node's secret is.
pub fn node_lock(path: &Path, passphrase_file: Option<&PathBuf>) -> Result<Lock> {
    let secret = node_secret(path, passphrase_file.map(PathBuf::as_path))?;
    Ok(Lock::Node(secret.make_secret(NODE_SECRET_INFO)))
}

/// The first line of a file.
pub fn first_line(path: &Path) -> Result<Zeroizing<String>> {
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(Failure::file("read", path))?);
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

/// Asks on the terminal without echo; where there is none, takes the next line of stdin.
pub fn ask(prompt: &str) -> Result<Zeroizing<String>> {
    let failed = |error: std::io::Error| {
        Failure::new(format!("nothing was typed: {error}"), "type it, or give it by a file.")
    };
    if stdin().is_terminal() {
        return rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(failed);
    }
    let mut line = Zeroizing::new(String::new());
    stdin().lock().read_line(&mut line).map_err(failed)?;
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}
