//! The log of this node: what happens at the start, and with each call.
//!
//! | module | idea |
//! |---|---|
//! | [`opening`] | before lightningd opens its database: whether this node may go on |
//! | [`early_copy`] | a copy of a database that is ahead of its log |
//! | [`beside`] | what runs beside the hook |
//! | [`reload`] | other destinations while the node runs |

mod beside;
mod early_copy;
mod opening;
mod reload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_proto::capture::Capture;
use lockstep_proto::config::{Compaction, Metrics};
use lockstep_proto::error::{Error, Result};
use lockstep_proto::fence::Claimant;
use lockstep_proto::log::LogEnd;
use lockstep_proto::record::StartReason;
use lockstep_proto::retention::Policy;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::session::Session;
use lockstep_proto::store::{Fencing, Store, StoreErrorKind};
use lockstep_proto::version::DataVersion;
use lockstep_proto::witness::Witness;
use lockstep_proto::writer::{Call, Outcome, Writer};

use self::early_copy::EarlyCopy;
use self::reload::Reloading;
use crate::PROGRAM;
use crate::clock::now;
use crate::compactor::Compactor;
use crate::companions::Companions;
use crate::places::Places;
use crate::stall::Watchdog;
use crate::status::{SharedStatus, State};
use crate::wire::{Level, Output};

/// Where the copy of a database that is ahead is kept meanwhile.
const COPY_FILE: &str = "backup.copy.tmp";
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The log that this node's transactions go to.
pub struct Backup {
    directory: PathBuf,
    wallet: PathBuf,
    places: Places,
    stall_timeout: Duration,
    store_id: StoreId,
    /// This directory, to which the log must belong.
    id: String,
    store: Arc<dyn Store>,
    keys: KeyRing,
    /// Claimed with the first call: only then does lightningd run for certain, and not `lightningd --help`.
    writer: Option<Writer>,
    /// The database holds what the log does not: a generation must begin.
    gap: bool,
    copy: Option<EarlyCopy>,
    status: SharedStatus,
    compactor: Compactor,
    /// Until it is started.
    compaction: Option<(Compaction, Policy)>,
    heartbeat_interval: Duration,
    reloading: Reloading,
    companions: Companions,
    metrics: Option<Metrics>,
    output: Arc<Output>,
}

/// A call that is durable.
pub struct Appended {
    data_version: DataVersion,
    took: Duration,
}

impl Backup {
    /// How long a destination may fail to answer.
    pub fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    /// How messages name the destinations.
    pub fn label(&self) -> String {
        self.places.label()
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

    /// A call was answered: what nobody waits for.
    pub fn answered(&mut self, appended: &Appended) {
        self.note(appended);
        self.start_beside();
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

/// Failures of the place, as opposed to those of what is in it.
fn retryable(error: &Error) -> bool {
    matches!(error, Error::Store(error)
        if !matches!(error.kind, StoreErrorKind::Exists | StoreErrorKind::Damaged(_)))
}
