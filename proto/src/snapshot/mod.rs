//! Snapshots: the pages of a database at a position, as one sealed object.
//!
//! A *base* holds all of them. A *delta* holds those that changed since another snapshot, its parent, and
//! is of use with that one only: newest wins, page by page.

mod lineage;
mod read;
mod write;

use serde::{Deserialize, Serialize};

pub(crate) use self::lineage::nothing_to_go_on_from;
pub use self::lineage::{Depth, Lineage, Link, Summary, newest, published};
pub use self::read::{PageVisitor, Proof, Whole, read, summary};
pub use self::write::{Content, HeaderFields, Pages, write};
use crate::record::{Base, TimeMs};
use crate::version::DataVersion;

/// The first frame of a base.
const META: u8 = 0x10;
const PAGES: u8 = 0x11;
const END: u8 = 0x12;
/// The first frame of a delta.
const DELTA: u8 = 0x13;

/// Bytes of pages that one frame holds, at most.
const CHUNK_BYTES: usize = 256 * 1024;
/// Frames that wait for the next thread, at most.
const FRAMES_AHEAD: usize = 4;

/// What a snapshot holds: its first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// When it was taken.
    pub time: TimeMs,
    /// Bytes of one page.
    pub page_size: u32,
    /// Pages of the database.
    pub page_count: u32,
    /// lightningd's version of the database; `None` where it has none.
    pub data_version: Option<DataVersion>,
    /// Of a delta: the snapshot that has the pages which this one has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Base>,
}

#[derive(Serialize, Deserialize)]
struct End {
    pages: u64,
}
