//! `key`: the ways to open a backup.

use lockstep_node::LightningDir;
use lockstep_proto::config::write_key_file;
use lockstep_proto::slots::{self, Lock, Slot};
use serde::Serialize;

use super::missing_slots;
use crate::args::{KeyAddArgs, KeyArgs, KeyCommand, KeyRemoveArgs, PlaceArgs};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::place::Places;
use crate::unlock;

#[derive(Serialize)]
struct Report {
    destination: String,
    slots: Vec<SlotReport>,
    /// Destinations of the node that are away, and have what they had before.
    away: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<String>,
    warning: Option<String>,
}

#[derive(Serialize)]
struct SlotReport {
    name: String,
    kind: String,
}

/// Lists, adds or removes.
pub fn run(args: &KeyArgs, output: &Output) -> Result<()> {
    match &args.command {
        KeyCommand::List(place) => list(place, output),
        KeyCommand::Add(args) => add(args, output),
        KeyCommand::Remove(args) => remove(args, output),
        KeyCommand::Write(args) => write(args, output),
    }
}

fn list(args: &PlaceArgs, output: &Output) -> Result<()> {
    report(&Places::open(args)?, None, None, output)
}

fn add(args: &KeyAddArgs, output: &Output) -> Result<()> {
    let places = Places::open(&args.place)?;
    let lock =
        match (&args.lock.add_hsm_secret, &args.lock.add_passphrase_file, &args.lock.add_recipient)
        {
            (Some(path), _, _) => {
                unlock::node_lock(path, args.place.unlock.secret_passphrase_file.as_ref())?
            }
            (_, Some(path), _) => unlock::passphrase_lock(path)?,
            (_, _, Some(recipient)) => Lock::recipient(recipient)?,
            (None, None, None) => {
                return Err(Failure::new("nothing to add", "see 'backup-cli key add --help'."));
            }
        };
    // What the new slot is called must be free everywhere.
    share(&places)?;
    let first = places.sites[places.newest()?].store()?;
    let slot = slots::add(first, &places.keys, &lock)?;
    share(&places)?;
    report(&places, Some(slot), None, output)
}

/// Gives each destination the slots that it lacks and another has.
fn share(places: &Places) -> Result<()> {
    for (_, from) in places.reachable() {
        for slot in slots::list(from)? {
            for (_, to) in places.reachable() {
                if !to.exists(&slot.object())? {
                    to.create(&slot.object(), &from.read(&slot.object())?)?;
                }
            }
        }
    }
    Ok(())
}

fn remove(args: &KeyRemoveArgs, output: &Output) -> Result<()> {
    let places = Places::open(&args.place)?;
    // Where it stays, it opens the backup, and it would come back from there.
    places.require_all()?;
    let newest = &places.sites[places.newest()?];
    let mut removed = None;
    for (name, store) in places.reachable() {
        let slots = slots::list(store)?;
        if slots.len() == 1 && slots.iter().any(|slot| slot.name == args.slot) && !args.last {
            return Err(Failure::new(
                format!("'{}' is the only slot of '{name}'", args.slot),
                "without it nothing but backup.key opens the backup; add another slot first, or say --last.",
            ));
        }
        removed = removed.or(slots.into_iter().find(|slot| slot.name == args.slot));
    }
    if removed.is_none() {
        // Says which slots there are.
        slots::remove(newest.store()?, &args.slot)?;
    }
    for (_, store) in places.reachable() {
        if slots::list(store)?.iter().any(|slot| slot.name == args.slot) {
            slots::remove(store, &args.slot)?;
        }
    }
    report(&places, None, removed, output)
}

fn write(args: &PlaceArgs, output: &Output) -> Result<()> {
    let Some(directory) = &args.lightning_dir else {
        return Err(Failure::new("no node is named", "give --lightning-dir DIR."));
    };
    let path = LightningDir::locate(directory)?.key_file();
    let mut args = args.clone();
    if !args.unlock.is_given() {
        args.unlock.hsm_secret = Some(path.with_file_name("hsm_secret"));
    }
    let places = Places::open(&args)?;
    write_key_file(&path, &places.keys)?;
    output.note(&format!("written: {}", path.display()));
    report(&places, None, None, output)
}

fn report(
    places: &Places,
    added: Option<Slot>,
    removed: Option<Slot>,
    output: &Output,
) -> Result<()> {
    let site = &places.sites[places.newest()?];
    let store = site.store()?;
    let away = places.sites.iter().filter(|site| site.store.is_err());
    let report = Report {
        destination: site.name.clone(),
        away: away.map(|site| site.name.clone()).collect(),
        slots: slots::list(store)?
            .into_iter()
            .map(|slot| SlotReport { kind: slot.kind.to_string(), name: slot.name })
            .collect(),
        added: added.map(|slot| slot.name),
        removed: removed.map(|slot| slot.name),
        warning: missing_slots(store)?,
    };
    output.result(&report, || text(&report));
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(name) = &report.added {
        text += &format!("added slot '{name}', proved by opening it\n");
    }
    if let Some(name) = &report.removed {
        text += &format!(
            "removed slot '{name}'; whoever opened it before may have kept the data key\n"
        );
    }
    for slot in &report.slots {
        text += &format!("{}\n", slot.name);
    }
    for name in &report.away {
        text += &format!(
            "warning: '{name}' is away, and keeps the slots that it has until it is brought up\n"
        );
    }
    if let Some(warning) = &report.warning {
        text += &format!("warning: {warning}\n");
    }
    text
}
