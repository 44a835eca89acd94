//! Whether two databases hold the same: a digest of one, a comparison of two.
//!
//! A restored database is right if it has the node's schema and rows, not if it is
//! the same file: `VACUUM`, which lightningd runs after a migration and does not
//! report, rearranges pages and changes nothing else.
//!
//! What counts as content:
//!
//! - the definition of every table, index, view and trigger, but for what SQLite
//!   makes by itself (automatic indexes) or gathers (`sqlite_stat…`);
//! - every row of every table, `sqlite_sequence` included, in the table's own order,
//!   with each value's type;
//! - **the rowid, where the table has an index.** lightningd gives out the rowid of
//!   `forwards` as `created_index`, and writes it by name, though no column holds it
//!   (`migrate_forwards_add_rowid` in `wallet/db.c`). `VACUUM` keeps the rowids of
//!   tables with an index and numbers those of others anew, so of these only the
//!   order counts.
//!
//! Both functions read everything, in one transaction: they hold a read lock for as
//! long as that takes, and lightningd cannot commit meanwhile. They are for copies
//! and for databases of stopped nodes. Memory is that of one row at a time.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Row, Statement, Transaction};
use sha2::{Digest, Sha256};

/// What the digest begins with, so that it is never that of something else.
const DOMAIN: &[u8] = b"cln-lockstep content v1\n";

/// SQLite's steps after which [`digest_while`] asks; a row takes several.
const STEPS_BETWEEN_LOOKS: i32 = 1_000;

/// A database could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("read {what}: {source}")]
pub struct ContentError {
    /// What was being read: the schema, or a table by its name.
    what: String,
    source: rusqlite::Error,
}

impl From<ContentError> for rusqlite::Error {
    fn from(error: ContentError) -> Self {
        error.source
    }
}

impl ContentError {
    fn schema(source: rusqlite::Error) -> Self {
        Self { what: "the schema".to_owned(), source }
    }

    fn table(name: &str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self { what: format!("table '{name}'"), source }
    }

    fn is_interrupted(&self) -> bool {
        self.source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted)
    }
}

/// A digest of a database's content: equal for equal content, whatever the file.
///
/// SHA-256 of `cln-lockstep content v1\n`; then for each definition, by (type, name),
/// `S` and the values type, name, table name, SQL; then for each table, by name, `T`
/// and the name as a value, for each row `R`, the rowid as a value if it counts, and
/// each column's value, and after the last row `E` and the number of rows as eight
/// bytes. A value is one byte and its bytes: 0 null, 1 integer (eight), 2 real (eight,
/// IEEE 754), 3 text and 4 blob (each with its length before it, eight). All numbers
/// big-endian, names sorted by their bytes.
///
/// Fails with [`ContentError`], for damaged databases too.
pub fn digest(connection: &Connection) -> Result<[u8; 32], ContentError> {
    let _view = read_transaction(connection).map_err(ContentError::schema)?;
    let mut hash = Sha256::new_with_prefix(DOMAIN);
    for (key, rest) in schema(connection).map_err(ContentError::schema)? {
        hash.update(b"S");
        for text in [key.0, key.1, rest.0, rest.1] {
            hash_value(&mut hash, ValueRef::Text(text.as_bytes()));
        }
    }
    for table in tables(connection).map_err(ContentError::schema)? {
        digest_table(connection, &table, &mut hash).map_err(ContentError::table(&table.name))?;
    }
    Ok(hash.finalize().into())
}

/// As [`digest`], for as long as `go_on` says so; `None` where it does not. It is asked every few hundred rows.
///
/// Fails as [`digest`] does.
pub fn digest_while(
    connection: &mut Connection,
    mut go_on: impl FnMut() -> bool + Send + 'static,
) -> Result<Option<[u8; 32]>, ContentError> {
    connection
        .progress_handler(STEPS_BETWEEN_LOOKS, Some(move || !go_on()))
        .map_err(ContentError::schema)?;
    let digest = digest(connection);
    connection.progress_handler(0, None::<fn() -> bool>).map_err(ContentError::schema)?;
    match digest {
        Err(error) if error.is_interrupted() => Ok(None),
        digest => digest.map(Some),
    }
}

