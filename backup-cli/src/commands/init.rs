//! `init`: a new backup of a node, fresh or existing.

use std::path::PathBuf;
use std::sync::Arc;

use lockstep_node::wallet::{self, ConfiguredWallet, config_wallet};
use lockstep_node::{Access, LightningDir};
use lockstep_proto::capture::Capture;
use lockstep_proto::config::{LockFile, NamedDestination, write_key_file};
use lockstep_proto::destination::Destination;
use lockstep_proto::fence::Claimant;
use lockstep_proto::marker::Marker;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::slots::{self, Lock};
use lockstep_proto::store::Store;
use lockstep_proto::writer::Writer;
use serde::Serialize;

use super::{missing_slots, now, refuse_running};
use crate::PROGRAM;
use crate::args::InitArgs;
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};
use crate::unlock;

#[derive(Serialize)]
struct Report {
    store_id: StoreId,
    lightning_dir: PathBuf,
    url: Destination,
    data_version: Option<u32>,
    snapshot_bytes: u64,
    slots: Vec<String>,
    warning: Option<String>,
}

/// Makes the backup. Everything is checked before anything is written; the lock file comes last.
pub fn run(args: &InitArgs, output: &Output) -> Result<()> {
    let url: Destination = args.url.parse()?;
    let node = find_node(args)?;
    refuse_running(&node)?;
    refuse_taken(&node)?;
    let locks = locks(args, &node)?;
    let existing = wallet::data_version(node.wallet(), Access::Exclusive)?;

    let store = url.create()?;
    let keys = KeyRing::generate(StoreId::generate().map_err(lockstep_proto::error::Error::from)?)
        .map_err(lockstep_proto::error::Error::from)?;
    write_key_file(&node.key_file(), &keys)?;
    let made = make(args, &node, &url, store.clone(), &keys, existing.is_some(), &locks, output);
    if made.is_err() {
        // Nothing refers to the new store yet: what is left of it is of no use to anybody.
        let _ = std::fs::remove_file(node.key_file());
    }
    let snapshot_bytes = made?;

    let report = Report {
        store_id: keys.store(),
        lightning_dir: node.path().to_owned(),
        url,
        data_version: existing,
        snapshot_bytes,
        slots: slots::list(&*store)?.into_iter().map(|slot| slot.name).collect(),
        warning: missing_slots(&*store)?,
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
    if let Some(warning) = &report.warning {
        text += &format!("  warning: {warning}\n");
    }
    text +=
        "next: add 'important-plugin=/path/to/cln-lockstep' to lightningd's config and start it";
    text
}

fn find_node(args: &InitArgs) -> Result<LightningDir> {
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

#[allow(clippy::too_many_arguments, reason = "the steps of one command, in one place")]
fn make(
    args: &InitArgs,
    node: &LightningDir,
    url: &Destination,
    store: Arc<dyn Store>,
    keys: &KeyRing,
    existing: bool,
    locks: &[Lock],
    output: &Output,
) -> Result<u64> {
    let directory = LockFile::new_directory()?;
    for lock in locks {
        slots::add(&*store, keys, lock)?;
    }
    let claimant = Claimant::this_process(PROGRAM, "init", &directory, now())?;
    let mut writer = Writer::create(store.clone(), keys.clone(), claimant)?;
    let mut snapshot_bytes = 0;
    if existing {
        let bar = output.bar("snapshot", 0);
        let copy = Capture::take(node.wallet(), node.path().join("backup.copy.tmp"), &mut |_| {})?;
        copy.begin(&mut writer, StartReason::Init, now(), &mut |done, all| {
            snapshot_bytes = all;
            bar.set_length(all);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
    } else {
        writer.begin(Start { reason: StartReason::Init, base: None }, None, now())?;
    }
    writer.close(now());
    // The marker is what makes the folder a store: it comes when the rest is there.
    Marker::new(keys.store(), now()).create(&*store)?;
    let wallet = (node.wallet() != LightningDir::new(node.path()).wallet())
        .then(|| node.wallet().to_owned());
    let destination = NamedDestination { name: args.name.clone(), url: url.clone() };
    LockFile::new(keys.store(), directory, destination, wallet).write(node.path())?;
    Ok(snapshot_bytes)
}
