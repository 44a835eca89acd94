//! Threads that run one at a time, in an order that a seed decides, and a clock that goes on while they wait.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use fastrand::Rng;

thread_local! {
    /// The number of this thread, where it is one that takes turns.
    static OWN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Whose turn it is.
pub struct Turns {
    state: Mutex<State>,
    began: Instant,
}

struct State {
    rng: Rng,
    time: Duration,
    threads: BTreeMap<usize, Waiting>,
    running: usize,
    next: usize,
    panic: Option<Box<dyn Any + Send>>,
}

/// A thread that does not run.
struct Waiting {
    /// None: it runs, or will be told to.
    thread: Option<Thread>,
    /// It could run.
    ready: bool,
    /// It can then.
    until: Option<Duration>,
}

impl Turns {
    /// Whoever calls it has the first turn.
    pub fn begin(rng: Rng) -> Arc<Self> {
        OWN.set(Some(0));
        let first = Waiting { thread: Some(thread::current()), ready: true, until: None };
        let threads = BTreeMap::from([(0, first)]);
        let time = Duration::ZERO;
        let state = State { rng, time, threads, running: 0, next: 1, panic: None };
        Arc::new(Self { state: Mutex::new(state), began: Instant::now() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now(&self) -> Instant {
        self.began + self.lock().time
    }

    /// Time goes by, and it may be another one's turn.
    pub fn pass(&self) {
        let Some(own) = OWN.get() else { return };
        let mut state = self.lock();
        let took = state.rng.u64(..3_000);
        state.time += Duration::from_micros(took);
        if state.rng.u8(..3) == 0 {
            self.hand_on(own, state);
        }
    }

    /// Others run, until somebody wakes all or it is `until`.
    pub fn wait(&self, until: Option<Instant>) {
        let Some(own) = OWN.get() else { return };
        let mut state = self.lock();
        if let Some(waiting) = state.threads.get_mut(&own) {
            waiting.ready = false;
            waiting.until = until.map(|until| until.saturating_duration_since(self.began));
        }
        self.hand_on(own, state);
    }

    /// Others run for so long.
    pub fn sleep(&self, time: Duration) {
        let until = self.now() + time;
        while self.now() < until && OWN.get().is_some() {
            self.wait(Some(until));
        }
    }

    /// Whoever waits may go on.
    pub fn wake(&self) {
        self.lock().threads.values_mut().for_each(|waiting| waiting.ready = true);
    }

    /// Starts a thread, which waits for its turn.
    pub fn start(self: &Arc<Self>, work: Box<dyn FnOnce() + Send>) {
        let mut state = self.lock();
        let own = state.next;
        state.next += 1;
        state.threads.insert(own, Waiting { thread: None, ready: true, until: None });
        drop(state);
        let turns = self.clone();
        let started = thread::spawn(move || {
            OWN.set(Some(own));
            turns.until_it_is(own, turns.lock());
            let done = catch_unwind(AssertUnwindSafe(work));
            let mut state = turns.lock();
            state.threads.remove(&own);
            if let Err(panic) = done {
                state.panic = Some(panic);
                state.running = 0;
                state.tell();
            } else {
                state.choose();
            }
        });
        let thread = Some(started.thread().clone());
        if let Some(waiting) = self.lock().threads.get_mut(&own) {
            waiting.thread = thread;
        }
    }

    /// Lets all others come to their end.
    pub fn finish(&self) {
        while self.lock().threads.len() > 1 {
            self.sleep(Duration::from_secs(1));
        }
    }

    /// True where all others have come to their end.
    pub fn is_alone(&self) -> bool {
        self.lock().threads.len() == 1
    }

    fn hand_on<'a>(&'a self, own: usize, mut state: MutexGuard<'a, State>) {
        state.choose();
        self.until_it_is(own, state);
    }

    fn until_it_is<'a>(&'a self, own: usize, mut state: MutexGuard<'a, State>) {
        while state.running != own {
            drop(state);
            thread::park();
            state = self.lock();
        }
        if let Some(panic) = state.panic.take() {
            drop(state);
            resume_unwind(panic);
        }
    }
}

impl State {
    /// Decides whose turn is next; where all wait it is later first.
    fn choose(&mut self) {
        loop {
            let time = self.time;
            for waiting in self.threads.values_mut() {
                waiting.ready |= waiting.until.is_some_and(|until| until <= time);
            }
            let ready: Vec<usize> =
                self.threads.iter().filter(|(_, of)| of.ready).map(|(own, _)| *own).collect();
            if !ready.is_empty() {
                self.running = ready[self.rng.usize(..ready.len())];
                return self.tell();
            }
            let soonest = self.threads.values().filter_map(|waiting| waiting.until).min();
            self.time = soonest.expect("all wait for each other");
        }
    }

    fn tell(&self) {
        let chosen = self.threads.get(&self.running);
        if let Some(thread) = chosen.and_then(|chosen| chosen.thread.as_ref()) {
            thread.unpark();
        }
    }
}
