//! One pass over the heads of all records.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lockstep_proto::batch::is_settings;
use lockstep_proto::error::Error;
use lockstep_proto::version::DataVersion;
use serde::Serialize;

use crate::format::{HEAD_LEN, HEADER_LEN, Head, Header, Kind, NoHeader, SQLITE_MAGIC, statements};

/// Settings are a few words: a longer payload is a transaction.
const SETTINGS_BYTES_MAX: u32 = 4096;

/// How far behind an incomplete record the next is looked for.
const FRAGMENT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Incomplete records that are passed over.
const FRAGMENTS_MAX: usize = 8;

/// What a file holds, as far as the heads of its records tell.
#[derive(Debug, Clone)]
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
    /// Records that were not written to their end, with others behind them: the disk was full, the plugin died,
    /// and went on at the end of the file when it was started again.
    pub fragments: Vec<Tail>,
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
        let scan = Self {
            path: path.to_owned(),
            bytes,
            header,
            records: 0,
            start: HEADER_LEN,
            end: HEADER_LEN,
            newest: None,
            newest_at: None,
            rivals: Vec::new(),
            fragments: Vec::new(),
            tail: None,
        };
        scan.walk(&mut BufReader::with_capacity(64 * 1024, file), progress)
    }

    /// Passes all records from here on. Where that leads nowhere, or not to the version that the header counts,
    /// the record before may be one that was not written to its end.
    fn walk(
        mut self,
        reader: &mut BufReader<File>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, Error> {
        let mut before = self.clone();
        let ended = loop {
            let here = self.clone();
            match self.step(reader) {
                Ok(true) => before = here,
                Ok(false) => break Ok(()),
                Err(error) => {
                    self = here;
                    break Err(error);
                }
            }
            progress(self.end);
        };
        if ended.is_ok() && !self.lacks_acknowledged() {
            return Ok(self);
        }
        if self.fragments.len() < FRAGMENTS_MAX {
            let here = Self { tail: None, ..self.clone() };
            for suspect in [before, here] {
                if let Some(passed) = suspect.pass_fragment(reader, progress)? {
                    return Ok(passed);
                }
            }
        }
        ended.map(|()| self)
    }

    /// Takes what comes next for a record that was not written to its end, which therefore was never
    /// acknowledged: its version was used again by the record behind it. `None` unless there is one from which
    /// all leads to the version that the header counts.
    fn pass_fragment(
        &self,
        reader: &mut BufReader<File>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<Self>, Error> {
        let len = (self.bytes - self.end).min(FRAGMENT_BYTES_MAX);
        let mut chunk = vec![0; len as usize];
        let read = reader.get_ref().read_exact_at(&mut chunk, self.end);
        read.map_err(Error::file("read", &self.path))?;
        let heads =
            chunk.windows(HEAD_LEN as usize).map(|head| head.first_chunk().map(Head::decode));
        let heads: Vec<Option<Head>> = heads.collect();
        for (behind, head) in heads.iter().enumerate().skip(1) {
            let Some(head) = head.filter(|head| head.kind == Ok(Kind::Change)) else { continue };
            let version = DataVersion(head.data_version);
            let next_to =
                self.newest.is_some_and(|newest| matches!(version.ahead_of(newest), 0..=1));
            // Where it has a head, its version is that which was used again.
            let same = behind < HEAD_LEN as usize
                || heads[0].is_some_and(|first| first.data_version == head.data_version);
            if !next_to || !same {
                continue;
            }
            let mut next = self.clone();
            next.end += behind as u64;
            next.fragments.push(Tail { offset: self.end, bytes: behind as u64 });
            let seek = reader.seek(SeekFrom::Start(next.end));
            seek.map_err(Error::file("read", &self.path))?;
            match next.walk(reader, progress) {
                Ok(passed) if passed.is_as_counted() => return Ok(Some(passed)),
                _ => {}
            }
        }
        Ok(None)
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

    /// True where the records end with the version that the header counts, and none is missing.
    fn is_as_counted(&self) -> bool {
        self.newest == Some(DataVersion(self.header.data_version)) && !self.lacks_acknowledged()
    }

    /// True where the header counts records that are not there: the plugin had acknowledged them.
    pub fn lacks_acknowledged(&self) -> bool {
        self.newest.unwrap_or_default() != self.known() || self.header.records > self.records
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

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: &str = "CREATE TABLE vars (name, intval)";

    fn record(version: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        [&len.to_be_bytes()[..], &version.to_be_bytes(), &[kind], payload].concat()
    }

    fn change(version: u32, sql: &str) -> Vec<u8> {
        record(version, 1, sql.as_bytes())
    }

    fn file(header_version: u32, records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN as usize];
        bytes[3] = 1;
        bytes[4..8].copy_from_slice(&header_version.to_be_bytes());
        bytes[14] = 2;
        bytes.extend(records.concat());
        bytes
    }

    fn scan(bytes: &[u8]) -> Result<Scan, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old.bkp");
        std::fs::write(&path, bytes).unwrap();
        Scan::read(&path, &mut |_| {})
    }

    #[track_caller]
    fn assert_damaged(bytes: &[u8], words: &str) {
        let error = scan(bytes).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn nothing_is_a_backup_too() {
        let scan = scan(&file(0, &[])).unwrap();
        assert_eq!((scan.records, scan.newest, scan.tail), (0, None, None));
        assert!(!scan.lacks_acknowledged());
    }

    #[test]
    fn versions_follow_each_other() {
        let good = [change(1, CREATE), change(2, "B"), change(3, "C")];
        let scan = scan(&file(3, &good)).unwrap();
        assert_eq!((scan.records, scan.newest), (3, Some(DataVersion(3))));
        assert!(scan.rivals.is_empty() && scan.fragments.is_empty());
        let second = HEADER_LEN + 9 + CREATE.len() as u64;
        for wrong in [3, 0, 9] {
            assert_damaged(
                &file(wrong, &[change(1, CREATE), change(wrong, "B")]),
                &format!("offset {second} (data_version {wrong}): follows data_version 1"),
            );
        }
        assert_damaged(&file(5, &[change(5, "A")]), "there is no snapshot before it");
        assert_damaged(&file(1, &[record(1, 7, b"A")]), "record type 7");
        assert_damaged(&file(1, &[change(1, "")]), "PostgreSQL");
    }

    #[test]
    fn settings_have_no_version_of_their_own() {
        let (off, on) = ("PRAGMA foreign_keys = OFF;", "PRAGMA foreign_keys = ON;");
        let records =
            [change(1, CREATE), change(1, off), change(2, "B"), change(2, on), change(3, "C")];
        assert!(scan(&file(3, &records)).unwrap().rivals.is_empty());
        // Abandoned, then the settings of the next session, then what came in its place.
        let records = [change(1, CREATE), change(2, "B"), change(1, off), change(2, "C")];
        assert_eq!(scan(&file(2, &records)).unwrap().rivals.len(), 1);
    }

    #[test]
    fn rivals_are_found() {
        let records = [
            change(1, CREATE),
            change(2, "B"),
            change(2, "C"),
            change(2, "D"),
            change(3, "E"),
            change(4, "F"),
            change(4, "G"),
        ];
        let scan = scan(&file(4, &records)).unwrap();
        let first = HEADER_LEN + 9 + CREATE.len() as u64;
        let rivals = |version, offsets: &[u64]| Rivals {
            data_version: DataVersion(version),
            offsets: offsets.iter().map(|offset| first + offset).collect(),
        };
        assert_eq!(scan.rivals, [rivals(2, &[0, 10, 20]), rivals(4, &[40, 50])]);
        assert_eq!(scan.newest_at, Some(first + 40));
    }

    #[test]
    fn a_snapshot_is_a_new_beginning() {
        let snapshot = record(7, 2, b"SQLite format 3\0 and so on");
        let records = [change(1, CREATE), change(2, "B"), change(2, "C"), snapshot, change(8, "D")];
        let found = scan(&file(8, &records)).unwrap();
        assert!(found.rivals.is_empty());
        assert_eq!(found.start, HEADER_LEN + 9 + CREATE.len() as u64 + 20);
        assert_damaged(&file(7, &[record(7, 2, b"short")]), "no SQLite database");
        let same = [record(7, 2, b"SQLite format 3\0"), change(7, "D")];
        assert_damaged(&file(7, &same), "follows data_version 7");
    }

    #[test]
    fn a_record_that_was_cut_off_is_told_from_the_others() {
        let whole = file(3, &[change(1, CREATE), change(2, "BB"), change(3, "CCC")]);
        let ends: Vec<usize> = [0, 9 + CREATE.len(), 11, 12]
            .iter()
            .scan(HEADER_LEN as usize, |end, len| {
                *end += len;
                Some(*end)
            })
            .collect();
        for len in HEADER_LEN as usize..whole.len() {
            let scan = scan(&whole[..len]).unwrap();
            let records = ends.iter().filter(|&&end| end <= len).count() - 1;
            assert_eq!(scan.records, records as u64, "{len} bytes");
            assert_eq!(scan.tail.is_none(), ends.contains(&len), "{len} bytes");
            assert!(scan.lacks_acknowledged(), "{len} bytes");
        }
        // One that came in the place of another has the version that the header counts already.
        let mut rivals = file(2, &[change(1, CREATE), change(2, "BB"), change(2, "CC")]);
        rivals[35] = 3;
        assert!(!scan(&rivals).unwrap().lacks_acknowledged());
        assert!(scan(&rivals[..rivals.len() - 1]).unwrap().lacks_acknowledged());
        assert!(scan(&rivals[..rivals.len() - 11]).unwrap().lacks_acknowledged());
        // The header did not count it yet: nobody was told that it was written.
        let early = file(2, &[change(1, CREATE), change(2, "BB"), change(3, "CCC")[..11].to_vec()]);
        let scan = scan(&early).unwrap();
        assert!(scan.tail.is_some() && !scan.lacks_acknowledged());
        assert_eq!(scan.newest, Some(DataVersion(2)));
    }

    #[test]
    fn zeros_of_a_power_cut_are_a_tail() {
        let mut bytes = file(1, &[change(1, CREATE)]);
        bytes.extend([0; 100]);
        assert_eq!(scan(&bytes).unwrap().tail.unwrap().bytes, 100);
        bytes.push(1);
        assert_damaged(&bytes, "record type 0");
    }

    #[test]
    fn a_fragment_is_passed_over_where_its_version_was_used_again() {
        let torn = change(3, &"C".repeat(300));
        let again = change(3, &"D".repeat(250));
        // At 50 bytes it ends where the one behind it ends, by chance: only SQLite sees that then.
        for len in (1..torn.len()).filter(|&len| len != 50) {
            let mut records = vec![change(1, CREATE), change(2, "B"), torn[..len].to_vec()];
            records.extend([again.clone(), change(4, "E"), change(5, "F")]);
            let scan = scan(&file(5, &records)).unwrap_or_else(|error| panic!("{len}: {error}"));
            assert_eq!(scan.newest, Some(DataVersion(5)), "{len}");
            assert_eq!(scan.records, 5, "{len}");
            assert_eq!(scan.fragments.len(), 1, "{len}");
            assert_eq!(scan.fragments[0].bytes, len as u64);
        }
    }

    #[test]
    fn a_hole_is_no_fragment() {
        // Written to its end once: its version was not used again.
        let mut records = vec![change(1, CREATE), change(2, "B"), change(3, &"C".repeat(300))];
        records[2].truncate(200);
        records.extend([change(4, "E"), change(5, "F")]);
        let found = scan(&file(5, &records));
        assert!(found.is_err() || found.unwrap().lacks_acknowledged());
    }

    #[test]
    fn no_file_and_no_header() {
        let missing = Scan::read(Path::new("/nonexistent/old.bkp"), &mut |_| {});
        assert!(matches!(missing, Err(Error::Nothing { .. })));
        assert_damaged(b"", "0 bytes");
        assert_damaged(&[0x55; 600], "malformed");
        assert_damaged(&[&[0, 0, 0, 2][..], &file(0, &[])[4..]].concat(), "file version 2");
    }
}
