//! One pass over the heads of all records.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use lockstep_proto::batch::is_settings;
use lockstep_proto::error::Error;
use lockstep_proto::version::DataVersion;
use serde::Serialize;

use super::format::{HEAD_LEN, HEADER_LEN, Head, Header, Kind, NoHeader, SQLITE_MAGIC, statements};

/// Settings are a few words: a longer payload is a transaction.
const SETTINGS_BYTES_MAX: u32 = 4096;

/// What a file holds, as far as the heads of its records tell.
#[derive(Debug)]
pub struct Scan {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// What its header says.
    pub header: Header,
    /// Whole records.
    pub records: u64,
    /// Where the record begins that a replay begins with: the last snapshot, or else the first record.
    pub start: u64,
    /// Where the last whole record ends.
    pub end: u64,
    /// The newest version that a whole record has.
    pub newest: Option<DataVersion>,
    /// Where the first record of a transaction with that version begins; `None` where it is a snapshot's.
    pub newest_at: Option<u64>,
    /// Transactions that are there more than once, oldest first.
    pub rivals: Vec<Rivals>,
    /// What is behind the last whole record.
    pub tail: Option<Tail>,
}

/// Transactions of one version, of which the node committed at most one: after a crash between the hook
/// and the commit lightningd uses the version again, and the plugin fails to remove the abandoned record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rivals {
    /// The version of them all.
    pub data_version: DataVersion,
    /// Where their records begin, in order.
    pub offsets: Vec<u64>,
}

/// A record that was not written to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tail {
    /// Where it begins.
    pub offset: u64,
    /// Bytes that are there of it.
    pub bytes: u64,
}

impl Scan {
    /// Reads the heads of all records. `progress` is told how many bytes were passed.
    ///
    /// # Errors
    /// [`Error::Nothing`] where there is no file, [`Error::Damaged`] with offset and version where it is no
    /// backup of the Python plugin or not a whole one, [`Error::FormatVersion`].
    pub fn read(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Self, Error> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let store = path.display().to_string();
                return Err(Error::Nothing { store, what: "there is no such file".into() });
            }
            file => file.map_err(Error::file("open", path))?,
        };
        let bytes = file.metadata().map_err(Error::file("look at", path))?.len();
        let header = read_header(&file, path, bytes)?;
        let mut scan = Self {
            path: path.to_owned(),
            bytes,
            header,
            records: 0,
            start: HEADER_LEN,
            end: HEADER_LEN,
            newest: None,
            newest_at: None,
            rivals: Vec::new(),
            tail: None,
        };
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        while scan.step(&mut reader)? {
            progress(scan.end);
        }
        Ok(scan)
    }

    /// Passes one record; false where there is none.
    fn step(&mut self, reader: &mut BufReader<File>) -> Result<bool, Error> {
        let at = self.end;
        let left = self.bytes - at;
        if left < HEAD_LEN {
            self.tail = (left > 0).then_some(Tail { offset: at, bytes: left });
            return Ok(false);
        }
        let head = Head::decode(&read_array(reader, &self.path)?);
        let version = DataVersion(head.data_version);
        let damaged = |what: String| damaged(&self.path, at, Some(version), what);
        let kind = match head.kind {
            Ok(kind) => kind,
            // After a power cut a file may have its length, but not yet its content.
            Err(0)
                if head.len == 0 && head.data_version == 0 && rest_is_zero(reader, &self.path)? =>
            {
                self.tail = Some(Tail { offset: at, bytes: left });
                return Ok(false);
            }
            Err(kind) => return Err(damaged(format!("record type {kind}, known are 1 and 2"))),
        };
        let fits = u64::from(head.len) <= left - HEAD_LEN;
        let distance = self.newest.map(|newest| version.ahead_of(newest));
        if !fits {
            // Only what could have been the next record is one that was cut off.
            if distance.is_some_and(|distance| !(-1..=1).contains(&distance)) {
                let what = format!("{} bytes long, {} are left", head.len, left - HEAD_LEN);
                return Err(damaged(what));
            }
            self.tail = Some(Tail { offset: at, bytes: left });
            return Ok(false);
        }
        match kind {
            Kind::Snapshot => {
                let magic: Option<[u8; 16]> =
                    (head.len >= 16).then(|| read_array(reader, &self.path)).transpose()?;
                if magic.as_ref() != Some(SQLITE_MAGIC) {
                    return Err(damaged("a snapshot that is no SQLite database".into()));
                }
                skip(reader, head.len - 16, &self.path)?;
                if distance.is_some_and(|distance| distance < 0) {
                    return Err(damaged(self.out_of_order()));
                }
                (self.start, self.newest, self.newest_at) = (at, Some(version), None);
                self.rivals.clear();
            }
            Kind::Change if head.len == 0 => {
                let what = "a change without statements: the wallet was in PostgreSQL, and this is no backup";
                return Err(damaged(what.into()));
            }
            Kind::Change => {
                let settings = self.pass_change(reader, head.len)?;
                match (settings, distance) {
                    // Settings have the version before the next transaction; an abandoned one was not it.
                    (true, None | Some(-1..=0)) => {}
                    (false, None) if version == DataVersion(1) => self.transaction(at, version),
                    (false, Some(1)) => self.transaction(at, version),
                    (false, Some(0)) if self.newest_at.is_some() => self.rival(at, version),
                    _ => return Err(damaged(self.out_of_order())),
                }
            }
        }
        self.records += 1;
        self.end = at + HEAD_LEN + u64::from(head.len);
        Ok(true)
    }

    fn out_of_order(&self) -> String {
        match self.newest {
            None => {
                "the first transaction is not number 1, and there is no snapshot before it".into()
            }
            Some(newest) => format!("follows data_version {newest}"),
        }
    }

    fn transaction(&mut self, at: u64, version: DataVersion) {
        (self.newest, self.newest_at) = (Some(version), Some(at));
    }

    fn rival(&mut self, at: u64, version: DataVersion) {
        match self.rivals.last_mut().filter(|rivals| rivals.data_version == version) {
            Some(rivals) => rivals.offsets.push(at),
            None => {
                let offsets = self.newest_at.into_iter().chain([at]).collect();
                self.rivals.push(Rivals { data_version: version, offsets });
            }
        }
    }

    /// Passes the payload of a change. True where it holds settings only.
    fn pass_change(&self, reader: &mut BufReader<File>, len: u32) -> Result<bool, Error> {
        if len > SETTINGS_BYTES_MAX {
            skip(reader, len, &self.path)?;
            return Ok(false);
        }
        let mut payload = vec![0; len as usize];
        reader.read_exact(&mut payload).map_err(Error::file("read", &self.path))?;
        Ok(statements(&payload).is_some_and(|statements| is_settings(&statements)))
    }

    /// The newest version that the file is known to have had: that of its records or that of its header.
    pub fn known(&self) -> DataVersion {
        let header = DataVersion(self.header.data_version);
        self.newest.filter(|newest| newest.ahead_of(header) > 0).unwrap_or(header)
    }

    /// True where the header counts records that are not there: the plugin had acknowledged them.
    pub fn lacks_acknowledged(&self) -> bool {
        self.newest != Some(self.known()) && self.known() != DataVersion(0)
    }
}

