//! An object of unknown size that is written to several places at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::ground::{Bell, Ground, lock};
use crate::store::{Store, StoreError};

/// Pieces that wait for a place.
const PIECES: usize = 4;

/// One place's object, written by a thread.
pub(super) struct Writing {
    /// The place, by its number.
    pub index: usize,
    queue: Arc<Queue>,
}

enum Piece {
    Bytes(Arc<[u8]>),
    Commit,
}

#[derive(Default)]
struct Pieces {
    waiting: VecDeque<Piece>,
    /// Nobody waits for the place any more: the object never was.
    given_up: bool,
    /// What became of the object.
    done: Option<Result<(), StoreError>>,
}

/// From the writer to the place's thread.
struct Queue {
    pieces: Mutex<Pieces>,
    changed: Bell,
    ground: Ground,
}

impl Queue {
    /// Waits as long as `what` says; false where that takes longer than `patience`.
    fn wait_while(
        &self,
        patience: Duration,
        what: impl Fn(&Pieces) -> bool,
    ) -> (MutexGuard<'_, Pieces>, bool) {
        let until = self.ground.now() + patience;
        let mut pieces = lock(&self.pieces);
        while what(&pieces) {
            if self.ground.left(until).is_zero() {
                return (pieces, false);
            }
            pieces = self.changed.wait(&self.pieces, pieces, Some(until));
        }
        (pieces, true)
    }

    /// The next piece; `None` where the place was given up.
    fn take(&self) -> Option<Piece> {
        let mut pieces = lock(&self.pieces);
        while pieces.waiting.is_empty() && !pieces.given_up {
            pieces = self.changed.wait(&self.pieces, pieces, None);
        }
        let piece = pieces.waiting.pop_front().filter(|_| !pieces.given_up);
        self.changed.ring();
        piece
    }
}

impl Writing {
    /// Begins the object `name` at a place.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn begin(
        ground: &Ground,
        index: usize,
        store: Arc<dyn Store>,
        name: &str,
    ) -> std::io::Result<Self> {
        let (pieces, changed) = (Mutex::default(), ground.bell());
        let queue = Arc::new(Queue { pieces, changed, ground: ground.clone() });
        let (name, own) = (name.to_owned(), queue.clone());
        ground.start("snapshot", move || {
            let done = write(&*store, &name, &own);
            lock(&own.pieces).done = Some(done);
            own.changed.ring();
        })?;
        Ok(Self { index, queue })
    }

    /// Adds bytes. A place that has not taken any for `patience` is given up.
    pub fn write(&mut self, bytes: &Arc<[u8]>, patience: Duration) {
        self.send(Piece::Bytes(bytes.clone()), patience);
    }

    fn send(&mut self, piece: Piece, patience: Duration) {
        let full = |pieces: &Pieces| {
            pieces.waiting.len() >= PIECES && !pieces.given_up && pieces.done.is_none()
        };
        let (mut pieces, in_time) = self.queue.wait_while(patience, full);
        pieces.given_up |= !in_time;
        if !pieces.given_up && pieces.done.is_none() {
            pieces.waiting.push_back(piece);
            self.queue.changed.ring();
        }
    }

    /// Makes the object be there; `None` where the place was given up.
    pub fn commit(mut self, patience: Duration) -> Option<Result<(), StoreError>> {
        self.send(Piece::Commit, patience);
        self.queue.wait_while(patience, |pieces| pieces.done.is_none()).0.done.take()
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        lock(&self.queue.pieces).given_up = true;
        self.queue.changed.ring();
    }
}

fn write(store: &dyn Store, name: &str, queue: &Queue) -> Result<(), StoreError> {
    let mut object = store.create_stream(name)?;
    while let Some(piece) = queue.take() {
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
