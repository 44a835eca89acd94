//! What is known of the backup, for whoever asks.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use lockstep_proto::replica::Mode;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::store::{Fencing, Store};
use serde::Serialize;

use crate::compactor::{CompactionStatus, Compactor};
use crate::metrics::Appends;
use crate::places::Places;

/// What `backup-status` answers. Fields only ever get more.
#[derive(Clone, Default, Serialize)]
pub struct Status {
    /// The store's name.
    pub store_id: String,
    /// One each; filled in for each answer.
    pub destinations: Vec<DestinationStatus>,
    /// Batches acknowledged by this process.
    pub batches: u64,
    /// Milliseconds since 1970 of the newest one.
    pub last_append: Option<u64>,
    /// Microseconds that it took.
    pub last_append_us: u64,
    /// The longest of this process.
    pub longest_append_us: u64,
    /// The key slots, by name.
    pub slots: Vec<String>,
    /// What should be looked at.
    pub warnings: Vec<String>,
    /// Snapshots; filled in for each answer.
    pub compaction: Option<CompactionStatus>,
    /// The log, as a place that has everything is.
    #[serde(skip)]
    pub log: DestinationStatus,
    /// Its places.
    #[serde(skip)]
    pub places: Option<Places>,
    /// When the hook appended last.
    #[serde(skip)]
    pub appended_at: Option<Instant>,
    /// The log was ended in order: nothing is written any more.
    #[serde(skip)]
    pub closed: bool,
}

impl Status {
    /// Notes the key slots, and warns where there is none.
    pub fn set_slots(&mut self, slots: Vec<String>) {
        const NONE: &str = "no key slot: if this machine is lost, nothing opens the backup";
        self.warnings.retain(|warning| warning != NONE);
        if slots.is_empty() {
            self.warnings.push(NONE.into());
        }
        self.slots = slots;
    }

    /// True where a destination does not have everything. (Of an answer: that fills them in.)
    pub fn is_degraded(&self) -> bool {
        self.destinations.iter().any(|of| !of.is_current())
    }
}

/// One destination.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DestinationStatus {
    /// Its name.
    pub name: String,
    /// Its URL, without credentials.
    pub url: String,
    /// Whether an append waits for it.
    pub mode: Mode,
    /// How well it keeps a second writer out, `real` or `advisory`: as it was when the backup was made, and from the
    /// first write on as this process found it.
    pub fencing: Option<Fencing>,
    /// `current`: everything acknowledged is there. `stalled`: it does not answer. `behind`: it is being brought up.
    /// `diverged`: it holds another history, and nothing is written to it.
    pub state: State,
    /// About the records of this process that it lacks.
    pub lacks: u64,
    /// What it last failed with.
    pub error: Option<String>,
    /// The history that is written.
    pub generation: u32,
    /// This writer.
    pub epoch: u32,
    /// The newest record there.
    pub seq: u64,
    /// lightningd's version there.
    pub data_version: Option<u32>,
}

impl DestinationStatus {
    /// True where it has everything, or nothing was written yet.
    pub fn is_current(&self) -> bool {
        matches!(self.state, State::Current | State::Ready)
    }
}

/// How a destination is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing was written yet by this process.
    #[default]
    Ready,
    /// Everything acknowledged is there.
    Current,
    /// It does not answer.
    Stalled,
    /// It lacks something, and is being brought up.
    Behind,
    /// It holds another history.
    Diverged,
}

/// What is needed to add a key slot.
#[derive(Clone)]
pub struct KeySlots {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What a slot holds.
    pub keys: KeyRing,
}

/// The status, shared between the hook and the rest.
#[derive(Clone, Default)]
pub struct SharedStatus(Arc<Shared>);

#[derive(Default)]
struct Shared {
    status: Mutex<Status>,
    slots: OnceLock<KeySlots>,
    appends: Appends,
    compactor: Compactor,
}

impl SharedStatus {
    /// The status as it is. Held briefly: the hook waits for it.
    pub fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of it, with what is known of compaction.
    pub fn answer(&self) -> Status {
        let mut status = self.lock().clone();
        if let Some(places) = &status.places {
            status.destinations = places.status(&status.log);
        }
        let bad = status.destinations.iter().filter(|destination| destination.error.is_some());
        let warning = |of: &DestinationStatus| {
            format!("'{}' is behind: {}", of.name, of.error.as_deref().unwrap_or_default())
        };
        let warnings: Vec<String> = bad.map(warning).collect();
        status.warnings.extend(warnings);
        status.warnings.extend(self.0.compactor.warnings());
        Status { compaction: self.0.compactor.status(), ..status }
    }

    /// How long appends took.
    pub fn appends(&self) -> &Appends {
        &self.0.appends
    }

    /// The compaction of this log.
    pub fn compactor(&self) -> &Compactor {
        &self.0.compactor
    }

    /// From here on key slots can be added.
    pub fn offer_slots(&self, slots: KeySlots) {
        // A second offer is the same store.
        let _ = self.0.slots.set(slots);
    }

    /// What is needed to add a key slot, once the store is open.
    pub fn key_slots(&self) -> Option<KeySlots> {
        self.0.slots.get().cloned()
    }
}
