//! Arbitrary bytes as a file of the Python plugin: a database or an error, and the file is as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep_fuzz::scratch;
use lockstep_python_backup::{Extent, Scan, replay};

fuzz_target!(|records: &[u8]| {
    let folder = scratch();
    let (old, new) = (folder.path().join("old"), folder.path().join("new.sqlite3"));
    // The header is 512 bytes, of which 476 are zeros: no fuzzer finds that.
    let (fields, records) = records.split_at(records.len().min(36));
    let mut bytes = fields.to_vec();
    bytes.resize(512, 0);
    bytes.extend_from_slice(records);
    std::fs::write(&old, &bytes).expect("a file");
    if let Ok(scan) = Scan::read(&old, &mut |_| {}) {
        for extent in [Extent::Whole, Extent::BeforeNewest] {
            let _ = replay::run(&scan, extent, true, &new, &mut |_| {});
        }
    }
    assert_eq!(std::fs::read(&old).expect("it is there"), bytes);
});
