//! What happens to a log that has several places, besides all else: places go away and come back, come and go for good, two
//! nodes write at once; and in the end all are equal.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep_proto::config::LockFile;
use lockstep_proto::error::Error;
use lockstep_proto::log::{LogEnd, LogReader};
use lockstep_proto::replica::{Mode, Standing};
use lockstep_proto::restore::Plan;
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::store::Store;
use lockstep_proto::verify;
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};

use crate::disk::{Lost, SimDisk};
use crate::faults::Process;
use crate::places::{Places, Spot, destination};
use crate::world::{InFlight, Place, Site, World, attempt_of};

/// One of two that write at once.
#[derive(Default)]
struct Racer {
    /// What it acknowledged, with its numbers.
    acknowledged: Vec<(u64, InFlight)>,
    /// What it did not.
    tried: Option<InFlight>,
}

impl Racer {
    /// Appends a few batches behind `version`, the first of that attempt, until it may not go on.
    fn run(
        &mut self,
        writer: &mut Writer,
        version: u32,
        attempts: std::ops::Range<i64>,
        time: u64,
    ) {
        for (version, attempt) in (version + 1..).zip(attempts) {
            let update = format!("UPDATE vars SET intval = {version} WHERE name = 'data_version'");
            let batch = InFlight { version, writes: vec![update, attempt_of(attempt)] };
            let data_version = DataVersion(version);
            let call = Call { data_version, transaction: true, writes: &batch.writes };
            match writer.append(&call, time) {
                Ok(Outcome::Acknowledged { position, .. }) => {
                    self.acknowledged.push((position.seq, batch));
                }
                Ok(Outcome::Gap) => panic!("a gap at {version}"),
                Err(_) => {
                    self.tried = Some(batch);
                    return;
                }
            }
        }
    }
}

impl World {
    fn places(&self) -> Option<&Places> {
        match &self.site {
            Site::One(_) => None,
            Site::Several(places) => Some(places),
        }
    }

    /// The place that a compactor works at, and the others that follow it.
    #[expect(clippy::type_complexity, reason = "each of the others may not answer")]
    pub(crate) fn current(
        &self,
        process: &Process,
    ) -> Result<(Arc<dyn Store>, Vec<Result<Arc<dyn Store>, Error>>), Error> {
        let (Some(places), Some(replicas)) = (self.places(), &self.replicas) else {
            return Ok((self.store(process)?, Vec::new()));
        };
        let reports = replicas.reports().into_iter();
        let current = reports.filter(|report| report.standing == Standing::Current);
        let mut stores = current.map(|report| places.at(report.name.parse().unwrap(), process));
        let first = stores.next().unwrap_or_else(|| places.at(0, process))?;
        Ok((first, stores.collect()))
    }

    /// Each place by itself, as the operator's commands take them.
    pub(crate) fn each(&self, process: &Process) -> Vec<Result<Arc<dyn Store>, Error>> {
        match &self.site {
            Site::One(place) => vec![Ok(place.store("sim", process))],
            Site::Several(places) => {
                places.all().into_iter().map(|index| places.at(index, process)).collect()
            }
        }
    }

    /// Those of [`each`](Self::each), by their place in the list, whose log does not end where the newest does.
    pub(crate) fn behind(&self) -> Vec<usize> {
        let Some(places) = self.places() else { return Vec::new() };
        let newest = self.all_there_is().unwrap_or_else(|error| {
            self.expect_fault(&error);
            panic!("{error}");
        });
        let end = |store: &dyn Store| LogEnd::read(store, &self.keys).map(|end| end.position).ok();
        let wanted = end(&*newest);
        let there = |index: &usize| end(&*places.spot(*index).place.store("", &Process::checker()));
        let numbered = places.all().into_iter().enumerate();
        numbered.filter(|(_, index)| there(index) != wanted).map(|(number, _)| number).collect()
    }

    /// A place that is being brought up counts once it has everything (docs/format.md, W20). Until then it may have
    /// segments before the snapshot that they go on from, where the place that it is brought up from was pruned
    /// meanwhile: no order has none of such moments. That this is all that is wrong is shown by a copy of it.
    pub(crate) fn expect_whole_once_brought_up(&self, number: usize) {
        let Some(places) = self.places() else { panic!("it has one place") };
        let copy = places.spot(places.all()[number]).place.copy();
        let copy = copy.store("copy", &Process::checker());
        let brought_up = self.all_there_is().and_then(|newest| places.copy(&*newest, &*copy));
        brought_up.unwrap_or_else(|error| {
            self.expect_fault(&error);
            panic!("{error}");
        });
        verify::run(&*copy, &self.keys, &mut |_| {}).unwrap();
    }

