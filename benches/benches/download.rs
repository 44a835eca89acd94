//! A restore from a bucket, against a bare parallel download of the same objects by the same client library, in turn.
//! Which server that is, [`BenchServer`] says.
//!
//! `LOCKSTEP_MIB` (256) is the size of the database, `LOCKSTEP_ROUNDS` (3) says how often.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use fastrand::Rng;
use lockstep_benches::bucket::Bucket;
use lockstep_benches::filled::{PAGE, change_of, fill};
use lockstep_benches::server::BenchServer;
use lockstep_benches::{Plugin, message, process, sizes};
use lockstep_tests::Batch;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries;
use lockstep_tests::step::version_bump;

/// Connections of the bare download, and bytes that one asks for at a time, as rclone has them or more.
const CONNECTIONS: usize = 8;
const PIECE: u64 = 8 << 20;
/// Batches behind the snapshot.
const CALLS: u32 = 2_000;

fn main() {
    let Some(server) = BenchServer::start_or_say() else { return };
    let backed = server.backed("download");
    let mib = sizes("LOCKSTEP_MIB", &[256])[0];
    let (rows, mut rng) = (mib * (1 << 20) / PAGE, Rng::with_seed(mib));
    let database = backed.network_file("lightningd.sqlite3");
    fill(&database, rows, 0.5, &mut rng);
    let init = process::run(&mut backed.init().command());
    let directory = backed.network_dir();
    let mut plugin = Plugin::start(&binaries::plugin(), &directory).expect("the plugin starts");
    for version in 1..=CALLS {
        let writes = vec![change_of(rng.u64(1..=rows)), version_bump(version.into())];
        let call = message(version as usize, &Batch { data_version: version + 1, writes });
        plugin.call(&call).expect("the plugin acknowledges");
    }
    plugin.stop();
    fs::remove_file(database).expect("it is there");
    println!(
        "\na database of {mib} MiB, {CALLS} batches behind its snapshot; init took {:.1} s, {:.1} MiB",
        init.seconds,
        init.peak_kib as f64 / 1024.0
    );
    println!(
        "| round | objects | stored MB | download s | MB/s | restore s | MB/s stored | MB/s database | ratio | peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    server.go_away();
    for round in 1..=sizes("LOCKSTEP_ROUNDS", &[3])[0] {
        let to = backed.dir().path("downloaded");
        let began = Instant::now();
        let (objects, bytes) = download(&backed, &to);
        let download = began.elapsed().as_secs_f64();
        fs::remove_file(to).expect("it is there");
        let restored = backed.new_dest();
        let ran = process::run(&mut backed.restore(&restored).command());
        let mb_s = |bytes: u64, seconds: f64| bytes as f64 / 1e6 / seconds;
        let database = fs::metadata(&restored).expect("it is there").len();
        fs::remove_file(restored).expect("it is there");
        println!(
            "| {round} | {objects} | {:.0} | {download:.2} | {:.0} | {:.2} | {:.0} | {:.0} | {:.2} | {:.1} |",
            bytes as f64 / 1e6,
            mb_s(bytes, download),
            ran.seconds,
            mb_s(bytes, ran.seconds),
            mb_s(database, ran.seconds),
            ran.seconds / download,
            ran.peak_kib as f64 / 1024.0,
        );
    }
}

/// All objects of the backup, one behind the other in a file, several pieces at a time; synced. Gives how many there are,
/// and their bytes.
fn download(backed: &Backed, to: &PathBuf) -> (usize, u64) {
    let bucket = Bucket::connect(&backed.url(), backed.env());
    let objects = bucket.list();
    let file = File::create(to).expect("a file");
    let (mut pieces, mut end) = (VecDeque::new(), 0);
    for (path, size) in &objects {
        for from in (0..*size).step_by(PIECE as usize) {
            pieces.push_back((
                path.clone(),
                from..size.min(&(from + PIECE)).to_owned(),
                end + from,
            ));
        }
        end += size;
    }
    let pieces = Mutex::new(pieces);
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let bucket = Bucket::connect(&backed.url(), backed.env());
                loop {
                    let next = pieces.lock().expect("nobody panics with it").pop_front();
                    let Some((path, range, at)) = next else { return };
                    let bytes = bucket.get(&path, range);
                    file.write_all_at(&bytes, at).expect("the file is written");
                }
            });
        }
    });
    file.sync_all().expect("it syncs");
    (objects.len(), end)
}
