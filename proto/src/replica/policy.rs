//! When a record is acknowledged, of several destinations. No I/O.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Whether an append waits for a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It counts: an append is acknowledged once enough of these have it.
    #[default]
    Sync,
    /// It follows as fast as it can.
    Async,
}

impl Mode {
    /// True for the default, which files leave out.
    pub fn is_sync(&self) -> bool {
        *self == Self::Sync
    }
}

/// How many of the `sync` destinations must have a record, and a claim.
///
/// Any two sets that acknowledge have a destination in common, and so have a set that acknowledges and one that a
/// claim was made on: whoever claims an epoch finds every acknowledged record, and keeps every older writer out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    sync: usize,
    quorum: usize,
}

impl Policy {
    /// `quorum` of `sync` destinations; all of them where none is given.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no such destination, or the quorum is not more than half of them.
    pub fn new(sync: usize, quorum: Option<u32>) -> Result<Self> {
        let refused = |what: String, hint: &str| Err(Error::Refused { what, hint: hint.into() });
        if sync == 0 {
            let hint =
                "make one of them 'sync': what nobody waits for is no backup of the newest state.";
            return refused("no destination is 'sync'".into(), hint);
        }
        let quorum = quorum.map_or(sync, |quorum| quorum as usize);
        if quorum > sync || 2 * quorum <= sync {
            let what = format!("a quorum of {quorum} with {sync} 'sync' destinations");
            return refused(
                what,
                "a quorum is more than half of them, so that no two nodes can each have one.",
            );
        }
        Ok(Self { sync, quorum })
    }

    /// So many must have a record before it is acknowledged.
    pub fn to_acknowledge(self) -> usize {
        self.quorum
    }

    /// So many must have a claim, and be read, before a writer goes on.
    pub fn to_claim(self) -> usize {
        self.sync - self.quorum + 1
    }

    /// So many may fail for good.
    pub fn spare(self) -> usize {
        self.sync - self.quorum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_majority() {
        for sync in 1..8 {
            for quorum in 0..9 {
                let majority = quorum <= sync && 2 * quorum > sync;
                assert_eq!(Policy::new(sync as usize, Some(quorum)).is_ok(), majority);
            }
        }
        assert!(Policy::new(0, None).is_err());
    }

    #[test]
    fn who_claims_meets_who_acknowledges() {
        for sync in 1..8 {
            for policy in (1..=sync as u32).filter_map(|q| Policy::new(sync, Some(q)).ok()) {
                assert!(policy.to_claim() + policy.to_acknowledge() > sync);
                assert_eq!(policy.spare() + policy.to_acknowledge(), sync);
            }
        }
        assert_eq!(Policy::new(3, None).unwrap().to_acknowledge(), 3);
    }
}
