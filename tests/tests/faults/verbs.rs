//! Each verb that writes, while system calls of it fail: it ends well, or says why not; nothing that was acknowledged is
//! lost either way, and the verb, run again, goes on from whatever it left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fastrand::Rng;
use lockstep_tests::backed::ci_or_long;
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::oracle;
use lockstep_tests::strace::{Fault, Injection, possible_or_skip};

use crate::points::{Point, Points};
use crate::scene::{Scene, places, seeded};

const FAULTS: [Fault; 3] = [Fault::Error("EIO"), Fault::Error("ENOSPC"), Fault::Death];

/// A recipient whose identity nobody here has.
const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

/// Folders of the world, which each run finds as they were.
const FOLDERS: [&str; 4] = ["lightning", "store", "standby", "new"];

/// A stopped node with a backup that was compacted twice, a standby of it, and a copy of it that has no backup.
struct World {
    scene: Scene,
    /// The node's database.
    expected: PathBuf,
}

impl World {
    fn new() -> Self {
        let mut scene = Scene::new();
        for _ in 0..2 {
            scene.recover();
            scene.backed.cli("compact").expect_success();
        }
        scene.recover();
        let (backed, dir) = (&scene.backed, scene.backed.dir());
        let new = dir.make_dir("new/regtest");
        for name in ["lightningd.sqlite3", "hsm_secret"] {
            fs::copy(backed.network_file(name), new.join(name)).unwrap();
        }
        let follow = Cli::new(["follow", "--once", &backed.url()]).arg(dir.path("standby/regtest"));
        follow.arg("--key-file").arg(backed.network_file("backup.key")).run().expect_success();
        let expected = dir.path("expected.sqlite3");
        fs::copy(backed.network_file("lightningd.sqlite3"), &expected).unwrap();
        let saved = dir.make_dir("saved");
        let world = Self { scene, expected };
        for folder in FOLDERS {
            copy(&world.path(folder), &saved);
        }
        world
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.scene.backed.dir().path(inside)
    }

    fn url(&self, inside: &str) -> String {
        self.scene.backed.dir().file_url(inside)
    }

    /// Everything as it was.
    fn put_back(&self) {
        for folder in FOLDERS.into_iter().chain(["nas", "fresh", "fresh-2"]) {
            let path = self.path(folder);
            if path.exists() {
                fs::remove_dir_all(path).unwrap();
            }
        }
        for folder in FOLDERS {
            copy(&self.path("saved").join(folder), &self.path(""));
        }
    }

    /// What this place holds, opened with this, is the node's database.
    #[track_caller]
    fn expect_restored(&self, place: &str, option: &str, file: &Path) {
        let dest = self.scene.backed.new_dest();
        let restore = Cli::new(["restore", "--no-claim", &self.url(place)]).arg(&dest);
        restore.arg(option).arg(file).run().expect_success();
        oracle::assert_same(&self.expected, &dest);
        fs::remove_file(dest).unwrap();
    }

    #[track_caller]
    fn expect_whole(&self) {
        let key = self.scene.backed.network_file("backup.key");
        self.expect_restored("store", "--key-file", &key);
        self.scene.backed.cli("verify").expect_success();
    }
}

/// Copies a folder with its times.
fn copy(folder: &Path, into: &Path) {
    let copied = Command::new("cp").arg("-a").arg(folder).arg(into).status().unwrap();
    assert!(copied.success());
}

/// What is run, and what is asked of it.
struct Verb {
    name: &'static str,
    arguments: fn(&World) -> Vec<String>,
    /// Holds once it ended well.
    done: fn(&World),
    /// What it says when it is run again and all was done before.
    done_already: &'static str,
}

fn of_the_node(world: &World, verb: &[&str]) -> Vec<String> {
    let directory = world.path("lightning/regtest").display().to_string();
    verb.iter().map(ToString::to_string).chain(["--lightning-dir".into(), directory]).collect()
}

fn init(world: &World, folder: &str) -> Vec<String> {
    let directory = world.path("new/regtest").display().to_string();
    vec!["init".into(), "--lightning-dir".into(), directory, world.url(folder)]
}

const INIT: Verb = Verb {
    name: "init",
    arguments: |world| init(world, "fresh"),
    done: |world| {
        let secret = world.path("new/regtest/hsm_secret");
        world.expect_restored("fresh", "--hsm-secret", &secret);
    },
    done_already: "this node has a backup already",
};

const COMPACT: Verb = Verb {
    name: "compact",
    arguments: |world| of_the_node(world, &["compact"]),
    done: |_| {},
    done_already: "",
};

const PRUNE: Verb = Verb {
    name: "prune",
    arguments: |world| of_the_node(world, &["prune", "--keep-last", "1"]),
    done: |_| {},
    done_already: "",
};

const KEY_ADD: Verb = Verb {
    name: "key add",
    arguments: |world| of_the_node(world, &["key", "add", "--add-recipient", RECIPIENT]),
    done: |world| {
        let list = world.path("store/keys/recipient-1.age");
        assert!(list.exists(), "the slot is not there");
    },
    done_already: "",
};

