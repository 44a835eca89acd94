//! What `init` and `import` have in common: a new store, and what refers to it in the node's directory.

use std::path::Path;
use std::sync::Arc;

use lockstep_node::wallet::{ConfiguredWallet, config_wallet};
use lockstep_node::{LightningDir, companion_name, companion_names};
use lockstep_proto::capture::Capture;
use lockstep_proto::companion::FileSet;
use lockstep_proto::config::{Files, LockFile, NamedDestination};
use lockstep_proto::destination::Destination;
use lockstep_proto::fence::Claimant;
use lockstep_proto::marker::Marker;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::replica::{Mirror, Mode};
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::slots::{self, Lock};
use lockstep_proto::store::{Options, Store};
use lockstep_proto::verify;
use lockstep_proto::writer::Writer;

use super::naming::name_places;
use super::now;
use crate::PROGRAM;
use crate::args::InitArgs;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::place::destination;

/// A backup to be made.
pub struct Creation<'a> {
    /// The verb.
    pub purpose: &'static str,
    /// Whose it is.
    pub node: &'a LightningDir,
    /// Where it goes.
    pub places: &'a NewPlaces,
    /// What seals it.
    pub keys: &'a KeyRing,
    /// What opens it.
    pub locks: &'a [Lock],
    /// Which files are kept beside the database.
    pub files: &'a Files,
    /// The database that it begins with; `None` for an empty one.
    pub source: Option<&'a Path>,
}

