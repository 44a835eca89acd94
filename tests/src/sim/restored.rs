//! What a backup owes after everything that happened: oracle databases, and
//! the judgement of a restored one.

use std::fs;
use std::io;
use std::path::Path;

use super::database::journal_of;
use super::ledger::Uncommitted;
use super::{Database, Fate, Node, SimError};
use crate::oracle;

/// Which state of the node a restored database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The last committed one.
    Committed,
    /// The committed one and a batch that the node did not commit.
    Pending {
        /// The version that the batch leads to.
        data_version: u32,
    },
}

impl Node {
    /// Copies the committed content of the database to a new file. The
    /// original, and a hot journal beside it, stay as they are.
    pub fn oracle(&self, to: &Path) -> Result<(), SimError> {
        if let Some(database) = &self.database {
            return database.copy_to(to);
        }
        let from = self.database_path();
        fs::copy(&from, to).map_err(SimError::io("copy the database"))?;
        let journal = journal_of(&from);
        if journal.exists() {
            fs::copy(journal, journal_of(to)).map_err(SimError::io("copy the journal"))?;
        }
        // Opening undoes what a hot journal holds.
        drop(Database::open(to, false)?);
        Ok(())
    }

    /// Puts another database in place of the node's, such as an older copy
    /// from [`Node::oracle`], or a restored one. The node must be down.
    pub fn replace_database(&mut self, by: &Path) -> Result<(), SimError> {
        if self.plugin.is_some() || self.database.is_some() {
            return Err(SimError::Busy("running"));
        }
        let path = self.database_path();
        match fs::remove_file(journal_of(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SimError::io("remove the journal")(error));
            }
            _ => {}
        }
        fs::copy(by, &path).map_err(SimError::io("copy the database"))?;
        let data_version = Database::open(path, false)?.data_version()?;
        self.ledger.committed_unhooked(data_version);
        Ok(())
    }

    /// Judges a restored database: it must be the committed state with every
    /// acknowledged batch, and may hold a batch that was asked about. Anything
    /// else is [`SimError::WrongRestore`], with the differences in words.
    pub fn check_restored(&self, restored: &Path) -> Result<Standing, SimError> {
        let scratch = tempfile::tempdir().map_err(SimError::io("make a scratch directory"))?;
        let mut wrong = Vec::new();
        for (number, candidate) in self.candidates().into_iter().enumerate() {
            let expected = scratch.path().join(format!("candidate-{number}.sqlite3"));
            self.oracle(&expected)?;
            let (standing, name) = match candidate {
                None => (Standing::Committed, "the committed state".to_owned()),
                Some(pending) => {
                    redo(&expected, pending)?;
                    let data_version = pending.data_version;
                    let name = format!("the committed state with batch {data_version}");
                    (Standing::Pending { data_version }, name)
                }
            };
            match oracle::difference(&expected, restored) {
                Ok(None) => return Ok(standing),
                Ok(Some(difference)) => wrong.push((name, difference)),
                Err(error) => return Err(SimError::sql("compare")(error)),
            }
        }
        Err(SimError::WrongRestore(wrong))
    }

    /// The uncommitted batches that a restored database may hold (`None`: no
    /// such batch).
    ///
    /// What was acknowledged last must be there, unless the plugin has heard
    /// of another transaction since: then it may be at any point of replacing
    /// one by the other. A `PRAGMA` abandons nothing.
    fn candidates(&self) -> Vec<Option<&Uncommitted>> {
        let heard = self.ledger.heard();
        match heard.last() {
            Some(last) if last.fate == Fate::Acknowledged => vec![Some(last)],
            _ => std::iter::once(None).chain(heard.into_iter().rev().map(Some)).collect(),
        }
    }
}

/// Commits an attempt's step to a copy of the database.
fn redo(database: &Path, attempt: &Uncommitted) -> Result<(), SimError> {
    let database = Database::open(database, false)?;
    if !attempt.foreign_keys {
        database.apply(&crate::Step::foreign_keys(false))?;
    }
    database.apply(&attempt.step)?;
    Ok(())
}