const DESTINATION_ADD: Verb = Verb {
    name: "destination add",
    arguments: |world| {
        let url = world.url("nas");
        of_the_node(world, &["destination", "add", &url])
    },
    done: |world| {
        let key = world.scene.backed.network_file("backup.key");
        world.expect_restored("nas", "--key-file", &key);
    },
    done_already: "is the destination 'second' already",
};

const PROMOTE: Verb = Verb {
    name: "promote",
    arguments: |world| {
        let directory = world.path("standby/regtest").display().to_string();
        vec!["promote".into(), "--take-over".into(), world.url("store"), directory]
    },
    done: |world| {
        let database = world.path("standby/regtest/lightningd.sqlite3");
        oracle::assert_same(&world.expected, &database);
    },
    done_already: "already exists",
};

impl Verb {
    fn run(&self, world: &World) -> Output {
        Cli::new((self.arguments)(world)).run()
    }

    /// One run to which this happens. False where it came to its end before.
    fn fails(
        &self,
        world: &World,
        injection: &Injection,
        tally: &mut BTreeMap<String, u32>,
    ) -> bool {
        world.put_back();
        let trace = &world.scene.trace;
        let output = injection.cli(trace).args((self.arguments)(world)).run();
        let context = format!("{} with {injection}: {output}", self.name);
        assert!(!output.stderr.contains("panicked"), "{context}");
        if !injection.happened(trace) {
            return false;
        }
        let outcome = match output.code {
            Some(0) => {
                (self.done)(world);
                "went on"
            }
            None => "died",
            // By the loader, before the program began.
            Some(127) => "not begun",
            Some(_) => {
                assert!(output.stderr.contains("error: "), "{context}");
                assert!(output.stderr.contains("hint: "), "{context}");
                "refused"
            }
        };
        *tally.entry(outcome.into()).or_default() += 1;
        world.expect_whole();
        if output.code != Some(0) {
            self.goes_on(world, &context);
            world.expect_whole();
        }
        true
    }

    /// Run again without a fault, it does what it should have done.
    fn goes_on(&self, world: &World, context: &str) {
        let again = self.run(world);
        match again.code {
            Some(0) => (self.done)(world),
            Some(1)
                if !self.done_already.is_empty() && again.stderr.contains(self.done_already) =>
            {
                (self.done)(world);
            }
            Some(1) if self.name == "init" => init_goes_on_elsewhere(world, &again),
            _ => panic!("{context}\nagain: {again}"),
        }
    }
}

/// What an interrupted `init` left is in the way of the next one, which says what to remove.
fn init_goes_on_elsewhere(world: &World, again: &Output) {
    assert!(again.stderr.contains("hint: "), "{again}");
    let key = world.path("new/regtest/backup.key");
    if key.exists() {
        assert!(again.stderr.contains("an 'init' was interrupted"), "{again}");
        fs::remove_file(key).unwrap();
    } else {
        assert!(again.stderr.contains("empty"), "{again}");
    }
    Cli::new(init(world, "fresh-2")).run().expect_success();
    world.expect_restored("fresh-2", "--hsm-secret", &world.path("new/regtest/hsm_secret"));
}

/// In the short form the first call of each kind, and one of the next.
fn places_of_a_verb(rng: &mut Rng) -> Vec<u32> {
    ci_or_long(vec![1, rng.u32(2..=12)], places(rng))
}

/// Each call of a verb in turn, at these places of a run.
fn sweep(verb: &Verb) {
    if !possible_or_skip("verbs of which a call fails") {
        return;
    }
    let (mut rng, world) = (seeded(), World::new());
    let mut tally = BTreeMap::new();
    let mut points = Points::new(&mut rng, &FAULTS, places_of_a_verb);
    while let Some(point) = points.next() {
        let Point { call, at, fault, .. } = point;
        let injection = Injection { call, fault, at, from_then_on: false };
        if !verb.fails(&world, &injection, &mut tally) {
            points.not_reached(point);
        }
    }
    println!("{}: {tally:?}", verb.name);
    assert!(tally.contains_key("refused"), "{}: {tally:?}", verb.name);
}

#[test]
fn an_init_of_which_any_call_fails_is_whole_or_in_nobodys_way() {
    sweep(&INIT);
}

#[test]
fn a_compaction_of_which_any_call_fails_loses_nothing() {
    sweep(&COMPACT);
}

#[test]
fn a_pruning_of_which_any_call_fails_loses_nothing() {
    sweep(&PRUNE);
}

#[test]
fn a_key_add_of_which_any_call_fails_loses_nothing() {
    sweep(&KEY_ADD);
}

#[test]
fn a_destination_add_of_which_any_call_fails_goes_on_when_it_is_run_again() {
    sweep(&DESTINATION_ADD);
}

#[test]
fn a_promotion_of_which_any_call_fails_goes_on_when_it_is_run_again() {
    sweep(&PROMOTE);
}
