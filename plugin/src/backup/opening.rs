//! Before lightningd opens its database: what the log holds, and whether this node may go on from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_node::{Access, LightningDir, wallet};
use lockstep_proto::config::{
    KEY_FILE, LOCK_FILE, LockFile, STANDBY_FOLDER, destination_options, read_key_file,
};
use lockstep_proto::error::{Error, Result};
use lockstep_proto::hold::Hold;
use lockstep_proto::log::LogEnd;
use lockstep_proto::session::{Direction, Session};
use lockstep_proto::shadow::Proofs;
use lockstep_proto::slots;
use lockstep_proto::version::DataVersion;

use super::early_copy::EarlyCopy;
use super::reload::Reloading;
use super::{Backup, COPY_FILE};
use crate::clock::time_ms;
use crate::compactor::{AtStart, Before};
use crate::companions::Companions;
use crate::places::Places;
use crate::status::{DestinationStatus, KeySlots, SharedStatus};
use crate::wire::{Level, Output};
use crate::witness::look_for_rollback;

impl Backup {
    /// Reads the configuration in the network directory `directory`, and compares the database with its
    /// log before lightningd opens it. Changes nothing.
    ///
    /// # Errors
    /// Whatever means that this node must not start.
    pub fn prepare(directory: &Path, status: SharedStatus, output: Arc<Output>) -> Result<Self> {
        let directory = std::path::absolute(directory).map_err(Error::file("find", directory))?;
        let lock = LockFile::read(&directory)?.ok_or_else(|| missing_lock(&directory))?;
        let key_file = directory.join(KEY_FILE);
        if !key_file.exists() {
            return Err(Error::Refused {
                what: format!("there is no {KEY_FILE} in '{}'", directory.display()),
                hint: format!(
                    "'backup-cli key write --lightning-dir {}' makes it again from the node's secret.",
                    directory.display()
                ),
            });
        }
        let keys = read_key_file(&key_file)?;
        let options = destination_options(Some(&directory), std::env::vars_os())?;
        if keys.store() != lock.store_id {
            let (expected, found) = (lock.store_id, keys.store());
            return Err(Error::OtherStore { object: KEY_FILE.into(), expected, found });
        }
        let (places, store, end) = Places::open(&lock, &options, &keys, &output)?;
        end.expect_directory(&*store, &lock.directory)?;
        look_for_rollback(&directory, lock.store_id, &*store, &end, &output);
        let wallet = wallet_of(&directory, &lock);
        let companions = Companions::new(
            directory.clone(),
            lock.files.clone(),
            places.clone(),
            keys.clone(),
            output.clone(),
        );
        let mut backup = Self {
            wallet,
            companions,
            places,
            stall_timeout: lock.stall_timeout(),
            metrics: lock.metrics.clone(),
            heartbeat_interval: lock.heartbeat_interval(),
            reloading: Reloading::new(lock.quorum),
            store_id: lock.store_id,
            id: lock.directory,
            store,
            keys,
            writer: None,
            gap: false,
            copy: None,
            compactor: status.compactor().clone(),
            compaction: Some((lock.compaction, lock.retention)),
            status,
            output,
            directory,
        };
        let holds = Hold::list(&*backup.store)?;
        backup.compare(&end, &holds)?;
        backup.publish_status(&end)?;
        backup.offer_compaction(&end, holds);
        Ok(backup)
    }

    /// From here on compactions can be asked for. What the database holds is read now, while nobody has it open.
    fn offer_compaction(&self, end: &LogEnd, holds: Vec<Hold>) {
        let Some((settings, _)) = &self.compaction else { return };
        let at_start = match self.gap {
            true => Ok(AtStart::default()),
            false => AtStart::read(&self.directory, &self.wallet, end, settings),
        };
        let at_start = at_start.unwrap_or_else(|error| {
            let line = format!("the database is not compared with its backup: {error}");
            self.output.log(Level::Unusual, &line);
            AtStart::default()
        });
        let proofs = Proofs::read(&settings.shadow_in(&self.directory), self.store_id);
        self.compactor.offer(settings.clone(), at_start, Before { proofs, holds });
    }

