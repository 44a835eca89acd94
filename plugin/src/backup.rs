//! The log of this node: what happens at the start, and with each call.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_node::{Access, LightningDir, wallet};
use lockstep_proto::capture::Capture;
use lockstep_proto::config::{
    Compaction, KEY_FILE, LOCK_FILE, LockFile, Metrics, STANDBY_FOLDER, destination_options,
    read_key_file,
};
use lockstep_proto::drill::Drill;
use lockstep_proto::error::{Error, Result};
use lockstep_proto::fence::Claimant;
use lockstep_proto::hold::Hold;
use lockstep_proto::log::LogEnd;
use lockstep_proto::record::{StartReason, TimeMs};
use lockstep_proto::retention::Policy;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::session::{Direction, Session};
use lockstep_proto::shadow::Proofs;
use lockstep_proto::slots;
use lockstep_proto::store::{Fencing, Store, StoreErrorKind};
use lockstep_proto::version::DataVersion;
use lockstep_proto::witness::Witness;
use lockstep_proto::writer::{Call, Outcome, Writer};

use crate::PROGRAM;
use crate::compactor::{AtStart, Before, Compactor, Setup};
use crate::companions::Companions;
use crate::metrics;
use crate::places::Places;
use crate::reload::Reloading;
use crate::stall::Watchdog;
use crate::status::{DestinationStatus, KeySlots, SharedStatus, State};
use crate::wire::{Level, Output};
use crate::witness::{Noting, look_for_rollback};

/// lightningd kills a plugin that takes a minute for `getmanifest`.
const COPY_BEFORE_MANIFEST: Duration = Duration::from_secs(45);
/// Where the copy of a database that is ahead is kept meanwhile.
const COPY_FILE: &str = "backup.copy.tmp";
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The log that this node's transactions go to.
pub struct Backup {
    pub(crate) directory: PathBuf,
    wallet: PathBuf,
    pub(crate) places: Places,
    stall_timeout: Duration,
    pub(crate) store_id: StoreId,
    /// This directory, to which the log must belong.
    pub(crate) id: String,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: KeyRing,
    /// Claimed with the first call: only then does lightningd run for certain, and not `lightningd --help`.
    pub(crate) writer: Option<Writer>,
    /// The database holds what the log does not: a generation must begin.
    gap: bool,
    copy: Option<EarlyCopy>,
    pub(crate) status: SharedStatus,
    compactor: Compactor,
    /// Until it is started.
    compaction: Option<(Compaction, Policy)>,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) reloading: Reloading,
    companions: Companions,
    metrics: Option<Metrics>,
    pub(crate) output: Arc<Output>,
}

/// A call that is durable.
pub struct Appended {
    data_version: DataVersion,
    took: Duration,
}

/// A copy that a thread makes from the start on.
struct EarlyCopy {
    result: Receiver<Result<Capture>>,
    pages: Arc<AtomicU64>,
}

impl EarlyCopy {
    /// Waits for it, for as long as it gets on.
    fn wait(self, watchdog: &Watchdog) -> Option<Result<Capture>> {
        let mut seen = 0;
        loop {
            match self.result.recv_timeout(Duration::from_secs(1)) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    let pages = self.pages.load(Ordering::Relaxed);
                    if pages != seen {
                        seen = pages;
                        watchdog.progress();
                    }
                }
            }
        }
    }
}

