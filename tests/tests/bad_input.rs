//! Whatever is wrong with a call, a file, a folder or a command line: a clear error, the
//! right exit code, and nothing lost.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lockstep_tests::backed::{Backed, files_under, reason_not_to_go_on};
use lockstep_tests::binaries::{Cli, Output, backup_cli};
use lockstep_tests::sim::{
    Answer, Crash, CrashPoint, Node, Outcome, Reply, RpcServer, SimError, Standing,
};
use lockstep_tests::testdir::{Mount, copy_dir};
use lockstep_tests::workload::{Workload, WorkloadConfig};
use lockstep_tests::{Batch, Step, oracle};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A running node with a little history.
fn running(seed: u64) -> (Backed, Node, Workload) {
    let backed = Backed::fresh();
    let (node, workload) = with_history(&backed, seed);
    (backed, node, workload)
}

fn with_history(backed: &Backed, seed: u64) -> (Node, Workload) {
    let mut workload = Workload::new(WorkloadConfig::seeded(seed).lean());
    let mut node = backed.running(&mut workload);
    Backed::write(&mut node, &mut workload, 10);
    (node, workload)
}

/// The node goes on, and its backup is whole.
#[track_caller]
fn assert_goes_on(backed: &Backed, node: &mut Node, workload: &mut Workload) {
    if node.is_running() {
        node.kill().unwrap();
    }
    workload.restarted();
    node.start().unwrap();
    Backed::write(node, workload, 2);
    assert_eq!(backed.check(node), Standing::Committed);
}

/// An error for people: what is wrong, and what to do.
#[track_caller]
fn assert_says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output}");
    assert!(output.stderr.starts_with("error: "), "{output}");
    assert!(output.stderr.contains("\nhint: "), "{output}");
    for word in words {
        assert!(output.stderr.contains(word), "'{word}' is not said: {output}");
    }
}

fn request(id: &str, params: &str) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":\"{id}\",\"method\":\"db_write\",\"params\":{params}}}\n\n"
    )
}

// Calls that lightningd should not make.

#[test]
fn parameters_that_are_not_understood_are_refused() {
    let (backed, mut node, mut workload) = running(1);
    let version = node.ledger().committed_version().unwrap() + 1;
    let delete = "DELETE FROM vars";
    let not_understood = "db_write that is not understood";
    let cases = [
        (format!("{{\"writes\":[\"{delete}\"]}}"), not_understood),
        (format!("{{\"data_version\":{version}}}"), not_understood),
        (format!("{{\"data_version\":\"{version}\",\"writes\":[\"{delete}\"]}}"), not_understood),
        (format!("{{\"data_version\":{version}.5,\"writes\":[\"{delete}\"]}}"), not_understood),
        (format!("{{\"data_version\":-1,\"writes\":[\"{delete}\"]}}"), not_understood),
        (format!("{{\"data_version\":4294967296,\"writes\":[\"{delete}\"]}}"), not_understood),
        (format!("{{\"data_version\":{version},\"writes\":\"{delete}\"}}"), not_understood),
        (format!("{{\"data_version\":{version},\"writes\":[1,2]}}"), not_understood),
        (format!("{{\"data_version\":{version},\"writes\":[null]}}"), not_understood),
        (format!("{{\"data_version\":{version},\"writes\":[[\"{delete}\"]]}}"), not_understood),
        (format!("{{\"data_version\":{version},\"writes\":[\"a \\ud800 b\"]}}"), not_understood),
        (
            format!(
                "{{\"data_version\":{version},\"data_version\":{version},\"writes\":[\"{delete}\"]}}"
            ),
            not_understood,
        ),
        (format!("{{\"data_version\":{version},\"writes\":[\"a \\u0000 b\"]}}"), "NUL"),
        (format!("{{\"data_version\":{version},\"writes\":[]}}"), "PostgreSQL"),
        ("null".to_owned(), not_understood),
        ("[]".to_owned(), not_understood),
        ("7".to_owned(), not_understood),
        ("{}".to_owned(), not_understood),
    ];
    for (params, words) in cases {
        node.send_raw("cln:db_write#x", request("cln:db_write#x", &params)).unwrap();
        let reply = node.reply("cln:db_write#x", TIMEOUT).unwrap();
        let Reply::Error(error) = &reply else { panic!("{params}: {reply:?}") };
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{params}: {message}");
        assert!(message.contains("hint: "), "{params}: {message}");
        assert!(!message.contains(delete), "a statement shows: {message}");
        assert_goes_on(&backed, &mut node, &mut workload);
    }
}

