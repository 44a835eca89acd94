//! Nothing leaves in the clear: what a destination holds tells sizes, times and counts, and
//! nobody but the owner may read even that. Messages tell no statement and no key.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lockstep_proto::seal::{
    FRAME_OVERHEAD, HEADER_LEN, Header, KeyRing, ObjectKind, PREFIX_LEN, frame_size,
};
use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{self, Cli};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::sim::{Crash, CrashPoint, Node, NodeConfig, Outcome};
use lockstep_tests::workload::{Workload, WorkloadConfig};

/// Shorter ones are found in random bytes by chance.
const NEEDLE_MIN: usize = 6;

/// A backup with everything in it: sessions, rewinds, a snapshot, slots of each kind.
fn whole_backup() -> (Backed, Node, BTreeSet<Vec<u8>>) {
    let backed = Backed::fresh();
    let passphrase = backed.dir().path("passphrase");
    fs::write(&passphrase, "correct horse battery staple\n").unwrap();
    Cli::new(["key", "add", "--lightning-dir"])
        .arg(backed.network_dir())
        .arg("--add-passphrase-file")
        .arg(&passphrase)
        .run()
        .expect_success();
    let mut needles = BTreeSet::new();
    let mut note = |step: &Step| {
        for sql in step.statements() {
            note_words(sql, &mut needles);
        }
    };
    let mut config = WorkloadConfig::seeded(1);
    config.migration_every = 40;
    config.big_blob_every = 400;
    let mut workload = Workload::new(config);
    let mut node = backed.launch();
    let lost = Crash::both(CrashPoint::AfterAck);
    for session in 0..4 {
        for step in workload.by_ref().take(200) {
            note(&step);
            node.write(&step).unwrap().expect_committed();
        }
        let step = workload.propose();
        note(&step);
        node.crash(&step, &lost).unwrap();
        workload.abandon();
        workload.restarted();
        if session % 2 == 1 {
            let alone = ["one", "two"].map(|word| {
                Step::transaction([format!(
                    "INSERT OR REPLACE INTO vars (name, val) VALUES ('unhooked_{word}', 'unhooked value')"
                )])
            });
            for step in &alone {
                note(step);
                node.commit_unhooked(step).unwrap();
            }
        }
        node.start().unwrap();
    }
    for step in workload.by_ref().take(50) {
        note(&step);
        node.write(&step).unwrap().expect_committed();
    }
    node.kill().unwrap();
    needles.insert(b"correct horse".to_vec());
    (backed, node, needles)
}

/// The words and values of a statement, as text and, of blobs, as bytes.
fn note_words(sql: &str, needles: &mut BTreeSet<Vec<u8>>) {
    const NEEDLE_MAX: usize = 24;
    if needles.len() > 60_000 {
        return;
    }
    let words = sql.split(|c: char| !c.is_alphanumeric() && c != '_');
    for word in words.filter(|word| word.len() >= NEEDLE_MIN) {
        let end = (0..=NEEDLE_MAX.min(word.len())).rev().find(|&end| word.is_char_boundary(end));
        let word = &word[..end.unwrap_or(0)];
        needles.insert(word.as_bytes().to_vec());
        let bytes: Option<Vec<u8>> = (0..word.len() / 2)
            .map(|i| u8::from_str_radix(word.get(2 * i..2 * i + 2)?, 16).ok())
            .collect();
        if let Some(bytes) = bytes.filter(|bytes| bytes.len() >= NEEDLE_MIN) {
            // Not a run of one byte, such as the zeros behind the end of a segment.
            if bytes.iter().any(|byte| *byte != bytes[0]) {
                needles.insert(bytes);
            }
        }
    }
}

/// A search for many needles: each file is walked once, by the first bytes of them.
struct Needles {
    by_start: std::collections::HashMap<[u8; 4], Vec<Vec<u8>>>,
}

impl Needles {
    fn new(needles: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut by_start: std::collections::HashMap<[u8; 4], Vec<Vec<u8>>> = Default::default();
        for needle in needles {
            assert!(needle.len() >= NEEDLE_MIN, "{}", String::from_utf8_lossy(&needle));
            by_start.entry(*needle.first_chunk().unwrap()).or_default().push(needle);
        }
        Self { by_start }
    }

