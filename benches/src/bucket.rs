//! A bucket without anything between: bare requests over connections that are kept open.

use std::ops::Range;
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::{Builder, Runtime};

/// A client, for one thread.
pub struct Bucket {
    runtime: Runtime,
    client: Box<dyn ObjectStore>,
    prefix: Path,
}

impl Bucket {
    /// For a URL `s3://BUCKET[/PREFIX]`, and what reaches it.
    pub fn connect(url: &str, env: &[(String, String)]) -> Self {
        let mut builder = AmazonS3Builder::new().with_url(url);
        for (key, value) in env {
            if let Ok(key) = key.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        // The provider of ciphers that the programs are built with.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Box::new(builder.build().expect("a client"));
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let below = url.trim_start_matches("s3://").split_once('/').map_or("", |(_, below)| below);
        Self { runtime, client, prefix: Path::from(below) }
    }

    /// Makes an object of `len` bytes, and gives how long that took.
    pub fn put(&self, name: &str, len: usize, mode: PutMode) -> Duration {
        let path = Path::from(name);
        let bytes = PutPayload::from(vec![0x5a; len]);
        let began = Instant::now();
        let put = self.client.put_opts(&path, bytes, PutOptions { mode, ..PutOptions::default() });
        self.runtime.block_on(put).expect("an answer");
        began.elapsed()
    }

    /// All objects below the prefix, with their bytes.
    pub fn list(&self) -> Vec<(Path, u64)> {
        let (mut found, mut folders) = (Vec::new(), vec![self.prefix.clone()]);
        while let Some(folder) = folders.pop() {
            let listed = self.client.list_with_delimiter(Some(&folder));
            let listed = self.runtime.block_on(listed).expect("an answer");
            found.extend(listed.objects.into_iter().map(|object| (object.location, object.size)));
            folders.extend(listed.common_prefixes);
        }
        found
    }

    /// Some bytes of an object.
    pub fn get(&self, path: &Path, range: Range<u64>) -> Vec<u8> {
        let get = self.client.get_range(path, range);
        self.runtime.block_on(get).expect("an answer").to_vec()
    }
}
