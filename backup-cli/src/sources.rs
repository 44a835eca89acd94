//! All places of a log, for a restore: the newest state may be at another than the one that was named.

use std::path::Path;
use std::sync::Arc;

use lockstep_proto::config::{LockFile, NamedDestination};
use lockstep_proto::destination::Destination;
use lockstep_proto::liveness::LastWriter;
use lockstep_proto::log::{self, LogEnd};
use lockstep_proto::marker::Marker;
use lockstep_proto::record::{Destinations, KnownDestination};
use lockstep_proto::replica::{Mirror, Mode, Policy, Replicas, Seen, leading};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::Store;

use crate::failure::{Failure, Result};
use crate::output::{Output, utc};
use crate::place::{ask_in_time, destination};

/// The places that answer.
pub struct Sources {
    /// Each of them; the first was named.
    places: Vec<Source>,
    /// The place with the newest state, by its number.
    newest: usize,
    /// What the newest state says of its places.
    known: Destinations,
}

struct Source {
    destination: NamedDestination,
    store: Arc<dyn Store>,
    end: LogEnd,
}

impl Sources {
    /// Looks at the place that was named, at `also`, and at all that their logs name.
    ///
    /// # Errors
    /// Where one of them does not answer, or two have different histories, unless `accept_stale`.
    pub fn look(
        named: (Destination, Arc<dyn Store>),
        also: &[String],
        keys: &KeyRing,
        accept_stale: bool,
        directory: Option<&Path>,
        output: &Output,
    ) -> Result<Self> {
        let (url, store) = named;
        let (end, damage) = match accept_stale {
            true => LogEnd::read_intact(&*store, keys, &log::all_segments(&*store)?)?,
            false => (LogEnd::read(&*store, keys)?, None),
        };
        if let Some(damage) = damage {
            output.note(&format!("warning: {damage}"));
        }
        let first = Source { destination: NamedDestination::new("primary", url), store, end };
        let mut wanted: Vec<KnownDestination> = also.iter().map(|url| also_named(url)).collect();
        wanted.extend(first.end.destinations.named.clone());
        let (places, away) = reach(vec![first], wanted, keys, directory)?;
        if !away.is_empty() {
            let what = format!("the log is also at places that do not answer ({})", said_of(&away));
            if !accept_stale {
                return Err(Failure::new(what, WHERE_AWAY));
            }
            output.note(&format!("warning: {what}"));
        }
        let sources = Self::of(places, accept_stale)?;
        if sources.newest != 0 {
            output.note(&format!(
                "'{}' is newer: it is at seq {}, the place that was named at seq {}",
                sources.url(),
                sources.end().position.seq,
                sources.places[0].end.position.seq
            ));
        }
        Ok(sources)
    }

    /// The same for somebody who only reads: what does not answer is named, and is no error as long as anything does.
    ///
    /// # Errors
    /// Where nothing answers, or two have different histories.
    pub fn reachable(
        urls: &[String],
        keys: &KeyRing,
        directory: Option<&Path>,
    ) -> Result<(Self, Option<String>)> {
        let wanted = urls.iter().map(|url| also_named(url)).collect();
        let (places, mut away) = reach(Vec::new(), wanted, keys, directory)?;
        if places.is_empty() && !away.is_empty() {
            return Err(away.swap_remove(0).1);
        }
        let what = (!away.is_empty()).then(|| said_of(&away));
        Ok((Self::of(places, false)?, what))
    }

    fn of(mut places: Vec<Source>, accept_stale: bool) -> Result<Self> {
        let newest = newest(&places, accept_stale)?;
        let known = places[newest].end.destinations.clone();
        for place in &mut places {
            let of = known.named.iter().find(|of| of.url == place.destination.url.to_string());
            if let Some(of) = of {
                (place.destination.name, place.destination.mode) = (of.name.clone(), of.mode);
            }
        }
        Ok(Self { places, newest, known })
    }

    /// Where the log ends, by its newest state.
    pub fn end(&self) -> &LogEnd {
        &self.places[self.newest].end
    }

    /// The URL of the place that has the newest state.
    pub fn url(&self) -> &Destination {
        &self.places[self.newest].destination.url
    }

    /// The store that has the newest state.
    pub fn store(&self) -> Arc<dyn Store> {
        self.places[self.newest].store.clone()
    }

    /// Who wrote last, by the signs of life at all places that answer.
    ///
    /// # Errors
    /// Where one cannot be read any more.
    pub fn last_writer(&self, keys: &KeyRing) -> Result<Option<LastWriter>> {
        let seen: Vec<Seen<'_>> = self
            .places
            .iter()
            .map(|Source { store, end, .. }| Seen { store: &**store, end })
            .collect();
        Ok(LastWriter::look(&seen, keys)?)
    }

