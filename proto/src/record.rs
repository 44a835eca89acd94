//! Records: what one frame of a segment holds.

use serde::{Deserialize, Serialize};

use crate::batch::wire::{put_varint, take_varint};
use crate::replica::Mode;
use crate::seal::Chain;
use crate::version::DataVersion;

/// Milliseconds since 1970-01-01 UTC.
pub type TimeMs = u64;

/// The kinds of record of this format version, by their byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Open = 1,
    Batch = 2,
    Rewind = 3,
    Close = 4,
    Settings = 5,
}

/// The newest record kind that this program knows.
const NEWEST_KIND: u8 = Kind::Settings as u8;

/// One record. A batch borrows its compressed statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// The first record of every segment.
    Open(Box<Open>),
    /// The statements of one `db_write`.
    Batch(Batch<'a>),
    /// A batch that the node never committed.
    Rewind(Rewind),
    /// The last record of a segment that was ended in order.
    Close(Close),
}

/// The start of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// When it was opened; the times of the batches behind count from here.
    pub time: TimeMs,
    /// Program and version that wrote it.
    pub writer: String,
    /// The token of the writer's claim, 32 hexadecimal digits.
    pub session: String,
    /// Machine name of the writer.
    pub host: String,
    /// The directory that the log belongs to, as its lock file names it. Only from there a batch in
    /// doubt may be voided, or the log continued: a database that was restored elsewhere is not this one's.
    pub directory: String,
    /// What the log held before this segment.
    pub head: Head,
    /// Present where this segment starts a generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// All places that the log is written to, where there are several.
    #[serde(default, skip_serializing_if = "Destinations::is_empty")]
    pub destinations: Destinations,
}

/// The places of a log that is written to several: what a restore looks at before it takes a state for the newest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Destinations {
    /// Each of them.
    pub named: Vec<KnownDestination>,
    /// How many of the `sync` ones have what was acknowledged; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<u32>,
}

impl Destinations {
    /// True where the log has one place, which whoever reads this knows.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// One of the places of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownDestination {
    /// How messages name it.
    pub name: String,
    /// Where it is, without credentials.
    pub url: String,
    /// Whether an append waits for it.
    #[serde(default, skip_serializing_if = "Mode::is_sync")]
    pub mode: Mode,
}

/// What a log holds, as far as versions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// lightningd's version after the newest transaction; `None` before any.
    pub data_version: Option<DataVersion>,
    /// The newest batch that was a transaction, where there is one in this generation.
    #[serde(default)]
    pub batch_seq: Option<u64>,
    /// True while nothing has shown that the node committed that batch.
    #[serde(default)]
    pub in_doubt: bool,
}

impl Head {
    /// True where there is no transaction in the log, and none before it.
    pub fn is_empty(&self) -> bool {
        self.batch_seq.is_none() && matches!(self.data_version, None | Some(DataVersion(0)))
    }
}

/// How a generation began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Why there is a new generation.
    pub reason: StartReason,
    /// The snapshot that it begins with; `None` where it begins with an empty database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
}

/// Why a generation began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartReason {
    /// The store was new.
    Init,
    /// The node's database was ahead of the log.
    Gap,
    /// Somebody went back to an older state.
    Rollback,
}

impl std::fmt::Display for StartReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Init => "init",
            Self::Gap => "gap",
            Self::Rollback => "rollback",
        })
    }
}

/// A snapshot, by name and by the chain hash of its last frame, which binds every byte of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Object name.
    pub name: String,
    /// Chain hash after its last frame.
    #[serde(with = "chain_hex")]
    pub chain: Chain,
}

mod chain_hex {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::{hex, seal::Chain};

    pub fn serialize<S: Serializer>(chain: &Chain, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&chain.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Chain, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(&text).map(Chain).ok_or_else(|| serde::de::Error::custom("not a chain hash"))
    }
}

/// The statements of one `db_write`, compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// lightningd's version with the batch.
    pub data_version: DataVersion,
    /// False for settings (`PRAGMA …`) that lightningd makes outside of any transaction.
    pub transaction: bool,
    /// Milliseconds since the record before.
    pub elapsed_ms: u64,
    /// The part of the segment's compressed stream that holds the statements.
    pub statements: &'a [u8],
}

/// States that a batch was never committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewind {
    /// When that was found.
    pub time: TimeMs,
    /// The batch that is void.
    pub seq: u64,
    /// The version that the void batch claimed.
    pub data_version: DataVersion,
}

/// The end of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// When it ended.
    pub time: TimeMs,
    /// Why.
    pub reason: CloseReason,
}

/// Why a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CloseReason {
    /// It was full: the next segment goes on.
    Full,
    /// The writer ended.
    Shutdown,
}

impl Batch<'_> {
    /// Writes what comes before the statements.
    pub(crate) fn put_head(
        data_version: DataVersion,
        transaction: bool,
        elapsed_ms: u64,
        out: &mut Vec<u8>,
    ) {
        out.push(if transaction { Kind::Batch } else { Kind::Settings } as u8);
        out.extend_from_slice(&data_version.0.to_le_bytes());
        put_varint(out, elapsed_ms);
    }
}

impl<'a> Record<'a> {
    /// Appends the record's bytes to `out`.
    ///
    /// # Errors
    /// Never in practice: no record has anything that JSON cannot say.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let written = match self {
            Self::Open(open) => {
                out.push(Kind::Open as u8);
                serde_json::to_writer(out, open)
            }
            Self::Batch(batch) => {
                Batch::put_head(batch.data_version, batch.transaction, batch.elapsed_ms, out);
                out.extend_from_slice(batch.statements);
                Ok(())
            }
            Self::Rewind(rewind) => {
                out.push(Kind::Rewind as u8);
                serde_json::to_writer(out, rewind)
            }
            Self::Close(close) => {
                out.push(Kind::Close as u8);
                serde_json::to_writer(out, close)
            }
        };
        written.map_err(|_| RecordError::Malformed)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`]: of a kind that this program does not know, or not well formed.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (&kind, body) = bytes.split_first().ok_or(RecordError::Malformed)?;
        let record = match kind {
            k if k == Kind::Open as u8 => serde_json::from_slice(body).ok().map(Record::Open),
            k if k == Kind::Batch as u8 => decode_batch(body, true),
            k if k == Kind::Settings as u8 => decode_batch(body, false),
            k if k == Kind::Rewind as u8 => serde_json::from_slice(body).ok().map(Record::Rewind),
            k if k == Kind::Close as u8 => serde_json::from_slice(body).ok().map(Record::Close),
            unknown => return Err(RecordError::Kind(unknown)),
        };
        record.ok_or(RecordError::Malformed)
    }
}

fn decode_batch(body: &[u8], transaction: bool) -> Option<Record<'_>> {
    let (version, rest) = body.split_first_chunk::<4>()?;
    let (elapsed_ms, statements) = take_varint(rest)?;
    let data_version = DataVersion(u32::from_le_bytes(*version));
    Some(Record::Batch(Batch { data_version, transaction, elapsed_ms, statements }))
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Of a kind that this program does not know.
    #[error("record kind {0}, this program knows 1 to {NEWEST_KIND}")]
    Kind(u8),
    /// Not well formed, although authentic.
    #[error("malformed record")]
    Malformed,
}
