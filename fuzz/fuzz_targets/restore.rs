//! A real store, changed by somebody without its key: an error, or a state that its writer left.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use lockstep_fuzz::Sample;
use lockstep_proto::verify;

// What is done, to which object, where, and with what.
fuzz_target!(|edits: Vec<(u8, u8, u16, &[u8])>| {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    let sample = SAMPLE.get_or_init(Sample::make);
    let names: Vec<_> = sample.store.0.keys().cloned().collect();
    let mut store = sample.store.clone();
    for (kind, object, at, bytes) in edits {
        let name = &names[usize::from(object) % names.len()];
        let mut content = store.0.get(name).map(|content| content.to_vec()).unwrap_or_default();
        let at = usize::from(at) % (content.len() + 1);
        match kind % 8 {
            0 => {
                let end = (at + bytes.len()).min(content.len());
                content.splice(at..end, bytes.iter().copied());
            }
            1 => content.truncate(at),
            2 => drop(content.splice(at..at, bytes.iter().copied())),
            3 => drop(content.drain(..at)),
            4 => {
                store.0.remove(name);
                continue;
            }
            5 => {
                // Another object in its place.
                content = sample.store.0[&names[at % names.len()]].to_vec();
            }
            6 => {
                // Under a name that differs in a digit, or is any name at all.
                let mut other = name.clone().into_bytes();
                let place = at % other.len();
                other.splice(place..(place + bytes.len()).min(name.len()), bytes.iter().copied());
                if let Ok(other) = String::from_utf8(other) {
                    store.0.insert(other, Arc::new(content));
                }
                continue;
            }
            _ => {
                if let Some(byte) = content.get_mut(at) {
                    *byte ^= bytes.first().copied().unwrap_or(1);
                }
            }
        }
        store.0.insert(name.clone(), Arc::new(content));
    }
    let _ = sample.restore(&store, true);
    let _ = verify::run(&store, &sample.keys, &mut |_| {});
});
