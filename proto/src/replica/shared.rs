//! What the writer and the destinations' threads know of each other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::feed::Feed;
use super::ground::{Bell, Ground, lock};
use super::policy::Mode;
use crate::config::NamedDestination;
use crate::store::Store;

/// What a thread is asked to do besides following the [`Feed`]; `None`: its destination is not open.
pub(super) type Task = Box<dyn FnOnce(Option<&Arc<dyn Store>>) + Send>;

/// How a destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has everything, or is writing the newest.
    Current,
    /// It lacks something, and is being brought up as soon as it answers.
    Behind,
    /// It holds another history: nothing is written to it.
    Apart,
}

/// What is known of a destination.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// Whether an append waits for it.
    pub mode: Mode,
    /// How it is.
    pub standing: Standing,
    /// Records, and a few steps more, that it lacks of what this process wrote.
    pub lacks: u64,
    /// What it last failed with, with a hint; `None` once it is current again.
    pub error: Option<String>,
}

/// A destination, as its thread left it.
pub(super) struct Replica {
    /// Where it is.
    pub destination: NamedDestination,
    pub report: Report,
    /// Its newest handle, for reading.
    pub store: Option<Arc<dyn Store>>,
    /// It has everything that was there before the feed.
    pub whole: bool,
    /// It had, until it was opened anew, and is to be compared with another place.
    pub doubted: bool,
    /// Steps of the feed that it has done.
    pub done: u64,
    /// The number of its next record is taken by one that nobody was told of.
    pub taken: bool,
    /// It failed with what was asked of it besides: what is open of it is not to be trusted.
    pub failed: bool,
    /// So often it was found not to have everything.
    pub found_lacking: u64,
    /// The log has gone on without it.
    pub removed: bool,
    pub tasks: VecDeque<Task>,
}

impl Replica {
    /// True where the step that makes `done` of them is durable there.
    pub fn has(&self, done: u64) -> bool {
        self.whole && self.done >= done
    }

    /// It is known whether it has everything that was there before the feed.
    pub fn set_whole(&mut self, whole: bool) {
        (self.whole, self.doubted) = (whole && !self.removed, false);
        self.found_lacking += u64::from(!whole);
    }
}

#[derive(Default)]
pub(super) struct State {
    pub feed: Feed,
    pub replicas: Vec<Replica>,
    /// The newest epoch that the writer has claimed, or is about to.
    pub epoch: u32,
    /// Behind that claim it was looked where the log ends.
    pub looked: bool,
    /// A newer one was seen somewhere.
    pub fenced: bool,
    pub closing: bool,
    /// So many of the places that count must have a record.
    pub to_acknowledge: usize,
}

impl State {
    /// True where the policy has the step that makes `done` of them.
    pub fn is_acknowledged(&self, done: u64) -> bool {
        let counting = self.replicas.iter().filter(|replica| replica.report.mode.is_sync());
        counting.filter(|replica| replica.has(done)).count() >= self.to_acknowledge
    }

    /// A writer of this epoch begins. Its claim is in the way of what an older one left undone somewhere, so that nobody
    /// does it any more: behind the claim it is looked where each log ends, and who lacks something is brought up.
    pub fn begin_epoch(&mut self, epoch: u32) {
        if epoch <= self.epoch {
            return;
        }
        (self.epoch, self.looked) = (epoch, false);
        self.feed.clear();
        let steps = self.feed.steps();
        for replica in &mut self.replicas {
            (replica.done, replica.taken) = (steps, false);
        }
    }

    /// How the place `index` is, now.
    pub fn report(&self, index: usize) -> Report {
        let replica = &self.replicas[index];
        let lacks = self.feed.steps().saturating_sub(replica.done);
        Report { lacks, ..replica.report.clone() }
    }

    /// The place `index` lacks something of what is before the feed, and it is known what that is.
    pub fn is_lacking(&self, index: usize) -> bool {
        let replica = &self.replicas[index];
        let is_known = self.looked || self.feed.oldest().is_some();
        !replica.whole && !replica.removed && is_known
    }

    /// A place that has everything, to copy from to the place `index`.
    pub fn source(&self, index: usize) -> Option<usize> {
        let has_all = |(other, replica): &(usize, &Replica)| {
            let current = replica.report.standing == Standing::Current;
            *other != index && replica.whole && current && replica.store.is_some()
        };
        self.replicas.iter().enumerate().find(has_all).map(|(other, _)| other)
    }

    /// Forgets what nobody needs.
    pub fn forget(&mut self) {
        let going = self.replicas.iter().filter(|replica| replica.whole);
        let slowest = going.map(|replica| replica.done).min().unwrap_or(u64::MAX);
        self.feed.forget(slowest);
    }
}

/// The state, and who waits for it.
pub(super) struct Shared {
    pub ground: Ground,
    state: Mutex<State>,
    /// A thread has done something.
    pub done: Bell,
    /// There is something to do for a thread.
    pub work: Bell,
}

impl Shared {
    /// With nothing in it.
    pub fn new(ground: Ground) -> Self {
        let (done, work) = (ground.bell(), ground.bell());
        Self { ground, state: Mutex::default(), done, work }
    }

    /// The state. Held briefly.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits for one of its bells, with the state let go.
    pub fn wait<'a>(
        &'a self,
        bell: &Bell,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        bell.wait(&self.state, state, until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::SegmentName;

    #[test]
    fn what_an_older_writer_left_undone_is_not_done_any_more() {
        let mut state = State::default();
        let name = SegmentName { generation: 1, epoch: 1, index: 0, first_seq: 1 };
        state.feed.begin(name, b"header");
        state.feed.record(name, b"open").unwrap();
        for (done, taken) in [(2, false), (1, true)] {
            let place = NamedDestination::new("place", "/place".parse().unwrap());
            let replica = Replica::new(place, Standing::Current);
            state.replicas.push(Replica { done, taken, whole: true, ..replica });
        }
        state.begin_epoch(2);
        let of_each = state.replicas.iter().map(|of| (of.done, of.taken));
        assert_eq!(of_each.collect::<Vec<_>>(), [(2, false), (2, false)]);
        assert_eq!((state.epoch, state.feed.oldest(), state.report(1).lacks), (2, None, 0));
        // The same claim, tried again.
        state.feed.begin(SegmentName { epoch: 2, ..name }, b"header");
        state.begin_epoch(2);
        assert!(state.feed.oldest().is_some());
    }

    #[test]
    fn what_everybody_has_is_forgotten_and_who_is_lost_holds_nothing_up() {
        let mut state = State::default();
        for index in 0..3 {
            let name = SegmentName { generation: 1, epoch: 1, index, first_seq: 1 };
            state.feed.begin(name, b"header");
            state.feed.end(name);
        }
        for (done, whole) in [(6, true), (3, true), (0, false)] {
            let place = NamedDestination::new("place", "/place".parse().unwrap());
            let replica = Replica::new(place, Standing::Current);
            state.replicas.push(Replica { done, whole, ..replica });
        }
        state.forget();
        assert_eq!(state.feed.oldest().map(|(name, first)| (name.index, first)), Some((1, 2)));
    }
}
