//! Other destinations while the node runs: `backup.lock` was changed, and is read again between two calls of the hook.
//!
//! Nothing is asked of a destination here, so no call waits for one that is new. It is written to at once, but is not
//! waited for before it has everything; the log calls it `async` until then. Then a new segment says that it counts.

use std::sync::Arc;

use lockstep_proto::config::{LockFile, NamedDestination, destination_options};
use lockstep_proto::error::{Error, Result};
use lockstep_proto::replica::{Mode, Replicas};
use lockstep_proto::store::Store;
use serde::Serialize;

use super::Backup;
use crate::places::observer;
use crate::wire::Level;

/// How far a change of destinations is.
pub struct Reloading {
    /// The quorum that holds.
    quorum: Option<u32>,
    /// What is wanted, while destinations that will count are brought up.
    wanted: Option<Wanted>,
}

struct Wanted {
    lock: LockFile,
    destinations: Vec<NamedDestination>,
    /// The URLs of those that do not count yet.
    joining: Vec<String>,
}

/// What `backup-reload` answers.
#[derive(Serialize)]
pub struct Reloaded {
    /// False where the log had these destinations already.
    changed: bool,
    destinations: Vec<Place>,
}

#[derive(Serialize)]
struct Place {
    name: String,
    url: String,
    /// As it is to be.
    mode: Mode,
    /// True where it does not count yet: it is brought up first, and counts from the first call after that on.
    joining: bool,
}

impl Reloading {
    /// As at the start.
    pub fn new(quorum: Option<u32>) -> Self {
        Self { quorum, wanted: None }
    }
}

impl Backup {
    /// Goes on at the destinations that `backup.lock` names now, with the next record.
    ///
    /// # Errors
    /// [`Error::Refused`] where that is not sound; nothing was changed then.
    pub fn reload(&mut self) -> Result<Reloaded> {
        let lock = self.read_lock()?;
        let options = destination_options(Some(&self.directory), std::env::vars_os())?;
        let destinations = lock.destinations(&options)?;
        let now = self.places.named();
        let same = |(a, b): (&NamedDestination, &NamedDestination)| {
            (&a.name, a.mode, a.url.to_string()) == (&b.name, b.mode, b.url.to_string())
        };
        if now.len() == destinations.len()
            && now.iter().zip(&destinations).all(same)
            && lock.quorum == self.reloading.quorum
        {
            self.reloading.wanted = None;
            return Ok(Reloaded::of(&destinations, &[], false));
        }
        let (in_force, joining) = in_force(&lock, &now, self.reloading.quorum)?;
        self.move_to(&in_force, in_force.destinations(&options)?)?;
        let new = |of: &&NamedDestination| now.iter().all(|old| old.url != of.url);
        self.start_heartbeats(&destinations.iter().filter(new).cloned().collect::<Vec<_>>());
        let reloaded = Reloaded::of(&destinations, &joining, true);
        // One that was under way goes on from where it was.
        self.reloading.wanted =
            (!joining.is_empty()).then_some(Wanted { lock, destinations, joining });
        let line = format!("the backup goes on at {}", self.label());
        self.output.log(Level::Info, &line);
        Ok(reloaded)
    }

    /// Destinations that were added count from here on, if they have everything. No input or output.
    pub(super) fn let_them_count(&mut self) {
        let Some(wanted) = self.reloading.wanted.take() else { return };
        let replicas = self.places.replicas();
        let is_current = |url: &String| replicas.as_ref().is_some_and(|all| all.is_current(url));
        if wanted.joining.iter().all(is_current)
            && self.move_to(&wanted.lock, wanted.destinations.clone()).is_ok()
        {
            let line = format!("'{}' have everything, and count", self.label());
            self.output.log(Level::Info, &line);
            return;
        }
        // It may have a record to go.
        self.reloading.wanted = Some(wanted);
    }

    fn read_lock(&self) -> Result<LockFile> {
        match LockFile::read(&self.directory)? {
            Some(lock) if lock.store_id == self.store_id && lock.directory == self.id => Ok(lock),
            _ => refused(
                "backup.lock is gone, or another backup's",
                "put it back, or stop lightningd; the backup goes on as before.",
            ),
        }
    }

    fn move_to(&mut self, lock: &LockFile, destinations: Vec<NamedDestination>) -> Result<()> {
        let Some(writer) = &mut self.writer else {
            return refused("lightningd has not written anything yet", "try again in a moment.");
        };
        let one;
        let replicas = match (self.places.replicas(), self.places.only()) {
            (Some(replicas), _) => replicas,
            (None, Some(only)) => {
                let (store, observer) = (self.store.clone(), observer(&self.output));
                one = Replicas::of_one(store, writer.epoch(), only, &self.keys, observer)?;
                Arc::new(one)
            }
            (None, None) => return refused("there is no destination", "look at backup.lock."),
        };
        let replicas = Arc::new(replicas.with_places(lock, destinations.clone())?);
        let store: Arc<dyn Store> = replicas.clone();
        writer.move_to(store.clone());
        self.store = store;
        self.places.become_others(destinations, replicas);
        self.reloading.quorum = lock.quorum;
        Ok(())
    }
}

impl Reloaded {
    fn of(destinations: &[NamedDestination], joining: &[String], changed: bool) -> Self {
        let place = |of: &NamedDestination| Place {
            name: of.name.clone(),
            url: of.url.to_string(),
            mode: of.mode,
            joining: joining.contains(&of.url.to_string()),
        };
        Self { changed, destinations: destinations.iter().map(place).collect() }
    }
}

fn refused<T>(what: &str, hint: &str) -> Result<T> {
    Err(Error::Refused { what: what.into(), hint: hint.into() })
}

/// The lock file that holds until the destinations that will count have everything, and their URLs: they are `async`
/// in it, and its quorum is the old one. Whoever opens the log by `wanted` meanwhile still meets a place that has each
/// record: so it must hold for one new destination with a quorum, or for any number where all are waited for.
fn in_force(
    wanted: &LockFile,
    now: &[NamedDestination],
    quorum: Option<u32>,
) -> Result<(LockFile, Vec<String>)> {
    let counts = |all: &[NamedDestination], url: &str| {
        all.iter().any(|of| of.mode.is_sync() && of.url.to_string() == url)
    };
    let urls = |all: &[NamedDestination]| -> Vec<String> {
        let counting = all.iter().filter(|of| of.mode.is_sync());
        counting.map(|of| of.url.to_string()).collect()
    };
    let joining: Vec<String> =
        urls(&wanted.destinations).into_iter().filter(|url| !counts(now, url)).collect();
    let mut in_force = wanted.clone();
    if joining.is_empty() {
        return Ok((in_force, joining));
    }
    if urls(now).iter().any(|url| !counts(&wanted.destinations, url)) {
        return refused(
            "destinations that count both come and go",
            "add first, and remove once 'backup-status' shows the new one as current; or start lightningd again.",
        );
    }
    if joining.len() > 1 && wanted.quorum.is_some() {
        return refused(
            "several destinations that count come at once, with a quorum",
            "add one after the other, or start lightningd again.",
        );
    }
    for of in &mut in_force.destinations {
        if joining.contains(&of.url.to_string()) {
            of.mode = Mode::Async;
        }
    }
    in_force.quorum = quorum;
    Ok((in_force, joining))
}