#[test]
fn a_call_that_cannot_be_read_is_answered_or_ends_the_plugin() {
    // lightningd waits in the hook for as long as it takes: silence freezes the node.
    let (backed, mut node, mut workload) = running(2);
    let version = node.ledger().committed_version().unwrap() + 1;
    let params = format!("{{\"data_version\":{version},\"writes\":[\"DELETE FROM vars\"]}}");
    let whole = request("cln:db_write#x", &params);
    let mut not_utf8 = whole.clone().into_bytes();
    let at = whole.find("FROM").unwrap();
    not_utf8[at] = 0xff;
    let deep = format!("{{\"data_version\":1,\"writes\":{}}}", "[".repeat(100_000));
    let cases: [Vec<u8>; 4] = [
        not_utf8,
        whole.replace("]}}", "]}").into_bytes(),
        whole.replace("\"writes\"", "\"writes").into_bytes(),
        request("cln:db_write#x", &deep).into_bytes(),
    ];
    for bytes in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
        node.send_raw("cln:db_write#x", bytes).unwrap();
        match node.reply("cln:db_write#x", Duration::from_secs(10)) {
            Ok(Reply::Error(error)) => {
                let message = error["message"].as_str().unwrap();
                assert!(!message.contains("FROM"), "a statement shows: {message}");
            }
            Err(SimError::Closed { stderr }) => {
                assert!(!stderr.contains("panicked"), "{shown}: {stderr}");
                assert!(node.logged("malformed message"), "{shown}");
            }
            other => panic!("{shown}: {other:?}"),
        }
        let logs = node.logs();
        let said = logs.iter().find(|line| line.message.contains("DELETE FROM"));
        assert!(said.is_none(), "a statement shows: {said:?}");
        assert_goes_on(&backed, &mut node, &mut workload);
    }
}

#[test]
fn after_a_message_that_is_not_understood_the_next_write_is_refused() {
    let (backed, mut node, mut workload) = running(30);
    let cases: [&[u8]; 4] = [b"hello\n\n", b"[]\n\n", b"\0\0\0\0\n\n", b"{\"id\":1\n\n"];
    for bytes in cases {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        node.send_raw("x", bytes).unwrap();
        match node.write(&workload.propose()).unwrap() {
            Outcome::Committed { .. } => panic!("{shown}: what else was not understood?"),
            Outcome::Refused { message } => {
                assert!(message.contains("malformed message"), "{shown}: {message}");
            }
            Outcome::PluginDied { stderr, .. } => assert!(!stderr.contains("panicked"), "{stderr}"),
        }
        workload.abandon();
        assert!(node.logged("malformed message"), "{shown}");
        assert_eq!(backed.check(&node), Standing::Committed);
        assert_goes_on(&backed, &mut node, &mut workload);
    }
}

