//! `backup-cli import` of files that the Python plugin `backup` wrote; `data/import/README.md` says how.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_tests::binaries::{self, Cli, Output, backup_cli};
use lockstep_tests::sim::{Node, NodeConfig, RpcServer};
use lockstep_tests::testdir::TestDir;
use lockstep_tests::{Step, oracle};
use serde_json::{Value, json};

const HEADER: usize = 512;

/// A network directory, with a backup of the Python plugin beside it.
struct Import {
    dir: TestDir,
    name: &'static str,
}

impl Import {
    /// As the Python plugin leaves it: the node's database, secret and lock file.
    fn of(name: &'static str) -> Self {
        let import = Self::without_database(name);
        fs::write(import.database(), unpack(name, "sqlite3")).unwrap();
        let lock = json!({ "backend_url": format!("file://{}", import.old().display()) });
        fs::write(import.file("backup.lock"), lock.to_string()).unwrap();
        import
    }

    /// A fresh machine: nothing but the node's secret.
    fn without_database(name: &'static str) -> Self {
        let import = Self { dir: TestDir::new(), name };
        import.dir.write_hsm_secret(1);
        fs::write(import.old(), unpack(name, "bkp")).unwrap();
        import
    }

    fn old(&self) -> PathBuf {
        self.dir.path("old.bkp")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.network_dir().join(name)
    }

    fn database(&self) -> PathBuf {
        self.file("lightningd.sqlite3")
    }

    /// The node's database as it was, in a file of its own.
    fn expected(&self) -> PathBuf {
        let path = self.dir.path("expected.sqlite3");
        fs::write(&path, unpack(self.name, "sqlite3")).unwrap();
        path
    }

    fn url(&self) -> String {
        self.dir.file_url("store")
    }

    fn cli(&self) -> Cli {
        Cli::new(["import"])
            .arg(self.old())
            .arg(self.url())
            .arg("--lightning-dir")
            .arg(self.dir.network_dir())
    }

    fn json(&self) -> Value {
        self.cli().arg("--json").run().expect_success().json()
    }

    /// What the new backup leads to.
    fn restored(&self) -> PathBuf {
        let dest = self.dir.path("restored.sqlite3");
        let _ = fs::remove_file(&dest);
        Cli::new(["restore", "--no-claim"])
            .arg(self.url())
            .arg(&dest)
            .arg("--hsm-secret")
            .arg(self.file("hsm_secret"))
            .run()
            .expect_success();
        dest
    }

    /// Changes the old backup.
    fn spoil(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.old()).unwrap();
        change(&mut bytes);
        fs::write(self.old(), bytes).unwrap();
    }

    fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.database()).unwrap().execute_batch(sql).unwrap();
    }

    /// Everything that is in the directory and beside it.
    fn everything(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.path("")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push((path.clone(), fs::read(path).unwrap())),
                }
            }
        }
        files.sort();
        files
    }

    /// It is refused with this code and these words, and nothing is changed.
    #[track_caller]
    fn assert_refused(&self, run: Cli, code: i32, words: &[&str]) {
        let before = self.everything();
        let output = run.run();
        assert_says(&output, code, words);
        assert!(self.everything() == before, "something was changed: {output}");
    }
}

#[track_caller]
fn assert_says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output}");
    assert!(output.stderr.starts_with("error: "), "{output}");
    for word in words {
        assert!(output.stderr.contains(word), "'{word}' is not said: {output}");
    }
    for sql in ["INSERT INTO", "UPDATE ", "coffee"] {
        assert!(!output.stderr.contains(sql), "a statement shows: {output}");
    }
}

fn unpack(name: &str, kind: &str) -> Vec<u8> {
    let path = format!("{}/data/import/{name}.{kind}.zst", env!("CARGO_MANIFEST_DIR"));
    zstd::decode_all(&fs::read(path).unwrap()[..]).unwrap()
}

/// Where each record begins, and the end, of a file without fragments.
fn records(bytes: &[u8]) -> Vec<usize> {
    let mut at = HEADER;
    let mut records = vec![at];
    while at < bytes.len() {
        let len = bytes[at..at + 4].iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        at += 9 + len;
        records.push(at);
    }
    records
}

/// As the plugin left it before it wrote the header for its last record.
fn set_header_back(bytes: &mut [u8]) {
    (bytes[7], bytes[35]) = (bytes[7] - 1, bytes[35] - 1);
}

const SAME: [&str; 5] = ["real-plain", "real-compacted", "abandoned", "expansion", "disk-full"];

