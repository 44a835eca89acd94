//! One destination's thread: it makes the writer's steps there, and brings the place up where it was away.
//!
//! All input and output of a destination happens here, so that one which hangs holds nobody up whom the policy does
//! not make wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::feed::{Next, Resume, Step};
use super::mirror::{self, Mirror, Mirrored};
use super::shared::{Shared, Standing, State, Task};
use crate::config::NamedDestination;
use crate::error::{Error, Result};
use crate::layout::{self, SegmentName};
use crate::log::{Mark, Position};
use crate::seal::{Header, KeyRing};
use crate::store::{Append, Store, StoreError, StoreErrorKind};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Told when a destination's standing changes.
pub type Observer = Arc<dyn Fn(&super::Report) + Send + Sync>;

pub(super) struct Worker {
    index: usize,
    keys: KeyRing,
    shared: Arc<Shared>,
    observer: Observer,
    store: Option<Arc<dyn Store>>,
    append: Option<Open>,
    pause: Duration,
    retry_at: Option<Instant>,
}

/// The segment that is being written there.
pub(super) struct Open {
    name: SegmentName,
    object: Box<dyn Append>,
}

enum Work {
    Task(Task),
    /// The step of this number.
    Step(u64, Step),
    Reopen,
    BringUp,
    Stop,
}

impl Worker {
    /// With the destination as it was found.
    pub fn new(index: usize, keys: &KeyRing, shared: &Arc<Shared>, observer: &Observer) -> Self {
        let store = shared.lock().replicas[index].store.clone();
        Self {
            index,
            keys: keys.clone(),
            shared: shared.clone(),
            observer: observer.clone(),
            store,
            append: None,
            pause: FIRST_PAUSE,
            retry_at: None,
        }
    }

    /// Until the writer is dropped.
    pub fn run(mut self) {
        loop {
            let worked = match self.wait() {
                Work::Stop => return,
                Work::Task(task) => {
                    task(self.store.as_ref());
                    // Whoever asked looks at the answers while it holds the state.
                    drop(self.shared.lock());
                    self.shared.done.ring();
                    continue;
                }
                Work::Step(number, step) => self.step(number, step),
                Work::Reopen => {
                    (self.append, self.store, self.retry_at) = (None, None, None);
                    self.reopen().map(drop)
                }
                Work::BringUp => self.bring_up(),
            };
            match worked {
                Ok(()) => self.pause = FIRST_PAUSE,
                Err(error) => self.failed(&error),
            }
        }
    }

    fn wait(&self) -> Work {
        let mut state = self.shared.lock();
        loop {
            if let Some(work) = self.work(&mut state) {
                return work;
            }
            let later = self.retry_at.filter(|at| !self.shared.ground.left(*at).is_zero());
            state = self.shared.wait(&self.shared.work, state, later);
        }
    }

    /// What there is to do.
    fn work(&self, state: &mut State) -> Option<Work> {
        if let Some(task) = state.replicas[self.index].tasks.pop_front() {
            return Some(Work::Task(task));
        }
        if state.closing || state.replicas[self.index].removed {
            return Some(Work::Stop);
        }
        if std::mem::take(&mut state.replicas[self.index].failed) && self.store.is_some() {
            return Some(Work::Reopen);
        }
        let replica = &state.replicas[self.index];
        // A record of another writer's is in the way: it counts for nothing only once ours is acknowledged.
        if state.fenced || replica.taken && !state.is_acknowledged(replica.done + 1) {
            return None;
        }
        if self.store.is_some() && replica.whole && self.retry_at.is_none() {
            return match state.feed.next(replica.done) {
                Next::Nothing => None,
                Next::Step(step) => Some(Work::Step(replica.done, step)),
                Next::Lost => Some(Work::BringUp),
            };
        }
        let due = self.retry_at.is_none_or(|at| self.shared.ground.left(at).is_zero());
        if !due {
            return None;
        }
        if state.feed.oldest().is_some() || state.is_lacking(self.index) {
            return Some(Work::BringUp);
        }
        // Before the log is claimed nothing is known of what is to be brought up.
        self.retry_at.map(|_| Work::Reopen)
    }

