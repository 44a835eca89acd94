//! A short history with crashes and rewinds, in which every single operation on the store fails once: before
//! it has any effect, after it, or half done; for good (the process dies) or for once (it is tried again).
//! After each, everything that was acknowledged is in the log, and nothing that the node did not commit.

mod sim;

use std::sync::Arc;

use lockstep_proto::fence::Claimant;
use lockstep_proto::log::LogReader;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::restore::Plan;
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};

use sim::{Fault, SimStore};

/// A call that failed so often is never acknowledged: each fault is one.
const FAILURES_MAX: u32 = 20;

/// What the node does.
#[derive(Clone, Copy)]
enum Action {
    /// A transaction that it commits when it is acknowledged.
    Commit,
    /// A transaction that it dies of although it was acknowledged.
    DieUncommitted,
    /// Settings, outside of any transaction.
    Settings,
    /// It stops in order and starts again.
    Restart,
}

struct Machine {
    store: SimStore,
    keys: KeyRing,
    writer: Option<Writer>,
    version: u32,
    attempt: u32,
    committed: Vec<String>,
    time: u64,
}

impl Machine {
    fn new(fault: Option<(usize, Fault)>, for_good: bool) -> Self {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let store = SimStore::default();
        let claimant = Claimant::this_process("test", "init", "here", 1).unwrap();
        let mut writer = Writer::create(Arc::new(store.clone()), keys.clone(), claimant).unwrap();
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).unwrap();
        writer.close(1);
        {
            let mut disk = store.0.lock().unwrap();
            (disk.operations, disk.fail_at, disk.for_good) = (0, fault, for_good);
        }
        Self { store, keys, writer: None, version: 0, attempt: 0, committed: Vec::new(), time: 2 }
    }

    /// Opens the log as the plugin does, and starts the machine again where it has died of it.
    fn writer(&mut self) -> &mut Writer {
        while self.writer.is_none() {
            let claimant = Claimant::this_process("test", "node", "here", self.time).unwrap();
            let opened =
                Writer::open(Arc::new(self.store.clone()), self.keys.clone(), claimant, self.time);
            match opened {
                Ok(mut writer) => {
                    writer.set_segment_bytes(700);
                    self.writer = Some(writer);
                }
                Err(_) => self.store.0.lock().unwrap().dead = false,
            }
        }
        self.writer.as_mut().unwrap()
    }

    /// One call until it is acknowledged, by this process or by the one after its death.
    fn call(&mut self, settings: bool, commits: bool) {
        self.attempt += 1;
        let version = DataVersion(self.version + u32::from(!settings));
        let sql = if settings {
            format!("PRAGMA foreign_keys = {}", self.attempt)
        } else {
            format!("INSERT INTO t VALUES ({}, 'a label')", self.attempt)
        };
        let mut failures = 0;
        loop {
            self.time += 1;
            let time = self.time;
            let call = Call {
                data_version: version,
                transaction: !settings,
                writes: std::slice::from_ref(&sql),
            };
            match self.writer().append(&call, time) {
                Ok(Outcome::Acknowledged { .. }) => break,
                Ok(Outcome::Gap) => panic!("a gap at {version}"),
                Err(_) if self.store.0.lock().unwrap().dead => {
                    // The process died in the hook: the node did not commit, and starts again.
                    self.store.0.lock().unwrap().dead = false;
                    self.writer = None;
                }
                // Tried again, as the plugin does.
                Err(error) => {
                    failures += 1;
                    assert!(failures < FAILURES_MAX, "it never goes on: {error}");
                }
            }
        }
        if commits {
            self.version = version.0;
            self.committed.push(sql);
        } else {
            self.writer = None;
        }
    }

    fn run(&mut self, script: &[Action]) {
        for action in script {
            match action {
                Action::Commit => self.call(false, true),
                Action::DieUncommitted => self.call(false, false),
                Action::Settings => self.call(true, true),
                Action::Restart => {
                    let time = self.time;
                    if let Some(mut writer) = self.writer.take() {
                        writer.close(time);
                    }
                    self.store.0.lock().unwrap().dead = false;
                }
            }
        }
    }

    /// The batches that a restore would replay.
    fn logged(&self) -> Vec<String> {
        let plan = Plan::newest(&self.store, &self.keys).unwrap();
        let mut logged = Vec::new();
        let mut committed = Committed::new(|batch| {
            logged.extend(batch.statements.iter().map(|statement| statement.text().unwrap()));
            Ok(())
        });
        LogReader::new(&self.store, &self.keys).read(&plan.segments, &mut committed).unwrap();
        committed.finish().unwrap();
        // Settings that were durable when their process died are sent again by the next: each session
        // begins with its own, so that the first ones are without effect.
        logged.dedup_by(|later, earlier| later.starts_with("PRAGMA") && later == earlier);
        logged
    }
}

const SCRIPT: [Action; 19] = {
    use Action::{Commit, DieUncommitted, Restart, Settings};
    [
        Commit,
        Commit,
        Settings,
        Commit,
        Settings,
        Restart,
        Commit,
        DieUncommitted,
        Commit,
        DieUncommitted,
        DieUncommitted,
        Commit,
        Commit,
        Restart,
        Settings,
        Commit,
        DieUncommitted,
        Settings,
        Commit,
    ]
};

#[test]
fn every_operation_may_fail_and_nothing_is_lost() {
    let mut whole = Machine::new(None, false);
    whole.run(&SCRIPT);
    assert_eq!(whole.logged(), whole.committed);
    let operations = whole.store.0.lock().unwrap().operations;
    let mut swept = 0;
    for at in 0..operations {
        for fault in [Fault::Before, Fault::After, Fault::Half] {
            for for_good in [false, true] {
                let mut machine = Machine::new(Some((at, fault)), for_good);
                machine.run(&SCRIPT);
                machine.store.0.lock().unwrap().cut_power();
                assert_eq!(
                    machine.logged(),
                    machine.committed,
                    "operation {at} of {operations}, {fault:?}, for good: {for_good}"
                );
                swept += 1;
            }
        }
    }
    println!("{swept} crash points swept, over {operations} operations");
}

/// Two faults, the second while the first is being recovered from.
#[test]
fn every_operation_may_fail_while_another_failure_is_mended() {
    let script = &SCRIPT[..10];
    for at in 0..40 {
        for (fault, for_good) in [(Fault::Half, true), (Fault::After, false)] {
            for after in 0..6 {
                let mut machine = Machine::new(Some((at, fault)), for_good);
                // The second fault is armed when the first has hit.
                let mut rest = script;
                while let Some((action, then)) = rest.split_first() {
                    machine.run(std::slice::from_ref(action));
                    let mut disk = machine.store.0.lock().unwrap();
                    if disk.operations > at && disk.fail_at.is_some_and(|(first, _)| first == at) {
                        let second = disk.operations + after;
                        disk.fail_at = Some((second, Fault::Half));
                        disk.for_good = !for_good;
                    }
                    rest = then;
                }
                machine.run(&[Action::Commit]);
                assert_eq!(machine.logged(), machine.committed, "{at} {fault:?} then {after}");
            }
        }
    }
}
