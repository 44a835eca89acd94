//! A client of a server.

use std::sync::Arc;

use lockstep_tests::servers::Server;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, parse_url_opts};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use url::Url;

/// How many create the same object at once.
pub const RACERS: usize = 16;

/// A place of its own on a server.
pub struct Store {
    pub runtime: Runtime,
    pub store: Arc<dyn ObjectStore>,
    pub prefix: Path,
}

impl Store {
    pub fn on(server: &Server, name: &str) -> Self {
        Self::at(&server.prefix(name), &server.env)
    }

    pub fn at(url: &str, env: &[(String, String)]) -> Self {
        // The provider of ciphers that the programs are built with; fails where it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(url).unwrap();
        // WebDAV has no credentials that would say so.
        let options = env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let options = options.chain([("allow_http", "true")]);
        let (store, prefix) = parse_url_opts(&url, options).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        Self { runtime, store: store.into(), prefix }
    }

    pub fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    pub fn put(&self, name: &str, body: &str, mode: PutMode) -> Result<(), Error> {
        let path = self.path(name);
        let put = self.store.put_opts(&path, PutPayload::from(body.to_owned()), mode.into());
        self.runtime.block_on(put).map(|_| ())
    }

    pub fn get(&self, name: &str) -> Result<String, Error> {
        let path = self.path(name);
        let bytes = self.runtime.block_on(async { self.store.get(&path).await?.bytes().await })?;
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// Creates one object many times at once; the bodies of those who were told that it is theirs.
    #[track_caller]
    pub fn race(&self, name: &str) -> Vec<String> {
        let mut racers = JoinSet::new();
        for number in 0..RACERS {
            let (store, path) = (self.store.clone(), self.path(name));
            let body = format!("racer {number}");
            racers.spawn_on(
                async move {
                    let payload = PutPayload::from(body.clone());
                    (store.put_opts(&path, payload, PutMode::Create.into()).await, body)
                },
                self.runtime.handle(),
            );
        }
        let ended = self.runtime.block_on(racers.join_all());
        ended.into_iter().fold(Vec::new(), |mut winners, (result, body)| {
            match result {
                Ok(_) => winners.push(body),
                Err(Error::AlreadyExists { .. }) => {}
                Err(error) => panic!("{body}: {error}"),
            }
            winners
        })
    }

    /// Creating what is not there is one step: one wins, and what it wrote stays.
    #[track_caller]
    pub fn expect_one_winner(&self, rounds: usize) {
        for round in 0..rounds {
            let name = format!("race-{round}");
            let winners = self.race(&name);
            assert_eq!(winners.len(), 1, "{winners:?}");
            let late = self.put(&name, "late", PutMode::Create);
            assert!(matches!(late, Err(Error::AlreadyExists { .. })), "{late:?}");
            assert_eq!(self.get(&name).unwrap(), winners[0]);
        }
    }
}
