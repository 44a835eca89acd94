//! Notes in the network directory how far the log has come, beside the hook and long after it: a destination that
//! shows an older state later is found out by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lockstep_proto::log::LogEnd;
use lockstep_proto::seal::StoreId;
use lockstep_proto::store::Store;
use lockstep_proto::version::DataVersion;
use lockstep_proto::witness::{self, WITNESS_FILE, Witness};

use crate::clock::now;
use crate::status::SharedStatus;
use crate::wire::{Level, Output};

/// How often the thread looks whether something is due.
const LOOK: Duration = Duration::from_millis(500);
/// How often it notes what has changed: a sync of the disk that lightningd writes to.
const INTERVAL: Duration = Duration::from_secs(60);

/// What is noted, and where.
pub struct Noting {
    /// The network directory.
    pub directory: PathBuf,
    /// The log.
    pub store_id: StoreId,
    /// Tells how far it is.
    pub status: SharedStatus,
    /// For what goes wrong.
    pub output: Arc<Output>,
}

impl Noting {
    /// Starts the thread, which ends with the log.
    pub fn start(self) {
        let output = self.output.clone();
        let started = thread::Builder::new().name("witness".into()).spawn(move || self.run());
        if let Err(error) = started {
            let line = format!("no witness: failed to start a thread: {error}");
            output.log(Level::Unusual, &line);
        }
    }

    fn run(&self) {
        let (mut noted, mut last) = (0, None::<Instant>);
        loop {
            let (closed, seq, data_version) = {
                let status = self.status.lock();
                (status.closed, status.log.seq, status.log.data_version)
            };
            if closed {
                return;
            }
            if seq != noted && last.is_none_or(|last| last.elapsed() >= INTERVAL) {
                (noted, last) = (seq, Some(Instant::now()));
                let data_version = data_version.map(DataVersion);
                let witness = Witness::new(self.store_id, seq, data_version, now());
                if let Err(error) = witness.write(&self.directory) {
                    self.output.log(Level::Unusual, &error.explain());
                }
            }
            thread::sleep(LOOK);
        }
    }
}

/// Says where the log is shorter than it was. The database is then ahead of it, and a snapshot makes up for what is
/// gone; but somebody should know.
pub fn look_for_rollback(
    directory: &Path,
    store_id: StoreId,
    store: &dyn Store,
    end: &LogEnd,
    output: &Output,
) {
    let known = match Witness::read(directory, store_id) {
        Ok(known) => known.map_or(0, |witness| witness.seq),
        Err(error) => return output.log(Level::Unusual, &error.explain()),
    };
    let found = end.position.seq;
    if let Err(error) = witness::refuse_older(store.label(), found, known, WITNESS_FILE) {
        output.log(Level::Unusual, &error.explain());
    }
}
