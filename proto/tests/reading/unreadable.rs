//! The newest of several objects counts: where it cannot be read, an older one is not taken in its place; where it went
//! while it was looked for, the one before it is the newest.

use lockstep_proto::companion::FileSet;
use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::heartbeat::Heartbeat;
use lockstep_proto::layout;
use lockstep_proto::seal::{KeyRing, StoreId};

use crate::sim::SimStore;

fn two_of_each() -> (SimStore, KeyRing) {
    let (store, keys) = (SimStore::default(), KeyRing::generate(StoreId([1; 16])).unwrap());
    for epoch in [3, 4] {
        let time = epoch.into();
        let set = FileSet { time, include: Vec::new(), include_secret: false, files: Vec::new() };
        let at = (epoch, 0);
        FileSet::store(&store, at, &set.seal(&keys, at).unwrap()).unwrap();
        let by = Claimant::this_process("w/1", "node", "d", time).unwrap();
        Heartbeat { time, interval_s: 300, by }.beat(&store, &keys, epoch).unwrap();
    }
    (store, keys)
}

/// The times of the newest set of files and the newest heartbeat.
fn newest(store: &SimStore, keys: &KeyRing) -> (Result<u64, Error>, Result<u64, Error>) {
    let files = FileSet::newest(store, keys).map(|found| found.unwrap().time);
    (files, Heartbeat::newest(store, keys).map(|found| found.unwrap().1.time))
}

#[test]
fn nothing_older_is_taken_where_the_newest_cannot_be_read() {
    let (store, keys) = two_of_each();
    let (files, heartbeat) = newest(&store, &keys);
    assert_eq!((files.unwrap(), heartbeat.unwrap()), (4, 4));
    store.0.lock().unwrap().unreadable = [layout::files(4, 0), layout::heartbeat(4)].into();
    let (files, heartbeat) = newest(&store, &keys);
    assert!(matches!(files, Err(Error::Store(_))), "{files:?}");
    assert!(matches!(heartbeat, Err(Error::Store(_))), "{heartbeat:?}");
}

#[test]
fn what_goes_after_it_was_listed_is_not_the_newest() {
    let (store, keys) = two_of_each();
    store.0.lock().unwrap().gone = [layout::files(4, 0), layout::heartbeat(4)].into();
    let (files, heartbeat) = newest(&store, &keys);
    assert_eq!((files.unwrap(), heartbeat.unwrap()), (3, 3));
}