impl Backup {
    /// Reads the configuration in the network directory `directory`, and compares the database with its
    /// log before lightningd opens it. Changes nothing.
    ///
    /// # Errors
    /// Whatever means that this node must not start.
    pub fn prepare(directory: &Path, status: SharedStatus, output: Arc<Output>) -> Result<Self> {
        let directory = std::path::absolute(directory).map_err(Error::file("find", directory))?;
        let lock = LockFile::read(&directory)?.ok_or_else(|| missing_lock(&directory))?;
        let key_file = directory.join(KEY_FILE);
        if !key_file.exists() {
            return Err(Error::Refused {
                what: format!("there is no {KEY_FILE} in '{}'", directory.display()),
                hint: format!(
                    "'backup-cli key write --lightning-dir {}' makes it again from the node's secret.",
                    directory.display()
                ),
            });
        }
        let keys = read_key_file(&key_file)?;
        let options = destination_options(Some(&directory), std::env::vars_os())?;
        if keys.store() != lock.store_id {
            let (expected, found) = (lock.store_id, keys.store());
            return Err(Error::OtherStore { object: KEY_FILE.into(), expected, found });
        }
        let (places, store, end) = Places::open(&lock, &options, &keys, &output)?;
        end.expect_directory(&*store, &lock.directory)?;
        look_for_rollback(&directory, lock.store_id, &*store, &end, &output);
        let wallet = wallet_of(&directory, &lock);
        let companions = Companions::new(
            directory.clone(),
            lock.files.clone(),
            places.clone(),
            keys.clone(),
            output.clone(),
        );
        let mut backup = Self {
            wallet,
            companions,
            places,
            stall_timeout: lock.stall_timeout(),
            metrics: lock.metrics.clone(),
            heartbeat_interval: lock.heartbeat_interval(),
            reloading: Reloading::new(lock.quorum),
            store_id: lock.store_id,
            id: lock.directory,
            store,
            keys,
            writer: None,
            gap: false,
            copy: None,
            compactor: status.compactor().clone(),
            compaction: Some((lock.compaction, lock.retention)),
            status,
            output,
            directory,
        };
        let holds = Hold::list(&*backup.store)?;
        backup.compare(&end, &holds)?;
        backup.publish_status(&end)?;
        backup.offer_compaction(&end, holds);
        Ok(backup)
    }

    /// From here on compactions can be asked for. What the database holds is read now, while nobody has it open.
    fn offer_compaction(&self, end: &LogEnd, holds: Vec<Hold>) {
        let Some((settings, _)) = &self.compaction else { return };
        let at_start = match self.gap {
            true => Ok(AtStart::default()),
            false => AtStart::read(&self.directory, &self.wallet, end, settings),
        };
        let at_start = at_start.unwrap_or_else(|error| {
            let line = format!("the database is not compared with its backup: {error}");
            self.output.log(Level::Unusual, &line);
            AtStart::default()
        });
        let proofs = Proofs::read(&settings.shadow_in(&self.directory), self.store_id);
        self.compactor.offer(settings.clone(), at_start, Before { proofs, holds });
    }

    /// How long a destination may fail to answer.
    pub fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    /// How messages name the destinations.
    pub fn label(&self) -> String {
        self.places.label()
    }

    /// Direction decides: ahead is copied, behind is refused, and nothing starts empty over a history.
    fn compare(&mut self, end: &LogEnd, holds: &[Hold]) -> Result<()> {
        let head = end.head;
        let written = wallet::last_written(&self.wallet).map(time_ms);
        let found = wallet::data_version(&self.wallet, Access::Exclusive).map_err(|error| {
            Error::Refused {
                what: error.to_string(),
                hint: error.hint().unwrap_or("nothing was changed.").into(),
            }
        })?;
        let Some(database) = found.map(DataVersion) else {
            let first_in_doubt = head.in_doubt && head.data_version == Some(DataVersion(1));
            return match head.data_version {
                Some(version) if !first_in_doubt && !head.is_empty() => Err(Error::Refused {
                    what: format!(
                        "there is no database at '{}', but its backup holds data_version {version}",
                        self.wallet.display()
                    ),
                    hint: "do not start an empty node: run 'backup-cli restore' first.".into(),
                }),
                _ => Ok(()),
            };
        };
        match Session::new(head).compare(database) {
            Direction::Equal
                if holds.iter().any(|hold| hold.generation == end.position.generation) =>
            {
                self.output.log(
                    Level::Unusual,
                    "the database was not what its backup says; taking a snapshot of it as it is now",
                );
                self.copy_ahead()
            }
            Direction::Equal => {
                let at_head = head.data_version == Some(database);
                if at_head && written.is_some_and(|written| !end.explains(written)) {
                    self.output.log(
                        Level::Unusual,
                        "the database was written to without this plugin since its newest backup, at the \
                         same data_version; taking a snapshot of it",
                    );
                    return self.copy_ahead();
                }
                Ok(())
            }
            Direction::Behind => {
                Err(Error::Behind { head: head.data_version.unwrap_or_default(), database })
            }
            Direction::Ahead => {
                self.output.log(
                    Level::Unusual,
                    &format!(
                        "the database (data_version {database}) is ahead of its backup ({}): it was \
                         written without this plugin; taking a snapshot of it",
                        head.data_version.map_or("empty".into(), |version| version.to_string())
                    ),
                );
                self.copy_ahead()
            }
        }
    }