    fn find(&self, bytes: &[u8]) -> Option<String> {
        bytes.windows(4).enumerate().find_map(|(at, window)| {
            let start: &[u8; 4] = window.try_into().unwrap();
            let needle = self.by_start.get(start)?.iter().find(|n| bytes[at..].starts_with(n))?;
            Some(format!("'{}' at byte {at}", String::from_utf8_lossy(needle)))
        })
    }
}

/// The secrets of a node, in every spelling.
fn secrets(backed: &Backed) -> Vec<Vec<u8>> {
    let key = fs::read(backed.network_file("backup.key")).unwrap();
    let ring: serde_json::Value = serde_json::from_slice(&key).unwrap();
    let mut secrets = vec![vec![1; 32]];
    for key in ring["keys"].as_array().unwrap() {
        let key = key.as_str().unwrap();
        assert_eq!(key.len(), 64);
        secrets.push(key.as_bytes().to_vec());
        secrets.push(key.to_uppercase().into_bytes());
        let raw = (0..32).map(|i| u8::from_str_radix(&key[2 * i..2 * i + 2], 16).unwrap());
        secrets.push(raw.collect());
    }
    secrets
}

/// Every statement's words, every name, every secret.
fn all_needles(backed: &Backed, node: &Node, words: BTreeSet<Vec<u8>>) -> Needles {
    let database = rusqlite::Connection::open(node.database_path()).unwrap();
    let mut names = database.prepare("SELECT name FROM sqlite_master").unwrap();
    let names: Vec<String> =
        names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let names = names.into_iter().map(String::into_bytes);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    // Of a machine with a short name, the name with what stands around it in a claim.
    let host = format!("\"host\":\"{}\"", host.trim()).into_bytes();
    let fixed = [
        "SELECT",
        "INSERT",
        "UPDATE ",
        "DELETE",
        "CREATE",
        "PRAGMA",
        "data_version",
        "SQLite format 3",
        "lightningd",
        "hsm_secret",
        "backup-cli",
        "cln-lockstep",
        "purpose",
        "AGE-SECRET",
        "page_size",
    ];
    let path = backed.network_dir().to_str().unwrap().as_bytes().to_vec();
    let all = words
        .into_iter()
        .chain(names.filter(|name| name.len() >= NEEDLE_MIN))
        .chain(fixed.map(|text| text.as_bytes().to_vec()))
        .chain(secrets(backed))
        .chain([host, path]);
    Needles::new(all)
}

#[test]
fn nothing_that_the_node_wrote_or_is_shows_in_the_destination() {
    let (backed, node, words) = whole_backup();
    let count = words.len();
    assert!(count > 3_000, "{count} needles");
    let needles = all_needles(&backed, &node, words);
    // The search finds what is there.
    let database = fs::read(node.database_path()).unwrap();
    assert!(needles.find(&database).is_some());
    assert!(needles.find(&fs::read(backed.network_file("backup.key")).unwrap()).is_some());
    let mut bytes = 0;
    let files = files_under(&backed.store());
    for file in &files {
        let content = fs::read(backed.store().join(file)).unwrap();
        bytes += content.len();
        if file.to_str() == Some("lockstep.json") {
            continue; // see below
        }
        if let Some(found) = needles.find(&content) {
            panic!("{} holds {found}", file.display());
        }
        let name = file.to_str().unwrap();
        let own = name.replace("log/", "").replace("snapshots/", "").replace("passphrase-1", "");
        assert!(needles.find(own.as_bytes()).is_none(), "the name {name} tells something");
    }
    println!("{count} needles, none in {bytes} bytes of {} files", files.len());
    // The marker is the one thing in the clear, and holds no more than this.
    let marker: serde_json::Value =
        serde_json::from_slice(&fs::read(backed.store().join("lockstep.json")).unwrap()).unwrap();
    let fields: Vec<_> = marker.as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, ["created", "format", "store_id", "version"]);
}

/// The bytes of sealed frames, and nothing around them.
fn sealed_bytes(object: &[u8]) -> Vec<u8> {
    let (mut sealed, mut at) = (Vec::new(), HEADER_LEN);
    while let Some(prefix) = object.get(at..).and_then(|rest| rest.first_chunk()) {
        let Some(size) = frame_size(prefix).unwrap() else { break };
        let mark = FRAME_OVERHEAD - PREFIX_LEN - 16;
        sealed.extend_from_slice(&object[at + PREFIX_LEN..at + size - mark]);
        at += size;
    }
    sealed
}