/// An error that names the place.
pub fn damaged(
    path: &Path,
    offset: u64,
    version: Option<DataVersion>,
    what: impl Into<String>,
) -> Error {
    let version = version.map_or(String::new(), |version| format!(" (data_version {version})"));
    let place = format!("'{}', record at offset {offset}{version}", path.display());
    Error::Damaged { place, what: what.into() }
}

fn read_header(mut file: &File, path: &Path, bytes: u64) -> Result<Header, Error> {
    let not = |what: &str| Error::Damaged {
        place: format!("'{}', header at offset 0", path.display()),
        what: format!("{what}: this is no backup of the Python plugin, or its header is damaged"),
    };
    if bytes < HEADER_LEN {
        return Err(not(&format!("{bytes} bytes, a header has {HEADER_LEN}")));
    }
    let mut header = [0; HEADER_LEN as usize];
    file.read_exact(&mut header).map_err(Error::file("read", path))?;
    Header::decode(&header).map_err(|error| match error {
        NoHeader::Version(version) => not(&format!("file version {version}, known is 1")),
        NoHeader::Malformed => not("malformed"),
    })
}

fn read_array<const N: usize>(reader: &mut impl Read, path: &Path) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).map_err(Error::file("read", path))?;
    Ok(bytes)
}

/// Goes on without throwing away what is buffered.
fn skip(reader: &mut BufReader<File>, bytes: u32, path: &Path) -> Result<(), Error> {
    reader.seek_relative(bytes.into()).map_err(Error::file("read", path))
}

/// Reads to the end; true where all of it is zeros.
fn rest_is_zero(reader: &mut BufReader<File>, path: &Path) -> Result<bool, Error> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut chunk).map_err(Error::file("read", path))? {
            0 => return Ok(true),
            len if chunk[..len].iter().any(|&byte| byte != 0) => return Ok(false),
            _ => {}
        }
    }
}
