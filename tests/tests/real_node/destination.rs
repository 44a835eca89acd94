//! The destination fills up, hangs, dies or is unmounted under a running node: the node stalls and says
//! so, then goes on or stops without committing, as `stall_timeout_s` says; nothing acknowledged is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lockstep_tests::oracle;
use lockstep_tests::real::backup::{Found, WALLET, compare_with_dead};
use lockstep_tests::real::lightningd::Caller;
use lockstep_tests::real::mount::{Bind, Fuse, Tmpfs, possible_or_skip};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions};
use lockstep_tests::testdir::TestDir;
use serde_json::{Value, json};

/// Long enough that a write which took it was stalled.
const STALL: Duration = Duration::from_secs(2);

/// A node whose destination is `store` in a mounted folder.
struct Scene {
    // Before the directory that its files are in.
    node: Option<Node>,
    options: NodeOptions,
    backup: Backup,
    _bitcoind: Bitcoind,
}

impl Scene {
    fn set(daemons: &Daemons, dir: &TestDir, mounted: &Path, stall_timeout_s: u64) -> Self {
        let bitcoind = Bitcoind::start(daemons, &dir.path("bitcoin"));
        let options = NodeOptions::new(daemons, &bitcoind, dir.path("node")).production();
        let backup = Backup::init(&options, format!("file://{}", mounted.join("store").display()));
        let lock = options.network_dir().join("backup.lock");
        let mut policy: Value = serde_json::from_slice(&fs::read(&lock).unwrap()).unwrap();
        policy["stall_timeout_s"] = json!(stall_timeout_s);
        fs::write(&lock, policy.to_string()).unwrap();
        let node = options.clone().start();
        for _ in 0..5 {
            write(&node.caller()).unwrap();
        }
        Self { node: Some(node), options, backup, _bitcoind: bitcoind }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn wallet(&self) -> PathBuf {
        self.options.network_dir().join(WALLET)
    }

    /// Stops the node in order; what the destination holds is what it had.
    #[track_caller]
    fn expect_complete_after_stop(&mut self, dir: &TestDir) {
        let node = self.node.take().unwrap();
        write(&node.caller()).unwrap();
        node.stop();
        let restored = dir.path("restored.sqlite3");
        self.backup.look(&self.options, &restored);
        oracle::assert_same(&self.wallet(), &restored);
        self.backup.verify(&self.options);
    }

    /// lightningd ends by itself and says why; the destination holds all that it had, and the node goes on
    /// when the destination is back.
    #[track_caller]
    fn expect_stopped_uncommitted(&mut self, dir: &TestDir, said: &str, come_back: impl FnOnce()) {
        let mut node = self.node.take().unwrap();
        let status = node.wait_for_end(Duration::from_secs(60));
        assert!(!status.success());
        let log = node.log();
        assert!(log.contains(said), "not in the log: {said}\n{log}");
        drop(node);
        come_back();
        let restored = dir.path("restored-stopped.sqlite3");
        self.backup.look(&self.options, &restored);
        let found = compare_with_dead(&self.wallet(), &restored, &dir.path("scratch"), None);
        // A record may have been written whole before its destination failed to say so.
        assert!(matches!(found, Found::Same | Found::InFlightUnknown), "{found:?}");
        self.node = Some(self.options.clone().start());
        self.expect_complete_after_stop(dir);
    }
}

/// A transaction of some size.
fn write(node: &Caller) -> Result<Value, String> {
    let bytes: String = (0..20_000).map(|_| format!("{:02x}", fastrand::u8(..))).collect();
    let key = json!(["lockstep", fastrand::u64(..).to_string()]);
    node.call("datastore", &[("key", key), ("hex", json!(bytes))])
}

/// Keeps writing until one write has taken so long that it was stalled, and `Err` where the node ended.
fn write_until_stalled(node: &Node) -> JoinHandle<Result<Duration, String>> {
    let caller = node.caller();
    thread::spawn(move || {
        loop {
            let began = Instant::now();
            write(&caller)?;
            if began.elapsed() >= STALL {
                return Ok(began.elapsed());
            }
        }
    })
}

fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("ballast");
    let mut ballast = fs::File::create(&path).unwrap();
    let block = [0x5a; 64 * 1024];
    while std::io::Write::write_all(&mut ballast, &block).is_ok() {}
    path
}

#[test]
fn a_destination_that_fills_up_stalls_the_node_until_there_is_room() {
    const TEST: &str = "a destination that fills up";
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let mounted = dir.path("mounted");
    if !possible_or_skip(TEST) {
        return;
    }
    let Some(_tmpfs) = Tmpfs::mount(&mounted, "24m", TEST) else { return };
    let mut scene = Scene::set(&daemons, &dir, &mounted, 60);
    let ballast = fill(&mounted);
    let writer = write_until_stalled(scene.node());
    scene.node().wait_for_log("trying again for 60 s");
    thread::sleep(STALL);
    fs::remove_file(ballast).unwrap();
    writer.join().unwrap().expect("the write went on");
    scene.node().wait_for_log("answers again");
    scene.expect_complete_after_stop(&dir);
}

