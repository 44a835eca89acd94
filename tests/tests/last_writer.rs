//! A restore asks before it shuts out a node that was heard of lately: by what is in the log, and by its heartbeats.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_proto::config::read_key_file;
use lockstep_proto::fence::{self, Claimant};
use lockstep_proto::heartbeat::Heartbeat;
use lockstep_proto::seal::{Header, KeyRing, ObjectKind};
use lockstep_proto::store::FileStore;
use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::real::process::signal;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::sim::{Node, Standing};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use lockstep_tests::{Step, oracle};
use serde_json::{Value, json};

/// How long a node with a heartbeat a second looks alive: three of them, and one more for the clocks.
const FRESH: Duration = Duration::from_secs(4);

fn backed(places: &[&str]) -> Backed {
    let backed = Backed::without_backup();
    let init =
        places.iter().fold(backed.init(), |init, name| init.arg(backed.dir().file_url(name)));
    init.run().expect_success();
    backed.set_in_lock("heartbeat_s", json!(1));
    backed
}

fn running(backed: &Backed) -> (Node, Workload) {
    let mut workload = Workload::new(WorkloadConfig::seeded(1).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    (node, workload)
}

/// `restore` into a directory elsewhere, with more arguments.
fn restore(backed: &Backed, name: &str, more: &[&str]) -> (PathBuf, Output) {
    let dest = backed.dir().path(format!("{name}/regtest"));
    let cli = Cli::new(["restore", &backed.url()]).arg(&dest).arg("--key-file");
    let cli = cli.arg(backed.network_file("backup.key"));
    (dest, more.iter().fold(cli, Cli::arg).run())
}

#[track_caller]
fn says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output}");
    for word in words {
        assert!(output.stdout.contains(word) || output.stderr.contains(word), "'{word}': {output}");
    }
}

fn writer(backed: &Backed) -> Value {
    let args = ["status", "--json", "--lightning-dir"];
    Cli::new(args).arg(backed.network_dir()).run().expect_success().json()["writer"].take()
}

fn keys(backed: &Backed) -> KeyRing {
    read_key_file(&backed.network_file("backup.key")).unwrap()
}

/// Plugin and node die at once, and nobody has a chance to say so.
fn die(node: &mut Node) {
    signal(&[node.plugin().unwrap().id()], "KILL");
    node.kill().unwrap();
}

