//! Healing: what is damaged at one destination is replaced from another, where it proves itself.
//!
//! It is planned first. An object is replaced only where the copy here does not prove itself, the source's does, and
//! the source's can hold no less: a source that is behind never shortens a log.

use super::mirror::{Mirror, Mirrored, load};
use crate::companion::FileSet;
use crate::error::{Error, Result};
use crate::fence;
use crate::layout::{self, SegmentName, SnapshotName};
use crate::log::{SegmentEntry, all_segments};
use crate::marker::Marker;
use crate::seal::KeyRing;
use crate::slots;
use crate::snapshot::{self, Proof};
use crate::store::{Store, StoreErrorKind};

/// What is healed, and from what.
pub struct Heal<'a> {
    /// What is intact there may replace what is not here.
    pub source: &'a dyn Store,
    /// May be damaged.
    pub target: &'a dyn Store,
    /// Opens both.
    pub keys: &'a KeyRing,
    /// Epoch and index of the first segment that is not touched, where one is being written.
    pub before: Option<(u32, u32)>,
}

/// An object that does not prove itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its name.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Whether the source has it intact.
    pub healable: bool,
}

impl Fault {
    fn new(object: impl ToString, what: &impl ToString, healable: bool) -> Self {
        Self { object: object.to_string(), what: what.to_string(), healable }
    }
}

impl Heal<'_> {
    /// Reads all of the target, and of the source what is to be compared with it. `progress` is told the bytes.
    ///
    /// # Errors
    /// [`Error::TwoHistories`] where two intact segments of one name differ; [`Error::OtherStore`] where the target is
    /// another store; where either cannot be read.
    pub fn plan(&self, progress: &mut dyn FnMut(u64)) -> Result<Vec<Fault>> {
        if let Ok(marker) = Marker::read(self.target) {
            marker.require(self.keys.store())?;
        }
        let mut faults = Vec::new();
        let source = self.settled(self.source)?;
        let mut is_ours = false;
        for entry in self.settled(self.target)? {
            let fault = self.segment_fault(entry.name, source.last())?;
            is_ours |= fault.is_none();
            faults.extend(fault);
            progress(entry.size);
        }
        for entry in self.target.list_all(layout::SNAPSHOTS)? {
            let name = format!("{}/{}", layout::SNAPSHOTS, entry.name);
            if SnapshotName::parse_object(&name).is_some() {
                faults.extend(self.snapshot_fault(&name)?);
            }
            progress(entry.size);
        }
        for fault in small_faults(self.target, self.keys)? {
            // A marker alone makes no store of whatever lies there.
            let healable = (is_ours || fault.object != layout::MARKER)
                && self.source.exists(&fault.object)?
                && small_fault(self.source, self.keys, &fault.object)?.is_none();
            faults.push(Fault { healable, ..fault });
        }
        Ok(faults)
    }

    /// Replaces what is healable of `faults`. What is missing altogether [`Mirror`] copies.
    ///
    /// # Errors
    /// Where either store fails; what was replaced until then is whole.
    pub fn run(&self, faults: &[Fault], progress: &mut dyn FnMut(u64)) -> Result<Mirrored> {
        let mut done = Mirrored::default();
        for fault in faults.iter().filter(|fault| fault.healable) {
            let name = fault.object.as_str();
            if SnapshotName::parse_object(name).is_some() {
                self.replace_snapshot(name, &mut done, progress)?;
                continue;
            }
            let bytes = match SegmentName::parse_object(name) {
                Some(segment) => match load(self.source, self.keys, segment)? {
                    Some(source) => source.whole(self.keys)?.0.to_vec(),
                    None => continue,
                },
                None => self.source.read(name)?,
            };
            self.target.replace(name, &bytes)?;
            done.objects += 1;
            done.bytes += bytes.len() as u64;
            progress(bytes.len() as u64);
        }
        Ok(done)
    }

    fn settled(&self, store: &dyn Store) -> Result<Vec<SegmentEntry>> {
        let mut all = all_segments(store)?;
        let before = self.before.unwrap_or((u32::MAX, u32::MAX));
        all.retain(|entry| entry.name.age() < before);
        Ok(all)
    }

    fn segment_fault(
        &self,
        name: SegmentName,
        newest_of_source: Option<&SegmentEntry>,
    ) -> Result<Option<Fault>> {
        // That its writer died before the header was there is no damage.
        let mut torn = false;
        let wrong = match load(self.target, self.keys, name) {
            Err(error @ Error::Store(_)) => return Err(error),
            Err(error) => error.to_string(),
            Ok(None) => {
                torn = true;
                "it has no header".into()
            }
            Ok(Some(target)) => match target.whole(self.keys) {
                Ok((found, count)) => return self.compare(name, found, count),
                Err(error) => error.to_string(),
            },
        };
        let source = match load(self.source, self.keys, name) {
            Err(error @ Error::Store(_)) => return Err(error),
            source => source.ok().flatten(),
        };
        let Some(wanted) = source.as_ref().and_then(|source| source.whole(self.keys).ok()) else {
            return Ok((!torn).then(|| Fault::new(name, &wrong, false)));
        };
        let stored = self.target.read(&name.to_string())?;
        let stored = stored.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
        let gone_on = newest_of_source.is_some_and(|newest| name.age() < newest.name.age());
        let holds_no_less = gone_on || wanted.0.len() >= stored;
        Ok(Some(Fault::new(name, &wrong, holds_no_less)))
    }

    /// A segment that proves itself may still have lost its end.
    fn compare(&self, name: SegmentName, found: &[u8], count: u64) -> Result<Option<Fault>> {
        let source = match load(self.source, self.keys, name) {
            Err(error @ Error::Store(_)) => return Err(error),
            source => source.ok().flatten(),
        };
        let Some(source) = source else { return Ok(None) };
        let Ok((wanted, own_count)) = source.whole(self.keys) else { return Ok(None) };
        if wanted.len() > found.len() && wanted.starts_with(found) {
            let what = format!("has {count} records instead of {own_count}");
            return Ok(Some(Fault::new(name, &what, true)));
        }
        // Where this one is longer, the source has lost its end, or is behind: nothing is wrong here.
        if found.starts_with(wanted) {
            return Ok(None);
        }
        Err(Error::TwoHistories {
            one: self.source.label().into(),
            other: self.target.label().into(),
            at: name.to_string(),
        })
    }

    fn snapshot_fault(&self, name: &str) -> Result<Option<Fault>> {
        let prove =
            |store| match snapshot::read(store, self.keys, name, None, &mut Proof::default()) {
                Err(error @ Error::Store(_)) => Err(error),
                read => Ok(read),
            };
        match prove(self.target)? {
            Ok(_) => Ok(None),
            Err(wrong) => Ok(Some(Fault::new(name, &wrong, prove(self.source)?.is_ok()))),
        }
    }

    /// A snapshot may be large: it is not held in memory.
    fn replace_snapshot(
        &self,
        name: &str,
        done: &mut Mirrored,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let Self { source, target, keys, before } = *self;
        // Whoever prunes may have removed it since it was proved.
        if !source.exists(name)? {
            return Ok(());
        }
        target.remove(name)?;
        Mirror { source, target, keys, before }.copy(name, done, progress)?;
        snapshot::read(target, keys, name, None, &mut Proof::default()).map(drop)
    }
}

