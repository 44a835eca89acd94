//! What a node writes ([`Step`]) and what it reports of it ([`Batch`]).

use serde::{Deserialize, Serialize};

/// One unit of work of the node's database, before it is given a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A transaction's statements, without the closing `data_version` update,
    /// which the node adds itself.
    Transaction(Vec<String>),
    /// One `PRAGMA`, run and reported outside any transaction, with the
    /// version unchanged.
    Pragma(String),
}

impl Step {
    /// The first transaction of a small node: lightningd's own table, and one for rows, `t` with `a` and `b`.
    pub fn small_schema() -> Self {
        Self::transaction([
            "CREATE TABLE vars (name TEXT PRIMARY KEY, intval INTEGER)",
            "INSERT INTO vars VALUES ('data_version', 0)",
            "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)",
        ])
    }

    /// A transaction of these statements.
    pub fn transaction<S: Into<String>>(statements: impl IntoIterator<Item = S>) -> Self {
        Self::Transaction(statements.into_iter().map(Into::into).collect())
    }

    /// Turns foreign keys on or off, as a table rebuild does around itself.
    pub fn foreign_keys(on: bool) -> Self {
        let value = if on { "ON" } else { "OFF" };
        Self::Pragma(format!("PRAGMA foreign_keys = {value};"))
    }

    /// Whether this is a `PRAGMA` of its own.
    pub fn is_pragma(&self) -> bool {
        matches!(self, Self::Pragma(_))
    }

    /// The statements, without the version's update.
    pub fn statements(&self) -> &[String] {
        match self {
            Self::Transaction(statements) => statements,
            Self::Pragma(pragma) => std::slice::from_ref(pragma),
        }
    }
}

impl From<Batch> for Step {
    /// The step that a node took to report this batch.
    fn from(batch: Batch) -> Self {
        let mut writes = batch.writes;
        if writes.len() == 1 && is_pragma(&writes[0]) {
            return Self::Pragma(writes.remove(0));
        }
        if writes.last().is_some_and(|last| is_version_bump(last)) {
            writes.pop();
        }
        Self::Transaction(writes)
    }
}

/// The `params` of one `db_write` call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The version of the database once this batch is committed.
    pub data_version: u32,
    /// The statements, in order.
    pub writes: Vec<String>,
}

impl Batch {
    /// Whether it holds nothing but `PRAGMA`s, which take effect only outside
    /// a transaction.
    pub fn is_pragma_only(&self) -> bool {
        !self.writes.is_empty() && self.writes.iter().all(|sql| is_pragma(sql))
    }
}

/// The statement with which lightningd ends every transaction that wrote.
pub fn version_bump(stored: i64) -> String {
    format!("UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND intval = {stored}")
}

fn is_version_bump(sql: &str) -> bool {
    sql.starts_with("UPDATE vars SET intval = intval + 1 WHERE name = 'data_version' AND ")
}

fn is_pragma(sql: &str) -> bool {
    sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("pragma"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_becomes_the_step_it_came_from() {
        let writes = vec!["DELETE FROM a".to_owned(), version_bump(6)];
        let batch = Batch { data_version: 7, writes };
        assert_eq!(Step::from(batch), Step::transaction(["DELETE FROM a"]));
        let pragma = Batch { data_version: 7, writes: vec!["PRAGMA foreign_keys = OFF;".into()] };
        assert!(pragma.is_pragma_only());
        assert_eq!(Step::from(pragma), Step::foreign_keys(false));
    }

    #[test]
    fn an_empty_batch_is_no_pragma() {
        let empty = Batch { data_version: 1, writes: Vec::new() };
        assert!(!empty.is_pragma_only());
    }
}
