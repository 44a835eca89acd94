//! Every bit of every object of a small store, flipped alone: a restore or `verify` notices it, or it changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use lockstep_proto::companion::FileSet;
use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::heartbeat::Heartbeat;
use lockstep_proto::hold::Hold;
use lockstep_proto::layout;
use lockstep_proto::replica::small_faults;
use lockstep_proto::restore::{self, Plan};
use lockstep_proto::slots::{self, Unlock};
use lockstep_proto::store::{FileStore, Store};
use lockstep_proto::verify::{self, GenerationReport};
use lockstep_tests::Step;
use lockstep_tests::backed::ci_or_long;
use lockstep_tests::binaries::Cli;
use lockstep_tests::oracle;
use lockstep_tests::sim::Node;

use crate::memory::Memory;
use crate::sample::{Content, Sample, content, frames, insert};
use crate::secret::lockstep_node_secret;
use crate::sweep::{locate, refused, sweep};

/// In the short form one bit of so many; none of the eight of a byte is always passed over.
const STRIDE: usize = 23;

/// What tells capitals in ASCII.
const CASE: u8 = 0x20;

/// Who notices a flip.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Noticed {
    /// By a restore with the node's secret.
    Restore,
    /// By `verify` alone.
    Verify,
    /// By neither: the restore gives the same, and what was hit is this.
    Nobody(&'static str),
}

/// A store with an object of each kind, and what it holds.
struct Small {
    sample: Sample,
    store: Memory,
    full: Content,
    files: Option<FileSet>,
    reports: Vec<GenerationReport>,
}

impl Small {
    /// Two generations; the second begins with a snapshot.
    fn of_two_generations() -> Self {
        let sample = Sample::make(true);
        let store = sample.store.clone();
        Self::of(sample, store)
    }

    /// The same, compacted twice: a restore reads the second snapshot, its parent, and the log behind them.
    fn compacted() -> Self {
        let sample = Sample::make(true);
        let mut node = Node::new(sample.config.clone());
        let directory = node.directory().to_owned();
        let compact = || {
            Cli::new(["compact", "--lightning-dir"]).arg(&directory).run().expect_success();
        };
        compact();
        node.start().unwrap();
        for row in 200..203 {
            node.write(&Step::transaction([insert(row)])).unwrap().expect_committed();
        }
        node.kill().unwrap();
        compact();
        let store = Memory::load(&sample.backed.store());
        Self::of(sample, store)
    }

    fn of(sample: Sample, mut store: Memory) -> Self {
        let keys = &sample.keys;
        let by = Claimant::this_process("test", "node", "here", 1).unwrap();
        let folder = FileStore::create_root(&sample.backed.store()).unwrap();
        Heartbeat { time: 1, interval_s: 300, by }.beat(&folder, keys, 1).unwrap();
        let name = layout::heartbeat(1);
        store = store.with(&name, folder.read(&name).unwrap());
        store = store.with(&layout::hold(sample.full.0, 3), br#"{"time":1795196000000}"#.to_vec());
        let full = content(&store, keys).unwrap();
        let files = FileSet::newest(&store, keys).unwrap();
        let reports = verify::run(&store, keys, &mut |_| {}).unwrap();
        assert_eq!(small_faults(&store, keys).unwrap(), []);
        assert!(files.is_some());
        Self { sample, store, full, files, reports }
    }

    /// Name and length of each object.
    fn objects(&self) -> Vec<(String, usize)> {
        self.store.0.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect()
    }

    fn flipped(&self, name: &str, at: usize, bit: usize) -> Memory {
        let mut bytes = self.store.0[name].to_vec();
        bytes[at] ^= 1 << bit;
        self.store.with(name, bytes)
    }

    /// Restores by the node's secret, as far as this object has a part in that: nothing else than what was written
    /// comes of it.
    fn restore(&self, changed: &Memory, name: &str) -> Result<(), Wrong> {
        let keys = &self.sample.keys;
        if kind(name) == layout::KEYS {
            let unlock = Unlock::Node(lockstep_node_secret(&[1; 32]).into());
            let (opened, _) = slots::open(changed, &unlock)?;
            return same(*opened.encode()? == *keys.encode()?, "another key ring");
        }
        if kind(name) == layout::HEARTBEATS {
            // One that does not open is none.
            let intact = Heartbeat::newest(&self.store, keys)?;
            let found = Heartbeat::newest(changed, keys)?;
            return same(found.is_none() || found == intact, "another sign of life");
        }
        same(content(changed, keys)? == self.full, "another database")?;
        same(FileSet::newest(changed, keys)? == self.files, "other files")?;
        same(Hold::refuse_removal(changed).is_err(), "the hold is gone")
    }

    /// What `backup-cli verify` does at each destination.
    fn verify(&self, changed: &Memory) -> Result<(), Wrong> {
        let keys = &self.sample.keys;
        same(verify::run(changed, keys, &mut |_| {})? == self.reports, "another report")?;
        match small_faults(changed, keys)?.into_iter().next() {
            Some(fault) => Err(Wrong::Fault(fault.what)),
            None => Ok(()),
        }
    }

    fn judge(&self, name: &str, at: usize, bit: usize) -> Result<Noticed, String> {
        let changed = self.flipped(name, at, bit);
        let place = |wrong| format!("{name}, bit {bit} of byte {at}: {wrong}");
        let restored = refusal(self.restore(&changed, name), name).map_err(place)?;
        let verified = refusal(self.verify(&changed), name).map_err(place)?;
        Ok(match (restored, verified) {
            (true, _) => Noticed::Restore,
            (false, true) => Noticed::Verify,
            (false, false) => {
                let what = self.nobody_needs(name, at, bit);
                Noticed::Nobody(what.ok_or_else(|| place("unnoticed".into()))?)
            }
        })
    }

    /// What a bit is part of that may be anything.
    fn nobody_needs(&self, name: &str, at: usize, bit: usize) -> Option<&'static str> {
        let bytes = &self.store.0[name];
        match kind(name) {
            layout::HEARTBEATS => Some("a heartbeat: one that does not open is none"),
            layout::HOLDS => Some("a hold: its name alone counts"),
            // Digits of the store's name, in capitals or not.
            layout::MARKER if bytes[at].is_ascii_alphabetic() && 1 << bit == CASE => {
                Some("the case of a digit")
            }
            layout::MARKER => {
                let field = br#""created":"#;
                let created = bytes.windows(field.len()).position(|part| part == field)?;
                (at >= created + field.len()).then_some("when the store was made")
            }
            layout::LOG => {
                let (_, end) = *frames(bytes).last()?;
                (at >= end).then_some("zeros behind the last record")
            }
            _ => None,
        }
    }

