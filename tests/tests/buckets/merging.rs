//! While segments are put together nothing of them is out of sight.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lockstep_proto::layout::{self, SegmentName};
use lockstep_proto::seal::{Chain, Header, KeyId, ObjectKind, StoreId};
use lockstep_proto::store::{BucketStore, Options, Store};
use lockstep_tests::backed::ci_or_long;
use lockstep_tests::servers::{Fault, Proxy, moto};

const PATIENCE: Duration = Duration::from_secs(20);

/// Writes a segment of so many records and gives its name below `log/`, and its bytes.
fn write(store: &dyn Store, index: u32, first_seq: u64, records: u64) -> (String, Vec<u8>) {
    let name = SegmentName { generation: 1, epoch: 1, index, first_seq }.to_string();
    let header = Header {
        kind: ObjectKind::Segment,
        key: KeyId([1; 4]),
        store: StoreId([1; 16]),
        generation: 1,
        epoch: 1,
        seq: first_seq,
        index,
        prev: Chain::default(),
        nonce_prefix: Header::random_nonce_prefix().unwrap(),
    };
    let mut bytes = header.encode().to_vec();
    let mut append = store.create_append(&name, &bytes).unwrap();
    for number in 0..records {
        let frame = [number as u8 + 1; 50];
        append.append(&frame).unwrap();
        bytes.extend(frame);
    }
    append.finish().unwrap();
    (name.strip_prefix("log/").unwrap().to_owned(), bytes)
}

#[test]
fn a_segment_is_listed_and_read_whole_at_any_time() {
    let Some(server) = moto::shared() else { return };
    let proxy = Proxy::before(server);
    let mut requests = 0_u64;
    // What asks for several things is overtaken now and then.
    proxy.plan(move |_| {
        requests += 1;
        match requests % 5 {
            0 => Fault::Late(Duration::from_millis(requests % 40)),
            _ => Fault::Pass,
        }
    });
    let url = proxy.prefix("merging").parse().unwrap();
    let options = Options::from_vars(proxy.env.clone());
    let connect = || BucketStore::connect(&url, &options, PATIENCE).unwrap();
    let written: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::default();
    let (lock, over) =
        (|| written.lock().unwrap_or_else(PoisonError::into_inner), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (store, mut seq) = (connect(), 1);
            for index in 0..ci_or_long(60, 600) {
                let records = 1 + u64::from(index) % 5;
                let (name, bytes) = write(&store, index, seq, records);
                lock().insert(name, bytes);
                seq += records;
            }
            over.store(true, Ordering::SeqCst);
        });
        for reader in 0..2 {
            let (lock, connect, over) = (&lock, &connect, &over);
            scope.spawn(move || {
                let store = connect();
                while !over.load(Ordering::SeqCst) {
                    let expected = lock().clone();
                    let listed = store.list_all(layout::LOG).unwrap();
                    let folder = store.list(&layout::log_folder(1)).unwrap();
                    for (name, bytes) in &expected {
                        let all: Vec<_> = listed.iter().filter(|e| e.name == *name).collect();
                        assert_eq!(all.len(), 1, "{name}: {all:?}");
                        assert_eq!(all[0].size, bytes.len() as u64, "{name}");
                        assert!(folder.iter().any(|entry| name.ends_with(&entry.name)), "{name}");
                    }
                    if let Some((name, bytes)) = expected.last_key_value() {
                        assert!(store.read(&format!("log/{name}")).unwrap() == *bytes, "{name}");
                    }
                    if reader == 1 {
                        store.tidy().unwrap();
                    }
                }
            });
        }
    });
}
