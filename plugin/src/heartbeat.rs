//! While the node is quiet, each destination is told now and then that it is alive: a restore elsewhere asks before
//! it shuts a node out that was heard of lately.
//!
//! A thread for each destination, for one that hangs must not silence the others. The hook does nothing for it and
//! never waits for it; what goes wrong is one line in the log, and the backup goes on.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lockstep_proto::config::NamedDestination;
use lockstep_proto::error::Result;
use lockstep_proto::fence::Claimant;
use lockstep_proto::heartbeat::Heartbeat;
use lockstep_proto::seal::KeyRing;

use crate::clock::now;
use crate::places::Places;
use crate::status::SharedStatus;
use crate::wire::{Level, Output};

/// How often a thread looks whether something is due.
const LOOK: Duration = Duration::from_millis(500);

/// What heartbeats say, and how often.
#[derive(Clone)]
pub struct Heart {
    /// Seals them.
    pub keys: KeyRing,
    /// Who is alive.
    pub by: Claimant,
    /// As long a silence is broken.
    pub interval: Duration,
    /// Tells when the hook has appended, and which epoch's writer it is.
    pub status: SharedStatus,
    /// For what goes wrong.
    pub output: Arc<Output>,
}

impl Heart {
    /// Starts the threads; each ends with the log, or when its place is not written to any more.
    ///
    /// # Errors
    /// Where there can be no thread: a restore elsewhere then finds the node silent.
    pub fn start(self, places: &[NamedDestination]) -> std::io::Result<()> {
        for place in places {
            let (heart, place) = (self.clone(), place.clone());
            thread::Builder::new().name("heartbeat".into()).spawn(move || heart.run(&place))?;
        }
        Ok(())
    }

    fn run(&self, place: &NamedDestination) {
        let mut rhythm = Rhythm { interval: self.interval, last: None };
        let (mut cleared, mut told) = (0, false);
        loop {
            thread::sleep(LOOK);
            let (epoch, appended) = {
                let status = self.status.lock();
                let written = |places: &Places| places.named().iter().any(|of| of.url == place.url);
                if status.closed || !status.places.as_ref().is_some_and(written) {
                    return;
                }
                (status.log.epoch, status.appended_at)
            };
            if !rhythm.is_due(epoch, appended, Instant::now()) {
                continue;
            }
            rhythm.last = Some((epoch, Instant::now()));
            match self.beat(place, epoch, epoch != cleared) {
                Ok(()) => cleared = epoch,
                Err(error) if !told => {
                    told = true;
                    let line = format!(
                        "'{}' is not told that this node is alive: {}; the backup goes on",
                        place.name,
                        error.explain()
                    );
                    self.output.log(Level::Unusual, &line);
                }
                Err(_) => {}
            }
        }
    }

    /// The place is opened anew each time: it may have gone away meanwhile, and something else lie there.
    fn beat(&self, place: &NamedDestination, epoch: u32, first: bool) -> Result<()> {
        let store = place.url.open_of(self.keys.store())?;
        let (time, interval_s) = (now(), self.interval.as_secs());
        Heartbeat { time, interval_s, by: self.by.clone() }.beat(&*store, &self.keys, epoch)?;
        if first { Heartbeat::remove_older(&*store, epoch) } else { Ok(()) }
    }
}

/// When a heartbeat is due.
struct Rhythm {
    interval: Duration,
    /// The newest one, and its epoch.
    last: Option<(u32, Instant)>,
}

impl Rhythm {
    /// The first of an epoch at once, so that whoever reads it knows the interval; then when neither a heartbeat nor
    /// a record was written for so long.
    fn is_due(&self, epoch: u32, appended: Option<Instant>, now: Instant) -> bool {
        match self.last {
            Some((of, last)) if of == epoch => {
                let newest = appended.map_or(last, |appended| appended.max(last));
                now.saturating_duration_since(newest) >= self.interval
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_silence_is_broken() {
        let interval = Duration::from_secs(300);
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let new = Rhythm { interval, last: None };
        assert!(new.is_due(3, Some(at(0)), at(0)), "the first one at once");
        let rhythm = Rhythm { interval, last: Some((3, at(0))) };
        assert!(!rhythm.is_due(3, None, at(299)));
        assert!(rhythm.is_due(3, None, at(300)));
        assert!(!rhythm.is_due(3, Some(at(200)), at(499)), "a record is as good");
        assert!(rhythm.is_due(3, Some(at(200)), at(500)));
        assert!(rhythm.is_due(4, Some(at(200)), at(201)), "of a new epoch nothing is known");
    }
}
