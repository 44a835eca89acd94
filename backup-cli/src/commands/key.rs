//! `key`: the ways to open a backup.

use lockstep_node::LightningDir;
use lockstep_proto::config::write_key_file;
use lockstep_proto::slots::{self, Lock, Slot};
use serde::Serialize;

use super::missing_slots;
use crate::args::{KeyAddArgs, KeyArgs, KeyCommand, KeyRemoveArgs, PlaceArgs};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::place::Place;
use crate::unlock;

#[derive(Serialize)]
struct Report {
    destination: String,
    slots: Vec<SlotReport>,
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
    report(&Place::open(args)?, None, None, output)
}

fn add(args: &KeyAddArgs, output: &Output) -> Result<()> {
    let place = Place::open(&args.place)?;
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
    let slot = slots::add(&*place.store, &place.keys, &lock)?;
    report(&place, Some(slot), None, output)
}

fn remove(args: &KeyRemoveArgs, output: &Output) -> Result<()> {
    let place = Place::open(&args.place)?;
    let slots = slots::list(&*place.store)?;
    if slots.len() == 1 && slots.iter().any(|slot| slot.name == args.slot) && !args.last {
        return Err(Failure::new(
            format!("'{}' is the only slot of '{}'", args.slot, place.name),
            "without it nothing but backup.key opens the backup; add another slot first, or say --last.",
        ));
    }
    let slot = slots::remove(&*place.store, &args.slot)?;
    report(&place, None, Some(slot), output)
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
    let place = Place::open(&args)?;
    write_key_file(&path, &place.keys)?;
    output.note(&format!("written: {}", path.display()));
    report(&place, None, None, output)
}

fn report(
    place: &Place,
    added: Option<Slot>,
    removed: Option<Slot>,
    output: &Output,
) -> Result<()> {
    let report = Report {
        destination: place.name.clone(),
        slots: slots::list(&*place.store)?
            .into_iter()
            .map(|slot| SlotReport { kind: slot.kind.to_string(), name: slot.name })
            .collect(),
        added: added.map(|slot| slot.name),
        removed: removed.map(|slot| slot.name),
        warning: missing_slots(&*place.store)?,
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
    if let Some(warning) = &report.warning {
        text += &format!("warning: {warning}\n");
    }
    text
}