/// The newest heartbeat's file, once there is one.
fn heartbeat(store: &Path) -> PathBuf {
    let folder = store.join("heartbeats");
    wait_for("a heartbeat", || {
        let names = fs::read_dir(&folder).ok()?.map(|entry| entry.unwrap().path());
        names.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).max()
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Makes the dead node's epoch one of another machine, which was heard of so many milliseconds from now, at one place.
fn heard_of(backed: &Backed, place: &str, time: u64) {
    let store = FileStore::open(&backed.dir().path(place)).unwrap();
    let (keys, epoch) = (keys(backed), fence::newest(&store).unwrap());
    let claimed = fence::read(&store, &keys, epoch).unwrap();
    let by = Claimant { process: None, host: "elsewhere".into(), ..claimed };
    Heartbeat { time, interval_s: 1, by }.beat(&store, &keys, epoch).unwrap();
}

#[test]
fn a_quiet_node_is_not_shut_out_by_mistake() {
    let backed = backed(&[]);
    let (mut node, mut workload) = running(&backed);
    heartbeat(&backed.store());
    // Its newest record is too old by now: what shows that it lives is the heartbeat.
    sleep(FRESH + Duration::from_secs(1));
    let before = files_under(&backed.store());
    let pid = format!("process {} on ", node.plugin().unwrap().id());
    let alive =
        ["looks alive", "cln-lockstep/", "for 'node'", &pid, "last seen 20", " s ago)", "at '"];
    let (dest, refused) = restore(&backed, "elsewhere", &["--json"]);
    says(&refused, 11, &["\"name\":\"fenced\""]);
    says(&refused, 11, &alive);
    says(&refused, 11, &["stop that node for good", "--take-over", "Nothing was changed"]);
    assert!(!dest.exists());
    let (_, back) = restore(&backed, "elsewhere", &["--to-seq", "5", "--accept-stale"]);
    says(&back, 11, &alive);
    let (_, dry) = restore(&backed, "elsewhere", &["--dry-run"]);
    says(&dry, 0, &["warning: ", "looks alive", "would restore"]);
    assert!(!dest.exists());
    assert_eq!(files_under(&backed.store()), before);
    backed.restored();
    let status = writer(&backed);
    assert_eq!((&status["state"], &status["interval_seconds"]), (&json!("alive"), &json!(1)));
    assert_eq!(status["pid"], node.plugin().unwrap().id());
    says(&backed.cli("status"), 0, &["written by cln-lockstep/", "looks alive"]);
    backed.cli("verify").expect_success();

    // It goes on as if nobody had asked, until somebody means it.
    Backed::write(&mut node, &mut workload, 3);
    let (dest, taken) = restore(&backed, "elsewhere", &["--take-over"]);
    says(&taken, 0, &["the old node is shut out"]);
    oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
    let zombie = Step::transaction(["DELETE FROM vars WHERE name = 'zombie'"]);
    let message = node.write(&zombie).unwrap().expect_refused();
    assert!(message.contains("was taken over"), "{message}");
}

#[test]
fn one_that_was_stopped_in_order_is_not_asked_about() {
    let backed = backed(&[]);
    let (mut node, _) = running(&backed);
    let beat = heartbeat(&backed.store());
    node.stop().unwrap();
    assert_eq!(writer(&backed)["state"], "ended");
    let last = fs::read(&beat).unwrap();
    says(&restore(&backed, "one", &[]).1, 0, &["restored"]);
    // Nor is the restore, which wrote last.
    says(&restore(&backed, "two", &[]).1, 0, &["restored"]);
    assert_eq!(fs::read(&beat).unwrap(), last, "nothing is said after the end");
}

#[test]
fn one_that_died_on_this_machine_is_known_to_be_dead() {
    let backed = backed(&[]);
    let (mut node, _) = running(&backed);
    heartbeat(&backed.store());
    die(&mut node);
    assert_eq!(writer(&backed)["state"], "ended");
    says(&backed.cli("status"), 0, &["its process has ended"]);
    let (dest, done) = restore(&backed, "elsewhere", &[]);
    says(&done, 0, &["restored"]);
    oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
}

#[test]
fn one_that_died_elsewhere_looks_alive_for_a_while_at_whichever_place() {
    let backed = backed(&["second"]);
    let (mut node, _) = running(&backed);
    for place in ["store", "second"] {
        heartbeat(&backed.dir().path(place));
    }
    die(&mut node);
    sleep(FRESH);
    heard_of(&backed, "second", now());
    let began = Instant::now();
    let (_, refused) = restore(&backed, "elsewhere", &[]);
    let second = backed.dir().path("second");
    says(&refused, 11, &["on elsewhere", "looks alive", second.to_str().unwrap(), "wait "]);
    assert_eq!(writer(&backed)["host"], "elsewhere");
    let (dest, allowed) = wait_for("it is taken for dead", || {
        let (dest, output) = restore(&backed, "elsewhere", &[]);
        (output.code != Some(11)).then_some((dest, output))
    });
    assert!(began.elapsed() >= FRESH - Duration::from_secs(1), "{:?}", began.elapsed());
    says(&allowed, 0, &["restored"]);
    oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
}

#[test]
fn a_clock_that_is_wrong_is_said() {
    const HOUR: u64 = 3_600_000;
    let backed = backed(&[]);
    let (mut node, _) = running(&backed);
    die(&mut node);
    heard_of(&backed, "store", now() + 3 * HOUR);
    says(&restore(&backed, "a", &[]).1, 11, &["looks alive", "in the future", "clock", "is wrong"]);
    heard_of(&backed, "store", now() + 72 * HOUR);
    assert_eq!(writer(&backed)["state"], "unknown");
    let (_, done) = restore(&backed, "b", &[]);
    says(&done, 0, &["warning: ", "nobody can say", "in the future", "restored"]);
}

#[test]
fn a_heartbeat_is_sealed_and_the_older_ones_go() {
    let backed = backed(&[]);
    let (mut node, _) = running(&backed);
    let first = heartbeat(&backed.store());
    node.kill().unwrap();
    node.start().unwrap();
    let step = Step::transaction(["DELETE FROM vars WHERE name = 'nothing'"]);
    node.write(&step).unwrap().expect_committed();
    wait_for("the older one is removed", || (!first.exists()).then_some(()));
    let second = heartbeat(&backed.store());
    let (sealed, header) = wait_for("a whole one", || {
        let sealed = fs::read(&second).ok()?;
        Some((sealed.clone(), Header::decode(&sealed).ok()?))
    });
    assert_eq!(header.kind, ObjectKind::Heartbeat);
    assert!(!sealed.windows(4).any(|found| found == b"node" || found == b"time"));
    // Each has a nonce of its own.
    wait_for("the next one", || {
        let next = Header::decode(&fs::read(&second).ok()?).ok()?;
        (next.nonce_prefix != header.nonce_prefix).then_some(())
    });
    node.stop().unwrap();
}

#[test]
fn a_place_that_takes_no_heartbeat_does_not_disturb_the_log() {
    let backed = backed(&[]);
    fs::write(backed.store().join("heartbeats"), "in the way").unwrap();
    let (mut node, mut workload) = running(&backed);
    let lines = |node: &Node| {
        let words = "is not told that this node is alive";
        node.logs().iter().filter(|line| line.message.contains(words)).count()
    };
    wait_for("it is said", || (lines(&node) > 0).then_some(()));
    sleep(Duration::from_secs(3));
    Backed::write(&mut node, &mut workload, 5);
    assert_eq!(lines(&node), 1, "once");
    assert_eq!(backed.check(&node), Standing::Committed);
    node.stop().unwrap();
}
