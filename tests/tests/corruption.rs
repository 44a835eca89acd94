//! Stored bytes that are not what was written: refused with the place named, or an
//! incomplete last record dropped. Never another database, never a panic.
//!
//! The sweeps over every byte call the library that `backup-cli` restores with; a sample
//! goes through `backup-cli` itself.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use fastrand::Rng;
use lockstep_proto::error::{Class, Error};
use lockstep_proto::log::{LogEnd, LogReader, generations, segments};
use lockstep_proto::marker::Marker;
use lockstep_proto::record::{Head, Open, Record};
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::restore::{self, Plan};
use lockstep_proto::seal::{
    FRAME_OVERHEAD, HEADER_LEN, Header, KeyRing, ObjectKind, PREFIX_LEN, Sealer, frame_size,
};
use lockstep_proto::slots::{self, NODE_SECRET_INFO, Unlock};
use lockstep_proto::store::{Append, Entry, Fencing, NewObject, Store, StoreError, StoreErrorKind};
use lockstep_proto::{layout, snapshot, verify};
use lockstep_tests::backed::{Backed, ci_or_long, files_under, reason_not_to_go_on};
use lockstep_tests::binaries::Output;
use lockstep_tests::sim::{Crash, CrashPoint, Database, Node, NodeConfig, Outcome};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::{Step, oracle};
use sha2::{Digest, Sha256};

const TAG: usize = 16;
const END_MARK: usize = FRAME_OVERHEAD - PREFIX_LEN - TAG;
const SECTOR: usize = 512;
/// Preallocated zeros that the sweeps keep behind the last record.
const ZEROS_KEPT: usize = 40;

/// A store in memory, to be read only.
#[derive(Clone, Default)]
struct Memory(BTreeMap<String, Arc<Vec<u8>>>);

impl Memory {
    /// Everything in a folder; of preallocated zeros only a few.
    fn load(folder: &Path) -> Self {
        let mut objects = BTreeMap::new();
        for file in files_under(folder) {
            let mut bytes = fs::read(folder.join(&file)).unwrap();
            let written = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(written + ZEROS_KEPT);
            objects.insert(file.to_str().unwrap().to_owned(), Arc::new(bytes));
        }
        Self(objects)
    }

    fn with(&self, name: &str, bytes: Vec<u8>) -> Self {
        let mut changed = self.clone();
        changed.0.insert(name.to_owned(), Arc::new(bytes));
        changed
    }

    fn without(&self, name: &str) -> Self {
        let mut changed = self.clone();
        changed.0.remove(name);
        changed
    }

    /// Writes it out, for a program to read.
    fn save(&self, folder: &Path) {
        for (name, bytes) in &self.0 {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &**bytes).unwrap();
        }
    }

    fn segments(&self) -> Vec<String> {
        self.0.keys().filter(|name| name.ends_with(".seg")).cloned().collect()
    }

    fn error(&self, object: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { store: "memory".into(), action: "use", object: object.into(), kind }
    }
}

impl Store for Memory {
    fn fencing(&self) -> Result<Fencing, StoreError> {
        Ok(Fencing::Real)
    }

