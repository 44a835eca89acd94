//! `docs/format.md` suffices: a Python program that was written from it alone restores what
//! `backup-cli` restores, and refuses what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::Cli;
use lockstep_tests::sim::{Crash, CrashPoint, Node};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::workload::{Trace, Traces, Workload, WorkloadConfig};
use lockstep_tests::{Step, oracle};
use serde_json::Value;

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/reader/lockstep_reader.py");
const REQUIREMENTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../contrib/reader/requirements.txt");

/// A Python with the reader's packages, made once. `None`, and a visible line, without one.
fn python(test: &str) -> Option<&'static Path> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PYTHON.get_or_init(make_python) {
        Ok(python) => Some(python),
        Err(error) => {
            eprintln!("{test}: skipped, no python3 with the reader's packages: {error}");
            None
        }
    }
}

/// A virtual environment below the target directory; a mark in it says that it is complete.
fn make_python() -> Result<PathBuf, String> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("second-reader");
    let (python, mark) = (venv.join("bin/python3"), venv.join("installed.txt"));
    let wanted = fs::read_to_string(REQUIREMENTS).expect("the reader's requirements");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it failed").to_owned();
        if output.status.success() { Ok(()) } else { Err(last) }
    };
    let place = venv.to_str().expect("a target directory in UTF-8");
    run(Path::new("python3"), &["-m", "venv", "--clear", place])?;
    let quiet = ["-m", "pip", "--quiet", "--disable-pip-version-check"];
    run(&python, &[&quiet[..], &["install", "--requirement", REQUIREMENTS]].concat())?;
    fs::write(mark, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

#[test]
fn it_is_short_enough_to_be_read() {
    let lines = fs::read_to_string(READER).expect("the reader").lines().count();
    assert!(lines <= 300, "{lines} lines");
}

/// The Python reader, without the secret yet.
fn reader(python: &Path, store: &Path, dest: &Path) -> Cli {
    Cli::program(python, ["-B", READER]).arg(store).arg(dest)
}

/// What both make of one store with `backup.key`: the generation and seq where it ends, or that
/// it is refused.
#[track_caller]
fn both(python: &Path, backed: &Backed, store: &Path) -> Option<(u64, u64)> {
    let key = backed.network_file("backup.key");
    let (first, second) = (backed.new_dest(), backed.new_dest());
    let url = format!("file://{}", store.display());
    let theirs = backed.restore_of(&url, &first).arg("--json").run();
    let ours = reader(python, store, &second).arg(key).run();
    if theirs.code != Some(0) || ours.code != Some(0) {
        let refused = theirs.code.is_some_and(|code| code > 1) && ours.code == Some(1);
        assert!(refused, "backup-cli: {theirs}\nPython: {ours}");
        assert!(ours.stderr.starts_with("lockstep_reader: "), "{ours}");
        assert!(!first.exists() && !second.exists(), "a refused restore leaves no database");
        return None;
    }
    let report = theirs.json();
    assert_same_report(&report, &ours.stdout);
    oracle::assert_same(&first, &second);
    for path in [first, second] {
        fs::remove_file(path).unwrap();
    }
    report["generation"].as_u64().zip(report["seq"].as_u64())
}

/// `position: generation G, seq S, chain C` and `data_version: V`, as the reader prints them.
#[track_caller]
fn assert_same_report(report: &Value, printed: &str) {
    let position =
        format!("position: generation {}, seq {}, ", report["generation"], report["seq"]);
    let version = format!("\ndata_version: {}\n", report["data_version"]);
    assert!(printed.starts_with(&position) && printed.ends_with(&version), "{report}\n{printed}");
}

/// The Python reader restores with this secret, and no other database than `expected`.
#[track_caller]
fn assert_opens(python: &Path, backed: &Backed, expected: &Path, secret: &str, stdin: &str) {
    let dest = backed.new_dest();
    reader(python, &backed.store(), &dest).arg(secret).stdin(stdin).run().expect_success();
    oracle::assert_same(expected, &dest);
    fs::remove_file(dest).unwrap();
}

/// Plugin and node die with one batch acknowledged that the node never commits.
fn lose_one(node: &mut Node, workload: &mut Workload) {
    let report = loop {
        let step = workload.propose();
        if step.is_pragma() {
            node.write(&step).unwrap().expect_committed();
        } else {
            break node.crash(&step, &Crash::both(CrashPoint::AfterAck)).unwrap();
        }
    };
    assert!(!report.committed);
    workload.abandon();
    workload.restarted();
}

/// A batch of one statement.
fn write(node: &mut Node, sql: &str) {
    node.write(&Step::transaction([sql])).unwrap().expect_committed();
}

#[test]
fn a_generated_run_with_rewinds_and_a_snapshot_is_restored_by_both() {
    let name = "a_generated_run_with_rewinds_and_a_snapshot_is_restored_by_both";
    let Some(python) = python(name) else { return };
    let backed = Backed::fresh();
    let mut workload = Workload::seeded(5);
    let mut node = backed.running(&mut workload);
    for _ in 0..3 {
        Backed::write(&mut node, &mut workload, 150);
        lose_one(&mut node, &mut workload);
        both(python, &backed, &backed.store()).expect("a batch in doubt is no damage");
        node.start().unwrap();
    }
    backed.check(&node);
    write(&mut node, "CREATE TABLE asked (a, b, c, d)");
    let ask = "INSERT INTO asked VALUES (CAST(strftime('%s','now') AS INTEGER), \
               datetime('now', '-1 day'), CURRENT_TIMESTAMP, 'now')";
    write(&mut node, ask);
    // A node that dies between two settings begins with its own again.
    node.write(&Step::foreign_keys(false)).unwrap().expect_committed();
    node.kill().unwrap();
    node.start().unwrap();
    node.write(&Step::foreign_keys(false)).unwrap().expect_committed();
    write(&mut node, "CREATE TABLE rebuilt (a REFERENCES peers(id) ON DELETE CASCADE)");
    node.write(&Step::foreign_keys(true)).unwrap().expect_committed();
    Backed::write(&mut node, &mut workload, 50);
    let (first, _) = both(python, &backed, &backed.store()).expect("of a running node");
    node.stop().unwrap();

    let alone = "INSERT OR REPLACE INTO vars (name, intval) VALUES ('alone', 1)";
    for _ in 0..2 {
        node.commit_unhooked(&Step::transaction([alone])).unwrap();
    }
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 30);
    node.stop().unwrap();
    let (second, _) = both(python, &backed, &backed.store()).expect("from a snapshot");
    assert!(second > first, "the gap began a generation");
    assert_damage_is_refused(python, &backed);
}

