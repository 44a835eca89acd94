//! An object of unknown size: in one request where it is small, in parts that are sent as they fill where not.

use bytes::Bytes;
use object_store::{ObjectStoreExt, WriteMultipart};

use super::client::Client;
use super::remote_error::explain;
use super::runtime::wait;
use crate::store::{NewObject, StoreError};

/// Bytes of one request. Large enough for a 80 GB object in S3's 10,000.
const CHUNK: usize = 8 << 20;
/// Requests of that size under way at once: they are what a snapshot takes of memory.
const UNDER_WAY: usize = 2;

/// An object that is being written.
pub struct Upload {
    client: Client,
    name: String,
    exclusive: bool,
    /// What was not sent yet.
    buffer: Vec<u8>,
    /// From the first full buffer on.
    multipart: Option<WriteMultipart>,
}

impl Upload {
    pub fn new(client: Client, name: &str, exclusive: bool) -> Self {
        Self { client, name: name.into(), exclusive, buffer: Vec::new(), multipart: None }
    }

    fn send(&mut self) -> Result<(), StoreError> {
        let chunk = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK)));
        let (client, name) = (self.client.clone(), self.name.clone());
        let begun = self.multipart.take();
        let multipart = wait(&self.client, "write", &self.name, async move {
            let mut multipart = match begun {
                Some(multipart) => multipart,
                None => {
                    let upload = client.store().put_multipart(&client.path(&name)).await;
                    WriteMultipart::new_with_chunk_size(upload.map_err(explain)?, CHUNK)
                }
            };
            multipart.wait_for_capacity(UNDER_WAY).await.map_err(explain)?;
            multipart.put(chunk);
            Ok(multipart)
        })?;
        self.multipart = Some(multipart);
        Ok(())
    }
}

impl NewObject for Upload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        while self.buffer.len() + bytes.len() > CHUNK && self.client.can_create() {
            let (now, later) = bytes.split_at(CHUNK - self.buffer.len());
            self.buffer.extend_from_slice(now);
            self.send()?;
            bytes = later;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The names of objects that are this large hold random digits, or the epoch of their one writer: a second one of
    /// that name is never created, so that parts need not be exclusive.
    fn commit(mut self: Box<Self>) -> Result<(), StoreError> {
        if self.multipart.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.buffer));
            let (client, name, exclusive) =
                (self.client.clone(), self.name.clone(), self.exclusive);
            return wait(&self.client, "create", &self.name, async move {
                client.create(&name, bytes, exclusive).await
            });
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        let Some(multipart) = self.multipart.take() else { return Ok(()) };
        wait(&self.client, "create", &self.name, async move {
            multipart.finish().await.map(drop).map_err(explain)
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(multipart) = self.multipart.take() {
            // Best effort: what was sent costs space until the provider's rule for such leftovers removes it.
            let _ = wait(&self.client, "give up", &self.name, async move {
                multipart.abort().await.map_err(explain)
            });
        }
    }
}