    /// The lock file of a directory that goes on with this log, at all places that answer.
    pub fn lock(&self, keys: &KeyRing, directory: String) -> LockFile {
        let mut destinations: Vec<NamedDestination> =
            self.places.iter().map(|place| place.destination.clone()).collect();
        // A name that two have is of no use; and somebody must be waited for.
        for index in 1..destinations.len() {
            if destinations[..index].iter().any(|other| other.name == destinations[index].name) {
                destinations[index].name = format!("destination-{}", index + 1);
            }
        }
        if destinations.iter().all(|of| of.mode == Mode::Async) {
            destinations[0].mode = Mode::Sync;
        }
        let mut lock = LockFile::new(keys.store(), directory, destinations, None);
        lock.quorum = self.known.quorum;
        if lock.policy().is_err() {
            lock.quorum = None;
        }
        lock
    }

    /// Writes down how well each place keeps a second writer out, where it says.
    pub fn note_fencing(&self, lock: &mut LockFile) {
        for (destination, place) in lock.destinations.iter_mut().zip(&self.places) {
            destination.fencing = place.store.fencing().ok();
        }
    }

    /// What a writer writes to: the one place, or all that answer.
    ///
    /// # Errors
    /// Where one does not answer any more.
    pub fn writable(&self, keys: &KeyRing, lock: &LockFile) -> Result<Arc<dyn Store>> {
        if self.places.len() == 1 {
            return Ok(self.store());
        }
        let destinations = self.places.iter().map(|place| place.destination.clone()).collect();
        let (replicas, _) = Replicas::open(lock, destinations, keys, Arc::new(|_| {}))?;
        Ok(Arc::new(replicas))
    }

    /// Copies what the other places lack from the newest: a writer would wait for that.
    ///
    /// # Errors
    /// Where a place holds another history.
    pub fn bring_up(&self, keys: &KeyRing, output: &Output) -> Result<()> {
        let newest = &self.places[self.newest];
        for place in self.places.iter().filter(|place| place.end.position != newest.end.position) {
            let what = format!("bytes copied to '{}':", place.destination.name);
            let bar = output.counter(&what);
            let (source, target) = (&*newest.store, &*place.store);
            Mirror { source, target, keys, before: None }.run(&mut |bytes| bar.inc(bytes))?;
            bar.finish_and_clear();
        }
        Ok(())
    }
}

const WHERE_AWAY: &str = "one of them may have a newer state, and starting from an older one can cost all channel funds. Bring \
     them back; or, where they are gone for good, '--accept-stale' takes the newest of the others (with the \
     default policy each place that is waited for has everything that was acknowledged).";

fn also_named(url: &str) -> KnownDestination {
    KnownDestination { name: "also".into(), url: url.into(), mode: Mode::Sync }
}

fn open(destination: &NamedDestination, keys: KeyRing) -> Result<(Arc<dyn Store>, LogEnd)> {
    ask_in_time(destination.clone(), move |of| {
        let store = of.url.open_any()?;
        Marker::read(&*store)?.require(keys.store())?;
        let end = LogEnd::read(&*store, &keys)?;
        Ok((store, end))
    })
}

/// A place that does not answer, and why.
type Away = (String, Failure);

fn said_of(away: &[Away]) -> String {
    let said: Vec<String> =
        away.iter().map(|(url, failure)| format!("'{url}': {}", failure.message())).collect();
    said.join("; ")
}

/// Opens the places that are wanted, and all that their logs name. What does not answer comes with the reason.
fn reach(
    mut places: Vec<Source>,
    mut wanted: Vec<KnownDestination>,
    keys: &KeyRing,
    directory: Option<&Path>,
) -> Result<(Vec<Source>, Vec<Away>)> {
    let mut asked: Vec<String> =
        places.iter().map(|place| place.destination.url.to_string()).collect();
    let mut away = Vec::new();
    while let Some(next) = (!wanted.is_empty()).then(|| wanted.remove(0)) {
        let url = destination(&next.url, directory)?;
        if asked.contains(&url.to_string()) {
            continue;
        }
        asked.push(url.to_string());
        let destination =
            NamedDestination { mode: next.mode, ..NamedDestination::new(next.name, url) };
        match open(&destination, keys.clone()) {
            Ok((store, end)) => {
                wanted.extend(end.destinations.named.clone());
                places.push(Source { destination, store, end });
            }
            Err(failure) => away.push((destination.url.to_string(), failure)),
        }
    }
    Ok((places, away))
}

/// The place with the newest state; the named one where two have different histories and that is accepted.
fn newest(places: &[Source], accept_stale: bool) -> Result<usize> {
    let ends: Vec<(usize, &LogEnd)> = places.iter().map(|place| &place.end).enumerate().collect();
    let counting = places.iter().filter(|place| place.destination.mode.is_sync());
    let policy = Policy::new(counting.count().max(1), None)?;
    match leading(&ends, policy) {
        Ok(newest) => Ok(newest),
        Err(_) if accept_stale => Ok(0),
        Err((one, other)) => {
            let words = [one, other].map(|index| {
                let Source { destination, end, .. } = &places[index];
                format!(
                    "'{}' is at {} of epoch {}, written by {} until {}",
                    destination.url,
                    end.position,
                    end.epoch,
                    end.host,
                    utc(end.time)
                )
            });
            Err(Failure::new(
                format!("there are two histories: {}", words.join("; ")),
                "they are never mixed. Find out which node's state its peers have seen; name its place as URL, with \
                 '--accept-stale'.",
            ))
        }
    }
}
