//! A copy of a database that is ahead of its log, begun before lightningd opens it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use lockstep_proto::capture::Capture;
use lockstep_proto::error::{Error, Result};

use crate::stall::Watchdog;

/// lightningd kills a plugin that takes a minute for `getmanifest`.
const BEFORE_MANIFEST: Duration = Duration::from_secs(45);

/// A copy that a thread makes from the start on.
pub struct EarlyCopy {
    result: Receiver<Result<Capture>>,
    pages: Arc<AtomicU64>,
}

impl EarlyCopy {
    /// Copies the database on a thread, and waits for it as long as `getmanifest` may take.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn begin(wallet: PathBuf, copy: PathBuf) -> Result<Self> {
        let (sender, result) = channel();
        let (done, wait) = channel();
        let pages = Arc::new(AtomicU64::new(0));
        let (count, source) = (pages.clone(), wallet.clone());
        std::thread::Builder::new()
            .name("copy".into())
            .spawn(move || {
                // Nobody listens any more only where the plugin is ending.
                let mut progress = |pages| count.store(pages, Ordering::Relaxed);
                let _ = sender.send(Capture::take(&source, copy, &mut progress));
                let _ = done.send(());
            })
            .map_err(Error::file("start a thread for", &wallet))?;
        let _ = wait.recv_timeout(BEFORE_MANIFEST);
        Ok(Self { result, pages })
    }

    /// Waits for it, for as long as it gets on.
    pub fn wait(self, watchdog: &Watchdog) -> Option<Result<Capture>> {
        let mut seen = 0;
        loop {
            match self.result.recv_timeout(Duration::from_secs(1)) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    let pages = self.pages.load(Ordering::Relaxed);
                    if pages != seen {
                        seen = pages;
                        watchdog.progress();
                    }
                }
            }
        }
    }
}
