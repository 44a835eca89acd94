//! `backup-reload`: a running node goes on at the destinations that `backup.lock` names now.

use std::fs;
use std::time::{Duration, Instant};

use lockstep_proto::config::read_key_file;
use lockstep_proto::log::LogEnd;
use lockstep_proto::replica::Mode;
use lockstep_proto::store::FileStore;
use lockstep_tests::Step;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::oracle;
use lockstep_tests::real::mount::{Fuse, possible_or_skip};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::sim::{Node, RpcServer, Standing};
use lockstep_tests::workload::Workload;
use serde_json::{Value, json};

use crate::two::says;

/// A node that runs, with its backup at one place, and the socket by which one sees that it runs.
struct Scene {
    backed: Backed,
    node: Node,
    workload: Workload,
    _socket: RpcServer,
}

impl Scene {
    fn at(places: &[&str]) -> Self {
        let backed = Backed::without_backup();
        let init =
            places.iter().fold(backed.init(), |init, name| init.arg(backed.dir().file_url(name)));
        init.run().expect_success();
        backed.set_in_lock("stall_timeout_s", json!(3));
        let mut workload = Workload::seeded(90);
        let mut node = backed.running(&mut workload);
        Backed::write(&mut node, &mut workload, 10);
        let _socket = RpcServer::bind(&backed.network_dir(), []).unwrap();
        Self { backed, node, workload, _socket }
    }

    fn write(&mut self, steps: usize) {
        Backed::write(&mut self.node, &mut self.workload, steps);
    }

    fn cli(&self, verb: &str, args: &[&str]) -> Output {
        let words = verb.split(' ').chain(args.iter().copied());
        Cli::new(words).arg("--lightning-dir").arg(self.backed.network_dir()).run()
    }

    fn add(&self, name: &str, more: &[&str]) {
        let url = self.backed.dir().file_url(name);
        let args = [&[url.as_str(), "--name", name], more].concat();
        says(&self.cli("destination add", &args), 0, &["added '"]);
    }

    /// What the plugin answers; an error is its words.
    fn reload(&mut self) -> Result<Value, String> {
        let reply = self.node.call("backup-reload", &json!({})).unwrap();
        match reply.error_message() {
            Some(message) => Err(message),
            None => Ok(reply.result().unwrap()),
        }
    }

    fn names(&mut self) -> Vec<String> {
        let name = |of: &Value| of["name"].as_str().unwrap().to_owned();
        Backed::destinations(&mut self.node).iter().map(name).collect()
    }

    /// Name and mode of each place, as the log itself has it at one of them.
    fn named(&self, place: &str) -> Vec<(String, Mode)> {
        let store = FileStore::open(&self.backed.dir().path(place)).unwrap();
        let keys = read_key_file(&self.backed.network_file("backup.key")).unwrap();
        let named = LogEnd::read(&store, &keys).unwrap().destinations.named;
        named.into_iter().map(|of| (of.name, of.mode)).collect()
    }

    /// Writes until the log at `store` names a place as one that is waited for: a call that comes while it is a record
    /// behind leaves that to the next.
    fn write_until_it_counts(&mut self, name: &str) {
        let counts = Some((name.to_owned(), Mode::Sync));
        wait_for("it counts", || {
            self.write(1);
            (self.named("store").last() == counts.as_ref()).then_some(())
        });
    }

    /// What a place alone gives is what the node has.
    fn expect_whole_at(&self, place: &str) {
        let dest = self.backed.new_dest();
        let url = self.backed.dir().file_url(place);
        self.backed.restore_of(&url, &dest).run().expect_success();
        let standing = self.node.check_restored(&dest).unwrap();
        assert_eq!(standing, Standing::Committed, "{place}");
    }
}

fn marked(mark: &str) -> Step {
    Step::transaction([format!("INSERT OR REPLACE INTO vars (name, intval) VALUES ('{mark}', 1)")])
}

