//! A short history with crashes and rewinds, in which every single operation on the store fails once: before
//! it has any effect, after it, or half done; for good (the process dies) or for once (it is tried again).
//! After each, everything that was acknowledged is in the log, and nothing that the node did not commit.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use lockstep_proto::fence::Claimant;
use lockstep_proto::log::LogReader;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::restore::Plan;
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::store::{Append, Entry, NewObject, Store, StoreError, StoreErrorKind};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// An error, and nothing happened.
    Before,
    /// It happened, and the answer was lost.
    After,
    /// Half of the bytes were written.
    Half,
}

#[derive(Default)]
struct Disk {
    objects: BTreeMap<String, Vec<u8>>,
    operations: usize,
    fail_at: Option<(usize, Fault)>,
    /// From a failure on everything fails, until the machine is started again.
    for_good: bool,
    dead: bool,
}

impl Disk {
    /// Counts an operation; the fault that hits it, if one does.
    fn operation(&mut self) -> Option<Fault> {
        if self.dead {
            return Some(Fault::Before);
        }
        self.operations += 1;
        match self.fail_at {
            Some((at, fault)) if at == self.operations - 1 => {
                self.dead = self.for_good;
                Some(fault)
            }
            _ => None,
        }
    }
}

#[derive(Clone, Default)]
struct SimStore(Arc<Mutex<Disk>>);

fn failed(action: &'static str, name: &str) -> StoreError {
    let kind = StoreErrorKind::Io(io::Error::other("injected"));
    StoreError { store: "sim".into(), action, object: name.into(), kind }
}

impl SimStore {
    fn write(&self, name: &str, bytes: &[u8], new: bool) -> Result<(), StoreError> {
        let mut disk = self.0.lock().unwrap();
        let fault = disk.operation();
        if new && disk.objects.contains_key(name) {
            return Err(StoreError { kind: StoreErrorKind::Exists, ..failed("create", name) });
        }
        let written = match fault {
            Some(Fault::Before) => return Err(failed("write", name)),
            Some(Fault::Half) => &bytes[..bytes.len() / 2],
            Some(Fault::After) | None => bytes,
        };
        disk.objects.entry(name.into()).or_default().extend_from_slice(written);
        if fault.is_some() { Err(failed("write", name)) } else { Ok(()) }
    }
}

struct SimObject {
    store: SimStore,
    name: String,
    bytes: Vec<u8>,
}

impl NewObject for SimObject {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Whole or not at all, as the store's contract says.
    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        {
            let mut disk = self.store.0.lock().unwrap();
            if disk.fail_at == Some((disk.operations, Fault::Half)) {
                disk.operation();
                return Err(failed("create", &self.name));
            }
        }
        self.store.write(&self.name, &self.bytes, true)
    }
}

impl Append for SimObject {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.store.write(&self.name, bytes, false)
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Store for SimStore {
    fn label(&self) -> &str {
        "sim"
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        Ok(Box::new(SimObject { store: self.clone(), name: name.into(), bytes: Vec::new() }))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        self.write(name, header, true)?;
        Ok(Box::new(SimObject { store: self.clone(), name: name.into(), bytes: Vec::new() }))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let disk = self.0.lock().unwrap();
        if disk.dead {
            return Err(failed("read", name));
        }
        let not_there = || StoreError { kind: StoreErrorKind::NotFound, ..failed("read", name) };
        disk.objects.get(name).cloned().ok_or_else(not_there)
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        Ok(Box::new(io::Cursor::new(self.read(name)?)))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        let mut disk = self.0.lock().unwrap();
        match disk.operation() {
            Some(_) => Err(failed("look up", name)),
            None => Ok(disk.objects.contains_key(name)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let disk = self.0.lock().unwrap();
        if disk.dead {
            return Err(failed("list", folder));
        }
        let prefix = format!("{folder}/");
        let mut entries: Vec<Entry> = Vec::new();
        for (name, bytes) in &disk.objects {
            let Some(rest) = name.strip_prefix(&prefix) else { continue };
            let (name, folder) =
                rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
            if entries.last().is_none_or(|last| last.name != name) {
                entries.push(Entry { name: name.into(), size: bytes.len() as u64, folder });
            }
        }
        Ok(entries)
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.0.lock().unwrap().objects.remove(name);
        Ok(())
    }
}

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
        let claimant = Claimant::this_process("test", "init", 1).unwrap();
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
            let claimant = Claimant::this_process("test", "node", self.time).unwrap();
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
        loop {
            self.time += 1;
            let time = self.time;
            let call =
                Call { data_version: version, transaction: !settings, writes: &[sql.clone()] };
            match self.writer().append(&call, time) {
                Ok(Outcome::Acknowledged { .. }) => break,
                Ok(Outcome::Gap) => panic!("a gap at {version}"),
                Err(_) if self.store.0.lock().unwrap().dead => {
                    // The process died in the hook: the node did not commit, and starts again.
                    self.store.0.lock().unwrap().dead = false;
                    self.writer = None;
                }
                // Tried again, as the plugin does.
                Err(_) => {}
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
