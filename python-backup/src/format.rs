//! Bytes of the file, all numbers big-endian.
//!
//! The header has 512 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | file version, 1 |
//! | 4 | 4 | `data_version` of the newest record |
//! | 8 | 8 | where the next record goes, as the plugin believes (see below) |
//! | 16 | 4 | `data_version` before the newest, 0 where unknown |
//! | 20 | 8 | where the newest record begins, as the plugin believes |
//! | 28 | 8 | number of records written |
//! | 36 | 476 | zeros |
//!
//! It is written anew after each record. A record has a head of 9 bytes, then its payload:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | bytes of the payload |
//! | 4 | 4 | `data_version` with it |
//! | 8 | 1 | 1: the statements of a `db_write`, with a zero byte between each two; 2: a whole SQLite file |
//!
//! The offsets in the header are not to be relied upon. To take back a batch that the node never committed,
//! the plugin sets them back and writes the next record "there", but it opens the file for appending: the
//! abandoned record stays, its replacement comes behind it with the same version, and from then on the
//! header's offsets are too small by the length of what was abandoned.

/// Bytes of the header.
pub const HEADER_LEN: u64 = 512;
/// Bytes before a record's payload.
pub const HEAD_LEN: u64 = 9;
/// What every SQLite file begins with.
pub const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

const FILE_VERSION: u32 = 1;
const CHANGE: u8 = 1;
const SNAPSHOT: u8 = 2;
/// Bytes of the header that hold anything.
const FIELDS_LEN: usize = 36;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// lightningd's version of the newest record that was written to its end.
    pub data_version: u32,
    /// Records that were written to their end, those that were taken back included: at most as many as there
    /// are, unless the file was cut off. 0 where an older plugin did not count.
    pub records: u64,
}

/// Why these bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHeader {
    /// A file version that the plugin never had.
    Version(u32),
    /// Something else altogether.
    Malformed,
}

impl Header {
    /// Reads the first [`HEADER_LEN`] bytes of a file.
    pub fn decode(bytes: &[u8; HEADER_LEN as usize]) -> Result<Self, NoHeader> {
        let (fields, rest) = bytes.split_at(FIELDS_LEN);
        if rest.iter().any(|&byte| byte != 0) || u64_at(fields, 8) < HEADER_LEN {
            return Err(NoHeader::Malformed);
        }
        match u32_at(fields, 0) {
            FILE_VERSION => {
                Ok(Self { data_version: u32_at(fields, 4), records: u64_at(fields, 28) })
            }
            version @ 2..=255 => Err(NoHeader::Version(version)),
            _ => Err(NoHeader::Malformed),
        }
    }
}

/// The first bytes of a file that holds one snapshot of so many bytes, which come behind them: what the plugin's own
/// `backup-cli init` makes. `None` where a record has no room for so many.
pub fn with_one_snapshot(data_version: u32, len: u64) -> Option<Vec<u8>> {
    let payload = u32::try_from(len).ok()?;
    let mut bytes = Vec::with_capacity((HEADER_LEN + HEAD_LEN) as usize);
    bytes.extend(FILE_VERSION.to_be_bytes());
    bytes.extend(data_version.to_be_bytes());
    bytes.extend((HEADER_LEN + HEAD_LEN + len).to_be_bytes());
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(HEADER_LEN.to_be_bytes());
    bytes.extend(1_u64.to_be_bytes());
    bytes.resize(HEADER_LEN as usize, 0);
    bytes.extend(payload.to_be_bytes());
    bytes.extend(data_version.to_be_bytes());
    bytes.push(SNAPSHOT);
    Some(bytes)
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Statements.
    Change,
    /// A whole database.
    Snapshot,
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the payload.
    pub len: u32,
    /// lightningd's version with it.
    pub data_version: u32,
    /// What the payload is; the byte itself where that is unknown.
    pub kind: Result<Kind, u8>,
}

impl Head {
    /// Reads a head.
    pub fn decode(bytes: &[u8; HEAD_LEN as usize]) -> Self {
        let kind = match bytes[8] {
            CHANGE => Ok(Kind::Change),
            SNAPSHOT => Ok(Kind::Snapshot),
            other => Err(other),
        };
        Self { len: u32_at(bytes, 0), data_version: u32_at(bytes, 4), kind }
    }
}

/// The statements of a change; `None` where they are not UTF-8.
pub fn statements(payload: &[u8]) -> Option<Vec<&str>> {
    payload.split(|&byte| byte == 0).map(|part| std::str::from_utf8(part).ok()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(fields: &[u8]) -> Result<Header, NoHeader> {
        let mut bytes = [0; HEADER_LEN as usize];
        bytes[..fields.len()].copy_from_slice(fields);
        Header::decode(&bytes)
    }

    #[test]
    fn a_header_is_read() {
        // As struct.pack("!IIQIQQ", 1, 46, 79811, 45, 79482, 7) of Python.
        let mut fields = vec![0, 0, 0, 1, 0, 0, 0, 46, 0, 0, 0, 0, 0, 1, 0x37, 0xc3];
        fields.extend([0, 0, 0, 45, 0, 0, 0, 0, 0, 1, 0x36, 0x7a, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(header(&fields), Ok(Header { data_version: 46, records: 7 }));
        fields[3] = 2;
        assert_eq!(header(&fields), Err(NoHeader::Version(2)));
        fields[0] = b'S';
        assert_eq!(header(&fields), Err(NoHeader::Malformed));
        fields[0..4].copy_from_slice(&[0, 0, 0, 1]);
        fields.push(1);
        assert_eq!(header(&fields), Err(NoHeader::Malformed), "something behind the fields");
        assert_eq!(header(&[0, 0, 0, 1]), Err(NoHeader::Malformed), "an end inside the header");
    }

    #[test]
    fn what_is_written_is_what_python_would() {
        // As struct.pack("!IIQIQQ", 1, 46, 512 + 9 + 3, 0, 512, 1).
        let bytes = with_one_snapshot(46, 3).unwrap();
        let fields = [0, 0, 0, 1, 0, 0, 0, 46, 0, 0, 0, 0, 0, 0, 2, 12, 0, 0, 0, 0];
        assert_eq!(bytes[..20], fields);
        assert_eq!(bytes[20..36], [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(bytes[512..], [0, 0, 0, 3, 0, 0, 0, 46, 2]);
        let read = Header::decode(bytes[..512].try_into().unwrap());
        assert_eq!(read, Ok(Header { data_version: 46, records: 1 }));
        assert_eq!(with_one_snapshot(1, 1 << 32), None);
    }

    #[test]
    fn a_head_is_read() {
        let head = Head::decode(&[0, 1, 0, 2, 0xff, 0, 0, 1, 2]);
        assert_eq!((head.len, head.data_version), (65_538, 0xff00_0001));
        assert_eq!(head.kind, Ok(Kind::Snapshot));
        assert_eq!(Head::decode(&[0; 9]).kind, Err(0));
    }

    #[test]
    fn statements_are_separated_by_zeros() {
        assert_eq!(statements(b"A\0B;\0\xc3\xa9"), Some(vec!["A", "B;", "é"]));
        assert_eq!(statements(b"A"), Some(vec!["A"]));
        assert_eq!(statements(b"A\0\xff"), None);
    }
}
