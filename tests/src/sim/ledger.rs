//! What the node asked, what was acknowledged, what it committed.

use crate::step::{Batch, Step};

/// How far one batch came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// The plugin never had the whole request: it cannot know the batch.
    Unsent,
    /// Sent, and neither acknowledged nor committed: a backup holds it whole
    /// or not at all. A refused batch is one of these.
    Asked,
    /// Acknowledged, but the node died before its commit: a backup holds it.
    Acknowledged,
    /// Committed.
    Committed,
}

/// One batch that the node tried to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The plugin process that was asked, counted from 1.
    pub session: u32,
    /// The version that the batch would lead to.
    pub data_version: u32,
    /// Whether it was a `PRAGMA` of its own.
    pub pragma: bool,
    /// How far it came.
    pub fate: Fate,
}

/// An attempt since the last commit, with what is needed to redo it.
#[derive(Clone, Debug)]
pub(super) struct Uncommitted {
    pub step: Step,
    pub data_version: u32,
    pub fate: Fate,
    pub foreign_keys: bool,
}

/// The account of a node's life, over all its sessions.
#[derive(Debug, Default)]
pub struct Ledger {
    attempts: Vec<Attempt>,
    uncommitted: Vec<Uncommitted>,
    committed: Option<u32>,
}

impl Ledger {
    /// Every attempt, in order.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The versions that were acknowledged, in order; whether each was then
    /// committed is in [`Ledger::attempts`].
    pub fn acknowledged(&self) -> impl Iterator<Item = u32> + '_ {
        self.attempts
            .iter()
            .filter(|attempt| attempt.fate >= Fate::Acknowledged)
            .map(|attempt| attempt.data_version)
    }

    /// The version of the last commit.
    pub fn committed_version(&self) -> Option<u32> {
        self.committed
    }

    /// The last attempt, if it was not committed.
    pub fn pending(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|attempt| attempt.fate != Fate::Committed)
    }

    /// The transactions since the last commit of one that the plugin has heard
    /// of; a `PRAGMA` changes nothing that a backup owes.
    pub(super) fn heard(&self) -> Vec<&Uncommitted> {
        let heard =
            |attempt: &&Uncommitted| attempt.fate != Fate::Unsent && !attempt.step.is_pragma();
        self.uncommitted.iter().filter(heard).collect()
    }

    pub(super) fn begin(&mut self, session: u32, step: &Step, batch: &Batch, foreign_keys: bool) {
        self.attempts.push(Attempt {
            session,
            data_version: batch.data_version,
            pragma: step.is_pragma(),
            fate: Fate::Unsent,
        });
        self.uncommitted.push(Uncommitted {
            step: step.clone(),
            data_version: batch.data_version,
            fate: Fate::Unsent,
            foreign_keys,
        });
    }

    /// Marks how far the last attempt came.
    pub(super) fn mark(&mut self, fate: Fate) {
        let Some(attempt) = self.attempts.last_mut() else {
            return;
        };
        attempt.fate = fate;
        let attempt = *attempt;
        if let Some(last) = self.uncommitted.last_mut() {
            last.fate = fate;
        }
        if fate == Fate::Committed {
            self.committed = Some(attempt.data_version);
            self.settle(attempt.pragma);
        }
    }

    /// Forgets what a commit settles. A `PRAGMA` replaces no batch: one that
    /// was acknowledged and lost before must still be in the backup.
    fn settle(&mut self, pragma: bool) {
        if pragma {
            self.uncommitted.pop();
        } else {
            self.uncommitted.clear();
        }
    }

    /// Notes a commit that no plugin was asked about.
    pub(super) fn committed_unhooked(&mut self, data_version: u32) {
        self.committed = Some(data_version);
        self.uncommitted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_settles_what_was_pending() {
        let step = Step::transaction(["DELETE FROM t"]);
        let batch = |data_version| Batch { data_version, writes: Vec::new() };
        let mut ledger = Ledger::default();
        ledger.begin(1, &step, &batch(4), true);
        ledger.mark(Fate::Acknowledged);
        assert_eq!(ledger.pending().unwrap().data_version, 4);
        assert_eq!(ledger.committed_version(), None);
        ledger.begin(2, &step, &batch(4), true);
        ledger.mark(Fate::Committed);
        assert!(ledger.pending().is_none());
        assert!(ledger.heard().is_empty());
        assert_eq!(ledger.acknowledged().collect::<Vec<_>>(), [4, 4]);
        assert_eq!(ledger.committed_version(), Some(4));
    }
    #[test]
    fn a_pragma_settles_nothing_but_itself() {
        let batch = |data_version| Batch { data_version, writes: Vec::new() };
        let mut ledger = Ledger::default();
        ledger.begin(1, &Step::transaction(["DELETE FROM t"]), &batch(4), true);
        ledger.mark(Fate::Acknowledged);
        for fate in [Fate::Asked, Fate::Acknowledged, Fate::Committed] {
            ledger.begin(2, &Step::foreign_keys(false), &batch(3), true);
            ledger.mark(fate);
            let heard = ledger.heard();
            assert_eq!((heard.len(), heard[0].fate), (1, Fate::Acknowledged));
        }
        assert_eq!(ledger.committed_version(), Some(3));
    }
}
