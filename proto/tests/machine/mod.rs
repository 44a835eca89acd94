//! A node that writes its log, dies and starts again, with compaction and retention beside it, all in one process
//! over a store in memory; and its own database, to compare with.
#![allow(dead_code, reason = "each test that takes this module uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_proto::capture::Capture;
use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::restore::{self, Plan, Restored, Target};
use lockstep_proto::retention::Policy;
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::shadow::Shadow;
use lockstep_proto::verify;
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::sim::SimStore;

/// What happens.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// So many transactions of so many rows are committed.
    Commit(u8, u8),
    /// Rows are deleted: pages become free.
    Delete(u8),
    /// A transaction is acknowledged, and the node dies before it commits.
    Lost,
    /// A table is built anew, with foreign keys off meanwhile.
    Migrate,
    /// The node stops in order and starts again.
    Restart,
    /// The log is compacted.
    Compact,
    /// Another machine compacts the same log, with a shadow of its own.
    CompactElsewhere,
    /// The node writes without its log, which goes on in a new generation.
    Gap,
    /// Only the newest snapshot is kept.
    Prune,
    /// The shadow is lost.
    LoseShadow,
    /// The log is replayed into the shadow, which then dies: nothing is published.
    CatchUpAndDie,
}

pub struct Machine {
    pub store: SimStore,
    pub keys: KeyRing,
    writer: Option<Writer>,
    pub node: Connection,
    pub version: u32,
    row: u64,
    pub time: u64,
    folder: TempDir,
    pub snapshots: usize,
}

impl Machine {
    pub fn new() -> Self {
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        let store = SimStore::default();
        let claimant = Claimant::this_process("test", "init", "here", 1).unwrap();
        let mut writer = Writer::create(Arc::new(store.clone()), keys.clone(), claimant).unwrap();
        writer.begin(Start { reason: StartReason::Init, base: None }, None, 1).unwrap();
        let node = Connection::open_in_memory().unwrap();
        node.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut machine = Self {
            store,
            keys,
            writer: Some(writer),
            node,
            version: 0,
            row: 0,
            time: 2,
            folder,
            snapshots: 0,
        };
        machine.transaction(vec![
            "CREATE TABLE vars (name TEXT PRIMARY KEY, intval INTEGER)".into(),
            "INSERT INTO vars VALUES ('data_version', 0)".into(),
            "CREATE TABLE peers (id INTEGER PRIMARY KEY)".into(),
            "CREATE TABLE rows (id INTEGER PRIMARY KEY, peer INTEGER REFERENCES peers(id) ON DELETE CASCADE, what TEXT)".into(),
        ]);
        machine
    }

    pub fn writer(&mut self) -> &mut Writer {
        let (store, keys, time) = (self.store.clone(), self.keys.clone(), self.time);
        self.writer.get_or_insert_with(|| {
            let claimant = Claimant::this_process("test", "node", "here", time).unwrap();
            let mut writer = Writer::open(Arc::new(store), keys, claimant, time).unwrap();
            writer.set_segment_bytes(4_000);
            writer
        })
    }

    fn call(&mut self, version: u32, transaction: bool, writes: &[String]) {
        self.time += 1;
        let time = self.time;
        let call = Call { data_version: DataVersion(version), transaction, writes };
        let outcome = self.writer().append(&call, time).unwrap();
        assert!(matches!(outcome, Outcome::Acknowledged { .. }));
    }

    pub fn transaction(&mut self, mut writes: Vec<String>) {
        self.version += 1;
        writes.push(bump(self.version));
        self.call(self.version, true, &writes);
        self.node.execute_batch("BEGIN").unwrap();
        for sql in &writes {
            self.node.execute_batch(sql).unwrap();
        }
        self.node.execute_batch("COMMIT").unwrap();
    }

    pub fn acknowledge_and_die(&mut self) {
        let mut writes = self.rows(1);
        writes.push(bump(self.version + 1));
        self.call(self.version + 1, true, &writes);
        self.writer = None;
    }

    /// The node dies; what it wrote is committed.
    pub fn die(&mut self) {
        self.writer = None;
    }

    pub fn settings(&mut self, sql: &str) {
        self.call(self.version, false, &[sql.into()]);
        self.node.execute_batch(sql).unwrap();
    }

    fn rows(&mut self, rows: u8) -> Vec<String> {
        let mut writes = Vec::new();
        for _ in 0..rows {
            self.row += 1;
            let (row, peer) = (self.row, self.row % 7);
            writes.push(format!("INSERT OR IGNORE INTO peers VALUES ({peer})"));
            let what = format!("{row} ").repeat(40 + row as usize % 200);
            writes.push(format!("INSERT INTO rows VALUES ({row}, {peer}, '{what}')"));
        }
        writes
    }

