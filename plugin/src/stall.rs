//! While a call is open lightningd serves nothing else, and a hung mount cannot be interrupted. This
//! thread watches the hook's: it says in the node's log what it waits for, and answers in its place when
//! the time is up.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::{Level, Output, refusal};

/// How often the thread looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often it says that it is still waiting.
const NOTICE: Duration = Duration::from_secs(10);
/// The hook gives up by itself at the time-out; only where it hangs in the operating system does it need
/// to be answered for.
const GRACE: Duration = Duration::from_secs(3);

/// Watches for calls that take too long.
pub struct Watchdog {
    call: Arc<Shared>,
}

struct Shared {
    open: Mutex<Option<OpenCall>>,
    /// What is waited for.
    label: Mutex<String>,
}

struct OpenCall {
    id: String,
    since: Instant,
    notices: u32,
}

impl Watchdog {
    /// Starts the thread: it is `label` that calls wait for, and no longer than `timeout`.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn start(output: Arc<Output>, label: String, timeout: Duration) -> std::io::Result<Self> {
        let call = Arc::new(Shared { open: Mutex::default(), label: Mutex::new(label) });
        let shared = call.clone();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || shared.watch(&output, timeout + GRACE))?;
        Ok(Self { call })
    }

    /// From here on it is `label` that calls wait for.
    pub fn waits_for(&self, label: String) {
        *self.call.label.lock().unwrap_or_else(PoisonError::into_inner) = label;
    }

    /// A call begins.
    pub fn begin(&self, id: &str) {
        let mut open = self.call.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = Some(OpenCall { id: id.into(), since: Instant::now(), notices: 0 });
    }

    /// The call is over. False where it has been answered already.
    pub fn end(&self) -> bool {
        let mut open = self.call.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.take().is_some()
    }

    /// The call takes long, but goes on.
    pub fn progress(&self) {
        let mut open = self.call.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(call) = open.as_mut() {
            (call.since, call.notices) = (Instant::now(), 0);
        }
    }
}

impl Shared {
    fn watch(&self, output: &Output, timeout: Duration) {
        loop {
            // Looking twice a second costs less than waking a thread for each call.
            std::thread::sleep(INTERVAL);
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(call) = open.as_mut() else { continue };
            let waited = call.since.elapsed();
            let label = self.label.lock().unwrap_or_else(PoisonError::into_inner);
            if waited >= timeout {
                let reason = format!(
                    "'{label}' has not answered for {} s; the transaction was not committed. hint: check \
                     the disk or network behind it, then start lightningd again",
                    waited.as_secs()
                );
                output.log(Level::Broken, &reason);
                output.send(&refusal(&call.id, &reason));
                // Still holding the call: the hook can neither answer it nor go on. Its thread may hang
                // in the operating system for ever.
                std::process::exit(1);
            }
            if waited >= NOTICE * (call.notices + 1) {
                call.notices += 1;
                let line = format!(
                    "waiting for '{label}' for {} s; lightningd stops at {} s",
                    waited.as_secs(),
                    timeout.as_secs()
                );
                output.log(Level::Unusual, &line);
            }
        }
    }
}
