//! Other places for a log that is being written: some come, some go, between two records. No I/O: a place that comes is
//! brought up by its own thread, and the writer does not wait for it.

use std::sync::Arc;
use std::time::Duration;

use super::quorum::Quorum;
use super::shared::{Replica, Report, Shared, Standing};
use super::{Crew, Ground, NOTICED, Observer, Policy, Replicas};
use crate::config::{LockFile, NamedDestination};
use crate::error::{Error, Result};
use crate::record::Destinations;
use crate::seal::KeyRing;
use crate::store::Store;

impl Replicas {
    /// The one place of a log that will have several: everything up to here is in `store`, written by `epoch`.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn of_one(
        store: Arc<dyn Store>,
        epoch: u32,
        destination: NamedDestination,
        keys: &KeyRing,
        observer: Observer,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::new(Ground::default()));
        let policy = Policy::new(1, None)?;
        let (label, patience) = (destination.name.clone(), Duration::ZERO);
        {
            let mut state = shared.lock();
            (state.epoch, state.to_acknowledge) = (epoch, policy.to_acknowledge());
            let mut replica = Replica::new(destination, Standing::Current);
            (replica.store, replica.whole) = (Some(store), true);
            state.replicas.push(replica);
        }
        let crew = Crew { shared: shared.clone(), keys: keys.clone(), observer };
        crew.start(0)?;
        let quorum = Quorum { shared, policy, patience, label };
        Ok(Self { quorum, known: Destinations::default(), crew: Arc::new(crew) })
    }

    /// The same log at the places of a lock file, which are `destinations`, told by their URLs. The view that is given
    /// takes the place of this one: with the next segment the writer must go on in it. No record may be under way.
    ///
    /// A place that is new must be `async`: it counts for nothing before it [is current](Self::is_current).
    ///
    /// # Errors
    /// [`Error::Refused`] where fewer of those that will count have everything than must have the next record;
    /// nothing was changed then.
    pub fn with_places(
        &self,
        lock: &LockFile,
        destinations: Vec<NamedDestination>,
    ) -> Result<Self> {
        let (policy, patience) = (lock.policy()?, lock.stall_timeout());
        let mut state = self.crew.shared.lock();
        let steps = state.feed.steps();
        let at = |replica: &Replica| {
            let url = replica.destination.url.to_string();
            let at = destinations.iter().position(|of| of.url.to_string() == url);
            at.filter(|_| !replica.removed)
        };
        let stays: Vec<Option<usize>> = state.replicas.iter().map(at).collect();
        let counts = |at: Option<usize>| at.is_some_and(|at| destinations[at].mode.is_sync());
        let of_all = state.replicas.iter().zip(&stays);
        let ready = of_all.filter(|(replica, at)| counts(**at) && replica.has(steps)).count();
        if ready < policy.to_acknowledge() {
            return Err(Error::Refused {
                what: format!(
                    "{ready} of the destinations that would count have everything, {} must",
                    policy.to_acknowledge()
                ),
                hint: "try again once 'backup-status' shows them as current.".into(),
            });
        }
        let first_new = state.replicas.len();
        for (index, of) in destinations.iter().enumerate() {
            if !stays.contains(&Some(index)) {
                let mut of = of.clone();
                of.url = of.url.with_patience(NOTICED.min(patience));
                state.replicas.push(Replica::new(of, Standing::Behind));
            }
        }
        for (replica, at) in state.replicas.iter_mut().zip(stays) {
            match at {
                Some(at) => replica.rename(&destinations[at]),
                None => replica.remove(),
            }
        }
        state.to_acknowledge = policy.to_acknowledge();
        let new = first_new..state.replicas.len();
        drop(state);
        // Those that went stop, and whoever waits looks again.
        self.crew.shared.work.ring();
        self.crew.shared.done.ring();
        for index in new {
            // Without a thread it stays behind, and is said to be.
            if let Err(error) = self.crew.start(index) {
                self.crew.shared.lock().replicas[index].report.error = Some(error.explain());
            }
        }
        let names: Vec<&str> = destinations.iter().map(|of| of.name.as_str()).collect();
        let (shared, label) = (self.crew.shared.clone(), names.join(" + "));
        let quorum = Quorum { shared, policy, patience, label };
        Ok(Self { quorum, known: lock.known_destinations(), crew: self.crew.clone() })
    }

    /// True where the place of this URL has everything, or is writing the newest.
    pub fn is_current(&self, url: &str) -> bool {
        let state = self.crew.shared.lock();
        state.replicas.iter().any(|replica| {
            !replica.removed
                && replica.whole
                && replica.report.standing == Standing::Current
                && replica.destination.url.to_string() == url
        })
    }
}

impl Replica {
    /// One of which nothing is known but where it is.
    pub fn new(destination: NamedDestination, standing: Standing) -> Self {
        let report = Report {
            name: destination.name.clone(),
            mode: destination.mode,
            standing,
            lacks: 0,
            error: None,
        };
        Self {
            destination,
            report,
            store: None,
            whole: false,
            doubted: false,
            done: 0,
            taken: false,
            failed: false,
            found_lacking: 0,
            removed: false,
            tasks: Default::default(),
        }
    }

    fn rename(&mut self, of: &NamedDestination) {
        (self.destination.name, self.destination.mode) = (of.name.clone(), of.mode);
        (self.report.name, self.report.mode) = (of.name.clone(), of.mode);
    }

    /// Nothing waits for it or reads from it any more, and its thread ends. Others are counted by their place in the
    /// list, so it stays there.
    fn remove(&mut self) {
        (self.removed, self.taken) = (true, false);
        self.set_whole(false);
        self.report.mode = super::Mode::Async;
        self.store = None;
        self.tasks.clear();
    }
}