    pub fn step(&mut self, step: Step) {
        match step {
            Step::Commit(transactions, rows) => {
                for _ in 0..transactions {
                    let writes = self.rows(rows);
                    self.transaction(writes);
                }
            }
            Step::Delete(peer) => {
                self.transaction(vec![format!("DELETE FROM peers WHERE id = {}", peer % 7)]);
            }
            Step::Lost => {
                self.acknowledge_and_die();
                // What the restarted node does first shows that the batch was lost.
                let writes = self.rows(2);
                self.transaction(writes);
            }
            Step::Migrate => {
                self.settings("PRAGMA foreign_keys = OFF");
                self.compact();
                self.transaction(vec![
                    "CREATE TABLE new_peers (id INTEGER PRIMARY KEY, alias TEXT)".into(),
                    "INSERT INTO new_peers (id) SELECT id FROM peers".into(),
                    "DROP TABLE peers".into(),
                    "ALTER TABLE new_peers RENAME TO peers".into(),
                    "CREATE TABLE old (id INTEGER PRIMARY KEY)".into(),
                    "INSERT INTO old SELECT id FROM peers".into(),
                    "DROP TABLE peers".into(),
                    "ALTER TABLE old RENAME TO peers".into(),
                ]);
                self.compact();
                self.settings("PRAGMA foreign_keys = ON");
            }
            Step::Restart => {
                let time = self.time;
                if let Some(mut writer) = self.writer.take() {
                    writer.close(time);
                }
            }
            Step::Compact => self.compact(),
            Step::CompactElsewhere => {
                let folder = self.folder.path().join("elsewhere");
                self.snapshots += usize::from(compact(&self.store, &self.keys, &folder).unwrap());
            }
            Step::Gap => {
                let rows = self.rows(3);
                self.version += 1;
                self.node.execute_batch(&rows.join(";")).unwrap();
                self.node.execute_batch(&bump(self.version)).unwrap();
                let (copy, time) = (self.folder.path().join("copy"), self.time);
                self.node
                    .execute("VACUUM INTO ?1", [self.folder.path().join("node").to_str()])
                    .unwrap();
                let node = self.folder.path().join("node");
                let capture = Capture::take(&node, copy, &mut |_| {}).unwrap();
                std::fs::remove_file(node).unwrap();
                capture.begin(self.writer(), StartReason::Gap, time, &mut |_, _| {}).unwrap();
            }
            Step::Prune => self.prune(&Policy { keep_last: 1, ..Policy::NOTHING }),
            Step::LoseShadow => {
                let _ = std::fs::remove_dir_all(self.shadow());
            }
            Step::CatchUpAndDie => {
                let folder = self.shadow();
                let mut shadow = Shadow::open(&self.store, &self.keys, &folder).unwrap();
                shadow.catch_up(&mut |_| {}).unwrap();
            }
        }
    }

    pub fn shadow(&self) -> PathBuf {
        self.folder.path().join("shadow")
    }

    pub fn compact(&mut self) {
        self.snapshots += usize::from(compact(&self.store, &self.keys, &self.shadow()).unwrap());
    }

    pub fn prune(&mut self, policy: &Policy) {
        let plan = PrunePlan::new(&self.store, &self.keys, policy, self.time).unwrap();
        plan.run(&self.store, &mut || Ok(()), &mut |_| {}).unwrap();
    }

    /// Restores, and gives schema and every row.
    pub fn restore(&self, target: Target) -> Result<(Restored, Vec<String>), Error> {
        let path = self.folder.path().join("restored.sqlite3");
        let _ = std::fs::remove_file(&path);
        let plan = Plan::to(&self.store, &self.keys, target)?;
        let report = restore::run(&self.store, &self.keys, &plan, &path, &mut |_| {})?;
        Ok((report, rows_of(&Connection::open(&path).unwrap())))
    }

    /// What a restore gives is what the node has.
    pub fn check(&mut self) {
        verify::run(&self.store, &self.keys, &mut |_| {}).unwrap();
        let (report, rows) = self.restore(Target::Newest).unwrap();
        assert_eq!(report.data_version, Some(DataVersion(self.version)));
        assert_eq!(rows, rows_of(&self.node));
        let db = Connection::open(self.folder.path().join("restored.sqlite3")).unwrap();
        let own = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!((own("user_version"), own("application_id")), (0, 0), "the shadow's own marks");
        let journal: String =
            db.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(journal, "delete");
    }
}

fn bump(version: u32) -> String {
    format!(
        "UPDATE vars SET intval = {version} WHERE name = 'data_version' AND intval = {}",
        version - 1
    )
}

pub fn compact(store: &SimStore, keys: &KeyRing, folder: &Path) -> Result<bool, Error> {
    let mut shadow = Shadow::open(store, keys, folder)?;
    shadow.catch_up(&mut |_| {})?;
    let published = shadow.publish(&mut |_, _| {})?;
    shadow.prove()?;
    Ok(published.is_some())
}

/// Schema and every row.
pub fn rows_of(db: &Connection) -> Vec<String> {
    let mut found = Vec::new();
    let mut tables = db.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").unwrap();
    let tables = tables.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    for table in tables {
        let (name, sql): (String, Option<String>) = table.unwrap();
        let Some(sql) = sql else { continue };
        found.push(sql);
        let mut rows = db.prepare(&format!("SELECT * FROM {name} ORDER BY 1")).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|column| format!("{:?}", row.get_ref(column).unwrap()));
            found.push(values.collect::<Vec<_>>().join("|"));
        }
    }
    found
}
