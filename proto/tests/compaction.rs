//! A node writes, dies and starts again while its log is compacted beside it, and what is superfluous is
//! removed. At every moment a restore, from whatever snapshots there are, gives the node's own rows.

mod machine;
mod sim;

use std::collections::BTreeSet;

use lockstep_proto::error::Error;
use lockstep_proto::prune::PrunePlan;
use lockstep_proto::restore::{self, Plan, Target};
use lockstep_proto::retention::Policy;
use lockstep_proto::shadow::{self, Shadow};
use lockstep_proto::snapshot::Lineage;
use lockstep_proto::store::Store;
use lockstep_proto::tail::Tail;
use lockstep_proto::version::DataVersion;
use proptest::prelude::*;
use rusqlite::Connection;

use machine::{Machine, Step, compact, rows_of};
use sim::Fault;

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_u8, 1..20_u8).prop_map(|(transactions, rows)| Step::Commit(transactions, rows)),
        1 => any::<u8>().prop_map(Step::Delete),
        1 => Just(Step::Lost),
        1 => Just(Step::Migrate),
        1 => Just(Step::Restart),
        4 => Just(Step::Compact),
        2 => Just(Step::CompactElsewhere),
        2 => Just(Step::Prune),
        1 => Just(Step::Gap),
        1 => Just(Step::LoseShadow),
        1 => Just(Step::CatchUpAndDie),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_happens_a_restore_gives_the_nodes_rows(steps in prop::collection::vec(any_step(), 1..25)) {
        let mut machine = Machine::new();
        for step in steps {
            machine.step(step);
        }
        machine.check();
        machine.compact();
        machine.check();
        machine.step(Step::Prune);
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
    let plan = Plan::newest(&machine.store, &machine.keys).unwrap();
    let behind = plan.segments.iter().map(|segment| segment.size);
    assert_eq!(plan.log_bytes(), behind.sum::<u64>());
    let tail = Tail::read(&machine.store, &machine.keys).unwrap().snapshot.unwrap();
    assert_eq!((tail.seq, tail.objects), (published.position.seq, 2));
    let database = shadow::database_in(&machine.shadow());
    assert_eq!(tail.database_bytes, database.metadata().unwrap().len());
    let lineage = plan.lineage;
    assert_eq!(lineage.links.len(), 2, "and it is used");
    assert_eq!(lineage.position(), Some(published.position));
    let stored = |name: &str| machine.store.0.lock().unwrap().objects[name].len() as u64;
    assert_eq!(published.stored_bytes, stored(&published.base.name));
    let all = lineage.links.iter().map(|link| stored(&link.summary.name.to_string()));
    assert_eq!(lineage.size(), all.sum::<u64>());
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

/// The node dies with an acknowledged batch that it did not commit, and its next session begins with settings: those are
/// the newest of what is decided, and the batch before them is not in the snapshot.
#[test]
fn a_snapshot_of_settings_behind_a_void_batch_is_restored() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(3, 5));
    machine.acknowledge_and_die();
    machine.settings("PRAGMA foreign_keys = ON");
    machine.step(Step::Commit(1, 2));
    machine.compact();
    machine.check();
    machine.step(Step::Commit(1, 2));
    machine.compact();
    machine.step(Step::Prune);
    machine.check();
}

/// What was written is not trusted before it was read back: nothing is counted on it, and nothing removed for it.
#[test]
fn a_snapshot_that_reads_back_as_something_else_was_not_published() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(10, 10));
    machine.store.0.lock().unwrap().rots = true;
    let published = compact(&machine.store, &machine.keys, &machine.shadow());
    assert!(matches!(published, Err(Error::Damaged { .. })), "{published:?}");
    machine.step(Step::Commit(1, 5));
    machine.compact();
    let (_, rows) = machine.restore(Target::Newest).unwrap();
    assert_eq!(rows, rows_of(&machine.node));
}

#[test]
fn what_is_removed_leaves_what_the_database_needs() {
    let mut machine = Machine::new();
    let stored = |machine: &Machine| -> usize {
        machine.store.0.lock().unwrap().objects.values().map(Vec::len).sum()
    };
    machine.step(Step::Commit(20, 10));
    machine.compact();
    machine.step(Step::Prune);
    let before = stored(&machine);
    for _ in 0..40 {
        // As many rows come as go: the log grows for ever, the database does not.
        machine.step(Step::Commit(4, 5));
        machine.step(Step::Delete(3));
        machine.compact();
        machine.step(Step::Prune);
        machine.check();
    }
    let after = stored(&machine);
    assert!(after < 6 * before, "{before} bytes, then {after}");
}

