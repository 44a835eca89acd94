//! What goes wrong, and when: for each operation of a process on a disk or a bucket one answer.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It looks.
    Read,
    /// It changes the content of a file.
    Write,
    /// It changes names.
    Name,
    /// It makes the content of a file durable.
    Sync,
    /// It makes names durable.
    SyncNames,
}

/// How an operation goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error, and nothing happened.
    Before(Errno),
    /// It happened, and the answer is an error: a server's that was lost on the way, or a disk's.
    After(Errno),
    /// A part of what is written was, then an error.
    Short(Errno),
    /// A sync that failed. What was to be synced never will be, and the next one says nothing of that.
    Dropped,
    /// The process dies before, in the middle of, or right after it.
    DieBefore,
    /// As above.
    DieHalfway,
    /// As above.
    DieAfter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    Io,
    NoSpace,
    Quota,
}

impl Errno {
    pub fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io => 5,
            Self::NoSpace => 28,
            Self::Quota => 122,
        })
    }
}

impl Fault {
    /// Every way in which an operation can go wrong.
    pub fn all(kind: Kind) -> Vec<Self> {
        use Errno::{Io, NoSpace, Quota};
        let mut faults = vec![Self::Before(Io), Self::DieBefore];
        if kind == Kind::Read {
            return faults;
        }
        faults.extend([Self::After(Io), Self::DieAfter]);
        match kind {
            Kind::Write => faults.extend([
                Self::Before(NoSpace),
                Self::Before(Quota),
                Self::Short(Io),
                Self::Short(NoSpace),
                Self::Short(Quota),
                Self::DieHalfway,
            ]),
            Kind::Name => faults.extend([Self::Before(NoSpace), Self::Before(Quota)]),
            // Of names a file system that loses them stops altogether.
            Kind::Sync => faults.push(Self::Dropped),
            Kind::Read | Kind::SyncNames => {}
        }
        faults
    }

    /// True where it is an error that may last.
    pub fn can_last(self) -> bool {
        matches!(self, Self::Before(_) | Self::Short(_) | Self::After(_))
    }
}

/// When something goes wrong.
#[derive(Debug, Clone)]
pub enum Plan {
    Never,
    /// The operation of this number; with `lasting`, and every one of its kind after it until the process is replaced.
    At {
        number: u64,
        fault: Fault,
        lasting: bool,
    },
    /// One operation in so many.
    Random {
        rng: Rng,
        one_in: u32,
    },
}

impl Plan {
    fn at(&mut self, number: u64, kind: Kind) -> Option<Fault> {
        match self {
            Self::Never => None,
            Self::At { number: at, fault, .. } => (*at == number).then_some(*fault),
            Self::Random { rng, one_in } => {
                let all = Fault::all(kind);
                (rng.u32(..*one_in) == 0).then(|| all[rng.usize(..all.len())])
            }
        }
    }
}

/// A process, as the disks and buckets that it uses see it. Dead, it has no effect any more.
#[derive(Clone)]
pub struct Process {
    inner: Arc<Mutex<Inner>>,
    dead: Arc<AtomicBool>,
    /// As each of several places sees it.
    at: Arc<Mutex<BTreeMap<usize, Process>>>,
    count: Arc<Mutex<Count>>,
    steps: Option<Arc<AtomicU64>>,
}

struct Inner {
    plan: Plan,
    /// What goes wrong again and again.
    broken: Option<(Kind, Fault)>,
    /// Faults that struck.
    struck: u64,
}

/// The operations of all processes that go by one plan.
#[derive(Default)]
struct Count {
    operations: u64,
    kinds: Vec<Kind>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// One whose operations are steps of the simulation.
    pub fn new(plan: Plan, steps: &Arc<AtomicU64>) -> Self {
        Self::with(plan, Arc::default(), Some(steps.clone()))
    }

    /// One that only looks at what there is; nothing goes wrong, and nothing is counted.
    pub fn checker() -> Self {
        Self::with(Plan::Never, Arc::default(), None)
    }

    /// Another one that goes by the same plan: what strikes operation number so strikes it in whichever process.
    pub fn another(&self) -> Self {
        let plan = lock(&self.inner).plan.clone();
        Self::with(plan, self.count.clone(), self.steps.clone())
    }

    fn with(plan: Plan, count: Arc<Mutex<Count>>, steps: Option<Arc<AtomicU64>>) -> Self {
        let inner = Inner { plan, broken: None, struck: 0 };
        let (dead, at) = (Arc::default(), Arc::default());
        Self { inner: Arc::new(Mutex::new(inner)), dead, at, count, steps }
    }

    /// The same process as the place of this number sees it. What goes wrong at random goes wrong at each by itself.
    pub fn at(&self, place: usize) -> Self {
        let forked = match &mut lock(&self.inner).plan {
            Plan::Random { rng, one_in } => Plan::Random { rng: rng.fork(), one_in: *one_in },
            Plan::Never | Plan::At { .. } => return self.clone(),
        };
        let mut at = lock(&self.at);
        let process = at.entry(place).or_insert_with(|| {
            let process = Self::with(forked, self.count.clone(), self.steps.clone());
            Self { dead: self.dead.clone(), ..process }
        });
        process.clone()
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// It dies here and now.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// From here on nothing goes wrong any more.
    pub fn mend(&self) {
        lock(&self.at).values().for_each(Self::mend);
        let mut inner = lock(&self.inner);
        (inner.plan, inner.broken) = (Plan::Never, None);
    }

    /// True now and then, where things go wrong at random.
    pub fn is_lucky(&self) -> bool {
        match &mut lock(&self.inner).plan {
            Plan::Random { rng, .. } => rng.u8(..4) == 0,
            Plan::Never | Plan::At { .. } => false,
        }
    }

    /// What each operation of a plan did so far.
    pub fn kinds(&self) -> Vec<Kind> {
        lock(&self.count).kinds.clone()
    }

    /// How often something went wrong.
    pub fn struck(&self) -> u64 {
        let elsewhere: u64 = lock(&self.at).values().map(Self::struck).sum();
        lock(&self.inner).struck + elsewhere
    }

    /// Before each operation: what goes wrong with it.
    pub fn step(&self, kind: Kind) -> Option<Fault> {
        let mut inner = lock(&self.inner);
        if self.is_dead() {
            return Some(Fault::Before(Errno::Io));
        }
        if let Some(steps) = &self.steps {
            steps.fetch_add(1, Ordering::Relaxed);
        }
        let number = self.count(kind, &inner.plan);
        let fault = match inner.broken {
            Some((broken, fault)) if broken == kind => Some(fault),
            _ => inner.plan.at(number, kind),
        };
        let lasts = match &mut inner.plan {
            Plan::At { lasting, .. } => *lasting,
            Plan::Random { rng, .. } => rng.u8(..8) == 0,
            Plan::Never => false,
        };
        if let Some(fault) = fault.filter(|fault| lasts && fault.can_last()) {
            inner.broken = Some((kind, fault));
        }
        if let Some(fault) = fault.filter(|_| std::env::var_os("LOCKSTEP_TRACE").is_some()) {
            println!("  {kind:?} {number}: {fault:?}");
        }
        inner.struck += u64::from(fault.is_some());
        if matches!(fault, Some(Fault::DieBefore | Fault::DieHalfway | Fault::DieAfter)) {
            self.kill();
        }
        fault
    }

    fn count(&self, kind: Kind, plan: &Plan) -> u64 {
        let mut count = lock(&self.count);
        if matches!(plan, Plan::At { .. }) {
            count.kinds.push(kind);
        }
        count.operations += 1;
        count.operations - 1
    }
}