impl Creation<'_> {
    /// Makes it: the slots, the log, then the marker that makes the folder a store, and, after
    /// `before_lock`, the lock file. Gives the snapshot's size in bytes.
    pub fn make(&self, output: &Output, before_lock: impl FnOnce() -> Result<()>) -> Result<u64> {
        let directory = LockFile::new_directory()?;
        let store = self.places.first();
        for lock in self.locks {
            slots::add(&**store, self.keys, lock)?;
        }
        let claimant = Claimant::this_process(PROGRAM, self.purpose, &directory, now())?;
        let mut writer = Writer::create(store.clone(), self.keys.clone(), claimant)?;
        // No snapshot is newer than they are.
        self.keep_files((writer.epoch(), 0), output)?;
        let snapshot_bytes = self.begin(&mut writer, output)?;
        writer.close(now());
        Marker::new(self.keys.store(), now()).create(&**store)?;
        self.bring_up_the_others(output)?;
        let node = self.node;
        let wallet = (node.wallet() != LightningDir::new(node.path()).wallet())
            .then(|| node.wallet().to_owned());
        let mut destinations = self.places.destinations.clone();
        for (destination, store) in destinations.iter_mut().zip(&self.places.stores) {
            destination.fencing =
                Some(store.fencing().map_err(lockstep_proto::error::Error::from)?);
        }
        let mut lock = LockFile::new(self.keys.store(), directory, destinations, wallet);
        lock.quorum = self.places.quorum;
        lock.files = self.files.clone();
        if lock.destinations.len() > 1 {
            name_places(self.purpose, node, &lock, self.keys)?;
        }
        before_lock()?;
        lock.write(node.path())?;
        Ok(snapshot_bytes)
    }

    fn bring_up_the_others(&self, output: &Output) -> Result<()> {
        let source = &**self.places.first();
        for (target, destination) in
            self.places.stores.iter().zip(&self.places.destinations).skip(1)
        {
            if !target.list("").map_err(lockstep_proto::error::Error::from)?.is_empty() {
                return Err(Failure::new(
                    format!("'{}' is the same place as another one", destination.url),
                    "give each copy a place of its own, best on another machine.",
                ));
            }
            let bar = output.bar(&destination.name, verify::stored_bytes(source)?);
            let mirror = Mirror { source, target: &**target, keys: self.keys, before: None };
            let done = mirror.run(&mut |bytes| bar.inc(bytes));
            bar.finish_and_clear();
            done?;
        }
        Ok(())
    }

    fn keep_files(&self, at: (u32, u32), output: &Output) -> Result<()> {
        let Files { include, include_secret, .. } = self.files;
        let names = companion_names(self.node, *include_secret, include, std::iter::empty());
        let (set, unread) = FileSet::read(self.node.path(), &names, self.files, None, now());
        for (name, why) in unread {
            output.note(&format!("warning: companion file '{name}' is not kept: {why}"));
        }
        if *include_secret {
            output.note(
                "warning: hsm_secret is sealed into the backup: whoever opens it, by any slot or by backup.key, has the \
                 node's keys and can take all its funds. (The slot 'node' opens with that secret only: of use is this \
                 together with another slot)",
            );
        }
        if !set.files.is_empty() {
            FileSet::store(&**self.places.first(), at, &set.seal(self.keys, at)?)?;
        }
        Ok(())
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

/// Empty places for a new backup: the first is written to, the others become its copies.
pub struct NewPlaces {
    /// At least one.
    pub destinations: Vec<NamedDestination>,
    /// So many of the `sync` ones must have a record.
    pub quorum: Option<u32>,
    stores: Vec<Arc<dyn Store>>,
}

impl NewPlaces {
    /// What the arguments name, checked; nothing is opened yet.
    pub fn named(args: &InitArgs, directory: &Path) -> Result<Self> {
        let urls = args.url.iter().map(|url| (url, Mode::Sync));
        let urls = urls.chain(args.r#async.iter().map(|url| (url, Mode::Async)));
        let mut destinations: Vec<NamedDestination> = Vec::new();
        for (number, (url, mode)) in urls.enumerate() {
            let name = args.name.get(number).cloned().unwrap_or_else(|| default_name(number));
            let url = destination(url, Some(directory))?;
            if destinations.iter().any(|other| other.url == url) {
                return Err(Failure::new(
                    format!("'{url}' is named twice"),
                    "give each copy a place of its own, best on another machine.",
                ));
            }
            destinations.push(NamedDestination { mode, ..NamedDestination::new(name, url) });
        }
        if let Some(name) = args.name.get(destinations.len()) {
            return Err(Failure::new(
                format!("'{name}' is the name of no URL"),
                "give as many names as URLs, in their order, or fewer.",
            ));
        }
        let mut lock = LockFile::new(StoreId([0; 16]), String::new(), destinations, None);
        lock.quorum = args.quorum;
        // Two of one name, or a quorum that is none.
        lock.destinations(&Options::default())?;
        Ok(Self { destinations: lock.destinations, quorum: lock.quorum, stores: Vec::new() })
    }

    /// Opens them, all of which must be empty.
    pub fn create(mut self) -> Result<Self> {
        for destination in &self.destinations {
            self.stores.push(destination.url.create()?);
        }
        Ok(self)
    }

    /// The store that the backup begins in.
    pub fn first(&self) -> &Arc<dyn Store> {
        &self.stores[0]
    }

    /// Where that is.
    pub fn first_url(&self) -> &Destination {
        &self.destinations[0].url
    }
}

/// Which files are kept, by the arguments.
pub(super) fn files(args: &InitArgs, node: &LightningDir) -> Result<Files> {
    let mut files = Files { include_secret: args.include_secret, ..Files::default() };
    for path in &args.include {
        let path = std::path::absolute(path).map_err(Failure::file("find", path))?;
        path.metadata().map_err(Failure::file("look at", &path))?;
        let name = companion_name(node, &path);
        if path == node.hsm_secret() {
            return Err(Failure::new(
                "hsm_secret is not kept unless one means it",
                "'--include-secret' keeps it: whoever opens the backup then has the node's keys.",
            ));
        }
        files.include.push(name);
    }
    Ok(files)
}

/// The name of the destination that so many others come before, where nobody gives one.
pub(super) fn default_name(before: usize) -> String {
    const NAMES: [&str; 6] = ["primary", "second", "third", "fourth", "fifth", "sixth"];
    NAMES.get(before).map_or_else(|| format!("destination-{}", before + 1), ToString::to_string)
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
