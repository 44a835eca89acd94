//! Bringing one destination up to another.
//!
//! All destinations of a log hold the same objects under the same names, byte for byte. So one that was away is
//! brought up by copying what it lacks, and one that was damaged by replacing what is wrong. Nothing is copied that
//! does not open and prove itself, and two histories are never mixed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use crate::error::{Error, Result};
use crate::layout::{self, SegmentName, SnapshotName};
use crate::log::{
    Beginnings, LoadedSegment, LogEnd, LogReader, Mark, Position, SegmentEntry, Visitor,
    all_segments, first_needed,
};
use crate::record::Record;
use crate::seal::KeyRing;
use crate::snapshot::{self, Proof};
use crate::store::{Store, StoreErrorKind};

/// Bytes that are copied at a time.
const CHUNK: usize = 256 << 10;
/// Small objects that are never changed. Claims come first: they tell whose the place is, should this be interrupted.
const SMALL: [&str; 4] = [layout::EPOCHS, layout::KEYS, layout::HOLDS, layout::FILES];

/// What is copied, and from where to where.
pub struct Mirror<'a> {
    /// Has everything.
    pub source: &'a dyn Store,
    /// Lacks something.
    pub target: &'a dyn Store,
    /// Opens both.
    pub keys: &'a KeyRing,
    /// Epoch and index of the first segment that is not copied, where one is being written.
    pub before: Option<(u32, u32)>,
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrored {
    /// Objects that were not there, or were not whole.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where the target's log ends now, proved from where it ended before.
    pub end: Option<Position>,
    /// The records that the segment which is written next may be bound to.
    pub bindable: Vec<Mark>,
}

/// Where the log of a generation begins.
struct Beginning {
    /// The object that says so.
    name: String,
    generation: u32,
    /// Epoch and index.
    at: (u32, u32),
}

impl Beginning {
    /// True where a segment belongs to the log that begins there.
    fn has(&self, name: SegmentName) -> bool {
        name.generation == self.generation && name.age() >= self.at
    }
}

/// Only whether the records follow each other is of interest.
struct Following;

impl Visitor for Following {
    fn segment(&mut self, _name: SegmentName) -> Result<()> {
        Ok(())
    }

    fn record(&mut self, _name: SegmentName, _at: Mark, _record: Record<'_>) -> Result<()> {
        Ok(())
    }
}