/// The first difference between two databases, in words that name table, row and
/// column but no value; `None` if their content is the same, exactly when their
/// digests are.
///
/// Fails with [`ContentError`], for damaged databases too.
pub fn compare(first: &Connection, second: &Connection) -> Result<Option<String>, ContentError> {
    let _first = read_transaction(first).map_err(ContentError::schema)?;
    let _second = read_transaction(second).map_err(ContentError::schema)?;
    let (a, b) = (schema(first), schema(second));
    let (a, b) = (a.map_err(ContentError::schema)?, b.map_err(ContentError::schema)?);
    for (key, definition) in &a {
        let (kind, name) = key;
        match b.get(key) {
            None => return Ok(Some(format!("{kind} '{name}' is only in the first"))),
            Some(other) if other != definition => {
                return Ok(Some(format!("{kind} '{name}' is defined differently")));
            }
            Some(_) => {}
        }
    }
    if let Some((kind, name)) = b.keys().find(|key| !a.contains_key(*key)) {
        return Ok(Some(format!("{kind} '{name}' is only in the second")));
    }
    for table in tables(first).map_err(ContentError::schema)? {
        let difference =
            compare_table(first, second, &table).map_err(ContentError::table(&table.name))?;
        if let Some(difference) = difference {
            return Ok(Some(format!("table '{}': {difference}", table.name)));
        }
    }
    Ok(None)
}

/// One view of the database for all that follows, unless there is one already.
fn read_transaction(connection: &Connection) -> rusqlite::Result<Option<Transaction<'_>>> {
    if connection.is_autocommit() { connection.unchecked_transaction().map(Some) } else { Ok(None) }
}

/// (type, name) to (table name, SQL), sorted.
type Schema = BTreeMap<(String, String), (String, String)>;

fn schema(connection: &Connection) -> rusqlite::Result<Schema> {
    let query = "SELECT type, name, tbl_name, sql FROM main.sqlite_schema
                 WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\'";
    let mut statement = connection.prepare(query)?;
    let rows = statement
        .query_map([], |row| Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?))))?;
    rows.collect()
}

/// A table whose rows count.
pub(crate) struct Table {
    /// Its name.
    pub(crate) name: String,
    /// Yields the rowid, or null where there is none, then every column.
    pub(crate) query: String,
    /// What the rowid can be called, where there is one.
    pub(crate) rowid: Option<&'static str>,
    /// Whether the rowid is content, or only says where a row is.
    pub(crate) rowid_counts: bool,
}

/// The tables, sorted by name. Virtual tables have no rows of their own; what their
/// modules store is in ordinary tables.
pub(crate) fn tables(connection: &Connection) -> rusqlite::Result<Vec<Table>> {
    let query = "SELECT name, wr FROM pragma_table_list
                 WHERE schema = 'main' AND type IN ('table', 'shadow') AND name <> 'sqlite_schema'
                 AND name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\' ORDER BY name";
    let mut statement = connection.prepare(query)?;
    let names = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let names: Vec<(String, bool)> = names.collect::<Result<_, _>>()?;
    names.into_iter().map(|(name, without_rowid)| table(connection, name, without_rowid)).collect()
}

fn table(connection: &Connection, name: String, without_rowid: bool) -> rusqlite::Result<Table> {
    let mut columns = connection.prepare("SELECT name FROM pragma_table_xinfo(?1)")?;
    let columns = columns.query_map([&name], |row| row.get(0))?;
    let columns: Vec<String> = columns.collect::<Result<_, _>>()?;
    // A column may take one of the rowid's names, or all of them.
    let rowid = ["rowid", "_rowid_", "oid"]
        .into_iter()
        .filter(|_| !without_rowid)
        .find(|rowid| !columns.iter().any(|column| column.eq_ignore_ascii_case(rowid)));
    let indexed = connection.prepare("SELECT 1 FROM pragma_index_list(?1)")?.exists([&name])?;
    let (key, order) = match rowid {
        Some(rowid) => (rowid, format!("ORDER BY {rowid}")),
        None if without_rowid => ("NULL", format!("ORDER BY {}", primary_key(connection, &name)?)),
        // Only the order of the table itself is left, which comes unasked.
        None => ("NULL", String::new()),
    };
    let from = name.replace('"', "\"\"");
    let query = format!("SELECT {key}, * FROM main.\"{from}\" NOT INDEXED {order}");
    Ok(Table { name, query, rowid, rowid_counts: rowid.is_some() && indexed })
}

