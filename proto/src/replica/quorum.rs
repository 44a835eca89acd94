//! Waiting for enough places.

use std::sync::Arc;
use std::time::Duration;

use super::policy::Policy;
use super::shared::{Shared, State};
use crate::layout::SegmentName;
use crate::store::{StoreError, StoreErrorKind};

/// How many places must have what was written, and how long that may take.
#[derive(Clone)]
pub(super) struct Quorum {
    pub shared: Arc<Shared>,
    pub policy: Policy,
    pub patience: Duration,
    /// How messages name all of them.
    pub label: String,
}

impl Quorum {
    pub fn error(&self, action: &'static str, object: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { store: self.label.clone(), action, object: object.into(), kind }
    }

    /// Who keeps the policy from being met, in words.
    pub fn unanswered(&self, state: &State) -> StoreErrorKind {
        let steps = state.feed.steps();
        let missing = state.replicas.iter().filter(|replica| {
            replica.report.mode.is_sync() && (!replica.has(steps) || replica.report.error.is_some())
        });
        let words: Vec<String> = missing
            .map(|replica| {
                let why = replica.report.error.as_deref().unwrap_or("no answer");
                format!("'{}': {why}", replica.report.name)
            })
            .collect();
        StoreErrorKind::Remote {
            message: format!(
                "{} of its destinations must have it ({})",
                self.policy.to_acknowledge(),
                words.join("; ")
            ),
            hint: "bring back what does not answer; or 'backup-cli destination remove' it with lightningd stopped.",
        }
    }

    /// Waits until the policy has what the step that makes `step` of them wrote.
    pub fn wait_for(&self, step: u64, name: SegmentName) -> Result<(), StoreError> {
        let failed = |kind| Err(self.error("write", &name.to_string(), kind));
        let until = self.shared.ground.now() + self.patience;
        let mut state = self.shared.lock();
        loop {
            let counting = state.replicas.iter().filter(|replica| replica.report.mode.is_sync());
            let taken = counting.filter(|replica| replica.taken && !replica.has(step)).count();
            // It stays so: what the other writer was told is for the next session to find out.
            state.fenced |= taken > self.policy.spare();
            if state.fenced {
                return failed(StoreErrorKind::Taken);
            }
            if state.is_acknowledged(step) {
                return Ok(());
            }
            if self.shared.ground.left(until).is_zero() {
                return failed(self.unanswered(&state));
            }
            state = self.shared.wait(&self.shared.done, state, Some(until));
        }
    }
}