    /// Copies the database on a thread, and waits for it as long as `getmanifest` may take.
    fn copy_ahead(&mut self) -> Result<()> {
        let (wallet, copy) = (self.wallet.clone(), self.directory.join(COPY_FILE));
        let (sender, result) = channel();
        let (done, wait) = channel();
        let pages = Arc::new(AtomicU64::new(0));
        let count = pages.clone();
        std::thread::Builder::new()
            .name("copy".into())
            .spawn(move || {
                // Nobody listens any more only where the plugin is ending.
                let mut progress = |pages| count.store(pages, Ordering::Relaxed);
                let _ = sender.send(Capture::take(&wallet, copy, &mut progress));
                let _ = done.send(());
            })
            .map_err(Error::file("start a thread for", &self.wallet))?;
        let _ = wait.recv_timeout(COPY_BEFORE_MANIFEST);
        (self.gap, self.copy) = (true, Some(EarlyCopy { result, pages }));
        Ok(())
    }

    fn publish_status(&self, end: &LogEnd) -> Result<()> {
        let slots = slots::list(&*self.store)?;
        self.status.offer_slots(KeySlots { store: self.store.clone(), keys: self.keys.clone() });
        let mut status = self.status.lock();
        status.store_id = self.store_id.to_string();
        status.set_slots(slots.into_iter().map(|slot| slot.name).collect());
        status.log = DestinationStatus {
            generation: end.position.generation,
            epoch: end.epoch,
            seq: end.position.seq,
            data_version: end.head.data_version.map(|version| version.0),
            ..DestinationStatus::default()
        };
        status.places = Some(self.places.clone());
        Ok(())
    }

