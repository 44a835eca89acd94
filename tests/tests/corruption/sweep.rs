//! Tries changes one by one, and judges what comes of each.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use lockstep_proto::error::{Class, Error};
use lockstep_proto::layout;

use crate::sample::Sample;

/// Exit codes of DESIGN §6.
pub fn exit_code(error: &Error) -> i32 {
    match error.class() {
        Class::Failed => 1,
        Class::Nothing => 10,
        Class::Fenced => 11,
        Class::WrongKey => 12,
        Class::Damaged => 13,
        Class::Version => 14,
    }
}

/// What came of one change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Verdict {
    Full,
    Prefix,
    Refused(i32),
}

/// Tries every change, on all cores, and counts the verdicts. A change is made by its number.
pub fn sweep<V: Ord + Hash + Send>(
    count: usize,
    judge: impl Fn(usize) -> Result<V, String> + Sync,
) -> BTreeMap<V, usize> {
    let next = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let tallies = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores)
            .map(|_| {
                scope.spawn(|| {
                    let mut tally: HashMap<V, usize> = HashMap::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return Ok(tally);
                        }
                        let verdict = catch_unwind(AssertUnwindSafe(|| judge(number)))
                            .unwrap_or_else(|_| Err(format!("change {number} panicked")))?;
                        *tally.entry(verdict).or_default() += 1;
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    let mut all = BTreeMap::new();
    for tally in tallies {
        for (verdict, count) in tally.unwrap_or_else(|wrong: String| panic!("{wrong}")) {
            *all.entry(verdict).or_default() += count;
        }
    }
    all
}

/// A refusal must name the object that was changed, or what depends on it.
pub fn refused(error: &Error, object: &str) -> Result<Verdict, String> {
    let text = error.to_string();
    let named = text.contains(object) || text.contains("seq ") || object == layout::MARKER;
    match (named, exit_code(error)) {
        (true, code @ (10 | 12 | 13 | 14)) => Ok(Verdict::Refused(code)),
        (_, code) => Err(format!("refused with code {code}: {text}")),
    }
}

/// What `restore` reads: the marker and the newest generation, no claims and no key slots.
pub fn read_by_restore(sample: &Sample) -> Vec<(String, usize)> {
    let newest = format!("/{:08x}/", sample.full.0);
    let mut objects = log_objects(sample);
    objects.retain(|(name, _)| name.contains(&newest));
    objects.push((layout::MARKER.to_owned(), sample.store.0[layout::MARKER].len()));
    objects
}

/// Segments and snapshots of all generations.
pub fn log_objects(sample: &Sample) -> Vec<(String, usize)> {
    let names =
        sample.store.0.iter().filter(|(name, _)| {
            name.starts_with(layout::LOG) || name.starts_with(layout::SNAPSHOTS)
        });
    names.map(|(name, bytes)| (name.clone(), bytes.len())).collect()
}

/// The object and the offset of a byte of all objects.
pub fn locate(objects: &[(String, usize)], mut at: usize) -> (&str, usize) {
    for (name, len) in objects {
        if at < *len {
            return (name, at);
        }
        at -= len;
    }
    unreachable!("beyond the last object")
}
