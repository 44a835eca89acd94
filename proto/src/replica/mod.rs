//! The log at several destinations at once: one store to its writer, many places behind it.
//!
//! All places hold the same objects, byte for byte. What the writer appends goes into the [`feed`]; a thread for each
//! place ([`worker`]) follows it there, and the [`policy`] says how many of them an append waits for. One that was
//! away is brought up by copying what it lacks from another ([`mirror`]).
//!
//! | module | idea |
//! |---|---|
//! | [`policy`] | when a record is acknowledged |
//! | [`feed`] | what is being written, for who is not equally fast |
//! | [`worker`] | one place's thread |
//! | [`mirror`], [`heal`] | one place brought up to another, or mended from it |
//! | [`distance`] | how two places stand to each other |
//! | [`open`] | which places answer, and which of them has the newest state |
//! | [`change`] | places that come and go while the log is written |
//! | [`everywhere`] | an object written to all places at once |
//! | [`quorum`] | waiting for enough places |
//! | [`ground`] | clock, threads and waiting: real ones, or a simulation's |
//! | [`store`] | all of that as one store |
//! | [`shared`] | what writer and threads know of each other |

mod change;
mod distance;
mod everywhere;
mod feed;
mod ground;
mod heal;
mod mirror;
mod open;
mod policy;
mod quorum;
mod shared;
mod store;
#[cfg(test)]
mod two;
mod worker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use distance::{Distance, Seen};
pub use ground::{Ground, Simulated};
pub use heal::{Fault, Heal, small_faults};
pub use mirror::{Mirror, Mirrored};
pub use open::{ask_each, leading};
pub use policy::{Mode, Policy};
pub use shared::{Report, Standing};
pub use worker::Observer;

use self::ground::lock;
use self::open::{newest, open_all};
use self::quorum::Quorum;
use self::shared::{Replica, Shared, Task};
use self::worker::Worker;
use crate::config::{LockFile, NamedDestination};
use crate::error::{Error, Result as LogResult};
use crate::layout;
use crate::log::LogEnd;
use crate::record::Destinations;
use crate::seal::KeyRing;
use crate::store::{Store, StoreError, StoreErrorKind};

/// Once enough places have answered, the others may take this much longer before they are left to be brought up.
const GRACE: Duration = Duration::from_secs(2);
/// A place that has not taken a record for so long is said to be behind, and opened anew.
const NOTICED: Duration = Duration::from_secs(5);
/// Whether the places answer is known after this: lightningd does not wait for a plugin longer than a minute.
pub const OPENING: Duration = Duration::from_secs(20);

/// What places answered, by their numbers; `Err(None)`: it is not open.
type Given<T> = Vec<(usize, Result<T, Option<StoreError>>)>;

/// Several places as one store.
pub struct Replicas {
    quorum: Quorum,
    known: Destinations,
    crew: Arc<Crew>,
}

/// The places' threads, which end with the last view of them, and what they need.
struct Crew {
    shared: Arc<Shared>,
    keys: KeyRing,
    observer: Observer,
}

impl Crew {
    /// Starts the thread of the place of this number.
    fn start(&self, index: usize) -> LogResult<()> {
        let worker = Worker::new(index, &self.keys, &self.shared, &self.observer);
        let started = self.shared.ground.start("destination", move || worker.run());
        started.map_err(Error::file("start a thread for", "a destination".as_ref()))
    }
}

impl Replicas {
    /// Opens all places that a lock file names, and gives where the newest of their logs ends. `destinations` are
    /// its own, with their credentials; `observer` is told when one goes away or comes back.
    ///
    /// # Errors
    /// [`Error::Refused`] where fewer answer than an append needs.
    pub fn open(
        lock: &LockFile,
        destinations: Vec<NamedDestination>,
        keys: &KeyRing,
        observer: Observer,
    ) -> LogResult<(Self, LogEnd)> {
        Self::open_on(Ground::default(), lock, destinations, keys, observer)
    }

