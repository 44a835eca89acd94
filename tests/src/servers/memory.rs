//! As much of S3 as a log needs, in this process: it holds a million objects, is as far away as it is told, and counts
//! what it is asked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::server::{fresh, owned};
use super::sign::{S3_KEY, S3_REGION, S3_SECRET};
use super::wire::Head;

const BUCKET: &str = "lockstep-memory";
/// Objects that one answer lists, as on S3.
const PAGE: usize = 1000;
const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
const LISTED_DATE: &str = "2026-01-01T00:00:00.000Z";

/// The server. It answers for as long as the process lives.
pub struct Memory {
    /// The destination's URL.
    pub url: String,
    /// Credentials, which it does not look at, and the endpoint.
    pub env: Vec<(String, String)>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Arc<[u8]>>>,
    asked: Mutex<BTreeMap<String, usize>>,
    away_ms: AtomicU64,
}

/// What is answered.
struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Arc<[u8]>,
}

impl Memory {
    /// Starts one.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                // A client that goes away ends its thread.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        let env = owned(&[
            ("AWS_ACCESS_KEY_ID", S3_KEY),
            ("AWS_SECRET_ACCESS_KEY", S3_SECRET),
            ("AWS_REGION", S3_REGION),
            ("AWS_ENDPOINT", &format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true"),
        ]);
        Self { url: format!("s3://{BUCKET}"), env, shared }
    }

    /// A URL below it that nobody used before.
    pub fn prefix(&self, name: &str) -> String {
        fresh(&self.url, name)
    }

    /// From here on, each answer comes so much later, to a millisecond.
    pub fn be_away(&self, later: Duration) {
        let ms = u64::try_from(later.as_millis()).expect("milliseconds");
        self.shared.away_ms.store(ms, Ordering::SeqCst);
    }

    /// Puts an object there without a request; `url` is a prefix, `name` what is below it.
    pub fn put(&self, url: &str, name: &str, bytes: &[u8]) {
        let prefix = url.strip_prefix(&self.url).expect("a URL of this server");
        let key = format!("{}/{name}", prefix.trim_start_matches('/'));
        lock(&self.shared.objects).insert(key, bytes.into());
    }

    /// How many objects it holds.
    pub fn len(&self) -> usize {
        lock(&self.shared.objects).len()
    }

    /// True where it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was asked since the last time: `GET`, `HEAD`, `LIST`, `PUT` or `DELETE` → how often.
    pub fn take_counts(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut lock(&self.shared.asked))
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        while let Some(head) = Head::read(&mut reader)? {
            let body = head.read_body(&mut reader, false)?;
            let answer = self.answer(&head, &body);
            thread::sleep(Duration::from_millis(self.away_ms.load(Ordering::SeqCst)));
            let mut bytes = format!("HTTP/1.1 {}\r\n", answer.status);
            for (name, value) in &answer.headers {
                write!(bytes, "{name}: {value}\r\n").expect("to a string");
            }
            write!(bytes, "Content-Length: {}\r\n\r\n", answer.body.len()).expect("to a string");
            let mut bytes = bytes.into_bytes();
            if head.word(0) != "HEAD" {
                bytes.extend_from_slice(&answer.body);
            }
            writer.write_all(&bytes)?;
        }
        Ok(())
    }

    fn answer(&self, head: &Head, body: &[u8]) -> Answer {
        let (path, query) = head.word(1).split_once('?').unwrap_or((head.word(1), ""));
        let key = decode(path).trim_start_matches('/').to_owned();
        let key = key.strip_prefix(BUCKET).unwrap_or(&key).trim_start_matches('/').to_owned();
        let method = head.word(0);
        let verb = if query.contains("list-type=2") { "LIST" } else { method };
        *lock(&self.asked).entry(verb.to_owned()).or_default() += 1;
        let mut objects = lock(&self.objects);
        match verb {
            "LIST" => Answer::ok(list(&objects, query).into_bytes().into()),
            "GET" | "HEAD" => objects.get(&key).map_or_else(Answer::no_such_key, |bytes| {
                head.get("range").map_or_else(|| Answer::ok(bytes.clone()), |r| piece(bytes, r))
            }),
            "PUT" if head.get("if-none-match").is_some() && objects.contains_key(&key) => {
                Answer::error("412 Precondition Failed", "PreconditionFailed")
            }
            "PUT" => {
                objects.insert(key, body.into());
                Answer::ok([].into())
            }
            "DELETE" => {
                objects.remove(&key);
                Answer { status: "204 No Content", ..Answer::ok([].into()) }
            }
            "POST" if query == "delete" => {
                let named = String::from_utf8_lossy(body);
                for key in named.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next()) {
                    objects.remove(key);
                }
                Answer::ok(b"<DeleteResult></DeleteResult>"[..].into())
            }
            _ => Answer::error("501 Not Implemented", "NotImplemented"),
        }
    }
}

