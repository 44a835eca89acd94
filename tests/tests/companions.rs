//! Companion files: what belongs to a node beside its database is in the backup, sealed, before any snapshot that is
//! newer, and comes back with a restore.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::Cli;
use lockstep_tests::workload::Workload;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// `backup-cli files list` of a node.
#[track_caller]
fn list(backed: &Backed) -> Value {
    let list = Cli::new(["files", "list", "--json", "--lightning-dir"]).arg(backed.network_dir());
    list.run().expect_success().json()
}

fn names(list: &Value) -> Vec<&str> {
    let files = list["files"].as_array().expect("files");
    files.iter().map(|file| file["name"].as_str().expect("a name")).collect()
}

/// `backup-cli files get` of a node, on stdout.
#[track_caller]
fn get(backed: &Backed, name: &str) -> String {
    let get = Cli::new(["files", "get", name, "--lightning-dir"]).arg(backed.network_dir());
    get.run().expect_success().stdout
}

fn write(backed: &Backed, name: &str, content: &str) {
    fs::write(backed.network_file(name), content).expect("write a file");
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    wait_until_or(what, is_so, String::new);
}

#[track_caller]
fn wait_until_or(what: &str, is_so: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < SOON, "{what} {}", otherwise());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// No file of the store has these bytes in it.
#[track_caller]
fn assert_not_in_the_clear(store: &Path, words: &str) {
    let hex: String = words.bytes().map(|byte| format!("{byte:02x}")).collect();
    for name in files_under(store) {
        let bytes = fs::read(store.join(&name)).expect("an object");
        for needle in [words.as_bytes(), hex.as_bytes()] {
            assert_eq!(memchr::memmem::find(&bytes, needle), None, "{name:?}");
        }
    }
}

#[test]
fn files_are_kept_from_the_beginning_and_come_back_with_the_node() {
    let backed = Backed::without_backup();
    write(&backed, "config", "alias=a-name-of-a-node\n");
    write(&backed, "client-key.pem", "a-private-certificate");
    fs::write(backed.dir().lightning_dir().join("config"), "network=regtest\n").unwrap();
    fs::create_dir(backed.network_dir().join("more")).unwrap();
    write(&backed, "more/notes", "what to do");
    let outside = backed.dir().path("outside.txt");
    fs::write(&outside, "from elsewhere").unwrap();
    let passphrase = backed.dir().path("passphrase");
    fs::write(&passphrase, "correct horse\n").unwrap();
    let init = backed.init().arg("--passphrase-file").arg(&passphrase).arg("--include-secret");
    let init = init.arg("--include").arg(backed.network_dir().join("more")).arg("--include");
    let said = init.arg(&outside).run().expect_success().stderr;
    assert!(said.contains("has the node's keys"), "a plain warning: {said}");

    let found = list(&backed);
    let outside = outside.to_str().unwrap();
    let mut wanted =
        vec![outside, "../config", "client-key.pem", "config", "hsm_secret", "more/notes"];
    wanted.sort_unstable();
    assert_eq!(names(&found), wanted);
    assert_not_in_the_clear(&backed.store(), "a-private-certificate");
    assert_not_in_the_clear(&backed.store(), "a-name-of-a-node");
    assert_eq!(get(&backed, "../config"), "network=regtest\n");

    let mut workload = Workload::seeded(31);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 5);
    write(&backed, "emergency.recover", "channels, as of now");
    fs::remove_file(backed.network_file("client-key.pem")).unwrap();
    wait_until("the new file is in the backup", || {
        names(&list(&backed)).contains(&"emergency.recover")
    });
    assert_eq!(get(&backed, "emergency.recover"), "channels, as of now");
    assert_eq!(get(&backed, "client-key.pem"), "a-private-certificate", "gone is not forgotten");
    assert!(node.logged("companion files sealed into the backup"));
    node.stop().unwrap();

    // The passphrase alone gives the whole node; what is there already stays as it is.
    let dest = backed.dir().path("new/regtest");
    fs::create_dir_all(&dest).unwrap();
    fs::write(dest.join("config"), "alias=other\n").unwrap();
    let restore = Cli::new(["restore", "--json", "--passphrase-file"]).arg(&passphrase);
    let report = restore.arg(backed.url()).arg(&dest).run().expect_success().json();
    let put = ["client-key.pem", "emergency.recover", "hsm_secret", "more/notes"];
    assert_eq!(report["files"], json!(put));
    assert_eq!(report["files_left"], json!(["../config", "config"]));
    assert_eq!(fs::read_to_string(dest.join("config")).unwrap(), "alias=other\n");
    let secret = |folder: &Path| fs::read(folder.join("hsm_secret")).unwrap();
    assert_eq!(secret(&dest), secret(&backed.network_dir()));
    assert!(!backed.dir().path("new/config").exists(), "nothing beside the directory");
    let lock: Value = serde_json::from_slice(&fs::read(dest.join("backup.lock")).unwrap()).unwrap();
    assert_eq!(lock["files"]["include_secret"], true, "it goes on as the old one did: {lock}");

    // One byte changed: it is damage, and named.
    let set = files_under(&backed.store().join("files")).pop().unwrap();
    let path = backed.store().join("files").join(&set);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let verify = Cli::new(["verify", "--lightning-dir"]).arg(&dest).run().expect_code(13);
    assert!(verify.stderr.contains(set.to_str().unwrap()), "{verify}");
}

