//! From the blocking world to the asynchronous one, and back.

use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::Receiver;
use tokio::task::yield_now;

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

/// A connection of one writer's own. The thread that waits for an answer drives it, so that nobody has to be woken up
/// in between: on a busy machine that costs more than the request does.
pub struct Lane {
    client: Client,
    /// Until it is dropped.
    runtime: Option<Runtime>,
}

impl Lane {
    /// With `client`, whose connection nobody else may use: only here it gets on.
    ///
    /// # Errors
    /// Where the process has no file descriptor left.
    pub fn new(client: Client) -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| client.error("connect to", "it", error.into()))?;
        Ok(Self { client, runtime: Some(runtime) })
    }

    /// Waits for a future on this thread, which must not be one of a runtime.
    pub fn wait<T>(
        &self,
        action: &'static str,
        object: &str,
        future: impl AsyncFnOnce(&Client) -> Result<T, StoreErrorKind>,
    ) -> Result<T, StoreError> {
        let failed = |kind| self.client.error(action, object, kind);
        let Some(runtime) = &self.runtime else {
            return Err(failed(io::Error::other("the connection is closed").into()));
        };
        let waited = runtime.block_on(async {
            // What the server did meanwhile is seen first: a connection that it closed is not used again. Once for
            // the news to come in, once for the connection to hear of it.
            yield_now().await;
            yield_now().await;
            future(&self.client).await
        });
        waited.map_err(failed)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Not in the ordinary way, which is forbidden where another runtime runs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
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

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::store::bucket::connect::Connection;

    /// As the plugin does at its end.
    #[test]
    fn a_connection_may_be_closed_where_another_runtime_runs() {
        let connection = Connection {
            label: "test".into(),
            store: Box::new(InMemory::new()),
            prefix: Path::default(),
            flat: true,
        };
        let lane = Lane::new(Client::new(connection, std::time::Duration::ZERO)).unwrap();
        assert!(!lane.wait("look up", "a", async |client| client.exists("a").await).unwrap());
        Builder::new_current_thread().build().unwrap().block_on(async { drop(lane) });
    }
}