/// A record that the plugin would have written for these statements.
fn change(data_version: u32, sql: &str) -> Vec<u8> {
    let len = u32::try_from(sql.len()).unwrap();
    [&len.to_be_bytes()[..], &data_version.to_be_bytes(), &[1], sql.as_bytes()].concat()
}

#[test]
fn a_statement_that_reaches_beyond_its_database_is_not_replayed() {
    for sql in ["ATTACH '{}' AS other", "DETACH '{}'", "SELECT load_extension('{}')"] {
        let import = Import::without_database("real-plain");
        let out = import.dir.path("reached");
        let sql = sql.replace("{}", &out.display().to_string());
        import.spoil(|bytes| {
            let version = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) + 1;
            bytes[4..8].copy_from_slice(&version.to_be_bytes());
            bytes.extend(change(version, &sql));
        });
        let output = import.cli().arg("--write-database").run();
        assert_says(&output, 13, &["record at offset", "reaches beyond its own database"]);
        assert!(!output.stderr.contains(&sql) && !out.exists(), "{output}");
        assert!(!import.database().exists() && !import.dir.path("store").exists(), "{output}");
    }
}

// With the node's database.

#[test]
fn a_database_that_agrees_is_what_the_new_backup_begins_with() {
    for name in SAME {
        let import = Import::of(name);
        let (old, lock) = (fs::read(import.old()), fs::read(import.file("backup.lock")));
        let report = import.json();
        assert_eq!(report["database"], json!({ "is": "same" }), "{name}: {report}");
        assert_eq!(report["warnings"], json!([]), "{name}");
        assert_eq!(report["slots"], json!(["node"]), "{name}");
        assert_eq!(report["data_version"], report["old_data_version"], "{name}");
        assert_eq!(report["dry_run"], false);
        oracle::assert_same(&import.expected(), &import.database());
        oracle::assert_same(&import.expected(), &import.restored());
        assert_eq!(fs::read(import.old()).unwrap(), old.unwrap(), "{name}: OLD is only read");
        assert_eq!(fs::read(import.file("backup.lock.python")).unwrap(), lock.unwrap());
        let mut left: Vec<_> = fs::read_dir(import.dir.network_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let expected =
            ["backup.key", "backup.lock", "backup.lock.python", "hsm_secret", "lightningd.sqlite3"];
        assert_eq!(left, expected, "{name}");
        let directory = import.dir.network_dir();
        backup_cli([Path::new("verify"), Path::new("--lightning-dir"), &directory])
            .expect_success();
    }
}

#[test]
fn what_is_said_to_people() {
    let import = Import::of("abandoned");
    let output = import.cli().run().expect_success();
    for words in [
        "backup made at file:///",
        "has 12 records and goes to data_version 8",
        "left out: the record at offset 1521, data_version 4",
        "the node's database is at data_version 8 too and holds the same",
        "lock file is now '",
        "backup.lock.python'",
        "next: in lightningd's config",
    ] {
        assert!(output.stdout.contains(words), "'{words}': {output}");
    }
}

#[test]
fn the_node_goes_on_with_the_new_plugin() {
    let import = Import::of("abandoned");
    import.cli().run().expect_success();
    let config = NodeConfig::new(binaries::plugin(), import.dir.network_dir());
    let mut node = Node::launch(config).unwrap();
    node.init().unwrap();
    for n in 10..20 {
        let insert = format!("INSERT INTO invoices (id, state, label) VALUES ({n}, 0, 'new {n}')");
        node.write(&Step::transaction([insert])).unwrap().expect_committed();
    }
    node.kill().unwrap();
    oracle::assert_same(&import.database(), &import.restored());
}

#[test]
fn a_database_that_is_ahead_is_taken() {
    let import = Import::of("real-plain");
    import.sql("UPDATE vars SET intval = intval + 5 WHERE name = 'data_version'");
    let report = import.json();
    assert_eq!(report["database"], json!({ "is": "ahead", "detail": 5 }));
    assert_eq!(report["data_version"], 18);
    oracle::assert_same(&import.database(), &import.restored());
}

#[test]
fn a_database_that_differs_is_taken_and_the_difference_told() {
    let import = Import::of("real-compacted");
    import.sql("DELETE FROM invoices WHERE label = 'after'");
    let report = import.json();
    assert_eq!(report["database"]["is"], "different");
    assert!(report["database"]["detail"].as_str().unwrap().contains("'invoices'"), "{report}");
    oracle::assert_same(&import.database(), &import.restored());
    let import = Import::of("real-compacted");
    import.sql("DELETE FROM invoices WHERE label = 'after'");
    let output = import.cli().arg("--dry-run").run().expect_success();
    assert!(output.stdout.contains("warning: "), "{output}");
}

#[test]
fn a_database_that_is_older_is_refused() {
    for (name, by) in [("real-plain", 2), ("real-plain", 9), ("abandoned", 2), ("in-flight", 1)] {
        let import = Import::of(name);
        import.sql(&format!("UPDATE vars SET intval = intval - {by} WHERE name = 'data_version'"));
        let words = ["is older than", "--write-database", "do not start it"];
        import.assert_refused(import.cli(), 14, &words);
    }
}

#[test]
fn one_behind_must_be_the_state_before_the_newest() {
    let import = Import::of("in-flight");
    let report = import.json();
    assert_eq!(report["database"], json!({ "is": "uncommitted" }));
    assert_eq!((&report["old_data_version"], &report["data_version"]), (&json!(3), &json!(2)));
    oracle::assert_same(&import.expected(), &import.restored());

    // Another content at that version: nobody knows how old it is.
    let import = Import::of("in-flight");
    import.sql("UPDATE invoices SET msat = 1");
    import.assert_refused(import.cli(), 14, &["is older than"]);
    let import = Import::of("real-plain");
    import.sql("UPDATE vars SET intval = intval - 1 WHERE name = 'data_version'");
    import.assert_refused(import.cli(), 14, &["is older than"]);
}

#[test]
fn an_old_backup_that_leads_nowhere_does_no_harm_to_a_database_of_its_version() {
    let import = Import::of("real-plain");
    let word = b"INSERT INTO datastore";
    import.spoil(|bytes| {
        let at = bytes.windows(word.len()).position(|window| window == word).unwrap();
        bytes[at + 12..at + 21].copy_from_slice(b"nosuchtbl");
    });
    let report = import.json();
    assert_eq!(report["database"]["is"], "not_replayed");
    let why = report["database"]["detail"].as_str().unwrap();
    assert!(why.contains("at offset ") && why.contains("no such table"), "{why}");
    oracle::assert_same(&import.expected(), &import.restored());
}

#[test]
fn a_dry_run_changes_nothing() {
    for import in [Import::of("abandoned"), Import::without_database("real-compacted")] {
        let before = import.everything();
        let output = import.cli().arg("--dry-run").run().expect_success();
        assert!(output.stdout.contains("nothing was changed"), "{output}");
        assert!(import.everything() == before);
    }
}

// Without it.

#[test]
fn on_a_fresh_machine_the_old_backup_is_what_the_new_one_begins_with() {
    for name in SAME {
        let import = Import::without_database(name);
        let report = import.json();
        assert_eq!(report["database"], json!({ "is": "missing" }), "{name}: {report}");
        assert!(!import.database().exists());
        oracle::assert_same(&import.expected(), &import.restored());
        let directory = import.dir.network_dir();
        backup_cli(["restore".as_ref(), import.url().as_ref(), directory.as_os_str()])
            .expect_success();
        oracle::assert_same(&import.expected(), &import.database());
    }
}

#[test]
fn the_database_is_written_on_demand() {
    let import = Import::without_database("abandoned");
    let report = import.cli().arg("--write-database").arg("--json").run().expect_success().json();
    assert_eq!(report["database_written"], json!(import.database()));
    oracle::assert_same(&import.expected(), &import.database());
    let config = NodeConfig::new(binaries::plugin(), import.dir.network_dir());
    let mut node = Node::launch(config).unwrap();
    let insert = "INSERT INTO invoices (id, state, label) VALUES (10, 0, 'new')";
    node.write(&Step::transaction([insert])).unwrap().expect_committed();
    node.kill().unwrap();
    oracle::assert_same(&import.database(), &import.restored());
}

#[test]
fn what_is_left_out_and_mended_is_said() {
    let report = Import::without_database("abandoned").json();
    let left_out = |offset, data_version, replaced_by| json!({ "offset": offset, "data_version": data_version, "replaced_by": replaced_by });
    let expected = json!([
        left_out(1521, 4, 1705),
        left_out(2000, 6, 2343),
        left_out(2136, 6, 2343),
        left_out(2619, 8, 2737)
    ]);
    assert_eq!(report["replayed"]["left_out"], expected);
    assert_eq!(Import::without_database("expansion").json()["replayed"]["mended"], 3);
    let report = Import::without_database("disk-full").json();
    assert_eq!(report["old_fragments"], json!([{ "offset": 10708, "bytes": 1580 }]));
}

/// A batch that the plugin acknowledged may have been committed: it is kept where nobody knows.
#[test]
fn the_batch_in_flight_is_kept_where_there_is_no_database() {
    let import = Import::without_database("in-flight");
    assert_eq!(import.json()["data_version"], 3);
    let db = rusqlite::Connection::open(import.restored()).unwrap();
    let count = "SELECT count(*) FROM invoices WHERE label = 'never committed'";
    assert_eq!(db.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
}

// What is damaged.

#[test]
fn a_record_cut_off_that_was_never_acknowledged_is_left_out() {
    let import = Import::without_database("real-plain");
    import.spoil(|bytes| {
        let records = records(bytes);
        bytes.truncate(records[records.len() - 2] + 100);
        set_header_back(bytes);
    });
    let report = import.json();
    assert_eq!(
        (&report["data_version"], &report["old_truncated"]["bytes"]),
        (&json!(12), &json!(100))
    );
    assert!(report["warnings"][0].as_str().unwrap().contains("never acknowledged"), "{report}");
}

#[test]
fn a_record_that_the_header_counts_must_be_there() {
    let import = Import::without_database("real-plain");
    import.spoil(|bytes| bytes.truncate(bytes.len() - 1));
    let words = [
        "has lost its end",
        "15 records up to data_version 13",
        "14 up to 12",
        "--accept-stale",
        "channel funds",
    ];
    import.assert_refused(import.cli(), 1, &words);
    let report = import.cli().arg("--accept-stale").arg("--json").run().expect_success().json();
    assert_eq!(report["data_version"], 12);

    // Of no matter where the node's database is there, unless that is older than what was lost.
    let import = Import::of("real-plain");
    import.spoil(|bytes| bytes.truncate(bytes.len() - 1));
    assert_eq!(import.json()["database"], json!({ "is": "ahead", "detail": 1 }));
    let import = Import::of("real-plain");
    import.spoil(|bytes| bytes[7] = 15);
    import.assert_refused(import.cli(), 14, &["data_version 13 against 15"]);
}

#[test]
fn a_header_that_was_not_written_any_more_loses_nothing() {
    let import = Import::of("real-plain");
    import.spoil(|bytes| set_header_back(bytes));
    let report = import.json();
    assert_eq!(report["database"], json!({ "is": "same" }));
    assert!(report["warnings"][0].as_str().unwrap().contains("data_version 12"), "{report}");
}

#[test]
fn damage_is_refused_with_its_place() {
    let bytes = unpack("real-plain", "bkp");
    let records = records(&bytes);
    let (third, last) = (records[2], records[records.len() - 2]);
    let cases: [(&str, usize, u8, usize); 4] = [
        ("record type 3", third + 8, 3, third),
        ("follows data_version 1", third + 7, 9, third),
        ("follows data_version 12", last + 7, 99, last),
        ("bytes long", third, 0xff, third),
    ];
    for (words, at, byte, place) in cases {
        for import in [Import::of("real-plain"), Import::without_database("real-plain")] {
            import.spoil(|bytes| {
                bytes[at] = byte;
                if words == "bytes long" {
                    bytes[at + 7] = 9;
                }
            });
            let place = format!("record at offset {place}");
            import.assert_refused(import.cli(), 13, &[words, &place, "hint: "]);
        }
    }
    // SQLite sees it, and there is no database to compare with.
    let import = Import::without_database("abandoned");
    import.spoil(|bytes| {
        let at = bytes.windows(6).rposition(|window| window == b"'tea',").unwrap();
        bytes[at] = b'(';
    });
    import.assert_refused(import.cli(), 13, &["record at offset 2737 (data_version 8)"]);
    // Not silently: the abandoned one in its place is not what the node committed.
    let report = import.cli().arg("--accept-stale").arg("--json").run().expect_success().json();
    let left_out = json!({ "offset": 2737, "data_version": 8, "replaced_by": 2619 });
    assert_eq!(report["replayed"]["left_out"][3], left_out);
}

#[test]
fn wherever_it_is_cut_it_is_told() {
    let whole = unpack("abandoned", "bkp");
    for len in (0..whole.len()).step_by(29) {
        let import = Import::without_database("abandoned");
        import.spoil(|bytes| bytes.truncate(len));
        let code = if len < HEADER { 13 } else { 1 };
        let run = import.cli().arg("--dry-run");
        import.assert_refused(run, code, &[if len < HEADER { "header" } else { "lost its end" }]);
    }
}

#[test]
fn a_flipped_byte_is_no_panic() {
    let whole = unpack("abandoned", "bkp");
    for at in (0..whole.len()).step_by(31) {
        let import = Import::without_database("abandoned");
        import.spoil(|bytes| bytes[at] ^= 0x41);
        let output = import.cli().arg("--dry-run").run();
        assert!(matches!(output.code, Some(0 | 1 | 13)), "offset {at}: {output}");
    }
}

#[test]
fn what_is_no_backup_is_refused() {
    let import = Import::without_database("real-plain");
    let database = unpack("real-plain", "sqlite3");
    for garbage in [&b""[..], &[0; 511], &[0; 512], &[0xa5; 5000], &database, b"{\"a\": 1}"] {
        import.spoil(|bytes| *bytes = garbage.into());
        import.assert_refused(import.cli(), 13, &["no backup of the Python plugin"]);
    }
    for (at, byte) in [(3, 2), (0, 1), (100, 1), (511, 1)] {
        import.spoil(|bytes| {
            *bytes = unpack("real-plain", "bkp");
            bytes[at] = byte;
        });
        import.assert_refused(import.cli(), 13, &["header at offset 0"]);
        import.spoil(|bytes| bytes[at] = 0);
    }
    // One that 'init' made, and nobody wrote to.
    import.spoil(|bytes| {
        bytes.truncate(HEADER);
        bytes[..36].fill(0);
        (bytes[3], bytes[14]) = (1, 2);
    });
    import.assert_refused(import.cli(), 10, &["never written"]);
    fs::remove_file(import.old()).unwrap();
    import.assert_refused(import.cli(), 10, &["no such file"]);
    fs::create_dir(import.old()).unwrap();
    import.assert_refused(import.cli(), 1, &["is a directory"]);
}

// What is in the way.

#[test]
fn a_running_node_is_left_alone() {
    let import = Import::of("abandoned");
    let server = RpcServer::bind(&import.dir.network_dir(), []).unwrap();
    assert_says(&import.cli().run(), 1, &["lightningd is running in", "stop it first"]);
    drop(server);
    assert!(!import.dir.path("store").exists() && !import.file("backup.key").exists());
}

#[test]
fn nothing_is_overwritten() {
    let import = Import::of("abandoned");
    import.assert_refused(import.cli().arg("--write-database"), 1, &["already exists"]);
    fs::write(import.file("backup.lock.python"), "another").unwrap();
    import.assert_refused(import.cli(), 1, &["backup.lock.python"]);
    fs::remove_file(import.file("backup.lock.python")).unwrap();
    fs::write(import.file("backup.key"), "a key").unwrap();
    import.assert_refused(import.cli(), 1, &["backup.key"]);
    fs::remove_file(import.file("backup.key")).unwrap();
    fs::create_dir(import.dir.path("store")).unwrap();
    fs::write(import.dir.path("store/somebody's"), "file").unwrap();
    import.assert_refused(import.cli(), 1, &["is not empty"]);
    fs::remove_file(import.dir.path("store/somebody's")).unwrap();
    import.cli().run().expect_success();
    import.assert_refused(import.cli(), 1, &["has a backup already"]);

    let import = Import::without_database("abandoned");
    fs::write(import.file("lightningd.sqlite3-journal"), "").unwrap();
    import.assert_refused(import.cli().arg("--write-database"), 1, &["-journal"]);
    import.assert_refused(import.cli(), 1, &["-journal"]);
    fs::remove_file(import.file("lightningd.sqlite3-journal")).unwrap();
    fs::write(import.database(), "").unwrap();
    import.assert_refused(import.cli(), 1, &["no database with a data_version"]);
}

#[test]
fn another_nodes_backup_is_refused() {
    let import = Import::without_database("real-plain");
    fs::remove_file(import.file("hsm_secret")).unwrap();
    import.dir.write_hsm_secret(2);
    import.assert_refused(import.cli(), 12, &["of another node"]);
    let import = Import::of("real-plain");
    import.sql("UPDATE vars SET blobval = zeroblob(33) WHERE name = 'node_id'");
    import.assert_refused(import.cli(), 1, &["of another node"]);
}

#[test]
fn a_lock_file_that_names_another_backup_is_pointed_out() {
    let import = Import::of("abandoned");
    let lock = "{\"backend_url\": \"socket:nas:8700\"}";
    fs::write(import.file("backup.lock"), lock).unwrap();
    let report = import.json();
    assert!(report["warnings"][0].as_str().unwrap().contains("socket:nas:8700"), "{report}");
    let directory = import.dir.network_dir();
    let output = Cli::new(["import", "socket:nas:8700"])
        .arg(import.url())
        .arg("--lightning-dir")
        .arg(directory)
        .run();
    assert_says(&output, 1, &["is a server"]);
}
