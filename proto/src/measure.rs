//! How long a place takes to make a record durable.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::hex;
use crate::store::Store;

/// Bytes of each append: about what a transaction of lightningd comes to.
const BYTES: usize = 1024;

/// How appends are tried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One object grows, as in a folder.
    Append,
    /// One object each, as in a bucket.
    Create,
}

/// What appends took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Latency {
    /// `None` of none.
    fn of(mut took: Vec<Duration>) -> Option<Self> {
        took.sort();
        let at = |share: usize| {
            let count = (took.len() * share).div_ceil(100);
            took.get(count.checked_sub(1)?).copied()
        };
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)? })
    }
}

/// Makes `count` appends of 1 KiB durable, one after the other, and removes them again. `progress` is told after each.
///
/// # Errors
/// Where the place cannot be written to. What is left then has a name of no known form, and is ignored by every reader.
pub fn run(
    store: &dyn Store,
    kind: Kind,
    count: usize,
    progress: &mut dyn FnMut(),
) -> Result<Latency> {
    let token: [u8; 8] = crate::seal::random_token()?;
    let token = hex::encode(&token);
    let mut names = Vec::new();
    let took = match kind {
        Kind::Append => {
            // In no folder of its own: that would be left.
            names.push(format!("probe-{token}"));
            append(store, &names[0], count, progress)
        }
        Kind::Create => {
            names.extend((0..count).map(|number| format!("probe/{token}-{number}")));
            create(store, &names, progress)
        }
    };
    let removed = names.iter().try_for_each(|name| store.remove(name));
    let took = took?;
    removed?;
    Latency::of(took).ok_or_else(|| Error::Refused {
        what: "nothing to measure".into(),
        hint: "take at least one append.".into(),
    })
}

fn append(
    store: &dyn Store,
    name: &str,
    count: usize,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Duration>> {
    let bytes = [0xa5; BYTES];
    let mut object = store.create_append(name, &bytes)?;
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        object.append(&bytes)?;
        took.push(began.elapsed());
        progress();
    }
    Ok(took)
}

fn create(
    store: &dyn Store,
    names: &[String],
    progress: &mut dyn FnMut(),
) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(names.len());
    for name in names {
        let began = Instant::now();
        store.create(name, &[0xa5; BYTES])?;
        took.push(began.elapsed());
        progress();
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FileStore;

    #[test]
    fn both_ways_are_measured_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::create_root(folder.path()).unwrap();
        for kind in [Kind::Append, Kind::Create] {
            let mut count = 0;
            let latency = run(&store, kind, 20, &mut || count += 1).unwrap();
            assert_eq!(count, 20);
            assert!(Duration::ZERO < latency.p50, "{latency:?}");
            assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max, "{latency:?}");
            assert!(store.list_all("").unwrap().is_empty());
        }
    }

    #[test]
    fn so_many_of_100_took_no_longer() {
        let of = |count: u64| {
            let latency = Latency::of((1..=count).rev().map(Duration::from_millis).collect())?;
            Some([latency.p50, latency.p99, latency.max].map(|took| took.as_millis()))
        };
        assert_eq!(of(100), Some([50, 99, 100]));
        assert_eq!(of(1_000), Some([500, 990, 1_000]));
        assert_eq!(of(20), Some([10, 20, 20]), "19 are less than 99 of 100");
        assert_eq!(of(2), Some([1, 2, 2]));
        assert_eq!(of(0), None);
    }
}