    /// Restores to a file, and compares every row.
    fn restores_to_the_same(&self, changed: &Memory) {
        let [expected, found] = [&self.store, changed].map(|store| {
            let dest = self.sample.backed.new_dest();
            let plan = Plan::newest(store, &self.sample.keys).unwrap();
            restore::run(store, &self.sample.keys, &plan, &dest, &mut |_| {}).unwrap();
            dest
        });
        oracle::assert_same(&expected, &found);
        for dest in [expected, found] {
            fs::remove_file(dest).unwrap();
        }
    }
}

/// What a flip must not lead to, or what is said about it.
enum Wrong {
    Silent(&'static str),
    Fault(String),
    Refused(Error),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<lockstep_proto::seal::KeyError> for Wrong {
    fn from(error: lockstep_proto::seal::KeyError) -> Self {
        Self::Refused(error.into())
    }
}

fn same(is_same: bool, otherwise: &'static str) -> Result<(), Wrong> {
    if is_same { Ok(()) } else { Err(Wrong::Silent(otherwise)) }
}

/// True where it is refused, with the place named.
fn refusal(result: Result<(), Wrong>, name: &str) -> Result<bool, String> {
    match result {
        Ok(()) => Ok(false),
        Err(Wrong::Silent(wrong)) => Err(wrong.into()),
        Err(Wrong::Fault(what)) if what.contains(name) => Ok(true),
        Err(Wrong::Fault(what)) => Err(format!("not named: {what}")),
        // No slot is named where none opens: all of them were tried.
        Err(Wrong::Refused(error)) if kind(name) == layout::KEYS => {
            refused(&error, "slot").map(|_| true)
        }
        Err(Wrong::Refused(error)) => refused(&error, name).map(|_| true),
    }
}

/// The folder of an object, or the marker's name.
fn kind(name: &str) -> &str {
    name.split_once('/').map_or(name, |(folder, _)| folder)
}

fn flip_every_bit(small: &Small, what: &str) {
    let objects = small.objects();
    let bits = 8 * objects.iter().map(|(_, len)| len).sum::<usize>();
    let (stride, began) = (ci_or_long(STRIDE, 1), Instant::now());
    let first = fastrand::usize(..stride);
    // One flip of each kind that nobody noticed, of each object.
    let unnoticed: Mutex<BTreeMap<_, _>> = Mutex::default();
    let tally = sweep((bits - first).div_ceil(stride), |number| {
        let bit = first + number * stride;
        let (name, at) = locate(&objects, bit / 8);
        let noticed = small.judge(name, at, bit % 8)?;
        if let Noticed::Nobody(what) = noticed {
            let mut unnoticed = unnoticed.lock().unwrap_or_else(PoisonError::into_inner);
            unnoticed.insert((name.to_owned(), what), (at, bit % 8));
        }
        Ok((kind(name), noticed))
    });
    println!(
        "{what}: {} of {bits} bits of {} objects, {:.0} s",
        tally.values().sum::<usize>(),
        objects.len(),
        began.elapsed().as_secs_f64()
    );
    for ((kind, noticed), count) in &tally {
        println!("  {kind}: {count} {noticed:?}");
    }
    for ((name, _), (at, bit)) in unnoticed.into_inner().unwrap() {
        small.restores_to_the_same(&small.flipped(&name, at, bit));
    }
}

#[test]
fn every_flipped_bit_of_a_log_is_noticed_or_changes_nothing() {
    flip_every_bit(&Small::of_two_generations(), "two generations");
}

#[test]
fn every_flipped_bit_of_a_compacted_log_is_noticed_or_changes_nothing() {
    flip_every_bit(&Small::compacted(), "compacted");
}
