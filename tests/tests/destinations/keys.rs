//! Slots, snapshots and retention at both destinations.

use std::fs;

use crate::two::{Two, says};

#[test]
fn a_slot_is_added_to_and_removed_from_both() {
    let two = Two::new(20);
    let file = two.folder("another");
    fs::write(&file, "another passphrase\n").unwrap();
    let add = || two.cli("key add", &["--add-passphrase-file", file.to_str().unwrap()]);
    // One that is missing at one place is added there.
    fs::remove_file(two.folder("store").join("keys/passphrase-1.age")).unwrap();
    says(&add(), 0, &["added slot 'passphrase-2'"]);
    for slot in ["node", "passphrase-1", "passphrase-2"] {
        let of = |name: &str| fs::read(two.folder(name).join(format!("keys/{slot}.age"))).unwrap();
        assert_eq!(of("store"), of("second"), "{slot}");
    }
    says(&two.cli("key remove", &["passphrase-1"]), 0, &["removed slot 'passphrase-1'"]);
    for name in ["store", "second"] {
        assert!(!two.folder(name).join("keys/passphrase-1.age").exists());
    }
    says(&two.cli("key remove", &["nobody"]), 1, &["has no slot 'nobody'"]);

    let away = two.folder("elsewhere");
    fs::rename(two.folder("second"), &away).unwrap();
    says(&two.cli("key remove", &["passphrase-2"]), 1, &["'second'", "folder is not there"]);
    says(&add(), 0, &["added slot 'passphrase-1'", "'second' is away"]);
    fs::rename(&away, two.folder("second")).unwrap();
    two.level();
    says(&two.cli("key list", &[]), 0, &["passphrase-1", "passphrase-2"]);
}

#[test]
fn a_snapshot_is_copied_and_both_are_pruned() {
    let two = Two::new(22);
    for seed in 23..26 {
        two.write(seed, 10);
        two.level();
        says(&two.cli("compact", &[]), 0, &["copied to "]);
    }
    two.cli("verify", &[]).expect_success();
    let (first, second) = (two.files("store", ".snap").len(), two.files("second", ".snap").len());
    assert!(first >= 3 && first == second, "{first} and {second}");
    let planned =
        two.cli("prune", &["--keep-last", "1", "--dry-run", "--json"]).expect_success().json();
    assert_eq!(planned["others"][0]["segments_removed"], planned["segments_removed"]);
    says(&two.cli("prune", &["--keep-last", "1"]), 0, &["removed ", "': removed "]);
    assert!(two.files("store", ".snap").len() < first);
    assert_eq!(two.content("store"), two.content("second"));
    two.cli("verify", &[]).expect_success();
}

#[test]
fn a_destination_that_is_behind_gets_no_snapshot_that_its_log_does_not_reach() {
    let two = Two::new(27);
    let kept = two.keep("second");
    two.write(28, 10);
    two.put_back("second", &kept);
    two.cli("compact", &[]).expect_success();
    assert!(two.files("store", ".snap").len() > two.files("second", ".snap").len());
    let database = two.backed.new_dest();
    let url = two.backed.dir().file_url("second");
    // What is restored from there is what it holds; not more, and not nothing.
    let restored = two.backed.restore_of(&url, &database).run();
    assert!(restored.code == Some(0) || restored.stderr.contains("primary"), "{restored}");
    two.level();
}
