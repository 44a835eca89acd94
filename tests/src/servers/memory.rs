//! As much of S3 as a log needs, in this process: it holds a million objects, counts what it is asked, and has the faults
//! of others when it is told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Bound;
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

/// What it does about `If-None-Match: *`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditions {
    /// It creates an object once.
    #[default]
    Kept,
    /// It overwrites what is there.
    Ignored,
    /// It does not know the header, and says so.
    Refused,
}

#[derive(Default)]
struct Shared {
    objects: Mutex<Objects>,
    asked: Mutex<BTreeMap<String, usize>>,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Objects {
    by_key: BTreeMap<String, Object>,
    made: u64,
}

struct Object {
    bytes: Arc<[u8]>,
    /// How many were made before it.
    number: u64,
}

#[derive(Clone, Copy, Default)]
struct Faults {
    away: Duration,
    conditions: Conditions,
    lag: u64,
    ahead_s: i64,
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

    /// From here on, each answer comes so much later.
    pub fn be_away(&self, later: Duration) {
        lock(&self.shared.faults).away = later;
    }

    /// From here on, it does this about `If-None-Match: *`.
    pub fn treat_conditions(&self, conditions: Conditions) {
        lock(&self.shared.faults).conditions = conditions;
    }

    /// From here on, listings do not show the newest objects, so many of all.
    pub fn lag_behind(&self, objects: u64) {
        lock(&self.shared.faults).lag = objects;
    }

    /// From here on, its clock is so many seconds ahead, and it takes no request of another time.
    pub fn set_clock_ahead(&self, seconds: i64) {
        lock(&self.shared.faults).ahead_s = seconds;
    }

    /// Puts an object there without a request; `url` is a prefix, `name` what is below it.
    pub fn put(&self, url: &str, name: &str, bytes: &[u8]) {
        let prefix = url.strip_prefix(&self.url).expect("a URL of this server");
        let key = format!("{}/{name}", prefix.trim_start_matches('/'));
        lock(&self.shared.objects).insert(key, bytes);
    }

    /// How many objects it holds.
    pub fn len(&self) -> usize {
        lock(&self.shared.objects).by_key.len()
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
            // Not with the lock: those who ask at the same time wait at the same time.
            let away = lock(&self.faults).away;
            thread::sleep(away);
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
        let faults = *lock(&self.faults);
        if !is_timely(head, faults.ahead_s) {
            return Answer::error("403 Forbidden", "RequestTimeTooSkewed");
        }
        let mut objects = lock(&self.objects);
        match verb {
            "LIST" => Answer::ok(objects.list(query, faults.lag).into_bytes().into()),
            "GET" | "HEAD" => objects.by_key.get(&key).map_or_else(Answer::no_such_key, |object| {
                let whole = || Answer::ok(object.bytes.clone());
                head.get("range").map_or_else(whole, |range| piece(&object.bytes, range))
            }),
            "PUT" => match (head.get("if-none-match"), faults.conditions) {
                (Some(_), Conditions::Refused) => {
                    Answer::error("501 Not Implemented", "NotImplemented")
                }
                (Some(_), Conditions::Kept) if objects.by_key.contains_key(&key) => {
                    Answer::error("412 Precondition Failed", "PreconditionFailed")
                }
                _ => {
                    objects.insert(key, body);
                    Answer::ok([].into())
                }
            },
            "DELETE" => {
                objects.by_key.remove(&key);
                Answer { status: "204 No Content", ..Answer::ok([].into()) }
            }
            "POST" if query == "delete" => {
                let named = String::from_utf8_lossy(body);
                for key in named.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next()) {
                    objects.by_key.remove(key);
                }
                Answer::ok(b"<DeleteResult></DeleteResult>"[..].into())
            }
            _ => Answer::error("501 Not Implemented", "NotImplemented"),
        }
    }
}

/// Whether a request was signed at a time that a server takes whose clock is so much ahead.
fn is_timely(head: &Head, ahead_s: i64) -> bool {
    const TOLERANCE_S: i64 = 15 * 60;
    let signed = head.get("x-amz-date").and_then(|date| {
        jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok()?.in_tz("UTC").ok()
    });
    let now = jiff::Timestamp::now().as_second() + ahead_s;
    signed.is_none_or(|signed| (signed.timestamp().as_second() - now).abs() <= TOLERANCE_S)
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

impl Objects {
    fn insert(&mut self, key: String, bytes: &[u8]) {
        self.by_key.insert(key, Object { bytes: bytes.into(), number: self.made });
        self.made += 1;
    }

    /// One page of a listing that does not know of the newest objects, `lag` of all.
    fn list(&self, query: &str, lag: u64) -> String {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query: BTreeMap<&str, String> =
            pairs.map(|(name, value)| (name, decode(value))).collect();
        let get = |name| query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (get("prefix"), get("delimiter"));
        let mut after = get("start-after").max(get("continuation-token")).to_owned();
        let mut page = String::new();
        let mut shown = 0;
        while let Some((key, object)) = self.next(prefix, &after) {
            if object.number + lag >= self.made && lag > 0 {
                after.clone_from(key);
                continue;
            }
            if shown == PAGE {
                let more = "<IsTruncated>true</IsTruncated><NextContinuationToken>";
                write!(page, "{more}{after}</NextContinuationToken>").expect("to a string");
                break;
            }
            shown += 1;
            let folder = key[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty());
            if let Some(end) = folder {
                // A folder is shown once, and what is in it passed over.
                let folder = &key[..prefix.len() + end + delimiter.len()];
                write!(page, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
                    .expect("to a string");
                after = format!("{folder}\u{10ffff}");
            } else {
                let size = object.bytes.len();
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
    fn next(&self, prefix: &str, after: &str) -> Option<(&String, &Object)> {
        let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let found = self.by_key.range::<str, _>((from, Bound::Unbounded)).next();
        found.filter(|(key, _)| key.starts_with(prefix))
    }
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
