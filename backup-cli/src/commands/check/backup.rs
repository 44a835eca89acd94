//! The backup itself: where it is, what opens it, how it stands to the database, when it was last rehearsed.

use lockstep_node::{Access, HsmSecretFile, LightningDir, wallet};
use lockstep_proto::config::{LockFile, read_key_file};
use lockstep_proto::drill::Drill;
use lockstep_proto::hold::Hold;
use lockstep_proto::log::LogEnd;
use lockstep_proto::shadow::room;

use super::{Findings, destinations};
use crate::args::CheckArgs;
use crate::commands::{live, now, status};
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, utc};
use crate::place::{Places, Site};
use crate::unlock::Means;

/// A drill that is older than this says little.
const DRILL_DAYS: u64 = 92;
/// A record from further in the future than this shows a wrong clock. Milliseconds.
const CLOCK_MS: u64 = 60_000;

/// Looks.
pub fn look(
    args: &CheckArgs,
    node: &LightningDir,
    lock: &LockFile,
    running: bool,
    output: &Output,
    findings: &mut Findings,
) {
    let node = match live::wallet_of(node) {
        Ok(node) => node,
        Err(failure) => return findings.failure("backup", &failure),
    };
    let sites = match Site::all_of_node(node.path()) {
        Ok((_, _, sites)) => sites,
        Err(failure) => return findings.failure("backup", &failure),
    };
    destinations::look(&node, &sites, args.read_only, output, findings);
    slots(args, &node, &sites, findings);
    room(&node, lock, findings);
    let keys = read_key_file(&node.key_file()).map_err(Failure::from);
    match keys {
        Err(failure) => findings.add(
            "key",
            super::Severity::Error,
            failure.message(),
            Some(format!("{} makes it again from the node's secret.", key_write(&node))),
        ),
        Ok(keys) if keys.store() != lock.store_id => findings.error(
            "key",
            format!("backup.key is of store {}, backup.lock of {}", keys.store(), lock.store_id),
            format!("move backup.key aside; {} makes the right one.", key_write(&node)),
        ),
        Ok(keys) => {
            let places = Places { node: Some(node.clone()), lock: Some(lock.clone()), keys, sites };
            log(&places, lock, &node, running, findings);
        }
    }
    drill(&node, lock, findings);
}

fn key_write(node: &LightningDir) -> String {
    format!("'backup-cli key write --lightning-dir {}'", node.path().display())
}

/// Each way in that can be tried is tried.
fn slots(args: &CheckArgs, node: &LightningDir, sites: &[Site], findings: &mut Findings) {
    const CHECK: &str = "slots";
    let mut means = Vec::new();
    let secret = node.hsm_secret();
    match HsmSecretFile::read(&secret) {
        Ok(file) if file.needs_passphrase() && args.unlock.secret_passphrase_file.is_none() => {
            findings.note(
                CHECK,
                format!("'{}' is {}: whether it opens the backup was not tried", secret.display(), file.kind()),
                "give --secret-passphrase-file FILE.",
            );
        }
        Ok(_) => match Means::hsm_secret(&secret, &args.unlock) {
            Ok(found) => means.push(found),
            Err(failure) => findings.failure(CHECK, &failure),
        },
        Err(_) if secret.exists() => findings.warning(
            CHECK,
            format!("'{}' cannot be read", secret.display()),
            "run this as the user that lightningd runs as.",
        ),
        Err(_) => findings.note(
            CHECK,
            format!("there is no '{}'", secret.display()),
            "lightningd makes it at its first start; with a remote signer, add another slot: 'backup-cli key add'.",
        ),
    }
    match Means::chosen(&args.unlock) {
        Ok(chosen) => means.extend(chosen),
        Err(failure) => findings.failure(CHECK, &failure),
    }
    for site in sites {
        let Ok(store) = site.store() else { continue };
        let names: Vec<String> = match lockstep_proto::slots::list(store) {
            Ok(slots) => slots.into_iter().map(|slot| slot.name).collect(),
            Err(error) => {
                findings.failure(CHECK, &error.into());
                continue;
            }
        };
        if names.is_empty() {
            findings.error(
                CHECK,
                format!("'{}' has no key slot: if this machine is lost, nothing opens it", site.name),
                "start lightningd with the plugin, which adds the node's own, or 'backup-cli key add'.",
            );
            continue;
        }
        for means in &means {
            match means.open(store) {
                Ok((_, opened)) => findings.ok(
                    CHECK,
                    format!("'{}' opens with {}: {}", site.name, means.describe(), opened.by),
                ),
                Err(failure) => findings.error(
                    CHECK,
                    format!(
                        "'{}' does not open with {}: {}",
                        site.name,
                        means.describe(),
                        failure.message()
                    ),
                    "add a slot that does: 'backup-cli key add'; see 'backup-cli key list'.",
                ),
            }
        }
        if means.is_empty() {
            findings.note(
                CHECK,
                format!(
                    "'{}' has the slots {}, none of which was tried",
                    site.name,
                    names.join(", ")
                ),
                "'backup-cli drill --words' tries the words.",
            );
        }
    }
}