#[test]
fn a_destination_that_stays_full_stops_the_node_uncommitted() {
    const TEST: &str = "a destination that stays full";
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let mounted = dir.path("mounted");
    if !possible_or_skip(TEST) {
        return;
    }
    let Some(_tmpfs) = Tmpfs::mount(&mounted, "24m", TEST) else { return };
    let mut scene = Scene::set(&daemons, &dir, &mounted, 4);
    let ballast = fill(&mounted);
    let writer = write_until_stalled(scene.node());
    let come_back = || fs::remove_file(ballast).unwrap();
    scene.expect_stopped_uncommitted(&dir, "No space left", come_back);
    assert!(writer.join().unwrap().is_err());
}

#[test]
fn a_mount_that_hangs_stalls_the_node_until_it_answers() {
    const TEST: &str = "a mount that hangs";
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let mounted = dir.path("mounted");
    if !possible_or_skip(TEST) {
        return;
    }
    let Some(fuse) = Fuse::mount(&dir.path("remote"), &mounted, TEST) else { return };
    let mut scene = Scene::set(&daemons, &dir, &mounted, 60);
    fuse.hang();
    let writer = write_until_stalled(scene.node());
    scene.node().wait_for_log("waiting for '");
    fuse.go_on();
    writer.join().unwrap().expect("the write went on");
    scene.expect_complete_after_stop(&dir);
}

#[test]
fn a_mount_that_hangs_for_ever_stops_the_node_uncommitted() {
    const TEST: &str = "a mount that hangs for ever";
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let mounted = dir.path("mounted");
    if !possible_or_skip(TEST) {
        return;
    }
    let Some(fuse) = Fuse::mount(&dir.path("remote"), &mounted, TEST) else { return };
    let mut scene = Scene::set(&daemons, &dir, &mounted, 4);
    fuse.hang();
    let writer = write_until_stalled(scene.node());
    scene.expect_stopped_uncommitted(&dir, "has not answered for", || fuse.go_on());
    assert!(writer.join().unwrap().is_err());
}

#[test]
fn a_mount_that_dies_stalls_the_node_until_it_is_mounted_again() {
    const TEST: &str = "a mount that dies";
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let mounted = dir.path("mounted");
    if !possible_or_skip(TEST) {
        return;
    }
    let Some(mut fuse) = Fuse::mount(&dir.path("remote"), &mounted, TEST) else { return };
    let mut scene = Scene::set(&daemons, &dir, &mounted, 60);
    fuse.die();
    let writer = write_until_stalled(scene.node());
    scene.node().wait_for_log("trying again for 60 s");
    thread::sleep(STALL);
    // First what is dead goes away, and the local folder under it shows: nothing may be written there.
    drop(fuse);
    thread::sleep(STALL);
    assert_eq!(fs::read_dir(&mounted).unwrap().count(), 0, "written under the mount");
    let _fuse = Fuse::mount(&dir.path("remote"), &mounted, TEST).unwrap();
    writer.join().unwrap().expect("the write went on");
    scene.node().wait_for_log("answers again");
    scene.expect_complete_after_stop(&dir);
}

#[test]
fn a_mount_that_was_taken_away_is_not_written_under_and_no_node_starts_without_it() {
    const TEST: &str = "a mount that is taken away";
    let Some(daemons) = Daemons::or_skip() else { return };
    let dir = TestDir::new();
    let mounted = dir.path("mounted");
    if !possible_or_skip(TEST) {
        return;
    }
    let Some(bind) = Bind::mount(&dir.path("remote"), &mounted, TEST) else { return };
    let mut scene = Scene::set(&daemons, &dir, &mounted, 4);
    bind.unmount();
    // What is open stays open: a lazy unmount does not take it away, and the node may go on.
    let writer = scene.node().caller();
    let _ = write(&writer);
    let node = scene.node.take().unwrap();
    node.kill();
    assert_eq!(fs::read_dir(&mounted).unwrap().count(), 0, "written under the mount");

    let status = scene.options.clone().start_refused();
    assert!(!status.success());
    assert_eq!(fs::read_dir(&mounted).unwrap().count(), 0, "a new store under the mount");
    assert!(bind.again());
    wait_for("the store", || mounted.join("store").exists().then_some(()));
    let restored = dir.path("restored-killed.sqlite3");
    scene.backup.look(&scene.options, &restored);
    let found = compare_with_dead(&scene.wallet(), &restored, &dir.path("scratch"), None);
    assert!(matches!(found, Found::Same | Found::InFlightUnknown), "{found:?}");
    scene.node = Some(scene.options.clone().start());
    scene.expect_complete_after_stop(&dir);
}
