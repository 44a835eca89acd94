//! `verify --heal`: each kind of damage, at either destination.

use std::fs;
use std::path::Path;

use lockstep_tests::sim::{Node, RpcServer};

use crate::two::{Two, flip, says};

/// A name, and what is done to a destination.
type Harm = (&'static str, fn(&Two, &str));

const HARMS: [Harm; 9] = [
    ("a flipped byte in a segment", |two, name| flip(&two.files(name, ".seg")[1], 300)),
    ("a flipped byte in the newest segment", |two, name| {
        flip(two.files(name, ".seg").last().unwrap(), 300);
    }),
    ("a flipped byte in a snapshot", |two, name| {
        let path = &two.files(name, ".snap")[0];
        flip(path, len(path) / 2);
    }),
    ("a cut snapshot", |two, name| {
        let path = &two.files(name, ".snap")[0];
        cut(path, len(path) - 30);
    }),
    ("a removed segment", |two, name| fs::remove_file(&two.files(name, ".seg")[1]).unwrap()),
    ("a removed snapshot", |two, name| fs::remove_file(&two.files(name, ".snap")[0]).unwrap()),
    ("a removed claim", |two, name| {
        fs::remove_file(two.folder(name).join("epochs/00000002")).unwrap();
    }),
    ("a flipped byte in a claim", |two, name| flip(&two.folder(name).join("epochs/00000001"), 140)),
    ("a cut key slot", |two, name| cut(&two.folder(name).join("keys/node.age"), 150)),
];

fn len(path: &Path) -> usize {
    fs::read(path).unwrap().len()
}

fn cut(path: &Path, bytes: usize) {
    let whole = fs::read(path).unwrap();
    fs::write(path, &whole[..bytes]).unwrap();
}

#[test]
fn each_kind_of_damage_is_found_and_healed() {
    let two = Two::new(10);
    let intact = two.content("store");
    for (name, destination) in [("store", "primary"), ("second", "second")] {
        for (what, harm) in HARMS {
            harm(&two, name);
            let verified = two.cli("verify", &[]);
            says(&verified, 3, &[&format!("'{destination}' "), "--heal"]);
            assert!(
                !verified.stdout.contains(&format!("'{destination}' is intact")),
                "{what}: {verified}"
            );
            let healed = two.cli("verify", &["--heal"]);
            assert_eq!(healed.code, Some(0), "{what} in {name}: {healed}");
            says(&healed, 0, &["'primary' is intact", "'second' is intact"]);
            assert_eq!(two.content("store"), intact, "{what} in {name}");
            assert_eq!(two.content("second"), intact, "{what} in {name}");
        }
    }
    says(&two.cli("verify", &["--heal"]), 0, &["nothing to heal"]);
    let mut node = Node::launch(two.backed.config()).unwrap();
    node.stop().unwrap();
}

#[test]
fn damage_in_both_places_is_healed_where_it_differs_and_named_where_not() {
    let two = Two::new(12);
    let intact = two.content("store");
    flip(&two.files("store", ".seg")[1], 300);
    flip(two.files("second", ".seg").last().unwrap(), 300);
    let snapshot = &two.files("second", ".snap")[0];
    flip(snapshot, len(snapshot) / 2);
    let verified = two.cli("verify", &[]);
    says(&verified, 13, &["no destination is intact", "'primary': ", "'second': "]);
    let healed = two.cli("verify", &["--heal", "--json"]).expect_success().json();
    assert_eq!(healed["healed"]["damaged"].as_array().unwrap().len(), 3, "{healed}");
    assert_eq!(two.content("store"), intact);
    assert_eq!(two.content("second"), intact);

    let before: Vec<_> = ["store", "second"]
        .map(|name| {
            flip(&two.files(name, ".seg")[1], 300);
            two.content(name)
        })
        .into();
    let failed = two.cli("verify", &["--heal"]);
    says(
        &failed,
        13,
        &[
            "no destination is intact",
            &two.files("store", ".seg")[1].file_name().unwrap().to_string_lossy(),
        ],
    );
    assert_eq!([two.content("store"), two.content("second")].to_vec(), before);
}

#[test]
fn a_place_of_another_store_is_never_healed() {
    let (two, other) = (Two::new(14), Two::new(15));
    two.put_back("second", &other.folder("second"));
    let before = two.content("second");
    let refused = two.cli("verify", &["--heal"]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(refused.stderr.contains("belongs to store"), "{refused}");
    assert_eq!(two.content("second"), before);
}

#[test]
fn what_a_running_node_is_writing_is_left_alone() {
    let two = Two::new(16);
    let intact = two.content("second");
    flip(&two.files("second", ".seg")[1], 300);
    let mut node = two.backed.launch();
    let step = lockstep_tests::Step::transaction(["DELETE FROM vars WHERE name = 'mark 16 1'"]);
    node.write(&step).unwrap().expect_committed();
    // What tells that a lightningd runs.
    let socket = RpcServer::bind(&two.backed.network_dir(), []).unwrap();
    let newest = two.files("store", ".seg").pop().unwrap();
    let before = two.content("store");
    let said = two.cli("verify", &["--heal"]);
    says(&said, 0, &["lightningd is running: the segment that it is writing was left alone"]);
    let healed = two.content("second");
    for file in &intact {
        assert!(healed.contains(file), "{}", file.0.display());
    }
    assert_eq!(two.content("store"), before);
    node.write(&step).unwrap().expect_committed();
    assert!(newest.exists());
    drop(socket);
    node.stop().unwrap();
    two.level();
}
