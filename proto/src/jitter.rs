//! Pauses that do not end at the same moment as everybody else's.

use std::time::Duration;

use crate::seal::random_token;

/// Half of a pause, and a random part of the other half.
pub fn jittered(pause: Duration) -> Duration {
    let random = random_token::<1>().map_or(128, |[byte]| byte);
    pause / 2 + pause.mul_f64(f64::from(random) / 510.0)
}
