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

use std::path::{Path, PathBuf};
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

/// The plugin's name.
const PLUGIN: &str = "cln-lockstep";

/// The plugin as it was installed with this program: beside it, where the Debian package has it, or on PATH.
fn installed_plugin() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok();
    let beside = exe.as_deref().and_then(Path::parent);
    let packaged = beside.and_then(Path::parent).map(|up| up.join("libexec").join(PLUGIN));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.map(Path::to_owned).into_iter().chain(packaged);
    folders
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(PLUGIN))
        .find(|path| path.is_file())
}

/// The line that belongs into lightningd's config.
fn plugin_line() -> String {
    let path = installed_plugin().unwrap_or_else(|| Path::new("/path/to").join(PLUGIN));
    format!("important-plugin={}", path.display())
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
