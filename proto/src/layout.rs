//! Object names. Fixed width, so that names sort as what they name.

use std::fmt;

use crate::seal::Header;

/// The marker that makes a folder a store.
pub const MARKER: &str = "lockstep.json";
/// Folder of the key slots.
pub const KEYS: &str = "keys";
/// Folder of the claims.
pub const EPOCHS: &str = "epochs";
/// Folder of the log: one folder a generation.
pub const LOG: &str = "log";
/// Folder of the snapshots: one folder a generation.
pub const SNAPSHOTS: &str = "snapshots";

/// Folder of the holds.
pub const HOLDS: &str = "holds";

/// Folder of what says where retention has made logs begin.
pub const BEGINNINGS: &str = "beginnings";

/// Folder of the heartbeats.
pub const HEARTBEATS: &str = "heartbeats";

/// Folder of the companion files.
pub const FILES: &str = "files";

/// Folder of the parts of segments that are being written, where a place cannot append.
pub const TAIL: &str = "tail";

const PART_SUFFIX: &str = ".part";
const SEGMENT_SUFFIX: &str = ".seg";
const SNAPSHOT_SUFFIX: &str = ".snap";

/// Name of the claim of `epoch`.
pub fn claim(epoch: u32) -> String {
    format!("{EPOCHS}/{epoch:08x}")
}

/// The epoch that a name in [`EPOCHS`] claims.
pub fn parse_claim(file: &str) -> Option<u32> {
    parse_hex(file, 8).and_then(|epoch| u32::try_from(epoch).ok())
}

/// Name of the heartbeat of `epoch`.
pub fn heartbeat(epoch: u32) -> String {
    format!("{HEARTBEATS}/{epoch:08x}")
}

/// The epoch of a file name in [`HEARTBEATS`].
pub fn parse_heartbeat(file: &str) -> Option<u32> {
    parse_claim(file)
}

/// Name of the set of companion files that so many of `epoch` come before.
pub fn files(epoch: u32, index: u32) -> String {
    format!("{FILES}/{epoch:08x}-{index:08x}")
}

/// Epoch and index of a file name in [`FILES`].
pub fn parse_files(file: &str) -> Option<(u32, u32)> {
    let (epoch, index) = file.split_once('-')?;
    Some((parse_claim(epoch)?, parse_claim(index)?))
}

/// Name of the hold at `seq` of a generation.
pub fn hold(generation: u32, seq: u64) -> String {
    format!("{HOLDS}/{generation:08x}-{seq:016x}")
}

/// Generation and seq of a file name in [`HOLDS`].
pub fn parse_hold(file: &str) -> Option<(u32, u64)> {
    let (generation, seq) = file.split_once('-')?;
    Some((parse_claim(generation)?, parse_hex(seq, 16)?))
}

/// Name of what says that a generation's log begins with the segment of this epoch and index, or the next one.
pub fn beginning(generation: u32, (epoch, index): (u32, u32)) -> String {
    format!("{BEGINNINGS}/{generation:08x}-{epoch:08x}-{index:08x}")
}

/// Generation, and epoch and index, of a file name in [`BEGINNINGS`].
pub fn parse_beginning(file: &str) -> Option<(u32, (u32, u32))> {
    let mut numbers = file.split('-').map(parse_claim);
    let (generation, epoch, index) = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some((generation, (epoch, index)))
}

/// Folder of a generation's segments.
pub fn log_folder(generation: u32) -> String {
    format!("{LOG}/{generation:08x}")
}

/// Folder of a generation's snapshots.
pub fn snapshot_folder(generation: u32) -> String {
    format!("{SNAPSHOTS}/{generation:08x}")
}

/// The generation that a folder name in [`LOG`] or [`SNAPSHOTS`] names.
pub fn parse_generation(folder: &str) -> Option<u32> {
    parse_claim(folder)
}

/// Name of a part: `tail/SEQ.part`; with the epoch and index of its segment `tail/SEQ-EPOCH-INDEX.part`.
pub fn part(seq: u64, owner: Option<(u32, u32)>) -> String {
    match owner {
        None => format!("{TAIL}/{seq:016x}{PART_SUFFIX}"),
        Some((epoch, index)) => {
            format!("{TAIL}/{seq:016x}-{epoch:08x}-{index:08x}{PART_SUFFIX}")
        }
    }
}

/// Sorts before the parts of `seq`, and behind those of all records before it.
pub fn before_part(seq: u64) -> String {
    format!("{TAIL}/{seq:016x}")
}

/// Seq and, where it tells, epoch and index of a file name in [`TAIL`].
pub fn parse_part(file: &str) -> Option<(u64, Option<(u32, u32)>)> {
    let mut numbers = file.strip_suffix(PART_SUFFIX)?.split('-');
    let seq = parse_hex(numbers.next()?, 16)?;
    let Some(epoch) = numbers.next() else { return Some((seq, None)) };
    let owner = (parse_claim(epoch)?, parse_claim(numbers.next()?)?);
    numbers.next().is_none().then_some((seq, Some(owner)))
}

