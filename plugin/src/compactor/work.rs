//! One compaction, on a thread of its own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep_proto::config::NamedDestination;
use lockstep_proto::error::{Error, Result};
use lockstep_proto::fence;
use lockstep_proto::hold::Hold;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::replica::Mirror;
use lockstep_proto::shadow::{self, Proofs, Proven, Published, Shadow};
use lockstep_proto::store::Store;
use lockstep_proto::tail::Tail;
use serde::Serialize;

use super::pace::{Pace, Paced};
use super::{Phase, Setup, Shared, proof};
use crate::clock::now;

/// What a compaction did.
pub struct Done {
    /// In words.
    pub outcome: Outcome,
    /// What is behind the newest snapshot now, …
    pub tail: Tail,
    /// … and the hook's count of bytes then.
    pub tail_at: u64,
    /// Where SQLite found the shadow in order.
    pub checked: Proven,
    /// How long that took.
    pub checked_in: Duration,
    /// Bytes of the database.
    pub database_bytes: u64,
    /// About the bytes of log that were replayed.
    pub replayed_bytes: u64,
    /// How long that took.
    pub replayed_in: Duration,
    /// How long all of it rested.
    pub rested: Duration,
}

/// What came of a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Outcome {
    /// A snapshot.
    Published {
        /// Its place in the log.
        seq: u64,
        /// Bytes of it, as they are stored.
        stored_bytes: u64,
        /// Bytes of the database.
        database_bytes: u64,
        /// Objects that a restore reads now.
        objects: usize,
        /// Objects that retention did not keep.
        removed: usize,
    },
    /// There was nothing to make one of.
    NothingNew,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published { seq, stored_bytes, database_bytes, objects, removed } => write!(
                f,
                "snapshot at seq {seq} of {stored_bytes} bytes, for a database of {database_bytes}; a restore \
                 reads {objects}; {removed} old objects removed"
            ),
            Self::NothingNew => f.write_str("nothing new to make a snapshot of"),
        }
    }
}

/// Replays, proves, publishes.
///
/// The proof comes first: a snapshot of a shadow that is not in order would be the newest, and the next restore's.
///
/// # Errors
/// The first thing that went wrong; nothing was published.
pub fn compact(shared: &Arc<Shared>, setup: &Setup) -> Result<Done> {
    let Setup { places, keys, folder, .. } = setup;
    refuse_too_large(setup)?;
    let pace = Pace::new(shared, &setup.settings);
    let (destination, others) = places.current();
    let store = Paced { store: destination.url.open_of(keys.store())?, pace: pace.clone() };
    not_fenced(shared, setup, &store)?;
    store.tidy()?;
    let tail = Tail::read(&store, keys)?;
    let mut shadow = Shadow::open_with(&store, keys, folder, &mut |synced_in| {
        pace.rest_after(Duration::ZERO, synced_in);
    })?;
    let in_sqlite = pace.clone();
    shadow.rest_in(move || in_sqlite.rest())?;
    let began_at = shadow.seq();
    shared.enter(Phase::Replay, tail.head_seq.saturating_sub(began_at));
    let (began, rested) = (Instant::now(), pace.rested());
    proof::catch_up(shared, &mut shadow, &mut |batches| {
        shared.progress.done.store(batches, Ordering::Relaxed);
        pace.rest();
    })?;
    let replayed_in = began.elapsed().saturating_sub(pace.rested() - rested);
    let replayed = shadow.seq() - began_at;
    let replayed_bytes = tail.bytes / tail.records.max(1) * replayed;

    let (checked, checked_in) = prove(shared, setup, &shadow, &pace)?;
    // Whoever has taken over compacts, too.
    not_fenced(shared, setup, &store)?;
    setup.companions.keep(shared.signal.epoch.load(Ordering::Relaxed))?;
    shared.enter(Phase::Publish, 0);
    let published = shadow.publish(&mut |done, all| {
        shared.progress.done.store(done, Ordering::Relaxed);
        shared.progress.all.store(all, Ordering::Relaxed);
    })?;
    drop(shadow);
    let mut removed = 0;
    if published.is_some() {
        removed = prune(shared, setup, &store)?;
        for other in others {
            // It is brought up by its own thread where it went away.
            let _ = follow(shared, setup, &store, &other, &pace);
        }
    }

    let tail_at = shared.signal.bytes.load(Ordering::Relaxed);
    let tail = Tail::read(&store, keys)?;
    let newest = tail.snapshot.as_ref();
    let database_bytes = newest.map_or(0, |newest| newest.database_bytes);
    let outcome = outcome(published, database_bytes, removed);
    Ok(Done {
        outcome,
        tail,
        tail_at,
        checked,
        checked_in,
        database_bytes,
        replayed_bytes,
        replayed_in,
        rested: pace.rested(),
    })
}

