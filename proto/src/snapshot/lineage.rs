//! Which snapshots there are, and which of them lead to a database.

use super::{Meta, Proof, read, summary};
use crate::error::{Error, Result};
use crate::layout::{self, SnapshotName};
use crate::log::{self, Mark};
use crate::record::{Base, Start};
use crate::seal::{Chain, KeyRing};
use crate::store::Store;

/// A snapshot as its header and first frame show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its name.
    pub name: SnapshotName,
    /// Where in the log it was made.
    pub position: Mark,
    /// What it holds.
    pub meta: Meta,
    /// Bytes stored.
    pub size: u64,
}

/// A base and the deltas on it: what a database is put together from, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The base first. Empty: the database was empty.
    pub links: Vec<Link>,
    /// Newer snapshots that are of no use, and why.
    pub passed_over: Vec<String>,
}

/// One snapshot of a [`Lineage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The snapshot.
    pub summary: Summary,
    /// Chain hash after its last frame, where something names it.
    pub chain: Option<Chain>,
}

impl Lineage {
    /// Reads each to its end.
    fn prove(&self, store: &dyn Store, keys: &KeyRing) -> Result<()> {
        self.links.iter().try_for_each(|link| {
            let name = link.summary.name.to_string();
            read(store, keys, &name, link.chain, &mut Proof::default()).map(drop)
        })
    }

    /// Where the newest of them was made.
    pub fn position(&self) -> Option<Mark> {
        self.links.last().map(|link| link.summary.position)
    }

    /// Bytes stored.
    pub fn size(&self) -> u64 {
        self.links.iter().map(|link| link.summary.size).sum()
    }
}

/// How much of a snapshot is read before it is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Its first frame.
    Summary,
    /// All of it, and of those that it needs.
    Whole,
}

/// The snapshots of a generation that are there, oldest first, with their bytes: the one that it began
/// with, what a writer left that failed to begin it, and those that compaction published.
///
/// # Errors
/// Where the store cannot be listed.
pub fn published(store: &dyn Store, generation: u32) -> Result<Vec<(SnapshotName, u64)>> {
    let entries = store.list(&layout::snapshot_folder(generation))?;
    let mut found: Vec<_> = entries
        .iter()
        .filter_map(|entry| Some((SnapshotName::parse(generation, &entry.name)?, entry.size)))
        .collect();
    found.sort();
    Ok(found)
}

/// The lineage to the newest position at which a snapshot of `generation` was made and which `suits`.
/// `start` is how the generation began, where that is still known.
///
/// A snapshot of no use, damaged or without its parent, is passed over: an older one, with more of the
/// log, gives the same database.
///
/// # Errors
/// Where the store cannot be listed or read; where there are snapshots and none is of use, what is wrong with
/// the newest.
pub fn newest(
    store: &dyn Store,
    keys: &KeyRing,
    generation: u32,
    start: Option<&Start>,
    suits: &mut dyn FnMut(&Summary) -> bool,
    depth: Depth,
) -> Result<Lineage> {
    let base = start.and_then(|start| start.base.as_ref());
    let mut wrong: Vec<Error> = Vec::new();
    let there = published(store, generation)?;
    for &(name, size) in there.iter().rev() {
        let compacted = name.is_compacted();
        let chain = base.filter(|base| base.name == name.to_string()).map(|base| base.chain);
        // What a writer left that failed to begin the generation with it is nothing.
        if !compacted && chain.is_none() {
            continue;
        }
        let found = summary(store, keys, name, size).and_then(|found| {
            if !suits(&found) {
                return Ok(None);
            }
            let lineage = lineage_of(store, keys, Link { summary: found, chain }, &there)?;
            if depth == Depth::Whole {
                lineage.prove(store, keys)?;
            }
            Ok(Some(lineage))
        });
        match found {
            Ok(Some(lineage)) => {
                let passed_over = wrong.iter().map(ToString::to_string).collect();
                return Ok(Lineage { passed_over, ..lineage });
            }
            Ok(None) => {}
            Err(error @ Error::Store(_)) => return Err(error),
            Err(error) => wrong.push(error),
        }
    }
    let passed_over = wrong.iter().map(ToString::to_string).collect();
    match (start, wrong.into_iter().next()) {
        // An empty database, and the whole log.
        (Some(Start { base: None, .. }), _) => Ok(Lineage { links: Vec::new(), passed_over }),
        (_, Some(error)) => Err(error),
        (Some(Start { base: Some(base), .. }), None) => Err(Error::damaged(
            format!("'{}'", base.name),
            "is missing, and the log begins with it",
        )),
        (None, None) => Err(nothing_to_go_on_from(store, generation)?),
    }
}

/// What is said where a log's beginning is not there, and no snapshot in its place.
///
/// # Errors
/// Where the store cannot be listed.
pub(crate) fn nothing_to_go_on_from(store: &dyn Store, generation: u32) -> Result<Error> {
    let place = match log::segments(store, generation)?.first() {
        Some(first) => format!("'{}'", first.name),
        None => format!("generation {generation} of '{}'", store.label()),
    };
    Ok(Error::damaged(
        place,
        "what comes before it is missing, and there is no snapshot to go on from",
    ))
}

fn lineage_of(
    store: &dyn Store,
    keys: &KeyRing,
    newest: Link,
    there: &[(SnapshotName, u64)],
) -> Result<Lineage> {
    let mut links = vec![newest];
    while let Some(Base { name, chain }) =
        links.last().and_then(|link| link.summary.meta.parent.clone())
    {
        let child = links.last().map_or(0, |link| link.summary.name.seq);
        let parent = SnapshotName::parse_object(&name).filter(|parent| parent.seq < child);
        let Some(parent) = parent else {
            return Err(Error::damaged(format!("'{name}'"), "cannot be a delta's parent"));
        };
        let size = there.iter().find(|(name, _)| *name == parent).map_or(0, |(_, size)| *size);
        let summary = summary(store, keys, parent, size)?;
        if links.last().is_some_and(|child| child.summary.meta.page_size != summary.meta.page_size)
        {
            return Err(Error::damaged(
                format!("'{name}'"),
                "has other pages than the delta on it",
            ));
        }
        links.push(Link { summary, chain: Some(chain) });
    }
    links.reverse();
    Ok(Lineage { links, passed_over: Vec::new() })
}
