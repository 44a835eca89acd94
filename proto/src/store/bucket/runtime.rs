//! From the blocking world to the asynchronous one, and back.

use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::Receiver;

use super::client::Client;
use crate::store::{StoreError, StoreErrorKind};

/// Threads that requests are made on; whoever waits for one does so on its own.
const THREADS: usize = 2;

/// The threads of all buckets. They are never ended: a runtime must not be dropped where another one runs.
fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(THREADS).thread_name("bucket").enable_all().build().ok()
        })
        .as_ref()
        .ok_or_else(|| io::Error::other("no thread to make requests on"))
}

/// Waits for a future that runs on threads of its own, from wherever that is done.
pub fn wait<T: Send + 'static>(
    client: &Client,
    action: &'static str,
    object: &str,
    future: impl Future<Output = Result<T, StoreErrorKind>> + Send + 'static,
) -> Result<T, StoreError> {
    let failed = |kind| client.error(action, object, kind);
    let (sender, result) = sync_channel(1);
    let runtime = runtime().map_err(|error| failed(error.into()))?;
    runtime.spawn(async move {
        // Nobody listens any more only where the process ends.
        let _ = sender.send(future.await);
    });
    result
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("a request ended without a result").into()))
        .map_err(failed)
}

/// Starts what nobody waits for.
pub fn start(future: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = runtime() {
        runtime.spawn(future);
    }
}

/// An object that is read piece by piece.
pub struct Reader {
    pieces: Receiver<Result<Bytes, io::Error>>,
    piece: Bytes,
}

impl Reader {
    /// Reads what `pieces` gives.
    pub fn new(pieces: Receiver<Result<Bytes, io::Error>>) -> Self {
        Self { pieces, piece: Bytes::new() }
    }
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}
