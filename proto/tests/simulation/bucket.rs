//! A bucket in memory, below the real [`BucketStore`]: requests are lost on their way, answers on theirs, and what was given
//! up arrives later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, stream};
use lockstep_proto::store::BucketStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::faults::{Fault, Kind, Process};

/// What the provider keeps.
#[derive(Clone, Default)]
pub struct SimBucket {
    objects: Arc<InMemory>,
    /// Requests that were given up and are still on their way.
    late: Arc<Mutex<Vec<Late>>>,
}

/// After so many requests of others one that was given up does not arrive any more.
const LATEST: u8 = 20;

struct Late {
    location: Path,
    payload: PutPayload,
    options: PutOptions,
    left: u8,
}

impl SimBucket {
    /// A store in it, as `process` uses it.
    pub fn store(&self, label: &str, process: &Process) -> BucketStore {
        let connection = Connection { bucket: self.clone(), process: process.clone() };
        BucketStore::on(label.into(), Box::new(connection))
    }

    /// All that the provider has.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        let all: Vec<_> = self.objects.list(None).collect().now_or_never().unwrap();
        let read = |found: Result<ObjectMeta>| {
            let location = found.unwrap().location;
            let bytes = async { self.objects.get(&location).await.unwrap().bytes().await };
            (location.to_string(), bytes.now_or_never().unwrap().unwrap())
        };
        all.into_iter().map(read).collect()
    }

    /// A request arrives that was given up.
    pub fn arrives(&self, name: &str, bytes: Bytes) {
        let location = Path::from(name);
        self.objects.put(&location, bytes.into()).now_or_never().unwrap().unwrap();
    }

    fn late(&self) -> MutexGuard<'_, Vec<Late>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process's connection to it.
struct Connection {
    bucket: SimBucket,
    process: Process,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection")
    }
}

impl std::fmt::Display for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("sim")
    }
}

fn lost() -> Error {
    Error::Generic { store: "sim", source: "503 Slow Down".into() }
}

impl Connection {
    /// Before each request: what was given up before may arrive now.
    async fn step(&self, kind: Kind) -> Option<Fault> {
        let fault = self.process.step(kind);
        self.bucket.late().retain_mut(|late| {
            late.left -= 1;
            late.left > 0
        });
        if fault.is_none() && self.process.is_lucky() {
            let arrives = self.bucket.late().pop();
            if let Some(Late { location, payload, options, .. }) = arrives {
                let _ = self.bucket.objects.put_opts(&location, payload, options).await;
            }
        }
        fault
    }

    /// Whether a request that only looks is answered.
    async fn look(&self) -> Result<()> {
        self.step(Kind::Read).await.map_or(Ok(()), |_| Err(lost()))
    }
}

/// True where a request with such a fault has its effect all the same.
fn applies(fault: Option<Fault>) -> bool {
    matches!(fault, None | Some(Fault::After(_) | Fault::DieAfter))
}

#[async_trait]
impl ObjectStore for Connection {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let fault = self.step(Kind::Write).await;
        if matches!(fault, Some(Fault::Short(_) | Fault::DieHalfway)) {
            let location = location.clone();
            self.bucket.late().push(Late { location, payload, options, left: LATEST });
            return Err(lost());
        }
        if !applies(fault) {
            return Err(lost());
        }
        let put = self.bucket.objects.put_opts(location, payload, options).await;
        if fault.is_some() { Err(lost()) } else { put }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.look().await?;
        self.bucket.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.look().await?;
        self.bucket.objects.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let here = Self { bucket: self.bucket.clone(), process: self.process.clone() };
        let delete = move |location: Result<Path>| {
            let here = Self { bucket: here.bucket.clone(), process: here.process.clone() };
            async move {
                let location = location?;
                let fault = here.step(Kind::Name).await;
                if applies(fault) {
                    here.bucket.objects.delete(&location).await?;
                }
                if fault.is_some() { Err(lost()) } else { Ok(location) }
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.process.step(Kind::Read).is_some() {
            return stream::once(async { Err(lost()) }).boxed();
        }
        self.bucket.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.look().await?;
        self.bucket.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.look().await?;
        self.bucket.objects.copy_opts(from, to, options).await
    }
}