fn outcome(published: Option<Published>, database_bytes: u64, removed: usize) -> Outcome {
    match published {
        Some(published) => Outcome::Published {
            seq: published.position.seq,
            stored_bytes: published.stored_bytes,
            database_bytes,
            objects: published.links,
            removed,
        },
        None => Outcome::NothingNew,
    }
}

/// Has SQLite check the shadow, makes a digest of it, and keeps what is proved; with how long that took.
fn prove(
    shared: &Shared,
    setup: &Setup,
    shadow: &Shadow<'_>,
    pace: &Pace,
) -> Result<(Proven, Duration)> {
    shared.enter(Phase::Prove, 0);
    let (began, rested) = (Instant::now(), pace.rested());
    let checked = shadow.prove_with(&proof::digest_of, now())?;
    let checked_in = began.elapsed().saturating_sub(pace.rested() - rested);
    let compared = shared.lock().proofs.compared;
    Proofs { checked: Some(checked), compared }.write(&setup.folder, setup.keys.store())?;
    Ok((checked, checked_in))
}

/// Has another destination hold the same snapshots, and no more.
fn follow(
    shared: &Shared,
    setup: &Setup,
    source: &dyn Store,
    other: &NamedDestination,
    pace: &Arc<Pace>,
) -> Result<()> {
    let target = Paced { store: other.url.open_of(setup.keys.store())?, pace: pace.clone() };
    target.tidy()?;
    let mirror = Mirror { source, target: &target, keys: &setup.keys, before: None };
    mirror.snapshots(&mut |_| {})?;
    let held = !shared.lock().holds.is_empty() || !Hold::list(&target)?.is_empty();
    if held { Ok(()) } else { remove_old(shared, setup, &target).map(drop) }
}

/// Removes what the retention policy does not keep, now that a newer snapshot is there.
fn prune(shared: &Shared, setup: &Setup, store: &dyn Store) -> Result<usize> {
    let holds = Hold::list(store)?;
    let held = !holds.is_empty();
    shared.lock().holds = holds;
    if held {
        return Ok(0);
    }
    remove_old(shared, setup, store)
}

fn remove_old(shared: &Shared, setup: &Setup, store: &dyn Store) -> Result<usize> {
    let plan = PrunePlan::new(store, &setup.keys, &setup.retention, now())?;
    shared.enter(Phase::Prune, 0);
    let mut removed = 0;
    plan.run(store, &mut || not_fenced(shared, setup, store), &mut |count| removed = count)?;
    Ok(removed as usize)
}

/// A writer that was fenced must not go on.
fn not_fenced(shared: &Shared, setup: &Setup, store: &dyn Store) -> Result<()> {
    fence::check(store, &setup.keys, shared.signal.epoch.load(Ordering::Relaxed))
}

/// A shadow must not take the room that the node's own database needs.
fn refuse_too_large(setup: &Setup) -> Result<()> {
    let found = shadow::room::len_of(&setup.wallet)?;
    if let Some(needed) = shadow::room::lacking(&setup.folder, found)? {
        return Err(Error::Refused {
            what: format!("'{}' needs {needed} bytes of free space", setup.folder.display()),
            hint: "free some, or set 'shadow' in the section 'compaction' of backup.lock to another disk, or \
                   compact on another machine with 'backup-cli compact'."
                .into(),
        });
    }
    let Some(most) = setup.settings.shadow_max_bytes else { return Ok(()) };
    if found <= most {
        return Ok(());
    }
    Err(Error::Refused {
        what: format!("the database has {found} bytes, and 'shadow_max_bytes' is {most}"),
        hint: "raise it, or compact elsewhere with 'backup-cli compact'.".into(),
    })
}
