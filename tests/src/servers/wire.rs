//! HTTP/1.1 messages as a proxy passes them on: bodies stay as they are, in chunks or not.

use std::io::{self, BufRead, Read};

/// Longer heads and lines are nobody's.
const MAX_LINE: u64 = 64 * 1024;

/// The first line and the headers.
#[derive(Clone, Debug)]
pub struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// One without headers.
    pub fn new(first: &str) -> Self {
        Self { first: first.to_owned(), headers: Vec::new() }
    }

    /// Reads one; `None` at the end of the connection.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let first = line(from)?;
        if first.is_empty() {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let header = line(from)?;
            if header.trim_end().is_empty() {
                return Ok(Some(Self { first: first.trim_end().to_owned(), headers }));
            }
            let (name, value) = header.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// A word of the first line.
    pub fn word(&self, index: usize) -> &str {
        self.first.split(' ').nth(index).unwrap_or_default()
    }

    /// A header's value.
    pub fn get(&self, wanted: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }

    /// Takes a header away.
    pub fn remove(&mut self, unwanted: &str) {
        self.headers.retain(|(name, _)| !name.eq_ignore_ascii_case(unwanted));
    }

    /// Adds a header.
    pub fn add(&mut self, name: &str, value: &str) {
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Whether the connection is to end after this message.
    pub fn closes(&self) -> bool {
        self.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Whether it says where its body ends.
    pub fn is_framed(&self) -> bool {
        self.is_chunked() || self.get("content-length").is_some()
    }

    fn is_chunked(&self) -> bool {
        let encoding = self.get("transfer-encoding").unwrap_or_default();
        encoding.to_ascii_lowercase().contains("chunked")
    }

    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("{}\r\n{}\r\n", self.first, headers.collect::<String>()).into_bytes()
    }

    /// Reads the body that it announces, as it is. One that announces none has one up to the end of the
    /// connection if `or_rest`, and else none.
    pub fn read_body(&self, from: &mut impl BufRead, or_rest: bool) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if self.is_chunked() {
            read_chunks(from, &mut body)?;
        } else if let Some(length) = self.get("content-length") {
            read_exactly(from, length.parse().map_err(io::Error::other)?, &mut body)?;
        } else if or_rest {
            from.read_to_end(&mut body)?;
        }
        Ok(body)
    }
}

fn read_chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let size = line(from)?;
        body.extend(size.bytes());
        let digits = size.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
        if length == 0 {
            break;
        }
        read_exactly(from, length + 2, body)?;
    }
    loop {
        let trailer = line(from)?;
        body.extend(trailer.bytes());
        if trailer.trim_end().is_empty() {
            return Ok(());
        }
    }
}

fn read_exactly(from: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = from.take(length).read_to_end(body)?;
    if read as u64 == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(MAX_LINE).read_line(&mut line)?;
    Ok(line)
}
