//! A writer that is stopped at any moment, in the midst of an append too, and goes on when another one has the log:
//! what it says is acknowledged is in the log, and nothing that it begins afterwards is acknowledged.

use std::env;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use lockstep_proto::config::{read_key_file, write_key_file};
use lockstep_proto::error::Error;
use lockstep_proto::writer::Writer;
use lockstep_tests::backed::ci_or_long;
use lockstep_tests::real::process::signal;
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::servers::{moto, rgw};
use lockstep_tests::testdir::TestDir;

use crate::races::{Log, READ_EVERY, Site, Told, append, claimant, next_version, races_on};

/// Where the sleeper's log is, …
const URL_VARIABLE: &str = "LOCKSTEP_TEST_URL";
/// … and the file with its keys.
const KEYS_VARIABLE: &str = "LOCKSTEP_TEST_KEYS";
/// What it says begins so; the rest is the test runner's.
const MARK: &str = "@";

/// The other process: appends until it must not, and says so, a line each: when a call begins, and what was
/// acknowledged.
#[test]
#[ignore = "another process of the tests below"]
fn the_sleeper() {
    let (Ok(url), Ok(keys)) = (env::var(URL_VARIABLE), env::var(KEYS_VARIABLE)) else { return };
    let store = Site { url, env: env::vars().collect() }.open();
    let keys = read_key_file(&PathBuf::from(keys)).unwrap();
    let mut writer = Writer::open(store, keys, claimant(), 1).unwrap();
    println!("{MARK} epoch {}", writer.epoch());
    for version in next_version(&writer).. {
        println!("{MARK} begin {}", now_us());
        match append(&mut writer, version) {
            Ok(seq) => println!("{MARK} acknowledged {seq} {version}"),
            Err(Error::Fenced { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    println!("{MARK} fenced");
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// That process, as seen from here.
struct Sleeper {
    child: Child,
    lines: Box<dyn Iterator<Item = String>>,
    epoch: u32,
    said: Vec<String>,
}

impl Sleeper {
    fn start(site: &Site, keys: &std::path::Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "sleepers::the_sleeper", "--ignored", "--nocapture"])
            .envs(site.env.iter().cloned())
            .env(URL_VARIABLE, &site.url)
            .env(KEYS_VARIABLE, keys)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = stdout.lines().map_while(Result::ok);
        let said = |line: String| Some(line.strip_prefix(MARK)?.trim().to_owned());
        let mut lines = Box::new(lines.filter_map(said));
        let first = lines.next().expect("it opens the log");
        let epoch = first.strip_prefix("epoch ").unwrap().parse().unwrap();
        Self { child, lines, epoch, said: Vec::new() }
    }

    /// Waits until so many calls were acknowledged.
    fn appends(&mut self, mut count: usize) {
        while count > 0 {
            let line = self.lines.next().expect("it goes on");
            count -= usize::from(line.starts_with("acknowledged"));
            self.said.push(line);
        }
    }

    fn sleep(&self) {
        let id = self.child.id();
        signal(&[id], "STOP");
        wait_for("a process that sleeps", || {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T').then_some(())
        });
    }

    /// Lets it go on to its end; gives what was acknowledged, of that what was begun from here on.
    fn wake_up(mut self) -> Told {
        let woken = now_us();
        signal(&[self.child.id()], "CONT");
        self.said.extend(self.lines);
        assert!(self.child.wait().unwrap().success());
        assert_eq!(self.said.last().map(String::as_str), Some("fenced"));
        let mut told = Told::default();
        let mut late = false;
        for line in &self.said {
            let mut words = line.split(' ');
            let what = words.next();
            let mut number = || words.next().unwrap().parse::<u64>().unwrap();
            match what {
                Some("begin") => late = number() >= woken,
                Some("acknowledged") => {
                    told.acknowledged.push((number(), u32::try_from(number()).unwrap()));
                    told.too_late += usize::from(late);
                }
                _ => {}
            }
        }
        told
    }
}

/// Rounds in which a writer is stopped, another one takes over, and the first goes on.
fn race_with_a_sleeper(site: &Site, seed: u64, rounds: usize) {
    let dir = TestDir::new();
    let keys = dir.path("keys");
    let (mut log, writer) = Log::new(site.open_all());
    drop(writer);
    write_key_file(&keys, &log.keys).unwrap();
    let mut random = Rng::with_seed(seed);
    for round in 0..rounds {
        let mut sleeper = Sleeper::start(site, &keys);
        sleeper.appends(random.usize(1..4));
        thread::sleep(Duration::from_micros(random.u64(..8_000)));
        sleeper.sleep();
        let mut newer = log.open(round % 2);
        let asleep = round % 3 > 0;
        let mut first = Vec::new();
        let mut go_on = |newer: &mut Writer| {
            let version = next_version(newer);
            first.push((append(newer, version).unwrap(), version));
        };
        if asleep {
            go_on(&mut newer);
        }
        let epoch = sleeper.epoch;
        let told = sleeper.wake_up();
        go_on(&mut newer);
        log.note(epoch, &told);
        log.note(newer.epoch(), &Told { acknowledged: first, too_late: 0 });
        if round % READ_EVERY == 0 {
            log.check();
        }
    }
    log.check();
}

#[test]
fn a_writer_sleeps_while_another_takes_over_in_a_folder() {
    let dir = TestDir::new();
    race_with_a_sleeper(&Site::folder(&dir), 1, ci_or_long(40, 1000));
}

#[test]
fn a_writer_sleeps_while_another_takes_over_on_moto() {
    let Some(server) = moto::shared() else { return };
    races_on(server, ci_or_long(40, 1000), race_with_a_sleeper);
}

#[test]
fn a_writer_sleeps_while_another_takes_over_on_ceph() {
    let Some(server) = rgw::shared() else { return };
    races_on(server, ci_or_long(40, 1000), race_with_a_sleeper);
}
