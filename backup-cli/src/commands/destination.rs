//! `destination`: the places that a node's backup is written to.

use std::path::Path;

use lockstep_node::LightningDir;
use lockstep_proto::config::{LockFile, NamedDestination, destination_options};
use lockstep_proto::destination::Destination;
use lockstep_proto::error::Error;
use lockstep_proto::fence;
use lockstep_proto::layout;
use lockstep_proto::marker::Marker;
use lockstep_proto::measure::{self, Kind, Latency};
use lockstep_proto::replica::{Mirror, Mode};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::{Entry, Fencing, Options, Store};
use lockstep_proto::verify;
use serde::Serialize;

use super::creation::default_name;
use super::naming::name_places;
use super::running_node;
use crate::args::{
    DestinationAddArgs, DestinationArgs, DestinationCommand, DestinationRemoveArgs,
    DestinationTestArgs, NodeArgs, PlaceArgs, UnlockArgs,
};
use crate::failure::{Failure, Result};
use crate::output::{Output, bytes};
use crate::place::{Places, destination, lock_of};

/// Folders of a store.
const FOLDERS: [&str; 9] = [
    layout::KEYS,
    layout::EPOCHS,
    layout::LOG,
    layout::SNAPSHOTS,
    layout::HOLDS,
    layout::BEGINNINGS,
    layout::HEARTBEATS,
    layout::FILES,
    layout::TAIL,
];

#[derive(Serialize)]
struct Report {
    destinations: Vec<NamedDestination>,
    /// So many of the `sync` ones must have a record.
    quorum: usize,
    running: bool,
    /// Of a running node: whether it writes to them now; else from its next start on.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_force: Option<bool>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_in_force: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<Added>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<String>,
}

#[derive(Serialize)]
struct Added {
    name: String,
    objects: u64,
    bytes: u64,
}

/// Lists, adds, removes or tests.
pub fn run(args: &DestinationArgs, output: &Output) -> Result<()> {
    match &args.command {
        DestinationCommand::List(args) => list(args, output),
        DestinationCommand::Add(args) => add(args, output),
        DestinationCommand::Remove(args) => remove(args, output),
        DestinationCommand::Test(args) => test(args, output),
    }
}

fn list(args: &NodeArgs, output: &Output) -> Result<()> {
    let node = LightningDir::locate(&args.lightning_dir)?;
    report(&node, Change::default(), output)
}

fn places(args: &NodeArgs) -> Result<Places> {
    Places::open(&PlaceArgs {
        lightning_dir: Some(args.lightning_dir.clone()),
        url: None,
        unlock: UnlockArgs::default(),
    })
}

