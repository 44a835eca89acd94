//! Death at any moment: of the plugin, of the node, of both, of `backup-cli`. The next
//! start goes on, and every acknowledged batch is restored, and nothing else.

use std::fs::File;
use std::io::Write;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, ci_or_long, files_under, long_seconds, reason_not_to_go_on};
use lockstep_tests::binaries::Cli;
use lockstep_tests::sim::{
    Answer, Crash, CrashPoint, Database, Fate, Node, NodeConfig, Sent, Standing, Victim,
};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::workload::{Workload, WorkloadConfig};
use lockstep_tests::{binaries, oracle};

/// Nodes that live and die at the same time.
const NODES: u32 = 4;
/// A batch is appended in a few milliseconds; deaths come in that time and shortly after …
const APPEND: Duration = Duration::from_millis(6);
/// … and the first call of a session, which claims, reads and opens, takes longer.
const FIRST_APPEND: Duration = Duration::from_millis(30);

const LOST: Crash = Crash { point: CrashPoint::AfterAck, victim: Victim::Both, hot_journal: false };

/// `LOCKSTEP_SEED`, or one that changes from run to run; it is printed.
fn seed() -> u64 {
    let seed = match std::env::var("LOCKSTEP_SEED") {
        Ok(seed) => seed.parse().expect("LOCKSTEP_SEED is a number"),
        Err(_) => fastrand::u64(..1_000_000),
    };
    println!("LOCKSTEP_SEED={seed}");
    seed
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    deaths: u32,
    first_calls: u32,
    acknowledged: u32,
    lost: u32,
    pending_restored: u32,
    gaps: u32,
    hot_journals: u32,
    starts: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.deaths += other.deaths;
        self.first_calls += other.first_calls;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.pending_restored += other.pending_restored;
        self.gaps += other.gaps;
        self.hot_journals += other.hot_journals;
        self.starts += other.starts;
    }
}

/// One node that dies again and again.
struct Life {
    backed: Backed,
    node: Node,
    workload: Workload,
    rng: Rng,
    /// What the backup held when the database got ahead of it, and the attempts until then.
    gap: Option<(PathBuf, usize)>,
    tally: Tally,
}

impl Life {
    fn new(seed: u64) -> Self {
        let backed = Backed::fresh();
        let node = backed.launch();
        let mut config = WorkloadConfig::seeded(seed).lean();
        config.migration_every = 10;
        let (workload, rng) = (Workload::new(config), Rng::with_seed(seed));
        Self { backed, node, workload, rng, gap: None, tally: Tally::default() }
    }

    /// A few batches, a death, a restore, a restart.
    fn one_death(&mut self) {
        let steps = if self.rng.u8(..3) == 0 { 0 } else { self.rng.usize(..8) };
        for _ in 0..steps {
            let step = self.workload.propose();
            self.node.write(&step).unwrap().expect_committed();
        }
        let crash = Crash::random(&mut self.rng, if steps == 0 { FIRST_APPEND } else { APPEND });
        let report = self.node.crash(&self.workload.propose(), &crash).unwrap();
        self.tally.deaths += 1;
        self.tally.first_calls += u32::from(steps == 0);
        let acknowledged = match report.answer {
            Some(Answer::Continue) => true,
            Some(Answer::Died) | None => false,
            Some(Answer::Refused { message }) => panic!("refused: {message}"),
        };
        self.tally.acknowledged += u32::from(acknowledged);
        self.tally.hot_journals += u32::from(crash.hot_journal && !report.committed);
        if !report.committed {
            self.workload.abandon();
            self.tally.lost += u32::from(acknowledged);
        }
        let standing = self.judge();
        self.tally.pending_restored +=
            u32::from(matches!(standing, Some(Standing::Pending { .. })));
        self.workload.restarted();
        // A database that is still empty has no table to write to.
        let is_written = self.node.ledger().committed_version().is_some();
        if standing == Some(Standing::Committed) && is_written && self.rng.u8(..12) == 0 {
            self.get_ahead();
        }
        if self.rng.u8(..4) == 0 {
            self.die_at_the_start();
        }
        self.node.start().unwrap();
        if self.rng.bool() {
            self.node.init().unwrap();
        }
    }

