//! Whether what is replayed is what the node has: the database is read before lightningd opens it, and compared when
//! the shadow comes to the same place.

use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_node::{Access, Evidence, LightningDir, WalletError, content, wallet::Wallet};
use lockstep_proto::config::Compaction;
use lockstep_proto::error::{Error, Result};
use lockstep_proto::log::LogEnd;
use lockstep_proto::shadow::{Digest, Expected, Shadow};
use lockstep_proto::version::DataVersion;
use rusqlite::Connection;
use serde::Serialize;

use super::Shared;
use crate::clock::now;

/// A start is held up no longer than this; a database within `compare_max_bytes` takes less.
const READ_FOR: Duration = Duration::from_secs(2);

/// What became of comparing the database of this start with the shadow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// There is nothing to compare: no database, or a generation begins with it.
    #[default]
    None,
    /// The database is larger than `compare_max_bytes`.
    TooLarge,
    /// It could not be read in time.
    TooSlow,
    /// It was read; the shadow is not there yet.
    Pending,
    /// The shadow held the same.
    Equal,
    /// It did not, and did not when it was made anew.
    Differs,
    /// The shadow was beyond that place, or in another history, when it was opened.
    Passed,
}

/// What the database holds before lightningd opens it.
#[derive(Debug, Clone, Copy, Default)]
pub struct AtStart {
    /// Pending, or why there is nothing.
    pub comparison: Comparison,
    /// What the shadow must hold there.
    pub expected: Option<Expected>,
}

impl AtStart {
    /// Reads the database `wallet`, if that takes no time to speak of.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub fn read(
        directory: &Path,
        wallet: &Path,
        end: &LogEnd,
        settings: &Compaction,
    ) -> Result<Self, WalletError> {
        let only = |comparison| Ok(Self { comparison, expected: None });
        let Ok(found) = wallet.metadata() else { return only(Comparison::None) };
        if found.len() > settings.compare_max_bytes {
            return only(Comparison::TooLarge);
        }
        // Beside a running node this is `lightningd --help`, and whoever reads keeps that from committing.
        if runs_already(directory) {
            return only(Comparison::None);
        }
        let Some(mut wallet) = Wallet::open(wallet, Access::Exclusive)? else {
            return only(Comparison::None);
        };
        let began = Instant::now();
        let Some((version, digest)) = wallet.digest_while(move || began.elapsed() < READ_FOR)?
        else {
            return only(Comparison::TooSlow);
        };
        let data_version = DataVersion(version);
        let Some(seq) = end.seq_of(data_version) else { return only(Comparison::None) };
        let generation = end.position.generation;
        let expected = Expected { generation, seq, data_version, digest: Digest(digest) };
        Ok(Self { comparison: Comparison::Pending, expected: Some(expected) })
    }
}

/// True where another lightningd runs than the one that starts this program.
fn runs_already(directory: &Path) -> bool {
    let others = |sign: &Evidence| !matches!(sign, Evidence::Process { .. });
    match LightningDir::new(directory).running() {
        Ok(running) => running.is_some_and(|running| running.evidence().iter().any(others)),
        Err(_) => true,
    }
}

/// A digest of the shadow.
pub fn digest_of(db: &Connection) -> Result<Digest> {
    content::digest(db)
        .map(Digest)
        .map_err(|error| Error::Database { place: "the shadow".into(), what: error.to_string() })
}

/// Replays what was acknowledged since, and compares on the way.
///
/// # Errors
/// [`Error::Differs`]; what the replay fails with.
pub fn catch_up(
    shared: &Shared,
    shadow: &mut Shadow<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let Some(expected) = shared.lock().at_start.expected else {
        return shadow.catch_up(progress).map(drop);
    };
    if shadow.generation() != expected.generation || shadow.seq() > expected.seq {
        if shared.lock().suspected {
            // Another process compacted meanwhile: what was found is not disproved.
            return Err(expected.differs());
        }
        shared.lock().at_start = AtStart { comparison: Comparison::Passed, expected: None };
        return shadow.catch_up(progress).map(drop);
    }
    let done = shadow.catch_up_comparing(&expected, &digest_of, progress);
    let mut known = shared.lock();
    known.suspected |= matches!(done, Err(Error::Differs { .. }));
    let (_, equal) = done?;
    if equal {
        known.proofs.compared = Some(expected.proven(now()));
        known.at_start = AtStart { comparison: Comparison::Equal, expected: None };
        known.suspected = false;
    }
    Ok(())
}