/// A compaction needs room on the node's disk.
fn room(node: &LightningDir, lock: &LockFile, findings: &mut Findings) {
    const CHECK: &str = "room";
    let len = room::len_of(node.wallet()).unwrap_or(0);
    let folder = lock.compaction.shadow_in(node.path());
    match room::lacking(&folder, len) {
        Ok(Some(needed)) if lock.compaction.enabled => findings.warning(
            CHECK,
            format!(
                "'{}' has {} free; the plugin compacts only where {} are",
                folder.display(),
                bytes(room::free_bytes(&folder).unwrap_or(0)),
                bytes(needed)
            ),
            "free some, set 'shadow' in backup.lock to another disk, or compact on another machine.",
        ),
        Ok(_) => {
            let free = room::free_bytes(node.path()).map_or("unknown".into(), bytes);
            findings.ok(CHECK, format!("{free} free on the node's disk"));
        }
        Err(error) => findings.failure(CHECK, &error.into()),
    }
}

/// How the log stands to this directory and its database.
fn log(
    places: &Places,
    lock: &LockFile,
    node: &LightningDir,
    running: bool,
    findings: &mut Findings,
) {
    const CHECK: &str = "backup";
    let ends = places.ends();
    for (site, end) in places.sites.iter().zip(&ends) {
        if let (Ok(_), Err(failure)) = (site.store(), end) {
            findings
                .failure("destination", &failure.clone().doing(&format!("read '{}'", site.name)));
        }
    }
    let Ok(newest) = places.newest_of(&ends) else { return };
    let Ok(end) = &ends[newest] else { return };
    if end.directory != lock.directory {
        findings.error(
            CHECK,
            format!("it belongs to another copy of this node, restored on {}", end.host),
            "this copy must never run again: 'backup-cli status' says who writes the backup.",
        );
        return;
    }
    lagging(places, &ends, end, findings);
    if let Err(failure) = against_database(node, end, running, findings) {
        findings.failure(CHECK, &failure);
    }
    clock(end, findings);
    if let Some(hold) = places.reachable().find_map(|(_, store)| Hold::list(store).ok()?.pop()) {
        findings.warning(
            CHECK,
            hold.warning(),
            "see docs/operations.md, \"The proof\"; 'backup-cli prune --release-hold' ends it.",
        );
    }
}

fn lagging(places: &Places, ends: &[Result<LogEnd>], newest: &LogEnd, findings: &mut Findings) {
    for (site, end) in places.sites.iter().zip(ends) {
        let Ok(end) = end else { continue };
        // While the node writes, a few are under way.
        const UNDER_WAY: u64 = 100;
        let behind = newest.position.seq.saturating_sub(end.position.seq);
        if end.epoch != newest.epoch && behind > 0 || behind > UNDER_WAY {
            findings.warning(
                "destination",
                format!("'{}' is {behind} records behind the newest", site.name),
                "the plugin brings it up; if it does not, 'backup-cli verify --heal'.",
            );
        }
    }
}

fn against_database(
    node: &LightningDir,
    end: &LogEnd,
    running: bool,
    findings: &mut Findings,
) -> Result<()> {
    const CHECK: &str = "backup";
    if running {
        return Ok(());
    }
    let version = wallet::data_version(node.wallet(), Access::Exclusive)?;
    let mut warnings = Vec::new();
    match status::against_database(end, version, running, &mut warnings) {
        "ahead" => findings.error(
            CHECK,
            warnings.concat(),
            "starting it can cost all channel funds; 'backup-cli restore' gives the newest state.",
        ),
        "behind" => findings.warning(
            CHECK,
            warnings.concat(),
            "nothing; until then, do not restore: the backup lacks what the database has.",
        ),
        _ if version.is_none() && end.head.data_version.is_some() => findings.error(
            CHECK,
            format!(
                "there is no database at '{}', but the backup holds one",
                node.wallet().display()
            ),
            "'backup-cli restore' brings it back.",
        ),
        _ => findings
            .ok(CHECK, format!("it holds what the database holds, up to seq {}", end.position.seq)),
    }
    Ok(())
}

fn clock(end: &LogEnd, findings: &mut Findings) {
    let now = now();
    if end.time > now + CLOCK_MS {
        findings.error(
            "clock",
            format!(
                "the newest record is of {}, and here it is {}",
                utc(end.time),
                utc(now)
            ),
            "set this machine's clock (or it was wrong): retention and whether a node is alive go by it.",
        );
    }
}

fn drill(node: &LightningDir, lock: &LockFile, findings: &mut Findings) {
    const CHECK: &str = "drill";
    let rehearse = format!(
        "'backup-cli drill --lightning-dir {} --words'; contrib/systemd has a timer.",
        node.path().display()
    );
    let Some(drill) = Drill::read(node.path(), lock.store_id) else {
        findings.note(CHECK, "a restore was never rehearsed", rehearse);
        return;
    };
    let when = utc(drill.time);
    let days = now().saturating_sub(drill.time) / 86_400_000;
    if !drill.passed {
        findings.error(CHECK, format!("the last one failed, {when}"), "run it again: it says why.");
    } else if days > DRILL_DAYS {
        findings.warning(CHECK, format!("the last one was {days} days ago"), rehearse);
    } else {
        findings.ok(
            CHECK,
            format!("passed {when}, in {:.1} s, with {}", drill.seconds(), drill.opened_with),
        );
    }
}
