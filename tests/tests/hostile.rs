//! Who has the key can write whatever they like into a log. What is replayed must harm one database at most: the one
//! that is being made of it.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_proto::layout::SegmentName;
use lockstep_proto::log::LogEnd;
use lockstep_proto::record::{Destinations, Open, Record};
use lockstep_proto::seal::{Header, KeyRing, ObjectKind};
use lockstep_proto::segment::SegmentEncoder;
use lockstep_proto::store::FileStore;
use lockstep_proto::version::DataVersion;
use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{Cli, Output};

/// A session as writers name it, and one without a name.
const SESSIONS: [&str; 2] = ["0123456789abcdef0123456789abcdef", ""];

/// A node that is down, with a few rows behind it.
fn stopped() -> Backed {
    let backed = Backed::fresh();
    let mut node = backed.launch();
    node.write(&Step::small_schema()).unwrap().expect_committed();
    node.write(&Step::transaction(["INSERT INTO t VALUES (1, 'x')"])).unwrap().expect_committed();
    node.stop().unwrap();
    backed
}

/// What was added to a log.
struct Forged {
    seq: u64,
    /// lightningd's version before it.
    before: DataVersion,
}

/// Adds a segment to the log, as only the key makes one: a batch with this statement, in a transaction or not, and two
/// behind that, so that it is neither in doubt nor the last record.
fn forge(backed: &Backed, session: &str, transaction: bool, sql: &str) -> Forged {
    let keys = KeyRing::decode(&fs::read(backed.network_file("backup.key")).unwrap()).unwrap();
    let store = FileStore::open(&backed.store()).unwrap();
    let end = LogEnd::read(&store, &keys).unwrap();
    let key = keys.current().unwrap();
    let header = Header {
        kind: ObjectKind::Segment,
        key: key.id(),
        store: keys.store(),
        generation: end.position.generation,
        epoch: end.epoch + 1,
        seq: end.position.seq + 1,
        index: 0,
        prev: end.position.chain,
        nonce_prefix: [9; 16],
    };
    let open = Record::Open(Box::new(Open {
        destinations: Destinations::default(),
        directory: end.directory.clone(),
        host: "elsewhere".into(),
        time: end.time,
        writer: "somebody/1".into(),
        session: session.into(),
        head: end.head,
        start: None,
    }));
    let before = end.head.data_version.expect("the log has a batch");
    let mut encoder = SegmentEncoder::new(key, &header).unwrap();
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(encoder.control(&open).unwrap());
    let batches = [(transaction, sql), (true, "DELETE FROM t"), (true, "DELETE FROM t")];
    for ((transaction, sql), version) in batches.into_iter().zip(before.0 + 1..) {
        let count = format!("UPDATE vars SET intval = {version} WHERE name = 'data_version'");
        let batch = encoder.batch(DataVersion(version), transaction, 0, &[sql, &count]).unwrap();
        bytes.extend_from_slice(batch);
    }
    let name = SegmentName::of(&header);
    fs::write(backed.store().join(name.to_string()), bytes).unwrap();
    Forged { seq: header.seq + 1, before }
}

/// What reaches beyond its database, `out` being a file elsewhere.
fn reaching(out: &Path) -> Vec<String> {
    let out = out.display();
    vec![
        format!("ATTACH '{out}' AS other"),
        format!("ATTACH '{out}' AS other; CREATE TABLE other.t (a)"),
        "DETACH main".into(),
        format!("VACUUM INTO '{out}'"),
        format!("SELECT load_extension('{out}')"),
        format!("INSERT INTO t (b) VALUES (load_extension('{out}'))"),
        "PRAGMA writable_schema = ON".into(),
        "PRAGMA journal_mode = WAL".into(),
        format!("PRAGMA temp_store_directory = '{out}'"),
        "COMMIT".into(),
        "CREATE VIRTUAL TABLE v USING fts5(a)".into(),
    ]
}

/// Every such statement, in sessions of both kinds, in and outside of a transaction.
fn for_each(out: &Path, mut try_it: impl FnMut(&str, bool, &str)) {
    for session in SESSIONS {
        for sql in reaching(out) {
            for transaction in [true, false] {
                // SQLite looks for a transaction before it asks.
                if !(transaction && sql.starts_with("VACUUM")) {
                    try_it(session, transaction, &sql);
                }
            }
        }
    }
}

#[track_caller]
fn assert_refused(output: &Output, seq: u64, sql: &str) {
    assert_eq!(output.code, Some(13), "{sql}: {output}");
    let said = format!("batch seq {seq}: a statement reaches beyond its own database");
    assert!(output.stderr.contains(&said), "{sql}: {output}");
    assert!(output.stderr.contains("hint: lightningd never writes such a statement"), "{output}");
    assert!(sql == "COMMIT" || !output.stderr.contains(sql), "a statement is shown: {output}");
}

#[test]
fn a_statement_that_reaches_beyond_its_database_is_not_restored() {
    let backed = stopped();
    let out = backed.dir().path("reached");
    let log = files_under(&backed.store());
    for_each(&out, |session, transaction, sql| {
        let Forged { seq, before } = forge(&backed, session, transaction, sql);
        let dest = backed.new_dest();
        let output = backed.restore(&dest).run();
        assert_refused(&output, seq, sql);
        assert!(!dest.exists() && !out.exists(), "{sql}: {output}");
        // What was before it can be had.
        let older = backed.restore(&dest).arg("--accept-stale").arg("--to-version");
        older.arg(before.0.to_string()).run().expect_success();
        take_back(&backed, &log);
    });
    // The control: a batch that is made the same way, of a statement that stays at home.
    for session in SESSIONS {
        for transaction in [true, false] {
            forge(&backed, session, transaction, "DELETE FROM t");
            backed.restored();
            take_back(&backed, &log);
        }
    }
}

#[test]
fn a_statement_that_reaches_beyond_its_database_is_not_compacted() {
    let backed = stopped();
    let out = backed.dir().path("reached");
    let log = files_under(&backed.store());
    for_each(&out, |session, transaction, sql| {
        let Forged { seq, .. } = forge(&backed, session, transaction, sql);
        let output = compact(&backed);
        assert_refused(&output, seq, sql);
        assert!(!out.exists(), "{sql}: {output}");
        take_back(&backed, &log);
    });
}

/// From the log alone, with a new shadow.
fn compact(backed: &Backed) -> Output {
    let shadow: PathBuf = backed.new_dest().with_extension("shadow");
    Cli::new(["compact", &backed.url(), "--shadow"])
        .arg(shadow)
        .arg("--key-file")
        .arg(backed.network_file("backup.key"))
        .run()
}

/// Removes what was forged.
fn take_back(backed: &Backed, log: &[PathBuf]) {
    for file in files_under(&backed.store()) {
        if !log.contains(&file) {
            fs::remove_file(backed.store().join(file)).unwrap();
        }
    }
}
