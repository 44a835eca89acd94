//! Compaction beside the hook.
//!
//! What the hook does for it is three relaxed stores to atomics after each call; it never waits for anything here.
//! One thread looks at them twice a second. When a threshold is passed it starts another, at the lowest
//! priority and with a store handle of its own, for the work, and waits for that one. Only the first ever
//! writes to lightningd's log: what writes there holds a lock that answers need, too, and a thread of low
//! priority may be stopped for long while it holds one.
//!
//! Nothing starts before the first call of the hook was answered, and nothing need be ended: what a process that
//! dies in the middle leaves is as good as before.

mod pace;
mod policy;
mod proof;
mod status;
mod work;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep_proto::config::Compaction;
use lockstep_proto::error::Error;
use lockstep_proto::hold::Hold;
use lockstep_proto::retention::Policy;
use lockstep_proto::seal::KeyRing;
use lockstep_proto::shadow::{self, Proofs};
use lockstep_proto::tail::Tail;
use lockstep_proto::writer::Writer;
use serde::Serialize;

use self::policy::{Rates, is_due, pause};
pub use self::proof::{AtStart, Comparison};
pub use self::status::CompactionStatus;
use self::status::{LastError, LastRun};
use self::work::Done;
use crate::clock::now;
use crate::companions::Companions;
use crate::places::Places;
use crate::wire::{Level, Output};

/// How often the hook's counters are looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often the store is looked at: another process may compact as well.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// The compaction of this node's log, for whoever starts it or asks for it.
#[derive(Clone, Default)]
pub struct Compactor(Arc<Shared>);

#[derive(Default)]
struct Shared {
    signal: Signal,
    progress: Progress,
    known: Mutex<Known>,
    wake: Condvar,
}

/// What the hook tells.
#[derive(Default)]
struct Signal {
    /// Bytes appended by this process.
    bytes: AtomicU64,
    /// The newest record.
    seq: AtomicU64,
    /// The epoch of the writer; 0 until there is one.
    epoch: AtomicU32,
}

/// How far the running compaction is: done and all, in the unit of its phase.
#[derive(Default)]
struct Progress {
    done: AtomicU64,
    all: AtomicU64,
}

/// What a compaction needs, besides [`Shared`].
pub struct Setup {
    /// Where the log is. Each is opened anew each time.
    pub places: Places,
    /// The keys.
    pub keys: KeyRing,
    /// The node's database, to look at its size.
    pub wallet: PathBuf,
    /// The shadow's folder.
    pub folder: PathBuf,
    /// When.
    pub settings: Compaction,
    /// What stays.
    pub retention: Policy,
    /// No snapshot is newer than they are.
    pub companions: Companions,
}

/// What earlier processes found out.
pub struct Before {
    /// About the shadow.
    pub proofs: Proofs,
    /// About the database.
    pub holds: Vec<Hold>,
}

/// What the threads and the RPC methods share. The hook never looks at it.
#[derive(Default)]
struct Known {
    settings: Option<Compaction>,
    last_id: u64,
    /// One that was asked for and has not begun.
    asked: Option<u64>,
    running: Option<Running>,
    /// What the store held when somebody last looked, …
    tail: Option<Tail>,
    /// … and the hook's count of bytes then.
    tail_at: u64,
    rates: Rates,
    /// What the database held at this start.
    at_start: AtStart,
    /// The shadow held something else there, and was not made anew since.
    suspected: bool,
    /// What was last proved, also by an earlier process.
    proofs: Proofs,
    /// What the store is kept whole for.
    holds: Vec<Hold>,
    last: Option<LastRun>,
    error: Option<LastError>,
}

#[derive(Clone, Copy)]
struct Running {
    id: u64,
    phase: Phase,
    since: Instant,
}

/// What a compaction is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Opens the shadow, or makes it.
    Open,
    /// Replays the log. Counts records.
    Replay,
    /// Checks every page of the shadow.
    Prove,
    /// Writes the snapshot. Counts bytes.
    Publish,
    /// Removes what retention does not keep.
    Prune,
}

/// What `backup-compact` answers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Request {
    /// For `backup-status`.
    id: u64,
    /// `started`, or `running` where one was running already.
    state: &'static str,
}

impl Compactor {
    /// Starts the thread. The hook's first call has been answered.
    ///
    /// # Errors
    /// Where there can be no thread: nothing is compacted then.
    pub fn start(&self, setup: Setup, output: Arc<Output>) -> std::io::Result<()> {
        let shared = self.0.clone();
        std::thread::Builder::new()
            .name("compaction".into())
            .spawn(move || shared.watch(&Arc::new(setup), &output))
            .map(drop)
    }

