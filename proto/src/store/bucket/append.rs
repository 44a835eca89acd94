//! A segment that is being written: one object a record.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::{Error, PutMode};

use super::client::{Client, Result};
use super::merge::merge;
use super::remote_error::explain;
use super::runtime::{Lane, start, wait};
use crate::layout::{self, SegmentName};
use crate::store::parts::{Part, Partial};
use crate::store::{Append, StoreError, StoreErrorKind};

/// Records after which a segment should end: whoever opens the log reads as many objects.
pub(super) const PARTS_MAX: usize = 1024;
/// A newer claim is looked for beside an append, this often: the number of a record is what fences a writer,
/// but one that never looked could keep its successor from ever getting hold of a number.
const LOOK: Duration = Duration::from_millis(200);

/// The segment that is being written.
pub struct PartAppend {
    lane: Arc<Lane>,
    /// For what nobody waits for.
    client: Client,
    segment: SegmentName,
    header: Vec<u8>,
    exclusive: bool,
    first_of_epoch: bool,
    parts: Vec<Part>,
    looked: Option<Instant>,
}

impl PartAppend {
    /// Begins with nothing: the first record brings the header along.
    pub fn new(
        lane: Arc<Lane>,
        client: &Client,
        segment: SegmentName,
        header: &[u8],
        exclusive: bool,
        first_of_epoch: bool,
    ) -> Self {
        Self {
            lane,
            client: client.clone(),
            segment,
            header: header.to_vec(),
            exclusive,
            first_of_epoch,
            parts: Vec::new(),
            looked: None,
        }
    }

    fn next_seq(&self) -> u64 {
        self.segment.first_seq + self.parts.len() as u64
    }
}

impl Append for PartAppend {
    fn append(&mut self, frame: &[u8]) -> Result<(), StoreError> {
        let seq = self.next_seq();
        let name = layout::part(seq, (!self.exclusive).then_some(self.segment.age()));
        let bytes = Bytes::from([&self.header, frame].concat());
        let size = bytes.len() as u64;
        let is_due = |looked: Instant| self.client.at_once || looked.elapsed() >= LOOK;
        let look = self.exclusive && self.looked.is_none_or(is_due);
        let successor = layout::claim(self.segment.epoch.saturating_add(1));
        self.lane.wait("write", &name, async |client| {
            let put = put(client, &name, bytes, self.exclusive);
            if !look {
                return put.await;
            }
            let (put, claimed) = tokio::join!(put, client.exists(&successor));
            match claimed {
                Ok(true) => Err(StoreErrorKind::Taken),
                // The record is what counts; the next append looks again.
                Ok(false) | Err(_) => put,
            }
        })?;
        if look {
            self.looked = Some(Instant::now());
        }
        self.parts.push(Part { seq, size });
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        let parts = std::mem::take(&mut self.parts);
        let partial = Partial { name: self.segment, owned: !self.exclusive, parts };
        let client = self.client.clone();
        let (exclusive, keep_first) = (self.exclusive, self.first_of_epoch);
        let (at_once, name) = (client.at_once, self.segment.to_string());
        // Best effort: until then it is read in parts, and the next compaction tries again.
        let merged = async move { merge(&client, &partial, exclusive, keep_first).await };
        if at_once {
            let _ = wait(&self.client, "merge", &name, merged);
        } else {
            start(async move { drop(merged.await) });
        }
        Ok(())
    }

    fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    fn is_full(&self) -> bool {
        self.parts.len() >= PARTS_MAX
    }
}

/// Writes one part, again and again with the same bytes, until it is there, is somebody else's, or patience is at
/// an end. Never with other bytes: a request that was given up may still arrive.
async fn put(client: &Client, name: &str, bytes: Bytes, exclusive: bool) -> Result<()> {
    let began = Instant::now();
    let mode = if exclusive { PutMode::Create } else { PutMode::Overwrite };
    let mut attempt = 0;
    loop {
        let error = match client.put(name, bytes.clone(), mode.clone()).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let taken = matches!(error, Error::AlreadyExists { .. });
        let mut cause = explain(error);
        if exclusive {
            match client.read(name).await {
                Ok(found) if found == bytes => return Ok(()),
                Ok(_) => return Err(StoreErrorKind::Taken),
                Err(StoreErrorKind::NotFound) => {}
                Err(error) if taken => cause = error,
                Err(_) => {}
            }
        }
        if client.left(began).is_zero() {
            return Err(cause);
        }
        client.rest(attempt, client.left(began)).await;
        attempt += 1;
    }
}