#[test]
fn what_is_sealed_cannot_be_told_from_random_bytes() {
    let (backed, _, _) = whole_backup();
    let mut sealed = Vec::new();
    for file in files_under(&backed.store()) {
        let name = file.to_str().unwrap().to_owned();
        let content = fs::read(backed.store().join(&file)).unwrap();
        if name.starts_with("keys/") || name == "lockstep.json" {
            continue;
        }
        let part = sealed_bytes(&content);
        assert!(!part.is_empty(), "{name}");
        sealed.extend(part);
    }
    let total = sealed.len() as f64;
    assert!(total > 300_000.0, "{total} bytes");
    let mut counts = [0_u64; 256];
    sealed.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let entropy: f64 = counts
        .iter()
        .map(|&count| count as f64 / total)
        .map(|share| if share > 0.0 { -share * share.log2() } else { 0.0 })
        .sum();
    let expected = total / 256.0;
    let chi: f64 = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum();
    let packed = zstd::bulk::compress(&sealed, 9).unwrap().len();
    println!(
        "{total} sealed bytes: {entropy:.5} bits a byte, chi-square {chi:.0} of 255 degrees, zstd-9 {packed}"
    );
    // Random bytes fall below by about 255 / (2 ln 2 · n).
    assert!(entropy > 8.0 - 2.0 * 255.0 / (2.0 * std::f64::consts::LN_2 * total), "{entropy}");
    // Beyond five standard deviations by chance once in millions of runs.
    assert!((140.0..370.0).contains(&chi), "{chi}");
    assert!(packed as f64 >= total, "{packed} of {total}");
}

#[test]
fn no_nonce_is_used_twice() {
    let (backed, _, _) = whole_backup();
    let key = fs::read(backed.network_file("backup.key")).unwrap();
    let keys = KeyRing::decode(&key).unwrap();
    let mut prefixes = BTreeSet::new();
    let mut objects = 0;
    for file in files_under(&backed.store()) {
        let content = fs::read(backed.store().join(&file)).unwrap();
        let Ok(header) = Header::decode(&content) else { continue };
        objects += 1;
        assert_eq!(header.store, keys.store());
        assert!(prefixes.insert(header.nonce_prefix), "{}: a nonce again", file.display());
        assert_ne!(header.nonce_prefix, [0; 16]);
        let kind = match file.components().next().unwrap().as_os_str().to_str().unwrap() {
            "log" => ObjectKind::Segment,
            "snapshots" => ObjectKind::Snapshot,
            _ => ObjectKind::Claim,
        };
        assert_eq!(header.kind, kind);
    }
    // An old copy of the folder, written by a copy of the node: the same places, other nonces.
    let copy = backed.dir().path("copy");
    lockstep_tests::testdir::copy_dir(&backed.store(), &copy).unwrap();
    let before = files_under(&copy);
    for round in 0..2 {
        let mut node = Node::launch(backed.config()).unwrap();
        let step = [format!("INSERT OR REPLACE INTO vars (name) VALUES ('fork {round}')")];
        node.write(&Step::transaction(step)).unwrap().expect_committed();
        node.kill().unwrap();
        for file in files_under(&backed.store()).iter().filter(|file| !before.contains(file)) {
            let content = fs::read(backed.store().join(file)).unwrap();
            let header = Header::decode(&content).unwrap();
            assert!(prefixes.insert(header.nonce_prefix), "{}: a nonce again", file.display());
            objects += 1;
        }
        // Rolled back, so that the next round writes the same epochs and seqs. The database is
        // ahead then, which is another way to the same end.
        fs::remove_dir_all(backed.store()).unwrap();
        lockstep_tests::testdir::copy_dir(&copy, &backed.store()).unwrap();
    }
    println!("{objects} objects, {} nonce prefixes", prefixes.len());
    assert!(objects > 12);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// A program under the umask that hides least.
fn without_umask(backed: &Backed, program: PathBuf, name: &str) -> PathBuf {
    let script = backed.dir().path(name);
    fs::write(&script, format!("#!/bin/sh\numask 0\nexec '{}' \"$@\"\n", program.display()))
        .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    script
}

#[test]
fn everything_that_is_written_is_for_its_owner_only_under_any_umask() {
    let backed = Backed::without_backup();
    let cli = without_umask(&backed, binaries::cli(), "cli.sh");
    let plugin = without_umask(&backed, binaries::plugin(), "plugin.sh");
    Cli::program(&cli, ["init", "--lightning-dir"])
        .arg(backed.network_dir())
        .arg(backed.url())
        .run()
        .expect_success();
    assert_eq!(mode(&backed.network_file("backup.key")), 0o400);
    assert_eq!(mode(&backed.network_file("backup.lock")), 0o600);

    let mut node = Node::launch(NodeConfig::new(&plugin, backed.network_dir())).unwrap();
    let mut workload = Workload::new(WorkloadConfig::seeded(2).lean());
    Backed::write(&mut node, &mut workload, 30);
    node.stop().unwrap();
    node.commit_unhooked(&Step::transaction(["DELETE FROM forwards"])).unwrap();
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 3);
    node.kill().unwrap();

    let heir = backed.dir().path("heir");
    fs::create_dir(&heir).unwrap();
    fs::set_permissions(&heir, fs::Permissions::from_mode(0o700)).unwrap();
    let heir = heir.join("regtest");
    Cli::program(&cli, ["restore", &backed.url()])
        .arg(&heir)
        .arg("--key-file")
        .arg(backed.network_file("backup.key"))
        .run()
        .expect_success();
    let file = backed.new_dest();
    Cli::program(&cli, ["restore", "--no-claim", &backed.url()])
        .arg(&file)
        .arg("--key-file")
        .arg(backed.network_file("backup.key"))
        .run()
        .expect_success();
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(&heir.join("lightningd.sqlite3")), 0o600);
    assert_eq!(mode(&heir.join("backup.key")), 0o400);
    assert_eq!(mode(&heir.join("backup.lock")), 0o600);
    assert_eq!(mode(&heir), 0o700, "the directory that restore made");

    let mut folders = BTreeSet::new();
    for name in files_under(&backed.store()) {
        let path = backed.store().join(&name);
        assert!([0o600, 0o400].contains(&mode(&path)), "{}: {:o}", name.display(), mode(&path));
        let parents = name.ancestors().skip(1).map(|folder| backed.store().join(folder));
        folders.extend(parents);
    }
    for folder in folders {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
    }
}

