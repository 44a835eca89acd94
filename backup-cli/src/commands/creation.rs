//! What `init` and `import` have in common: a new store, and what refers to it in the node's directory.

use std::path::Path;
use std::sync::Arc;

use lockstep_node::LightningDir;
use lockstep_node::wallet::{ConfiguredWallet, config_wallet};
use lockstep_proto::capture::Capture;
use lockstep_proto::config::{LockFile, NamedDestination};
use lockstep_proto::destination::Destination;
use lockstep_proto::fence::Claimant;
use lockstep_proto::marker::Marker;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::replica::Mode;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::slots::{self, Lock};
use lockstep_proto::store::Store;
use lockstep_proto::writer::Writer;

use super::now;
use crate::PROGRAM;
use crate::args::InitArgs;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// A backup to be made.
pub struct Creation<'a> {
    /// The verb.
    pub purpose: &'static str,
    /// Whose it is.
    pub node: &'a LightningDir,
    /// How messages name the destination.
    pub name: &'a str,
    /// Where it goes.
    pub url: &'a Destination,
    /// The empty place there.
    pub store: &'a Arc<dyn Store>,
    /// What seals it.
    pub keys: &'a KeyRing,
    /// What opens it.
    pub locks: &'a [Lock],
    /// The database that it begins with; `None` for an empty one.
    pub source: Option<&'a Path>,
}

impl Creation<'_> {
    /// Makes it: the slots, the log, then the marker that makes the folder a store, and, after
    /// `before_lock`, the lock file. Gives the snapshot's size in bytes.
    pub fn make(&self, output: &Output, before_lock: impl FnOnce() -> Result<()>) -> Result<u64> {
        let directory = LockFile::new_directory()?;
        for lock in self.locks {
            slots::add(&**self.store, self.keys, lock)?;
        }
        let claimant = Claimant::this_process(PROGRAM, self.purpose, &directory, now())?;
        let mut writer = Writer::create(self.store.clone(), self.keys.clone(), claimant)?;
        let snapshot_bytes = self.begin(&mut writer, output)?;
        writer.close(now());
        Marker::new(self.keys.store(), now()).create(&**self.store)?;
        before_lock()?;
        let node = self.node;
        let wallet = (node.wallet() != LightningDir::new(node.path()).wallet())
            .then(|| node.wallet().to_owned());
        let destination = NamedDestination {
            name: self.name.into(),
            url: self.url.clone(),
            mode: Mode::Sync,
            fencing: Some(self.store.fencing().map_err(lockstep_proto::error::Error::from)?),
        };
        LockFile::new(self.keys.store(), directory, vec![destination], wallet)
            .write(node.path())?;
        Ok(snapshot_bytes)
    }

    fn begin(&self, writer: &mut Writer, output: &Output) -> Result<u64> {
        let Some(source) = self.source else {
            writer.begin(Start { reason: StartReason::Init, base: None }, None, now())?;
            return Ok(0);
        };
        let mut bytes = 0;
        let bar = output.bar("snapshot", 0);
        let copy = Capture::take(source, self.node.path().join("backup.copy.tmp"), &mut |_| {})?;
        copy.begin(writer, StartReason::Init, now(), &mut |done, all| {
            bytes = all;
            bar.set_length(all);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(bytes)
    }
}

/// The node that the arguments name, with its database where the arguments or lightningd's config say.
pub(super) fn find_node(args: &InitArgs) -> Result<LightningDir> {
    let node = LightningDir::locate(&args.lightning_dir)?;
    let node = match (&args.wallet, config_wallet(&node)?) {
        (Some(path), _) => {
            let path = std::path::absolute(path).map_err(Failure::file("find", path))?;
            node.with_wallet(path)
        }
        (None, Some(ConfiguredWallet::Postgres { at })) => {
            return Err(Failure::new(
                format!("{at}: the wallet is in PostgreSQL, which lightningd reports nothing of"),
                "back it up with PostgreSQL's own replication; nothing was changed.",
            ));
        }
        (None, Some(ConfiguredWallet::Sqlite { path, .. })) => node.with_wallet(path),
        (None, _) => node,
    };
    Ok(node)
}
