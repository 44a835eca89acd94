//! A node writes, dies and starts again while its log is compacted beside it. At every moment a restore, from
//! whatever snapshots there are, gives the node's own rows.

mod sim;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lockstep_proto::error::Error;
use lockstep_proto::fence::Claimant;
use lockstep_proto::record::{Start, StartReason};
use lockstep_proto::restore::{self, Plan};
use lockstep_proto::seal::{KeyRing, StoreId};
use lockstep_proto::shadow::Shadow;
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use sim::{Fault, SimStore};

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Step {
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
    /// The shadow is lost.
    LoseShadow,
    /// The log is replayed into the shadow, which then dies: nothing is published.
    CatchUpAndDie,
}

struct Machine {
    store: SimStore,
    keys: KeyRing,
    writer: Option<Writer>,
    node: Connection,
    version: u32,
    row: u64,
    time: u64,
    folder: TempDir,
    snapshots: usize,
}

impl Machine {
    fn new() -> Self {
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

    fn writer(&mut self) -> &mut Writer {
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

    fn transaction(&mut self, mut writes: Vec<String>) {
        self.version += 1;
        writes.push(bump(self.version));
        self.call(self.version, true, &writes);
        self.node.execute_batch("BEGIN").unwrap();
        for sql in &writes {
            self.node.execute_batch(sql).unwrap();
        }
        self.node.execute_batch("COMMIT").unwrap();
    }

    fn settings(&mut self, sql: &str) {
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

    fn step(&mut self, step: Step) {
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
                let mut writes = self.rows(1);
                writes.push(bump(self.version + 1));
                self.call(self.version + 1, true, &writes);
                self.writer = None;
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

    fn shadow(&self) -> PathBuf {
        self.folder.path().join("shadow")
    }

    fn compact(&mut self) {
        self.snapshots += usize::from(compact(&self.store, &self.keys, &self.shadow()).unwrap());
    }

    /// What a restore gives is what the node has.
    fn check(&mut self) {
        let restored = self.folder.path().join("restored.sqlite3");
        let plan = Plan::newest(&self.store, &self.keys).unwrap();
        let report = restore::run(&self.store, &self.keys, &plan, &restored, &mut |_| {}).unwrap();
        assert_eq!(report.data_version, Some(DataVersion(self.version)));
        let restored_db = Connection::open(&restored).unwrap();
        assert_eq!(rows_of(&restored_db), rows_of(&self.node));
        let own: (i64, i64, String) = restored_db
            .query_row(
                "SELECT user_version, application_id, journal_mode FROM pragma_user_version, \
                 pragma_application_id, pragma_journal_mode",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .unwrap();
        assert_eq!(own, (0, 0, "delete".into()), "the shadow's own marks");
        drop(restored_db);
        std::fs::remove_file(restored).unwrap();
    }
}

fn bump(version: u32) -> String {
    format!(
        "UPDATE vars SET intval = {version} WHERE name = 'data_version' AND intval = {}",
        version - 1
    )
}

fn compact(store: &SimStore, keys: &KeyRing, folder: &Path) -> Result<bool, Error> {
    let mut shadow = Shadow::open(store, keys, folder)?;
    shadow.catch_up(&mut |_| {})?;
    let published = shadow.publish(&mut |_, _| {})?;
    shadow.prove()?;
    Ok(published.is_some())
}

/// Schema and every row.
fn rows_of(db: &Connection) -> Vec<String> {
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

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_u8, 1..20_u8).prop_map(|(transactions, rows)| Step::Commit(transactions, rows)),
        1 => any::<u8>().prop_map(Step::Delete),
        1 => Just(Step::Lost),
        1 => Just(Step::Migrate),
        1 => Just(Step::Restart),
        4 => Just(Step::Compact),
        1 => Just(Step::LoseShadow),
        1 => Just(Step::CatchUpAndDie),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_happens_a_restore_gives_the_nodes_rows(steps in prop::collection::vec(any_step(), 1..25)) {
        let mut machine = Machine::new();
        for step in steps {
            machine.step(step);
        }
        machine.check();
        machine.compact();
        machine.check();
    }
}

#[test]
fn many_compactions_leave_few_snapshots_to_read() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(60, 20));
    for _ in 0..60 {
        machine.step(Step::Commit(1, 3));
        machine.compact();
        let plan = Plan::newest(&machine.store, &machine.keys).unwrap();
        let links = plan.lineage.links.len();
        assert!(links <= 10, "{links} snapshots");
        assert!(plan.segments.len() <= 2);
    }
    assert_eq!(machine.snapshots, 60);
    machine.check();
}

#[test]
fn a_small_change_is_a_small_delta() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(200, 20));
    machine.compact();
    machine.step(Step::Commit(1, 1));
    let mut shadow = Shadow::open(&machine.store, &machine.keys, &machine.shadow()).unwrap();
    shadow.catch_up(&mut |_| {}).unwrap();
    let published = shadow.publish(&mut |_, _| {}).unwrap().unwrap();
    assert!(published.page_count > 500, "{published:?}");
    assert!(published.pages < 20, "{published:?}");
    assert_eq!(published.links, 2);
    assert!(shadow.publish(&mut |_, _| {}).unwrap().is_none(), "nothing is new");
}

#[test]
fn a_compaction_that_fails_at_any_step_costs_nothing() {
    for fault in [Fault::Before, Fault::After, Fault::Half] {
        for for_good in [false, true] {
            for at in 0.. {
                let mut machine = Machine::new();
                machine.step(Step::Commit(10, 10));
                machine.compact();
                machine.step(Step::Commit(2, 5));
                {
                    let mut disk = machine.store.0.lock().unwrap();
                    (disk.operations, disk.fail_at, disk.for_good) =
                        (0, Some((at, fault)), for_good);
                }
                let failed = compact(&machine.store, &machine.keys, &machine.shadow()).is_err();
                {
                    let mut disk = machine.store.0.lock().unwrap();
                    (disk.fail_at, disk.dead) = (None, false);
                    disk.cut_power();
                }
                machine.check();
                machine.step(Step::Commit(1, 5));
                machine.compact();
                machine.check();
                if !failed {
                    assert!(at > 0);
                    break;
                }
            }
        }
    }
}