    /// Direction decides: ahead is copied, behind is refused, and nothing starts empty over a history.
    fn compare(&mut self, end: &LogEnd, holds: &[Hold]) -> Result<()> {
        let head = end.head;
        let written = wallet::last_written(&self.wallet).map(time_ms);
        let found = wallet::data_version(&self.wallet, Access::Exclusive).map_err(|error| {
            Error::Refused {
                what: error.to_string(),
                hint: error.hint().unwrap_or("nothing was changed.").into(),
            }
        })?;
        let Some(database) = found.map(DataVersion) else {
            let first_in_doubt = head.in_doubt && head.data_version == Some(DataVersion(1));
            return match head.data_version {
                Some(version) if !first_in_doubt && !head.is_empty() => Err(Error::Refused {
                    what: format!(
                        "there is no database at '{}', but its backup holds data_version {version}",
                        self.wallet.display()
                    ),
                    hint: "do not start an empty node: run 'backup-cli restore' first.".into(),
                }),
                _ => Ok(()),
            };
        };
        match Session::new(head).compare(database) {
            Direction::Equal
                if holds.iter().any(|hold| hold.generation == end.position.generation) =>
            {
                self.output.log(
                    Level::Unusual,
                    "the database was not what its backup says; taking a snapshot of it as it is now",
                );
                self.copy_ahead()
            }
            Direction::Equal => {
                let at_head = head.data_version == Some(database);
                if at_head && written.is_some_and(|written| !end.explains(written)) {
                    self.output.log(
                        Level::Unusual,
                        "the database was written to without this plugin since its newest backup, at the \
                         same data_version; taking a snapshot of it",
                    );
                    return self.copy_ahead();
                }
                Ok(())
            }
            Direction::Behind => {
                Err(Error::Behind { head: head.data_version.unwrap_or_default(), database })
            }
            Direction::Ahead => {
                self.output.log(
                    Level::Unusual,
                    &format!(
                        "the database (data_version {database}) is ahead of its backup ({}): it was \
                         written without this plugin; taking a snapshot of it",
                        head.data_version.map_or("empty".into(), |version| version.to_string())
                    ),
                );
                self.copy_ahead()
            }
        }
    }

    /// A generation must begin, from a copy that begins now.
    fn copy_ahead(&mut self) -> Result<()> {
        let copy = EarlyCopy::begin(self.wallet.clone(), self.directory.join(COPY_FILE))?;
        (self.gap, self.copy) = (true, Some(copy));
        Ok(())
    }

    fn publish_status(&self, end: &LogEnd) -> Result<()> {
        let slots = slots::list(&*self.store)?;
        self.status.offer_slots(KeySlots { store: self.store.clone(), keys: self.keys.clone() });
        let mut status = self.status.lock();
        status.store_id = self.store_id.to_string();
        status.set_slots(slots.into_iter().map(|slot| slot.name).collect());
        status.log = DestinationStatus {
            generation: end.position.generation,
            epoch: end.epoch,
            seq: end.position.seq,
            data_version: end.head.data_version.map(|version| version.0),
            ..DestinationStatus::default()
        };
        status.places = Some(self.places.clone());
        Ok(())
    }
}

/// The wallet that the lock file names, or else the usual one.
fn wallet_of(directory: &Path, lock: &LockFile) -> PathBuf {
    let directory = LightningDir::new(directory);
    match &lock.wallet {
        Some(wallet) => wallet.clone(),
        None => directory.wallet().to_owned(),
    }
}

fn missing_lock(directory: &Path) -> Error {
    let verb = match directory.join(STANDBY_FOLDER).is_dir() {
        true => format!(
            "this is a standby: 'backup-cli promote URL {}' makes a node of it",
            directory.display()
        ),
        false => format!(
            "stop lightningd and run 'backup-cli init --lightning-dir {} URL'",
            directory.display()
        ),
    };
    Error::Refused {
        what: format!("there is no {LOCK_FILE} in '{}'", directory.display()),
        hint: format!("{verb}."),
    }
}