#[test]
fn a_second_place_is_written_to_and_then_waited_for() {
    let mut scene = Scene::at(&[]);
    assert_eq!(scene.reload().unwrap()["changed"], false);
    scene.add("nas", &[]);
    let reloaded = scene.reload().unwrap();
    assert_eq!(reloaded["changed"], true);
    assert_eq!(reloaded["destinations"][1]["joining"], true, "{reloaded}");
    assert_eq!(scene.reload().unwrap(), reloaded, "asked twice is the same");
    // It is brought up once something is written; then it counts, and the log says so.
    scene.write(1);
    Backed::wait_until_all_have_everything(&mut scene.node);
    scene.write_until_it_counts("nas");
    let sync = |name: &str| (name.to_owned(), Mode::Sync);
    assert_eq!(scene.named("nas"), [sync("primary"), sync("nas")]);
    assert_eq!(scene.named("store"), scene.named("nas"));
    scene.expect_whole_at("nas");
    scene.cli("verify", &[]).expect_success();
    assert_eq!(scene.reload().unwrap()["changed"], false);

    scene.node.kill().unwrap();
    // And the next start finds what this one left.
    scene.node.start().unwrap();
    scene.write(5);
    scene.node.stop().unwrap();
    for place in ["store", "nas"] {
        let dest = scene.backed.new_dest();
        let url = scene.backed.dir().file_url(place);
        scene.backed.restore_of(&url, &dest).run().expect_success();
        oracle::assert_same(&scene.node.database_path(), &dest);
    }
}

#[test]
fn a_place_is_not_waited_for_before_it_has_everything() {
    let test = "a_place_is_not_waited_for_before_it_has_everything";
    if !possible_or_skip(test) {
        return;
    }
    for before in [&[][..], &["second"]] {
        let mut scene = Scene::at(before);
        let (behind, mounted) =
            (scene.backed.dir().path("behind"), scene.backed.dir().path("slow"));
        let Some(fuse) = Fuse::mount(&behind, &mounted, test) else { return };
        scene.add("slow", &[]);
        fuse.hang();
        let began = Instant::now();
        scene.reload().unwrap();
        scene.write(20);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let of_slow = ("slow".to_owned(), Mode::Async);
        assert_eq!(scene.named("store").last(), Some(&of_slow), "it does not count yet");
        fuse.go_on();
        Backed::wait_until_all_have_everything(&mut scene.node);
        scene.write_until_it_counts("slow");
        for place in ["store", "slow"].iter().chain(before) {
            scene.expect_whole_at(place);
        }
        // From now on nothing is acknowledged without it.
        fuse.hang();
        let message = std::thread::scope(|scope| {
            // What was under way when it stopped keeps the plugin from ending before it goes on.
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(8));
                fuse.go_on();
            });
            scene.node.write(&marked("without it")).unwrap().expect_refused()
        });
        assert!(message.contains("of its destinations must have it"), "{message}");
    }
}

#[test]
fn a_place_that_is_removed_is_not_written_to_any_more() {
    let mut scene = Scene::at(&["second", "third"]);
    scene.cli("destination remove", &["second"]).expect_success();
    scene.reload().unwrap();
    scene.write(3);
    assert_eq!(scene.names(), ["primary", "third"]);
    assert_eq!(scene.named("store").len(), 2);
    fs::remove_dir_all(scene.backed.dir().path("second")).unwrap();
    scene.write(20);
    scene.cli("verify", &[]).expect_success();
    // Down to one: the log names no others.
    scene.cli("destination remove", &["third"]).expect_success();
    scene.reload().unwrap();
    scene.write(3);
    fs::remove_dir_all(scene.backed.dir().path("third")).unwrap();
    scene.write(20);
    assert!(scene.named("store").is_empty());
    scene.expect_whole_at("store");
    // And up again, at once with another one that nobody waits for.
    scene.add("second", &["--async"]);
    scene.reload().unwrap();
    scene.write(5);
    Backed::wait_until_all_have_everything(&mut scene.node);
    scene.expect_whole_at("second");
    scene.node.stop().unwrap();
    scene.node.start().unwrap();
    scene.write(5);
    scene.cli("verify", &[]).expect_success();
    scene.expect_whole_at("store");
}

#[test]
fn what_is_not_sound_is_refused_and_the_backup_goes_on_as_before() {
    let mut scene = Scene::at(&["second"]);
    let path = scene.backed.network_file("backup.lock");
    let before = fs::read(&path).unwrap();
    // One that counts goes while another one comes.
    scene.add("third", &[]);
    scene.cli("destination remove", &["second"]).expect_success();
    let error = scene.reload().unwrap_err();
    assert!(error.contains("both come and go"), "{error}");
    scene.backed.set_in_lock("directory", json!("00"));
    let error = scene.reload().unwrap_err();
    assert!(error.contains("another backup's"), "{error}");
    fs::write(&path, "{}").unwrap();
    assert!(scene.reload().is_err());
    scene.write(5);
    assert_eq!(Backed::destinations(&mut scene.node).len(), 2);
    fs::write(&path, before).unwrap();
    assert_eq!(scene.reload().unwrap()["changed"], false);
    scene.write(5);
    for place in ["store", "second"] {
        scene.expect_whole_at(place);
    }
}
