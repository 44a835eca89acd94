//! Has the log itself say at which places it is, for whoever restores from one of them.

use std::sync::Arc;
use std::time::Duration;

use lockstep_node::LightningDir;
use lockstep_proto::config::{LockFile, destination_options};
use lockstep_proto::fence::Claimant;
use lockstep_proto::replica::Replicas;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::Store;
use lockstep_proto::writer::Writer;

use super::now;
use crate::PROGRAM;
use crate::failure::Result;

/// How long places that nobody waits for may take.
const SETTLE: Duration = Duration::from_secs(10);

/// Writes a segment that names what `lock` does; the node must not run. Without it the plugin's next session does.
pub(super) fn name_places(
    purpose: &str,
    node: &LightningDir,
    lock: &LockFile,
    keys: &KeyRing,
) -> Result<()> {
    let options = destination_options(Some(node.path()), std::env::vars_os())?;
    let destinations = lock.destinations(&options)?;
    let claimant = Claimant::this_process(PROGRAM, purpose, &lock.directory, now())?;
    let open = |store: Arc<dyn Store>| Writer::open(store, keys.clone(), claimant, now());
    if let [only] = destinations.as_slice() {
        open(only.url.open()?)?.close(now());
        return Ok(());
    }
    let (replicas, _) = Replicas::open(lock, destinations, keys, Arc::new(|_| {}))?;
    let replicas = Arc::new(replicas);
    open(replicas.clone())?.close(now());
    replicas.settle(SETTLE);
    Ok(())
}
