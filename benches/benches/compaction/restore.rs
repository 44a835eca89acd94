//! A restore of a large database and the log behind it, against copying the file.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use lockstep_benches::{process, sizes};
use lockstep_proto::config::read_key_file;
use lockstep_proto::destination::Destination;
use lockstep_proto::restore::{self, Plan, Progress, Target};
use lockstep_tests::binaries;
use rusqlite::Connection;

use crate::node::Large;

const ROUNDS: usize = 3;

/// In turn: the program, its two halves in this process, `cp`, SQLite's check.
pub fn restore(mib: u64) {
    let tail = sizes("LOCKSTEP_TAIL", &[5_000])[0];
    let cli = binaries::cli();
    let mut node = Large::new(mib);
    for _ in 0..tail {
        node.any_call();
    }
    let key = node.dir.network_dir().join("backup.key");
    let keys = read_key_file(&key).expect("a key file");
    let url: Destination = node.dir.file_url("store").parse().expect("a URL");
    let Large { dir, plugin, .. } = node;
    plugin.stop();
    fs::remove_file(dir.network_dir().join("lightningd.sqlite3")).expect("it is there");
    let store = url.open().expect("the store opens");
    let (restored, copy) = (dir.path("restored.sqlite3"), dir.path("copy.sqlite3"));
    println!(
        "\ndatabase of {mib} MiB, {tail} batches behind its snapshot; each changes 4 of its pages"
    );
    println!(
        "| round | restore s | MB/s | peak KiB | pages s | batches s | check and sync s | cp and sync s | integrity_check s | ratio | without checks |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for round in 1..=ROUNDS {
        let mut command = Command::new(&cli);
        command.args(["restore", "--no-claim", "--key-file"]).arg(&key).arg(dir.path("store"));
        let ran = process::run(command.arg(&restored));
        let (whole, peak) = (ran.seconds, ran.peak_kib);
        let bytes = fs::metadata(&restored).expect("it is there").len();

        let (cp, check) = copied_and_checked(&restored, &copy);
        fs::remove_file(&copy).expect("it is there");
        fs::remove_file(&restored).expect("it is there");

        let plan = Plan::to(&*store, &keys, Target::Newest).expect("a plan");
        let began = Instant::now();
        let (mut pages, mut batches) = (0.0, 0.0);
        restore::run(&*store, &keys, &plan, &restored, &mut |progress| {
            let at = began.elapsed().as_secs_f64();
            match progress {
                Progress::Pages(_) => pages = at,
                Progress::Batches(_) => {}
                Progress::Checking => batches = at,
            }
        })
        .expect("it restores");
        let checked = began.elapsed().as_secs_f64() - batches;
        fs::remove_file(&restored).expect("it is there");
        println!(
            "| {round} | {whole:.2} | {:.0} | {peak} | {pages:.2} | {:.2} | {checked:.2} | {cp:.2} | {check:.2} | {:.2} | {:.2} |",
            bytes as f64 / 1e6 / whole,
            batches - pages,
            whole / (cp + check),
            batches / cp,
        );
    }
}

fn copied_and_checked(from: &Path, to: &Path) -> (f64, f64) {
    let began = Instant::now();
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp failed");
    File::open(to).and_then(|file| file.sync_all()).expect("it syncs");
    let cp = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let db = Connection::open(to).expect("SQLite opens");
    let verdict: String =
        db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("it checks");
    assert_eq!(verdict, "ok");
    (cp, began.elapsed().as_secs_f64())
}
