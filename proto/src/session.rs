//! What a `db_write` means for the log: the version rules, without any I/O.
//!
//! lightningd's `data_version` grows by one with each transaction. Settings (`PRAGMA …`) are sent outside
//! of transactions with the version unchanged. lightningd commits only what was acknowledged, and
//! sends the next call only when it has committed: so within a session every earlier batch is in the
//! database, and only at its start is it open whether the log's newest batch is.

use crate::error::{Error, Result};
use crate::record::Head;
use crate::version::DataVersion;

/// What must be done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Append the batch.
    Append,
    /// The log's newest batch was never committed: void it, then append.
    RewindThenAppend {
        /// The seq of the batch to void.
        void: u64,
    },
    /// The database holds transactions that the log does not: it takes a snapshot to go on.
    Gap,
    /// The database is older than the log: it must not go on.
    Behind,
}

/// The version rules, from the state in which a session finds the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    head: Head,
    /// True once a call of this session showed where the database is: what follows is behind that.
    own: bool,
}

impl Session {
    /// A new session on a log whose head is `head`.
    pub fn new(head: Head) -> Self {
        Self { head, own: false }
    }

    /// The head, for the open record of the segment that the next call needs.
    pub fn head(&self) -> Head {
        Head { in_doubt: self.head.in_doubt && !self.own, ..self.head }
    }

    /// The head as the newest record left it.
    pub fn newest(&self) -> Head {
        self.head
    }

    /// What to do with a call of `version`; `transaction` is false for settings.
    pub fn step(&self, version: DataVersion, transaction: bool) -> Step {
        let ahead = version.ahead_of(self.head.data_version.unwrap_or_default());
        let in_doubt = if self.head().in_doubt { self.head.batch_seq } else { None };
        match (transaction, ahead) {
            (true, 1) | (false, 0) => Step::Append,
            (true, 0) => match in_doubt {
                Some(void) => Step::RewindThenAppend { void },
                // Within a session an equal version is one more batch.
                None if self.own || self.head.is_empty() => Step::Append,
                None => Step::Behind,
            },
            // The batch in doubt was not committed; the transaction that follows will void it.
            (false, -1) if in_doubt.is_some() => Step::Append,
            (_, ahead) if ahead > 0 => Step::Gap,
            _ => Step::Behind,
        }
    }

    /// Refuses a call of a database that is older than the log.
    ///
    /// # Errors
    /// [`Error::Behind`].
    pub fn refuse_behind(&self, version: DataVersion, transaction: bool) -> Result<()> {
        match self.step(version, transaction) {
            Step::Behind => Err(Error::Behind {
                head: self.head.data_version.unwrap_or_default(),
                database: version,
            }),
            _ => Ok(()),
        }
    }

    /// What a database at `version` means for the log, before any call was made.
    pub fn compare(&self, version: DataVersion) -> Direction {
        let ahead = version.ahead_of(self.head.data_version.unwrap_or_default());
        match ahead {
            0 => Direction::Equal,
            -1 if self.head.in_doubt => Direction::Equal,
            ahead if ahead > 0 => Direction::Ahead,
            _ => Direction::Behind,
        }
    }

    /// Notes that the batch of `seq` was acknowledged.
    pub fn appended(&mut self, version: DataVersion, transaction: bool, seq: u64) {
        if transaction {
            self.head = Head { data_version: Some(version), batch_seq: Some(seq), in_doubt: true };
            self.own = true;
        } else if self.head.data_version == Some(version) {
            // Settings carry the version that is in the database: the batch of that version is, too.
            self.head.in_doubt = false;
            self.own = true;
        }
    }

    /// Notes that the batch in doubt was voided.
    pub fn rewound(&mut self) {
        let before = self.head.data_version.map(|version| DataVersion(version.0.wrapping_sub(1)));
        self.head = Head { data_version: before, batch_seq: None, in_doubt: false };
    }
}

/// How a database stands to its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The same state, or the one before a batch in doubt.
    Equal,
    /// The database holds more.
    Ahead,
    /// The log holds more.
    Behind,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: u32, in_doubt: bool) -> Session {
        let batch_seq = Some(40);
        Session::new(Head { data_version: Some(DataVersion(version)), batch_seq, in_doubt })
    }

    #[test]
    fn next_version_is_appended() {
        assert_eq!(at(7, true).step(DataVersion(8), true), Step::Append);
        assert_eq!(at(u32::MAX, false).step(DataVersion(0), true), Step::Append);
        assert_eq!(Session::new(Head::default()).step(DataVersion(1), true), Step::Append);
    }

    #[test]
    fn equal_version_at_the_start_voids_the_head() {
        assert_eq!(at(7, true).step(DataVersion(7), true), Step::RewindThenAppend { void: 40 });
    }

    #[test]
    fn equal_version_within_a_session_is_one_more_batch() {
        let mut session = at(6, true);
        session.appended(DataVersion(7), true, 41);
        assert_eq!(session.step(DataVersion(7), true), Step::Append);
        assert!(!session.head().in_doubt);
    }

    #[test]
    fn equal_version_at_the_start_is_behind_a_head_that_was_committed() {
        assert_eq!(at(7, false).step(DataVersion(7), true), Step::Behind);
    }

    #[test]
    fn settings_never_void_anything() {
        let mut session = at(7, true);
        assert_eq!(session.step(DataVersion(7), false), Step::Append);
        assert_eq!(session.step(DataVersion(6), false), Step::Append);
        session.appended(DataVersion(6), false, 41);
        assert_eq!(session.step(DataVersion(7), true), Step::RewindThenAppend { void: 40 });
    }

    #[test]
    fn settings_at_the_head_show_that_it_was_committed() {
        let mut session = at(7, true);
        session.appended(DataVersion(7), false, 41);
        assert_eq!(session.step(DataVersion(7), true), Step::Append);
        assert_eq!(session.step(DataVersion(6), false), Step::Behind);
    }

    #[test]
    fn a_jump_is_a_gap_and_a_fall_is_refused() {
        assert_eq!(at(7, true).step(DataVersion(9), true), Step::Gap);
        assert_eq!(at(7, true).step(DataVersion(8), false), Step::Gap);
        assert_eq!(at(7, true).step(DataVersion(6), true), Step::Behind);
        assert_eq!(at(7, true).step(DataVersion(5), false), Step::Behind);
        assert_eq!(at(7, false).step(DataVersion(6), false), Step::Behind);
    }

    #[test]
    fn a_database_is_compared_before_the_first_call() {
        assert_eq!(at(7, true).compare(DataVersion(7)), Direction::Equal);
        assert_eq!(at(7, true).compare(DataVersion(6)), Direction::Equal);
        assert_eq!(at(7, false).compare(DataVersion(6)), Direction::Behind);
        assert_eq!(at(7, true).compare(DataVersion(8)), Direction::Ahead);
        assert_eq!(at(7, true).compare(DataVersion(5)), Direction::Behind);
    }

    #[test]
    fn a_voided_head_leaves_the_version_before() {
        let mut session = at(0, true);
        session.rewound();
        assert_eq!(session.step(DataVersion(0), true), Step::Append);
        assert_eq!(session.compare(DataVersion(u32::MAX)), Direction::Equal);
    }

    #[test]
    fn an_empty_log_takes_a_transaction_of_version_0() {
        for data_version in [None, Some(DataVersion(0))] {
            let session = Session::new(Head { data_version, ..Head::default() });
            assert_eq!(session.step(DataVersion(0), true), Step::Append);
        }
    }
}
