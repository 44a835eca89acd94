//! Removing what a retention policy does not keep.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::hold::Hold;
use crate::layout::{self, SnapshotName};
use crate::log::{self, Beginnings, LogEnd, SegmentEntry};
use crate::record::TimeMs;
use crate::restore::beginning_of;
use crate::retention::{self, Histories, Judgement, Point, Policy};
use crate::seal::KeyRing;
use crate::snapshot;
use crate::store::Store;

/// What goes and what stays, and why.
#[derive(Debug, Clone)]
pub struct PrunePlan {
    /// Every snapshot with the reasons that keep it.
    pub judgement: Judgement,
    /// The segments that go, in this order.
    pub segments: Vec<SegmentEntry>,
    /// Where the logs begin then, by generation.
    beginnings: BTreeMap<u32, (u32, u32)>,
}

impl PrunePlan {
    /// Looks at what there is.
    ///
    /// # Errors
    /// Where the store cannot be read, or a snapshot's beginning is damaged: then nothing may go.
    pub fn new(store: &dyn Store, keys: &KeyRing, policy: &Policy, now: TimeMs) -> Result<Self> {
        let (mut all, leftovers) = log::all_with_leftovers(store)?;
        let newest = LogEnd::read_listed(store, keys, &all)?.segment;
        // What is newer than the newest record is being begun: no older history.
        all.retain(|entry| entry.name.age() <= newest.age());
        let mut points = Vec::new();
        for generation in log::generations(store)? {
            let own = all.iter().filter(|entry| entry.name.generation == generation);
            let segments: Vec<_> = own.copied().collect();
            let start = beginning_of(store, keys, &segments)?.map(|beginning| beginning.start);
            let begins_with = |name: SnapshotName| match &start {
                Some(start) => {
                    start.base.as_ref().is_some_and(|base| base.name == name.to_string())
                }
                None => true,
            };
            for (name, bytes) in snapshot::published(store, generation)? {
                if name.is_compacted() || begins_with(name) {
                    let meta = snapshot::summary(store, keys, name, bytes)?.meta;
                    let parent =
                        meta.parent.and_then(|base| SnapshotName::parse_object(&base.name));
                    points.push(Point { name, time: meta.time, parent, bytes });
                }
            }
        }
        let judgement =
            retention::judge(policy, &points, &Histories::new(&all, newest.generation), now);
        let names = retention::removable_segments(&judgement.log, &all);
        let size = |name| all.iter().find(|entry| entry.name == name).map_or(0, |entry| entry.size);
        let beginnings = retention::beginnings(&names, &all);
        let names = names.into_iter().map(|name| SegmentEntry { name, size: size(name) });
        let segments = leftovers.into_iter().chain(names).collect();
        Ok(Self { judgement, segments, beginnings })
    }

    /// The snapshots that go, in this order.
    pub fn snapshots(&self) -> Vec<SnapshotName> {
        self.judgement.removable_points()
    }

    /// Bytes that go.
    pub fn bytes(&self) -> u64 {
        let verdicts = self.judgement.verdicts.iter().filter(|verdict| !verdict.is_kept());
        let snapshots: u64 = verdicts.map(|verdict| verdict.point.bytes).sum();
        snapshots + self.segments.iter().map(|entry| entry.size).sum::<u64>()
    }

    /// Removes it: snapshots first, then segments, each in an order that an interruption may cut anywhere. Where the logs
    /// begin then is noted in between: what arrives late, or is brought along from another place, is left out from there on.
    /// `may_go_on` is asked before each; `progress` is told the objects removed.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::error::Error::Refused) while there is a [`Hold`]; what `may_go_on` returned; where the
    /// store cannot be written.
    pub fn run(
        &self,
        store: &dyn Store,
        may_go_on: &mut dyn FnMut() -> Result<()>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        Hold::refuse_removal(store)?;
        let snapshots = self.snapshots();
        if snapshots.is_empty() && self.segments.is_empty() {
            return Ok(());
        }
        let kept = self.judgement.verdicts.iter().filter(|verdict| verdict.is_kept());
        let generations: BTreeSet<u32> = kept.map(|of| of.point.name.generation).collect();
        // What goes is not needed because of those that stay.
        for generation in generations {
            store.sync_names(&layout::snapshot_folder(generation))?;
        }
        let mut removed = 0;
        let mut remove = |name: String| {
            may_go_on()?;
            store.remove(&name)?;
            removed += 1;
            progress(removed);
            Ok(())
        };
        snapshots.iter().try_for_each(|name| remove(name.to_string()))?;
        for (&generation, &at) in &self.beginnings {
            Beginnings::note(store, generation, at)?;
        }
        self.segments.iter().try_for_each(|entry| remove(entry.name.to_string()))
    }
}
