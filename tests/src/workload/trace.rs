//! The recorded `db_write` calls of a real node.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::step::Batch;

/// Overrides where the traces are.
const TRACES_VARIABLE: &str = "LOCKSTEP_TRACES";

/// A recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The first 2,500 calls of a node, from an empty directory.
    NodeStart,
    /// All 28,150 calls of its first session.
    Node,
    /// The 45 calls of its next session.
    NodeRestart,
}

impl Trace {
    /// The file's name.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::NodeStart => "node-start.jsonl.zst",
            Self::Node => "node.jsonl.zst",
            Self::NodeRestart => "node-restart.jsonl.zst",
        }
    }
}

/// The folder of recordings.
#[derive(Clone, Debug)]
pub struct Traces {
    folder: PathBuf,
}

impl Traces {
    /// The folder that `LOCKSTEP_TRACES` names, or `../shared/traces` beside
    /// the workspace. `None` when it is not there: a test then says so, in one
    /// line, and uses a generated workload.
    pub fn locate() -> Option<Self> {
        let folder = match std::env::var_os(TRACES_VARIABLE) {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces"),
        };
        let complete = [Trace::NodeStart, Trace::Node, Trace::NodeRestart]
            .iter()
            .all(|trace| folder.join(trace.file_name()).is_file());
        complete.then_some(Self { folder })
    }

    /// [`Traces::locate`], and a visible line on stderr when there are none.
    pub fn locate_or_say(test: &str) -> Option<Self> {
        let traces = Self::locate();
        if traces.is_none() {
            eprintln!(
                "{test}: no recorded traces here (set {TRACES_VARIABLE}), using a generated workload"
            );
        }
        traces
    }

    /// The calls of a recording, one by one.
    pub fn read(
        &self,
        trace: Trace,
    ) -> io::Result<impl Iterator<Item = io::Result<Batch>> + use<>> {
        let file = File::open(self.folder.join(trace.file_name()))?;
        let reader = BufReader::new(zstd::Decoder::new(file)?);
        Ok(reader.lines().map(|line| serde_json::from_str(&line?).map_err(io::Error::from)))
    }
}
