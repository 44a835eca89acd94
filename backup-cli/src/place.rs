//! Which log is meant: that of a node's directory, at all its destinations, or that at a URL with a key.

use std::path::Path;
use std::sync::Arc;

use lockstep_node::LightningDir;
use lockstep_proto::config::{LockFile, NamedDestination, destination_options, read_key_file};
use lockstep_proto::destination::Destination;
use lockstep_proto::error::Error;
use lockstep_proto::layout::MARKER;
use lockstep_proto::log::LogEnd;
use lockstep_proto::marker::Marker;
use lockstep_proto::replica::{Mode, OPENING, ask_each};
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::store::{Fencing, Store};

use crate::args::PlaceArgs;
use crate::failure::{Failure, Result};
use crate::unlock;

/// An opened log: of several destinations the one that is read.
pub struct Place {
    /// The node's directory, where it was named by that.
    pub node: Option<LightningDir>,
    /// How messages name it.
    pub name: String,
    /// The store there.
    pub store: Arc<dyn Store>,
    /// What opens it.
    pub keys: KeyRing,
    /// The other destinations of the node.
    pub others: Vec<Site>,
}

impl Place {
    /// Opens what the arguments name: the newest destination that can be read.
    pub fn open(args: &PlaceArgs) -> Result<Self> {
        let mut places = Places::open(args)?;
        let newest = places.newest()?;
        let site = places.sites.remove(newest);
        let Places { node, keys, sites: others, .. } = places;
        Ok(Self { node, name: site.name, store: site.store?, keys, others })
    }
}

/// A log at all its destinations.
pub struct Places {
    /// The node's directory, where it was named by that.
    pub node: Option<LightningDir>,
    /// Its lock file.
    pub lock: Option<LockFile>,
    /// What opens it.
    pub keys: KeyRing,
    /// At least one, in the order of the lock file.
    pub sites: Vec<Site>,
}

/// One destination, which may be away.
pub struct Site {
    /// How messages name it.
    pub name: String,
    /// Where it is.
    pub url: Destination,
    /// Whether an append waits for it.
    pub mode: Mode,
    /// How well that place keeps a second writer out, where the node's lock file says so.
    pub fencing: Option<Fencing>,
    /// The store there, or why it cannot be used.
    pub store: Result<Arc<dyn Store>>,
}

impl Site {
    /// Opens the destinations of a store, all at once. One that hangs is away.
    pub fn open_all(destinations: Vec<NamedDestination>, store_id: StoreId) -> Vec<Self> {
        let stores = ask_each(&destinations, OPENING, move |of| of.url.open_of(store_id));
        let site =
            |(NamedDestination { name, url, mode, fencing }, store): (_, Result<_, Error>)| Self {
                name,
                url,
                mode,
                fencing,
                store: store.map_err(Failure::from),
            };
        destinations.into_iter().zip(stores).map(site).collect()
    }

    /// Opens all destinations that a node's lock file names.
    pub fn all_of_node(directory: &Path) -> Result<(LightningDir, LockFile, Vec<Self>)> {
        let node = LightningDir::locate(directory)?;
        let lock = lock_of(&node)?;
        let options = destination_options(Some(node.path()), std::env::vars_os())?;
        let sites = Self::open_all(lock.destinations(&options)?, lock.store_id);
        Ok((node, lock, sites))
    }

    /// The place at a URL.
    pub fn at(url: &str) -> Result<Self> {
        let url = destination(url, None)?;
        let store = Ok(open_store(&url)?);
        Ok(Self { name: url.to_string(), url, mode: Mode::Sync, fencing: None, store })
    }

    /// The store, if it can be used.
    pub fn store(&self) -> Result<&dyn Store> {
        match &self.store {
            Ok(store) => Ok(&**store),
            Err(failure) => Err(failure.clone()),
        }
    }

    /// Where its log ends.
    pub fn end(&self, keys: &KeyRing) -> Result<LogEnd> {
        Ok(LogEnd::read(self.store()?, keys)?)
    }
}

impl Places {
    /// Opens what the arguments name. A destination of several that is away is no error here.
    pub fn open(args: &PlaceArgs) -> Result<Self> {
        match (&args.lightning_dir, &args.url) {
            (Some(directory), _) => Self::of_node(directory, args),
            (None, Some(url)) => {
                let site = Site::at(url)?;
                let (keys, _) = unlock::open(site.store()?, &args.unlock, None)?;
                Ok(Self { node: None, lock: None, keys, sites: vec![site] })
            }
            (None, None) => Err(nothing_named()),
        }
    }

