//! A bucket in memory that does something in its own way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, stream};
use lockstep_proto::store::BucketStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};

/// What it does in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    None,
    /// Of two creates at once each ends well: it looks whether there is an object, and writes then.
    ChecksFirst,
    /// Of several creates at once one ends well, and another one's object is there.
    RefusesAndWritesInARace,
    /// It knows no creates, and somebody else always writes right after.
    OverwrittenAtOnce,
    ListsBackwards,
}

#[derive(Default)]
struct Seen {
    largest: AtomicUsize,
    given_up: AtomicUsize,
}

#[derive(Clone)]
pub struct OddBucket {
    objects: Arc<InMemory>,
    oddity: Oddity,
    seen: Arc<Seen>,
}

impl OddBucket {
    pub fn new(oddity: Oddity) -> Self {
        Self { objects: Arc::default(), oddity, seen: Arc::default() }
    }

    pub fn store(&self) -> BucketStore {
        BucketStore::on("odd".into(), Box::new(self.clone()))
    }

    /// Somebody else writes.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let (location, bytes) = (Path::from(name), Bytes::from(bytes));
        self.objects.put(&location, bytes.into()).now_or_never().unwrap().unwrap();
    }

    /// Bytes of the largest request that wrote.
    pub fn largest(&self) -> usize {
        self.seen.largest.load(Ordering::Relaxed)
    }

    /// Objects whose pieces it was told to forget.
    pub fn given_up(&self) -> usize {
        self.seen.given_up.load(Ordering::Relaxed)
    }

    async fn exists(&self, location: &Path) -> bool {
        self.objects.head(location).await.is_ok()
    }
}

impl std::fmt::Debug for OddBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.oddity)
    }
}

impl std::fmt::Display for OddBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("odd")
    }
}

#[async_trait]
impl ObjectStore for OddBucket {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.seen.largest.fetch_max(payload.content_length(), Ordering::Relaxed);
        let creates = options.mode == PutMode::Create;
        let race = location.as_ref().ends_with("race");
        let exists = || Error::AlreadyExists { path: location.to_string(), source: "odd".into() };
        match self.oddity {
            Oddity::ChecksFirst if creates => {
                if self.exists(location).await {
                    return Err(exists());
                }
                tokio::task::yield_now().await;
                self.objects.put(location, payload).await
            }
            Oddity::RefusesAndWritesInARace if creates && race => {
                let refused = self.exists(location).await;
                let put = self.objects.put(location, payload).await;
                if refused { Err(exists()) } else { put }
            }
            Oddity::OverwrittenAtOnce if creates => Err(Error::NotImplemented {
                operation: "creates".into(),
                implementer: "odd".into(),
            }),
            Oddity::OverwrittenAtOnce => {
                let put = self.objects.put(location, payload).await;
                self.objects.put(location, PutPayload::from_static(b"theirs")).await?;
                put
            }
            _ => self.objects.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.objects.put_multipart_opts(location, options).await?;
        Ok(Box::new(Upload { upload, seen: self.seen.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let mut all: Vec<_> = self.objects.list(prefix).collect().now_or_never().unwrap();
        if self.oddity == Oddity::ListsBackwards {
            all.reverse();
        }
        stream::iter(all).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct Upload {
    upload: Box<dyn MultipartUpload>,
    seen: Arc<Seen>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("seen")
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.seen.largest.fetch_max(data.content_length(), Ordering::Relaxed);
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.seen.given_up.fetch_add(1, Ordering::Relaxed);
        self.upload.abort().await
    }
}