#[test]
fn messages_tell_no_statement_and_no_key() {
    let (backed, mut node, words) = whole_backup();
    backed.set_in_lock("stall_timeout_s", serde_json::json!(1));
    // Ordinary words of English are in messages as well; what a node wrote is longer.
    let words: BTreeSet<_> = words.into_iter().filter(|word| word.len() >= 16).collect();
    let needles = Needles::new(words.into_iter().chain(secrets(&backed)));
    let mut said = Vec::new();
    for verb in ["status", "verify", "list"] {
        let output = backed.cli(verb).expect_success();
        said.push(output.stdout);
        said.push(output.stderr);
    }
    node.start().unwrap();
    node.init().unwrap();
    let status = node.call("backup-status", &serde_json::json!({})).unwrap();
    said.push(status.result().unwrap().to_string());
    // A statement that fails on replay: the message must not quote it.
    let secret = "'a_secret_label_of_an_invoice'";
    let version = node.ledger().committed_version().unwrap() + 1;
    let writes = vec![
        format!("INSERT INTO no_such_table VALUES ({secret})"),
        format!("INSERT OOPS {secret}"),
    ];
    let batch = lockstep_tests::Batch { data_version: version, writes };
    let _ = node.ask_raw(&batch).unwrap();
    let dest = backed.new_dest();
    let output = backed.restore(&dest).run();
    assert_eq!(output.code, Some(13), "{output}");
    assert!(output.stderr.contains("batch seq "), "the place is named: {output}");
    assert!(!output.stderr.contains("a_secret_label"), "{output}");
    assert!(!dest.exists());
    said.push(output.stderr);
    // Refusals.
    let step = Step::transaction(["INSERT INTO vars (name) VALUES ('another_secret_label')"]);
    // The plugin may be writing there at this moment.
    wait_for("the store is removed", || fs::remove_dir_all(backed.store()).ok());
    if let Outcome::Refused { message } = node.write(&step).unwrap() {
        assert!(!message.contains("another_secret_label"), "{message}");
        said.push(message);
    }
    said.extend(node.logs().into_iter().map(|line| line.message));
    said.push(node.stderr());
    for text in said {
        assert!(!text.contains("a_secret_label"), "{text}");
        if let Some(found) = needles.find(text.as_bytes()) {
            panic!("{found} in: {text}");
        }
    }
}
