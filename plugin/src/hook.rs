//! One `db_write`: from JSON to an answer.

use std::sync::Arc;

use lockstep_proto::batch::is_settings;
use lockstep_proto::error::{Error, Result};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::Call;
use lockstep_wire::DbWrite;

use crate::backup::{Appended, Backup};
use crate::stall::Watchdog;
use crate::wire::{Level, Output, refusal};

/// Answers `db_write` where this node must not go on: every call is refused.
///
/// lightningd starts without a plugin that disables itself or dies early, important or not; what it
/// cannot do without is the answer to its first write.
pub struct Refusal {
    reason: String,
    output: Arc<Output>,
}

impl Refusal {
    /// With the reason, which is logged.
    pub fn new(reason: String, output: Arc<Output>) -> Self {
        output.log(Level::Broken, &reason);
        Self { reason, output }
    }

    /// Refuses one call: lightningd stops before it commits.
    pub fn answer(&self, id: &str) {
        self.output.send(&refusal(id, &self.reason));
    }
}

/// Answers `db_write`.
pub struct Hook {
    backup: Backup,
    watchdog: Watchdog,
    output: Arc<Output>,
}

impl Hook {
    /// For the log of `backup`.
    pub fn new(backup: Backup, watchdog: Watchdog, output: Arc<Output>) -> Self {
        Self { backup, watchdog, output }
    }

    /// Makes one call durable and answers it. Any other answer than `continue` stops lightningd before
    /// it commits: that is how a call is refused.
    pub fn answer(&mut self, id: &str, call: serde_json::Result<DbWrite<'_>>) {
        self.watchdog.begin(id);
        let stored = self.store(&call);
        if !self.watchdog.end() {
            // The watchdog has answered: lightningd is stopping.
            return;
        }
        match stored {
            Ok(appended) => {
                self.output.send(&format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"result":{{"result":"continue"}}}}"#
                ));
                // What nobody waits for.
                self.backup.answered(&appended);
            }
            Err(error) => {
                let reason = error.explain();
                self.output.log(Level::Broken, &reason);
                self.output.send(&refusal(id, &reason));
            }
        }
    }

    fn store(&mut self, call: &serde_json::Result<DbWrite<'_>>) -> Result<Appended> {
        let call = call.as_ref().map_err(|error| Error::Refused {
            // Not the error itself: it may quote a statement.
            what: format!(
                "db_write that is not understood ({:?} error at byte {} of its parameters)",
                error.classify(),
                error.column()
            ),
            hint:
                "this version of lightningd may be too new; report it, and the transaction was not \
                   committed."
                    .into(),
        })?;
        if call.writes.is_empty() {
            return Err(Error::Refused {
                what: "lightningd reports no statements, as it does with a PostgreSQL wallet; an empty \
                       backup would be none"
                    .into(),
                hint: "back up PostgreSQL with its own replication, and remove this plugin.".into(),
            });
        }
        if call.writes.iter().any(|sql| memchr::memchr(0, sql.as_ref().as_bytes()).is_some()) {
            return Err(Error::Refused {
                what: "db_write with a NUL in a statement, which SQLite would cut there".into(),
                hint: "report it; the transaction was not committed.".into(),
            });
        }
        self.backup.append(
            &Call {
                data_version: DataVersion(call.data_version),
                transaction: !is_settings(&call.writes),
                writes: &call.writes,
            },
            &self.watchdog,
        )
    }

    /// Takes the destinations of `backup.lock` for the log, and answers with what they are now.
    pub fn reload(&mut self, id: &str) {
        let reloaded = self.backup.reload();
        self.watchdog.waits_for(self.backup.label());
        let answer = match reloaded {
            Ok(reloaded) => format!(
                r#"{{"jsonrpc":"2.0","id":{id},"result":{}}}"#,
                serde_json::to_string(&reloaded).unwrap_or_else(|_| "{}".into())
            ),
            Err(error) => refusal(id, &error.explain()),
        };
        self.output.send(&answer);
    }

    /// Ends the log in order.
    pub fn close(&mut self) {
        self.backup.close();
    }
}
