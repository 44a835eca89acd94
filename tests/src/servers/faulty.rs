//! A proxy in front of a server that fails as networks and stores do, by a plan. `Host` and what else is
//! signed pass unchanged: a client signs for the proxy's address.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::http::connect;
use super::server::{Server, free_port, fresh};
use super::wire::Head;

const SLOW_DOWN: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
    <Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing: it is forwarded and answered.
    Pass,
    /// The connection ends; the server never hears of it.
    LoseRequest,
    /// It is forwarded; when the server has answered, the connection ends without an answer.
    LoseAnswer,
    /// It is forwarded; when the server has answered, the answer is 503.
    FailAfterwards,
    /// The answer is 503, `SlowDown`; the server never hears of it.
    SlowDown,
    /// It is forwarded, and answered so much later.
    Delay(Duration),
    /// It is forwarded so much later, whether or not its sender is still there.
    Late(Duration),
    /// It is forwarded once this is true, whether or not its sender is still there.
    Held(&'static AtomicBool),
    /// It is forwarded; the connection ends after half of the answer's body.
    CutBody,
}

/// A request, as plans see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Such as `PUT`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// How many of this method came before it.
    pub earlier: usize,
}

type Plan = Box<dyn FnMut(&Request) -> Fault + Send>;

/// The proxy. At first everything passes.
pub struct Proxy {
    /// The destination's URL through it.
    pub url: String,
    /// Credentials and the endpoint through it.
    pub env: Vec<(String, String)>,
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    upstream: u16,
    refuses: AtomicBool,
    plan: Mutex<Plan>,
    requests: Mutex<Vec<Request>>,
    open: Mutex<HashMap<usize, TcpStream>>,
    next: AtomicUsize,
}

impl Proxy {
    /// One in front of a server.
    pub fn before(server: &Server) -> Self {
        let shared = Arc::new(Shared {
            upstream: server.port,
            refuses: AtomicBool::new(true),
            plan: Mutex::new(Box::new(|_| Fault::Pass)),
            requests: Mutex::default(),
            open: Mutex::default(),
            next: AtomicUsize::new(0),
        });
        let port = free_port();
        let (from, to) = (format!("127.0.0.1:{}", server.port), format!("127.0.0.1:{port}"));
        let env = server.env.iter().map(|(name, value)| (name.clone(), value.replace(&from, &to)));
        let (url, env) = (server.url.replace(&from, &to), env.collect());
        let proxy = Self { url, env, port, shared, acceptor: Mutex::default() };
        proxy.accept();
        proxy
    }

    /// A URL below the destination that nobody used before.
    pub fn prefix(&self, name: &str) -> String {
        fresh(&self.url, name)
    }

    /// From here on, this says what happens to each request.
    pub fn plan(&self, plan: impl FnMut(&Request) -> Fault + Send + 'static) {
        *lock(&self.shared.plan) = Box::new(plan);
    }

    /// This happens to the next requests of a method, so many of them; then everything passes.
    pub fn next(&self, times: usize, method: &'static str, fault: Fault) {
        let mut left = times;
        self.plan(move |request| {
            if request.method != method || left == 0 {
                return Fault::Pass;
            }
            left -= 1;
            fault
        });
    }

    /// From here on everything passes.
    pub fn pass(&self) {
        self.plan(|_| Fault::Pass);
    }

