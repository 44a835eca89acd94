//! Why a simulation could not go on. What the plugin may rightly do (refuse,
//! die) is an [`Outcome`](super::Outcome), not an error.

use std::io;
use std::time::Duration;

use crate::oracle::Difference;

/// A failure of the simulation, or of the plugin's protocol.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The node was asked for something that needs a running plugin.
    #[error("the plugin is not running")]
    NotRunning,
    /// The node is running already, or in the middle of a transaction.
    #[error("the node is {0}")]
    Busy(&'static str),
    /// The plugin's process could not be started or written to.
    #[error("failed to {action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// The cause.
        source: io::Error,
    },
    /// The plugin closed its output: it died or stopped by itself.
    #[error("the plugin closed its output (its stderr: {stderr})")]
    Closed {
        /// What it had written to stderr.
        stderr: String,
    },
    /// The plugin did not answer in time.
    #[error("the plugin did not answer {id} within {waited:?}")]
    Timeout {
        /// The request's id.
        id: String,
        /// How long the node waited.
        waited: Duration,
    },
    /// The plugin wrote what lightningd would not accept.
    #[error("the plugin broke the protocol: {0}")]
    Protocol(String),
    /// The plugin disabled itself, in its manifest or in answer to `init`.
    #[error("the plugin disabled itself: {0}")]
    Disabled(String),
    /// A statement, or the database, failed.
    #[error("failed to run {sql}: {source}")]
    Sql {
        /// The statement, abbreviated.
        sql: String,
        /// The cause.
        source: rusqlite::Error,
    },
    /// The version changed under the node, or there is none.
    #[error("optimistic lock on the database failed")]
    OptimisticLock,
    /// A restored database is none of those that the backup may hold.
    #[error("the restored database is wrong: {}", describe(.0))]
    WrongRestore(Vec<(String, Difference)>),
}

impl SimError {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    pub(super) fn sql(sql: &str) -> impl FnOnce(rusqlite::Error) -> Self {
        const SHOWN_CHARS: usize = 200;
        let sql = sql.chars().take(SHOWN_CHARS).collect();
        move |source| Self::Sql { sql, source }
    }
}

fn describe(differences: &[(String, Difference)]) -> String {
    let parts: Vec<String> = differences
        .iter()
        .map(|(candidate, difference)| format!("unlike {candidate}: {difference}"))
        .collect();
    parts.join("; ")
}