#[test]
fn a_change_is_in_the_backup_before_a_snapshot_and_at_each_destination() {
    let backed = Backed::without_backup();
    let second = backed.dir().path("second");
    backed.init().arg(format!("file://{}", second.display())).run().expect_success();
    let mut workload = Workload::seeded(32);
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 20);
    let newest = |store: &Path| {
        let folder = store.join("files");
        folder.exists().then(|| files_under(&folder).pop()).flatten()
    };
    let snapshots = backed.store().join("snapshots");
    let snapshot = || snapshots.exists().then(|| files_under(&snapshots).pop()).flatten();
    for round in 0..2 {
        let before = snapshot();
        write(&backed, "emergency.recover", &format!("round {round}"));
        node.call("backup-compact", &json!({})).unwrap().result().unwrap();
        wait_until_or(
            "there is a snapshot",
            || node.logged(&format!("compaction {}: snapshot", round + 1)),
            || format!("{:?}", node.logs()),
        );
        assert_ne!(snapshot(), before);
        // No later than the snapshot: the file did not wait for the next look.
        assert_eq!(get(&backed, "emergency.recover"), format!("round {round}"));
        let changed = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        let made = changed(&snapshots.join(snapshot().unwrap()));
        let set = backed.store().join("files").join(newest(&backed.store()).unwrap());
        assert!(changed(&set) <= made, "the files come first");
        wait_until("both places have it", || newest(&second) == newest(&backed.store()));
        Backed::write(&mut node, &mut workload, 20);
    }
    node.stop().unwrap();
    let own = |store: &Path| fs::read(store.join("files").join(newest(store).unwrap())).unwrap();
    assert_eq!(own(&second), own(&backed.store()), "byte for byte");

    // A database that is ahead gets a snapshot: the files as they are now come before that, too.
    write(&backed, "emergency.recover", "before the gap");
    let alone = "INSERT OR REPLACE INTO vars (name, intval) VALUES ('alone', 1)";
    for _ in 0..2 {
        node.commit_unhooked(&lockstep_tests::Step::transaction([alone])).unwrap();
    }
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 1);
    assert_eq!(get(&backed, "emergency.recover"), "before the gap");
    backed.check(&node);
}

#[test]
fn what_cannot_be_kept_is_said_and_hsm_secret_only_where_it_is_meant() {
    let backed = Backed::without_backup();
    let secret = backed.init().arg("--include").arg(backed.network_file("hsm_secret"));
    let secret = secret.run().expect_code(1);
    assert!(secret.stderr.contains("--include-secret"), "{secret}");
    backed.init().arg("--include").arg("/does/not/exist").run().expect_code(1);
    assert!(!backed.store().exists(), "nothing was made");
    let large = backed.network_file("large");
    fs::write(&large, vec![b'x'; (4 << 20) + 1]).unwrap();
    let said = backed.init().arg("--include").arg(&large).run().expect_success().stderr;
    assert!(said.contains("'large' is not kept: it has 4194305 bytes"), "{said}");
    let text = Cli::new(["files", "list", "--lightning-dir"]).arg(backed.network_dir());
    assert!(text.run().expect_success().stdout.contains("no companion files are kept"));
    let missing = Cli::new(["files", "get", "config", "--lightning-dir"]).arg(backed.network_dir());
    let missing = missing.run().expect_code(1);
    assert!(missing.stderr.contains("keeps no file 'config'"), "{missing}");
}
