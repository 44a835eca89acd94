//! Compares two SQLite databases by content: schema, and every row with its
//! types. Files may differ (`VACUUM`, free pages, rowids of tables without an
//! integer key); what a node can read may not.

use std::fmt;
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row, Rows};

/// The first difference found between a `left` and a `right` database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A schema object is in one database only.
    Missing {
        /// Its kind and name, such as `table payments`.
        object: String,
        /// The side that lacks it: `left` or `right`.
        side: &'static str,
    },
    /// A schema object is defined by other SQL.
    Definition {
        /// Its kind and name.
        object: String,
        /// Its SQL on the left.
        left: String,
        /// Its SQL on the right.
        right: String,
    },
    /// A table has another number of rows; all rows before were equal.
    Rows {
        /// The table.
        table: String,
        /// Rows on the left.
        left: u64,
        /// Rows on the right.
        right: u64,
    },
    /// A column of a row differs.
    Value {
        /// The table.
        table: String,
        /// The row's place when the table is sorted by its columns, from 0.
        row: u64,
        /// The column.
        column: String,
        /// The value on the left, abbreviated.
        left: String,
        /// The value on the right, abbreviated.
        right: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { object, side } => write!(f, "{object} is missing on the {side}"),
            Self::Definition { object, left, right } => {
                write!(f, "{object} is defined as {left} | {right}")
            }
            Self::Rows { table, left, right } => {
                write!(f, "table {table} has {left} | {right} rows")
            }
            Self::Value { table, row, column, left, right } => {
                write!(f, "table {table}, sorted row {row}, column {column}: {left} | {right}")
            }
        }
    }
}

/// The first difference between two database files, or `None` when schema and
/// rows are equal.
pub fn difference(left: &Path, right: &Path) -> rusqlite::Result<Option<Difference>> {
    difference_between(&open(left)?, &open(right)?)
}

