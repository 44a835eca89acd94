//! Arbitrary bytes as lock file, marker, header, key slot: an error, or a value that can be used.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use lockstep_fuzz::Memory;
use lockstep_proto::config::LockFile;
use lockstep_proto::marker::Marker;
use lockstep_proto::seal::{Header, KeyRing};
use lockstep_proto::slots::{self, Unlock};
use lockstep_proto::store::Options;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(lock) = LockFile::decode(bytes, Path::new("backup.lock")) {
        let _ = lock.destinations(&Options::default());
        let _ = (lock.policy(), lock.known_destinations(), lock.stall_timeout());
    }
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode(), bytes[..128]);
    }
    if let Ok(keys) = KeyRing::decode(bytes) {
        let again = keys.encode().expect("encodes");
        assert_eq!(KeyRing::decode(&again).expect("decodes").store(), keys.store());
    }
    let mut store = Memory::default();
    store.0.insert("lockstep.json".into(), Arc::new(bytes.to_vec()));
    store.0.insert("keys/node.age".into(), Arc::new(bytes.to_vec()));
    let _ = Marker::read(&store);
    let _ = slots::open(&store, &Unlock::Node([7; 32].into()));
});
