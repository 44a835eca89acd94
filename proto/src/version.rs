//! Versions: of the format, and lightningd's `data_version` with its wrap-around.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The format that this library writes, and the newest that it reads.
pub const FORMAT_VERSION: u16 = 1;

/// lightningd's `data_version`: a u32 that grows by one for each transaction that wrote, and wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataVersion(pub u32);

impl DataVersion {
    /// How far `self` is ahead of `other`, by serial-number arithmetic (RFC 1982): negative where
    /// it is behind.
    pub fn ahead_of(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }
}

impl fmt::Display for DataVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::DataVersion;

    #[test]
    fn wraps_around() {
        assert_eq!(DataVersion(0).ahead_of(DataVersion(u32::MAX)), 1);
        assert_eq!(DataVersion(u32::MAX).ahead_of(DataVersion(1)), -2);
        assert_eq!(DataVersion(7).ahead_of(DataVersion(7)), 0);
    }
}