    /// A place goes away, or the machine that it is on loses its power.
    pub(crate) fn go_away(&mut self) {
        let Some(places) = self.places().cloned() else { return };
        let (all, spare) = (places.all(), places.lock.policy().unwrap().spare());
        let away = all.iter().filter(|&&index| places.spot(index).is_away()).count();
        let spot = places.spot(all[self.rng.usize(..all.len())]);
        self.tally.outages += 1;
        if away <= spare && self.rng.u8(..3) > 0 {
            spot.go_away();
        } else {
            spot.cut_power(Lost::Some(self.rng.fork()));
        }
    }

    pub(crate) fn all_come_back(&mut self) {
        if let Some(places) = self.places() {
            places.all().into_iter().for_each(|index| places.spot(index).come_back());
        }
    }

    /// The threads of nodes that are gone come to their end.
    pub(crate) fn forget_fenced(&mut self) {
        for (process, writer) in self.fenced.drain(..) {
            process.kill();
            drop(writer);
        }
    }

    /// A second node opens the log and writes, while the first one does.
    pub(crate) fn race(&mut self) {
        self.writer();
        let Some(places) = self.places().cloned() else { return };
        self.tally.races += 1;
        let process = self.other_process();
        let second = Arc::new(Mutex::new(None));
        let (done, turns, of_second) = (second.clone(), places.turns.clone(), process.clone());
        let (keys, claimant, time) = (self.keys.clone(), self.claimant("node"), self.time);
        let attempt = self.take_attempts(16);
        turns.start(Box::new(move || {
            let mut racer = Racer::default();
            let opened =
                places.open(&of_second).and_then(|store| Writer::open(store, keys, claimant, time));
            if let Ok(mut writer) = opened {
                let version = writer.session().newest().data_version.unwrap();
                racer.run(&mut writer, version.0, attempt + 8..attempt + 11, time);
            }
            *done.lock().unwrap() = Some(racer);
        }));
        let mut first = Racer::default();
        if let Some(mut writer) = self.writer.take() {
            first.run(&mut writer, self.version, attempt..attempt + 6, self.time);
            self.fenced.push((self.process.clone(), writer));
        }
        let second = loop {
            if let Some(racer) = second.lock().unwrap().take() {
                break racer;
            }
            turns.sleep(Duration::from_secs(1));
        };
        process.kill();
        self.tally.faults += process.struck();
        self.replicas = None;
        self.next_process();
        self.settle_race(first, second);
    }

    /// What both acknowledged is in the log, the first one's before the second one's.
    fn settle_race(&mut self, first: Racer, second: Racer) {
        let of_first = first.acknowledged.last().map_or(0, |(seq, _)| *seq);
        let of_second = second.acknowledged.first().map_or(u64::MAX, |(seq, _)| *seq);
        assert!(of_first < of_second, "two writers: seq {of_first} and {of_second}");
        let Racer { acknowledged: mut all, tried } = first;
        all.extend(second.acknowledged);
        self.tally.acknowledged += all.len() as u64;
        let earlier = self.replaced.take().into_iter().chain(self.in_flight.take());
        let tried: Vec<InFlight> = earlier.chain(tried).chain(second.tried).collect();
        let there = self.all_there_is().unwrap_or_else(|error| {
            self.expect_fault(&error);
            panic!("{error}");
        });
        let texts = self.texts_behind(&*there, self.version);
        for (_, batch) in &all {
            assert!(texts.contains(batch.mark()), "{:?} is not in {texts:?}", batch.writes);
        }
        let mut batches: Vec<InFlight> = all.into_iter().map(|(_, batch)| batch).collect();
        let acknowledged = batches.len();
        batches.extend(tried);
        let number = |text: &String| {
            batches.iter().position(|batch| batch.mark() == text).expect("nobody's batch")
        };
        let mut order: Vec<usize> = texts.iter().map(number).collect();
        // The newest, where nobody was told of it, is in flight.
        order.pop_if(|last| *last >= acknowledged);
        let mut batches: Vec<Option<InFlight>> = batches.into_iter().map(Some).collect();
        for number in order {
            self.in_flight = batches[number].take();
            self.commit_in_flight();
        }
        let next = self.version + 1;
        for batch in batches.into_iter().flatten().filter(|batch| batch.version == next) {
            self.may_be_in_flight(batch);
        }
    }

