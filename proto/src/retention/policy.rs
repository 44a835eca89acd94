//! What somebody wants to be able to go back to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time, as it was written: `30m` (minutes), `48h`, `7d`, `2w`, `1y` (365 days). Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    count: u32,
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Minutes,
    Hours,
    Days,
    Weeks,
    Years,
}

impl Unit {
    const ALL: [Self; 5] = [Self::Minutes, Self::Hours, Self::Days, Self::Weeks, Self::Years];

    fn letter(self) -> char {
        match self {
            Self::Minutes => 'm',
            Self::Hours => 'h',
            Self::Days => 'd',
            Self::Weeks => 'w',
            Self::Years => 'y',
        }
    }

    fn minutes(self) -> u64 {
        match self {
            Self::Minutes => 1,
            Self::Hours => 60,
            Self::Days => 24 * 60,
            Self::Weeks => 7 * 24 * 60,
            Self::Years => 365 * 24 * 60,
        }
    }
}

impl Span {
    /// So many days; one for none.
    pub const fn days(count: u32) -> Self {
        Self { count: if count == 0 { 1 } else { count }, unit: Unit::Days }
    }

    /// In milliseconds.
    pub fn as_ms(self) -> u64 {
        // What does not fit is for ever.
        u64::from(self.count).saturating_mul(self.unit.minutes()).saturating_mul(60_000)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, self.unit.letter())
    }
}

impl FromStr for Span {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let refused = || PolicyError::Span(text.into());
        let unit = Unit::ALL.into_iter().find(|unit| text.ends_with(unit.letter()));
        let unit = unit.ok_or_else(refused)?;
        let digits = text.strip_suffix(unit.letter()).unwrap_or_default();
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        match digits.parse() {
            Ok(count) if count > 0 => Ok(Self { count, unit }),
            _ => Err(refused()),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Which points in time to keep. A point that any rule keeps stays.
///
/// Each of `keep_hourly` to `keep_monthly` keeps the newest point of each of the last so many periods
/// that have a point at all, in UTC; weeks are those of ISO 8601. A rule that is not named keeps nothing.
///
/// The default suits a node at home. Any moment of the last *7 days*: a mistake, an upgrade or a plugin
/// that spoilt something is noticed within days, and a week of log is small. One point a day for *30
/// days*: to look up what a table held, not to run a node from, for which anything old is dangerous; so no
/// weeks or months. The *2* newest: the newest is not the only one, also on a node that is switched
/// on once a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Policy {
    /// The newest so many points.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_last: u32,
    /// All points of so long a time, and every moment between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<Span>,
    /// One point for each of so many hours.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_hourly: u32,
    /// One point for each of so many days.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_daily: u32,
    /// One point for each of so many weeks.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_weekly: u32,
    /// One point for each of so many months.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_monthly: u32,
}

// What serde calls takes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Policy {
    /// Keeps nothing: where one begins to name rules. Refused by [`Policy::checked`] as it is.
    pub const NOTHING: Self = Self {
        keep_last: 0,
        keep_within: None,
        keep_hourly: 0,
        keep_daily: 0,
        keep_weekly: 0,
        keep_monthly: 0,
    };

    /// Itself, where it keeps anything.
    ///
    /// # Errors
    /// [`PolicyError::Nothing`].
    pub fn checked(self) -> Result<Self, PolicyError> {
        if self == Self::NOTHING { Err(PolicyError::Nothing) } else { Ok(self) }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self { keep_last: 2, keep_within: Some(Span::days(7)), keep_daily: 30, ..Self::NOTHING }
    }
}

/// A policy as it is stored, before it is known to keep anything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    #[serde(default)]
    keep_last: u32,
    #[serde(default)]
    keep_within: Option<Span>,
    #[serde(default)]
    keep_hourly: u32,
    #[serde(default)]
    keep_daily: u32,
    #[serde(default)]
    keep_weekly: u32,
    #[serde(default)]
    keep_monthly: u32,
}

impl TryFrom<Unchecked> for Policy {
    type Error = PolicyError;

    fn try_from(stored: Unchecked) -> Result<Self, PolicyError> {
        let Unchecked {
            keep_last,
            keep_within,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
        } = stored;
        Self { keep_last, keep_within, keep_hourly, keep_daily, keep_weekly, keep_monthly }
            .checked()
    }
}

/// Why a policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// All rules are zero.
    #[error("the policy keeps nothing")]
    Nothing,
    /// Not a length of time.
    #[error("'{0}' is not a length of time")]
    Span(String),
}

impl PolicyError {
    /// What to do instead.
    pub fn hint(&self) -> String {
        match self {
            Self::Nothing => "name at least one rule: '--keep-last 1' keeps the newest point only.",
            Self::Span(_) => {
                "write a number and a unit: 30m (minutes), 48h, 7d, 2w or 1y; for months, '--keep-monthly'."
            }
        }
        .into()
    }
}

impl From<PolicyError> for crate::error::Error {
    fn from(error: PolicyError) -> Self {
        Self::Refused { what: error.to_string(), hint: error.hint() }
    }
}