/// The order of a table without a rowid, for `ORDER BY`.
fn primary_key(connection: &Connection, table: &str) -> rusqlite::Result<String> {
    let query = "SELECT x.name, x.coll, x.\"desc\" FROM pragma_index_list(?1) AS l,
                 pragma_index_xinfo(l.name) AS x WHERE l.origin = 'pk' AND x.key ORDER BY x.seqno";
    let mut statement = connection.prepare(query)?;
    let columns = statement.query_map([table], |row| {
        let (name, collation): (String, String) = (row.get(0)?, row.get(1)?);
        let direction = if row.get(2)? { "DESC" } else { "ASC" };
        let quote = |name: String| name.replace('"', "\"\"");
        Ok(format!("\"{}\" COLLATE \"{}\" {direction}", quote(name), quote(collation)))
    })?;
    Ok(columns.collect::<Result<Vec<_>, _>>()?.join(", "))
}

fn digest_table(connection: &Connection, table: &Table, hash: &mut Sha256) -> rusqlite::Result<()> {
    hash.update(b"T");
    hash_value(hash, ValueRef::Text(table.name.as_bytes()));
    let mut statement = connection.prepare(&table.query)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut count: u64 = 0;
    while let Some(row) = rows.next()? {
        hash.update(b"R");
        for column in usize::from(!table.rowid_counts)..columns {
            hash_value(hash, row.get_ref(column)?);
        }
        count += 1;
    }
    hash.update(b"E");
    hash.update(count.to_be_bytes());
    Ok(())
}

fn hash_value(hash: &mut Sha256, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => hash.update([0]),
        ValueRef::Integer(integer) => {
            hash.update([1]);
            hash.update(integer.to_be_bytes());
        }
        ValueRef::Real(real) => {
            hash.update([2]);
            hash.update(real.to_bits().to_be_bytes());
        }
        ValueRef::Text(bytes) => hash_bytes(hash, 3, bytes),
        ValueRef::Blob(bytes) => hash_bytes(hash, 4, bytes),
    }
}

fn hash_bytes(hash: &mut Sha256, kind: u8, bytes: &[u8]) {
    hash.update([kind]);
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

/// The first difference between the rows of a table that both have, defined alike.
fn compare_table(
    first: &Connection,
    second: &Connection,
    table: &Table,
) -> rusqlite::Result<Option<String>> {
    let mut first = first.prepare(&table.query)?;
    let mut second = second.prepare(&table.query)?;
    let names = column_names(&first);
    let mut first = first.query([])?;
    let mut second = second.query([])?;
    let mut number: u64 = 0;
    loop {
        number += 1;
        match (first.next()?, second.next()?) {
            (None, None) => return Ok(None),
            (Some(row), None) => {
                return Ok(Some(format!("{} is only in the first", place(number, row)?)));
            }
            (None, Some(row)) => {
                return Ok(Some(format!("{} is only in the second", place(number, row)?)));
            }
            (Some(a), Some(b)) => {
                if let Some(difference) = compare_row(a, b, table.rowid_counts, &names)? {
                    return Ok(Some(format!("{}: {difference}", place(number, a)?)));
                }
            }
        }
    }
}

fn column_names(statement: &Statement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}

fn compare_row(
    a: &Row<'_>,
    b: &Row<'_>,
    rowid_counts: bool,
    names: &[String],
) -> rusqlite::Result<Option<String>> {
    for (column, name) in names.iter().enumerate().skip(usize::from(!rowid_counts)) {
        let (a, b) = (a.get_ref(column)?, b.get_ref(column)?);
        if same(a, b) {
            continue;
        }
        if column == 0 {
            return Ok(Some("the second has another rowid".to_owned()));
        }
        return Ok(Some(format!("column '{name}' differs: {}, {}", kind(a), kind(b))));
    }
    Ok(None)
}

/// Which row: its place in order and its rowid, if it has one.
fn place(number: u64, row: &Row<'_>) -> rusqlite::Result<String> {
    Ok(match row.get_ref(0)? {
        ValueRef::Integer(rowid) => format!("row {number} (rowid {rowid})"),
        _ => format!("row {number}"),
    })
}

/// Same type and same bytes, as in the digest: 0.0 is not -0.0.
fn same(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a, b) {
        (ValueRef::Real(a), ValueRef::Real(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}

/// A value's type and size, never the value.
fn kind(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(_) => "integer".to_owned(),
        ValueRef::Real(_) => "real".to_owned(),
        ValueRef::Text(bytes) => format!("text of {} bytes", bytes.len()),
        ValueRef::Blob(bytes) => format!("blob of {} bytes", bytes.len()),
    }
}

#[cfg(test)]
mod tests;