    /// Tells where the log stands. The hook's thread: no lock, no call into the operating system.
    pub fn appended(&self, writer: &Writer) {
        let signal = &self.0.signal;
        signal.bytes.store(writer.appended_bytes(), Ordering::Relaxed);
        signal.seq.store(writer.position().seq, Ordering::Relaxed);
        signal.epoch.store(writer.epoch(), Ordering::Relaxed);
    }

    /// The backup is open, with these settings: compactions can be asked for.
    pub fn offer(&self, settings: Compaction, at_start: AtStart, known_before: Before) {
        let mut known = self.0.lock();
        known.settings = Some(settings);
        known.at_start = at_start;
        (known.proofs, known.holds) = (known_before.proofs, known_before.holds);
    }

    /// What should be looked at.
    pub fn warnings(&self) -> Vec<String> {
        self.0.lock().holds.iter().map(Hold::warning).collect()
    }

    /// Asks for a compaction; `None` where the backup is not open.
    pub fn request(&self) -> Option<Request> {
        let mut known = self.0.lock();
        known.settings.as_ref()?;
        if let Some(id) = known.asked.or(known.running.map(|running| running.id)) {
            return Some(Request { id, state: "running" });
        }
        let id = known.next_id();
        known.asked = Some(id);
        self.0.wake.notify_all();
        Some(Request { id, state: "started" })
    }
}

