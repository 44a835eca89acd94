//! The destinations of this node's log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_proto::config::{LockFile, NamedDestination};
use lockstep_proto::error::Result;
use lockstep_proto::log::LogEnd;
use lockstep_proto::replica::{Observer, Replicas, Report, Standing};
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::{Options, Store};

use crate::status::{DestinationStatus, State};
use crate::wire::{Level, Output};

/// How long the places that are a little behind are waited for when lightningd stops.
const SETTLE: Duration = Duration::from_secs(5);

/// One destination, or several with a policy. They may become others while the node runs, for all who have a copy.
#[derive(Clone)]
pub struct Places(Arc<Mutex<Listed>>);

#[derive(Clone)]
struct Listed {
    named: Arc<Vec<NamedDestination>>,
    /// Where there are several.
    replicas: Option<Arc<Replicas>>,
}

impl Places {
    fn new(named: Vec<NamedDestination>, replicas: Option<Arc<Replicas>>) -> Self {
        Self(Arc::new(Mutex::new(Listed { named: Arc::new(named), replicas })))
    }

    /// Held briefly, and never while a destination is asked something.
    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on they are these.
    pub fn become_others(&self, named: Vec<NamedDestination>, replicas: Arc<Replicas>) {
        *self.lock() = Listed { named: Arc::new(named), replicas: Some(replicas) };
    }

    /// The destinations with their policy, where there are several.
    pub fn replicas(&self) -> Option<Arc<Replicas>> {
        self.lock().replicas.clone()
    }

    /// Opens what the lock file names, and gives the store that it makes and where its log ends.
    ///
    /// # Errors
    /// Where a destination that is needed does not answer, or is not this node's.
    pub fn open(
        lock: &LockFile,
        options: &Options,
        keys: &KeyRing,
        output: &Arc<Output>,
    ) -> Result<(Self, Arc<dyn Store>, LogEnd)> {
        let named = lock.destinations(options)?;
        if let [destination] = named.as_slice() {
            let store = destination.url.open_of(lock.store_id)?;
            let end = LogEnd::read(&*store, keys)?;
            return Ok((Self::new(named, None), store, end));
        }
        let (replicas, end) = Replicas::open(lock, named.clone(), keys, observer(output))?;
        for report in replicas.reports() {
            if report.standing != Standing::Current {
                tell(&report, output);
            }
        }
        let replicas = Arc::new(replicas);
        let store: Arc<dyn Store> = replicas.clone();
        Ok((Self::new(named, Some(replicas)), store, end))
    }

    /// The destination, where there is one: whoever writes to several opens them anew by itself.
    pub fn only(&self) -> Option<NamedDestination> {
        let listed = self.lock();
        listed.named.first().filter(|_| listed.replicas.is_none()).cloned()
    }

    /// All of them.
    pub fn named(&self) -> Arc<Vec<NamedDestination>> {
        self.lock().named.clone()
    }

    /// How messages name them.
    pub fn label(&self) -> String {
        let label = |of: &NamedDestination| format!("{} ({})", of.name, of.url);
        self.named().iter().map(label).collect::<Vec<_>>().join(" + ")
    }

    /// One that has everything, and the others that have.
    pub fn current(&self) -> (NamedDestination, Vec<NamedDestination>) {
        let Listed { named, replicas } = self.lock().clone();
        let reports = replicas.map(|replicas| replicas.reports());
        let has = |of: &&NamedDestination| match &reports {
            Some(reports) => reports
                .iter()
                .any(|report| report.name == of.name && report.standing == Standing::Current),
            None => true,
        };
        let mut has: Vec<NamedDestination> = named.iter().filter(has).cloned().collect();
        match has.is_empty() {
            true => (named[0].clone(), has),
            false => (has.remove(0), has),
        }
    }

    /// Waits a little for those that are about to have everything.
    pub fn settle(&self) {
        if let Some(replicas) = self.replicas() {
            replicas.settle(SETTLE);
        }
    }

    /// How each is, given how the log is.
    pub fn status(&self, log: &DestinationStatus) -> Vec<DestinationStatus> {
        let Listed { named, replicas } = self.lock().clone();
        let reports = replicas.map(|replicas| replicas.reports());
        let status = |of: &NamedDestination| {
            let mut reports = reports.iter().flatten();
            let report = reports.find(|report| report.name == of.name);
            DestinationStatus {
                name: of.name.clone(),
                url: of.url.to_string(),
                mode: of.mode,
                fencing: log.fencing.filter(|_| report.is_none()).or(of.fencing),
                state: report.map_or(log.state, |report| state_of(report, log.state)),
                lacks: report.map_or(0, |report| report.lacks),
                error: report.and_then(|report| report.error.clone()),
                ..log.clone()
            }
        };
        named.iter().map(status).collect()
    }
}

/// Says in the node's log where a destination goes away or comes back.
pub fn observer(output: &Arc<Output>) -> Observer {
    let log = output.clone();
    Arc::new(move |report: &Report| tell(report, &log))
}

fn state_of(report: &Report, log: State) -> State {
    match report.standing {
        Standing::Apart => State::Diverged,
        Standing::Behind => State::Behind,
        Standing::Current if log == State::Stalled && report.lacks > 0 => State::Stalled,
        Standing::Current if log == State::Ready => State::Ready,
        Standing::Current => State::Current,
    }
}

/// Says so where a destination goes away or comes back.
fn tell(report: &Report, output: &Output) {
    let name = &report.name;
    let why = report.error.as_deref().unwrap_or("it lacks what others have");
    match report.standing {
        Standing::Current => output.log(Level::Info, &format!("'{name}' has everything again")),
        Standing::Behind => {
            output.log(
                Level::Unusual,
                &format!("'{name}' is behind, and is being brought up: {why}"),
            );
        }
        Standing::Apart => {
            output.log(
                Level::Broken,
                &format!("'{name}' holds another history, and is not written to: {why}"),
            );
        }
    }
}