    /// What marks the batches of a log behind a version.
    fn texts_behind(&self, store: &dyn Store, version: u32) -> Vec<String> {
        let plan = Plan::newest(store, &self.keys).unwrap();
        let held = plan.after().map_or(0, |after| after.seq);
        let mut texts = Vec::new();
        let mut committed = Committed::going_on(held, |batch| {
            if batch.transaction && batch.at.seq > held && batch.data_version.0 > version {
                texts.extend(batch.statements.last().and_then(|last| last.text()));
            }
            Ok(())
        });
        let after = plan.after().map(Into::into);
        let reader = LogReader::new(store, &self.keys);
        reader.read_from(after, &plan.segments, &mut committed).unwrap();
        committed.finish().unwrap();
        texts
    }

    /// A place stops to count, or another one comes, between two records.
    pub(crate) fn change_places(&mut self) {
        self.writer();
        let Some(places) = self.places().cloned() else { return };
        let counting = places.counting();
        if let Some(wanted) = places.wanted.clone() {
            let all_current = wanted.destinations.iter().all(|of| {
                self.replicas
                    .as_ref()
                    .is_some_and(|replicas| replicas.is_current(&of.url.to_string()))
            });
            if all_current {
                self.move_to(&wanted, |places| places.wanted = None);
            }
        } else if counting.len() > 2 && self.rng.bool() {
            let goes = counting[self.rng.usize(..counting.len())].to_string();
            let mut lock = places.lock.clone();
            lock.destinations.retain(|of| of.name != goes);
            lock.quorum = lock.quorum.map(|_| (counting.len() as u32 - 1) / 2 + 1);
            self.move_to(&lock.clone(), |places| places.lock = lock);
        } else if counting.len() < 4 {
            self.join(&places);
        }
    }

    /// A new place, with all that another one has; it counts once it has everything.
    fn join(&mut self, places: &Places) {
        let process = self.other_process();
        let index = places.add(Spot::new(Place::Disk(SimDisk::new(false))));
        let copied = self.current(&process).and_then(|(source, _)| {
            places.copy(&*source, &*places.spot(index).place.store("sim", &process.at(index)))
        });
        self.tally.faults += process.struck();
        if let Err(error) = copied {
            return self.expect_fault(&error);
        }
        let mut wanted = places.lock.clone();
        wanted.destinations.push(destination(index, Mode::Sync));
        wanted.quorum = wanted.quorum.map(|_| wanted.destinations.len() as u32 / 2 + 1);
        let mut in_force = wanted.clone();
        in_force.quorum = places.lock.quorum;
        if let Some(joins) = in_force.destinations.last_mut() {
            joins.mode = Mode::Async;
        }
        self.move_to(&in_force, |places| {
            (places.lock, places.wanted) = (wanted.clone(), Some(wanted));
        });
    }

    /// The log goes on at the places of a lock file, if enough of them have everything.
    fn move_to(&mut self, lock: &LockFile, moved: impl FnOnce(&mut Places)) {
        let (Some(replicas), Some(writer)) = (&self.replicas, &mut self.writer) else { return };
        let Ok(others) = replicas.with_places(lock, lock.destinations.clone()) else { return };
        let others = Arc::new(others);
        writer.move_to(others.clone());
        self.replicas = Some(others);
        if let Site::Several(places) = &mut self.site {
            moved(places);
        }
    }

    /// Nothing fails any more: each place, alone, is the whole log.
    pub(crate) fn all_become_equal(&mut self) {
        self.forget_fenced();
        let Some(places) = self.places().cloned() else { return };
        let rows = self.rows(1);
        self.commit(rows);
        let Some(replicas) = self.replicas.clone() else { panic!("it writes to one place") };
        for tries in 0.. {
            let reports = replicas.reports();
            let is_equal = |standing, lacks| standing == Standing::Current && lacks == 0;
            if reports.iter().all(|report| is_equal(report.standing, report.lacks)) {
                break;
            }
            assert!(tries < 300, "{reports:?}");
            places.turns.sleep(Duration::from_secs(1));
        }
        let time = self.time;
        if let Some(mut writer) = self.writer.take() {
            writer.close(time);
        }
        replicas.settle(Duration::from_secs(60));
        drop(replicas);
        self.finish();
        let mut ends = Vec::new();
        for index in places.all() {
            let store = places.spot(index).place.after_power_cut(Lost::All);
            ends.push(LogEnd::read(&*store, &self.keys).unwrap().position);
            self.check_whole(&*store);
        }
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
    }

    /// All threads come to their end.
    pub fn finish(&mut self) {
        self.forget_fenced();
        self.die();
        if let Some(places) = self.places() {
            places.turns.finish();
        }
    }
}
