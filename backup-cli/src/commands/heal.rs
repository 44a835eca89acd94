//! `verify --heal`: what is damaged or missing at one destination is replaced from another.

use lockstep_proto::error::Error;
use lockstep_proto::log::{LogEnd, all_segments};
use lockstep_proto::replica::{Heal, Mirror, Mirrored, Seen};
use lockstep_proto::store::Store;
use lockstep_proto::verify;
use serde::Serialize;

use crate::failure::{Failure, Result};
use crate::output::{Output, bytes, utc};
use crate::place::{Places, Site};

/// What became of it.
#[derive(Serialize, Default)]
pub struct Healed {
    /// One for each object that was damaged.
    damaged: Vec<DamagedReport>,
    /// What was missing, by destination.
    brought_up: Vec<BroughtUp>,
    /// True where lightningd runs: what it is writing is left alone.
    running: bool,
}

#[derive(Serialize)]
struct DamagedReport {
    destination: String,
    object: String,
    what: String,
    /// Where it was intact; `null`: nowhere.
    replaced_from: Option<String>,
}

#[derive(Serialize)]
struct BroughtUp {
    destination: String,
    from: String,
    objects: u64,
    bytes: u64,
    /// Why it could not be.
    error: Option<String>,
}

/// Heals each destination from each other one, then brings all up to the newest.
pub fn run(places: &mut Places, output: &Output) -> Result<Healed> {
    open_damaged(places);
    let running = match &places.node {
        Some(node) => node.running()?.is_some(),
        None => false,
    };
    let before = if running { open_segment(places)? } else { None };
    let mut healed = Healed { running, ..Healed::default() };
    refuse_two_histories(places)?;
    for target in places.sites.iter().filter(|site| site.store.is_ok()) {
        for source in places.sites.iter().filter(|site| site.store.is_ok()) {
            if source.name != target.name {
                heal(places, source, target, before, &mut healed, output)?;
            }
        }
    }
    bring_up(places, before, &mut healed, output)?;
    Ok(healed)
}

/// A marker that is damaged is no reason not to look further: [`Heal`] proves that it is the same store.
fn open_damaged(places: &mut Places) {
    for site in &mut places.sites {
        if site.store.as_ref().is_err_and(Failure::is_damage)
            && let Ok(store) = site.url.open()
        {
            site.store = Ok(store);
        }
    }
}

/// Epoch and index of the newest segment anywhere.
fn open_segment(places: &Places) -> Result<Option<(u32, u32)>> {
    let mut newest = None;
    for (_, store) in places.reachable() {
        let last = all_segments(store)?.last().map(|entry| entry.name.age());
        newest = newest.max(last);
    }
    Ok(newest)
}

/// Nothing is replaced where two destinations hold two histories.
fn refuse_two_histories(places: &Places) -> Result<()> {
    let ends = places.ends();
    let Ok(newest) = places.newest_of(&ends) else { return Ok(()) };
    let end = ends[newest].clone()?;
    let seen = Seen { store: places.sites[newest].store()?, end: &end };
    for (site, other) in places.sites.iter().zip(&ends) {
        // What cannot be read is looked at segment by segment.
        if let (Ok(store), Ok(other)) = (site.store(), other)
            && let Err(error @ Error::TwoHistories { .. }) =
                seen.compare(&Seen { store, end: other }, &places.keys)
        {
            return Err(two_histories(error, places));
        }
    }
    Ok(())
}

/// With both positions and times.
fn two_histories(error: Error, places: &Places) -> Failure {
    let at = |site: &Site| match site.end(&places.keys) {
        Ok(LogEnd { position, time, head, .. }) => format!(
            "'{}' is at {position}, data_version {}, written {}",
            site.name,
            head.data_version.unwrap_or_default(),
            utc(time)
        ),
        Err(failure) => format!("'{}': {}", site.name, failure.message()),
    };
    let places: Vec<_> = places.sites.iter().map(at).collect();
    let message = format!("{error} ({}); nothing was changed", places.join("; "));
    Failure::from(error).saying(message)
}

fn heal(
    places: &Places,
    source: &Site,
    target: &Site,
    before: Option<(u32, u32)>,
    healed: &mut Healed,
    output: &Output,
) -> Result<()> {
    let (from, to) = (source.store()?, target.store()?);
    let heal = Heal { source: from, target: to, keys: &places.keys, before };
    let bar = output.bar(&format!("'{}' against '{}'", target.name, source.name), stored(to)?);
    let done = heal.plan(&mut |bytes| bar.inc(bytes)).and_then(|faults| {
        heal.run(&faults, &mut |bytes| bar.inc(bytes))?;
        Ok(faults)
    });
    bar.finish_and_clear();
    let faults = match done {
        Err(error @ Error::TwoHistories { .. }) => return Err(two_histories(error, places)),
        done => done.map_err(|error| {
            Failure::from(error).doing(&format!("heal '{}' from '{}'", target.name, source.name))
        })?,
    };
    for fault in faults {
        let replaced_from = fault.healable.then(|| source.name.clone());
        let known = healed
            .damaged
            .iter_mut()
            .find(|known| known.destination == target.name && known.object == fault.object);
        match known {
            Some(known) => known.replaced_from = replaced_from,
            None => healed.damaged.push(DamagedReport {
                destination: target.name.clone(),
                object: fault.object,
                what: fault.what,
                replaced_from,
            }),
        }
    }
    Ok(())
}

