//! What the places' threads stand on: clock, threads and waiting are the operating system's, or a simulation's, in which
//! one thread runs at a time.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::NamedDestination;
use crate::error::Result;
use crate::jitter::jittered;
use crate::seal::StoreId;
use crate::store::Store;

/// A simulation's own clock, threads and places.
pub trait Simulated: Send + Sync {
    /// Opens a place.
    ///
    /// # Errors
    /// Where it does not answer.
    fn open(&self, destination: &NamedDestination) -> Result<Arc<dyn Store>>;

    /// The time.
    fn now(&self) -> Instant;

    /// Starts a thread, which runs when it is its turn.
    fn start(&self, work: Box<dyn FnOnce() + Send>);

    /// Lets others run, until [`wake`](Self::wake) is called or it is `until`.
    fn wait(&self, until: Option<Instant>);

    /// Whoever waits looks again.
    fn wake(&self);
}

/// What it is.
#[derive(Clone, Default)]
pub struct Ground(Option<Arc<dyn Simulated>>);

impl Ground {
    /// A simulation's.
    pub fn simulated(by: Arc<dyn Simulated>) -> Self {
        Self(Some(by))
    }

    /// Opens a place, which must be of the store `expected`.
    pub(super) fn open(
        &self,
        destination: &NamedDestination,
        expected: StoreId,
    ) -> Result<Arc<dyn Store>> {
        match &self.0 {
            None => destination.url.open_of(expected),
            Some(simulated) => simulated.open(destination),
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.0.as_ref().map_or_else(Instant::now, |simulated| simulated.now())
    }

    /// How long it is until then.
    pub(super) fn left(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.now())
    }

    pub(super) fn start(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match &self.0 {
            None => thread::Builder::new().name(name.into()).spawn(work).map(drop),
            Some(simulated) => {
                simulated.start(Box::new(work));
                Ok(())
            }
        }
    }

    /// The same of every destination: at once, each for no longer than `patience`.
    pub(super) fn ask_each<T: Send + 'static>(
        &self,
        destinations: &[NamedDestination],
        patience: Duration,
        question: impl Fn(&NamedDestination) -> Result<T> + Clone + Send + 'static,
    ) -> Vec<Result<T>> {
        match &self.0 {
            None => super::open::ask_each(destinations, patience, question),
            Some(_) => destinations.iter().map(question).collect(),
        }
    }

    /// The same pause, jittered; in a simulation nothing but the seed decides.
    pub(super) fn jittered(&self, pause: Duration) -> Duration {
        if self.0.is_some() { pause } else { jittered(pause) }
    }

    /// A bell that is heard on this ground.
    pub(super) fn bell(&self) -> Bell {
        Bell { rung: Condvar::new(), ground: self.clone() }
    }
}

/// What waiting threads listen for. It may also ring for nothing.
pub(super) struct Bell {
    rung: Condvar,
    ground: Ground,
}

impl Bell {
    /// Lets go of what is `held` of `mutex` until the bell rings, but no longer than `until`.
    pub fn wait<'a, T>(
        &self,
        mutex: &'a Mutex<T>,
        held: MutexGuard<'a, T>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, T> {
        if let Some(simulated) = &self.ground.0 {
            drop(held);
            simulated.wait(until);
            return lock(mutex);
        }
        match until {
            None => self.rung.wait(held).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let left = self.ground.left(until);
                self.rung.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Rings for all who wait.
    pub fn ring(&self) {
        match &self.ground.0 {
            None => self.rung.notify_all(),
            Some(simulated) => simulated.wake(),
        }
    }
}

/// Locks what is only ever held briefly.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
