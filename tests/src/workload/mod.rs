//! What the node writes: generated from a seed, or recorded from a real node.
//!
//! The generated [`Workload`] resembles lightningd's: the same tables, shapes
//! and proportions, with values chosen to break things. Every statement
//! executes; the database stays small however long it runs, unless told to
//! grow.

mod channel;
mod migration;
mod oddities;
mod schema;
mod state;
mod trace;
mod values;
mod wallet;

use std::collections::VecDeque;

use fastrand::Rng;

pub use trace::{Trace, Traces};

use crate::step::Step;
use state::State;

/// How a workload is generated. The same configuration gives the same steps.
#[derive(Clone, Debug)]
pub struct WorkloadConfig {
    /// The seed.
    pub seed: u64,
    /// The version of the database before its first transaction.
    pub start_version: u32,
    /// Rows that most tables keep at most.
    pub rows_max: usize,
    /// Bytes of a channel's stored transaction; most of a batch's size.
    pub transaction_bytes: usize,
    /// A blob of 2 MB is written once in so many steps; 0 is never.
    pub big_blob_every: u32,
    /// A migration is made once in so many steps; 0 is never.
    pub migration_every: u32,
}

impl WorkloadConfig {
    /// Realistic sizes, a small database.
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            start_version: 0,
            rows_max: 200,
            transaction_bytes: 500,
            big_blob_every: 5_000,
            migration_every: 400,
        }
    }

    /// Small batches, for runs that need many.
    pub fn lean(mut self) -> Self {
        self.transaction_bytes = 24;
        self.big_blob_every = 0;
        self
    }

    /// A database that grows with every batch.
    pub fn growing(mut self) -> Self {
        self.rows_max = usize::MAX;
        self
    }

    /// Starts at another version, such as one shortly before 2^32.
    pub fn start_version(mut self, version: u32) -> Self {
        self.start_version = version;
        self
    }
}

/// An endless stream of steps, beginning with a fresh node's migrations.
///
/// Its statements fit the database that executed all earlier ones. Where a
/// step may not come through, use [`Workload::propose`] and
/// [`Workload::abandon`]; a clone keeps the state that fits a copy of the
/// database.
#[derive(Clone, Debug)]
pub struct Workload {
    config: WorkloadConfig,
    rng: Rng,
    state: State,
    queue: VecDeque<Step>,
    /// Between `PRAGMA foreign_keys = OFF` and `= ON`.
    rebuilding: bool,
    before: Option<Box<Workload>>,
    abandoned: u64,
}

impl Workload {
    /// A workload with everything in it.
    pub fn seeded(seed: u64) -> Self {
        Self::new(WorkloadConfig::seeded(seed))
    }

    /// A workload by configuration.
    pub fn new(config: WorkloadConfig) -> Self {
        let mut rng = Rng::with_seed(config.seed);
        let mut state = State::default();
        let queue = migration::fresh_node(&mut rng, &mut state, &config).into();
        Self { config, rng, state, queue, rebuilding: false, before: None, abandoned: 0 }
    }

    /// The steps of a fresh node that are still to come: its migrations and
    /// first rows, up to where the endless part begins.
    pub fn migrations_left(&self) -> usize {
        self.queue.len()
    }

    /// The next step, which may yet be abandoned.
    pub fn propose(&mut self) -> Step {
        self.before = None;
        self.before = Some(Box::new(self.clone()));
        self.advance()
    }

    /// Goes back to before the last proposed step, which never was committed.
    /// The next one is another, as a node that lost a batch does other things
    /// next (only a migration is tried again as it was).
    pub fn abandon(&mut self) {
        let Some(before) = self.before.take() else {
            return;
        };
        let abandoned = self.abandoned + 1;
        *self = *before;
        self.abandoned = abandoned;
        self.rng = Rng::with_seed(self.rng.u64(..) ^ abandoned.rotate_left(32));
    }

    /// Tells that the node was restarted. A migration that was interrupted
    /// inside its window begins again with its `PRAGMA`, which then is the
    /// first call of the session.
    pub fn restarted(&mut self) {
        if !self.rebuilding {
            return;
        }
        self.rebuilding = false;
        if self.queue.front().is_some_and(Step::is_pragma) {
            self.queue.pop_front(); // the rebuild was committed
        } else {
            self.queue.push_front(Step::foreign_keys(false));
        }
    }

    fn advance(&mut self) -> Step {
        let step = match self.queue.pop_front() {
            Some(step) => step,
            None => self.generate(),
        };
        if let Step::Pragma(pragma) = &step {
            self.rebuilding = pragma.contains("OFF");
        }
        step
    }

    fn generate(&mut self) -> Step {
        let (rng, state, config) = (&mut self.rng, &mut self.state, &self.config);
        let one_in = |rng: &mut Rng, every: u32| every > 0 && rng.u32(..every) == 0;
        if one_in(rng, config.migration_every) {
            self.queue.extend(migration::any(rng, state));
            return self.queue.pop_front().expect("a migration has steps");
        }
        if one_in(rng, config.big_blob_every) {
            return Step::Transaction(wallet::big_blob(rng));
        }
        let rows_max = config.rows_max;
        Step::Transaction(match rng.u8(..100) {
            0..34 => channel::commitment(rng, state, config.transaction_bytes),
            34..44 => channel::anchors(rng, state),
            44..50 => channel::forget_penalty(rng, state),
            50..58 => channel::add_htlc(rng, state, rows_max),
            58..65 => channel::resolve_htlc(rng, state, rows_max),
            65..71 => wallet::invoice(rng, state, rows_max),
            71..75 => wallet::invoice_paid(rng, state),
            75..80 => wallet::payment(rng, state, rows_max),
            80..84 => wallet::payment_settled(rng, state),
            84..89 => wallet::datastore(rng, state, rows_max),
            89..92 => wallet::block(rng, state),
            92..94 => wallet::forward(rng, state, rows_max),
            94..95 => channel::reopen(rng, state, config.transaction_bytes),
            _ => oddities::any(rng),
        })
    }
}

impl Iterator for Workload {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.before = None;
        Some(self.advance())
    }
}

#[cfg(test)]
mod tests;