    fn of_node(directory: &Path, args: &PlaceArgs) -> Result<Self> {
        let (node, lock, sites) = Site::all_of_node(directory)?;
        if let [only] = sites.as_slice() {
            only.store()?;
        }
        let keys = if args.unlock.is_given() {
            let reachable = sites.iter().find(|site| site.store.is_ok()).unwrap_or(&sites[0]);
            unlock::open(reachable.store()?, &args.unlock, None)?.0
        } else if node.key_file().exists() {
            read_key_file(&node.key_file())?
        } else {
            return Err(Failure::new(
                format!("there is no backup.key in '{}'", node.path().display()),
                "'backup-cli key write --lightning-dir DIR' makes it again from the node's secret.",
            ));
        };
        Ok(Self { node: Some(node), lock: Some(lock), keys, sites })
    }

    /// Where the log ends at each.
    pub fn ends(&self) -> Vec<Result<LogEnd>> {
        self.sites.iter().map(|site| site.end(&self.keys)).collect()
    }

    /// The newest of those that can be read, by their ends; the first of several that are equally new.
    ///
    /// Fails as the first does where none can.
    pub fn newest_of(&self, ends: &[Result<LogEnd>]) -> Result<usize> {
        let mut newest: Option<(usize, (u32, u32, u64))> = None;
        for (index, end) in ends.iter().enumerate() {
            let Ok(end) = end else { continue };
            let age = end.age();
            if newest.is_none_or(|(_, newest)| age > newest) {
                newest = Some((index, age));
            }
        }
        match (newest, ends.iter().find_map(|end| end.as_ref().err())) {
            (Some((index, _)), _) => Ok(index),
            (None, Some(failure)) => Err(failure.clone()),
            (None, None) => Err(Failure::new("no destination", "look at backup.lock.")),
        }
    }

    /// As [`newest_of`](Self::newest_of). Where there is one only, nothing of its log is read.
    pub fn newest(&self) -> Result<usize> {
        match self.sites.as_slice() {
            [only] => only.store().map(|_| 0),
            _ => self.newest_of(&self.ends()),
        }
    }

    /// What can be written to, with its name.
    pub fn reachable(&self) -> impl Iterator<Item = (&str, &dyn Store)> {
        self.sites.iter().filter_map(|site| Some((site.name.as_str(), site.store().ok()?)))
    }

    /// Fails where a destination is away: for what must be done at all of them.
    pub fn require_all(&self) -> Result<()> {
        for site in &self.sites {
            site.store().map_err(|failure| failure.doing(&format!("open '{}'", site.name)))?;
        }
        Ok(())
    }
}

/// What is said where the arguments name no backup.
pub fn nothing_named() -> Failure {
    Failure::new("no backup is named", "give --lightning-dir or a URL.")
}

/// The lock file of a node that has a backup.
pub fn lock_of(node: &LightningDir) -> Result<LockFile> {
    LockFile::read(node.path())?.ok_or_else(|| {
        Failure::new(
            format!("there is no backup.lock in '{}'", node.path().display()),
            "this node has no backup yet: 'backup-cli init' makes one.",
        )
    })
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
    let opened = ask_in_time(NamedDestination::new(url.to_string(), url.clone()), |of| {
        let store = of.url.open_any()?;
        Marker::read(&*store)?;
        Ok(store)
    });
    opened.map_err(|failure| match url {
        Destination::Folder(folder) if failure.is_nothing() => match stores_below(folder) {
            found if found.is_empty() => failure,
            found => failure.hinting(format!("look one folder further: {}.", found.join(", "))),
        },
        _ => failure,
    })
}

/// The URLs of stores that lie in a folder: whoever restores may know the disk, but not the folder's name.
fn stores_below(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let stores = entries.map(|entry| entry.path()).filter(|path| path.join(MARKER).is_file());
    let mut urls: Vec<String> = stores.map(|path| Destination::Folder(path).to_string()).collect();
    urls.sort();
    urls
}

/// Asks one place something. One that hangs has not answered.
pub fn ask_in_time<T: Send + 'static>(
    destination: NamedDestination,
    question: impl Fn(&NamedDestination) -> Result<T, Error> + Clone + Send + 'static,
) -> Result<T> {
    let answers = ask_each(&[destination], OPENING, question);
    match answers.into_iter().next() {
        Some(answer) => Ok(answer?),
        None => Err(Failure::new("no destination", "look at backup.lock.")),
    }
}
