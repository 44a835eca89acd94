//! The places that the backup is written to.

use std::path::Path;
use std::time::SystemTime;

use lockstep_node::LightningDir;
use lockstep_proto::destination::Destination;
use lockstep_proto::measure::{self, Kind};
use lockstep_proto::shadow::room;
use lockstep_proto::store::{Fencing, Store};

use super::Findings;
use super::disk::Place;
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::place::Site;

const CHECK: &str = "destination";
/// Appends that are measured.
const APPENDS: usize = 10;
/// A transaction that takes this much longer makes a payment seconds longer. Milliseconds.
const SLOW_MS: f64 = 100.0;
/// Less than this is full soon. Bytes.
const LITTLE: u64 = 1 << 30;
/// Less than this is full at once. Bytes.
const NOTHING: u64 = 64 << 20;
/// Clocks that differ by more than this are wrong. Seconds.
const CLOCK_S: u64 = 60;

/// Looks.
pub fn look(
    node: &LightningDir,
    sites: &[Site],
    read_only: bool,
    output: &Output,
    findings: &mut Findings,
) {
    let database = Place::of(node.wallet());
    let mut apart = false;
    for site in sites {
        let store = match site.store() {
            Ok(store) => store,
            Err(failure) => {
                findings.failure(CHECK, &failure.doing(&format!("open '{}'", site.name)));
                continue;
            }
        };
        match &site.url {
            Destination::Folder(path) => {
                apart |= folder(site, path, &database, findings);
                free(site, path, findings);
                if !read_only {
                    clock(site, path, findings);
                }
            }
            Destination::Bucket(_) => apart = true,
        }
        fencing(site, findings);
        if !read_only {
            latency(site, store, output, findings);
        }
    }
    if !apart && sites.iter().any(|site| site.store().is_ok()) {
        findings.error(
            "disk",
            "no destination lies on another disk than the database: they are lost together",
            "'backup-cli destination add' with a place on another disk, best on another machine.",
        );
    }
}

/// True where the folder is not lost with the database.
fn folder(site: &Site, path: &Path, database: &Place, findings: &mut Findings) -> bool {
    let place = Place::of(path);
    if place.is_in_memory() {
        findings.error(
            "disk",
            format!("'{}' is in memory: it is gone with the next restart", site.name),
            "'backup-cli destination add' with a place on a disk.",
        );
        return false;
    }
    match place.shares_with(database) {
        Some(what) => {
            findings.warning(
                "disk",
                format!("'{}' and the database are both on {what}", site.name),
                "a disk that dies takes both: use another one.",
            );
            false
        }
        None => {
            findings.ok("disk", format!("'{}' is on another disk than the database", site.name));
            true
        }
    }
}

fn free(site: &Site, path: &Path, findings: &mut Findings) {
    let Some(free) = room::free_bytes(path) else { return };
    let message = format!("'{}' has {} free", site.name, bytes(free));
    match free {
        ..NOTHING => findings.error(
            "room",
            message,
            "lightningd stops when it is full: free some, or 'backup-cli prune' with a shorter retention.",
        ),
        NOTHING..LITTLE => findings.warning(
            "room",
            message,
            "free some, or 'backup-cli prune' with a shorter retention.",
        ),
        _ => findings.ok("room", message),
    }
}

fn fencing(site: &Site, findings: &mut Findings) {
    match site.fencing {
        Some(Fencing::Real) => {
            findings.ok("fencing", format!("'{}' keeps a second writer out", site.name));
        }
        Some(Fencing::Advisory) => findings.warning(
            "fencing",
            format!("'{}' cannot keep a second writer out", site.name),
            "never let two copies of the node run; or use a place that can (docs/operations.md lists them).",
        ),
        None => findings.note(
            "fencing",
            format!("whether '{}' keeps a second writer out is not known", site.name),
            format!("'backup-cli destination test {}' finds out.", site.url),
        ),
    }
}

fn latency(site: &Site, store: &dyn Store, output: &Output, findings: &mut Findings) {
    let kind = match &site.url {
        Destination::Folder(_) => Kind::Append,
        Destination::Bucket(_) => Kind::Create,
    };
    let bar = output.counter(&format!("appends to '{}':", site.name));
    let measured = measure::run(store, kind, APPENDS, &mut || bar.inc(1));
    bar.finish_and_clear();
    let took = match measured {
        Ok(took) => took,
        Err(error) => {
            findings
                .failure(CHECK, &Failure::from(error).doing(&format!("write to '{}'", site.name)));
            return;
        }
    };
    let ms = took.p50.as_secs_f64() * 1e3;
    let message = format!("'{}' takes {ms:.1} ms for a record", site.name);
    match ms > SLOW_MS && site.mode.is_sync() {
        true => findings.warning(
            "latency",
            message,
            "each transaction waits for it, and a payment is about 26 of them: use a nearer place, or make it async.",
        ),
        false => findings.ok("latency", message),
    }
}

/// A folder on another machine has that one's clock.
fn clock(site: &Site, path: &Path, findings: &mut Findings) {
    let made = tempfile::Builder::new().prefix("probe-").tempfile_in(path);
    let Ok(modified) = made.and_then(|file| file.as_file().metadata()?.modified()) else { return };
    let now = SystemTime::now();
    let apart = now.duration_since(modified).unwrap_or_else(|error| error.duration()).as_secs();
    if apart > CLOCK_S {
        findings.warning(
            "clock",
            format!("the clock of '{}' and this machine's are {apart} s apart", site.name),
            "set the one that is wrong.",
        );
    }
}
