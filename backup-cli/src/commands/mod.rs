//! One file a verb.

pub mod check;
pub mod compact;
mod creation;
pub mod demo;
pub mod destination;
pub mod drill;
pub mod export;
pub mod files;
pub mod follow;
pub mod generate;
mod heal;
pub mod import;
pub mod init;
pub mod key;
mod last_writer;
pub mod list;
mod live;
mod naming;
pub mod promote;
pub mod prune;
mod recovery;
pub mod restore;
mod restoring;
mod running_node;
pub mod secret;
pub mod status;
pub mod verify;

use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_node::LightningDir;
use lockstep_proto::record::TimeMs;
use lockstep_proto::slots;
use lockstep_proto::store::Store;

use crate::failure::{Failure, Result};

/// The time. Before 1970 it is 1970.
fn now() -> TimeMs {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as TimeMs)
}

/// Refuses where a lightningd runs in the directory.
fn refuse_running(node: &LightningDir) -> Result<()> {
    match node.running()? {
        None => Ok(()),
        Some(running) => Err(Failure::new(
            format!("lightningd is running in '{}': {running}", node.path().display()),
            "stop it first: 'lightning-cli stop'; nothing was changed.",
        )),
    }
}

/// What would be lost with the machine, in one sentence, where no slot opens the backup.
fn missing_slots(store: &dyn Store) -> Result<Option<String>> {
    Ok(slots::list(store)?.is_empty().then(|| {
        "no key slot: if this machine is lost, nothing opens the backup, and all that it holds is lost; \
         the plugin adds the slot of the node's own secret when lightningd runs, 'backup-cli key add' \
         adds others"
            .into()
    }))
}
