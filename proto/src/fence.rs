//! Fencing: one writer at a time.
//!
//! A writer claims the next epoch by creating its claim, which only one can do, and only then reads
//! where the log ends. An older writer looks for a newer claim *after* each record is durable and *before* it
//! acknowledges: either the claim came first and it is fenced, or the record came first and the new
//! writer reads it. At most the one record it was writing lies behind what the new writer bound to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hex;
use crate::layout;
use crate::process::ProcessStamp;
use crate::record::TimeMs;
use crate::seal::{KeyRing, ObjectKind};
use crate::sealed;
use crate::store::{Store, StoreError, StoreErrorKind};

/// Who claims an epoch. Sealed in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimant {
    /// Tells this claim from any other, 32 hexadecimal digits.
    pub token: String,
    /// When.
    pub time: TimeMs,
    /// Program and version.
    pub writer: String,
    /// Machine name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// What for: `node`, `init`, `restore` …
    pub purpose: String,
    /// The directory that the log belongs to from then on, as its lock file names it.
    pub directory: String,
    /// Tells the process from a later one of the same number, where the system has words for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessStamp>,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writer, purpose, pid, host, .. } = self;
        write!(f, "{writer} for '{purpose}', process {pid} on {host}")
    }
}

impl Claimant {
    /// True where the process is known to have ended: it ran on this machine. Of another machine's nobody can say.
    pub fn is_gone(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.is_gone(self.pid))
    }

    /// The same, for another claim: with a token and a time of its own.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn renewed(&self, time: TimeMs) -> Result<Self> {
        let token: [u8; 16] = crate::seal::random_token()?;
        Ok(Self { token: hex::encode(&token), time, ..self.clone() })
    }

    /// This process, with a fresh token.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn this_process(
        writer: &str,
        purpose: &str,
        directory: &str,
        time: TimeMs,
    ) -> Result<Self> {
        let token: [u8; 16] = crate::seal::random_token()?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self {
            token: hex::encode(&token),
            time,
            writer: writer.into(),
            host,
            pid: std::process::id(),
            purpose: purpose.into(),
            directory: directory.into(),
            process: ProcessStamp::of_this_process(),
        })
    }
}

/// The newest epoch that was claimed; 0 where none was.
///
/// # Errors
/// Where the store cannot be listed.
pub fn newest(store: &dyn Store) -> Result<u32, StoreError> {
    let claims = store.list(layout::EPOCHS)?;
    Ok(claims.iter().filter_map(|entry| layout::parse_claim(&entry.name)).max().unwrap_or(0))
}

/// Claims the next epoch for `claimant` and returns it.
///
/// # Errors
/// Where the store fails, or where others claim faster than this process for many tries.
pub fn claim(store: &dyn Store, keys: &KeyRing, claimant: &Claimant) -> Result<u32> {
    const TRIES: u32 = 100;
    let mut epoch = newest(store)?;
    for _ in 0..TRIES {
        epoch = epoch.checked_add(1).ok_or_else(|| Error::Refused {
            what: format!("'{}': no epoch is left", store.label()),
            hint: "the folder 'epochs' was tampered with; restore it from a copy.".into(),
        })?;
        let bytes = sealed::seal(keys, ObjectKind::Claim, (epoch, 0), claimant)?;
        match store.create(&layout::claim(epoch), &bytes) {
            // Claims are never removed: each is what fences the one writer before it, however late.
            Ok(()) => return Ok(epoch),
            Err(error) if matches!(error.kind, StoreErrorKind::Exists) => {
                // The answer to our own create may have been lost on the way.
                if read(store, keys, epoch).is_ok_and(|found| found.token == claimant.token) {
                    return Ok(epoch);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Refused {
        what: format!("'{}': {TRIES} epochs were claimed by others meanwhile", store.label()),
        hint: "find out which other machine is using this backup.".into(),
    })
}

/// Fails where a newer epoch than `ours` has been claimed: nothing may be acknowledged any more.
///
/// # Errors
/// [`Error::Fenced`], or where the store cannot be asked.
pub fn check(store: &dyn Store, keys: &KeyRing, ours: u32) -> Result<()> {
    let newer = ours.saturating_add(1);
    if !store.exists(&layout::claim(newer))? {
        return Ok(());
    }
    let who =
        read(store, keys, newer).map_or_else(|_| "an unknown writer".into(), |by| by.to_string());
    Err(Error::Fenced { store: store.label().into(), ours, newer, who })
}

/// Reads who claimed `epoch`.
///
/// # Errors
/// Where there is no such claim, or it cannot be opened.
pub fn read(store: &dyn Store, keys: &KeyRing, epoch: u32) -> Result<Claimant> {
    let name = layout::claim(epoch);
    sealed::open(keys, ObjectKind::Claim, (epoch, 0), &name, &store.read(&name)?)
}