    /// A plugin that does not live until its manifest, or hardly longer.
    fn die_at_the_start(&mut self) {
        let mut child = Command::new(binaries::plugin())
            .current_dir(self.backed.network_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let manifest =
            "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"getmanifest\",\"params\":{}}\n\n";
        child.stdin.as_mut().unwrap().write_all(manifest.as_bytes()).unwrap();
        kill_after(child, FIRST_APPEND.mul_f64(self.rng.f64()));
        self.tally.starts += 1;
    }

    /// Restores. Between a commit without the plugin and the next acknowledgement the backup may
    /// still be where it was.
    fn judge(&mut self) -> Option<Standing> {
        if let Some((before, attempts)) = &self.gap {
            let since = &self.node.ledger().attempts()[*attempts..];
            if since.iter().all(|attempt| attempt.fate < Fate::Acknowledged) {
                let restored = self.backed.restored();
                let as_before = oracle::difference(before, &restored).unwrap().is_none();
                if !as_before {
                    self.node.check_restored(&restored).unwrap();
                }
                std::fs::remove_file(restored).unwrap();
                return None;
            }
            std::fs::remove_file(before).unwrap();
            self.gap = None;
        }
        Some(self.backed.check(&self.node))
    }

    /// Commits what no plugin hears of.
    fn get_ahead(&mut self) {
        let before = self.backed.restored();
        self.gap = Some((before, self.node.ledger().attempts().len()));
        for number in 0..self.rng.u8(1..4) {
            let sql =
                format!("INSERT OR REPLACE INTO vars (name, intval) VALUES ('alone', {number})");
            self.node.commit_unhooked(&Step::transaction([sql])).unwrap();
        }
        self.tally.gaps += 1;
    }
}

#[test]
fn random_deaths_lose_no_acknowledged_batch_and_restore_no_other() {
    let points: u32 = ci_or_long(150, 1_000);
    // Further, for as long as somebody wants.
    let least = ci_or_long(Duration::ZERO, Duration::from_secs(long_seconds(0)));
    let began = Instant::now();
    let seed = seed();
    let lives: Vec<_> = (0..NODES)
        .map(|number| {
            thread::spawn(move || {
                let mut life = Life::new(seed + u64::from(number));
                while life.tally.deaths < points.div_ceil(NODES) || began.elapsed() < least {
                    life.one_death();
                }
                Backed::write(&mut life.node, &mut life.workload, 5);
                life.node.stop().unwrap();
                assert_eq!(life.backed.check(&life.node), Standing::Committed);
                life.backed.cli("verify").expect_success();
                life.tally
            })
        })
        .collect();
    let mut tally = Tally::default();
    for life in lives {
        tally += life.join().expect("a life without a fault");
    }
    println!("{:.0} s: {tally:?}", began.elapsed().as_secs_f64());
    assert!(tally.deaths >= points);
    assert!(tally.lost > 0 && tally.pending_restored > 0 && tally.gaps > 0);
}

/// A running node and what it writes, small.
fn running(seed: u64) -> (Backed, Node, Workload) {
    let backed = Backed::fresh();
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean());
    let node = backed.running(&mut workload);
    (backed, node, workload)
}

/// A batch that can be told from any other.
fn marked(mark: &str) -> Step {
    Step::transaction([format!("INSERT INTO vars (name, intval) VALUES ('{mark}', 1)")])
}

/// Whether a restored database holds a marked batch.
fn holds(database: &Path, mark: &str) -> bool {
    let database = rusqlite::Connection::open(database).unwrap();
    let sql = "SELECT count(*) FROM vars WHERE name = ?1";
    let count: i64 = database.query_row(sql, [mark], |row| row.get(0)).unwrap();
    count == 1
}

#[track_caller]
fn assert_holds(backed: &Backed, there: &[&str], gone: &[&str]) {
    let restored = backed.restored();
    for mark in there {
        assert!(holds(&restored, mark), "{mark} is not there");
    }
    for mark in gone {
        assert!(!holds(&restored, mark), "{mark} is there");
    }
}

#[test]
fn of_two_batches_with_one_version_the_committed_one_is_restored() {
    let (backed, mut node, _) = running(21);
    let first = node.crash(&marked("first"), &LOST).unwrap();
    let pending = Standing::Pending { data_version: first.data_version };
    assert_eq!(backed.check(&node), pending);
    node.start().unwrap();
    assert_eq!(backed.check(&node), pending, "a start alone abandons nothing");
    let second = node.write(&marked("second")).unwrap().expect_committed();
    assert_eq!(second, first.data_version);
    let third = node.write(&marked("third")).unwrap().expect_committed();
    assert_eq!(third, second + 1);
    assert_eq!(backed.check(&node), Standing::Committed);
    assert_holds(&backed, &["second", "third"], &["first"]);
    assert!(node.logged("was never committed by the node"));
}