/// Copies what a destination lacks: first what is missing amid the log of one that does not prove itself, from any
/// other; then all that it lacks to be like the newest that does.
fn bring_up(
    places: &Places,
    before: Option<(u32, u32)>,
    healed: &mut Healed,
    output: &Output,
) -> Result<()> {
    let reachable = || places.sites.iter().filter(|site| site.store.is_ok());
    for target in reachable() {
        if is_intact(places, target, output)? {
            continue;
        }
        for source in reachable().filter(|source| source.name != target.name) {
            let newest = all_segments(source.store()?)?.pop().map(|entry| entry.name.age());
            let before = [before, newest].into_iter().flatten().min();
            match mirror(places, source, target, before, output) {
                // The source lacks something there itself.
                Err(Error::TwoHistories { .. }) => {}
                done => healed.note(source, target, done),
            }
        }
    }
    let mut newest: Option<(&Site, LogEnd)> = None;
    for site in reachable() {
        if let Ok(end) = site.end(&places.keys)
            && newest.as_ref().is_none_or(|(_, newest)| end.age() > newest.age())
            && is_intact(places, site, output)?
        {
            newest = Some((site, end));
        }
    }
    let Some((source, _)) = newest else { return Ok(()) };
    for other in reachable().filter(|other| other.name != source.name) {
        let mirror =
            Mirror { source: other.store()?, target: source.store()?, keys: &places.keys, before };
        healed.note(other, source, mirror.all_but_the_log(&mut |_| {}));
    }
    for target in reachable().filter(|target| target.name != source.name) {
        match mirror(places, source, target, before, output) {
            Err(error @ Error::TwoHistories { .. }) => return Err(two_histories(error, places)),
            done => healed.note(source, target, done),
        }
    }
    Ok(())
}

fn is_intact(places: &Places, site: &Site, output: &Output) -> Result<bool> {
    let store = site.store()?;
    let bar = output.bar(&format!("reading '{}'", site.name), stored(store)?);
    let read = verify::run(store, &places.keys, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    Ok(read.is_ok())
}

fn mirror(
    places: &Places,
    source: &Site,
    target: &Site,
    before: Option<(u32, u32)>,
    output: &Output,
) -> std::result::Result<Mirrored, Error> {
    let (Ok(from), Ok(to)) = (source.store(), target.store()) else {
        return Ok(Mirrored::default());
    };
    let bar = output.counter(&format!("bringing '{}' up, bytes:", target.name));
    let mirror = Mirror { source: from, target: to, keys: &places.keys, before };
    let done = mirror.run(&mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    done
}

impl Healed {
    fn note(&mut self, source: &Site, target: &Site, done: std::result::Result<Mirrored, Error>) {
        let (mirrored, error) = match done {
            Ok(mirrored) if mirrored.objects == 0 => return,
            Ok(mirrored) => (mirrored, None),
            Err(error) => (Mirrored::default(), Some(error.to_string())),
        };
        self.brought_up.push(BroughtUp {
            destination: target.name.clone(),
            from: source.name.clone(),
            objects: mirrored.objects,
            bytes: mirrored.bytes,
            error,
        });
    }
}

fn stored(store: &dyn Store) -> Result<u64> {
    Ok(verify::stored_bytes(store)?)
}

/// For people.
pub fn text(healed: &Healed) -> String {
    let mut text = String::new();
    for damaged in &healed.damaged {
        let DamagedReport { destination, object, what, replaced_from } = damaged;
        text += &match replaced_from {
            Some(from) => format!("healed '{object}' in '{destination}' from '{from}' ({what})\n"),
            None => format!("'{object}' in '{destination}' is intact nowhere: {what}\n"),
        };
    }
    for up in &healed.brought_up {
        text += &match &up.error {
            None => format!(
                "brought '{}' up to '{}': {} objects, {}\n",
                up.destination,
                up.from,
                up.objects,
                bytes(up.bytes)
            ),
            Some(error) => {
                format!("could not bring '{}' up to '{}': {error}\n", up.destination, up.from)
            }
        };
    }
    if healed.damaged.is_empty() && healed.brought_up.is_empty() {
        text += "nothing to heal\n";
    }
    if healed.running {
        text += "lightningd is running: the segment that it is writing was left alone; stop it to have all healed\n";
    }
    text
}