fn add(args: &DestinationAddArgs, output: &Output) -> Result<()> {
    let node = LightningDir::locate(&args.node.lightning_dir)?;
    let places = places(&args.node)?;
    let url = destination(&args.url, Some(node.path()))?;
    let mut lock = lock_of(&node)?;
    let name = new_name(args.name.as_ref(), &lock)?;
    if let Some(same) = lock.destinations.iter().find(|other| other.url == url) {
        return Err(Failure::new(
            format!("'{url}' is the destination '{}' already", same.name),
            "give another place; nothing was changed.",
        ));
    }
    let mode = if args.r#async { Mode::Async } else { Mode::Sync };
    lock.destinations.push(NamedDestination { mode, ..NamedDestination::new(&name, url.clone()) });
    lock.quorum = args.quorum.or(lock.quorum);
    lock.destinations(&Options::default())?;

    let source = &places.sites[places.newest()?];
    let target = open_new(&url, &places.keys)?;
    let from = source.store()?;
    let bar = output.bar(&format!("bringing up '{name}'"), verify::stored_bytes(from)?);
    let mirror = Mirror { source: from, target: &*target, keys: &places.keys, before: None };
    let done = mirror.run(&mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let done = done.map_err(|error| Failure::from(error).doing(&format!("bring up '{url}'")))?;
    if let Some(added) = lock.destinations.last_mut() {
        added.fencing = Some(target.fencing().map_err(Error::from)?);
    }
    lock.write(node.path())?;
    let in_force = put_in_force(&node, &lock, &places.keys, output)?;
    let added = Some(Added { name, objects: done.objects, bytes: done.bytes });
    report(&node, Change { added, removed: None, in_force }, output)
}

/// What became of `backup.lock`.
#[derive(Default)]
struct Change {
    added: Option<Added>,
    removed: Option<String>,
    /// Whether a running node goes on by it, or why it does not yet.
    in_force: Option<std::result::Result<(), String>>,
}

/// A running node is told; else the log names its places as the lock file does, now or from the next start on.
fn put_in_force(
    node: &LightningDir,
    lock: &LockFile,
    keys: &KeyRing,
    output: &Output,
) -> Result<Option<std::result::Result<(), String>>> {
    if node.running()?.is_some() {
        return Ok(Some(running_node::reload(node)));
    }
    if let Err(error) = name_places("destination", node, lock, keys) {
        output.note(&format!(
            "warning: the log does not name its places before lightningd is started: {}",
            error.message()
        ));
    }
    Ok(None)
}

/// The name that was given, or the first default that no other has.
fn new_name(given: Option<&String>, lock: &LockFile) -> Result<String> {
    let taken = |name: &String| lock.destinations.iter().any(|other| other.name == *name);
    match given {
        Some(name) if taken(name) => Err(Failure::new(
            format!("there is a destination '{name}' already"),
            "give another name; nothing was changed.",
        )),
        Some(name) => Ok(name.clone()),
        None => Ok((0..).map(default_name).find(|name| !taken(name)).unwrap_or_default()),
    }
}

/// An empty place, one where this backup was before, or what an interrupted `add` left.
fn open_new(url: &Destination, keys: &KeyRing) -> Result<std::sync::Arc<dyn Store>> {
    let store = match url.open_any() {
        Err(Error::Nothing { .. }) => return Ok(url.create()?),
        store => store?,
    };
    let entries = store.list("").map_err(Error::from)?;
    if entries.is_empty() {
        return Ok(store);
    }
    let of_a_store = |name: &str| name == layout::MARKER || FOLDERS.contains(&name);
    let ours = match Marker::read(&*store) {
        Ok(marker) => {
            marker.require(keys.store())?;
            true
        }
        // Claims are copied before all else: they tell whose it is. Interrupted before the first, there is nothing.
        Err(Error::Nothing { .. }) if holds_no_object(&*store, &entries)? => true,
        Err(Error::Nothing { .. }) => {
            let claims = store.list(layout::EPOCHS).map_err(Error::from)?;
            let epochs: Vec<_> =
                claims.iter().filter_map(|entry| layout::parse_claim(&entry.name)).collect();
            !epochs.is_empty()
                && epochs.iter().all(|&epoch| fence::read(&*store, keys, epoch).is_ok())
        }
        Err(error) => return Err(error.into()),
    };
    if ours && entries.iter().all(|entry| of_a_store(&entry.name)) {
        return Ok(store);
    }
    Err(Failure::new(
        format!("'{url}' is not empty"),
        "choose an empty place; nothing was changed.",
    ))
}

/// True where there are only folders, of which all are empty.
fn holds_no_object(store: &dyn Store, entries: &[Entry]) -> Result<bool> {
    for entry in entries {
        if !entry.folder || !store.list_all(&entry.name).map_err(Error::from)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn remove(args: &DestinationRemoveArgs, output: &Output) -> Result<()> {
    let node = LightningDir::locate(&args.node.lightning_dir)?;
    let mut lock = lock_of(&node)?;
    let Some(index) = lock.destinations.iter().position(|found| found.name == args.name) else {
        let names: Vec<_> = lock.destinations.iter().map(|found| found.name.as_str()).collect();
        return Err(Failure::new(
            format!("there is no destination '{}'", args.name),
            format!("its destinations: {}.", names.join(", ")),
        ));
    };
    if lock.destinations.len() == 1 {
        return Err(Failure::new(
            format!("'{}' is the only destination", args.name),
            "add another first: 'backup-cli destination add'; nothing was changed.",
        ));
    }
    lock.destinations.remove(index);
    lock.quorum = args.quorum.or(lock.quorum);
    lock.policy()
        .map_err(|error| Failure::from(error).doing(&format!("do without '{}'", args.name)))?;
    let places = places(&args.node)?;
    refuse_loss(&places, index)?;
    lock.write(node.path())?;
    let in_force = put_in_force(&node, &lock, &places.keys, output)?;
    report(&node, Change { added: None, removed: Some(args.name.clone()), in_force }, output)
}

/// Refuses to do without the destination that alone holds the newest records.
fn refuse_loss(places: &Places, index: usize) -> Result<()> {
    let ends = places.ends();
    let Ok(end) = &ends[index] else { return Ok(()) };
    let mut others = places.sites.iter().zip(&ends).enumerate();
    let kept = others.any(|(other, (site, of_other))| {
        let Ok(of_other) = of_other else { return false };
        // What is being written may be there in a moment only.
        let nearly = (of_other.epoch, of_other.position.seq + 1) >= (end.epoch, end.position.seq);
        other != index && site.mode.is_sync() && nearly
    });
    if kept {
        return Ok(());
    }
    Err(Failure::new(
        format!(
            "'{}' holds records that no other 'sync' destination has",
            places.sites[index].name
        ),
        "stop lightningd and run 'backup-cli verify --heal', which brings the others up; nothing was changed.",
    ))
}

fn report(node: &LightningDir, change: Change, output: &Output) -> Result<()> {
    let Change { added, removed, in_force } = change;
    let lock = lock_of(node)?;
    let report = Report {
        quorum: lock.policy()?.to_acknowledge(),
        destinations: lock.destinations,
        running: node.running()?.is_some(),
        not_in_force: in_force.clone().and_then(std::result::Result::err),
        in_force: in_force.map(|told| told.is_ok()),
        added,
        removed,
    };
    output.result(&report, || text(&report));
    Ok(())
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(Added { name, objects, bytes: size }) = &report.added {
        text += &format!("added '{name}': {objects} objects copied, {}\n", bytes(*size));
        match &report.not_in_force {
            Some(why) => {
                text += &format!(
                    "lightningd goes on with its old list until it is started again ({why}): until then '{name}' \
                     falls behind, and must not be restored from\n"
                );
            }
            None if report.running => {
                text += &format!(
                    "lightningd writes to '{name}' from its next transaction on, and waits for it, if it is 'sync', \
                     once it has everything\n"
                );
            }
            None => {}
        }
    }
    if let Some(name) = &report.removed {
        text += &format!(
            "removed '{name}'; what it holds stays there, and gets old: never restore from it as if it were current\n"
        );
        match &report.not_in_force {
            Some(why) => {
                text += &format!(
                    "lightningd goes on with its old list until it is started again ({why})\n"
                );
            }
            None if report.running => text += "lightningd does not write there any more\n",
            None => {}
        }
    }
    let width = report.destinations.iter().map(|found| found.name.len()).max().unwrap_or(0);
    let mut sync = 0;
    for NamedDestination { name, url, mode, fencing } in &report.destinations {
        sync += usize::from(mode.is_sync());
        let mode = if mode.is_sync() { "sync " } else { "async" };
        let fencing = fencing.map_or(String::new(), |found| format!("  fencing {found}"));
        text += &format!("{name:width$}  {mode}  {url}{fencing}\n");
    }
    text + &format!("a transaction waits for {} of {sync} 'sync' destinations\n", report.quorum)
}

#[derive(Serialize)]
struct TestReport {
    url: Destination,
    fencing: Fencing,
    appends: u32,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

fn test(args: &DestinationTestArgs, output: &Output) -> Result<()> {
    let url = test_url(args)?;
    let store = url.open_any()?;
    let kind = match &url {
        Destination::Folder(_) => Kind::Append,
        Destination::Bucket(_) => Kind::Create,
    };
    let bar = output.counter("appends:");
    let measured = measure::run(&*store, kind, args.appends as usize, &mut || bar.inc(1));
    bar.finish_and_clear();
    let Latency { p50, p99, max } = measured?;
    let fencing = store.fencing().map_err(Error::from)?;
    let ms = |took: std::time::Duration| took.as_secs_f64() * 1e3;
    let appends = args.appends;
    let report =
        TestReport { url, fencing, appends, p50_ms: ms(p50), p99_ms: ms(p99), max_ms: ms(max) };
    output.result(&report, || test_text(&report));
    Ok(())
}

fn test_url(args: &DestinationTestArgs) -> Result<Destination> {
    let Some(directory) = &args.lightning_dir else { return destination(&args.place, None) };
    let node = LightningDir::locate(directory)?;
    let lock = LockFile::read(node.path())?;
    let known = lock.iter().flat_map(|lock| &lock.destinations);
    match known.into_iter().find(|known| known.name == args.place) {
        Some(known) => Ok(known.url.clone().with_options(&options(node.path())?)),
        None => destination(&args.place, Some(node.path())),
    }
}

fn options(directory: &Path) -> Result<Options> {
    Ok(destination_options(Some(directory), std::env::vars_os())?)
}

fn test_text(report: &TestReport) -> String {
    let TestReport { url, fencing, appends, p50_ms, p99_ms, max_ms } = report;
    let fencing = match fencing {
        Fencing::Real => "real: a second copy of the node is kept out",
        Fencing::Advisory => {
            "advisory: a second copy of the node is found out late; never let two run"
        }
    };
    format!(
        "{url}: {appends} appends of 1 KiB, each durable before the next\n  \
         half of them took up to {p50_ms:.1} ms, 99 of 100 up to {p99_ms:.1} ms, the longest {max_ms:.1} ms\n  \
         where this place is waited for, each of the node's transactions takes about {p50_ms:.1} ms longer, and a \
         payment, which is about 26 of them, {:.0} ms\n  fencing {fencing}",
        26.0 * p50_ms
    )
}