/// As if the database had last been written to a minute later, or earlier by a clock that was set back.
fn written_later(node: &Node, seconds: i64) {
    let file = File::options().write(true).open(node.database_path()).unwrap();
    let (now, by) = (SystemTime::now(), Duration::from_secs(seconds.unsigned_abs()));
    file.set_modified(if seconds < 0 { now - by } else { now + by }).unwrap();
}

#[test]
fn a_batch_that_was_lost_and_made_up_for_without_the_plugin_is_noticed() {
    // The database has the version of the newest batch, and is not what that batch made.
    for seconds in [60, -60] {
        let (backed, mut node, _) = running(34);
        let first = node.crash(&marked("first"), &LOST).unwrap();
        let second = node.commit_unhooked(&marked("second")).unwrap();
        assert_eq!(second, first.data_version);
        written_later(&node, seconds);
        node.start().unwrap();
        node.write(&marked("third")).unwrap().expect_committed();
        assert_eq!(backed.check(&node), Standing::Committed);
        assert_holds(&backed, &["second", "third"], &["first"]);
    }
}

#[test]
fn a_database_that_a_person_changed_is_restored_as_it_was_changed() {
    let (backed, mut node, _) = running(35);
    node.stop().unwrap();
    let database = rusqlite::Connection::open(node.database_path()).unwrap();
    database.execute_batch("INSERT INTO vars (name, intval) VALUES ('by hand', 1)").unwrap();
    drop(database);
    written_later(&node, 60);
    node.start().unwrap();
    node.write(&marked("next")).unwrap().expect_committed();
    assert!(node.logged("was written to without this plugin"));
    assert_holds(&backed, &["by hand", "next"], &[]);
    // Once is enough: what is in the snapshot is in the log.
    node.stop().unwrap();
    written_later(&node, 0);
    let snapshots = snapshots(&backed);
    node.start().unwrap();
    node.write(&marked("last")).unwrap().expect_committed();
    assert_eq!(snapshots, self::snapshots(&backed));
}

#[test]
fn a_quiet_node_that_is_stopped_in_order_takes_no_snapshot_when_it_is_started_again() {
    let (backed, mut node, _) = running(37);
    let before = snapshots(&backed);
    node.write(&marked("the last for a while")).unwrap().expect_committed();
    // The session ends, with a record of its own, long after the database was last written.
    std::thread::sleep(Duration::from_secs(6));
    node.stop().unwrap();
    node.start().unwrap();
    node.write(&marked("next")).unwrap().expect_committed();
    assert_eq!(before, snapshots(&backed));
    assert!(!node.logged("was written to without this plugin"));
}

#[test]
fn a_death_after_the_commit_takes_no_snapshot() {
    let (backed, mut node, _) = running(36);
    let before = snapshots(&backed);
    for point in [CrashPoint::AfterCommit, CrashPoint::AfterAck] {
        node.crash(&marked(&format!("{point:?}")), &Crash { point, ..LOST }).unwrap();
        node.start().unwrap();
        node.write(&marked(&format!("{point:?} and on"))).unwrap().expect_committed();
    }
    assert_eq!(before, snapshots(&backed));
}

fn snapshots(backed: &Backed) -> usize {
    let files = files_under(&backed.store());
    files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "snap")).count()
}

#[test]
fn five_lost_batches_running_are_all_abandoned() {
    for in_new_sessions_only in [true, false] {
        let (backed, mut node, _) = running(22);
        for round in 0..5 {
            if !in_new_sessions_only {
                node.write(&marked(&format!("between {round}"))).unwrap().expect_committed();
            }
            let report = node.crash(&marked(&format!("lost {round}")), &LOST).unwrap();
            let pending = Standing::Pending { data_version: report.data_version };
            assert_eq!(backed.check(&node), pending);
            node.start().unwrap();
        }
        node.write(&marked("kept")).unwrap().expect_committed();
        node.write(&marked("next")).unwrap().expect_committed();
        assert_eq!(backed.check(&node), Standing::Committed);
        let lost = ["lost 0", "lost 1", "lost 2", "lost 3", "lost 4"];
        assert_holds(&backed, &["kept", "next"], &lost);
        let report = backed.cli("verify").expect_success();
        assert!(report.stdout.contains("is intact"), "{report}");
    }
}

