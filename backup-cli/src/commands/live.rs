//! What the node's own database holds, for comparing a replayed one with it.

use std::time::{Duration, Instant};

use lockstep_node::wallet::Wallet;
use lockstep_node::{Access, LightningDir, content};
use lockstep_proto::config::LockFile;
use lockstep_proto::error::Error;
use lockstep_proto::log::LogEnd;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::shadow::{Digest, Expected};
use lockstep_proto::store::Store;
use lockstep_proto::version::DataVersion;
use rusqlite::Connection;

use crate::failure::Result;
use crate::output::Output;

/// How often it is looked whether a node has started.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The node's database: where its lock file says, or else where lightningd has it.
pub fn wallet_of(node: &LightningDir) -> Result<LightningDir> {
    let wallet = LockFile::read(node.path())?.and_then(|lock| lock.wallet);
    Ok(match wallet {
        Some(wallet) => node.clone().with_wallet(wallet),
        None => node.clone(),
    })
}

/// What the database of a stopped node holds, and at which place of the log that is; `None` where there is none, or
/// it is at no such place, or a node runs, or starts meanwhile.
pub fn expected(
    node: &LightningDir,
    store: &dyn Store,
    keys: &KeyRing,
    output: &Output,
) -> Result<Option<Expected>> {
    if node.running()?.is_some() {
        return Ok(None);
    }
    let end = LogEnd::read(store, keys)?;
    let node = wallet_of(node)?;
    let Some(mut wallet) = Wallet::open(node.wallet(), Access::Exclusive)? else { return Ok(None) };
    let bar = output.counter("reading the database");
    let (own, mut looked) = (LightningDir::new(node.path()), Instant::now());
    // A node that starts must not wait for this.
    let read = wallet.digest_while(move || {
        if looked.elapsed() < LOOK_AGAIN {
            return true;
        }
        looked = Instant::now();
        matches!(own.running(), Ok(None))
    });
    bar.finish_and_clear();
    let generation = end.position.generation;
    Ok(read?.and_then(|(version, digest)| {
        let (data_version, digest) = (DataVersion(version), Digest(digest));
        end.seq_of(data_version).map(|seq| Expected { generation, seq, data_version, digest })
    }))
}

/// The digest of a replayed database.
pub fn digest_of(db: &Connection) -> std::result::Result<Digest, Error> {
    content::digest(db)
        .map(Digest)
        .map_err(|error| Error::Database { place: "the shadow".into(), what: error.to_string() })
}
