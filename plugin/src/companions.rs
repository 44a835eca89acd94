//! Companion files are sealed into the backup when they change: beside the hook, and in any case before a snapshot that
//! is newer than they are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use lockstep_node::{LightningDir, companion_names};
use lockstep_proto::companion::FileSet;
use lockstep_proto::config::Files;
use lockstep_proto::error::{Error, Result};
use lockstep_proto::seal::KeyRing;

use crate::clock::now;
use crate::places::Places;
use crate::status::SharedStatus;
use crate::wire::{Level, Output};

/// How long the hook waits for them.
const IN_TIME: Duration = Duration::from_secs(10);
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The files of this node, for whoever must have them kept.
#[derive(Clone)]
pub struct Companions(Arc<Shared>);

struct Shared {
    directory: PathBuf,
    settings: Files,
    places: Places,
    keys: KeyRing,
    output: Arc<Output>,
    known: Mutex<Known>,
}

/// What was done until now. Locked while a set is made: two are never made at once.
#[derive(Default)]
struct Known {
    /// How the files were when they were last read.
    stamps: Option<Vec<Stamp>>,
    /// What the backup holds; `None` until somebody looked.
    stored: Option<Option<FileSet>>,
    /// Sets that this process began, in its newest epoch.
    begun: (u32, u32),
    /// What was said in the log already.
    told: BTreeSet<String>,
}

/// A file's name, time and length.
type Stamp = (String, Option<(SystemTime, u64)>);

impl Companions {
    /// Nothing is read yet.
    pub fn new(
        directory: PathBuf,
        settings: Files,
        places: Places,
        keys: KeyRing,
        output: Arc<Output>,
    ) -> Self {
        let known = Mutex::default();
        Self(Arc::new(Shared { directory, settings, places, keys, output, known }))
    }

    /// Has the backup hold them as they are now. Cheap where nothing changed.
    ///
    /// # Errors
    /// Where a destination cannot be written to.
    pub fn keep(&self, epoch: u32) -> Result<()> {
        if !self.0.settings.enabled {
            return Ok(());
        }
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Files { include, include_secret, .. } = &self.0.settings;
        let node = LightningDir::new(&self.0.directory);
        self.look_up(&mut known)?;
        let stored = known.stored.iter().flatten().flat_map(|set| &set.files);
        let before = stored.map(|file| file.name.as_str());
        let names = companion_names(&node, *include_secret, include, before);
        let stamps: Vec<Stamp> = names.iter().map(|name| self.stamp(name)).collect();
        if known.stamps.as_ref() == Some(&stamps) {
            return Ok(());
        }
        self.store(&mut known, &names, epoch)?;
        known.stamps = Some(stamps);
        Ok(())
    }

    /// As [`keep`](Self::keep), for the hook, which must not wait for a place that hangs: what is not done in time is said,
    /// and done later.
    pub fn keep_in_time(&self, epoch: u32) {
        let (sender, done) = channel();
        let companions = self.clone();
        let keep = move || {
            // Nobody listens any more where it came too late.
            let _ = sender.send(companions.keep(epoch));
        };
        let spawned = thread::Builder::new().name("companion files".into()).spawn(keep);
        let why = match spawned.map(|_| done.recv_timeout(IN_TIME)) {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.explain(),
            Ok(Err(_)) => format!("no answer for {} s", IN_TIME.as_secs()),
            Err(error) => error.to_string(),
        };
        let line = format!("a snapshot comes before the newest companion files: {why}");
        self.0.output.log(Level::Unusual, &line);
    }

    /// What the backup holds, the first time.
    fn look_up(&self, known: &mut MutexGuard<'_, Known>) -> Result<()> {
        if known.stored.is_some() {
            return Ok(());
        }
        let Shared { places, keys, .. } = &*self.0;
        let store = places.current().0.url.open_of(keys.store())?;
        known.stored = Some(match FileSet::newest(&*store, keys) {
            Err(error @ Error::Store(_)) => return Err(error),
            Err(error) => {
                self.tell(known, &format!("companion files are stored anew: {error}"));
                None
            }
            newest => newest?,
        });
        Ok(())
    }

    fn store(&self, known: &mut MutexGuard<'_, Known>, names: &[String], epoch: u32) -> Result<()> {
        let Shared { directory, settings, places, keys, .. } = &*self.0;
        let stored = known.stored.iter().flatten().next();
        let (set, unread) = FileSet::read(directory, names, settings, stored, now());
        let is_new = stored.map_or(!set.files.is_empty(), |stored| !stored.says_what(&set));
        for (name, why) in unread {
            self.tell(known, &format!("companion file '{name}' is not kept: {why}"));
        }
        if !is_new {
            return Ok(());
        }
        // After an error the next try takes another name: whether this one is taken is not known then.
        let at = match known.begun {
            (of, index) if of == epoch => (epoch, index + 1),
            _ => (epoch, 0),
        };
        known.begun = at;
        let bytes = set.seal(keys, at)?;
        let (one, others) = places.current();
        FileSet::store(&*one.url.open_of(keys.store())?, at, &bytes)?;
        for other in others {
            // One that went away is brought up by its own thread.
            let stored = other.url.open_of(keys.store());
            if let Err(error) = stored.and_then(|store| FileSet::store(&*store, at, &bytes)) {
                let name = &other.name;
                self.tell(known, &format!("companion files are not at '{name}' yet: {error}"));
            }
        }
        let names: Vec<&str> = set.files.iter().map(|file| file.name.as_str()).collect();
        let line = format!("companion files sealed into the backup: {}", names.join(", "));
        self.0.output.log(Level::Info, &line);
        known.stored = Some(Some(set));
        Ok(())
    }

    fn stamp(&self, name: &str) -> Stamp {
        let found = self.0.directory.join(name).metadata();
        let stamp = found.ok().and_then(|found| Some((found.modified().ok()?, found.len())));
        (name.to_owned(), stamp)
    }

    /// Says something once.
    fn tell(&self, known: &mut MutexGuard<'_, Known>, line: &str) {
        if known.told.insert(line.to_owned()) {
            self.0.output.log(Level::Unusual, line);
        }
    }

    /// Starts the thread that looks at them, if they are kept; it ends with the log. The hook's first call has been
    /// answered. Where there can be no thread they are kept before snapshots only.
    pub fn start(self, status: SharedStatus) {
        if !self.0.settings.enabled {
            return;
        }
        let output = self.0.output.clone();
        let watch = move || {
            loop {
                let (closed, epoch) = {
                    let status = status.lock();
                    (status.closed, status.log.epoch)
                };
                if closed {
                    return;
                }
                if let Err(error) = self.keep(epoch) {
                    let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
                    let line = format!("companion files are not kept: {}", error.explain());
                    self.tell(&mut known, &line);
                }
                thread::sleep(LOOK);
            }
        };
        if let Err(error) = thread::Builder::new().name("companion files".into()).spawn(watch) {
            let line = format!("companion files: failed to start a thread: {error}");
            output.log(Level::Unusual, &line);
        }
    }
}