/// The marker, slots, claims, holds and companion files that do not prove themselves. (Whether a slot opens only its
/// owner can tell: it must be whole.)
///
/// # Errors
/// Where the store cannot be read.
pub fn small_faults(store: &dyn Store, keys: &KeyRing) -> Result<Vec<Fault>> {
    let mut names = vec![layout::MARKER.to_owned()];
    for folder in [layout::KEYS, layout::EPOCHS, layout::HOLDS, layout::FILES] {
        let entries = store.list(folder)?;
        names.extend(entries.iter().map(|entry| format!("{folder}/{}", entry.name)));
    }
    let mut faults = Vec::new();
    for name in names {
        faults.extend(small_fault(store, keys, &name)?);
    }
    Ok(faults)
}

fn small_fault(store: &dyn Store, keys: &KeyRing, name: &str) -> Result<Option<Fault>> {
    let (folder, file) = name.split_once('/').unwrap_or(("", name));
    let proved = match folder {
        layout::KEYS if !file.ends_with(slots::SUFFIX) => Ok(()),
        layout::KEYS => match slots::looks_whole(&store.read(name)?, keys)? {
            true => Ok(()),
            false => Err(Error::damaged(format!("'{name}'"), "not a whole age file")),
        },
        layout::EPOCHS => layout::parse_claim(file)
            .map_or(Ok(()), |epoch| fence::read(store, keys, epoch).map(drop)),
        layout::FILES => layout::parse_files(file)
            .map_or(Ok(()), |at| FileSet::read_at(store, keys, at).map(drop)),
        // Its name alone counts.
        layout::HOLDS => Ok(()),
        _ => Marker::read(store).and_then(|marker| marker.require(keys.store())),
    };
    match proved {
        // Whoever removed a slot or a hold meanwhile may do so.
        Err(Error::Store(error)) if matches!(error.kind, StoreErrorKind::NotFound) => Ok(None),
        Err(error @ Error::Store(_)) => Err(error),
        Err(error) => Ok(Some(Fault::new(name, &error, false))),
        Ok(()) => Ok(None),
    }
}

#[cfg(test)]
mod tests;
