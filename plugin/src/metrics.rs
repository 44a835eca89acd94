//! Numbers for Prometheus, where `backup.lock` asks for them: `GET /metrics` on one address, by a thread of its own.
//!
//! What the hook does for them is three atomic additions after each call; all else is read when somebody asks.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_proto::config::Metrics;
use lockstep_proto::drill::Drill;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::clock::now;
use crate::status::{DestinationStatus, SharedStatus, Status};

/// Upper bounds of the latencies that are counted together, in microseconds.
const BOUNDS_US: [u64; 15] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 5_000_000, 30_000_000,
];
/// Whoever asks must do so in this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest head of a request that is read.
const REQUEST_MAX: usize = 8 << 10;

/// How long appends took, and how often one stalled.
#[derive(Default)]
pub struct Appends {
    /// One for each bound, and one for what is longer than all.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
    stalls: AtomicU64,
}

impl Appends {
    /// One took so long. The hook's thread.
    pub fn took(&self, us: u64) {
        let bound = BOUNDS_US.partition_point(|&bound| bound < us);
        self.counts[bound].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// One waits for its destinations. The hook's thread.
    pub fn stalled(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
    }
}

/// Gives the last drill, if there was one: another program makes them.
type LastDrill = Box<dyn Fn() -> Option<Drill> + Send>;

/// Serves them for as long as the process lives, and gives the address.
///
/// # Errors
/// Where the address cannot be had, or is not this machine's alone and `remote` is not set.
pub fn serve(
    settings: &Metrics,
    status: SharedStatus,
    last_drill: LastDrill,
) -> io::Result<SocketAddr> {
    if !settings.listen.ip().is_loopback() && !settings.remote {
        return Err(io::Error::other(
            "it is not a loopback address. hint: they are not secret, but nobody is asked for a password; set 'remote' \
             in the section 'metrics' of backup.lock if others may see them",
        ));
    }
    let listener = TcpListener::bind(settings.listen)?;
    let address = listener.local_addr()?;
    let answer_all = move || {
        for connection in listener.incoming().flatten() {
            // Who goes away in the middle is told nothing.
            let _ = answer(connection, &status, &last_drill);
        }
    };
    std::thread::Builder::new().name("metrics".into()).spawn(answer_all)?;
    Ok(address)
}

fn answer(
    mut connection: TcpStream,
    status: &SharedStatus,
    last_drill: &LastDrill,
) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while memchr::memmem::find(&request, b"\r\n\r\n").is_none() && request.len() < REQUEST_MAX {
        match connection.read(&mut chunk)? {
            0 => break,
            read => request.extend_from_slice(&chunk[..read]),
        }
    }
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let (code, kind, body) = match line.strip_prefix(b"GET ") {
        None => ("405 Method Not Allowed", "text/plain", "only GET\n".to_owned()),
        Some(rest) if rest.starts_with(b"/metrics ") => {
            let text = scrape(status, last_drill()).map_err(io::Error::other)?;
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
        }
        Some(_) => ("404 Not Found", "text/plain", "see /metrics\n".to_owned()),
    };
    let length = body.len();
    write!(
        connection,
        "HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

fn scrape(status: &SharedStatus, drill: Option<Drill>) -> Result<String, fmt::Error> {
    let appends = status.appends();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let scrape = Scrape {
        counts: appends.counts.iter().map(load).collect(),
        sum_us: load(&appends.sum_us),
        stalls: load(&appends.stalls),
        status: Box::new(status.answer()),
        drill,
    };
    let mut registry = Registry::with_prefix("lockstep");
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// What one answer says.
struct Scrape {
    status: Box<Status>,
    drill: Option<Drill>,
    counts: Vec<u64>,
    sum_us: u64,
    stalls: u64,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

/// What is known of one destination, as a number.
type OfDestination = fn(&DestinationStatus) -> f64;

impl Collector for Scrape {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let Self { status, drill, .. } = self;
        let log = &status.log;
        let version = log.data_version.map(f64::from);
        let written = status.last_append.map(|time| time as f64 / 1000.0);
        let compaction = status.compaction.as_ref();
        let snapshot = compaction.and_then(|of| of.snapshot.as_ref());
        let proven = compaction.and_then(|of| of.proven.as_ref());
        let compared = compaction.and_then(|of| of.compared.as_ref());
        let tail = compaction.and_then(|of| of.tail_bytes).map(|bytes| bytes as f64);
        let restore = compaction.and_then(|of| of.restore_seconds).map(|seconds| seconds as f64);
        let drill = drill.as_ref();
        let drilled = drill.map(|drill| now().saturating_sub(drill.time) as f64 / 1000.0);
        let gauges: [(&str, &str, Option<f64>); 15] = [
            ("head_seq", "Number of the newest acknowledged record", Some(log.seq as f64)),
            ("head_data_version", "lightningd's data_version there", version),
            ("generation", "The history that is written", Some(f64::from(log.generation))),
            ("epoch", "The epoch of this writer", Some(f64::from(log.epoch))),
            ("last_append_timestamp_seconds", "When a transaction was last acknowledged", written),
            ("degraded", "1 where a destination is not current", Some(flag(status.is_degraded()))),
            ("key_slots", "Ways in, besides backup.key", Some(status.slots.len() as f64)),
            ("warnings", "What backup-status warns of", Some(status.warnings.len() as f64)),
            ("snapshot_age_seconds", "Age of the newest snapshot", snapshot.map(|of| of.age())),
            ("tail_bytes", "Log behind the newest snapshot, as it is stored", tail),
            ("restore_seconds", "What a restore is expected to take", restore),
            (
                "proven_age_seconds",
                "Since the replayed copy was found in order",
                proven.map(|of| of.age()),
            ),
            (
                "compared_age_seconds",
                "Since it held what the database holds",
                compared.map(|of| of.age()),
            ),
            ("last_drill_age_seconds", "Since a restore was last rehearsed", drilled),
            ("last_drill_passed", "1 where that succeeded", drill.map(|of| flag(of.passed))),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let each: [(&str, &str, OfDestination); 2] = [
            ("destination_current", "1 where it has everything", |of| flag(of.is_current())),
            ("destination_lag_records", "About the records that it lacks", |of| of.lacks as f64),
        ];
        for (name, help, value) in each {
            let mut metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for of in &status.destinations {
                let mode = if of.mode.is_sync() { "sync" } else { "async" };
                let labels = [("destination", of.name.as_str()), ("mode", mode)];
                metric.encode_family(&labels)?.encode_gauge(&value(of))?;
            }
        }
        self.appends(to)
    }
}

impl Scrape {
    fn appends(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        const STALLS: &str = "How often a transaction had to wait for its destinations";
        const APPENDS: &str = "How long the log took for a transaction";
        to.encode_descriptor("stalls", STALLS, None, MetricType::Counter)?
            .encode_counter::<[(&str, &str); 0], u64, f64>(&self.stalls, None)?;
        let bounds = BOUNDS_US.map(|us| us as f64 / 1e6).into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.counts.iter().copied()).collect();
        to.encode_descriptor("append_seconds", APPENDS, None, MetricType::Histogram)?
            .encode_histogram::<[(&str, &str); 0]>(
                self.sum_us as f64 / 1e6,
                self.counts.iter().sum(),
                &buckets,
                None,
            )
    }
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_append_is_in_one_bucket() {
        let appends = Appends::default();
        for us in [0, 100, 101, 30_000_000, 30_000_001] {
            appends.took(us);
        }
        let counts: Vec<u64> = appends.counts.iter().map(|of| of.load(Ordering::Relaxed)).collect();
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 5);
    }

    #[test]
    fn another_address_than_loopback_must_be_meant() {
        let at = |listen: &str, remote| Metrics { listen: listen.parse().unwrap(), remote };
        let serve = |settings| super::serve(&settings, SharedStatus::default(), Box::new(|| None));
        let refused = serve(at("0.0.0.0:0", false)).unwrap_err();
        assert!(refused.to_string().contains("loopback"), "{refused}");
        assert!(serve(at("127.0.0.1:0", false)).unwrap().port() > 0);
        serve(at("0.0.0.0:0", true)).unwrap();
    }
}
