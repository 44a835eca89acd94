//! A shadow that stands by becomes the node's database, as it was acknowledged last.

use lockstep_proto::seal::StoreId;
use lockstep_proto::shadow::{Shadow, reached};
use lockstep_proto::version::DataVersion;
use rusqlite::Connection;

use crate::machine::{Machine, Step, rows_of};

#[test]
fn a_standby_becomes_the_database_that_was_acknowledged_last() {
    // Where nothing is behind what it holds, and where something is.
    for more in [0, 5] {
        let mut machine = Machine::new();
        machine.step(Step::Commit(6, 5));
        machine.step(Step::Restart);
        let folder = machine.shadow();
        let log = machine.keys.store();
        assert_eq!(reached(&folder, log).unwrap(), None);
        let mut standby = Shadow::follow(&machine.store, &machine.keys, &folder).unwrap();
        standby.catch_up(&mut |_| {}).unwrap();
        let (seq, holds) = (standby.seq(), standby.data_version().unwrap().unwrap());
        assert!(holds.0 > 1 && holds.0 <= machine.version, "{holds}");
        drop(standby);
        assert_eq!(reached(&folder, log).unwrap(), Some((1, seq)));
        assert_eq!(reached(&folder, StoreId([2; 16])).unwrap(), None);
        machine.step(Step::Commit(more, 5));
        machine.time += 1_000;
        machine.step(Step::Restart);
        let position = machine.writer().position();
        let standby = Shadow::follow(&machine.store, &machine.keys, &folder).unwrap();
        let (path, mut told) = (folder.with_extension("promoted"), 0);
        let restored = standby.into_database(&path, &mut |batches| told = batches).unwrap();
        assert_eq!(restored.position.seq, position.seq);
        assert_eq!(restored.data_version, Some(DataVersion(machine.version)));
        assert_eq!(restored.batches, u64::from(machine.version - holds.0));
        assert_eq!(restored.batches, told);
        // The restarts came later than the newest batch.
        assert_eq!(restored.time, machine.time - 1_000);
        let db = Connection::open(&path).unwrap();
        assert_eq!(rows_of(&db), rows_of(&machine.node));
        let own = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!((own("user_version"), own("application_id")), (0, 0));
        assert_eq!(reached(&folder, log).unwrap(), None, "it is no shadow any more");
    }
}