#[test]
fn starts_that_write_nothing_change_nothing() {
    let (backed, mut node, _) = running(23);
    let report = node.crash(&marked("lost"), &LOST).unwrap();
    for _ in 0..5 {
        node.start().unwrap();
        node.init().unwrap();
        node.stop().unwrap();
    }
    assert_eq!(backed.check(&node), Standing::Pending { data_version: report.data_version });
    node.start().unwrap();
    node.write(&marked("kept")).unwrap().expect_committed();
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn a_pragma_first_abandons_no_acknowledged_batch() {
    let (backed, mut node, _) = running(24);
    let report = node.crash(&marked("lost"), &LOST).unwrap();
    let pending = Standing::Pending { data_version: report.data_version };
    // The first call of a session, with the version before the lost batch's.
    node.start().unwrap();
    node.crash(&Step::foreign_keys(false), &LOST).unwrap();
    assert_eq!(backed.check(&node), pending);
    node.start().unwrap();
    for step in [Step::foreign_keys(false), Step::foreign_keys(true)] {
        let version = node.write(&step).unwrap().expect_committed();
        assert_eq!(version + 1, report.data_version);
    }
    assert_eq!(backed.check(&node), pending);
    // The first transaction, and only it, replaces what was lost.
    let version = node.write(&marked("kept")).unwrap().expect_committed();
    assert_eq!(version, report.data_version);
    assert_eq!(backed.check(&node), Standing::Committed);
    assert_holds(&backed, &["kept"], &["lost"]);
}

#[test]
fn five_lost_batches_running_each_behind_a_pragma_are_all_abandoned() {
    let (backed, mut node, _) = running(25);
    for round in 0..5 {
        node.write(&Step::foreign_keys(false)).unwrap().expect_committed();
        let report = node.crash(&marked(&format!("lost {round}")), &LOST).unwrap();
        let pending = Standing::Pending { data_version: report.data_version };
        assert_eq!(backed.check(&node), pending);
        node.start().unwrap();
    }
    for step in
        [Step::foreign_keys(false), marked("kept"), Step::foreign_keys(true), marked("next")]
    {
        node.write(&step).unwrap().expect_committed();
    }
    assert_eq!(backed.check(&node), Standing::Committed);
    let lost = ["lost 0", "lost 1", "lost 2", "lost 3", "lost 4"];
    assert_holds(&backed, &["kept", "next"], &lost);
}

#[test]
fn a_pragma_first_at_the_version_of_a_committed_batch_abandons_nothing() {
    let (backed, mut node, _) = running(26);
    let report = node.crash(&marked("committed"), &Crash::both(CrashPoint::AfterCommit)).unwrap();
    node.start().unwrap();
    for step in [Step::foreign_keys(false), Step::foreign_keys(true)] {
        let version = node.write(&step).unwrap().expect_committed();
        assert_eq!(version, report.data_version);
    }
    node.kill().unwrap();
    node.start().unwrap();
    let next = node.write(&marked("next")).unwrap().expect_committed();
    assert_eq!(next, report.data_version + 1);
    assert_eq!(backed.check(&node), Standing::Committed);
    assert_holds(&backed, &["committed", "next"], &[]);
}

#[test]
fn foreign_keys_are_on_again_in_the_session_after_a_death_inside_a_rebuild() {
    let (backed, mut node, _) = running(27);
    let rows = [
        "INSERT INTO blocks (height) VALUES (7000007)",
        "INSERT INTO outputs (prev_out_tx, prev_out_index, spend_height) VALUES (x'00', 0, 7000007)",
    ];
    node.write(&Step::transaction(rows)).unwrap().expect_committed();
    let off = Step::foreign_keys(false);
    node.crash(&off, &Crash::both(CrashPoint::AfterCommit)).unwrap();
    node.start().unwrap();
    // Sets the output's height to NULL: the earlier session's OFF is gone.
    let delete = Step::transaction(["DELETE FROM blocks WHERE height = 7000007"]);
    node.write(&delete).unwrap().expect_committed();
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn every_crash_point_of_a_first_and_of_a_later_call_is_survived() {
    let inside = |sent| CrashPoint::InsideHook { sent, after: Duration::from_millis(300) };
    let points = [
        CrashPoint::BeforeHook,
        inside(Sent::Part(0.5)),
        inside(Sent::AllButBlankLine),
        inside(Sent::All),
        CrashPoint::AfterAck,
        CrashPoint::AfterCommit,
    ];
    let (backed, mut node, mut workload) = running(28);
    for victim in [Victim::Plugin, Victim::Node, Victim::Both] {
        for point in points {
            for writes_before in [0, 2] {
                Backed::write(&mut node, &mut workload, writes_before);
                let step = workload.propose();
                let crash = Crash { hot_journal: writes_before == 2, ..Crash::of(victim, point) };
                let report = node.crash(&step, &crash).unwrap();
                if !report.committed {
                    workload.abandon();
                }
                backed.check(&node);
                workload.restarted();
                node.start().unwrap();
            }
        }
    }
    Backed::write(&mut node, &mut workload, 2);
    assert_eq!(backed.check(&node), Standing::Committed);
}

#[test]
fn deaths_around_the_end_of_a_full_segment_are_survived() {
    // A segment ends at 8 MiB: of batches of one MiB, some close one and open the next.
    let (backed, mut node, _) = running(33);
    let mut rng = Rng::with_seed(seed());
    let noise = |rng: &mut Rng| {
        let hex: String = (0..1 << 17).map(|_| format!("{:016x}", rng.u64(..))).collect();
        let key = rng.u8(..4);
        Step::transaction([format!(
            "INSERT OR REPLACE INTO datastore VALUES (x'0{key}', x'{hex}', 0)"
        )])
    };
    let segments = |backed: &Backed| {
        let files = files_under(&backed.store());
        files.iter().filter(|file| file.extension().is_some_and(|it| it == "seg")).count()
    };
    let (mut sessions, deaths) = (2, ci_or_long(3, 40));
    for death in 0..deaths {
        for _ in 0..7 + death % 3 {
            node.write(&noise(&mut rng)).unwrap().expect_committed();
        }
        let point =
            CrashPoint::InsideHook { sent: Sent::All, after: 20 * APPEND.mul_f64(rng.f64()) };
        node.crash(&noise(&mut rng), &Crash::both(point)).unwrap();
        if death % 8 == 7 {
            backed.check(&node);
        }
        node.start().unwrap();
        sessions += 1;
    }
    node.write(&marked("kept")).unwrap().expect_committed();
    assert_eq!(backed.check(&node), Standing::Committed);
    assert!(segments(&backed) > sessions, "no segment was full");
}

/// Lets a program run for so long, then kills it; says whether it had ended by itself.
fn kill_after(mut child: Child, time: Duration) -> bool {
    thread::sleep(time);
    let ended = child.try_wait().expect("look at it").is_some();
    child.kill().expect("kill it");
    child.wait().expect("wait for its end");
    ended
}

#[test]
fn a_restore_that_is_killed_leaves_no_database_and_can_be_repeated() {
    let (backed, mut node, mut workload) = running(29);
    Backed::write(&mut node, &mut workload, 400);
    node.stop().unwrap();
    let dest = backed.dir().make_dir("elsewhere/regtest");
    let database = dest.join("lightningd.sqlite3");
    let began = Instant::now();
    backed.check(&node);
    let whole = began.elapsed();
    let kills = ci_or_long(12, 60);
    for number in 0..kills {
        let child = backed.restore(&dest).spawn();
        if kill_after(child, whole * number / kills) {
            break;
        }
        if database.exists() {
            oracle::assert_same(&node.database_path(), &database);
            std::fs::remove_file(&database).unwrap();
        }
    }
    if !database.exists() {
        backed.restore(&dest).run().expect_success();
    }
    oracle::assert_same(&node.database_path(), &database);
    let left: Vec<_> = std::fs::read_dir(&dest)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("restoring"))
        .collect();
    assert!(left.is_empty(), "{left:?} was left");
}

#[test]
fn a_take_over_that_is_killed_can_be_repeated_and_then_started() {
    let (backed, mut node, mut workload) = running(31);
    let secret = backed.network_file("hsm_secret");
    let mut whole = Duration::from_millis(400);
    let rounds = ci_or_long(10, 100);
    for round in 0..rounds {
        Backed::write(&mut node, &mut workload, 5);
        node.kill().unwrap();
        let dest = backed.dir().make_dir(format!("heir-{round}/regtest"));
        std::fs::copy(&secret, dest.join("hsm_secret")).unwrap();
        let take_over = || Cli::new(["restore", &backed.url()]).arg(&dest);
        let began = Instant::now();
        kill_after(take_over().spawn(), whole * round / rounds);
        if !dest.join("lightningd.sqlite3").exists() {
            let began = Instant::now();
            take_over().run().expect_success();
            whole = began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        oracle::assert_same(&node.database_path(), &dest.join("lightningd.sqlite3"));
        let heir = Node::launch(NodeConfig::new(binaries::plugin(), &dest)).unwrap();
        let mut old = std::mem::replace(&mut node, heir);
        Backed::write(&mut node, &mut workload, 2);
        assert_eq!(backed.check(&node), Standing::Committed);
        reason_not_to_go_on(&mut old);
    }
    backed.cli("verify").expect_success();
}

#[test]
fn a_folder_copied_while_the_node_writes_is_the_backup_of_some_moment() {
    let (backed, mut node, mut workload) = running(32);
    let copies = ci_or_long(15, 100);
    let acknowledged = AtomicU32::new(node.ledger().committed_version().unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let copier = scope.spawn(|| {
            // Whatever happens here, the writer must not go on for ever.
            let _ends = scopeguard(|| done.store(true, Ordering::Relaxed));
            for number in 0..copies {
                let before = acknowledged.load(Ordering::Relaxed);
                let copy = backed.dir().path(format!("copy-{number}"));
                copy_dir(&backed.store(), &copy).unwrap();
                let dest = backed.dir().path(format!("of-copy-{number}.sqlite3"));
                let url = format!("file://{}", copy.display());
                let report = backed.restore_of(&url, &dest).arg("--json").run().expect_success();
                let version = report.json()["data_version"].as_u64().unwrap();
                let after = acknowledged.load(Ordering::Relaxed);
                // One more than was acknowledged may be under way.
                let fits = u64::from(before)..=u64::from(after) + 1;
                assert!(fits.contains(&version), "{version} is not in {fits:?}");
                std::fs::remove_file(dest).unwrap();
                std::fs::remove_dir_all(copy).unwrap();
            }
        });
        while !done.load(Ordering::Relaxed) {
            let step = workload.next().unwrap();
            let version = node.write(&step).unwrap().expect_committed();
            acknowledged.store(version, Ordering::Relaxed);
        }
        copier.join().unwrap();
    });
    assert_eq!(backed.check(&node), Standing::Committed);
}

/// Calls a function when dropped.
fn scopeguard(function: impl FnMut()) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(function)
}