#[test]
fn fields_that_a_newer_lightningd_adds_are_no_fault() {
    let (backed, mut node, mut workload) = running(3);
    let batch = node.begin(&workload.next().unwrap()).unwrap();
    let mut params = serde_json::to_value(&batch).unwrap();
    params["something_new"] = json!({"a": [1, 2, {"b": null}]});
    node.send_raw("x", request("x", &params.to_string())).unwrap();
    let answer = node.answer("x", TIMEOUT).unwrap();
    node.settle(answer).unwrap().expect_committed();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_batch_of_64_mib_is_stored_and_restored() {
    let (backed, mut node, mut workload) = running(4);
    let mut rng = fastrand::Rng::with_seed(4);
    let mut hex = |bytes: usize| -> String {
        (0..bytes / 8).map(|_| format!("{:016x}", rng.u64(..))).collect()
    };
    let one = format!("INSERT INTO datastore VALUES (x'01', x'{}', 0)", hex(32 << 20));
    assert!(one.len() > 64 << 20);
    node.write(&Step::transaction([one])).unwrap().expect_committed();
    let many = (0..64).map(|n| {
        format!("INSERT INTO datastore VALUES (x'02{n:02x}', '{}', 0)", hex(1 << 9).repeat(1 << 10))
    });
    let many: Vec<_> = many.collect();
    assert!(many.iter().map(String::len).sum::<usize>() > 64 << 20);
    node.write(&Step::Transaction(many)).unwrap().expect_committed();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_batch_of_200_000_statements_is_stored_and_restored() {
    let (backed, mut node, mut workload) = running(5);
    let inserts = (0..200_000)
        .map(|n| format!("INSERT INTO datastore VALUES (x'{n:08x}', 'it''s {n}', {n})"));
    node.write(&Step::transaction(inserts)).unwrap().expect_committed();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn statements_with_every_kind_of_text_are_restored() {
    let (backed, mut node, mut workload) = running(6);
    let texts = [
        "'\u{1f980}\u{10ffff}\u{2028}\u{feff}\u{7f}\u{1}'",
        "'a''b\nc\rd\te\\f\"g`h[i]j;k--l/*m*/'",
        "x''",
        "X'00fF'",
        "-9223372036854775808",
        "1e308",
        "-0.0",
        "0x7fffffffffffffff",
        "'now'",
        "NULL",
        "''",
    ];
    let inserts = texts.iter().enumerate().map(|(n, text)| {
        format!("INSERT INTO datastore VALUES (x'03{n:02x}', {text}, {n}) /* ; ' */ -- \u{fe}")
    });
    node.write(&Step::transaction(inserts)).unwrap().expect_committed();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_call_during_an_open_one_is_answered_after_it() {
    let (backed, mut node, mut workload) = running(7);
    let mut ids = Vec::new();
    let mut bytes = Vec::new();
    for number in 0..20 {
        // Committed first, so that the simulator can count; the plugin cannot know.
        let step = workload.next().unwrap();
        let before = node.ledger().committed_version().unwrap();
        let batch = node.begin(&step).unwrap();
        assert_eq!(batch.data_version, before + u32::from(!step.is_pragma()));
        node.database().unwrap().commit().unwrap();
        node.settle(Answer::Continue).unwrap().expect_committed();
        let id = format!("cln:db_write#pipelined{number}");
        bytes.extend(request(&id, &serde_json::to_string(&batch).unwrap()).into_bytes());
        ids.push(id);
    }
    for id in &ids {
        node.send_raw(id, Vec::new()).unwrap();
    }
    node.send_raw(&ids[0], bytes).unwrap();
    for id in &ids {
        let reply = node.reply(id, TIMEOUT).unwrap();
        assert_eq!(reply.result().unwrap()["result"], "continue");
    }
    assert_eq!(backed.check(&node), Standing::Committed);
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn versions_that_cannot_be_are_refused_and_leave_the_backup_whole() {
    for (offset, words) in [(-3, "went backward"), (5, "does not follow"), (i32::MIN, "hint")] {
        let (backed, mut node, mut workload) = running(8);
        let version = node.ledger().committed_version().unwrap();
        let batch = Batch {
            data_version: version.wrapping_add_signed(offset),
            writes: vec!["DELETE FROM vars".into()],
        };
        let answer = node.ask_raw(&batch).unwrap();
        let Answer::Refused { message } = answer else { panic!("{offset}: {answer:?}") };
        assert!(message.contains(words), "{message}");
        assert_eq!(backed.check(&node), Standing::Committed);
        assert_goes_on(&backed, &mut node, &mut workload);
    }
}

#[test]
fn a_call_before_getmanifest_is_refused() {
    let backed = Backed::fresh();
    let call = request("1", "{\"data_version\":1,\"writes\":[\"CREATE TABLE t (a)\"]}");
    let plugin = Cli::program(lockstep_tests::binaries::plugin(), [] as [&str; 0]);
    let output = plugin.current_dir(backed.network_dir()).stdin(call).run();
    assert!(output.stdout.contains("db_write came before getmanifest"), "{output}");
    assert!(!output.stdout.contains("continue"), "{output}");
    assert!(!output.stderr.contains("panicked"), "{output}");
}

// Destinations.

#[test]
fn urls_that_name_no_folder_are_refused() {
    let backed = Backed::without_backup();
    let before = files_under(&backed.network_dir());
    for (url, words) in [
        ("ftp://host/path", "'ftp://' is not a kind of destination"),
        ("nonsense://", "'nonsense://' is not a kind of destination"),
        ("FILE:///tmp/x", "'FILE://' is not a kind of destination"),
        ("store", "'store' is not an absolute path"),
        ("./store", "is not an absolute path"),
        ("file://store", "is not an absolute path"),
        ("", "is not an absolute path"),
    ] {
        let init = Cli::new(["init", "--lightning-dir"]).arg(backed.network_dir()).arg(url);
        assert_says(&init.current_dir(backed.dir().path("")).run(), 1, &[words]);
        let restore = backup_cli(["restore", url, "/nonexistent/x.sqlite3"]);
        assert_says(&restore, 1, &[words]);
    }
    assert_eq!(files_under(&backed.network_dir()), before);
    assert!(!backed.store().exists() && !backed.dir().path("FILE:").exists());

    // The same in a lock file.
    let (backed, mut node, mut workload) = running(9);
    node.kill().unwrap();
    let lock = fs::read(backed.network_file("backup.lock")).unwrap();
    let elsewhere = json!([{"name": "primary", "url": "ftp://host/path"}]);
    backed.set_in_lock("destinations", elsewhere);
    assert!(reason_not_to_go_on(&mut node).contains("'ftp://' is not a kind of destination"));
    assert_says(&backed.cli("status"), 1, &["'ftp://' is not a kind of destination"]);
    fs::write(backed.network_file("backup.lock"), lock).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_destination_that_becomes_read_only_stops_the_node_uncommitted() {
    let test = "a_destination_that_becomes_read_only_stops_the_node_uncommitted";
    let backed = Backed::without_backup();
    let Some(mount) = Mount::tmpfs(&backed.store(), 64 << 20, test) else { return };
    mount.remount("ro");
    assert_says(&backed.init().run(), 1, &["ead-only file system", "make "]);
    assert!(!backed.network_file("backup.key").exists());
    mount.remount("rw");
    backed.init().run().expect_success();
    backed.set_in_lock("stall_timeout_s", json!(3));
    let (mut node, mut workload) = with_history(&backed, 10);
    let committed = node.ledger().committed_version();

    // A file that is open for writing keeps a file system writable: this is the first call of a
    // session, and a node that runs meets the same when a segment is full.
    node.kill().unwrap();
    mount.remount("ro");
    node.start().unwrap();
    let message = node.write(&workload.propose()).unwrap().expect_refused();
    workload.abandon();
    for words in ["ead-only file system", "hint: make ", "writable"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(node.ledger().committed_version(), committed);
    assert!(node.logged("trying again for 3 s"));
    assert_eq!(backed.check(&node), Standing::Committed, "it can still be read");
    mount.remount("rw");
    assert_goes_on(&backed, &mut node, &mut workload);
    node.kill().unwrap();
}

#[test]
fn a_full_destination_stops_the_node_uncommitted_and_room_lets_it_go_on() {
    let test = "a_full_destination_stops_the_node_uncommitted_and_room_lets_it_go_on";
    let backed = Backed::without_backup();
    let Some(mount) = Mount::tmpfs(&backed.store(), 2 << 20, test) else { return };
    backed.init().run().expect_success();
    backed.set_in_lock("stall_timeout_s", json!(3));
    let (mut node, mut workload) = with_history(&backed, 11);
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..3 {
        let mut number = 0;
        let message = loop {
            number += 1;
            let noise: String = (0..4_000).map(|_| format!("{:016x}", rng.u64(..))).collect();
            let sql = format!(
                "INSERT OR REPLACE INTO datastore VALUES (x'04{:04x}', x'{noise}', 0)",
                rng.u8(..4)
            );
            match node.write(&Step::transaction([sql])).unwrap() {
                Outcome::Committed { .. } => assert!(number < 1_000, "it is never full"),
                other => break other.expect_refused(),
            }
        };
        for words in ["No space left on device", "hint: free space on "] {
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(message.matches("hint: ").count(), 1, "{message}");
        backed.check(&node);
        if round == 0 {
            // Still full: the first call of the next session is refused in the same way.
            node.start().unwrap();
            let step = Step::transaction(["DELETE FROM datastore WHERE key = x'0400'"]);
            match node.write(&step).unwrap() {
                Outcome::Committed { .. } => node.kill().unwrap(),
                other => assert!(other.expect_refused().contains("No space left on device")),
            }
            backed.check(&node);
        }
        mount.remount(&format!("size={}", (round + 2) * (2 << 20)));
        assert_goes_on(&backed, &mut node, &mut workload);
    }
    node.kill().unwrap();
}

#[test]
fn a_full_destination_that_gets_room_in_time_is_waited_for() {
    let test = "a_full_destination_that_gets_room_in_time_is_waited_for";
    let backed = Backed::without_backup();
    let Some(mount) = Mount::tmpfs(&backed.store(), 2 << 20, test) else { return };
    backed.init().run().expect_success();
    backed.set_in_lock("stall_timeout_s", json!(30));
    let (mut node, mut workload) = with_history(&backed, 12);
    let mut rng = fastrand::Rng::with_seed(12);
    let blob = |rng: &mut fastrand::Rng| {
        let noise: String = (0..32_000).map(|_| format!("{:016x}", rng.u64(..))).collect();
        Step::transaction([format!(
            "INSERT OR REPLACE INTO datastore VALUES (x'05', x'{noise}', 0)"
        )])
    };
    thread::scope(|scope| {
        let (mount, store) = (&mount, backed.store());
        scope.spawn(move || {
            // Once nothing comes any more, it is full.
            let size = || -> u64 {
                let files = files_under(&store).into_iter();
                files.map(|file| fs::metadata(store.join(file)).map_or(0, |it| it.len())).sum()
            };
            let mut last = (0, Instant::now());
            while last.0 < 1 << 20 || last.1.elapsed() < Duration::from_secs(2) {
                thread::sleep(Duration::from_millis(50));
                let now = size();
                if now != last.0 {
                    last = (now, Instant::now());
                }
            }
            mount.remount(&format!("size={}", 64 << 20));
        });
        for _ in 0..30 {
            node.write(&blob(&mut rng)).unwrap().expect_committed();
        }
    });
    assert!(node.logged("trying again for 30 s"), "it was never full");
    assert!(node.logged("answers again"));
    assert_eq!(backed.check(&node), Standing::Committed);
    assert_goes_on(&backed, &mut node, &mut workload);
    node.kill().unwrap();
}

#[test]
fn a_full_destination_of_init_leaves_nothing_that_looks_like_a_backup() {
    let test = "a_full_destination_of_init_leaves_nothing_that_looks_like_a_backup";
    let (source, mut node, _) = running(13);
    node.kill().unwrap();
    let backed = Backed::without_backup();
    let Some(mount) = Mount::tmpfs(&backed.store(), 12 << 10, test) else { return };
    fs::copy(node.database_path(), backed.config().database_path()).unwrap();
    assert_says(&backed.init().run(), 1, &["No space left on device", "hint: free space on "]);
    for name in ["backup.lock", "backup.key", "backup.copy.tmp"] {
        assert!(!backed.network_file(name).exists(), "{name} is left");
    }
    assert!(!backed.store().join("lockstep.json").exists());
    drop(mount);
    backed.init().run().expect_success();
    backed.check_same_as(&node.database_path());
    drop(source);
}

#[test]
fn a_secret_of_another_node_in_the_directory_is_refused_before_anything_is_changed() {
    let (backed, mut node, _) = running(41);
    node.stop().unwrap();
    let dest = backed.dir().path("early/regtest");
    fs::create_dir_all(&dest).unwrap();
    fs::write(dest.join("hsm_secret"), [9; 32]).unwrap();
    let before = files_under(&backed.store());
    let restore = || Cli::new(["restore", &backed.url()]).arg(&dest);
    let given = || restore().arg("--hsm-secret").arg(backed.network_file("hsm_secret")).run();
    assert_says(&given(), 12, &["hsm_secret' is another node's", "move it aside"]);
    let tried = "what was tried is the node's hsm_secret in";
    assert_says(&restore().run(), 12, &["wrong key for", tried, "--words"]);
    assert_eq!(files_under(&backed.store()), before);
    fs::remove_file(dest.join("hsm_secret")).unwrap();
    let said = given().expect_success().stdout;
    assert!(
        said.contains("'important-plugin=/") && said.contains("start lightningd here"),
        "{said}"
    );
}

#[test]
fn a_folder_without_its_marker_is_a_mount_that_is_missing() {
    let (backed, mut node, mut workload) = running(14);
    node.kill().unwrap();
    let away = backed.dir().path("away");
    fs::rename(backed.store(), &away).unwrap();
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("folder is not there"), "{reason}");
    assert_says(&backed.cli("status"), 1, &["folder is not there", "mount what belongs at"]);
    let dest = backed.new_dest();
    assert_says(&backed.restore(&dest).run(), 10, &["no backup in", "folder is not there"]);
    // Whoever restores knows the disk, but not always the folder's name.
    let above = backed.restore_of(&backed.dir().file_url(""), &dest).run();
    let further = format!("look one folder further: {}", backed.dir().file_url("away"));
    assert_says(&above, 10, &["no backup in", &further]);

    fs::create_dir(backed.store()).unwrap();
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("is the disk mounted?"), "{reason}");
    assert!(reason.contains("hint: mount what belongs at"), "{reason}");
    assert_says(&backed.restore(&dest).run(), 10, &["no backup in", "there is no lockstep.json"]);
    assert!(files_under(&backed.store()).is_empty(), "nothing was written into it");
    assert!(!dest.exists());

    fs::remove_dir(backed.store()).unwrap();
    fs::rename(&away, backed.store()).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_backup_that_is_deleted_under_a_running_node_is_noticed() {
    // Of what is acknowledged from now on nothing could be restored.
    let (backed, mut node, mut workload) = running(15);
    backed.set_in_lock("stall_timeout_s", json!(3));
    node.kill().unwrap();
    workload.restarted();
    node.start().unwrap();
    Backed::write(&mut node, &mut workload, 3);
    fs::remove_dir_all(backed.store()).unwrap();
    let outcome = node.write(&workload.next().unwrap()).unwrap();
    let message = match outcome {
        Outcome::Refused { message } => message,
        other => panic!("the folder is gone, and the node hears: {other:?}"),
    };
    assert!(message.contains("hint: "), "{message}");
}

#[test]
fn another_nodes_backup_in_the_folder_is_refused_by_both_programs() {
    let (backed, mut node, mut workload) = running(16);
    node.kill().unwrap();
    let other = Backed::fresh();
    let away = backed.dir().path("away");
    fs::rename(backed.store(), &away).unwrap();
    copy_dir(&other.store(), &backed.store()).unwrap();
    let before = files_under(&backed.store());
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("'lockstep.json' belongs to store"), "{reason}");
    for verb in ["status", "verify", "list"] {
        assert_says(&backed.cli(verb), 13, &["'lockstep.json' belongs to store"]);
    }
    assert_eq!(files_under(&backed.store()), before);
    fs::remove_dir_all(backed.store()).unwrap();
    fs::rename(&away, backed.store()).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

// Files in the network directory.

#[test]
fn a_lock_file_of_the_python_plugin_is_known_by_both_programs() {
    let backed = Backed::without_backup();
    let lock = r#"{"backend_url": "file:///x.bkp"}"#;
    fs::write(backed.network_file("backup.lock"), lock).unwrap();
    let mut node = Node::new(backed.config());
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("belongs to the Python plugin 'backup'"), "{reason}");
    assert!(reason.contains("backup-cli"), "{reason}");
    fs::remove_file(node.database_path()).unwrap();
    let words = ["belongs to the Python plugin 'backup'", "backup-cli "];
    assert_says(&backed.init().run(), 1, &words);
    for verb in ["status", "verify", "list"] {
        assert_says(&backed.cli(verb), 1, &words);
    }
    let restored = backup_cli(["restore", &backed.url(), backed.network_dir().to_str().unwrap()]);
    assert_ne!(restored.code, Some(0), "{restored}");
    assert_eq!(fs::read_to_string(backed.network_file("backup.lock")).unwrap(), lock);
    assert!(!backed.store().exists());
}

#[test]
fn a_lock_file_that_is_missing_or_malformed_is_named() {
    let (backed, mut node, mut workload) = running(17);
    node.kill().unwrap();
    let path = backed.network_file("backup.lock");
    let lock = fs::read_to_string(&path).unwrap();
    let (version, words) = ("\"version\": 1", "has format version 2, this program knows 1");
    assert!(lock.contains(version), "{lock}");
    let cases = [
        (lock.replace(version, "\"version\": 2"), words, 14),
        (lock[..lock.len() / 2].to_owned(), "is not readable", 1),
        (String::new(), "is not readable", 1),
        ("{}".to_owned(), "is not a lock file of lockstep", 1),
        ("[1, 2]".to_owned(), "is not a lock file of lockstep", 1),
        (lock.replace("\"store_id\"", "\"store\""), "missing field `store_id`", 1),
        (lock.replace("\"destinations\"", "\"places\""), "missing field `destinations`", 1),
    ];
    for (text, words, code) in cases {
        fs::write(&path, text).unwrap();
        let reason = reason_not_to_go_on(&mut node);
        assert!(reason.contains("backup.lock"), "{reason}");
        assert!(reason.contains(words), "{words}: {reason}");
        assert_says(&backed.cli("status"), code, &[words]);
    }
    set_in_lock_to(&backed, &lock, "destinations", json!([]));
    assert!(reason_not_to_go_on(&mut node).contains("no destination is 'sync'"));
    fs::remove_file(&path).unwrap();
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("there is no backup.lock in"), "{reason}");
    assert!(reason.contains("backup-cli init"), "{reason}");
    assert_says(&backed.cli("status"), 1, &["there is no backup.lock in"]);
    fs::write(&path, &lock).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

fn set_in_lock_to(backed: &Backed, lock: &str, field: &str, value: Value) {
    fs::write(backed.network_file("backup.lock"), lock).unwrap();
    backed.set_in_lock(field, value);
}

#[test]
fn a_missing_key_file_is_named_with_a_way_to_get_it_back() {
    let (backed, mut node, mut workload) = running(18);
    node.kill().unwrap();
    let (path, away) = (backed.network_file("backup.key"), backed.dir().path("away"));
    fs::rename(&path, &away).unwrap();
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("there is no backup.key in"), "{reason}");
    // The backup is there and the node's own secret opens it: a new one is no answer, and
    // 'backup-cli init' would refuse.
    let init = backed.init().run();
    assert_ne!(init.code, Some(0), "{init}");
    assert!(!reason.contains("backup-cli init"), "init does not help here: {reason}");
    let output = backed.cli("status");
    assert_ne!(output.code, Some(0), "{output}");
    assert!(output.stderr.contains("backup.key"), "{output}");
    assert!(output.stderr.contains("hint: "), "{output}");
    fs::rename(&away, &path).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_key_file_that_others_can_read_is_refused() {
    let (backed, mut node, mut workload) = running(19);
    node.kill().unwrap();
    let path = backed.network_file("backup.key");
    for mode in [0o444, 0o440, 0o644, 0o404] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let reason = reason_not_to_go_on(&mut node);
        assert!(reason.contains(&format!("can be read by others (mode {mode:o})")), "{reason}");
        assert!(reason.contains("chmod 0400"), "{reason}");
        let words = ["can be read by others", "chmod 0400"];
        assert_says(&backed.cli("status"), 1, &words);
        assert_says(&backed.restore(&backed.new_dest()).run(), 1, &words);
    }
    fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_key_file_that_is_none_or_another_stores_is_refused() {
    let (backed, mut node, mut workload) = running(20);
    node.kill().unwrap();
    let other = Backed::fresh();
    let path = backed.network_file("backup.key");
    let key = fs::read(&path).unwrap();
    let put = |bytes: &[u8]| {
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    };
    for bytes in [&b""[..], b"{}", b"\xff\xfe", &key[..key.len() - 20]] {
        put(bytes);
        let reason = reason_not_to_go_on(&mut node);
        assert!(reason.contains("not a key ring of lockstep"), "{reason}");
        let output = backed.restore(&backed.new_dest()).run();
        assert_says(&output, 1, &["backup.key' is not a key ring of lockstep"]);
    }
    put(&fs::read(other.network_file("backup.key")).unwrap());
    let reason = reason_not_to_go_on(&mut node);
    assert!(reason.contains("'backup.key' belongs to store"), "{reason}");
    put(&key);
    assert_goes_on(&backed, &mut node, &mut workload);
}

// Databases that do not go with their backup.

#[test]
fn a_database_that_is_ahead_gets_a_snapshot_and_goes_on() {
    let (backed, mut node, mut workload) = running(21);
    for round in 0..3 {
        node.stop().unwrap();
        // What lightningd commits after it has ended its plugins.
        for number in 0..=round {
            let sql =
                format!("INSERT OR REPLACE INTO vars (name, intval) VALUES ('late', {number})");
            node.commit_unhooked(&Step::transaction([sql])).unwrap();
        }
        let status = backed.cli("status").expect_success();
        assert!(status.stdout.contains("behind"), "{status}");
        assert!(status.stdout.contains("the next start takes a snapshot"), "{status}");
        node.start().unwrap();
        Backed::write(&mut node, &mut workload, 3);
        assert_eq!(backed.check(&node), Standing::Committed);
    }
    assert!(node.logged("is ahead of its backup"));
    let logs = node.logs();
    let begun = logs.iter().filter(|line| line.message.contains("begins with a snapshot"));
    assert_eq!(begun.count(), 3);
    let verified = backed.cli("verify").expect_success();
    assert_eq!(verified.stdout.matches(" and a snapshot").count(), 3, "{verified}");
    assert_eq!(verified.stdout.lines().filter(|line| line.starts_with("generation ")).count(), 4);
    // No copy of the database stays behind.
    let left = files_under(&backed.network_dir());
    assert!(!left.iter().any(|file| file.to_str().unwrap().contains("tmp")), "{left:?}");
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_database_that_is_behind_is_refused_and_both_are_kept() {
    let (backed, mut node, mut workload) = running(22);
    let older = backed.dir().path("older");
    node.oracle(&older).unwrap();
    Backed::write(&mut node, &mut workload, 5);
    node.stop().unwrap();
    let newest = backed.dir().path("newest");
    node.oracle(&newest).unwrap();
    node.replace_database(&older).unwrap();
    let (database, store) = (fs::read(node.database_path()).unwrap(), files_under(&backed.store()));
    let reason = reason_not_to_go_on(&mut node);
    for words in ["data_version went backward", "older than its backup", "backup-cli restore"] {
        assert!(reason.contains(words), "{reason}");
    }
    assert_eq!(fs::read(node.database_path()).unwrap(), database);
    assert_eq!(files_under(&backed.store()), store);
    backed.check_same_as(&newest);
    let status = backed.cli("status").expect_success();
    assert!(status.stdout.contains("older than its backup"), "{status}");
    node.replace_database(&newest).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_database_that_is_gone_is_never_started_empty() {
    let (backed, mut node, mut workload) = running(23);
    node.stop().unwrap();
    let away = backed.dir().path("away");
    fs::rename(node.database_path(), &away).unwrap();
    for empty_file in [false, true] {
        let _ = fs::remove_file(node.database_path());
        if empty_file {
            fs::write(node.database_path(), "").unwrap();
        }
        let reason = reason_not_to_go_on(&mut node);
        for words in ["there is no database at", "do not start an empty node", "backup-cli restore"]
        {
            assert!(reason.contains(words), "{reason}");
        }
        assert_eq!(fs::metadata(node.database_path()).unwrap().len(), 0, "nothing was committed");
    }
    let text = "this is no database, but a text of some length".repeat(40);
    fs::write(node.database_path(), &text).unwrap();
    node.start().unwrap_err();
    assert!(node.logged("damaged or no SQLite database"), "{:?}", node.logs());
    assert_eq!(fs::read_to_string(node.database_path()).unwrap(), text);
    fs::rename(&away, node.database_path()).unwrap();
    assert_goes_on(&backed, &mut node, &mut workload);
}

// Restores and inits where something is.

#[test]
fn a_restore_never_touches_a_database_that_is_there() {
    let (backed, mut node, _) = running(24);
    node.stop().unwrap();
    for suffix in ["", "-journal", "-wal", "-shm"] {
        for directory in [false, true] {
            let folder = backed.dir().make_dir(format!("dest{suffix}{directory}/regtest"));
            let database = folder.join("lightningd.sqlite3");
            let taken = folder.join(format!("lightningd.sqlite3{suffix}"));
            fs::write(&taken, "precious").unwrap();
            let dest = if directory { &folder } else { &database };
            for claim in [false, true] {
                let args = ["restore", &backed.url(), dest.to_str().unwrap(), "--key-file"];
                let restore = Cli::new(args).arg(backed.network_file("backup.key"));
                let restore = if claim { restore } else { restore.arg("--no-claim") };
                let output = restore.run();
                assert_says(&output, 1, &["already exists", "nothing was changed"]);
                assert!(output.stderr.contains(taken.to_str().unwrap()), "{output}");
            }
            assert_eq!(fs::read_to_string(&taken).unwrap(), "precious");
            assert_eq!(files_under(&folder).len(), 1);
        }
    }
    // A dangling link is in the way as well.
    let link = backed.dir().path("link.sqlite3");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    assert_says(&backed.restore(&link).run(), 1, &["already exists"]);
    // Nobody was shut out by a restore that did not come about.
    node.start().unwrap();
    node.write(&Step::transaction(["DELETE FROM forwards"])).unwrap().expect_committed();
}

#[test]
fn neither_restore_nor_init_touches_the_directory_of_a_running_node() {
    let (backed, mut node, _) = running(25);
    node.stop().unwrap();
    let other = Backed::without_backup();
    let server = RpcServer::bind(&other.network_dir(), []).unwrap();
    let before = files_under(&other.network_dir());
    let words = ["lightningd is running in", "stop it first"];
    assert_says(&backed.restore(&other.network_dir()).run(), 1, &words);
    assert_says(&other.init().run(), 1, &words);
    assert_eq!(files_under(&other.network_dir()), before);
    assert!(!other.store().exists());
    drop(server);
    backed.restore(&other.network_dir()).run().expect_success();
    oracle::assert_same(&node.database_path(), &other.network_file("lightningd.sqlite3"));
}

#[test]
fn init_refuses_a_place_in_use() {
    let (backed, mut node, mut workload) = running(26);
    node.kill().unwrap();
    let (store, network) = (files_under(&backed.store()), files_under(&backed.network_dir()));
    // The same node again, and another node.
    assert_says(&backed.init().run(), 1, &["this node has a backup already", "backup-cli status"]);
    let again = Cli::new(["init", "--lightning-dir"]).arg(backed.network_dir());
    let again = again.arg(backed.dir().path("another-store")).run();
    assert_says(&again, 1, &["this node has a backup already"]);
    assert!(!backed.dir().path("another-store").exists());
    let other = Backed::without_backup();
    let init = || Cli::new(["init", "--lightning-dir"]).arg(other.network_dir());
    assert_says(&init().arg(backed.url()).run(), 1, &["is not empty", "choose an empty folder"]);
    let used = other.dir().make_dir("used");
    fs::write(used.join("holiday.jpg"), "precious").unwrap();
    assert_says(&init().arg(&used).run(), 1, &["is not empty"]);
    let file = other.dir().path("file");
    fs::write(&file, "precious").unwrap();
    assert_says(&init().arg(&file).run(), 1, &["Not a directory"]);
    assert_says(&init().arg(other.dir().path("no/parent")).run(), 1, &["No such file"]);
    assert!(
        !other.network_file("backup.key").exists() && !other.network_file("backup.lock").exists()
    );
    assert_eq!(files_under(&backed.store()), store);
    assert_eq!(files_under(&backed.network_dir()), network);
    assert_goes_on(&backed, &mut node, &mut workload);
}

#[test]
fn a_node_with_a_postgres_wallet_is_told_what_to_use_instead() {
    let backed = Backed::without_backup();
    fs::write(backed.dir().path("lightning/config"), "wallet=postgres://u:secret@h/db\n").unwrap();
    let output = backed.init().run();
    assert_says(&output, 1, &["PostgreSQL", "replication"]);
    assert!(!output.stderr.contains("secret"), "{output}");
    assert!(!backed.store().exists() && !backed.network_file("backup.key").exists());
}

// Command lines.

#[test]
fn command_lines_that_make_no_sense_are_usage_errors() {
    for args in [
        &["restore"][..],
        &["nonsense"],
        &[],
        &["restore", "--no-such-option", "/a", "/b"],
        &["status"],
        &["init", "/a"],
        &["restore", "/a", "/b.sqlite3", "--words", "--key-file", "/c"],
    ] {
        let output = backup_cli(args);
        assert_eq!(output.code, Some(2), "{args:?}: {output}");
        assert!(output.stdout.is_empty(), "{args:?}: {output}");
    }
    for args in [&["--help"][..], &["--version"], &["restore", "--help"]] {
        backup_cli(args).expect_success();
    }
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let (backed, mut node, _) = running(27);
    node.kill().unwrap();
    let fails = |args: &[&str], code: i32, name: &str| {
        let output = Cli::new(args).arg("--json").run().expect_code(code);
        let error: Value = serde_json::from_str(output.stderr.trim_end()).expect("one JSON line");
        assert_eq!(error["kind"], "error");
        assert_eq!(error["code"], code);
        assert_eq!(error["name"], name);
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        assert!(error["hint"].is_string(), "{error}");
        assert!(output.stdout.is_empty(), "{output}");
    };
    let url = backed.url();
    let dest = backed.new_dest();
    let dest = dest.to_str().unwrap();
    fails(&["restore", "/nonexistent/store", dest], 10, "nothing");
    fails(&["restore", &url, dest], 12, "wrong_key");
    let secret = backed.dir().path("other_secret");
    fs::write(&secret, [9; 32]).unwrap();
    fails(&["restore", &url, dest, "--hsm-secret", secret.to_str().unwrap()], 12, "wrong_key");
    fs::write(&secret, [9; 31]).unwrap();
    fails(&["restore", &url, dest, "--hsm-secret", secret.to_str().unwrap()], 12, "wrong_key");
    let gone = backed.dir().path("no_secret");
    let output = backup_cli(["restore", &url, dest, "--hsm-secret", gone.to_str().unwrap()]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("no_secret"), "{output}");
}

#[test]
fn an_empty_backup_is_nothing_to_restore_and_says_so() {
    let backed = Backed::fresh();
    let dest = backed.new_dest();
    let output = backed.restore(&dest).run();
    // Nothing was written: there is no database that could be had.
    assert_ne!(output.code, Some(101), "{output}");
    if output.code == Some(0) {
        assert_eq!(oracle::row_count(&dest).unwrap(), 0, "{output}");
    } else {
        assert_says(&output, 10, &["no backup"]);
    }
}

#[test]
fn a_crash_of_the_first_call_ever_is_no_reason_not_to_start() {
    for point in [CrashPoint::BeforeHook, CrashPoint::AfterAck, CrashPoint::AfterCommit] {
        let backed = Backed::fresh();
        let mut node = backed.launch();
        let mut workload = Workload::seeded(28);
        let report = node.crash(&workload.propose(), &Crash::both(point)).unwrap();
        if !report.committed {
            workload.abandon();
        }
        // SQLite made the file, and nothing is in it.
        assert_eq!(fs::metadata(node.database_path()).unwrap().len() > 0, report.committed);
        node.start().unwrap();
        Backed::write(&mut node, &mut workload, 12);
        assert_eq!(backed.check(&node), Standing::Committed, "{point:?}");
    }
}

#[test]
fn the_environment_names_a_key_file() {
    let (backed, mut node, _) = running(29);
    node.stop().unwrap();
    let dest = backed.new_dest();
    let key = backed.network_file("backup.key");
    Cli::new(["restore", "--no-claim", &backed.url()])
        .arg(&dest)
        .env("BACKUP_KEY_FILE", &key)
        .run()
        .expect_success();
    oracle::assert_same(&node.database_path(), &dest);
    let missing = Path::new("/nonexistent/backup.key");
    let output = Cli::new(["restore", &backed.url()])
        .arg(backed.new_dest())
        .env("BACKUP_KEY_FILE", missing)
        .run()
        .expect_code(1);
    assert!(output.stderr.contains("/nonexistent/backup.key"), "{output}");
}