    /// Makes one call durable, trying again while the destination fails, up to the stall time-out.
    ///
    /// # Errors
    /// The last failure; lightningd must not commit.
    pub fn append<S: AsRef<str>>(
        &mut self,
        call: &Call<'_, S>,
        watchdog: &Watchdog,
    ) -> Result<Appended> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_append(call, watchdog) {
                Ok(()) => {
                    return Ok(Appended { data_version: call.data_version, took: began.elapsed() });
                }
                Err(error) if retryable(&error) && began.elapsed() < self.stall_timeout => {
                    if pause == FIRST_PAUSE {
                        self.set_state(State::Stalled);
                        self.status.appends().stalled();
                        let line = format!(
                            "{}; trying again for {} s",
                            error.explain(),
                            self.stall_timeout.as_secs()
                        );
                        self.output.log(Level::Unusual, &line);
                    }
                    // The last try is at the time-out.
                    std::thread::sleep(
                        pause.min(self.stall_timeout.saturating_sub(began.elapsed())),
                    );
                    pause = (2 * pause).min(LONGEST_PAUSE);
                    self.reopen()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn try_append<S: AsRef<str>>(&mut self, call: &Call<'_, S>, watchdog: &Watchdog) -> Result<()> {
        if self.writer.is_none() {
            // A claim fences whoever writes now: only a node that may go on makes one.
            let end = LogEnd::read(&*self.store, &self.keys)?;
            end.expect_directory(&*self.store, &self.id)?;
            Session::new(end.head).refuse_behind(call.data_version, call.transaction)?;
            let claimant = Claimant::this_process(PROGRAM, "node", &self.id, now())?;
            let writer = Writer::open(self.store.clone(), self.keys.clone(), claimant, now())?;
            self.note_fencing()?;
            self.writer = Some(writer);
        }
        self.let_them_count();
        if self.gap {
            self.close_gap(call.data_version, watchdog)?;
        }
        if self.append_once(call)? == Outcome::Gap {
            self.close_gap(call.data_version, watchdog)?;
            if self.append_once(call)? == Outcome::Gap {
                return Err(Error::Refused {
                    what: format!(
                        "data_version {} does not follow the database's own",
                        call.data_version
                    ),
                    hint: "report it; the transaction was not committed.".into(),
                });
            }
        }
        Ok(())
    }

    /// Notes how well the place keeps a second writer out, and says so where that is not what it was.
    fn note_fencing(&self) -> Result<()> {
        let fencing = self.store.fencing()?;
        let named = self.places.named();
        let counting = named.iter().filter(|of| of.mode.is_sync());
        let was_real = counting.map(|of| of.fencing).all(|of| of == Some(Fencing::Real));
        if fencing == Fencing::Advisory && was_real {
            let line = format!(
                "'{}' does not keep a second writer out any more (fencing: advisory). hint: make sure that no other \
                 copy of this node runs, and ask the provider",
                self.label()
            );
            self.output.log(Level::Unusual, &line);
            self.status.lock().warnings.push(line);
        }
        self.status.lock().log.fencing = Some(fencing);
        Ok(())
    }

    fn append_once<S: AsRef<str>>(&mut self, call: &Call<'_, S>) -> Result<Outcome> {
        let Some(writer) = &mut self.writer else { return Ok(Outcome::Gap) };
        let outcome = writer.append(call, now())?;
        if let Outcome::Acknowledged { voided: Some(seq), .. } = outcome {
            let line = format!("batch seq {seq} was never committed by the node, and is voided");
            self.output.log(Level::Info, &line);
        }
        Ok(outcome)
    }

    /// Begins a generation from the database as it was before this call's transaction.
    fn close_gap(&mut self, called: DataVersion, watchdog: &Watchdog) -> Result<()> {
        let before = called.0.wrapping_sub(1);
        let fits = |copy: &Capture| copy.data_version.is_some_and(|v| v.0 == before || v == called);
        let early = self.copy.take().and_then(|copy| copy.wait(watchdog)).transpose()?;
        let copy = match early.filter(fits) {
            Some(copy) => copy,
            None => {
                let copy = self.directory.join(COPY_FILE);
                Capture::take(&self.wallet, copy, &mut |_| watchdog.progress())?
            }
        };
        let Some(writer) = &mut self.writer else { return Ok(()) };
        // No snapshot is newer than they are, unless a place hangs.
        self.companions.keep_in_time(writer.epoch());
        copy.begin(writer, StartReason::Gap, now(), &mut |_, _| watchdog.progress())?;
        self.gap = false;
        let line = format!(
            "generation {} begins with a snapshot of data_version {}; earlier generations are kept",
            writer.position().generation,
            copy.data_version.unwrap_or_default()
        );
        self.output.log(Level::Unusual, &line);
        Ok(())
    }

    /// Opens the place again: after an error nothing that was open is trusted. Where it is not there
    /// yet, the next try fails as the last one did.
    ///
    /// # Errors
    /// Where what is there now must not be written to: another writer's, or another state of the log.
    fn reopen(&mut self) -> Result<()> {
        // Those of several are opened anew by their own threads.
        let Some(destination) = self.places.only() else { return Ok(()) };
        let reopened = destination.url.open_of(self.store_id).and_then(|store| {
            if let Some(writer) = &mut self.writer {
                writer.reattach(store.clone())?;
            }
            Ok(store)
        });
        match reopened {
            Ok(store) => self.store = store,
            Err(error) if retryable(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn set_state(&self, state: State) {
        self.status.lock().log.state = state;
    }

    /// A call was answered: from the first one on there may be compactions, and heartbeats.
    pub fn answered(&mut self, appended: &Appended) {
        self.note(appended);
        let Some((settings, retention)) = self.compaction.take() else { return };
        let setup = Setup {
            places: self.places.clone(),
            keys: self.keys.clone(),
            wallet: self.wallet.clone(),
            folder: settings.shadow_in(&self.directory),
            settings,
            retention,
            companions: self.companions.clone(),
        };
        if let Err(error) = self.compactor.start(setup, self.output.clone()) {
            let line = format!("no compaction: failed to start a thread: {error}");
            self.output.log(Level::Unusual, &line);
        }
        self.companions.clone().start(self.status.clone());
        self.start_heartbeats(&self.places.named());
        let noting = Noting {
            directory: self.directory.clone(),
            store_id: self.store_id,
            status: self.status.clone(),
            output: self.output.clone(),
        };
        noting.start();
        self.start_metrics();
    }

    fn start_metrics(&self) {
        let Some(settings) = &self.metrics else { return };
        let (directory, store) = (self.directory.clone(), self.store_id);
        let last_drill = Box::new(move || Drill::read(&directory, store));
        match metrics::serve(settings, self.status.clone(), last_drill) {
            Ok(address) => {
                self.output.log(Level::Info, &format!("metrics at http://{address}/metrics"));
            }
            Err(error) => {
                let line = format!("no metrics at {}: {error}", settings.listen);
                self.output.log(Level::Unusual, &line);
            }
        }
    }

    fn note(&self, appended: &Appended) {
        let Some(writer) = &self.writer else { return };
        self.compactor.appended(writer);
        let position = writer.position();
        let took_us = appended.took.as_micros() as u64;
        self.status.appends().took(took_us);
        let mut status = self.status.lock();
        status.batches += 1;
        status.last_append = Some(now());
        status.appended_at = Some(Instant::now());
        status.last_append_us = took_us;
        status.longest_append_us = status.longest_append_us.max(took_us);
        if status.log.state == State::Stalled {
            self.output.log(Level::Info, &format!("'{}' answers again", self.label()));
        }
        status.log.state = State::Current;
        status.log.generation = position.generation;
        status.log.epoch = writer.epoch();
        status.log.seq = position.seq;
        status.log.data_version = Some(appended.data_version.0);
    }

    /// Ends the log in order.
    pub fn close(&mut self) {
        self.status.lock().closed = true;
        if let Some(writer) = &mut self.writer {
            // The record that ends it is not counted: whether that was written is not known.
            let (seq, head) = (writer.position().seq, writer.session().head());
            writer.close(now());
            let witness = Witness::new(self.store_id, seq, head.data_version, now());
            if let Err(error) = witness.write(&self.directory) {
                self.output.log(Level::Unusual, &error.explain());
            }
        }
        self.places.settle();
    }
}

/// The wallet that the lock file names, or else the usual one.
fn wallet_of(directory: &Path, lock: &LockFile) -> PathBuf {
    let directory = LightningDir::new(directory);
    match &lock.wallet {
        Some(wallet) => wallet.clone(),
        None => directory.wallet().to_owned(),
    }
}

fn missing_lock(directory: &Path) -> Error {
    let verb = match directory.join(STANDBY_FOLDER).is_dir() {
        true => format!(
            "this is a standby: 'backup-cli promote URL {}' makes a node of it",
            directory.display()
        ),
        false => format!(
            "stop lightningd and run 'backup-cli init --lightning-dir {} URL'",
            directory.display()
        ),
    };
    Error::Refused {
        what: format!("there is no {LOCK_FILE} in '{}'", directory.display()),
        hint: format!("{verb}."),
    }
}

/// Failures of the place, as opposed to those of what is in it.
fn retryable(error: &Error) -> bool {
    matches!(error, Error::Store(error)
        if !matches!(error.kind, StoreErrorKind::Exists | StoreErrorKind::Damaged(_)))
}

/// Milliseconds since 1970.
pub fn now() -> TimeMs {
    time_ms(SystemTime::now())
}

/// A time before 1970 is 1970.
fn time_ms(time: SystemTime) -> TimeMs {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as TimeMs)
}
