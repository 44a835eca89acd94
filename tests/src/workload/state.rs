//! What the generator knows of the rows that are there.

use std::collections::VecDeque;

use fastrand::Rng;

/// An open channel.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    pub id: u64,
    pub scid: u64,
    pub commitment: u64,
    pub htlcs: u64,
    pub msat: u64,
    /// Changes a little with every commitment, as a real one does.
    pub transaction: Vec<u8>,
    pub points: [String; 4],
    pub per_commit: String,
    /// Places of the shachain that have a row.
    pub known: u64,
}

/// An HTLC with a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Htlc {
    pub id: u64,
    pub channel: u64,
    pub hstate: u8,
}

/// Counters and live rows.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub channels: Vec<Channel>,
    pub htlcs: VecDeque<Htlc>,
    pub invoices: VecDeque<u64>,
    pub unpaid: VecDeque<u64>,
    pub payments: VecDeque<u64>,
    pub offers: VecDeque<String>,
    pub forwards: VecDeque<(u64, u64)>,
    pub datastore: VecDeque<String>,
    pub blocks: VecDeque<u64>,
    pub last_block_hash: String,
    pub outputs: VecDeque<(String, u64)>,
    pub moves: VecDeque<u64>,
    pub side_tables: VecDeque<u64>,
    pub payment_columns: u64,
    pub clock: u64,
    counters: [u64; COUNTERS],
}

const COUNTERS: usize = 8;

/// What is numbered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counter {
    Channel,
    Htlc,
    Invoice,
    PayIndex,
    Payment,
    Move,
    UpdatedIndex,
    SideTable,
}

impl State {
    /// The next number, from 1.
    pub fn next(&mut self, counter: Counter) -> u64 {
        let slot = &mut self.counters[counter as usize];
        *slot += 1;
        *slot
    }

    /// A time that goes on with every use.
    pub fn now(&mut self, rng: &mut Rng) -> u64 {
        const START: u64 = 1_795_196_000;
        self.clock += rng.u64(0..3);
        START + self.clock
    }

    /// Any channel; there is always one.
    pub fn any_channel(&mut self, rng: &mut Rng) -> &mut Channel {
        let index = rng.usize(..self.channels.len());
        &mut self.channels[index]
    }
}

/// Any element.
pub(super) fn any_of<'a, T>(rng: &mut Rng, from: &'a VecDeque<T>) -> Option<&'a T> {
    if from.is_empty() { None } else { from.get(rng.usize(..from.len())) }
}

/// The oldest elements beyond a bound, taken out.
pub(super) fn beyond<T>(from: &mut VecDeque<T>, kept_max: usize) -> Vec<T> {
    let excess = from.len().saturating_sub(kept_max);
    from.drain(..excess).collect()
}

/// Numbers as the inside of `IN (…)`.
pub(super) fn list(numbers: &[u64]) -> String {
    let texts: Vec<String> = numbers.iter().map(u64::to_string).collect();
    texts.join(", ")
}