impl Known {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The tail with what the hook has appended since.
    fn tail_now(&self, signal: &Signal) -> Option<Tail> {
        let mut tail = self.tail.clone()?;
        let bytes = signal.bytes.load(Ordering::Relaxed);
        let seq = signal.seq.load(Ordering::Relaxed).max(tail.head_seq);
        tail.bytes += bytes.saturating_sub(self.tail_at);
        tail.records += seq - tail.head_seq;
        tail.head_seq = seq;
        Some(tail)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For ever: waits for a reason to compact, and compacts.
    fn watch(self: &Arc<Self>, setup: &Arc<Setup>, output: &Output) {
        let (mut failures, mut rebuilt) = (0, false);
        let mut not_before = Instant::now();
        loop {
            let id = match self.wait(setup, not_before) {
                Due::Look => {
                    self.look(setup, output);
                    continue;
                }
                Due::Compaction(id) => id,
            };
            let began = Instant::now();
            let mut done = self.at_lowest_priority(setup, work::compact);
            if let Err(error) = &done
                && shadow::may_be_wrong(error)
                && !rebuilt
            {
                // The shadow may be what is wrong. It can always be made again, once.
                rebuilt = true;
                let line = format!("compaction {id}: {}; making the shadow anew", error.explain());
                output.log(Level::Unusual, &line);
                done = shadow::remove(&setup.folder)
                    .and_then(|()| self.at_lowest_priority(setup, work::compact));
            }
            let took = began.elapsed();
            let mut worked = took;
            match done {
                Ok(done) => {
                    worked = took.saturating_sub(done.rested);
                    (failures, rebuilt) = (0, false);
                    output.log(Level::Info, &format!("compaction {id}: {}", done.outcome));
                    self.finished(id, done, took);
                }
                Err(error @ Error::Differs { .. }) => {
                    failures += 1;
                    self.alarm(setup, output, id, &error);
                }
                Err(error) => {
                    failures += 1;
                    let message = error.explain();
                    let line = format!(
                        "compaction {id} failed: {message}; the backup goes on without it, the next try is in \
                         {} s",
                        pause(failures, took).as_secs()
                    );
                    output.log(Level::Unusual, &line);
                    self.failed(id, message);
                }
            }
            not_before = Instant::now() + pause(failures, worked);
        }
    }

    /// The database is not what was replayed: says so, and keeps everything until somebody has looked.
    fn alarm(self: &Arc<Self>, setup: &Arc<Setup>, output: &Output, id: u64, error: &Error) {
        let message = error.explain();
        output.log(Level::Broken, &message);
        let Error::Differs { generation, seq, .. } = *error else { return };
        let hold = Hold { generation, seq, time: now() };
        let placed = self.at_lowest_priority(setup, move |_, setup| {
            // On as many as answer, so that none of them is pruned.
            let (one, others) = setup.places.current();
            for other in others {
                let _ = other.url.open().and_then(|at| hold.place(&*at));
            }
            hold.place(&*one.url.open()?)
        });
        match placed {
            Ok(()) => {
                let mut known = self.lock();
                known.holds.retain(|other| (other.generation, other.seq) != (generation, seq));
                known.holds.push(hold);
                known.at_start = AtStart { comparison: Comparison::Differs, expected: None };
            }
            Err(error) => {
                let line = format!(
                    "what an alarm keeps could not be marked in the backup, do not run 'backup-cli prune': {}",
                    error.explain()
                );
                output.log(Level::Broken, &line);
            }
        }
        self.failed(id, message);
    }

    /// Waits for a reason to do something.
    fn wait(&self, setup: &Setup, not_before: Instant) -> Due {
        let began = Instant::now();
        let mut known = self.lock();
        loop {
            if let Some(id) = known.asked.take() {
                return Due::Compaction(known.begin(id));
            }
            let Some(tail) = known.tail_now(&self.signal) else { return Due::Look };
            if known.at_start.comparison != Comparison::Differs
                && Instant::now() >= not_before
                && is_due(&setup.settings, &known.rates, tail.bytes)
            {
                let id = known.next_id();
                return Due::Compaction(known.begin(id));
            }
            if began.elapsed() >= LOOK_AGAIN {
                return Due::Look;
            }
            let waited = self.wake.wait_timeout(known, INTERVAL);
            known = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Looks up what the store holds.
    fn look(self: &Arc<Self>, setup: &Arc<Setup>, output: &Output) {
        let at = self.signal.bytes.load(Ordering::Relaxed);
        let looked = self.at_lowest_priority(setup, |_, setup| {
            let store = setup.places.current().0.url.open()?;
            Ok((Tail::read(&*store, &setup.keys)?, Hold::list(&*store)?))
        });
        let mut known = self.lock();
        known.tail_at = at;
        match looked {
            Ok((tail, holds)) => (known.tail, known.holds) = (Some(tail), holds),
            Err(error) => {
                // Nothing is known of what was there before; the hook's own count goes on.
                known.tail.get_or_insert_default();
                let message = error.explain();
                let line = format!("what a restore would read is not known: {message}");
                output.log(Level::Unusual, &line);
                known.error = Some(LastError { id: 0, time: now(), message });
            }
        }
    }

    /// Does `work` on a thread of its own, which has the lowest priority from its start to its end.
    fn at_lowest_priority<T: Send + 'static>(
        self: &Arc<Self>,
        setup: &Arc<Setup>,
        work: impl FnOnce(&Arc<Shared>, &Setup) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (shared, setup) = (self.clone(), setup.clone());
        let folder = setup.folder.clone();
        let thread = std::thread::Builder::new().name("compaction work".into()).spawn(move || {
            lower_priority();
            work(&shared, &setup)
        });
        let thread = thread.map_err(Error::file("start a thread for", &folder))?;
        thread.join().unwrap_or_else(|_| {
            Err(Error::Refused {
                what: "a defect of cln-lockstep".into(),
                hint: "please report it, with the log.".into(),
            })
        })
    }

    fn enter(&self, phase: Phase, all: u64) {
        self.progress.done.store(0, Ordering::Relaxed);
        self.progress.all.store(all, Ordering::Relaxed);
        if let Some(running) = &mut self.lock().running {
            running.phase = phase;
        }
    }

    fn finished(&self, id: u64, done: Done, took: Duration) {
        let mut known = self.lock();
        known.running = None;
        known.error = None;
        known.last =
            Some(LastRun { id, time: now(), seconds: took.as_secs_f64(), result: done.outcome });
        known.proofs.checked = Some(done.checked);
        known.rates.checked(done.database_bytes, done.checked_in);
        known.rates.replayed(done.replayed_bytes, done.replayed_in);
        (known.tail, known.tail_at) = (Some(done.tail), done.tail_at);
    }

    fn failed(&self, id: u64, message: String) {
        let mut known = self.lock();
        known.running = None;
        known.error = Some(LastError { id, time: now(), message });
    }
}

/// What there is to do.
enum Due {
    /// Look at the store.
    Look,
    /// Compact, under this id.
    Compaction(u64),
}

impl Known {
    fn begin(&mut self, id: u64) -> u64 {
        self.running = Some(Running { id, phase: Phase::Open, since: Instant::now() });
        id
    }
}

/// On Linux this is the calling thread's alone; elsewhere it would be the whole program's, and is left.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        // A thread that may not is a thread of ordinary priority.
        let _ = rustix::process::setpriority_process(None, 19);
    }
}
