use super::*;
use rusqlite::params;

/// `vars` as lightningd has it since v0.7.3.
const VARS: &str = "CREATE TABLE vars (name VARCHAR(32) PRIMARY KEY, val VARCHAR(255), \
                    intval INTEGER, blobval BLOB);";

struct Db {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

/// A database in which `sql` was run.
fn db(sql: &str) -> Db {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lightningd.sqlite3");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(sql).unwrap();
    Db { _dir: dir, path }
}

fn at_version(version: i64) -> Db {
    db(&format!("{VARS} INSERT INTO vars (name, intval) VALUES ('data_version', {version});"))
}

fn version(db: &Db) -> Option<u32> {
    let shared = data_version(&db.path, Access::Shared).unwrap();
    assert_eq!(data_version(&db.path, Access::Exclusive).unwrap(), shared);
    shared
}

#[test]
fn the_version() {
    assert_eq!(version(&at_version(0)), Some(0));
    assert_eq!(version(&at_version(48213)), Some(48213));
}

#[test]
fn the_version_is_its_low_32_bits() {
    assert_eq!(version(&at_version(0x8000_0000)), Some(0x8000_0000));
    assert_eq!(version(&at_version(0xffff_ffff)), Some(0xffff_ffff));
    assert_eq!(version(&at_version(0x1_0000_0000)), Some(0));
    assert_eq!(version(&at_version(-1)), Some(0xffff_ffff));
}

#[test]
fn no_version_yet() {
    let absent = db("");
    fs::remove_file(&absent.path).unwrap();
    assert_eq!(version(&absent), None);
    assert!(!absent.path.exists(), "reading must not create");
    // What SQLite makes before the first transaction, with and without an open one.
    fs::write(&absent.path, "").unwrap();
    assert_eq!(version(&absent), None);
    assert_eq!(version(&db("CREATE TABLE other (x);")), None);
    assert_eq!(version(&db("CREATE TABLE vars (name VARCHAR(32), val VARCHAR(255));")), None);
    assert_eq!(version(&db(VARS)), None);
}

#[test]
fn a_version_that_lightningd_never_writes() {
    for value in ["NULL", "'x'", "x'00'"] {
        let db = db(&format!(
            "{VARS} INSERT INTO vars (name, intval) VALUES ('data_version', {value});"
        ));
        let error = data_version(&db.path, Access::Shared).unwrap_err();
        assert!(matches!(error, WalletError::Unexpected { name: "data_version", .. }), "{error}");
    }
}

#[test]
fn the_node_id() {
    let open = |db: &Db| Wallet::open(&db.path, Access::Shared).unwrap().unwrap().node_id();
    assert_eq!(open(&at_version(1)).unwrap(), None);
    let id = [3; NODE_ID_LEN];
    let with = at_version(1);
    let connection = Connection::open(&with.path).unwrap();
    connection
        .execute("INSERT INTO vars (name, blobval) VALUES ('node_id', ?1)", params![id])
        .unwrap();
    assert_eq!(open(&with).unwrap(), Some(id));
    connection.execute("UPDATE vars SET blobval = x'03' WHERE name = 'node_id'", []).unwrap();
    assert!(matches!(open(&with), Err(WalletError::Unexpected { name: "node_id", .. })));
}

#[test]
fn not_a_database() {
    let garbage = db("");
    fs::write(&garbage.path, "not a database, but long enough to be looked at".repeat(100))
        .unwrap();
    for access in [Access::Shared, Access::Exclusive] {
        let error = data_version(&garbage.path, access).unwrap_err();
        assert!(matches!(error, WalletError::Damaged { .. }), "{error}");
    }
    let directory = garbage.path.parent().unwrap();
    let error = data_version(directory, Access::Shared).unwrap_err();
    assert!(matches!(error, WalletError::NotAFile { .. }), "{error}");
}

#[test]
fn an_open_transaction_is_not_seen() {
    let db = at_version(7);
    let lightningd = Connection::open(&db.path).unwrap();
    lightningd
        .execute_batch("BEGIN; UPDATE vars SET intval = 8 WHERE name = 'data_version';")
        .unwrap();
    assert_eq!(data_version(&db.path, Access::Shared).unwrap(), Some(7));
    lightningd.execute_batch("COMMIT").unwrap();
    assert_eq!(data_version(&db.path, Access::Shared).unwrap(), Some(8));
}

#[test]
fn a_reader_leaves_no_lock() {
    let db = at_version(7);
    let wallet = Wallet::open(&db.path, Access::Shared).unwrap().unwrap();
    assert_eq!(wallet.data_version().unwrap(), Some(7));
    let lightningd = Connection::open(&db.path).unwrap();
    lightningd.busy_timeout(Duration::ZERO).unwrap();
    lightningd.execute("UPDATE vars SET intval = 8", []).unwrap();
    assert_eq!(wallet.data_version().unwrap(), Some(8));
}

#[test]
fn a_lock_that_stays_is_busy() {
    let db = at_version(7);
    let lightningd = Connection::open(&db.path).unwrap();
    lightningd.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = data_version(&db.path, Access::Shared).unwrap_err();
    assert!(matches!(error, WalletError::Busy { .. }), "{error}");
}

/// A database as a crash leaves it: changed pages already written, the old ones in
/// the journal.
fn crashed() -> Db {
    let live = at_version(7);
    let lightningd = Connection::open(&live.path).unwrap();
    lightningd
        .execute_batch(
            "CREATE TABLE big (x); PRAGMA cache_size = 2; PRAGMA cache_spill = 2; BEGIN;
             UPDATE vars SET intval = 8 WHERE name = 'data_version';
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
             INSERT INTO big SELECT randomblob(900) FROM n;",
        )
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lightningd.sqlite3");
    let journal = |path: &Path| path.with_extension("sqlite3-journal");
    fs::copy(&live.path, &path).unwrap();
    fs::copy(journal(&live.path), journal(&path)).unwrap();
    Db { _dir: dir, path }
}

#[test]
fn a_hot_journal_needs_exclusive_access() {
    let db = crashed();
    let before = fs::read(&db.path).unwrap();
    let error = data_version(&db.path, Access::Shared).unwrap_err();
    assert!(matches!(error, WalletError::HotJournal { .. }), "{error}");
    assert_eq!(fs::read(&db.path).unwrap(), before, "reading must not change anything");
    assert_eq!(data_version(&db.path, Access::Exclusive).unwrap(), Some(7));
    // Rolled back, so from now on everybody can read it.
    assert_eq!(data_version(&db.path, Access::Shared).unwrap(), Some(7));
}

#[test]
fn a_name_is_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file:a?mode=memory#%41");
    Connection::open_with_flags(
        &path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
    )
    .unwrap()
    .execute_batch(&format!("{VARS} INSERT INTO vars (name, intval) VALUES ('data_version', 5);"))
    .unwrap();
    assert_eq!(data_version(&path, Access::Shared).unwrap(), Some(5));
}

