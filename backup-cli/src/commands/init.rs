//! `init`: a new backup of a node, fresh or existing.

use std::path::{Path, PathBuf};

use lockstep_node::wallet;
use lockstep_node::{Access, LightningDir};
use lockstep_proto::config::{LockFile, NamedDestination, write_key_file};
use lockstep_proto::destination::Destination;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::slots::{self, Lock};
use lockstep_proto::store::Fencing;
use serde::Serialize;

use super::check::disk;
use super::creation::{Creation, NewPlaces, files, find_node};
use super::{missing_slots, plugin_line, refuse_running};
use crate::args::InitArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};
use crate::place::lock_of;
use crate::unlock;

#[derive(Serialize)]
struct Report {
    store_id: StoreId,
    lightning_dir: PathBuf,
    url: Destination,
    data_version: Option<u32>,
    snapshot_bytes: u64,
    fencing: Fencing,
    destinations: Vec<NamedDestination>,
    quorum: Option<u32>,
    slots: Vec<String>,
    /// Destinations that are lost together with the database, by name, and what they have in common.
    beside_database: Vec<(String, String)>,
    warning: Option<String>,
}

/// Makes the backup. Everything is checked before anything is written; the lock file comes last.
pub fn run(args: &InitArgs, output: &Output) -> Result<()> {
    let node = find_node(args)?;
    let places = NewPlaces::named(args, node.path())?;
    refuse_running(&node)?;
    refuse_taken(&node)?;
    let locks = locks(args, &node)?;
    let files = files(args, &node)?;
    let existing = wallet::data_version(node.wallet(), Access::Exclusive)?;

    let places = places.create()?;
    let keys = KeyRing::generate(StoreId::generate().map_err(lockstep_proto::error::Error::from)?)
        .map_err(lockstep_proto::error::Error::from)?;
    write_key_file(&node.key_file(), &keys)?;
    let creation = Creation {
        purpose: "init",
        node: &node,
        places: &places,
        keys: &keys,
        locks: &locks,
        files: &files,
        source: existing.is_some().then(|| node.wallet()),
    };
    let made = creation.make(output, || Ok(()));
    if made.is_err() {
        // Nothing refers to the new store yet: what is left of it is of no use to anybody.
        let _ = std::fs::remove_file(node.key_file());
    }
    let snapshot_bytes = made?;
    let store = places.first();
    let lock = lock_of(&node)?;

    let report = Report {
        store_id: keys.store(),
        lightning_dir: node.path().to_owned(),
        url: places.first_url().clone(),
        beside_database: beside_database(&lock, node.wallet()),
        data_version: existing,
        snapshot_bytes,
        fencing: store.fencing().map_err(lockstep_proto::error::Error::from)?,
        destinations: lock.destinations,
        quorum: lock.quorum,
        slots: slots::list(&**store)?.into_iter().map(|slot| slot.name).collect(),
        warning: missing_slots(&**store)?,
    };
    output.result(&report, || text(&report));
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = format!("backup made at {}\n", report.url);
    match report.data_version {
        Some(version) => {
            text += &format!(
                "  holds a snapshot of data_version {version} ({})\n",
                bytes(report.snapshot_bytes)
            )
        }
        None => text += "  the node is fresh: its first start fills the log\n",
    }
    if !report.slots.is_empty() {
        text += &format!("  opens with: {}, or backup.key\n", report.slots.join(", "));
    }
    let several = report.destinations.len() > 1;
    for destination in report.destinations.iter().skip(1) {
        let mode = if destination.mode.is_sync() { "" } else { ", async" };
        text += &format!("  and at {} ('{}'{mode})\n", destination.url, destination.name);
    }
    let advisory = |found: &&NamedDestination| found.fencing == Some(Fencing::Advisory);
    for destination in report.destinations.iter().filter(advisory) {
        let place =
            if several { format!("'{}'", destination.name) } else { "this place".to_owned() };
        text += &format!(
            "  warning: {place} cannot keep a second writer out (fencing: advisory): never let two copies of the \
             node run\n"
        );
    }
    for (name, common) in &report.beside_database {
        text += &format!(
            "  warning: '{name}' and the database are both on {common}: what takes one takes both. Is what belongs there \
             mounted?\n"
        );
    }
    if let Some(warning) = &report.warning {
        text += &format!("  warning: {warning}\n");
    }
    text += &format!("next: add '{}' to lightningd's config and start it", plugin_line());
    text
}

/// A NAS that is not mounted is a folder on the node's own disk.
fn beside_database(lock: &LockFile, database: &Path) -> Vec<(String, String)> {
    let own = disk::Place::of(database);
    let shared = lock.destinations.iter().filter_map(|destination| match &destination.url {
        Destination::Folder(folder) => {
            Some((destination.name.clone(), disk::Place::of(folder).shares_with(&own)?))
        }
        Destination::Bucket(_) => None,
    });
    shared.collect()
}

fn refuse_taken(node: &LightningDir) -> Result<()> {
    if LockFile::read(node.path())?.is_some() {
        return Err(Failure::new(
            format!("'{}' exists: this node has a backup already", node.lock_file().display()),
            "'backup-cli status' shows it; nothing was changed.",
        ));
    }
    if node.key_file().exists() {
        return Err(Failure::new(
            format!(
                "'{}' exists, but no backup.lock: an 'init' was interrupted, or the lock file was lost",
                node.key_file().display()
            ),
            "if this node never had a backup, remove that file and the folder that 'init' was making (it \
             has no lockstep.json); else bring backup.lock back. Nothing was changed.",
        ));
    }
    Ok(())
}

/// What the first slots are locked with, asked for before anything is written.
fn locks(args: &InitArgs, node: &LightningDir) -> Result<Vec<Lock>> {
    let mut locks = Vec::new();
    if node.hsm_secret().exists() {
        locks.push(unlock::node_lock(&node.hsm_secret(), args.secret_passphrase_file.as_ref())?);
    }
    if let Some(path) = &args.passphrase_file {
        locks.push(unlock::passphrase_lock(path)?);
    }
    for recipient in &args.recipient {
        locks.push(Lock::recipient(recipient)?);
    }
    Ok(locks)
}
