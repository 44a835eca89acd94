use super::*;
use hex_literal::hex;

fn db(sql: &str) -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(sql).unwrap();
    connection
}

/// Both functions agree that `a` and `b` hold the same.
fn assert_same(a: &Connection, b: &Connection) {
    assert_eq!(compare(a, b).unwrap(), None);
    assert_eq!(digest(a).unwrap(), digest(b).unwrap());
}

/// Both functions see a difference, and this is how it is said.
fn assert_differs(a: &str, b: &str, words: &str) {
    let (a, b) = (db(a), db(b));
    assert_eq!(compare(&a, &b).unwrap().as_deref(), Some(words));
    assert_ne!(digest(&a).unwrap(), digest(&b).unwrap(), "{words}");
}

/// What lightningd has of `forwards`, in small.
const FORWARDS: &str =
    "CREATE TABLE forwards (scid INTEGER, htlc INTEGER, PRIMARY KEY (scid, htlc));";

#[test]
fn equal_databases_are_equal() {
    let sql = format!(
        "{FORWARDS} CREATE TABLE t (a, b); CREATE VIEW v AS SELECT a FROM t;
         CREATE INDEX i ON t (b); CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END;
         INSERT INTO t VALUES (1, 'x'), (2.5, x'00ff'), (NULL, '\u{1f980}');"
    );
    assert_same(&db(&sql), &db(&sql));
    assert_same(&db(""), &db(""));
}

/// Recompute with Python:
///
/// ```text
/// v = lambda s: b"\3" + len(s).to_bytes(8, "big") + s.encode()
/// sha256(b"cln-lockstep content v1\n" + b"S" + v("table") + v("t") + v("t")
///        + v("CREATE TABLE t (a, b)") + b"T" + v("t")
///        + b"R" + b"\0" + b"\1" + (-2).to_bytes(8, "big", signed=True)
///        + b"R" + b"\2" + struct.pack(">d", 0.5) + b"\4" + (1).to_bytes(8, "big") + b"\xff"
///        + b"E" + (2).to_bytes(8, "big"))
/// ```
#[test]
fn the_digest_is_what_its_description_says() {
    let db = db("CREATE TABLE t (a, b); INSERT INTO t VALUES (NULL, -2), (0.5, x'ff');");
    assert_eq!(
        digest(&db).unwrap(),
        hex!("45a0e7fa4fe28ff010cea8e0787ca60215059f661a5a581ee018c29114b44be9")
    );
}