    fn label(&self) -> &str {
        "memory"
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn create_append(&self, name: &str, _: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn replace(&self, name: &str, _: &[u8]) -> Result<(), StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn resume_append(
        &self,
        name: &str,
        _: &[u8],
        _: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let found = self.0.get(name).ok_or_else(|| self.error(name, StoreErrorKind::NotFound))?;
        Ok(found.to_vec())
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn Read + Send>, StoreError> {
        Ok(Box::new(io::Cursor::new(self.read(name)?)))
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.0.contains_key(name))
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        for (name, bytes) in &self.0 {
            let Some(rest) = name.strip_prefix(&below) else { continue };
            let (name, is_folder) = match rest.split_once('/') {
                Some((name, _)) => (name.to_owned(), true),
                None => (rest.to_owned(), false),
            };
            let size = if is_folder { 0 } else { bytes.len() as u64 };
            entries.insert(name.clone(), Entry { name, size, folder: is_folder });
        }
        Ok(entries.into_values().collect())
    }

    fn sync(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        Err(self.error(name, io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()))
    }
}

/// What a restore would execute, in short: equal contents give equal databases.
type Content = (u32, u64, Vec<u64>);

fn hashed(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Number and hash of each page of a snapshot.
#[derive(Default)]
struct Pages(Vec<(u32, u64)>);

impl snapshot::PageVisitor for Pages {
    fn pages(&mut self, meta: &snapshot::Meta, first: u32, pages: &[u8]) -> Result<(), Error> {
        let each = pages.chunks(meta.page_size as usize).map(hashed);
        self.0.extend((first..).zip(each));
        Ok(())
    }
}

/// Reads and proves all that a restore reads, as a restore does.
fn content(store: &dyn Store, keys: &KeyRing) -> Result<Content, Error> {
    Marker::read(store)?.require(keys.store())?;
    let plan = Plan::newest(store, keys)?;
    let mut pages = Pages::default();
    for link in &plan.lineage.links {
        let name = link.summary.name.to_string();
        snapshot::read(store, keys, &name, link.chain, &mut pages)?;
    }
    let mut batches = Vec::new();
    let mut committed = Committed::new(|batch| {
        let statements: Vec<_> = batch.statements.iter().map(|sql| sql.text()).collect();
        batches.push(hashed((batch.data_version.0, batch.transaction, batch.session, statements)));
        Ok(())
    });
    LogReader::new(store, keys).read(&plan.segments, &mut committed)?;
    committed.finish()?;
    Ok((plan.generation, hashed(pages.0), batches))
}

/// A small log that the real plugin wrote, with everything that a log can have in it.
struct Sample {
    backed: Backed,
    /// The node that wrote it last.
    config: NodeConfig,
    keys: KeyRing,
    store: Memory,
    full: Content,
    /// The state after each number of whole records of the last segment.
    prefixes: Vec<Content>,
    last: String,
}

/// Every database that the node had, or would have had with a batch that was acknowledged.
struct History {
    states: Vec<PathBuf>,
    folder: PathBuf,
}

impl History {
    fn note(&mut self, node: &Node) {
        let path = self.folder.join(format!("state-{}", self.states.len()));
        node.oracle(&path).unwrap();
        self.states.push(path);
    }

    /// A write that is committed.
    fn write(&mut self, node: &mut Node, sql: &str) {
        node.write(&Step::transaction([sql])).unwrap().expect_committed();
        self.note(node);
    }

    /// A batch that is acknowledged and then lost.
    fn lose(&mut self, node: &mut Node, sql: &str) {
        let step = Step::transaction([sql]);
        let path = self.folder.join(format!("state-{}", self.states.len()));
        node.oracle(&path).unwrap();
        let with = Database::open(&path, false).unwrap();
        with.apply(&step).unwrap();
        self.states.push(path);
        node.crash(&step, &Crash::both(CrashPoint::AfterAck)).unwrap();
    }

    fn holds(&self, database: &Path) -> bool {
        self.states.iter().any(|state| oracle::difference(state, database).unwrap().is_none())
    }
}

/// A row of a few bytes, or from 100 on of more than a sector that does not compress.
fn insert(row: u32) -> String {
    if row < 100 {
        return format!("INSERT INTO t (a, b) VALUES ({row}, 'it''s a row; \u{1f980}')");
    }
    let mut rng = Rng::with_seed(row.into());
    let blob: String = (0..800).map(|_| format!("{:02x}", rng.u8(..))).collect();
    format!("INSERT INTO t (a, b) VALUES ({row}, x'{blob}')")
}

impl Sample {
    /// One generation: closed and killed sessions, a rewind, a `PRAGMA` pair, and a record that a
    /// fenced writer left. With `snapshot`, a second generation on top of it.
    fn make(with_snapshot: bool) -> Self {
        let backed = Backed::fresh();
        let folder = backed.dir().make_dir("states");
        let mut history = History { states: Vec::new(), folder };
        let mut node = backed.launch();
        node.write(&Step::small_schema()).unwrap().expect_committed();
        history.note(&node);
        for row in 0..4 {
            history.write(&mut node, &insert(row));
        }
        node.write(&Step::foreign_keys(false)).unwrap().expect_committed();
        history.write(&mut node, "ALTER TABLE t ADD COLUMN c DEFAULT 7");
        node.write(&Step::foreign_keys(true)).unwrap().expect_committed();
        node.stop().unwrap();

        node.start().unwrap();
        history.write(&mut node, "DELETE FROM t WHERE a = 2");
        history.lose(&mut node, "INSERT INTO t (a, b) VALUES (70, 'lost')");
        node.start().unwrap();
        history.write(&mut node, "INSERT INTO t (a, b) VALUES (71, 'in its place')");
        history.write(&mut node, "UPDATE t SET b = 'x' WHERE a = 1");

        // A copy of the node takes over: what the first one writes now is refused, but stored.
        let copy = backed.dir().make_dir("copy/regtest");
        for name in ["backup.lock", "backup.key", "hsm_secret"] {
            fs::copy(backed.network_file(name), copy.join(name)).unwrap();
        }
        node.oracle(&copy.join("lightningd.sqlite3")).unwrap();
        let config = NodeConfig::new(lockstep_tests::binaries::plugin(), &copy);
        let mut zombie = std::mem::replace(&mut node, Node::launch(config.clone()).unwrap());
        history.write(&mut node, "INSERT INTO t (a, b) VALUES (80, 'in the copy')");
        let fenced = zombie.write(&Step::transaction(["DELETE FROM t"])).unwrap();
        assert!(matches!(fenced, Outcome::Refused { .. }), "{fenced:?}");
        node.kill().unwrap();
        node.start().unwrap();
        history.write(&mut node, "INSERT INTO t (a, b) VALUES (81, 'after the zombie')");
        if with_snapshot {
            node.stop().unwrap();
            let alone = "INSERT INTO t (a, b) VALUES (82, 'without the plugin')";
            node.commit_unhooked(&Step::transaction([alone])).unwrap();
            history.note(&node);
            node.start().unwrap();
            history.write(&mut node, "INSERT INTO t (a, b) VALUES (83, 'behind a snapshot')");
            history.write(&mut node, "UPDATE t SET b = b || 'y'");
            history.lose(&mut node, "DELETE FROM t WHERE a > 70");
            node.start().unwrap();
            history.write(&mut node, "DELETE FROM t WHERE a = 71");
        }
        history.write(&mut node, "INSERT INTO t (a, b) VALUES (90, 'the last')");
        for row in 100..102 {
            history.write(&mut node, &insert(row));
        }
        node.kill().unwrap();
        backed.check_same_as(&node.database_path());

        let keys = KeyRing::decode(&fs::read(backed.network_file("backup.key")).unwrap()).unwrap();
        let store = Memory::load(&backed.store());
        let full = content(&store, &keys).unwrap();
        let last = store.segments().pop().unwrap();
        let mut sample = Self { backed, config, keys, store, full, prefixes: Vec::new(), last };
        sample.prefixes = sample.states_of_the_last_segment(&history);
        assert_eq!(sample.prefixes.last(), Some(&sample.full));
        sample
    }

    /// Cuts the last segment behind each record, proves with the simulator's own databases that
    /// what is restored then is a state that the node had, and gives these states.
    fn states_of_the_last_segment(&self, history: &History) -> Vec<Content> {
        let bytes = &self.store.0[&self.last];
        let mut ends = frames(bytes).into_iter().map(|(_, end)| end).collect::<Vec<_>>();
        ends.insert(0, HEADER_LEN);
        let states = ends.into_iter().map(|end| {
            let cut = self.store.with(&self.last, bytes[..end].to_vec());
            let dest = self.backed.new_dest();
            let plan = Plan::newest(&cut, &self.keys).unwrap();
            restore::run(&cut, &self.keys, &plan, &dest, &mut |_| {}).unwrap();
            assert!(history.holds(&dest), "cut at {end}: not a state that the node had");
            fs::remove_file(dest).unwrap();
            content(&cut, &self.keys).unwrap()
        });
        states.collect()
    }

    /// `backup-cli restore` of a changed store, by `backup.key`.
    fn restore(&self, changed: &Memory) -> (Output, PathBuf) {
        let folder = self.backed.new_dest().with_extension("store");
        changed.save(&folder);
        let dest = self.backed.new_dest();
        let url = format!("file://{}", folder.display());
        let output = self.backed.restore_of(&url, &dest).run();
        fs::remove_dir_all(folder).unwrap();
        assert_ne!(output.code, Some(101), "{output}");
        assert!(!output.stderr.contains("panicked"), "{output}");
        assert_eq!(output.code == Some(0), dest.exists(), "{output}");
        (output, dest)
    }

    /// Runs `backup-cli` on a change and compares its verdict with the library's.
    #[track_caller]
    fn compare_with_the_program(&self, changed: &Memory, what: &str) {
        let (output, dest) = self.restore(changed);
        match content(changed, &self.keys) {
            Ok(_) => {
                assert_eq!(output.code, Some(0), "{what}: {output}");
                let plan = Plan::newest(changed, &self.keys).unwrap();
                let expected = self.backed.new_dest();
                restore::run(changed, &self.keys, &plan, &expected, &mut |_| {}).unwrap();
                oracle::assert_same(&expected, &dest);
                fs::remove_file(expected).unwrap();
                fs::remove_file(dest).unwrap();
            }
            Err(error) => {
                let code = exit_code(&error);
                assert_eq!(output.code, Some(code), "{what}: {error}: {output}");
                assert!(output.stderr.contains("hint: "), "{what}: {output}");
            }
        }
    }
}

/// Exit codes of DESIGN §6.
fn exit_code(error: &Error) -> i32 {
    match error.class() {
        Class::Failed => 1,
        Class::Nothing => 10,
        Class::Fenced => 11,
        Class::WrongKey => 12,
        Class::Damaged => 13,
        Class::Version => 14,
    }
}

/// Start and end of each whole frame.
fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut frames = Vec::new();
    let mut at = HEADER_LEN;
    while let Some(prefix) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let Some(end) = frame_size(prefix).unwrap().map(|size| at + size) else { break };
        if end > bytes.len() {
            break;
        }
        frames.push((at, end));
        at = end;
    }
    frames
}

/// What came of one change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Verdict {
    Full,
    Prefix,
    Refused(i32),
}

