//! Small logs with everything in them that a log can have, and what a restore reads of one.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use fastrand::Rng;
use lockstep_proto::error::Error;
use lockstep_proto::log::LogReader;
use lockstep_proto::marker::Marker;
use lockstep_proto::restore::batches::Committed;
use lockstep_proto::restore::{self, Plan};
use lockstep_proto::seal::{HEADER_LEN, KeyRing, frame_size};
use lockstep_proto::snapshot;
use lockstep_proto::store::Store;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::Output;
use lockstep_tests::sim::{Crash, CrashPoint, Database, Node, NodeConfig, Outcome};
use lockstep_tests::{Step, oracle};

use crate::memory::Memory;
use crate::sweep::exit_code;

/// What a restore would execute, in short: equal contents give equal databases.
pub type Content = (u32, u64, Vec<u64>);

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
pub fn content(store: &dyn Store, keys: &KeyRing) -> Result<Content, Error> {
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
pub struct Sample {
    pub backed: Backed,
    /// The node that wrote it last.
    pub config: NodeConfig,
    pub keys: KeyRing,
    pub store: Memory,
    pub full: Content,
    /// The state after each number of whole records of the last segment.
    pub prefixes: Vec<Content>,
    pub last: String,
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
pub fn insert(row: u32) -> String {
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
    pub fn make(with_snapshot: bool) -> Self {
        let backed = Backed::without_backup();
        fs::write(backed.network_file("config"), "alias=small\n").unwrap();
        backed.init().run().expect_success();
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
    pub fn restore(&self, changed: &Memory) -> (Output, PathBuf) {
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
    pub fn compare_with_the_program(&self, changed: &Memory, what: &str) {
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

/// Start and end of each whole frame.
pub fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
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