#[test]
fn a_removal_that_is_cut_off_anywhere_costs_nothing() {
    for cut in 0.. {
        let mut machine = Machine::new();
        for _ in 0..6 {
            machine.step(Step::Commit(6, 10));
            machine.compact();
            machine.step(Step::Restart);
        }
        let policy = Policy { keep_last: 1, ..Policy::NOTHING };
        let plan = PrunePlan::new(&machine.store, &machine.keys, &policy, machine.time).unwrap();
        let mut left = cut;
        let stopped = plan.run(
            &machine.store,
            &mut || {
                left -= 1;
                if left < 0 {
                    Err(Error::Nothing { store: String::new(), what: "cut".into() })
                } else {
                    Ok(())
                }
            },
            &mut |_| {},
        );
        machine.check();
        machine.step(Step::Commit(1, 5));
        machine.compact();
        machine.step(Step::Prune);
        machine.check();
        if stopped.is_ok() {
            assert!(cut > 5, "{cut}");
            break;
        }
    }
}

#[test]
fn a_plan_says_how_many_bytes_go_and_each_object_that_went_is_told() {
    let mut machine = Machine::new();
    for _ in 0..4 {
        machine.step(Step::Commit(6, 10));
        machine.compact();
        machine.step(Step::Restart);
    }
    // Where the log begins is noted when something is removed.
    let stored = |machine: &Machine| -> (usize, usize) {
        let disk = machine.store.0.lock().unwrap();
        let objects = disk.objects.iter().filter(|(name, _)| !name.starts_with("beginnings/"));
        objects.fold((0, 0), |(objects, all), (_, bytes)| (objects + 1, all + bytes.len()))
    };
    let policy = Policy { keep_last: 1, ..Policy::NOTHING };
    let plan = PrunePlan::new(&machine.store, &machine.keys, &policy, machine.time).unwrap();
    assert!(!plan.snapshots().is_empty() && !plan.segments.is_empty());
    let (before, mut told) = (stored(&machine), Vec::new());
    plan.run(&machine.store, &mut || Ok(()), &mut |removed| told.push(removed)).unwrap();
    let after = stored(&machine);
    assert_eq!(plan.bytes(), (before.1 - after.1) as u64);
    assert_eq!(told, (1..=(before.0 - after.0) as u64).collect::<Vec<_>>());
}

/// A history that goes whole, interrupted: what is left of it is nobody's, and no damage.
#[test]
fn an_older_history_that_is_half_removed_is_no_damage() {
    for cut in 0.. {
        let mut machine = Machine::new();
        for step in [Step::Commit(6, 10), Step::Gap, Step::Commit(3, 10), Step::Compact] {
            machine.step(step);
            machine.step(Step::Restart);
        }
        machine.step(Step::Commit(2, 5));
        machine.step(Step::Gap);
        let policy = Policy { keep_last: 1, ..Policy::NOTHING };
        let plan = PrunePlan::new(&machine.store, &machine.keys, &policy, machine.time).unwrap();
        let (snapshots, segments) = (plan.snapshots(), &plan.segments);
        let all = snapshots.iter().map(ToString::to_string);
        let all = all.chain(segments.iter().map(|segment| segment.name.to_string()));
        let removed: Vec<String> = all.take(cut).collect();
        for name in &removed {
            machine.store.remove(name).unwrap();
        }
        machine.check();
        machine.step(Step::Prune);
        machine.check();
        if cut == snapshots.len() + segments.len() {
            assert!(cut > 5, "{cut}");
            break;
        }
    }
}

/// Its snapshot is there, and its first segment, which has no record yet.
#[test]
fn a_history_that_is_being_begun_is_not_removed_as_an_older_one() {
    let mut machine = Machine::new();
    for step in [Step::Commit(6, 10), Step::Restart, Step::Commit(3, 10), Step::Compact] {
        machine.step(step);
    }
    let objects = |machine: &Machine| machine.store.0.lock().unwrap().objects.clone();
    let before = objects(&machine);
    machine.step(Step::Gap);
    let begun = objects(&machine);
    let new: Vec<_> = begun.keys().filter(|name| !before.contains_key(*name)).collect();
    let segments: Vec<_> = new.iter().copied().filter(|name| name.starts_with("log/")).collect();
    let [segment] = segments[..] else { panic!("{segments:?}") };
    let whole = begun[segment].clone();
    let at_first = whole[..lockstep_proto::seal::HEADER_LEN].to_vec();
    machine.store.0.lock().unwrap().objects.insert(segment.clone(), at_first);
    machine.step(Step::Prune);
    let pruned = objects(&machine);
    assert!(begun.keys().any(|name| !pruned.contains_key(name)), "nothing was removed");
    assert!(new.iter().all(|name| pruned.contains_key(*name)), "{new:?}");
    // It is gone on with.
    machine.store.0.lock().unwrap().objects.insert(segment.clone(), whole);
    machine.check();
}

