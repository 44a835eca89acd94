//! What is tried, one a run: each call, at each of some places of a run, in each of some ways.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use lockstep_tests::backed::{ci_or_long, long_seconds};
use lockstep_tests::strace::Fault;

use crate::scene::calls;

/// One of them.
#[derive(Clone, Copy)]
pub struct Point {
    pub call: &'static str,
    pub at: u32,
    pub fault: Fault,
    turn: usize,
}

/// Those that are left. In order; or, where `LOCKSTEP_SECONDS` says for how long the long form goes on, of each call one
/// after another, now its first place that is left and now any.
pub struct Points {
    left: VecDeque<Vec<Point>>,
    /// The first place that a run did not come to: by call, and in order by turn.
    ends: BTreeMap<(&'static str, usize), u32>,
    until: Option<Instant>,
    tried: u32,
    rng: Rng,
}

impl Points {
    /// In the short form the faults take turns.
    pub fn new(rng: &mut Rng, faults: &[Fault], places: fn(&mut Rng) -> Vec<u32>) -> Self {
        let mut left = VecDeque::new();
        for call in calls() {
            let mut of_call = Vec::new();
            for turn in 0..ci_or_long(1, faults.len()) {
                let fault = |at: u32| faults[(at as usize + turn) % faults.len()];
                let all = places(rng).into_iter();
                of_call.extend(all.map(|at| Point { call, at, fault: fault(at), turn }));
            }
            left.push_back(of_call);
        }
        let is_timed = ci_or_long(false, std::env::var_os("LOCKSTEP_SECONDS").is_some());
        let until = is_timed.then(|| Instant::now() + Duration::from_secs(long_seconds(0)));
        Self { left, ends: BTreeMap::new(), until, tried: 0, rng: rng.fork() }
    }

    /// A run has come to its end before this.
    pub fn not_reached(&mut self, point: Point) {
        let key = self.key(&point);
        let end = self.ends.entry(key).or_insert(point.at);
        *end = point.at.min(*end);
    }

    fn is_within(&self, point: &Point) -> bool {
        self.ends.get(&self.key(point)).is_none_or(|end| point.at < *end)
    }

    fn key(&self, point: &Point) -> (&'static str, usize) {
        (point.call, if self.until.is_some() { 0 } else { point.turn })
    }

    /// What is left of the next call, as far as runs came.
    fn next_call(&mut self) -> Option<Vec<Point>> {
        loop {
            let mut points = self.left.pop_front()?;
            points.retain(|point| self.is_within(point));
            if !points.is_empty() {
                return Some(points);
            }
        }
    }
}

impl Iterator for Points {
    type Item = Point;

    fn next(&mut self) -> Option<Point> {
        let mut points = self.next_call()?;
        let Some(until) = self.until else {
            let point = points.remove(0);
            self.left.push_front(points);
            return Some(point);
        };
        self.tried += 1;
        let first = (0..points.len()).min_by_key(|&index| points[index].at);
        let any = self.rng.usize(..points.len());
        let point = points.swap_remove(if self.tried.is_multiple_of(2) { any } else { first? });
        self.left.push_back(points);
        if Instant::now() < until {
            return Some(point);
        }
        let left: usize = self.left.iter().map(Vec::len).sum();
        println!("the time is over: {} were tried, {} are left", self.tried - 1, left + 1);
        None
    }
}
