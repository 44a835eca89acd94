//! lightningd's RPC socket, as far as a plugin asks it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};

use super::SimError;

/// A `lightning-rpc` socket that answers each method with a fixed result, and
/// remembers what it was asked. Dropped, it stops accepting.
#[derive(Debug)]
pub struct RpcServer {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    results: BTreeMap<String, Value>,
    asked: Mutex<Vec<Value>>,
    /// A node inside the hook accepts, and answers nothing.
    frozen: AtomicBool,
    stopped: AtomicBool,
}

impl RpcServer {
    /// Listens at `lightning-rpc` in the network directory.
    pub fn bind(
        network_directory: &Path,
        results: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Result<Self, SimError> {
        let path = network_directory.join("lightning-rpc");
        // A socket file of an earlier session.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(SimError::io("bind lightning-rpc"))?;
        let shared = Arc::new(Shared {
            results: results
                .into_iter()
                .map(|(method, result)| (method.to_owned(), result))
                .collect(),
            asked: Mutex::default(),
            frozen: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let serving = Arc::clone(&serving);
                thread::spawn(move || serving.serve(stream));
            }
        });
        Ok(Self { path, shared })
    }

    /// Stops answering, as a node does while a `db_write` call is open.
    pub fn freeze(&self, frozen: bool) {
        self.shared.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Every request so far.
    pub fn asked(&self) -> Vec<Value> {
        let asked = self.shared.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    /// Answers until the other side hangs up, breaks the protocol, or the
    /// node is frozen.
    fn serve(&self, mut stream: UnixStream) {
        let Ok(reading) = stream.try_clone() else {
            return;
        };
        let requests =
            serde_json::Deserializer::from_reader(BufReader::new(reading)).into_iter::<Value>();
        for request in requests.map_while(Result::ok) {
            let mut answer = json!({"jsonrpc": "2.0", "id": request["id"]});
            let method = request["method"].as_str().unwrap_or_default();
            match self.results.get(method) {
                Some(result) => answer["result"] = result.clone(),
                None => {
                    let message = format!("Unknown command '{method}'");
                    answer["error"] = json!({"code": -32601, "message": message});
                }
            }
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push(request);
            drop(asked);
            while self.frozen.load(Ordering::Relaxed) {
                thread::sleep(std::time::Duration::from_millis(5));
            }
            if stream.write_all(format!("{answer}\n\n").as_bytes()).is_err() {
                return;
            }
        }
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener; both fail only if it is gone already.
        let _ = UnixStream::connect(&self.path);
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[test]
    fn it_answers_what_it_knows_and_remembers() {
        let dir = tempfile::tempdir().unwrap();
        let secret = json!({"secret": "00"});
        let server = RpcServer::bind(dir.path(), [("makesecret", secret.clone())]).unwrap();
        let mut stream = UnixStream::connect(dir.path().join("lightning-rpc")).unwrap();
        for method in ["makesecret", "nonsense"] {
            let request = json!({"jsonrpc": "2.0", "id": method, "method": method, "params": {}});
            stream.write_all(request.to_string().as_bytes()).unwrap();
        }
        let mut answers = serde_json::Deserializer::from_reader(stream);
        let answer = Value::deserialize(&mut answers).unwrap();
        assert_eq!(answer["result"], secret);
        let answer = Value::deserialize(&mut answers).unwrap();
        assert_eq!(answer["error"]["code"], -32601);
        assert_eq!(server.asked().len(), 2);
    }
}
