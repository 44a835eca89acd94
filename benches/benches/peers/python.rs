//! The Python plugin `backup`, as it is and with a sync added.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_benches::Plugin;
use lockstep_benches::process::{self, Ran};
use lockstep_benches::python::PythonBackup;
use lockstep_benches::request;
use lockstep_tests::Batch;
use serde_json::json;

use crate::{Peer, timed};

/// The plugin, running.
pub struct Python {
    python: PythonBackup,
    synced: bool,
    file: PathBuf,
    plugin: Plugin,
    /// Before the first call.
    cpu: Duration,
}

impl Python {
    /// An empty backup, and the plugin started.
    pub fn new(python: &PythonBackup, directory: PathBuf, synced: bool) -> Self {
        let file = directory.join("backup.bkp");
        python.init(&directory, &file);
        let mut plugin = python.start(&directory, synced).expect("the Python plugin starts");
        plugin.init(&directory).expect("the plugin takes init");
        let cpu = plugin.cpu();
        Self { python: python.clone(), synced, file, plugin, cpu }
    }
}

impl Peer for Python {
    fn name(&self) -> String {
        let how = if self.synced { "a sync added" } else { "as it is: nothing is synced" };
        format!("the Python plugin, {how}")
    }

    fn write(&mut self, _call: &Batch, message: &[u8]) {
        self.plugin.call(message).expect("the plugin acknowledges");
    }

    fn cpu(&self) -> Duration {
        self.plugin.cpu().saturating_sub(self.cpu)
    }

    fn stored(&self) -> u64 {
        fs::metadata(&self.file).expect("its file").len()
    }

    fn restore(&self, to: &Path) -> Option<Ran> {
        Some(process::run(&mut self.python.restore(&self.file, to)))
    }

    fn compact(&mut self, next: &mut dyn FnMut() -> Vec<u8>) -> Option<(Duration, Duration)> {
        let began = Instant::now();
        self.plugin.send(&request("backup-compact", &json!({}))).expect("it reads");
        // Its answer comes before the call's: there is one thread.
        let message = next();
        self.plugin.send(&message).expect("it reads");
        let answer = self.plugin.next_answer().expect("an answer");
        let whole = began.elapsed();
        assert!(answer.contains("\"after\""), "no compaction: {answer}");
        let answer = self.plugin.next_answer().expect("an answer");
        assert!(answer.contains("continue"), "{answer}");
        let longest = began.elapsed();
        let later = timed(&mut self.plugin, &next());
        Some((longest.max(later), whole))
    }
}