    /// Makes a step of the writer's.
    fn step(&mut self, number: u64, step: Step) -> Result<()> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        match step {
            Step::Begin(name, header) => match store.create_append(&name.to_string(), &header) {
                // It was there before the place went away.
                Err(error) if matches!(error.kind, StoreErrorKind::Exists) => {
                    return self.bring_up();
                }
                object => self.append = Some(Open { name, object: object? }),
            },
            Step::Record(name, bytes) => {
                let Some(open) = self.append.as_mut().filter(|open| open.name == name) else {
                    return self.bring_up();
                };
                open.object.append(&bytes)?;
                if !open.object.is_exclusive() {
                    self.not_claimed(&*store)?;
                }
            }
            Step::End => {
                // Best effort: every record is durable without it.
                if let Some(mut open) = self.append.take() {
                    let _ = open.object.finish();
                }
            }
        }
        self.advance(|state, index| {
            let done = &mut state.replicas[index].done;
            // Unless a newer writer has begun meanwhile.
            if *done == number {
                *done += 1;
            }
        });
        Ok(())
    }

    fn advance(&self, change: impl FnOnce(&mut State, usize)) {
        let mut state = self.shared.lock();
        change(&mut state, self.index);
        let replica = &mut state.replicas[self.index];
        replica.taken = false;
        let changed = replica.report.standing != Standing::Current && replica.whole;
        if changed {
            (replica.report.standing, replica.report.error) = (Standing::Current, None);
        }
        let report = changed.then(|| state.report(self.index));
        state.forget();
        drop(state);
        self.shared.done.ring();
        if let Some(report) = report {
            (self.observer)(&report);
        }
    }

    /// Opens the place anew, copies what it lacks from another, and goes on with the segment that is being written.
    fn bring_up(&mut self) -> Result<()> {
        self.append = None;
        self.retry_at = None;
        let store = match self.store.clone() {
            Some(store) => store,
            None => self.reopen()?,
        };
        let mut copied = false;
        while self.is_lacking() {
            copied |= self.copy_what_is_lacking(&store)?;
        }
        let (resume, lost) = {
            let state = self.shared.lock();
            let done = state.replicas[self.index].done;
            (state.feed.resume(done), state.feed.next(done) == Next::Lost)
        };
        let Some(resume) = resume else {
            match lost {
                true => self.shared.lock().replicas[self.index].set_whole(false),
                false => self.advance(|_, _| {}),
            }
            return Ok(());
        };
        self.resume(&store, resume, copied)
    }

    /// Goes on with the segment that is being written; `copied` where what is before it was brought from another place.
    fn resume(&mut self, store: &Arc<dyn Store>, resume: Resume, copied: bool) -> Result<()> {
        let Resume { name, header, mut records, mut done } = resume;
        let source = if copied { Some(self.source()?) } else { None };
        let mirror = source.as_ref().map(|source| Mirror {
            source: &**source,
            target: &**store,
            keys: &self.keys,
            before: None,
        });
        // A place whose log ends like the others' is taken for complete: before that it has the snapshots that were made of
        // this very segment, and is told where the log begins.
        let mut begins = None;
        if let Some(mirror) = &mirror {
            mirror.snapshots_ahead(name.generation)?;
            // But not shortened, if it has the newest record: that may have been acknowledged because of it.
            if !store.exists(&name.to_string())? && records.pop().is_some() {
                done -= 1;
                begins = Some(mirror);
            }
        }
        // It takes the place of what is there: not where a newer writer builds on that.
        self.not_claimed(&**store)?;
        let object = store.resume_append(&name.to_string(), &header, &records)?;
        self.not_claimed(&**store)?;
        if let Some(mirror) = begins {
            mirror.snapshots(&mut |_| {})?;
        }
        self.append = Some(Open { name, object });
        self.advance(|state, index| {
            let replica = &mut state.replicas[index];
            replica.done = replica.done.max(done);
        });
        Ok(())
    }

    fn is_lacking(&self) -> bool {
        self.shared.lock().is_lacking(self.index)
    }

    /// The place that it was to be compared with may have gone away meanwhile: then its own log tells that nothing of it
    /// was lost.
    fn is_whole_by_itself(&self, store: &dyn Store, before: Option<(u32, u32)>) -> Result<bool> {
        if !self.shared.lock().replicas[self.index].doubted {
            return Ok(false);
        }
        let own = mirror::end_before(store, &self.keys, before)?;
        Ok(self.joint(&own).is_some_and(|(_, next)| leads_on(&own, &next)))
    }

    fn reopen(&mut self) -> Result<Arc<dyn Store>> {
        let store = self.shared.ground.open(&self.destination(self.index), self.keys.store())?;
        // What is there now may be an older copy, as a folder that lay under a mount, or a disk that lost what it had
        // answered for: it is compared with another place, and where there is none, at least has our claim.
        let epoch = self.shared.lock().epoch;
        let ours = store.exists(&layout::claim(epoch))?;
        let mut state = self.shared.lock();
        let compared = state.source(self.index).is_some();
        let replica = &mut state.replicas[self.index];
        let had_all = ours && (replica.whole || replica.doubted);
        replica.whole &= ours && !compared;
        replica.doubted = had_all && !replica.whole;
        replica.store = Some(store.clone()).filter(|_| !replica.removed);
        self.store = Some(store.clone());
        Ok(store)
    }

    /// Another place, which has everything; a handle of its own, so that its thread is not held up.
    fn source(&self) -> Result<Arc<dyn Store>> {
        let source = self.shared.lock().source(self.index);
        let source = source.ok_or_else(|| Error::Refused {
            what: "no other destination has what this one lacks".into(),
            hint: "it is brought up as soon as another one answers.".into(),
        })?;
        self.shared.ground.open(&self.destination(source), self.keys.store())
    }

    fn destination(&self, index: usize) -> NamedDestination {
        self.shared.lock().replicas[index].destination.clone()
    }

    /// Brings the place up to where the feed begins, or will begin. False where nothing was copied: it had everything.
    fn copy_what_is_lacking(&self, store: &Arc<dyn Store>) -> Result<bool> {
        let known = |state: &State| {
            let oldest = state.feed.oldest().map(|(name, _)| name);
            (state.epoch, oldest, state.replicas[self.index].found_lacking)
        };
        let known_before = known(&self.shared.lock());
        let (epoch, oldest, ..) = known_before;
        // What is being written is never copied: in a bucket a copy is one object, and hides the records behind it.
        let before = Some(oldest.map_or((epoch, 0), |name| name.age()));
        let source = self.source();
        match &source {
            Ok(source) => {
                let mirror =
                    Mirror { source: &**source, target: &**store, keys: &self.keys, before };
                self.expect_to_lead_on(&mirror.run(&mut |_| {})?, source.label())?;
            }
            Err(Error::Refused { .. }) if self.is_whole_by_itself(&**store, before)? => {}
            Err(_) => return source.map(|_| false),
        }
        let mut state = self.shared.lock();
        // What was forgotten, begun, found, or given to the others meanwhile is copied in the next round.
        if known(&state) == known_before {
            let first = state.feed.oldest().map_or(state.feed.steps(), |(_, first)| first);
            let replica = &mut state.replicas[self.index];
            replica.done = first;
            replica.set_whole(true);
        }
        Ok(source.is_ok())
    }

    /// Checks that what was copied leads to the oldest segment that the feed has.
    fn expect_to_lead_on(&self, mirrored: &Mirrored, source: &str) -> Result<()> {
        match self.joint(mirrored) {
            Some((end, next)) if !leads_on(mirrored, &next) => {
                let what = format!("its log ends at {end}, and seq {} is written next", next.seq);
                Err(Error::damaged(format!("'{source}'"), what))
            }
            _ => Ok(()),
        }
    }

    /// Where a log ends that was copied, and the oldest segment that the feed has; `None` where that begins a history.
    fn joint(&self, mirrored: &Mirrored) -> Option<(Position, Header)> {
        let next = Header::decode(self.shared.lock().feed.oldest_header()?).ok()?;
        let end = mirrored.end.filter(|end| end.generation == next.generation)?;
        Some((end, next))
    }

    /// Notes what went wrong. The place is opened anew before anything else is tried.
    fn failed(&mut self, error: &Error) {
        let taken = matches!(error, Error::Store(error) if is_taken(error));
        let claimed = taken && self.is_claimed();
        self.append = None;
        // Without another place to copy from it can still be asked, and claimed: then it may turn out to lack nothing.
        if !taken && !matches!(error, Error::Refused { .. }) {
            self.store = None;
        }
        let standing = match error {
            // Tried again all the same: the other place may have been half there.
            Error::TwoHistories { .. } => Standing::Apart,
            _ => Standing::Behind,
        };
        let ground = &self.shared.ground;
        self.retry_at = Some(ground.now() + ground.jittered(self.pause));
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        let mut state = self.shared.lock();
        state.fenced |= claimed;
        let replica = &mut state.replicas[self.index];
        replica.taken = taken;
        let changed = replica.report.standing != standing || replica.report.error.is_none();
        replica.report.standing = standing;
        replica.report.error = Some(error.explain());
        let report = changed.then(|| state.report(self.index));
        drop(state);
        self.shared.done.ring();
        if let Some(report) = report {
            (self.observer)(&report);
        }
    }

    fn is_claimed(&self) -> bool {
        let store = self.store.as_ref();
        store.is_some_and(|store| self.not_claimed(&**store).is_err_and(|error| is_taken(&error)))
    }

    /// Fails where a newer epoch than the writer's is claimed at this place.
    fn not_claimed(&self, store: &dyn Store) -> Result<(), StoreError> {
        let newer = layout::claim(self.shared.lock().epoch.saturating_add(1));
        if !store.exists(&newer)? {
            return Ok(());
        }
        let (store, kind) = (store.label().into(), StoreErrorKind::Taken);
        Err(StoreError { store, action: "write", object: newer, kind })
    }
}

fn is_taken(error: &StoreError) -> bool {
    matches!(error.kind, StoreErrorKind::Taken)
}

/// Whether what was copied is what the segment behind `next` was begun on. Of records that nobody was told of there may
/// be some.
fn leads_on(mirrored: &Mirrored, next: &Header) -> bool {
    mirrored.bindable.contains(&Mark { seq: next.seq.saturating_sub(1), chain: next.prev })
}