    /// Ends all connections and refuses new ones.
    pub fn refuse(&self) {
        self.shared.refuses.store(true, Ordering::SeqCst);
        if let Some(acceptor) = lock(&self.acceptor).take() {
            // It looks up.
            let _ = connect(self.port);
            // With its listener.
            let _ = acceptor.join();
        }
        for (_, stream) in lock(&self.shared.open).drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Takes connections again, after `refuse`.
    pub fn accept(&self) {
        let mut acceptor = lock(&self.acceptor);
        if acceptor.is_some() {
            return;
        }
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let listener = TcpListener::bind(address).expect("the port of before");
        self.shared.refuses.store(false, Ordering::SeqCst);
        let shared = self.shared.clone();
        *acceptor = Some(thread::spawn(move || shared.take_connections(&listener)));
    }

    /// Every request so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// How many requests of a method there were so far.
    pub fn count(&self, method: &str) -> usize {
        count(&lock(&self.shared.requests), method)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
    }
}

impl Shared {
    fn take_connections(self: Arc<Self>, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.refuses.load(Ordering::SeqCst) {
                return;
            }
            let Ok(copy) = stream.try_clone() else { continue };
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            lock(&self.open).insert(number, copy);
            let shared = self.clone();
            thread::spawn(move || {
                // What fails here is a connection that ended: what a client makes of that is tested.
                let _ = shared.serve(&stream);
                lock(&shared.open).remove(&number);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    }

    /// Serves a connection to its end.
    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(mut head) = Head::read(&mut reader)? {
            if head.get("expect").is_some() {
                head.remove("expect");
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let body = head.read_body(&mut reader, false)?;
            let fault = self.fault_for(&head);
            let (method, closes) = (head.word(0).to_owned(), head.closes());
            match fault {
                Fault::LoseRequest => return Ok(()),
                Fault::Late(time) => thread::sleep(time),
                Fault::Held(until) => {
                    while !until.load(Ordering::Acquire) {
                        thread::sleep(Duration::from_millis(5));
                    }
                }
                _ => {}
            }
            let (mut answer, mut answered) = match fault {
                Fault::SlowDown => unavailable(),
                _ => self.forward(head, &body)?,
            };
            match fault {
                Fault::LoseAnswer => return Ok(()),
                Fault::CutBody => {
                    let half = &answered[..answered.len() / 2];
                    return stream.write_all(&[&answer.bytes(), half].concat());
                }
                Fault::FailAfterwards => (answer, answered) = unavailable(),
                Fault::Delay(time) => thread::sleep(time),
                Fault::Pass
                | Fault::LoseRequest
                | Fault::SlowDown
                | Fault::Late(_)
                | Fault::Held(_) => {}
            }
            if has_no_body(&method, &answer) {
                answered.clear();
            }
            let ends = closes || !(has_no_body(&method, &answer) || answer.is_framed());
            if ends {
                answer.add("Connection", "close");
            }
            stream.write_all(&[answer.bytes(), answered].concat())?;
            if ends {
                return Ok(());
            }
        }
        Ok(())
    }

    fn fault_for(&self, head: &Head) -> Fault {
        let request = {
            let mut requests = lock(&self.requests);
            let (method, target) = (head.word(0).to_owned(), head.word(1).to_owned());
            let earlier = count(&requests, &method);
            let request = Request { method, target, earlier };
            requests.push(request.clone());
            request
        };
        let mut plan = lock(&self.plan);
        plan(&request)
    }

    /// Asks the server, on a connection of its own.
    fn forward(&self, mut head: Head, body: &[u8]) -> io::Result<(Head, Vec<u8>)> {
        let method = head.word(0).to_owned();
        head.remove("connection");
        head.add("Connection", "close");
        let mut stream = connect(self.upstream)?;
        // A server that is paused is waited for.
        stream.set_read_timeout(None)?;
        stream.write_all(&[&head.bytes(), body].concat())?;
        let mut reader = BufReader::new(stream);
        let mut answer = Head::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        answer.remove("connection");
        let empty = has_no_body(&method, &answer);
        let body = if empty { Vec::new() } else { answer.read_body(&mut reader, true)? };
        Ok((answer, body))
    }
}

fn has_no_body(method: &str, answer: &Head) -> bool {
    method == "HEAD" || ["204", "304"].contains(&answer.word(1))
}

fn unavailable() -> (Head, Vec<u8>) {
    let mut head = Head::new("HTTP/1.1 503 Slow Down");
    head.add("Content-Type", "application/xml");
    head.add("Content-Length", &SLOW_DOWN.len().to_string());
    (head, SLOW_DOWN.into())
}

fn count(requests: &[Request], method: &str) -> usize {
    requests.iter().filter(|request| request.method == method).count()
}

/// A plan that panicked spoils its own test only.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