impl Mirror<'_> {
    /// Copies all that the target lacks; the marker, which makes a store of it, last. `progress` is told the bytes
    /// of each piece.
    ///
    /// # Errors
    /// [`Error::TwoHistories`] where the target holds a record that was acknowledged and is not in the source;
    /// nothing of the log was copied then. Else what either store says; what was copied until then is of use.
    pub fn run(&self, progress: &mut dyn FnMut(u64)) -> Result<Mirrored> {
        let mut done = Mirrored::default();
        self.copy_small(&mut done, progress)?;
        self.copy_bases(&mut done, progress)?;
        self.copy_segments(&mut done, progress)?;
        self.copy_snapshots(None, &mut done, progress)?;
        if !self.target.exists(layout::MARKER)? {
            self.copy(layout::MARKER, &mut done, progress)?;
        }
        Ok(done)
    }

    /// As [`run`](Self::run), of the snapshots alone.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn snapshots(&self, progress: &mut dyn FnMut(u64)) -> Result<Mirrored> {
        self.snapshots_and_beginnings(None, progress)
    }

    /// As [`snapshots`](Self::snapshots), with those of a generation that were made of records which the target is
    /// still to get.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn snapshots_ahead(&self, generation: u32) -> Result<Mirrored> {
        self.snapshots_and_beginnings(Some(generation), &mut |_| {})
    }

    fn snapshots_and_beginnings(
        &self,
        ahead: Option<u32>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Mirrored> {
        let mut done = Mirrored::default();
        self.copy_snapshots(ahead, &mut done, progress)?;
        self.copy_beginnings(&mut done, progress)?;
        Ok(done)
    }

    /// As [`run`](Self::run), of all but the log: to a target that is further, too.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn all_but_the_log(&self, progress: &mut dyn FnMut(u64)) -> Result<Mirrored> {
        let mut done = Mirrored::default();
        self.copy_small(&mut done, progress)?;
        self.copy_snapshots(None, &mut done, progress)?;
        Ok(done)
    }

    fn copy_small(&self, done: &mut Mirrored, progress: &mut dyn FnMut(u64)) -> Result<()> {
        SMALL.into_iter().try_for_each(|folder| self.copy_folder(folder, done, progress))
    }

    /// Copies where the logs begin, but for those of which the target has nothing behind that yet: what is before it is
    /// then all that it has.
    fn copy_beginnings(&self, done: &mut Mirrored, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let there = all_segments(self.target)?;
        for begins in self.missing_beginnings()? {
            if there.iter().any(|entry| begins.has(entry.name)) {
                self.copy_beginning(&begins, done, progress)?;
            }
        }
        Ok(())
    }

    /// Copies where a log begins: behind the snapshot that it goes on from there, which is durable with its name.
    fn copy_beginning(
        &self,
        begins: &Beginning,
        done: &mut Mirrored,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.target.sync_names(&layout::snapshot_folder(begins.generation))?;
        self.copy(&begins.name, done, progress)
    }

    /// Where logs begin, as far as only the source knows it.
    fn missing_beginnings(&self) -> Result<Vec<Beginning>> {
        let names = self.missing(layout::BEGINNINGS)?.into_iter();
        let known = names.filter_map(|name| {
            let (generation, at) = layout::parse_beginning(name.rsplit('/').next()?)?;
            Some(Beginning { name, generation, at })
        });
        Ok(known.collect())
    }

    fn copy_folder(
        &self,
        folder: &str,
        done: &mut Mirrored,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        for name in self.missing(folder)? {
            self.copy(&name, done, progress)?;
        }
        Ok(())
    }

    /// The objects below a folder that the source has and the target lacks.
    ///
    /// # Errors
    /// Where either cannot be listed.
    pub fn missing(&self, folder: &str) -> Result<Vec<String>> {
        let there = self.target.list_all(folder)?;
        let there: BTreeSet<&str> = there.iter().map(|entry| entry.name.as_str()).collect();
        let all = self.source.list_all(folder)?;
        let missing = all.into_iter().filter(|entry| !there.contains(entry.name.as_str()));
        Ok(missing.map(|entry| format!("{folder}/{}", entry.name)).collect())
    }

    /// Copies one object that the target lacks.
    pub(super) fn copy(
        &self,
        name: &str,
        done: &mut Mirrored,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut from = match self.source.read_stream(name) {
            // Whoever prunes has removed it meanwhile.
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound) => return Ok(()),
            from => from?,
        };
        let mut to = self.target.create_stream(name)?;
        let mut chunk = vec![0; CHUNK];
        let mut bytes = 0;
        loop {
            let read = from.read(&mut chunk).map_err(|error| {
                Error::damaged(format!("'{name}' in '{}'", self.source.label()), error)
            })?;
            if read == 0 {
                break;
            }
            to.write(&chunk[..read])?;
            bytes += read as u64;
            progress(read as u64);
        }
        match to.commit() {
            // Another process brings it up, too.
            Err(error) if matches!(error.kind, StoreErrorKind::Exists) => return Ok(()),
            committed => committed?,
        }
        done.objects += 1;
        done.bytes += bytes;
        Ok(())
    }

    /// Copies the snapshots that generations begin with: before the segments that name them, as their writer made them.
    fn copy_bases(&self, done: &mut Mirrored, progress: &mut dyn FnMut(u64)) -> Result<()> {
        for name in self.missing(layout::SNAPSHOTS)? {
            let is_base = |found: SnapshotName| !found.is_compacted();
            if SnapshotName::parse_object(&name).is_some_and(is_base) {
                self.copy_snapshot(&name, done, progress)?;
            }
        }
        // Whoever brought one here before may have died before its name was durable.
        for folder in self.target.list(layout::SNAPSHOTS)? {
            self.target.sync_names(&format!("{}/{}", layout::SNAPSHOTS, folder.name))?;
        }
        Ok(())
    }

    /// Copies the snapshots that are not further than the target's log; of the generation `ahead` all.
    fn copy_snapshots(
        &self,
        ahead: Option<u32>,
        done: &mut Mirrored,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let log = all_segments(self.target)?;
        let mut reached = BTreeMap::new();
        // By name: a snapshot before those that are made on it.
        for name in self.missing(layout::SNAPSHOTS)? {
            let Some(found) = SnapshotName::parse_object(&name) else { continue };
            // One that is further than the log beside it would be taken for damage. A generation begins with one, behind the
            // log of another. Of an older history the source may have snapshots alone, as they came back from elsewhere after
            // it was removed.
            let of = Some(found.generation).filter(|_| found.is_compacted());
            let reached = match reached.entry(of) {
                _ if ahead == Some(found.generation) => u64::MAX,
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(unknown) => *unknown.insert(self.reached(&log, of)?),
            };
            if found.seq <= reached {
                self.copy_snapshot(&name, done, progress)?;
            }
        }
        Ok(())
    }

    /// The newest record that the target has, of a generation or of all; 0 where it has none.
    fn reached(&self, log: &[SegmentEntry], generation: Option<u32>) -> Result<u64> {
        let own = log.iter().filter(|of| generation.is_none_or(|own| of.name.generation == own));
        match LogEnd::read_listed(self.target, self.keys, &own.copied().collect::<Vec<_>>()) {
            Err(Error::Nothing { .. }) => Ok(0),
            end => Ok(end?.position.seq),
        }
    }

    /// Copies a snapshot. It counts once it was read there, as any.
    fn copy_snapshot(
        &self,
        name: &str,
        done: &mut Mirrored,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let before = done.objects;
        self.copy(name, done, progress)?;
        if done.objects > before
            && let Err(error) =
                snapshot::read(self.target, self.keys, name, None, &mut Proof::default())
        {
            self.target.remove(name)?;
            return Err(error);
        }
        Ok(())
    }

    fn copy_segments(&self, done: &mut Mirrored, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut wanted: Vec<SegmentEntry> = self.settled(self.source)?;
        let beginnings = Beginnings::read(self.target)?;
        wanted.retain(|entry| !beginnings.leaves_out(&entry.name));
        let there: BTreeMap<SegmentName, u64> =
            self.settled(self.target)?.into_iter().map(|entry| (entry.name, entry.size)).collect();
        self.refuse_another_history(&wanted, &there)?;
        // Of those that were ended in order the size tells; not of what the target was at when it went away.
        let newest_there = there.keys().copied().max_by_key(SegmentName::age);
        if let Some(newest) = newest_there {
            self.note_hole(newest, &wanted, &there)?;
        }
        let mut begins = self.missing_beginnings()?;
        for entry in &wanted {
            let same_size = there.get(&entry.name) == Some(&entry.size);
            let older = newest_there.is_some_and(|newest| entry.name.age() < newest.age());
            if !(same_size && older) {
                self.bring_up(entry.name, there.contains_key(&entry.name), done, progress)?;
            }
            // At once: a place whose log ends like the others' is taken for complete. But behind the snapshot that the
            // log goes on from there: until then the target may have what is before it.
            let of_it: Vec<_> = begins.extract_if(.., |begins| begins.has(entry.name)).collect();
            if !of_it.is_empty() {
                self.copy_snapshots(None, done, progress)?;
            }
            of_it.iter().try_for_each(|begins| self.copy_beginning(begins, done, progress))?;
        }
        (done.end, done.bindable) = self.prove(newest_there, wanted.first().map(|of| of.name))?;
        Ok(())
    }

    /// Where bringing the target up was interrupted between the segment that its log begins with and the note which says
    /// so, and the source has removed that history meanwhile, nobody else can tell it any more.
    fn note_hole(
        &self,
        newest: SegmentName,
        wanted: &[SegmentEntry],
        there: &BTreeMap<SegmentName, u64>,
    ) -> Result<()> {
        let of_it = |name: &SegmentName| name.generation == newest.generation;
        if wanted.is_empty() || wanted.iter().any(|entry| of_it(&entry.name)) {
            return Ok(());
        }
        let before = there.iter().filter(|(name, _)| of_it(name) && name.age() < newest.age());
        let before: Vec<_> = before.map(|(&name, &size)| SegmentEntry { name, size }).collect();
        match LogEnd::read_listed(self.target, self.keys, &before) {
            Ok(end) if end.position.seq.saturating_add(1) < newest.first_seq => {
                Beginnings::note(self.target, newest.generation, newest.age())
            }
            // Damage is for whoever verifies it.
            Ok(_) | Err(Error::Nothing { .. } | Error::Damaged { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Proves that the target's newest history leads on from where it ended before, or, where the source does not go
    /// back as far, from where that begins. What was listed may have been half of it.
    fn prove(
        &self,
        newest_before: Option<SegmentName>,
        oldest: Option<SegmentName>,
    ) -> Result<(Option<Position>, Vec<Mark>)> {
        let mut there = self.settled(self.target)?;
        let (Some(last), Some(oldest)) = (there.last().copied(), oldest) else {
            return Ok((None, Vec::new()));
        };
        there.retain(|entry| entry.name.generation == last.name.generation);
        let names: Vec<SegmentName> = there.iter().map(|entry| entry.name).collect();
        let begins = names.iter().position(|name| name.age() >= oldest.age()).unwrap_or(0);
        // The last one may hold nothing but a record that nobody was told of.
        let known = newest_before.filter(|before| before.generation == last.name.generation);
        let from = known.map_or(0, |before| first_needed(before.first_seq, &names)).max(begins);
        LogReader::new(self.target, self.keys).read_to_go_on(&there[from..], &mut Following)
    }

    fn settled(&self, store: &dyn Store) -> Result<Vec<SegmentEntry>> {
        let mut all = all_segments(store)?;
        let before = self.before.unwrap_or((u32::MAX, u32::MAX));
        all.retain(|entry| entry.name.age() < before);
        Ok(all)
    }

    /// Makes the target's segment what the source's is.
    fn bring_up(
        &self,
        name: SegmentName,
        there: bool,
        done: &mut Mirrored,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let Some(source) = load(self.source, self.keys, name)? else { return Ok(()) };
        let (wanted, count) = source.whole(self.keys)?;
        let object = name.to_string();
        if there && let Some(target) = load(self.target, self.keys, name)? {
            let (found, found_count) = target.whole(self.keys)?;
            if found == wanted || found.starts_with(wanted) && found_count <= count + 1 {
                // What is read may be in a cache only: whoever wrote it may have failed before it was synced.
                return Ok(self.target.sync(&object)?);
            }
            if !wanted.starts_with(found) {
                return Err(self.two_histories(name));
            }
        }
        self.target.replace(&object, wanted)?;
        done.objects += 1;
        done.bytes += wanted.len() as u64;
        progress(wanted.len() as u64);
        Ok(())
    }

    /// Whatever only the target has must be what nobody was told of, at most one record; or of an older history than both
    /// went on with, of which the source has less.
    fn refuse_another_history(
        &self,
        wanted: &[SegmentEntry],
        there: &BTreeMap<SegmentName, u64>,
    ) -> Result<()> {
        let names: BTreeSet<SegmentName> = wanted.iter().map(|entry| entry.name).collect();
        let oldest = wanted.iter().map(|entry| entry.name.age()).min();
        let shared = there.keys().filter(|name| names.contains(name)).max_by_key(|name| name.age());
        let is_of_older_history = |name: &SegmentName| {
            shared.is_some_and(|of| name.generation != of.generation && name.age() < of.age())
        };
        let beginnings = Beginnings::read(self.source)?;
        for &name in there.keys().filter(|name| !names.contains(name)) {
            // The source may have been pruned: of what is before its log, or of an older history whole.
            let is_pruned = oldest.is_some_and(|oldest| name.age() < oldest);
            if is_pruned || beginnings.leaves_out(&name) || is_of_older_history(&name) {
                continue;
            }
            if let Some(segment) = load(self.target, self.keys, name)?
                && segment.whole(self.keys)?.1 > 1
            {
                return Err(self.two_histories(name));
            }
        }
        Ok(())
    }

    fn two_histories(&self, name: SegmentName) -> Error {
        Error::TwoHistories {
            one: self.source.label().into(),
            other: self.target.label().into(),
            at: name.to_string(),
        }
    }
}

/// Where a place's own log ends before the segment of this age, as [`Mirror::run`] says it of what it copied.
pub(super) fn end_before(
    store: &dyn Store,
    keys: &KeyRing,
    before: Option<(u32, u32)>,
) -> Result<Mirrored> {
    let mirror = Mirror { source: store, target: store, keys, before };
    let newest = mirror.settled(store)?.last().map(|of| of.name);
    let (end, bindable) = mirror.prove(newest, newest)?;
    Ok(Mirrored { end, bindable, ..Mirrored::default() })
}

/// A segment, unless it is not there any more, or never held anything.
pub(super) fn load(
    store: &dyn Store,
    keys: &KeyRing,
    name: SegmentName,
) -> Result<Option<LoadedSegment>> {
    match LoadedSegment::load(store, keys, name) {
        Err(Error::Store(error)) if matches!(error.kind, StoreErrorKind::NotFound) => Ok(None),
        loaded => loaded,
    }
}

#[cfg(test)]
mod tests;
