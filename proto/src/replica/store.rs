//! Several places as one [`Store`]: writes go to all of them, reads come from the first that has everything.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::everywhere::Writing;
use super::quorum::Quorum;
use super::{GRACE, Replicas};
use crate::error::Error;
use crate::fence;
use crate::layout::{self, SegmentName};
use crate::log::LogEnd;
use crate::record::Destinations;
use crate::store::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind};

impl Store for Replicas {
    fn label(&self) -> &str {
        &self.quorum.label
    }

    fn destinations(&self) -> Destinations {
        self.known.clone()
    }

    /// As that of the weakest place that counts.
    fn fencing(&self) -> Result<Fencing, StoreError> {
        let answers = self.ask(GRACE, |store| store.fencing());
        let weak = |(index, answer): &(usize, Result<Fencing, _>)| {
            self.counts(*index) && matches!(answer, Ok(Fencing::Advisory))
        };
        Ok(if answers.iter().any(weak) { Fencing::Advisory } else { Fencing::Real })
    }

    /// What had everything when it was opened may lack what an older writer did since. And what one place was given since
    /// it was looked at, by an older writer that has not seen the claim yet, the others lack.
    fn claimed(&self, epoch: u32) -> Result<Option<LogEnd>, Error> {
        let (claim, keys) = (layout::claim(epoch), self.crew.keys.clone());
        let given = self.ask(GRACE, move |store| {
            let own = store.clone();
            // What was read before the claim was there may have been gone on from.
            Ok(store.exists(&claim)?.then(|| LogEnd::read(&**store, &keys).map(|end| (own, end))))
        });
        self.expect_newest(given).map(Some)
    }

    /// A claim is made everywhere, for all epochs up to its own: whoever looks for the next one finds it, also where
    /// others were never made.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let epoch = name.strip_prefix("epochs/").and_then(layout::parse_claim);
        if let Some(epoch) = epoch {
            self.quorum.shared.lock().begin_epoch(epoch);
        }
        let (object, bytes): (String, Arc<[u8]>) = (name.into(), bytes.into());
        self.change("create", name, move |store| {
            if let Some(epoch) = epoch {
                for below in fence::newest(&**store)?.saturating_add(1)..epoch {
                    create_once(&**store, &layout::claim(below), &bytes)?;
                }
            }
            create_once(&**store, &object, &bytes)
        })
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        let begin = |index: usize, store: &Arc<dyn Store>| {
            Writing::begin(&self.quorum.shared.ground, index, store.clone(), name)
                .map_err(|error| self.quorum.error("create", name, error.into()))
        };
        let state = self.quorum.shared.lock();
        let whole = state.replicas.iter().enumerate().filter(|(_, replica)| replica.whole);
        let writing = whole
            .filter_map(|(index, replica)| Some(begin(index, replica.store.as_ref()?)))
            .collect::<Result<_, _>>()?;
        Ok(Box::new(Everywhere { replicas: self, name: name.into(), writing }))
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        let segment = SegmentName::parse_object(name).ok_or_else(|| {
            let what = StoreErrorKind::Damaged("not the name of a segment".into());
            self.quorum.error("create", name, what)
        })?;
        let mut state = self.quorum.shared.lock();
        state.epoch = state.epoch.max(segment.epoch);
        state.feed.begin(segment, header);
        drop(state);
        self.quorum.shared.work.ring();
        // Its first record is waited for, and nothing counts before that.
        Ok(Box::new(Appending { quorum: self.quorum.clone(), segment }))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (object, bytes): (String, Arc<[u8]>) = (name.into(), bytes.into());
        self.change("replace", name, move |store| store.replace(&object, &bytes))
    }

    fn resume_append(
        &self,
        name: &str,
        _header: &[u8],
        _records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        let what = "each of its destinations goes on by itself".into();
        Err(self.quorum.error("resume", name, StoreErrorKind::Damaged(what)))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        self.read_from("read", name, |store| store.read(name))
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        self.read_from("read", name, |store| store.read_stream(name))
    }

    /// A claim is there where any place has it.
    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        if name.starts_with(layout::EPOCHS) {
            let object = name.to_owned();
            let answers = self.ask(Duration::ZERO, move |store| store.exists(&object));
            return Ok(answers.iter().any(|(_, answer)| matches!(answer, Ok(true))));
        }
        self.read_from("look up", name, |store| store.exists(name))
    }

    /// Claims are those that any place has, and what was claimed last: a place that does not answer now may have it, and
    /// whoever claims less would be fenced by it.
    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        if folder != layout::EPOCHS {
            return self.read_from("list", folder, |store| store.list(folder));
        }
        let folder = folder.to_owned();
        let answers = self.ask(GRACE, move |store| store.list(&folder));
        let mut claims: Vec<Entry> =
            answers.into_iter().filter_map(|(_, answer)| answer.ok()).flatten().collect();
        let tried = self.quorum.shared.lock().epoch;
        if tried > 0 {
            let name = layout::claim(tried).split_off(layout::EPOCHS.len() + 1);
            claims.push(Entry { name, size: 0, folder: false });
        }
        claims.sort_by(|a, b| a.name.cmp(&b.name));
        claims.dedup_by(|a, b| a.name == b.name);
        Ok(claims)
    }

    fn list_all(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        self.read_from("list", folder, |store| store.list_all(folder))
    }

    /// At those places that have everything; what the others lack is durable there once it is copied.
    fn sync(&self, name: &str) -> Result<(), StoreError> {
        let object = name.to_owned();
        let answers = self.ask(GRACE, move |store| store.sync(&object));
        self.require(1, "sync", name, answers)
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let object = name.to_owned();
        self.change("remove", name, move |store| store.remove(&object))
    }
}

/// Creates what may be there already, as one's own.
fn create_once(store: &dyn Store, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    match store.create(name, bytes) {
        Err(error)
            if matches!(error.kind, StoreErrorKind::Exists)
                && store.read(name).is_ok_and(|found| found == bytes) =>
        {
            Ok(())
        }
        created => created,
    }
}

/// An object that is being written to all places that have everything else.
struct Everywhere<'a> {
    replicas: &'a Replicas,
    name: String,
    writing: Vec<Writing>,
}

impl NewObject for Everywhere<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let bytes: Arc<[u8]> = bytes.into();
        for writing in &mut self.writing {
            writing.write(&bytes, self.replicas.quorum.patience);
        }
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let Self { replicas, name, writing } = *self;
        let answers = writing.into_iter().filter_map(|writing| {
            let index = writing.index;
            let committed = writing.commit(replicas.quorum.patience)?;
            Some((index, committed.map_err(Some)))
        });
        let needed = replicas.quorum.policy.to_acknowledge();
        replicas.require(needed, "create", &name, answers.collect())
    }
}

/// The segment that is being written.
struct Appending {
    quorum: Quorum,
    segment: SegmentName,
}

impl Append for Appending {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let step = self.quorum.shared.lock().feed.record(self.segment, bytes);
        // This process itself has opened the log anew.
        let gone_on =
            || self.quorum.error("write", &self.segment.to_string(), StoreErrorKind::Taken);
        let step = step.ok_or_else(gone_on)?;
        self.quorum.shared.work.ring();
        self.quorum.wait_for(step, self.segment)
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        self.quorum.shared.lock().feed.end(self.segment);
        self.quorum.shared.work.ring();
        Ok(())
    }

    /// Each place's thread looks for a newer claim.
    fn is_exclusive(&self) -> bool {
        true
    }
}