/// A snapshot and a segment with one byte changed, one by one.
fn assert_damage_is_refused(python: &Path, backed: &Backed) {
    let newest = |folder: &str| {
        let mut files = files_under(&backed.store().join(folder));
        Path::new(folder).join(files.pop().expect("an object"))
    };
    for name in [newest("snapshots"), newest("log")] {
        let copy = backed.dir().path("damaged");
        copy_dir(&backed.store(), &copy).unwrap();
        let mut bytes = fs::read(copy.join(&name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(copy.join(&name), bytes).unwrap();
        assert_eq!(both(python, backed, &copy), None);
        let key = backed.network_file("backup.key");
        let run = reader(python, &copy, &backed.new_dest()).arg(key).run();
        assert!(run.stderr.contains(name.to_str().unwrap()), "{run}");
        fs::remove_dir_all(copy).unwrap();
    }
}

/// `backup-cli compact`, then the snapshot that it made.
#[track_caller]
fn compact(backed: &Backed) -> String {
    let run = Cli::new(["compact", "--json", "--lightning-dir"]).arg(backed.network_dir());
    let report = run.run().expect_success().json();
    report["snapshot"].as_str().expect("a snapshot").to_owned()
}

/// A copy of the store without these objects, or with one byte of them changed.
fn copy_without(backed: &Backed, damaged: bool, names: &[&str]) -> PathBuf {
    let copy = backed.dir().path("copy");
    let _ = fs::remove_dir_all(&copy);
    copy_dir(&backed.store(), &copy).unwrap();
    for name in names {
        let path = copy.join(name);
        if damaged {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(path, bytes).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
    copy
}

/// The line of the Python reader that names the snapshot it began with.
#[track_caller]
fn begins_with(python: &Path, backed: &Backed, store: &Path) -> String {
    let dest = backed.new_dest();
    let key = backed.network_file("backup.key");
    let run = reader(python, store, &dest).arg(key).run().expect_success();
    fs::remove_file(dest).unwrap();
    let line = run.stdout.lines().find_map(|line| line.strip_prefix("snapshot: "));
    line.expect("it says what it began with").to_owned()
}

#[test]
fn a_store_that_was_compacted_and_pruned_is_restored_by_both() {
    let name = "a_store_that_was_compacted_and_pruned_is_restored_by_both";
    let Some(python) = python(name) else { return };
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(8).lean());
    let mut node = backed.running(&mut workload);
    // Pages that stay as they are, so that a delta is worth while.
    let large = noise(1_000_000);
    write(&mut node, &format!("INSERT INTO vars (name, blobval) VALUES ('large', x'{large}')"));
    let store = backed.store();
    let mut made = Vec::new();
    for round in 0..6 {
        Backed::write(&mut node, &mut workload, 60);
        let snapshot = compact(&backed);
        both(python, &backed, &store).expect("right behind a snapshot");
        assert_eq!(begins_with(python, &backed, &store), snapshot);
        made.push(snapshot);
        Backed::write(&mut node, &mut workload, 15);
        // Restarts, in order or not: with a batch that the next session voids, or one that it does not.
        match round % 3 {
            0 => drop(node.stop().unwrap()),
            1 => lose_one(&mut node, &mut workload),
            _ => node.kill().unwrap(),
        }
        both(python, &backed, &store).expect("behind a snapshot and a session");
        node.start().unwrap();
        Backed::write(&mut node, &mut workload, 15);
    }
    backed.check(&node);
    let plan = backed.restore(&backed.new_dest()).arg("--dry-run").arg("--json").run();
    let plan = plan.expect_success().json();
    let chain: Vec<&str> =
        plan["snapshots"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(chain.len() > 1, "the newest is a delta: {plan}");
    assert!(made.len() > chain.len() + 1, "not each is a parent: {plan}");
    let (base, newest) = (chain[0], *chain.last().unwrap());

    // The log reaches back: older snapshots give the same.
    let whole = both(python, &backed, &store);
    for damaged in [false, true] {
        for name in &made {
            let copy = copy_without(&backed, damaged, &[name]);
            assert_eq!(both(python, &backed, &copy), whole, "{name}, damaged: {damaged}");
            let passed_over = begins_with(python, &backed, &copy) != newest;
            assert_eq!(passed_over, chain.contains(&name.as_str()), "{name}");
        }
    }
    let all: Vec<_> = made.iter().map(String::as_str).collect();
    let copy = copy_without(&backed, false, &all);
    assert_eq!(both(python, &backed, &copy), whole, "the log alone");
    assert_eq!(begins_with(python, &backed, &copy), "none");

    let prune =
        Cli::new(["prune", "--keep-last", "1", "--lightning-dir"]).arg(backed.network_dir());
    prune.run().expect_success();
    assert_eq!(both(python, &backed, &store), whole);
    assert_eq!(begins_with(python, &backed, &store), newest);
    // Now the log does not reach back to any other.
    for (damaged, names) in
        [(false, &[newest][..]), (true, &[newest]), (true, &[base]), (false, &[base])]
    {
        let copy = copy_without(&backed, damaged, names);
        assert_eq!(both(python, &backed, &copy), None, "{damaged} {names:?}");
    }
    let first = files_under(&store.join("log")).swap_remove(0);
    let copy = copy_without(&backed, false, &[Path::new("log").join(first).to_str().unwrap()]);
    assert_eq!(both(python, &backed, &copy), None, "the first segment left");

    // A log that is older than its snapshot: a copy that was half brought up to date.
    let old = backed.dir().path("old");
    copy_dir(&store, &old).unwrap();
    Backed::write(&mut node, &mut workload, 60);
    let next = compact(&backed);
    Backed::write(&mut node, &mut workload, 5);
    both(python, &backed, &store).expect("pruned, and compacted again");
    assert_eq!(begins_with(python, &backed, &store), next);
    fs::copy(store.join(&next), old.join(&next)).unwrap();
    assert_eq!(both(python, &backed, &old), None, "a snapshot beyond the log");

    // A gap begins a generation with a snapshot of its own; compaction goes on from that.
    node.stop().unwrap();
    let alone = "INSERT OR REPLACE INTO vars (name, intval) VALUES ('alone', 1)";
    for _ in 0..2 {
        node.commit_unhooked(&Step::transaction([alone])).unwrap();
    }
    node.start().unwrap();
    for _ in 0..2 {
        Backed::write(&mut node, &mut workload, 40);
        let next = compact(&backed);
        assert_eq!(begins_with(python, &backed, &store), next);
        both(python, &backed, &store).expect("compacted in its second generation");
    }
    let prune =
        Cli::new(["prune", "--keep-last", "1", "--lightning-dir"]).arg(backed.network_dir());
    prune.run().expect_success();
    both(python, &backed, &store).expect("pruned in its second generation");
    backed.check(&node);
}

#[test]
fn an_interrupted_write_is_told_from_damage_by_both() {
    let Some(python) = python("an_interrupted_write_is_told_from_damage_by_both") else { return };
    let backed = Backed::fresh();
    let mut workload = Workload::seeded(6);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 20);
    write(
        &mut node,
        &format!("INSERT INTO vars (name, blobval) VALUES ('b', x'{}')", noise(1_500)),
    );
    let segment = files_under(&backed.store().join("log")).pop().expect("a segment");
    let copy = backed.dir().path("torn");
    // While the node runs: a plugin that sees it die first may still close the segment.
    copy_dir(&backed.store(), &copy).unwrap();
    node.kill().unwrap();
    let at = copy.join("log").join(segment);
    let whole = fs::read(&at).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;

    let (_, seq) = both(python, &backed, &copy).unwrap();
    let judge = |bytes: &[u8]| {
        fs::write(&at, bytes).unwrap();
        both(python, &backed, &copy).map(|(_, found)| seq - found)
    };
    // Cut in the end mark, before it, and in the frame; with zeros behind, and without.
    for (cut, lost) in [(1, 0), (8, 0), (9, 1), (700, 1)] {
        assert_eq!(judge(&whole[..end - cut]), Some(lost), "{cut} bytes cut off");
        // Where the first of them was zero before, and the frame's last, nothing is lost: one run in 256.
        if whole[end - cut] != 0 {
            let mut zeros = whole.clone();
            zeros[end - cut..].fill(0);
            assert_eq!(judge(&zeros), Some(lost), "{cut} bytes are zeros");
        }
    }
    // A sector of the last frame that was not written; one wrong byte; a wrong end mark.
    let sector = (end - 1_000) / 512 * 512;
    let mut bytes = whole.clone();
    bytes[sector..sector + 512].fill(0);
    assert_eq!(judge(&bytes), Some(1), "a lost sector");
    for wrong in [end - 1, end - 8, end - 9, end - 700, end - 4_000, 200, 100] {
        let mut bytes = whole.clone();
        bytes[wrong] ^= 1;
        assert_eq!(judge(&bytes), None, "byte {wrong} of {end}");
    }
}

/// So many bytes in hex that do not compress.
fn noise(bytes: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..bytes).map(|_| format!("{:02x}", rng.u8(..))).collect()
}

#[test]
fn every_secret_opens_a_store() {
    let Some(python) = python("every_secret_opens_a_store") else { return };
    const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon \
                         abandon abandon abandon about";
    let make = "import pyrage; i = pyrage.x25519.Identity.generate(); print(i, i.to_public())";
    let made = Cli::program(python, ["-c", make]).run().expect_success().stdout;
    let (identity, recipient) = made.trim().split_once(' ').expect("two words");

    for words in [false, true] {
        let backed = Backed::without_backup();
        let file = |name: &str, content: &[u8]| {
            let path = backed.dir().path(name);
            fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        if words {
            // Read-only as it was written.
            fs::remove_file(backed.network_file("hsm_secret")).unwrap();
            let content = [&[0; 32], WORDS.as_bytes()].concat();
            fs::write(backed.network_file("hsm_secret"), content).unwrap();
        }
        let passphrase = file("passphrase", b"correct horse\n");
        let init = backed.init().arg("--passphrase-file").arg(&passphrase);
        init.arg("--recipient").arg(recipient).run().expect_success();
        let mut workload = Workload::seeded(7);
        let mut node = backed.running(&mut workload);
        Backed::write(&mut node, &mut workload, 10);
        node.stop().unwrap();
        let database = node.database_path();
        let hsm_secret = backed.network_file("hsm_secret");
        let hsm_secret = hsm_secret.to_str().unwrap();
        let opens = |secret: &str, stdin: &str| {
            assert_opens(python, &backed, &database, secret, stdin);
        };
        opens(hsm_secret, "");
        if words {
            opens("-", &format!("{WORDS}\n\n"));
        }
        // What any age makes of a slot is a key file.
        let age = |decrypt: &str, slot: &str, secret: &str| {
            let code = format!("import pyrage, sys; sys.stdout.write({decrypt}.decode())");
            let slot = fs::read(backed.store().join("keys").join(slot)).unwrap();
            let hex: String = slot.iter().map(|byte| format!("{byte:02x}")).collect();
            let run = Cli::program(python, ["-c", &code, secret]).arg(hex).run().expect_success();
            let ring = backed.network_file("ring");
            let _ = fs::remove_file(&ring);
            fs::write(&ring, run.stdout).unwrap();
            fs::set_permissions(&ring, fs::Permissions::from_mode(0o400)).unwrap();
            opens(ring.to_str().unwrap(), "");
        };
        let with_passphrase = "pyrage.passphrase.decrypt(bytes.fromhex(sys.argv[2]), sys.argv[1])";
        age(with_passphrase, "passphrase-1.age", "correct horse");
        let with_identity = "pyrage.decrypt(bytes.fromhex(sys.argv[2]), \
                             [pyrage.x25519.Identity.from_str(sys.argv[1])])";
        age(with_identity, "recipient-1.age", identity);
        // The secret of another node.
        let other = file("other", &[7; 32]);
        let run = reader(python, &backed.store(), &backed.new_dest());
        run.arg(other).run().expect_code(1);
    }
}

#[test]
fn a_recorded_node_is_restored_by_both() {
    let name = "a_recorded_node_is_restored_by_both";
    let Some(python) = python(name) else { return };
    let Some(traces) = Traces::locate_or_say(name) else { return };
    let backed = Backed::fresh();
    let mut node = backed.launch();
    for batch in traces.read(Trace::NodeStart).unwrap() {
        node.write(&Step::from(batch.unwrap())).unwrap().expect_committed();
    }
    node.init().unwrap();
    node.stop().unwrap();
    both(python, &backed, &backed.store()).expect("of a stopped node");
    backed.check_same_as(&node.database_path());
}

/// Cuts a segment into parts (docs/format.md, §3.1), `named` after their writer or by their number alone.
fn cut_into_parts(store: &Path, segment: &Path, named: bool) -> usize {
    let bytes = fs::read(store.join(segment)).unwrap();
    let (header, mut rest) = bytes.split_at(128);
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
    let (epoch, first) = (number(36) as u32, number(40));
    let index = u32::from_le_bytes(header[48..52].try_into().unwrap());
    fs::create_dir_all(store.join("tail")).unwrap();
    let mut seq = first;
    while rest.len() > 8 {
        let sealed = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        let (frame, after) = rest.split_at(8 + sealed + 8);
        let owner = if named { format!("-{epoch:08x}-{index:08x}") } else { String::new() };
        let part = store.join(format!("tail/{seq:016x}{owner}.part"));
        fs::write(part, [header, frame].concat()).unwrap();
        (rest, seq) = (after, seq + 1);
    }
    fs::remove_file(store.join(segment)).unwrap();
    (seq - first) as usize
}

#[test]
fn segments_in_parts_are_restored_by_both() {
    let name = "segments_in_parts_are_restored_by_both";
    let Some(python) = python(name) else { return };
    let backed = Backed::fresh();
    let mut workload = Workload::seeded(9);
    let mut node = backed.running(&mut workload);
    for _ in 0..2 {
        Backed::write(&mut node, &mut workload, 20);
        node.stop().unwrap();
        node.start().unwrap();
    }
    Backed::write(&mut node, &mut workload, 20);
    node.stop().unwrap();
    let (whole, _) = both(python, &backed, &backed.store()).expect("of whole segments");
    for named in [false, true] {
        let copy = copy_without(&backed, false, &[]);
        let segments = files_under(&copy.join("log"));
        let cut: Vec<_> = segments.iter().rev().take(2).collect();
        for segment in &cut {
            assert!(cut_into_parts(&copy, &Path::new("log").join(segment), named) > 20);
        }
        // Only keeps the number from an older writer.
        fs::write(copy.join("tail/0000000000000001.part"), b"").unwrap();
        let (parts, _) = both(python, &backed, &copy).expect("of segments in parts");
        assert_eq!(parts, whole);

        let parts = files_under(&copy.join("tail"));
        fs::remove_file(copy.join("tail").join(&parts[parts.len() / 2])).unwrap();
        assert_eq!(both(python, &backed, &copy), None, "a part is missing");
    }
}