#[test]
fn a_folder_with_something_else_in_it_is_neither_used_nor_removed() {
    let mut machine = Machine::new();
    machine.compact();
    let folder = machine.shadow();
    let names = || {
        let entries = std::fs::read_dir(&folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    std::fs::write(folder.join("photo"), "of the cat").unwrap();
    let before = names();
    for error in [
        Shadow::open(&machine.store, &machine.keys, &folder).err().unwrap(),
        shadow::remove(&folder).unwrap_err(),
    ] {
        assert!(error.to_string().contains("holds something else"), "{error}");
        assert_eq!(names(), before);
    }
    std::fs::remove_file(folder.join("photo")).unwrap();
    shadow::remove(&folder).unwrap();
    assert!(!folder.exists());
    shadow::remove(&folder).unwrap();
}

#[test]
fn a_damaged_snapshot_is_passed_over_where_the_log_reaches_back() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(40, 10));
    for _ in 0..3 {
        machine.step(Step::Commit(2, 1));
        machine.compact();
    }
    let lineage = Plan::newest(&machine.store, &machine.keys).unwrap().lineage;
    assert!(lineage.links.len() > 1);
    for link in &lineage.links {
        let name = link.summary.name.to_string();
        let whole = machine.store.0.lock().unwrap().objects[&name].clone();
        for at in [whole.len() - 40, 200, 3] {
            machine.store.0.lock().unwrap().objects.get_mut(&name).unwrap()[at] ^= 1;
            let plan = Plan::newest(&machine.store, &machine.keys);
            let path = machine.shadow().with_extension("restored");
            let restored = plan.and_then(|plan| {
                restore::run(&machine.store, &machine.keys, &plan, &path, &mut |_| {}).or_else(
                    |_| {
                        std::fs::remove_file(&path).unwrap();
                        let other = plan.around_damage(&machine.store, &machine.keys)?.unwrap();
                        assert!(
                            other
                                .lineage
                                .links
                                .iter()
                                .all(|used| used.summary.name != link.summary.name)
                        );
                        restore::run(&machine.store, &machine.keys, &other, &path, &mut |_| {})
                    },
                )
            });
            assert_eq!(restored.unwrap().data_version, Some(DataVersion(machine.version)));
            assert_eq!(rows_of(&Connection::open(&path).unwrap()), rows_of(&machine.node));
            std::fs::remove_file(&path).unwrap();
            // Compaction goes on, too, with a shadow that is made around the damage.
            machine.step(Step::LoseShadow);
            machine.step(Step::Commit(1, 1));
            machine.compact();
            machine.store.0.lock().unwrap().objects.insert(name.clone(), whole.clone());
            machine.check();
        }
    }
}

#[test]
fn what_is_passed_over_is_said() {
    let mut machine = Machine::new();
    machine.step(Step::Commit(40, 10));
    for _ in 0..2 {
        machine.compact();
        machine.step(Step::Commit(3, 1));
    }
    let plan = || Plan::newest(&machine.store, &machine.keys).unwrap();
    let newest = plan().lineage.links.pop().unwrap().summary.name;
    let whole = machine.store.0.lock().unwrap().objects[&newest.to_string()].clone();
    let damage = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        machine.store.0.lock().unwrap().objects.insert(newest.to_string(), bytes);
        plan()
    };
    let says = |plan: &Plan| {
        let Lineage { links, passed_over } = &plan.lineage;
        assert!(!links.is_empty() && links.iter().all(|link| link.summary.name != newest));
        assert_eq!(passed_over.len(), 1);
        assert!(passed_over[0].contains(&newest.to_string()), "{passed_over:?}");
    };
    says(&damage(3));
    // Behind its first frame that is seen by whoever reads all of it, and not before.
    let plan = damage(whole.len() - 40);
    assert_eq!(plan.lineage.links.last().unwrap().summary.name, newest);
    says(&plan.around_damage(&machine.store, &machine.keys).unwrap().unwrap());
}