/// As [`difference`], on open connections.
pub fn difference_between(
    left: &Connection,
    right: &Connection,
) -> rusqlite::Result<Option<Difference>> {
    let (left_schema, right_schema) = (schema(left)?, schema(right)?);
    if let Some(found) = schema_difference(&left_schema, &right_schema) {
        return Ok(Some(found));
    }
    for object in left_schema.iter().filter(|object| object.kind == "table") {
        if let Some(found) = table_difference(left, right, &object.name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Panics with the difference, in words, unless both hold the same.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    match difference(left, right) {
        Ok(None) => {}
        Ok(Some(found)) => panic!("{} and {} differ: {found}", left.display(), right.display()),
        Err(error) => {
            panic!("failed to compare {} with {}: {error}", left.display(), right.display())
        }
    }
}

/// The number of rows of all tables together.
pub fn row_count(path: &Path) -> rusqlite::Result<u64> {
    let db = open(path)?;
    let mut total = 0;
    for object in schema(&db)?.iter().filter(|object| object.kind == "table") {
        let sql = format!("SELECT count(*) FROM {}", quoted(&object.name));
        let rows: i64 = db.query_row(&sql, [], |row| row.get(0))?;
        total += rows.cast_unsigned();
    }
    Ok(total)
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

struct Object {
    kind: String,
    name: String,
    sql: String,
}

impl Object {
    fn describe(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }
}

/// Everything in the schema that somebody defined, in an order of its own.
fn schema(db: &Connection) -> rusqlite::Result<Vec<Object>> {
    let mut statement = db.prepare(
        "SELECT type, name, coalesce(sql, '') FROM sqlite_master \
         WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' OR name = 'sqlite_sequence' \
         ORDER BY type DESC, name",
    )?;
    let objects = statement.query_map([], |row| {
        Ok(Object { kind: row.get(0)?, name: row.get(1)?, sql: row.get(2)? })
    })?;
    objects.collect()
}

fn schema_difference(left: &[Object], right: &[Object]) -> Option<Difference> {
    let named = |side: &[Object], object: &Object| {
        side.iter().position(|other| other.kind == object.kind && other.name == object.name)
    };
    for object in left {
        let Some(found) = named(right, object) else {
            return Some(Difference::Missing { object: object.describe(), side: "right" });
        };
        if right[found].sql != object.sql {
            return Some(Difference::Definition {
                object: object.describe(),
                left: object.sql.clone(),
                right: right[found].sql.clone(),
            });
        }
    }
    let extra = right.iter().find(|object| named(left, object).is_none())?;
    Some(Difference::Missing { object: extra.describe(), side: "left" })
}

fn table_difference(
    left: &Connection,
    right: &Connection,
    table: &str,
) -> rusqlite::Result<Option<Difference>> {
    let sql = sorted_select(left, table)?;
    let (mut left, mut right) = (left.prepare(&sql)?, right.prepare(&sql)?);
    let columns: Vec<String> = left.column_names().map(String::from).collect();
    let (mut left, mut right) = (left.query([])?, right.query([])?);
    let mut row = 0;
    loop {
        match (left.next()?, right.next()?) {
            (None, None) => return Ok(None),
            (Some(a), Some(b)) => {
                if let Some((at, a, b)) = row_difference(a, b, columns.len())? {
                    return Ok(Some(Difference::Value {
                        table: table.to_owned(),
                        row,
                        column: columns[at].clone(),
                        left: a,
                        right: b,
                    }));
                }
                row += 1;
            }
            (a, b) => {
                let extra = (u64::from(a.is_some()), u64::from(b.is_some()));
                return Ok(Some(Difference::Rows {
                    table: table.to_owned(),
                    left: row + extra.0 + rest(&mut left, extra.0)?,
                    right: row + extra.1 + rest(&mut right, extra.1)?,
                }));
            }
        }
    }
}

/// The rows that are left to read; none once the end was seen, since SQLite
/// starts over when it is asked again.
fn rest(rows: &mut Rows<'_>, unfinished: u64) -> rusqlite::Result<u64> {
    let mut count = 0;
    while unfinished == 1 && rows.next()?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// Every column, in an order that depends on the content only: 1 and 1.0 sort
/// alike, so the type is a key as well.
fn sorted_select(db: &Connection, table: &str) -> rusqlite::Result<String> {
    let from = quoted(table);
    let statement = db.prepare(&format!("SELECT * FROM {from}"))?;
    let keys: Vec<String> = statement
        .column_names()
        .map(|name| format!("{0} COLLATE BINARY, typeof({0})", quoted(name)))
        .collect();
    Ok(format!("SELECT * FROM {from} ORDER BY {}", keys.join(", ")))
}

fn row_difference(
    left: &Row<'_>,
    right: &Row<'_>,
    columns: usize,
) -> rusqlite::Result<Option<(usize, String, String)>> {
    for column in 0..columns {
        let (a, b) = (left.get_ref(column)?, right.get_ref(column)?);
        if !same(a, b) {
            return Ok(Some((column, shown(a), shown(b))));
        }
    }
    Ok(None)
}

fn same(left: ValueRef<'_>, right: ValueRef<'_>) -> bool {
    match (left, right) {
        (ValueRef::Real(a), ValueRef::Real(b)) => a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    }
}

fn shown(value: ValueRef<'_>) -> String {
    const SHOWN_BYTES: usize = 40;
    match value {
        ValueRef::Null => "NULL".into(),
        ValueRef::Integer(value) => format!("integer {value}"),
        ValueRef::Real(value) => format!("real {value:?}"),
        ValueRef::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let short: String = text.chars().take(SHOWN_BYTES).collect();
            format!("text of {} bytes {short:?}", bytes.len())
        }
        ValueRef::Blob(bytes) => {
            let head = &bytes[..bytes.len().min(SHOWN_BYTES)];
            let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("blob of {} bytes {hex}", bytes.len())
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(sql: &str) -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(sql).unwrap();
        db
    }

    fn compare(left: &str, right: &str) -> Option<String> {
        let found = difference_between(&database(left), &database(right)).unwrap();
        found.map(|difference| difference.to_string())
    }

    #[test]
    fn the_order_of_insertion_does_not_matter() {
        let left = "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (1.0, 'x'), (NULL, x'')";
        let right = "CREATE TABLE t (a, b); INSERT INTO t VALUES (NULL, x''), (1.0, 'x'), (1, 'x')";
        assert_eq!(compare(left, right), None);
    }

    #[test]
    fn types_are_compared() {
        let left = "CREATE TABLE t (a); INSERT INTO t VALUES ('12')";
        let right = "CREATE TABLE t (a); INSERT INTO t VALUES (12)";
        let found = compare(left, right).unwrap();
        assert_eq!(found, "table t, sorted row 0, column a: text of 2 bytes \"12\" | integer 12");
    }

    #[test]
    fn a_missing_row_is_counted() {
        let left = "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2), (3)";
        let right = "CREATE TABLE t (a); INSERT INTO t VALUES (1)";
        assert_eq!(compare(left, right).unwrap(), "table t has 3 | 1 rows".to_owned());
        assert_eq!(compare(right, left).unwrap(), "table t has 1 | 3 rows");
    }

    #[test]
    fn the_schema_is_compared() {
        let plain = "CREATE TABLE t (a)";
        let indexed = "CREATE TABLE t (a); CREATE INDEX i ON t (a)";
        let other = "CREATE TABLE t (a INTEGER)";
        assert_eq!(compare(plain, indexed).unwrap(), "index i is missing on the left");
        assert_eq!(compare(indexed, plain).unwrap(), "index i is missing on the right");
        assert!(compare(plain, other).unwrap().contains("is defined as"));
    }
}
