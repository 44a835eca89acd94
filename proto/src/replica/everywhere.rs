//! An object of unknown size that is written to several places at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::store::{Store, StoreError};

/// Pieces that wait for a place.
const PIECES: usize = 4;
/// How often a full queue is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// One place's object, written by a thread.
pub(super) struct Writing {
    /// The place, by its number.
    pub index: usize,
    pieces: Option<SyncSender<Piece>>,
    thread: JoinHandle<Result<(), StoreError>>,
}

enum Piece {
    Bytes(Arc<[u8]>),
    Commit,
}

impl Writing {
    /// Begins the object `name` at a place.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn begin(index: usize, store: Arc<dyn Store>, name: &str) -> std::io::Result<Self> {
        let (sender, pieces) = sync_channel(PIECES);
        let name = name.to_owned();
        let thread = thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || write(&*store, &name, &pieces))?;
        Ok(Self { index, pieces: Some(sender), thread })
    }

    /// Adds bytes. A place that has not taken any for `patience` is given up.
    pub fn write(&mut self, bytes: &Arc<[u8]>, patience: Duration) {
        self.send(Piece::Bytes(bytes.clone()), patience);
    }

    fn send(&mut self, mut piece: Piece, patience: Duration) {
        let until = Instant::now() + patience;
        while let Some(pieces) = &self.pieces {
            piece = match pieces.try_send(piece) {
                Ok(()) => return,
                Err(TrySendError::Full(piece)) if Instant::now() < until => piece,
                Err(_) => {
                    self.pieces = None;
                    return;
                }
            };
            thread::sleep(LOOK);
        }
    }

    /// Makes the object be there; `None` where the place was given up.
    pub fn commit(mut self, patience: Duration) -> Option<Result<(), StoreError>> {
        self.send(Piece::Commit, patience);
        drop(self.pieces.take());
        let until = Instant::now() + patience;
        while !self.thread.is_finished() {
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(LOOK);
        }
        self.thread.join().ok()
    }
}

fn write(store: &dyn Store, name: &str, pieces: &Receiver<Piece>) -> Result<(), StoreError> {
    let mut object = store.create_stream(name)?;
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => object.write(&bytes)?,
            Piece::Commit => return object.commit(),
        }
    }
    // Given up: it never was.
    Err(StoreError {
        store: store.label().into(),
        action: "create",
        object: name.into(),
        kind: std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
    })
}
