//! cln-lockstep, with its backup in a folder.

use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_benches::process::{self, Ran};
use lockstep_benches::{Plugin, stored_bytes};
use lockstep_tests::Batch;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries;
use serde_json::json;

use crate::{Peer, timed};

/// The real programs.
pub struct Ours {
    backed: Backed,
    plugin: Plugin,
    /// Before the first call.
    cpu: Duration,
}

impl Ours {
    /// A fresh backup, and the plugin started.
    pub fn new() -> Self {
        let backed = Backed::fresh();
        // It is done when it is asked for.
        backed.set_in_lock("compaction", json!({"enabled": false}));
        let directory = backed.network_dir();
        let mut plugin = Plugin::start(&binaries::plugin(), &directory).expect("it starts");
        plugin.init(&directory).expect("the plugin takes init");
        let cpu = plugin.cpu();
        Self { backed, plugin, cpu }
    }
}

impl Peer for Ours {
    fn name(&self) -> String {
        "**cln-lockstep**".into()
    }

    fn write(&mut self, _call: &Batch, message: &[u8]) {
        self.plugin.call(message).expect("the plugin acknowledges");
    }

    fn cpu(&self) -> Duration {
        self.plugin.cpu().saturating_sub(self.cpu)
    }

    fn stored(&self) -> u64 {
        stored_bytes(&self.backed.store())
    }

    fn restore(&self, to: &Path) -> Option<Ran> {
        Some(process::run(&mut self.backed.restore(to).command()))
    }

    fn compact(&mut self, next: &mut dyn FnMut() -> Vec<u8>) -> Option<(Duration, Duration)> {
        let began = Instant::now();
        let asked = self.plugin.ask("backup-compact", &json!({})).expect("it starts");
        let mut longest = Duration::ZERO;
        loop {
            for _ in 0..20 {
                longest = longest.max(timed(&mut self.plugin, &next()));
            }
            let status = self.plugin.ask("backup-status", &json!({})).expect("a status");
            let compaction = &status["compaction"];
            assert!(compaction["error"].is_null(), "{compaction}");
            if compaction["last"]["id"] == asked["id"] {
                return Some((longest, began.elapsed()));
            }
        }
    }
}