#[test]
fn an_init_that_died_before_its_lock_file_is_told_from_a_backup() {
    // `backup.key` is the first thing that init writes, `backup.lock` the last.
    let backed = Backed::fresh();
    std::fs::remove_file(backed.network_file("backup.lock")).unwrap();
    for marker in [true, false] {
        if !marker {
            std::fs::remove_file(backed.store().join("lockstep.json")).unwrap();
        }
        let output = backed.init().run();
        if output.code != Some(0) {
            assert!(!output.stderr.contains("has a backup already"), "there is none: {output}");
            assert!(output.stderr.contains("backup.key"), "what is in the way: {output}");
            assert!(output.stderr.contains("hint: "), "{output}");
        }
    }
}

#[test]
fn an_init_that_is_killed_can_be_repeated_or_says_what_to_do() {
    let backed = Backed::without_backup();
    let mut node = Node::new(backed.config());
    for step in Workload::seeded(30).take(30) {
        let path = backed.config().database_path();
        Database::open(path, false).unwrap().apply(&step).unwrap();
    }
    let began = Instant::now();
    let scratch = Backed::without_backup();
    std::fs::copy(node.database_path(), scratch.config().database_path()).unwrap();
    scratch.init().run().expect_success();
    let whole = began.elapsed();
    let kills = ci_or_long(15, 60);
    for number in 0..kills {
        kill_after(backed.init().spawn(), whole * number / kills);
        // Whatever is there now: a second init makes the backup, or names what is in its way.
        let again = backed.init().run();
        assert!(again.code == Some(0) || again.stderr.contains("hint: "), "{again}");
        let _ = std::fs::remove_dir_all(backed.store());
        for name in ["backup.lock", "backup.key"] {
            let _ = std::fs::remove_file(backed.network_file(name));
        }
    }
    backed.init().run().expect_success();
    node.start().unwrap();
    node.write(&marked("kept")).unwrap().expect_committed();
    assert_eq!(backed.check(&node), Standing::Committed);
}
