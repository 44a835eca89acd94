//! Which log is meant: that of a node's directory, or that at a URL with a key.

use std::path::Path;
use std::sync::Arc;

use lockstep_node::LightningDir;
use lockstep_proto::config::{LockFile, NamedDestination, destination_options, read_key_file};
use lockstep_proto::destination::Destination;
use lockstep_proto::marker::Marker;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::{Fencing, Store};

use crate::args::PlaceArgs;
use crate::failure::{Failure, Result};
use crate::unlock;

/// An opened log.
pub struct Place {
    /// The node's directory, where it was named by that.
    pub node: Option<LightningDir>,
    /// How messages name it.
    pub name: String,
    /// Where it is.
    pub url: Destination,
    /// How well that place keeps a second writer out, where the node's lock file says so.
    pub fencing: Option<Fencing>,
    /// The store there.
    pub store: Arc<dyn Store>,
    /// What opens it.
    pub keys: KeyRing,
}

impl Place {
    /// Opens what the arguments name.
    pub fn open(args: &PlaceArgs) -> Result<Self> {
        match (&args.lightning_dir, &args.url) {
            (Some(directory), _) => Self::of_node(directory, args),
            (None, Some(url)) => {
                let url = destination(url, None)?;
                let store = open_store(&url)?;
                let (keys, _) = unlock::open(&*store, &args.unlock, None)?;
                Ok(Self { node: None, name: url.to_string(), url, fencing: None, store, keys })
            }
            (None, None) => {
                Err(Failure::new("no backup is named", "give --lightning-dir or a URL."))
            }
        }
    }

    fn of_node(directory: &Path, args: &PlaceArgs) -> Result<Self> {
        let node = LightningDir::locate(directory)?;
        let lock = LockFile::read(node.path())?.ok_or_else(|| {
            Failure::new(
                format!("there is no backup.lock in '{}'", node.path().display()),
                "this node has no backup yet: 'backup-cli init' makes one.",
            )
        })?;
        let options = destination_options(Some(node.path()), std::env::vars_os())?;
        let destination = lock.destinations(&options)?.swap_remove(0);
        let store = destination.url.open()?;
        Marker::read(&*store)?.require(lock.store_id)?;
        let keys = if args.unlock.is_given() {
            unlock::open(&*store, &args.unlock, None)?.0
        } else if node.key_file().exists() {
            read_key_file(&node.key_file())?
        } else {
            return Err(Failure::new(
                format!("there is no backup.key in '{}'", node.path().display()),
                "'backup-cli key write --lightning-dir DIR' makes it again from the node's secret.",
            ));
        };
        let NamedDestination { name, url, fencing, .. } = destination;
        Ok(Self { node: Some(node), name, url, fencing, store, keys })
    }
}

/// The destination that a URL names, with the credentials of the environment and, if there are any, those in the
/// node's directory.
pub fn destination(url: &str, directory: Option<&Path>) -> Result<Destination> {
    with_options(url.parse()?, directory)
}

fn with_options(url: Destination, directory: Option<&Path>) -> Result<Destination> {
    Ok(url.with_options(&destination_options(directory, std::env::vars_os())?))
}

/// Opens the store at a URL. No folder, or one without a store, is nothing there.
pub fn open_store(url: &Destination) -> Result<Arc<dyn Store>> {
    let store = url.open_any()?;
    Marker::read(&*store)?;
    Ok(store)
}
