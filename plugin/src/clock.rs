//! The time, as records have it.

use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_proto::record::TimeMs;

/// Milliseconds since 1970.
pub fn now() -> TimeMs {
    time_ms(SystemTime::now())
}

/// A time before 1970 is 1970.
pub fn time_ms(time: SystemTime) -> TimeMs {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as TimeMs)
}