/// Name of a segment: `log/GENERATION/EPOCH-INDEX-SEQ.seg`, each number hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The history that it belongs to.
    pub generation: u32,
    /// The writer that made it.
    pub epoch: u32,
    /// How many segments the writer opened before it.
    pub index: u32,
    /// Seq of its first record.
    pub first_seq: u64,
}

impl SegmentName {
    /// The name of the segment that begins with a header.
    pub fn of(header: &Header) -> Self {
        let Header { generation, epoch, index, seq, .. } = *header;
        Self { generation, epoch, index, first_seq: seq }
    }

    /// Reads a file name in the folder of `generation`.
    pub fn parse(generation: u32, file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(SEGMENT_SUFFIX)?.split('-');
        let epoch = u32::try_from(parse_hex(parts.next()?, 8)?).ok()?;
        let index = u32::try_from(parse_hex(parts.next()?, 8)?).ok()?;
        let first_seq = parse_hex(parts.next()?, 16)?;
        parts.next().is_none().then_some(Self { generation, epoch, index, first_seq })
    }

    /// Reads a name as it is in [`LOG`]: the generation's folder, and the file.
    pub fn parse_below(name: &str) -> Option<Self> {
        let (generation, file) = name.split_once('/')?;
        Self::parse(parse_generation(generation)?, file)
    }

    /// Epoch and index: of two segments the later one has the higher.
    pub fn age(&self) -> (u32, u32) {
        (self.epoch, self.index)
    }

    /// Reads an object name.
    pub fn parse_object(object: &str) -> Option<Self> {
        Self::parse_below(object.strip_prefix(LOG)?.strip_prefix('/')?)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, epoch, index, first_seq } = self;
        write!(f, "{}/{epoch:08x}-{index:08x}-{first_seq:016x}", log_folder(*generation))?;
        f.write_str(SEGMENT_SUFFIX)
    }
}

/// Name of a snapshot: `snapshots/GENERATION/SEQ-EPOCH-INDEX.snap`, each number hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    /// The history that it belongs to.
    pub generation: u32,
    /// The newest record that it holds.
    pub seq: u64,
    /// The writer that made it.
    pub epoch: u32,
    /// How many objects the writer began before it; of a snapshot that compaction made, at least
    /// [`FIRST_COMPACTED`](Self::FIRST_COMPACTED), and random.
    pub index: u32,
}

impl SnapshotName {
    /// The lowest index of a snapshot that compaction made: more than one process may compact.
    pub const FIRST_COMPACTED: u32 = 1 << 31;

    /// True where compaction made it, and no generation begins with it.
    pub fn is_compacted(&self) -> bool {
        self.index >= Self::FIRST_COMPACTED
    }

    /// Reads a file name in the folder of `generation`.
    pub fn parse(generation: u32, file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(SNAPSHOT_SUFFIX)?.split('-');
        let seq = parse_hex(parts.next()?, 16)?;
        let epoch = u32::try_from(parse_hex(parts.next()?, 8)?).ok()?;
        let index = u32::try_from(parse_hex(parts.next()?, 8)?).ok()?;
        parts.next().is_none().then_some(Self { generation, seq, epoch, index })
    }

    /// Reads an object name.
    pub fn parse_object(object: &str) -> Option<Self> {
        let (generation, file) =
            object.strip_prefix(SNAPSHOTS)?.strip_prefix('/')?.split_once('/')?;
        Self::parse(parse_generation(generation)?, file)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, seq, epoch, index } = self;
        write!(f, "{}/{seq:016x}-{epoch:08x}-{index:08x}", snapshot_folder(*generation))?;
        f.write_str(SNAPSHOT_SUFFIX)
    }
}

/// Exactly `digits` lower-case hexadecimal digits.
fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (text.len() == digits && text.bytes().all(lower))
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_sort_as_segments_and_parse_back() {
        let name = |epoch, index, first_seq| SegmentName { generation: 3, epoch, index, first_seq };
        let names = [name(1, 0, 1), name(1, 1, 700), name(2, 0, 699), name(16, 0, 12_345)];
        let mut texts: Vec<_> = names.iter().map(ToString::to_string).collect();
        texts.sort();
        for (name, text) in names.iter().zip(&texts) {
            let file = text.strip_prefix("log/00000003/").unwrap();
            assert_eq!(SegmentName::parse(3, file), Some(*name));
        }
    }

    #[test]
    fn snapshot_names_parse_back() {
        let name = SnapshotName { generation: 7, seq: 0x1_0000_0002, epoch: 9, index: 1 << 31 };
        assert_eq!(SnapshotName::parse_object(&name.to_string()), Some(name));
        for other in ["", "snapshots/7/x.snap", "log/00000007/0-0-0.snap", "snapshots/00000007"] {
            assert_eq!(SnapshotName::parse_object(other), None, "{other}");
        }
    }

    #[test]
    fn foreign_names_are_no_segments() {
        for file in [
            "",
            ".seg",
            "x.seg",
            "00000001-00000000-0000000000000001",
            "+0000001-00000000-0000000000000001.seg",
            "00000001-00000000-000000000000000A.seg",
            ".00000001-00000000-0000000000000001.seg.tmp",
        ] {
            assert_eq!(SegmentName::parse(1, file), None, "{file}");
        }
    }
}
