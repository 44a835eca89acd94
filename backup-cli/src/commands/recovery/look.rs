//! What there is.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use lockstep_node::wallet::Wallet;
use lockstep_node::{Access, HsmSecretFile, LightningDir};
use lockstep_proto::config::{LockFile, STANDBY_FOLDER};
use lockstep_proto::destination::Destination;
use lockstep_proto::restore::salvage::{self, Salvage};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::Store;

use super::{Database, Emergency, Found, Log, LogState, Secret};
use crate::args::RestoreArgs;
use crate::commands::restoring::Dest;
use crate::commands::{last_writer, plugin_line};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::place::{destination, open_store};
use crate::sources::Sources;
use crate::unlock::{Means, no_means};

/// Looks at everything, and changes nothing.
pub fn look(
    args: &RestoreArgs,
    dest: &Dest,
    chosen: Option<&Means>,
    output: &Output,
) -> Result<Found> {
    let node = match &dest.node {
        Some(node) => node.clone(),
        None => LightningDir::new(dest.database.parent().unwrap_or(Path::new("."))),
    };
    let lock = LockFile::read(node.path()).ok().flatten();
    let mut urls: Vec<String> = args.url.iter().cloned().collect();
    if urls.is_empty() {
        let known = lock.iter().flat_map(|lock| &lock.destinations);
        urls.extend(known.map(|known| known.url.to_string()));
    }
    let own = match chosen {
        Some(_) => None,
        // One that needs a passphrase is not asked for.
        None => Means::at_hand(&node, &args.unlock),
    };
    let means = chosen.or(own.as_ref());
    let logs = urls.iter().map(|url| log(url, args, &node, means, output)).collect();
    Ok(Found {
        running: node.running()?.is_some(),
        logs,
        database: database(&dest.database),
        secret: secret(&node, args, chosen),
        emergency_recover: emergency(&node.emergency_recover()),
        standby: node.path().join(STANDBY_FOLDER).is_dir(),
        backed_up: node.lock_file().exists(),
        lightningd: lightningd(),
        plugin_line: plugin_line(),
        directory: node.path().to_owned(),
    })
}

fn log(
    url: &str,
    args: &RestoreArgs,
    node: &LightningDir,
    means: Option<&Means>,
    output: &Output,
) -> Log {
    let said = |failure: Failure| failure.message().to_owned();
    let state = match opened(url, node) {
        Err(failure) => LogState::Away { error: said(failure) },
        Ok((at, store)) => {
            let keys = match means {
                Some(means) => means.open(&*store).map(|(keys, _)| keys),
                None => Err(no_means(&*store).unwrap_or_else(|failure| failure)),
            };
            match keys {
                Err(failure) => LogState::Closed { error: said(failure) },
                Ok(keys) => {
                    read((at, store), args, node, &keys, output).unwrap_or_else(|failure| {
                        LogState::Damaged {
                            seq: None,
                            data_version: None,
                            time: None,
                            error: said(failure),
                        }
                    })
                }
            }
        }
    };
    Log { place: url.into(), state }
}

fn opened(url: &str, node: &LightningDir) -> Result<(Destination, Arc<dyn Store>)> {
    let at = destination(url, Some(node.path()))?;
    let store = open_store(&at)?;
    Ok((at, store))
}

fn read(
    named: (Destination, Arc<dyn Store>),
    args: &RestoreArgs,
    node: &LightningDir,
    keys: &KeyRing,
    output: &Output,
) -> Result<LogState> {
    let bar = output.counter("reading the log");
    let found = salvage::look(&*named.1, keys);
    bar.finish_and_clear();
    let Salvage { newest, damage } = found?;
    let data_version = newest.and_then(|newest| newest.data_version).map(|version| version.0);
    if let Some(error) = damage {
        let (seq, time) = (newest.map(|newest| newest.seq), newest.map(|newest| newest.time));
        return Ok(LogState::Damaged { seq, data_version, time, error: error.to_string() });
    }
    let sources =
        Sources::look(named, &args.succession.also, keys, false, Some(node.path()), output);
    let (incomplete, alive) = match sources {
        Err(failure) => (Some(failure.message().to_owned()), None),
        Ok(sources) => {
            let writer = sources.last_writer(keys)?;
            let alive = last_writer::refuse_alive(writer, output).err();
            (None, alive.map(|failure| failure.message().to_owned()))
        }
    };
    let (seq, time) = newest.map_or((0, 0), |newest| (newest.seq, newest.time));
    Ok(LogState::Whole { seq, data_version, time, incomplete, alive })
}

/// `None` where there is no file, or an empty one.
fn database(path: &Path) -> Option<Database> {
    let found = path.metadata().ok()?;
    if found.len() == 0 {
        return None;
    }
    let mut database =
        Database { path: path.to_owned(), data_version: None, error: None, upgraded_by: None };
    match looked_at(path) {
        Ok((version, upgraded_by)) => {
            (database.data_version, database.upgraded_by) = (version, upgraded_by);
        }
        Err(failure) => database.error = Some(failure.message().to_owned()),
    }
    Some(database)
}

fn looked_at(path: &Path) -> Result<(Option<u32>, Option<String>)> {
    let Some(wallet) = Wallet::open(path, Access::Shared)? else { return Ok((None, None)) };
    let version = wallet.data_version()?;
    let failed = |what: String| {
        Failure::new(format!("'{}' is damaged: {what}", path.display()), "restore it.")
    };
    let text = |sql: &str| wallet.connection().query_row(sql, [], |row| row.get::<_, String>(0));
    let check = text("PRAGMA integrity_check(1)").map_err(|error| failed(error.to_string()))?;
    if check != "ok" {
        return Err(failed(check));
    }
    // A database from before that table does without.
    let release = text("SELECT lightning_version FROM db_upgrades ORDER BY rowid DESC LIMIT 1");
    Ok((version, release.ok()))
}

fn secret(node: &LightningDir, args: &RestoreArgs, chosen: Option<&Means>) -> Option<Secret> {
    if let Ok(file) = HsmSecretFile::read(&node.hsm_secret()) {
        return Some(Secret::Here(file.kind().into()));
    }
    match (chosen, &args.unlock.hsm_secret) {
        (Some(Means::Words { .. }), _) => Some(Secret::Words),
        (_, Some(path)) => Some(Secret::File(path.clone())),
        _ => None,
    }
}

fn emergency(path: &Path) -> Option<Emergency> {
    let found = path.metadata().ok()?;
    let time = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let time = time.map(|since| since.as_millis() as u64);
    Some(Emergency { path: path.to_owned(), bytes: found.len(), time })
}

fn lightningd() -> Option<String> {
    let said = Command::new("lightningd").arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    (!version.is_empty()).then_some(version)
}