#[test]
fn vacuum_changes_nothing_that_counts() {
    let sql = format!(
        "{FORWARDS} CREATE TABLE plain (a); CREATE TABLE key (a INTEGER PRIMARY KEY, b);
         CREATE TABLE bare (a PRIMARY KEY, b) WITHOUT ROWID;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
         INSERT INTO plain SELECT i FROM n;
         INSERT INTO key SELECT a, -a FROM plain;
         INSERT INTO bare SELECT hex(a), a FROM plain;
         INSERT INTO forwards SELECT 1000 - a, a FROM plain;
         DELETE FROM plain WHERE a % 3 = 0; DELETE FROM key WHERE a % 3 = 0;
         DELETE FROM forwards WHERE htlc % 3 = 0;"
    );
    let (a, b) = (db(&sql), db(&sql));
    b.execute_batch("VACUUM; ANALYZE;").unwrap();
    let rowids = |db: &Connection, table| {
        let sql = format!("SELECT max(rowid) FROM {table}");
        db.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    // What this relies on: numbered anew without an index, kept with one.
    assert_eq!((rowids(&a, "plain"), rowids(&b, "plain")), (100, 67));
    assert_eq!((rowids(&a, "forwards"), rowids(&b, "forwards")), (100, 100));
    assert_same(&a, &b);
    // And rows that come afterwards go on alike.
    for db in [&a, &b] {
        db.execute_batch("INSERT INTO plain VALUES (7); INSERT INTO forwards VALUES (7, 7);")
            .unwrap();
    }
    assert_same(&a, &b);
}

#[test]
fn the_rowid_counts_where_there_is_an_index() {
    assert_differs(
        &format!(
            "{FORWARDS} INSERT INTO forwards (rowid, scid, htlc) VALUES (1, 5, 5), (4, 6, 6);"
        ),
        &format!(
            "{FORWARDS} INSERT INTO forwards (rowid, scid, htlc) VALUES (1, 5, 5), (3, 6, 6);"
        ),
        "table 'forwards': row 2 (rowid 4): the second has another rowid",
    );
    let plain = "CREATE TABLE t (a); INSERT INTO t (rowid, a) VALUES";
    assert_same(
        &db(&format!("{plain} (1, 'x'), (4, 'y');")),
        &db(&format!("{plain} (1, 'x'), (3, 'y');")),
    );
}

#[test]
fn rows_that_differ() {
    let t = "CREATE TABLE t (a, b); INSERT INTO t VALUES";
    let with = |values: &str| format!("{t} {values};");
    assert_differs(
        &with("(1, 2), (3, 4)"),
        &with("(1, 2)"),
        "table 't': row 2 (rowid 2) is only in the first",
    );
    assert_differs(
        &with("(1, 2)"),
        &with("(1, 2), (3, 4)"),
        "table 't': row 2 (rowid 2) is only in the second",
    );
    assert_differs(
        &with("(1, 2), (3, 4)"),
        &with("(3, 4), (1, 2)"),
        "table 't': row 1 (rowid 1): column 'a' differs: integer, integer",
    );
    for (a, b, kinds) in [
        ("1", "'1'", "integer, text of 1 bytes"),
        ("1", "1.0", "integer, real"),
        ("'a'", "x'61'", "text of 1 bytes, blob of 1 bytes"),
        ("NULL", "''", "null, text of 0 bytes"),
        ("x''", "''", "blob of 0 bytes, text of 0 bytes"),
        ("0.0", "-0.0", "real, real"),
        ("'secret'", "'Secret'", "text of 6 bytes, text of 6 bytes"),
        ("'a' || char(0) || 'b'", "'a' || char(0) || 'c'", "text of 3 bytes, text of 3 bytes"),
        ("CAST(x'ff' AS TEXT)", "CAST(x'fe' AS TEXT)", "text of 1 bytes, text of 1 bytes"),
    ] {
        assert_differs(
            &with(&format!("(0, {a})")),
            &with(&format!("(0, {b})")),
            &format!("table 't': row 1 (rowid 1): column 'b' differs: {kinds}"),
        );
    }
}

/// Values must not run into one another, nor rows, nor tables.
#[test]
fn the_same_bytes_cut_otherwise_differ() {
    let t = "CREATE TABLE t (a, b); CREATE TABLE u (a, b);";
    let all = [
        "INSERT INTO t VALUES ('ab', 'c');",
        "INSERT INTO t VALUES ('a', 'bc');",
        "INSERT INTO u VALUES ('ab', 'c');",
        "INSERT INTO t VALUES (NULL, NULL);",
        "INSERT INTO t VALUES (NULL, NULL), (NULL, NULL);",
        "INSERT INTO t VALUES (NULL, NULL); INSERT INTO u VALUES (NULL, NULL);",
        "",
    ];
    let digests: std::collections::BTreeSet<_> =
        all.iter().map(|sql| digest(&db(&format!("{t}{sql}"))).unwrap()).collect();
    assert_eq!(digests.len(), all.len());
}

#[test]
fn definitions_that_differ() {
    let t = "CREATE TABLE t (a);";
    assert_differs(t, "", "table 't' is only in the first");
    assert_differs("", t, "table 't' is only in the second");
    assert_differs(t, "CREATE TABLE t (a TEXT);", "table 't' is defined differently");
    assert_differs(&format!("{t} CREATE INDEX i ON t (a);"), t, "index 'i' is only in the first");
    assert_differs(t, &format!("{t} CREATE VIEW v AS SELECT 1;"), "view 'v' is only in the second");
}

#[test]
fn tables_without_a_rowid_go_by_their_key() {
    let t = "CREATE TABLE t (a PRIMARY KEY, b) WITHOUT ROWID; CREATE INDEX i ON t (b, a);";
    let ordered = |values: &str| db(&format!("{t} INSERT INTO t VALUES {values};"));
    assert_same(&ordered("('a', 2), ('b', 1)"), &ordered("('b', 1), ('a', 2)"));
    assert_differs(
        &format!("{t} INSERT INTO t VALUES ('a', 2), ('b', 1);"),
        &format!("{t} INSERT INTO t VALUES ('a', 2), ('b', 2);"),
        "table 't': row 2: column 'b' differs: integer, integer",
    );
    let key = "CREATE TABLE t (b, \"a \"\" x\" TEXT COLLATE NOCASE, c, \
               PRIMARY KEY (\"a \"\" x\" DESC, b)) WITHOUT ROWID; CREATE INDEX i ON t (c);";
    assert_differs(
        &format!("{key} INSERT INTO t VALUES (1, 'b', 1), (2, 'C', 2), (3, 'a', 3);"),
        &format!("{key} INSERT INTO t VALUES (1, 'b', 1), (2, 'C', 2), (3, 'a', 4);"),
        "table 't': row 3: column 'c' differs: integer, integer",
    );
}

#[test]
fn columns_may_take_the_rowid_s_names() {
    for columns in ["rowid", "rowid, _rowid_", "ROWID, _rowid_, oid"] {
        let t = format!("CREATE TABLE t ({columns}, x); CREATE INDEX i ON t (x);");
        let with = |x: i64| format!("{t} INSERT INTO t (x) VALUES (9), ({x});");
        assert_same(&db(&with(1)), &db(&with(1)));
        let (a, b) = (db(&with(1)), db(&with(2)));
        assert!(compare(&a, &b).unwrap().unwrap().contains("column 'x' differs"));
        assert_ne!(digest(&a).unwrap(), digest(&b).unwrap());
    }
}

#[test]
fn odd_names_are_quoted() {
    let sql =
        "CREATE TABLE \"a \"\" ; 'b\" (\"x \"\" y\"); INSERT INTO \"a \"\" ; 'b\" VALUES (1);";
    assert_same(&db(sql), &db(sql));
}

#[test]
fn autoincrement_counters_count() {
    let t = "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES (1);";
    assert_differs(
        t,
        &format!("{t} INSERT INTO t VALUES (9); DELETE FROM t WHERE a = 9;"),
        "table 'sqlite_sequence': row 1 (rowid 1): column 'seq' differs: integer, integer",
    );
}

#[test]
fn an_open_transaction_is_read_as_it_stands() {
    let (a, b) = (db("CREATE TABLE t (a);"), db("CREATE TABLE t (a);"));
    a.execute_batch("BEGIN; INSERT INTO t VALUES (1);").unwrap();
    assert!(compare(&a, &b).unwrap().is_some());
    a.execute_batch("ROLLBACK;").unwrap();
    assert_same(&a, &b);
    assert!(a.is_autocommit());
}

#[test]
fn a_damaged_table_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (randomblob(20000));")
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..4104].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let error = digest(&Connection::open(&path).unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("read table 't': "), "{error}");
}