impl Answer {
    fn ok(body: Arc<[u8]>) -> Self {
        let headers = vec![("ETag", "\"1\"".to_owned()), ("Last-Modified", DATE.to_owned())];
        Self { status: "200 OK", headers, body }
    }

    fn error(status: &'static str, code: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        Self { status, headers: Vec::new(), body: body.into_bytes().into() }
    }

    fn no_such_key() -> Self {
        Self::error("404 Not Found", "NoSuchKey")
    }
}

/// The bytes that `Range: bytes=FIRST-LAST` asks for.
fn piece(bytes: &[u8], range: &str) -> Answer {
    let numbers = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let number = |text: &str| text.parse::<usize>().ok();
    let Some((first, last)) = numbers.and_then(|(a, b)| Some((number(a)?, number(b)?))) else {
        return Answer::error("501 Not Implemented", "NotImplemented");
    };
    let end = bytes.len().min(last + 1);
    if first >= end {
        return Answer::error("416 Range Not Satisfiable", "InvalidRange");
    }
    let mut answer = Answer::ok(bytes[first..end].into());
    answer.status = "206 Partial Content";
    answer.headers.push(("Content-Range", format!("bytes {first}-{}/{}", end - 1, bytes.len())));
    answer
}

/// One page of a listing.
fn list(objects: &BTreeMap<String, Arc<[u8]>>, query: &str) -> String {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query: BTreeMap<&str, String> = pairs.map(|(name, value)| (name, decode(value))).collect();
    let get = |name| query.get(name).map_or("", String::as_str);
    let (prefix, delimiter) = (get("prefix"), get("delimiter"));
    let mut after = get("start-after").max(get("continuation-token")).to_owned();
    let mut page = String::new();
    let mut shown = 0;
    // A folder is shown once, and what is in it passed over.
    while let Some((key, bytes)) = next(objects, prefix, &after) {
        if shown == PAGE {
            let more = "<IsTruncated>true</IsTruncated><NextContinuationToken>";
            write!(page, "{more}{after}</NextContinuationToken>").expect("to a string");
            break;
        }
        shown += 1;
        let folder = key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty());
        if let Some(end) = folder {
            let folder = &key[..prefix.len() + end + delimiter.len()];
            write!(page, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
                .expect("to a string");
            after = format!("{folder}\u{10ffff}");
        } else {
            let size = bytes.len();
            write!(
                page,
                "<Contents><Key>{key}</Key><LastModified>{LISTED_DATE}</LastModified>\
                 <ETag>&quot;1&quot;</ETag><Size>{size}</Size></Contents>"
            )
            .expect("to a string");
            after.clone_from(key);
        }
    }
    format!("<?xml version=\"1.0\"?><ListBucketResult>{page}</ListBucketResult>")
}

/// The first object with a prefix behind a key.
fn next<'a>(
    objects: &'a BTreeMap<String, Arc<[u8]>>,
    prefix: &str,
    after: &str,
) -> Option<(&'a String, &'a Arc<[u8]>)> {
    let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
    let found = objects.range::<str, _>((from, Bound::Unbounded)).next();
    found.filter(|(key, _)| key.starts_with(prefix))
}

/// Takes percent signs back.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let hex = behind.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