    /// The same, on a simulation's ground.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(
        ground: Ground,
        lock: &LockFile,
        destinations: Vec<NamedDestination>,
        keys: &KeyRing,
        observer: Observer,
    ) -> LogResult<(Self, LogEnd)> {
        let policy = lock.policy()?;
        let patience = lock.stall_timeout();
        let mut destinations = destinations;
        for of in &mut destinations {
            of.url = of.url.clone().with_patience(NOTICED.min(patience));
        }
        let mut answers = open_all(&ground, &destinations, keys, OPENING.min(patience));
        let newest = newest(&destinations, policy, &mut answers)?;
        let end = answers[newest].as_ref().map(|(_, end)| end.clone());
        let end = end.map_err(|error| Error::damaged(&destinations[newest].name, error))?;
        let replica = |(answer, of): (&open::Answer, &NamedDestination)| {
            let whole = answer.as_ref().is_ok_and(|(_, found)| found.position == end.position);
            let standing = if whole { Standing::Current } else { Standing::Behind };
            let mut replica = Replica::new(of.clone(), standing);
            replica.report.error = answer.as_ref().err().map(Error::explain);
            replica.store = answer.as_ref().ok().map(|(store, _)| store.clone());
            replica.whole = whole;
            replica
        };
        let shared = Arc::new(Shared::new(ground));
        {
            let mut state = shared.lock();
            state.to_acknowledge = policy.to_acknowledge();
            state.replicas = answers.iter().zip(&destinations).map(replica).collect();
        }
        let names: Vec<&str> = destinations.iter().map(|of| of.name.as_str()).collect();
        let (label, known) = (names.join(" + "), lock.known_destinations());
        let crew = Crew { shared: shared.clone(), keys: keys.clone(), observer };
        (0..destinations.len()).try_for_each(|index| crew.start(index))?;
        let quorum = Quorum { shared, policy, patience, label };
        Ok((Self { quorum, known, crew: Arc::new(crew) }, end))
    }

    /// How each place is.
    pub fn reports(&self) -> Vec<Report> {
        let state = self.quorum.shared.lock();
        let all = state.replicas.iter().enumerate().filter(|(_, replica)| !replica.removed);
        all.map(|(index, _)| state.report(index)).collect()
    }

    /// Waits until every place that answers has everything, but no longer than `patience`.
    pub fn settle(&self, patience: Duration) {
        let shared = &self.quorum.shared;
        let until = shared.ground.now() + patience;
        let mut state = shared.lock();
        while state.replicas.iter().any(|replica| {
            let current = replica.report.standing == Standing::Current && !replica.removed;
            current && !replica.has(state.feed.steps())
        }) {
            if shared.ground.left(until).is_zero() {
                return;
            }
            state = shared.wait(&shared.done, state, Some(until));
        }
    }

    /// Asks every place at once, and gives the answers of those that gave one in time, by their number: within
    /// `grace` of the one that made them enough.
    fn ask<T: Send + 'static>(
        &self,
        grace: Duration,
        what: impl Fn(&Arc<dyn Store>) -> Result<T, StoreError> + Clone + Send + 'static,
    ) -> Given<T> {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let shared = &self.quorum.shared;
        let mut state = shared.lock();
        let counts: Vec<bool> =
            state.replicas.iter().map(|replica| replica.report.mode.is_sync()).collect();
        let replicas = state.replicas.iter_mut().enumerate();
        for (index, replica) in replicas.filter(|(_, replica)| !replica.removed) {
            let (answers, what) = (answers.clone(), what.clone());
            let task: Task = Box::new(move |store| {
                let answer = store.ok_or(None).and_then(|store| what(store).map_err(Some));
                lock(&answers).push((index, answer));
            });
            replica.tasks.push_back(task);
        }
        shared.work.ring();
        let mut until = shared.ground.now() + self.quorum.patience;
        let good = |(index, answer): &&(usize, Result<T, _>)| answer.is_ok() && counts[*index];
        let mut enough = false;
        // As long as there is a task that was neither done nor dropped, as where its place was removed.
        while Arc::strong_count(&answers) > 1 && !shared.ground.left(until).is_zero() {
            let given = lock(&answers).iter().filter(good).count();
            if !enough && given >= self.quorum.policy.to_acknowledge() {
                enough = true;
                until = until.min(shared.ground.now() + grace);
                continue;
            }
            state = shared.wait(&shared.done, state, Some(until));
        }
        drop(state);
        std::mem::take(&mut *lock(&answers))
    }

    /// Goes on from the newest of the ends that were `given`, and gives it. Places that lack something of it are brought up.
    fn expect_newest(&self, given: Given<Option<open::Answer>>) -> LogResult<LogEnd> {
        let mut state = self.quorum.shared.lock();
        let mut answers: Vec<open::Answer> = Vec::new();
        let mut destinations = Vec::new();
        let mut given: HashMap<usize, _> = given.into_iter().collect();
        for (index, replica) in state.replicas.iter().enumerate().filter(|(_, of)| !of.removed) {
            let unanswered = || {
                let what = replica.report.error.clone();
                let what = what.unwrap_or_else(|| "it has not answered in time".into());
                Err(Error::Refused { what, hint: "check the disk or network behind it.".into() })
            };
            answers.push(match given.remove(&index) {
                Some(Ok(Some(answer))) => answer,
                Some(Err(Some(error))) => Err(error.into()),
                Some(Ok(None) | Err(None)) | None => unanswered(),
            });
            destinations.push(replica.destination.clone());
        }
        let newest = newest(&destinations, self.quorum.policy, &mut answers)?;
        let position = |answer: &open::Answer| answer.as_ref().ok().map(|(_, end)| end.position);
        let positions: Vec<_> = answers.iter().map(position).collect();
        let (_, end) = answers.swap_remove(newest)?;
        let of_all = || positions.iter().map(|position| *position == Some(end.position));
        let mut replicas: Vec<_> = state.replicas.iter_mut().filter(|of| !of.removed).collect();
        // What lacks something besides its log goes on lacking it, unless nobody is known to have everything.
        let any_whole =
            replicas.iter().zip(of_all()).any(|(replica, equal)| replica.whole && equal);
        for (replica, equal) in replicas.iter_mut().zip(of_all()) {
            replica.set_whole(equal && (replica.whole || !any_whole));
            if !replica.whole {
                replica.report.standing = Standing::Behind;
            }
        }
        state.looked = true;
        drop(state);
        self.quorum.shared.work.ring();
        Ok(end)
    }

    fn counts(&self, index: usize) -> bool {
        self.quorum.shared.lock().replicas[index].report.mode.is_sync()
    }

    /// Changes every place. Those where it fails are brought up later; there must be enough where it does not.
    fn change(
        &self,
        action: &'static str,
        object: &str,
        what: impl Fn(&Arc<dyn Store>) -> Result<(), StoreError> + Clone + Send + 'static,
    ) -> Result<(), StoreError> {
        let answers = self.ask(GRACE, what);
        self.require(self.quorum.policy.to_acknowledge(), action, object, answers)
    }

    /// Whether so many of the places that count have answered well. If so, the others are brought up later.
    fn require(
        &self,
        needed: usize,
        action: &'static str,
        object: &str,
        answers: Given<()>,
    ) -> Result<(), StoreError> {
        let mut state = self.quorum.shared.lock();
        let (mut good, mut first) = (0, None);
        let mut has = vec![false; state.replicas.len()];
        for (index, answer) in answers {
            match answer {
                Ok(()) => {
                    has[index] = true;
                    good += usize::from(state.replicas[index].report.mode.is_sync());
                }
                Err(Some(error)) if matches!(error.kind, StoreErrorKind::Exists) => {
                    return Err(error);
                }
                Err(error) => {
                    // It is opened anew, or the next try would fail as this one did.
                    state.replicas[index].failed |= error.is_some();
                    first = first.or(error);
                }
            }
        }
        self.quorum.shared.work.ring();
        if good >= needed {
            for (replica, _) in state.replicas.iter_mut().zip(has).filter(|(_, has)| !has) {
                replica.set_whole(false);
            }
            return Ok(());
        }
        Err(first
            .unwrap_or_else(|| self.quorum.error(action, object, self.quorum.unanswered(&state))))
    }

    /// Reads from the first place that answers, of those that have everything.
    fn read_from<T>(
        &self,
        action: &'static str,
        object: &str,
        read: impl Fn(&dyn Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let state = self.quorum.shared.lock();
        let whole = state.replicas.iter().filter(|replica| replica.whole);
        let stores: Vec<_> = whole.filter_map(|replica| replica.store.clone()).collect();
        drop(state);
        let mut last = None;
        for store in stores {
            match read(&*store) {
                // A claim may be on some places only.
                Err(error)
                    if !matches!(error.kind, StoreErrorKind::NotFound)
                        || object.starts_with(layout::EPOCHS) =>
                {
                    last = Some(error);
                }
                answer => return answer,
            }
        }
        let gone = StoreErrorKind::Gone("none of its destinations answers");
        Err(last.unwrap_or_else(|| self.quorum.error(action, object, gone)))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // A thread may hang in the operating system: none is waited for.
        self.shared.lock().closing = true;
        self.shared.work.ring();
    }
}