/// A regtest directory with this line in its `config`.
fn configured(text: &str) -> (tempfile::TempDir, LightningDir) {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("regtest");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("config"), text).unwrap();
    let dir = LightningDir::new(&path);
    (base, dir)
}

#[test]
fn no_wallet_configured() {
    let (_base, dir) = configured("alias=x\n");
    assert_eq!(config_wallet(&dir).unwrap(), None);
}

#[test]
fn sqlite_configured() {
    for (text, path, replica) in [
        ("wallet=sqlite3:///data/w.db", "/data/w.db", None),
        ("wallet=sqlite3:///data/w.db:/mnt/r.db  ", "/data/w.db", Some("/mnt/r.db")),
        ("wallet=sqlite3://w.db:r.db:x", "w.db", Some("r.db:x")),
        ("wallet=sqlite3://~/w.db", "~/w.db", None),
        ("wallet=postgres://u:p@h/d\nwallet=sqlite3://w.db", "w.db", None),
    ] {
        let (_base, dir) = configured(text);
        let Some(ConfiguredWallet::Sqlite { path: p, replica: r, at }) =
            config_wallet(&dir).unwrap()
        else {
            panic!("{text}");
        };
        assert_eq!(p, dir.path().join(path), "{text}");
        assert_eq!(r, replica.map(|replica| dir.path().join(replica)), "{text}");
        assert_eq!(at.file, dir.path().join("config"));
    }
}

#[test]
fn postgres_configured() {
    let (_base, dir) = configured("# x\nwallet=postgres://user:secret@host/db\n");
    let wallet = config_wallet(&dir).unwrap().unwrap();
    let ConfiguredWallet::Postgres { at } = &wallet else { panic!() };
    assert_eq!(at.line, 2);
    assert!(!format!("{wallet:?}").contains("secret"));
}

#[test]
fn nonsense_configured() {
    for text in [
        "wallet=",
        "wallet=w.db",
        "wallet=mysql://u:secret@h",
        "wallet=sqlite3://:r",
        "wallet= sqlite3://a",
    ] {
        let (_base, dir) = configured(text);
        let error = config_wallet(&dir).unwrap_err();
        assert!(matches!(error, WalletError::UnknownWallet { .. }), "{text}: {error}");
        assert!(!error.to_string().contains("secret"));
    }
}
