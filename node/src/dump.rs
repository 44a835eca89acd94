//! A database as SQL text, from which any SQLite makes one with the same content ([`crate::content`]) again.
//!
//! Unlike the `.dump` of SQLite's shell it keeps the rowids that count, text with a zero byte in it, and the
//! state of `AUTOINCREMENT`.

use std::io::{self, Write};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};

use crate::content::{Table, tables};

/// Why a database could not be written down.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// It could not be read to its end.
    #[error("read {what}: {source}")]
    Read {
        /// The schema, or a table by its name.
        what: String,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// It has something that lightningd never makes, and for which there is no text here.
    #[error("the database has {what}, which cannot be written as SQL text")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// The text could not be written.
    #[error("write the text: {0}")]
    Write(#[from] io::Error),
}

impl DumpError {
    fn schema(source: rusqlite::Error) -> Self {
        Self::Read { what: "the schema".into(), source }
    }
}

/// Writes the content of a database as SQL statements, and returns how many rows that were. Reads all in one
/// transaction, as [`crate::content::digest`] does; memory is that of one row.
///
/// Fails with [`DumpError`]; what was written is then of no use.
pub fn dump(connection: &Connection, out: &mut dyn Write) -> Result<u64, DumpError> {
    let _view = connection.unchecked_transaction().map_err(DumpError::schema)?;
    refuse_unsupported(connection)?;
    writeln!(out, "PRAGMA foreign_keys = OFF;\nBEGIN;")?;
    // Tables as they were made; what stands on them comes when they are filled.
    let mut tables = tables(connection).map_err(DumpError::schema)?;
    definitions(connection, "type = 'table'", out)?;
    // Filling a table changes it: it has its own rows at last.
    let sequence = tables.iter().position(|table| table.name == SEQUENCE);
    let sequence = sequence.map(|index| tables.remove(index));
    let mut rows = 0;
    for table in &tables {
        rows += fill(connection, table, out)?;
    }
    if let Some(table) = sequence {
        // It is there once any table needed it, also if that is gone.
        let name = "lockstep_sequence";
        writeln!(out, "CREATE TABLE {name} (id INTEGER PRIMARY KEY AUTOINCREMENT);")?;
        writeln!(out, "DROP TABLE {name};\nDELETE FROM {SEQUENCE};")?;
        rows += fill(connection, &table, out)?;
    }
    definitions(connection, "type <> 'table'", out)?;
    for field in ["user_version", "application_id"] {
        let value = connection.pragma_query_value(None, field, |row| row.get::<_, i64>(0));
        writeln!(out, "PRAGMA {field} = {};", value.map_err(DumpError::schema)?)?;
    }
    writeln!(out, "COMMIT;")?;
    Ok(rows)
}

const SEQUENCE: &str = "sqlite_sequence";

fn refuse_unsupported(connection: &Connection) -> Result<(), DumpError> {
    let encoding = connection.pragma_query_value(None, "encoding", |row| row.get::<_, String>(0));
    let encoding = encoding.map_err(DumpError::schema)?;
    if encoding != "UTF-8" {
        return Err(DumpError::Unsupported { what: format!("the encoding {encoding}") });
    }
    let sql = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'virtual'";
    let virtual_table: Option<String> =
        connection.query_row(sql, [], |row| row.get(0)).optional().map_err(DumpError::schema)?;
    match virtual_table {
        Some(name) => Err(DumpError::Unsupported { what: format!("the virtual table '{name}'") }),
        None => Ok(()),
    }
}

/// In the order in which they were made: a view or trigger may need another.
fn definitions(connection: &Connection, kind: &str, out: &mut dyn Write) -> Result<(), DumpError> {
    let sql = format!(
        "SELECT sql FROM main.sqlite_schema WHERE sql IS NOT NULL AND {kind}
         AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
    );
    let mut statement = connection.prepare(&sql).map_err(DumpError::schema)?;
    let mut rows = statement.query([]).map_err(DumpError::schema)?;
    while let Some(row) = rows.next().map_err(DumpError::schema)? {
        writeln!(out, "{};", row.get::<_, String>(0).map_err(DumpError::schema)?)?;
    }
    Ok(())
}

/// One statement for each row.
fn fill(connection: &Connection, table: &Table, out: &mut dyn Write) -> Result<u64, DumpError> {
    let failed = |source| DumpError::Read { what: format!("table '{}'", table.name), source };
    let generated = generated(connection, &table.name).map_err(failed)?;
    let mut statement = connection.prepare(&table.query).map_err(failed)?;
    let names: Vec<String> = statement.column_names().map(Into::into).collect();
    let mut columns: Vec<(usize, String)> = Vec::new();
    if let Some(rowid) = table.rowid.filter(|_| table.rowid_counts) {
        columns.push((0, rowid.into()));
    }
    let own = names.into_iter().enumerate().skip(1).filter(|(_, name)| !generated.contains(name));
    columns.extend(own.map(|(index, name)| (index, quoted(&name))));
    let listed: Vec<&str> = columns.iter().map(|(_, name)| name.as_str()).collect();
    let head = format!("INSERT INTO {} ({}) VALUES (", quoted(&table.name), listed.join(", "));
    let (mut rows, mut count) = (statement.query([]).map_err(failed)?, 0);
    while let Some(row) = rows.next().map_err(failed)? {
        out.write_all(head.as_bytes())?;
        for (place, (index, _)) in columns.iter().enumerate() {
            if place > 0 {
                out.write_all(b", ")?;
            }
            write_value(row.get_ref(*index).map_err(failed)?, out)?;
        }
        out.write_all(b");\n")?;
        count += 1;
    }
    Ok(count)
}

/// Columns that SQLite computes.
fn generated(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_xinfo(?1) WHERE hidden IN (2, 3)";
    let mut statement = connection.prepare(sql)?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn write_value(value: ValueRef<'_>, out: &mut dyn Write) -> io::Result<()> {
    match value {
        ValueRef::Null => out.write_all(b"NULL"),
        ValueRef::Integer(integer) => write!(out, "{integer}"),
        ValueRef::Real(real) if real.is_infinite() => {
            out.write_all(if real > 0.0 { b"9e999" } else { b"-9e999" })
        }
        ValueRef::Real(real) => write!(out, "{real:?}"),
        ValueRef::Blob(bytes) => write_blob(bytes, out),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => write!(out, "'{}'", text.replace('\'', "''")),
            // A literal would end there.
            _ => {
                out.write_all(b"CAST(")?;
                write_blob(bytes, out)?;
                out.write_all(b" AS TEXT)")
            }
        },
    }
}

fn write_blob(bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"x'")?;
    for byte in bytes {
        write!(out, "{byte:02x}")?;
    }
    out.write_all(b"'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::compare;

    #[test]
    fn what_is_written_is_read_again_equal() {
        let had = Connection::open_in_memory().unwrap();
        had.execute_batch(
            "CREATE TABLE plain (a, \"odd \"\" name\" TEXT, c REAL);
             CREATE TABLE keyed (id INTEGER PRIMARY KEY AUTOINCREMENT, b BLOB);
             CREATE TABLE gone (id INTEGER PRIMARY KEY AUTOINCREMENT);
             CREATE TABLE rowids (name TEXT UNIQUE);
             CREATE TABLE without (k TEXT PRIMARY KEY DESC, v) WITHOUT ROWID;
             CREATE TABLE made (a INTEGER, b INTEGER GENERATED ALWAYS AS (a * 2) STORED);
             CREATE TABLE typed (a INTEGER, b TEXT) STRICT;
             CREATE TABLE child (of INTEGER REFERENCES keyed (id));
             CREATE INDEX plain_a ON plain (a);
             CREATE VIEW twice AS SELECT a, a AS b FROM plain;
             CREATE TRIGGER grows AFTER INSERT ON typed BEGIN INSERT INTO plain (a) VALUES (1); END;
             INSERT INTO plain VALUES (NULL, 'it''s; a\nline', 0.1), (9223372036854775807, '', 1e300),
                 (-9223372036854775808, CAST(x'410042' AS TEXT), -9e999), (x'00ff', '⚡', 3.0);
             INSERT INTO keyed (id, b) VALUES (7, x''), (9, x'0102');
             DELETE FROM keyed WHERE id = 9;
             INSERT INTO gone DEFAULT VALUES;
             DROP TABLE gone;
             INSERT INTO rowids (rowid, name) VALUES (5, 'x'), (40, 'y');
             INSERT INTO without VALUES ('a', 1), ('b', NULL);
             INSERT INTO made (a) VALUES (4);
             INSERT INTO typed VALUES (1, 'CREATE TABLE');
             INSERT INTO child VALUES (7);
             PRAGMA user_version = 12; PRAGMA application_id = -3;",
        )
        .unwrap();
        let mut text = Vec::new();
        let rows = dump(&had, &mut text).unwrap();
        assert_eq!(rows, 5 + 1 + 2 + 2 + 1 + 1 + 1 + 1, "and one of sqlite_sequence");
        let got = Connection::open_in_memory().unwrap();
        got.execute_batch(std::str::from_utf8(&text).unwrap()).unwrap();
        assert_eq!(compare(&had, &got).unwrap(), None);
        let version = |db: &Connection| {
            let value =
                |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
            (value("user_version"), value("application_id"))
        };
        assert_eq!(version(&got), (12, -3));
    }

    #[test]
    fn what_has_no_text_is_refused_by_name() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (a)").unwrap();
        let error = dump(&db, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("UTF-16le"), "{error}");
    }
}