/// Tries every change, on all cores, and counts the verdicts. A change is made by its number.
fn sweep(
    count: usize,
    judge: impl Fn(usize) -> Result<Verdict, String> + Sync,
) -> BTreeMap<Verdict, usize> {
    let next = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let tallies = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores)
            .map(|_| {
                scope.spawn(|| {
                    let mut tally: HashMap<Verdict, usize> = HashMap::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return Ok(tally);
                        }
                        let verdict = catch_unwind(AssertUnwindSafe(|| judge(number)))
                            .unwrap_or_else(|_| Err(format!("change {number} panicked")))?;
                        *tally.entry(verdict).or_default() += 1;
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    let mut all = BTreeMap::new();
    for tally in tallies {
        for (verdict, count) in tally.unwrap_or_else(|wrong: String| panic!("{wrong}")) {
            *all.entry(verdict).or_default() += count;
        }
    }
    all
}

/// A refusal must name the object that was changed, or what depends on it.
fn refused(error: &Error, object: &str) -> Result<Verdict, String> {
    let text = error.to_string();
    let named = text.contains(object) || text.contains("seq ") || object == layout::MARKER;
    match (named, exit_code(error)) {
        (true, code @ (10 | 12 | 13 | 14)) => Ok(Verdict::Refused(code)),
        (_, code) => Err(format!("refused with code {code}: {text}")),
    }
}

/// What `restore` reads: the marker and the newest generation, no claims and no key slots.
fn read_by_restore(sample: &Sample) -> Vec<(String, usize)> {
    let newest = format!("/{:08x}/", sample.full.0);
    let mut objects = log_objects(sample);
    objects.retain(|(name, _)| name.contains(&newest));
    objects.push((layout::MARKER.to_owned(), sample.store.0[layout::MARKER].len()));
    objects
}

/// Segments and snapshots of all generations.
fn log_objects(sample: &Sample) -> Vec<(String, usize)> {
    let names =
        sample.store.0.iter().filter(|(name, _)| {
            name.starts_with(layout::LOG) || name.starts_with(layout::SNAPSHOTS)
        });
    names.map(|(name, bytes)| (name.clone(), bytes.len())).collect()
}

/// The object and the offset of a byte of all objects.
fn locate(objects: &[(String, usize)], mut at: usize) -> (&str, usize) {
    for (name, len) in objects {
        if at < *len {
            return (name, at);
        }
        at -= len;
    }
    unreachable!("beyond the last object")
}

#[test]
fn no_changed_byte_gives_another_database() {
    for with_snapshot in [false, true] {
        let sample = Sample::make(with_snapshot);
        let objects = read_by_restore(&sample);
        let bytes: usize = objects.iter().map(|(_, len)| len).sum();
        let masks: &[u8] = ci_or_long(&[0x01], &[0x01, 0x02, 0x10, 0x55, 0x80, 0xff]);
        let began = Instant::now();
        let tally = sweep(bytes * masks.len(), |number| {
            let (name, at) = locate(&objects, number / masks.len());
            let mask = masks[number % masks.len()];
            let mut changed = sample.store.0[name].to_vec();
            changed[at] ^= mask;
            match content(&sample.store.with(name, changed), &sample.keys) {
                Ok(content) if content == sample.full => Ok(Verdict::Full),
                Ok(_) => Err(format!("{name} at byte {at} ^ {mask:#x}: another database")),
                Err(error) => refused(&error, name).map_err(|w| format!("{name} at {at}: {w}")),
            }
        });
        println!(
            "{bytes} bytes of {} objects, {} changes each, {:.0} s: {tally:?}",
            objects.len(),
            masks.len(),
            began.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn what_restore_does_not_read_does_not_hinder_it() {
    let sample = Sample::make(true);
    let read = read_by_restore(&sample);
    let others = sample.store.0.keys().filter(|name| read.iter().all(|(read, _)| read != *name));
    let mut tried = 0;
    for name in others {
        let bytes = &sample.store.0[name];
        for at in (0..bytes.len()).step_by(97) {
            tried += 1;
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x20;
            let found = content(&sample.store.with(name, changed), &sample.keys);
            let found = found.unwrap_or_else(|error| panic!("{name} at byte {at}: {error}"));
            assert!(found == sample.full, "{name} at byte {at}: another database");
        }
    }
    assert!(tried > 30);
}

#[test]
fn verify_finds_every_changed_byte_that_matters_also_in_older_generations() {
    let sample = Sample::make(true);
    let intact = verify::run(&sample.store, &sample.keys, &mut |_| {}).unwrap();
    assert_eq!(intact.len(), 2);
    let objects = log_objects(&sample);
    let bytes: usize = objects.iter().map(|(_, len)| len).sum();
    let stride = ci_or_long(3, 1);
    let tally = sweep(bytes / stride, |number| {
        let (name, at) = locate(&objects, number * stride);
        let mut changed = sample.store.0[name].to_vec();
        changed[at] ^= 0x40;
        match verify::run(&sample.store.with(name, changed), &sample.keys, &mut |_| {}) {
            Ok(reports) if reports == intact => Ok(Verdict::Full),
            Ok(reports) => Err(format!("{name} at byte {at}: {reports:?}")),
            Err(error) => refused(&error, name).map_err(|wrong| format!("{name} at {at}: {wrong}")),
        }
    });
    println!("verify, every {stride} bytes: {tally:?}");
    // What makes no difference: zeros behind the end, and a record that is void.
    assert!(tally[&Verdict::Refused(13)] > 9 * tally[&Verdict::Full], "{tally:?}");
}

#[test]
fn a_changed_byte_of_a_key_slot_opens_nothing_else() {
    let sample = Sample::make(false);
    let name = "keys/node.age";
    let secret = lockstep_node_secret(&[1; 32]);
    let bytes = &sample.store.0[name];
    let len = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let tally = sweep(2 * len, |number| {
        let mut changed = bytes[..len].to_vec();
        changed[number / 2] ^= [0x01, 0x80][number % 2];
        let unlock = Unlock::Node(secret.into());
        match slots::open(&sample.store.with(name, changed), &unlock) {
            Ok((keys, _)) if *keys.encode().unwrap() == *sample.keys.encode().unwrap() => {
                Ok(Verdict::Full)
            }
            Ok(_) => Err(format!("byte {}: another key ring", number / 2)),
            Err(error) => refused(&error, "slot").map_err(|wrong| format!("{number}: {wrong}")),
        }
    });
    println!("{len} bytes of {name}: {tally:?}");
}

/// `makesecret` of DESIGN fact 11, for 32 raw bytes.
fn lockstep_node_secret(secret: &[u8]) -> [u8; 32] {
    let derived = hkdf(secret, b"derived secrets");
    hkdf(&derived, NODE_SECRET_INFO.as_bytes())
}

/// HKDF-SHA256 without salt, first block.
fn hkdf(ikm: &[u8], info: &[u8]) -> [u8; 32] {
    let prk = hmac(&[0; 32], &[ikm]);
    hmac(&prk, &[info, &[1]])
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        key.iter().zip(&mut block).for_each(|(key, byte)| *byte ^= key);
        block
    };
    let mut inner = Sha256::new().chain_update(pad(0x36));
    for part in parts {
        inner = inner.chain_update(part);
    }
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner.finalize()).finalize().into()
}

#[test]
fn a_truncated_last_segment_gives_the_state_of_its_whole_records_and_any_other_is_refused() {
    for with_snapshot in [false, true] {
        let sample = Sample::make(with_snapshot);
        let objects = read_by_restore(&sample);
        let lengths: usize = objects.iter().map(|(_, len)| len).sum();
        let ends: Vec<usize> = frames(&sample.store.0[&sample.last])
            .iter()
            // An end mark that is cut or not there is no loss.
            .map(|(_, end)| end - END_MARK)
            .collect();
        let tally = sweep(lengths, |number| {
            let (name, len) = locate(&objects, number);
            let cut = sample.store.0[name][..len].to_vec();
            let found = content(&sample.store.with(name, cut), &sample.keys);
            let whole = ends.iter().filter(|end| **end <= len).count();
            match found {
                Ok(content) if content == sample.full => Ok(Verdict::Full),
                Ok(content) if name == sample.last && content == sample.prefixes[whole] => {
                    Ok(Verdict::Prefix)
                }
                Ok(_) => Err(format!("{name} cut to {len} bytes: another database")),
                Err(error) if name == sample.last => {
                    Err(format!("{name} cut to {len} bytes, as a crash may: {error}"))
                }
                Err(error) => refused(&error, name).map_err(|w| format!("{name} at {len}: {w}")),
            }
        });
        println!("{lengths} truncations: {tally:?}");
        assert!(tally[&Verdict::Prefix] > 500, "{tally:?}");
    }
}

#[test]
fn segments_that_are_removed_swapped_or_renamed_are_missed() {
    for with_snapshot in [false, true] {
        let sample = Sample::make(with_snapshot);
        let newest = *generations(&sample.store).unwrap().last().unwrap();
        let segments: Vec<String> = segments(&sample.store, newest)
            .unwrap()
            .iter()
            .map(|entry| entry.name.to_string())
            .collect();
        assert!(segments.len() >= if with_snapshot { 2 } else { 4 });
        let (last, before) = segments.split_last().unwrap();

        for name in before {
            let changed = sample.store.without(name);
            let error = content(&changed, &sample.keys).unwrap_err();
            assert_eq!(error.class(), Class::Damaged, "without {name}: {error}");
            assert!(error.to_string().contains(".seg'"), "{error}");
            sample.compare_with_the_program(&changed, &format!("without {name}"));
        }
        // Nobody can tell that from a log that was never longer: it is the state before.
        let changed = sample.store.without(last);
        assert_eq!(content(&changed, &sample.keys).unwrap(), sample.prefixes[0]);
        sample.compare_with_the_program(&changed, "without the last segment");

        for (a, first) in segments.iter().enumerate() {
            for second in &segments[a + 1..] {
                let swapped = sample
                    .store
                    .with(first, sample.store.0[second].to_vec())
                    .with(second, sample.store.0[first].to_vec());
                let error = content(&swapped, &sample.keys).unwrap_err();
                assert_eq!(error.class(), Class::Damaged, "{first} and {second}: {error}");
                sample.compare_with_the_program(&swapped, &format!("{first} and {second} swapped"));
                // The same bytes twice: a record cannot be replayed under another name.
                let doubled = sample.store.with(first, sample.store.0[second].to_vec());
                assert!(content(&doubled, &sample.keys).is_err(), "{second} as {first}");
                let doubled = sample.store.with(second, sample.store.0[first].to_vec());
                assert!(content(&doubled, &sample.keys).is_err(), "{first} as {second}");
            }
        }
        if with_snapshot {
            let snapshots: Vec<_> =
                sample.store.0.keys().filter(|name| name.ends_with(".snap")).cloned().collect();
            for name in &snapshots {
                let changed = sample.store.without(name);
                let error = content(&changed, &sample.keys).unwrap_err();
                assert!(error.to_string().contains(name.as_str()), "{error}");
                assert_eq!(exit_code(&error), 13, "a snapshot that is missing: {error}");
                sample.compare_with_the_program(&changed, &format!("without {name}"));
            }
        }
    }
}

#[test]
fn records_that_are_cut_out_swapped_doubled_or_moved_are_refused() {
    let sample = Sample::make(false);
    let segments = sample.store.segments();
    let mut changes = 0;
    for name in &segments {
        let bytes = &sample.store.0[name];
        let frames = frames(bytes);
        let parts = |order: &[usize]| {
            let mut made = bytes[..HEADER_LEN].to_vec();
            order.iter().for_each(|&i| made.extend_from_slice(&bytes[frames[i].0..frames[i].1]));
            made.extend_from_slice(&bytes[frames.last().unwrap().1..]);
            made
        };
        let mut judge = |order: &[usize], what: &str| {
            changes += 1;
            let changed = sample.store.with(name, parts(order));
            // A prefix of the last segment is the state of that prefix, whoever made it.
            let is_prefix = order.iter().enumerate().all(|(place, &frame)| place == frame);
            match content(&changed, &sample.keys) {
                Ok(content) if content == sample.full => {}
                Ok(content) if *name == sample.last && is_prefix => {
                    assert_eq!(content, sample.prefixes[order.len()], "{what} of {name}");
                }
                Ok(_) => panic!("{what} of {name}: another database"),
                Err(error) => {
                    refused(&error, name).unwrap();
                    assert_eq!(error.class(), Class::Damaged, "{what} of {name}: {error}");
                }
            }
            sample.compare_with_the_program(&changed, what);
        };
        let all: Vec<usize> = (0..frames.len()).collect();
        assert_eq!(parts(&all), **bytes);
        for i in 0..frames.len() {
            let mut order = all.clone();
            order.remove(i);
            judge(&order, &format!("frame {i} cut out"));
            let mut order = all.clone();
            order.insert(i, i);
            judge(&order, &format!("frame {i} doubled"));
            if i + 1 < frames.len() {
                let mut order = all.clone();
                order.swap(i, i + 1);
                judge(&order, &format!("frames {i} and {} swapped", i + 1));
            }
        }
    }
    // A record of one segment at the end of another.
    for from in &segments {
        for to in segments.iter().filter(|to| *to != from) {
            let (source, target) = (&sample.store.0[from], &sample.store.0[to]);
            for (start, end) in frames(source) {
                changes += 1;
                let at = frames(target).last().unwrap().1;
                let mut moved = target[..at].to_vec();
                moved.extend_from_slice(&source[start..end]);
                match content(&sample.store.with(to, moved), &sample.keys) {
                    Ok(content) => assert_eq!(content, sample.full, "{from} into {to}"),
                    Err(error) => drop(refused(&error, to).unwrap()),
                }
            }
        }
    }
    println!("{changes} changes of the order of records");
}

#[test]
fn an_older_copy_of_a_segment_is_an_earlier_state_or_refused() {
    let backed = Backed::fresh();
    let mut node = backed.launch();
    node.write(&Step::small_schema()).unwrap().expect_committed();
    let mut copies = Vec::new();
    for session in 0..3 {
        for row in 0..3 {
            let step = Step::transaction([insert(session * 10 + row)]);
            node.write(&step).unwrap().expect_committed();
            let state = backed.dir().path(format!("state-{session}-{row}"));
            let copy = backed.dir().path(format!("copy-{session}-{row}"));
            node.oracle(&state).unwrap();
            copy_dir(&backed.store(), &copy).unwrap();
            copies.push((copy, state));
        }
        node.kill().unwrap();
        node.start().unwrap();
    }
    node.kill().unwrap();
    let newest = files_under(&backed.store().join("log"));
    for (copy, state) in &copies {
        // The whole folder rolled back is that state, whole.
        let dest = backed.new_dest();
        backed.restore_of(&format!("file://{}", copy.display()), &dest).run().expect_success();
        oracle::assert_same(state, &dest);
        // One file of it, in the newest folder.
        for file in files_under(&copy.join("log")) {
            let (old, new) = (copy.join("log").join(&file), backed.store().join("log").join(&file));
            let (old, kept) = (fs::read(old).unwrap(), fs::read(&new).unwrap());
            fs::write(&new, old).unwrap();
            let dest = backed.new_dest();
            let output = backed.restore(&dest).run();
            match output.code {
                Some(0) if fs::read(&new).unwrap() == kept => {}
                Some(0) if Some(&file) == newest.last() => oracle::assert_same(state, &dest),
                Some(0) => backed.check_same_as(&node.database_path()),
                code => assert_eq!(code, Some(13), "{output}"),
            }
            fs::write(&new, kept).unwrap();
        }
    }
    backed.check_same_as(&node.database_path());
}

#[test]
fn zeros_in_place_of_acknowledged_records_are_refused_where_records_follow() {
    // What a disk with a bad block, or a host that wants to, makes of the last segment: records
    // behind it are still there, so it is no interrupted write.
    let sample = Sample::make(true);
    let bytes = &sample.store.0[&sample.last];
    let frames = frames(bytes);
    let last = *frames.last().unwrap();
    let mut tried = 0;
    let sectors = (0..last.0).step_by(SECTOR).map(|start| start..start + SECTOR);
    // One record, whole; and from each to the next sector's end, as where one begins with a sector.
    let records = frames.iter().map(|(start, end)| *start..*end);
    let rests = frames.iter().map(|(start, _)| *start..(start / SECTOR + 2) * SECTOR);
    for part in sectors.chain(records).chain(rests) {
        if part.end > last.0 {
            continue;
        }
        tried += 1;
        let mut changed = bytes.to_vec();
        changed[part.clone()].fill(0);
        let changed = sample.store.with(&sample.last, changed);
        match content(&changed, &sample.keys) {
            Ok(content) => {
                let kept = sample.prefixes.iter().position(|state| *state == content);
                panic!(
                    "zeros at {part:?}: restored without a word, with {kept:?} of {} records",
                    sample.prefixes.len() - 1
                );
            }
            Err(error) => drop(refused(&error, &sample.last).unwrap()),
        }
        sample.compare_with_the_program(&changed, "zeros");
    }
    assert!(tried >= 2, "the segment is too short for this test");
}

#[test]
fn a_write_that_stopped_anywhere_inside_the_last_record_is_dropped() {
    // The last record's sectors reach the disk in any order: any of them may be missing.
    let sample = Sample::make(true);
    let bytes = &sample.store.0[&sample.last];
    let (start, end) = *frames(bytes).last().unwrap();
    let cuts: Vec<usize> = std::iter::once(start)
        .chain((0..end).step_by(SECTOR).filter(|at| (start + 1..end).contains(at)))
        .chain([end])
        .collect();
    let parts: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let before = sample.prefixes.len() - 2;
    for missing in 1_u32..1 << parts.len() {
        let mut changed = bytes.to_vec();
        let mut lost_bytes = 0;
        for (_, part) in parts.iter().enumerate().filter(|(i, _)| missing >> i & 1 == 1) {
            changed[part.clone()].fill(0);
            lost_bytes += part.len();
        }
        if lost_bytes < END_MARK {
            continue; // nothing that could be told from a whole record
        }
        let found = content(&sample.store.with(&sample.last, changed), &sample.keys);
        let found = found.unwrap_or_else(|error| panic!("parts {missing:b} of {parts:?}: {error}"));
        assert!(found == sample.prefixes[before] || found == sample.full, "parts {missing:b}");
    }
}

#[test]
fn backup_cli_judges_a_sample_of_changes_as_the_library_does() {
    let seed = match std::env::var("LOCKSTEP_SEED") {
        Ok(seed) => seed.parse().expect("LOCKSTEP_SEED is a number"),
        Err(_) => fastrand::u64(..1_000_000),
    };
    println!("LOCKSTEP_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let sample = Sample::make(true);
    let objects = read_by_restore(&sample);
    for _ in 0..ci_or_long(80, 1_000) {
        let (name, len) = &objects[rng.usize(..objects.len())];
        if name == layout::MARKER {
            continue; // its own test
        }
        let mut bytes = sample.store.0[name].to_vec();
        let what = match rng.u8(..3) {
            0 => {
                bytes.truncate(rng.usize(..*len));
                format!("{name} cut to {} bytes", bytes.len())
            }
            1 => {
                let at = rng.usize(..*len);
                bytes[at] ^= rng.u8(1..);
                format!("{name} changed at {at}")
            }
            _ => {
                let start = rng.usize(..*len);
                let end = (start + rng.usize(..600)).min(*len);
                bytes[start..end].fill_with(|| rng.u8(..));
                format!("{name} overwritten from {start} to {end}")
            }
        };
        sample.compare_with_the_program(&sample.store.with(name, bytes), &what);
    }
}

#[test]
fn the_marker_is_read_with_care() {
    let sample = Sample::make(false);
    let marker = String::from_utf8(sample.store.0[layout::MARKER].to_vec()).unwrap();
    let marker = marker.trim_end_matches('\0');
    let version = marker.replace("\"version\":1", "\"version\":7");
    assert_ne!(version, marker);
    for (bytes, code, words) in [
        (version, 14, "format version 7, this program knows 1"),
        (marker.replace("lockstep", "something"), 13, "not a marker of lockstep"),
        (marker[..marker.len() / 2].to_owned(), 13, "not a marker of lockstep"),
        (String::new(), 13, "not a marker of lockstep"),
        (
            marker.replace(&sample.keys.store().to_string(), &"0".repeat(32)),
            12,
            "is the key of store",
        ),
    ] {
        let (output, _) = sample.restore(&sample.store.with(layout::MARKER, bytes.into_bytes()));
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.contains(words), "{words}: {output}");
        assert!(output.stderr.contains("hint: "), "{output}");
    }
    let (output, _) = sample.restore(&sample.store.without(layout::MARKER));
    assert_eq!(output.code, Some(10), "{output}");
    assert!(output.stderr.contains("no backup in"), "{output}");
}

#[test]
fn keys_that_do_not_belong_are_refused_as_such() {
    let ours = Backed::fresh();
    let mut node = ours.launch();
    let first = [
        "CREATE TABLE vars (name TEXT PRIMARY KEY, intval INTEGER)",
        "INSERT INTO vars VALUES ('data_version', 0)",
    ];
    node.write(&Step::transaction(first)).unwrap().expect_committed();
    let other = Backed::without_backup();
    fs::remove_file(other.network_file("hsm_secret")).unwrap();
    other.dir().write_hsm_secret(2);
    other.init().run().expect_success();
    let mut other_node = other.launch();
    other_node.write(&Step::transaction(first)).unwrap().expect_committed();

    let restore = |option: &str, file: PathBuf| {
        let dest = ours.new_dest();
        let cli = lockstep_tests::binaries::Cli::new(["restore", "--no-claim", &ours.url()]);
        let output = cli.arg(&dest).arg(option).arg(file).run();
        assert_eq!(output.code == Some(0), dest.exists());
        output
    };
    restore("--hsm-secret", ours.network_file("hsm_secret")).expect_success();

    let output = restore("--key-file", other.network_file("backup.key")).expect_code(12);
    assert!(output.stderr.contains("is the key of store"), "{output}");
    assert!(output.stderr.contains("hint: use the backup.key of the node"), "{output}");

    let output = restore("--hsm-secret", other.network_file("hsm_secret")).expect_code(12);
    assert!(output.stderr.contains("no node slot opens"), "{output}");
    assert!(output.stderr.contains("hint: use the hsm_secret, words or key file"), "{output}");

    let passphrase = ours.dir().path("passphrase");
    fs::write(&passphrase, "open sesame\n").unwrap();
    let output = restore("--passphrase-file", passphrase).expect_code(12);
    assert!(output.stderr.contains("its slots: node"), "{output}");

    // The right name on the wrong key: same store id, another data key.
    let forged = fs::read_to_string(other.network_file("backup.key")).unwrap();
    let ids = [&ours, &other].map(|node| {
        KeyRing::decode(&fs::read(node.network_file("backup.key")).unwrap()).unwrap().store()
    });
    let path = ours.dir().path("forged.key");
    fs::write(&path, forged.replace(&ids[1].to_string(), &ids[0].to_string())).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let output = restore("--key-file", path).expect_code(12);
    assert!(output.stderr.contains("which the key ring does not hold"), "{output}");
    assert!(output.stderr.contains("log/"), "{output}");

    let newer = ours.dir().path("newer.key");
    let key = fs::read_to_string(ours.network_file("backup.key")).unwrap();
    fs::write(&newer, key.replace("\"version\":1", "\"version\":2")).unwrap();
    fs::set_permissions(&newer, fs::Permissions::from_mode(0o400)).unwrap();
    let output = restore("--key-file", newer).expect_code(14);
    assert!(
        output.stderr.contains("key ring has format version 2, this program knows 1"),
        "{output}"
    );
}

#[test]
fn another_stores_segment_is_refused_by_both_stores_names() {
    let sample = Sample::make(false);
    let other = Sample::make(false);
    // Under a name of ours, so that nothing but its content tells.
    let name = &sample.last;
    let theirs = other.store.0[&other.last].to_vec();
    let changed = sample.store.with(name, theirs);
    let (output, _) = sample.restore(&changed);
    assert_eq!(output.code, Some(13), "{output}");
    let (ours, theirs) = (sample.keys.store().to_string(), other.keys.store().to_string());
    assert!(
        output.stderr.contains(&format!("belongs to store {theirs}, not to {ours}")),
        "{output}"
    );
    assert!(output.stderr.contains(name.as_str()), "{output}");
    assert!(output.stderr.contains("hint: "), "{output}");
}

/// The next segment of a log, made of these plain frames.
fn next_segment(sample: &Sample, plain: &[Vec<u8>], change: impl Fn(&mut [u8])) -> Memory {
    let end = LogEnd::read(&sample.store, &sample.keys).unwrap();
    let key = sample.keys.current().unwrap();
    let header = Header {
        kind: ObjectKind::Segment,
        key: key.id(),
        store: sample.keys.store(),
        generation: end.position.generation,
        epoch: end.epoch + 1,
        seq: end.position.seq + 1,
        index: 0,
        prev: end.position.chain,
        nonce_prefix: [9; 16],
    };
    let mut bytes = header.encode().to_vec();
    change(&mut bytes);
    let mut sealer = Sealer::new(key, &header);
    for plain in plain {
        sealer.seal(plain, &mut bytes).unwrap();
    }
    let name = layout::SegmentName::of(&header);
    sample.store.with(&name.to_string(), bytes)
}

fn open_record() -> Vec<u8> {
    let open = Open {
        destinations: lockstep_proto::record::Destinations::default(),
        directory: "0".repeat(32),
        host: "elsewhere".into(),
        time: 1_795_196_000_000,
        writer: "a newer program/9".into(),
        session: "0".repeat(32),
        head: Head::default(),
        start: None,
    };
    let mut plain = Vec::new();
    Record::Open(Box::new(open)).encode(&mut plain).unwrap();
    plain
}

#[test]
fn versions_and_kinds_that_this_program_does_not_know_are_refused_with_both_named() {
    let sample = Sample::make(false);
    let intact = next_segment(&sample, &[open_record()], |_| {});
    let (output, _) = sample.restore(&intact);
    assert_eq!(output.code, Some(0), "made as the plugin makes it: {output}");

    let with_check = |header: &mut [u8]| {
        let digest: [u8; 32] = Sha256::digest(&header[..112]).into();
        header[112..128].copy_from_slice(&digest[..16]);
    };
    let version = |header: &mut [u8]| {
        header[8] = 2;
        with_check(header);
    };
    let kind = |header: &mut [u8]| {
        header[10] = 9;
        with_check(header);
    };
    let batch_of_the_future = vec![9, b'?', b'?'];
    let cases = [
        (
            next_segment(&sample, &[open_record()], version),
            "has format version 2, this program knows 1",
        ),
        (next_segment(&sample, &[open_record()], kind), "object kind 9 of format version 1"),
        (
            next_segment(&sample, &[open_record(), batch_of_the_future], |_| {}),
            "record kind 9, this program knows 1 to",
        ),
    ];
    for (changed, words) in cases {
        let (output, _) = sample.restore(&changed);
        assert_eq!(output.code, Some(14), "{words}: {output}");
        assert!(output.stderr.contains(words), "{words}: {output}");
        assert!(output.stderr.contains("log/"), "the place is named: {output}");
        assert!(
            output.stderr.contains("hint: a newer program wrote it; upgrade this one"),
            "{output}"
        );
    }
}

#[test]
fn authentic_records_that_make_no_sense_are_refused() {
    let sample = Sample::make(false);
    let control = |kind: u8, json: &str| [&[kind], json.as_bytes()].concat();
    let cases = [
        vec![open_record(), vec![]],
        vec![open_record(), vec![2]],
        vec![open_record(), vec![2, 1, 0, 0, 0, 0, 1, 2, 3]],
        vec![open_record(), control(3, "{}")],
        vec![open_record(), control(3, r#"{"time":1,"seq":1,"data_version":1}"#)],
        vec![open_record(), control(4, "[1]")],
        vec![control(3, r#"{"time":1,"seq":1,"data_version":1}"#)],
        vec![control(1, "{}")],
    ];
    for frames in cases {
        let (output, _) = sample.restore(&next_segment(&sample, &frames, |_| {}));
        assert_eq!(output.code, Some(13), "{frames:?}: {output}");
        assert!(output.stderr.contains("record seq "), "{frames:?}: {output}");
    }
}

#[test]
fn a_plugin_does_not_go_on_over_a_damaged_log() {
    let sample = Sample::make(false);
    let path = sample.backed.store().join(&sample.last);
    let mut bytes = fs::read(&path).unwrap();
    let (start, end) = frames(&bytes)[1];
    bytes[(start + end) / 2] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let before = files_under(&sample.backed.store());
    let reason = reason_not_to_go_on(&mut Node::new(sample.config.clone()));
    assert!(reason.contains("authentication failed"), "{reason}");
    assert!(reason.contains(&sample.last), "{reason}");
    assert_eq!(files_under(&sample.backed.store()), before);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    for verb in ["status", "verify"] {
        let output = sample.backed.cli(verb).expect_code(13);
        assert!(output.stderr.contains(&sample.last), "{output}");
    }
}
