//! Snapshots: how fast pages are compressed, sealed and written, and read back, in this process, against the disk and
//! against `zstd -3` on the same bytes, in turn. Then the memory that the program has for it.
//!
//! `LOCKSTEP_MIB` (256) is the size of the database; `LOCKSTEP_ROUNDS` (3) says how often. Four times the database lies
//! in `TMPDIR`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use fastrand::Rng;
use lockstep_benches::filled::{PAGE, fill};
use lockstep_benches::{process, sizes, user_and_kernel};
use lockstep_proto::config::read_key_file;
use lockstep_proto::destination::Destination;
use lockstep_proto::layout::SnapshotName;
use lockstep_proto::log::Mark;
use lockstep_proto::seal::{Chain, KeyRing};
use lockstep_proto::snapshot::{self, Content, Pages, Proof};
use lockstep_proto::store::Store;
use lockstep_tests::backed::Backed;
use rustix::fs::{Advice, fadvise};

const PIECE: usize = 256 * 1024;
const LEVEL: i32 = 3;

fn main() {
    for mib in sizes("LOCKSTEP_MIB", &[256]) {
        for random in [1.0, 0.5] {
            one(mib, random);
        }
    }
}

fn one(mib: u64, random: f64) {
    let backed = Backed::without_backup();
    let database = backed.network_file("lightningd.sqlite3");
    fill(&database, mib * (1 << 20) / PAGE, random, &mut Rng::with_seed(mib));
    let init = process::run(&mut backed.init().command());
    let keys = read_key_file(&backed.network_file("backup.key")).expect("a key file");
    let url: Destination = backed.url().parse().expect("a URL");
    let store = url.open().expect("the store opens");
    let bytes = fs::metadata(&database).expect("it is there").len();
    let mut bench = Bench { database, bytes, dir: backed.dir().path(""), rows: Vec::new() };
    for round in 0..sizes("LOCKSTEP_ROUNDS", &[3])[0] {
        bench.round(&*store, &keys, round as u32);
    }
    let share = random * 100.0;
    println!("\na database of {mib} MiB, {share:.0} % of it random");
    println!("| | MB/s | slowest | processor s a GB | bytes of the database's |");
    println!("|---|---|---|---|---|");
    bench.print();
    let restore = process::run(&mut backed.restore(&backed.new_dest()).command());
    for (what, ran) in [("init", init), ("restore", restore)] {
        println!(
            "{what}: {:.2} s, {:.0} MB/s, at most {:.1} MiB resident",
            ran.seconds,
            bytes as f64 / 1e6 / ran.seconds,
            ran.peak_kib as f64 / 1024.0
        );
    }
}

/// What is done with a database, each time that it was.
struct Bench {
    database: PathBuf,
    bytes: u64,
    dir: PathBuf,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    seconds: Vec<f64>,
    cpu: f64,
    /// Bytes that came of it, of those of the database.
    share: f64,
}

impl Bench {
    fn round(&mut self, store: &dyn Store, keys: &KeyRing, round: u32) {
        let (copy, packed) = (self.dir.join("copy"), self.dir.join("packed"));
        let database = self.database.clone();
        self.time("the disk: read, write, sync", &database, || moved(&database, &copy, Ok));
        self.time("zstd -3, one thread: read, write, sync", &database, || {
            let mut zstd = zstd::bulk::Compressor::new(LEVEL)?;
            moved(&database, &packed, |piece| zstd.compress(&piece))
        });
        let name = SnapshotName { generation: 1, seq: 0, epoch: 1, index: round + 1000 };
        let mark = Mark { seq: 0, chain: Chain::default() };
        let content = Content {
            path: &database,
            time: 0,
            data_version: None,
            pages: Pages::All,
            header: None,
        };
        self.time("a snapshot: read, compress, seal, write, sync, read back", &database, || {
            let written = snapshot::write(store, keys, name, mark, &content, &mut |_, _| {});
            written.map(|(_, stored)| stored).map_err(io::Error::other)
        });
        let object = Path::new(store.label()).join(name.to_string());
        let object = object.is_file().then_some(object);
        let read_from = object.as_deref().unwrap_or(&copy);
        self.time("the disk: read as many bytes", read_from, || {
            moved(read_from, Path::new("/dev/null"), Ok)
        });
        self.time("zstd, one thread: read and unpack", &packed, || {
            let mut file = File::open(&packed)?;
            let mut unzstd = zstd::bulk::Decompressor::new()?;
            let (mut all, mut length) = (0, [0; 4]);
            while file.read_exact(&mut length).is_ok() {
                let mut piece = vec![0; u32::from_le_bytes(length) as usize];
                file.read_exact(&mut piece)?;
                all += unzstd.decompress(&piece, PIECE)?.len() as u64;
            }
            Ok(all)
        });
        self.time("a snapshot: read, open, unpack", read_from, || {
            let mut proof = Proof::default();
            let name = name.to_string();
            snapshot::read(store, keys, &name, None, &mut proof).map_err(io::Error::other)?;
            Ok(proof.bytes)
        });
        store.remove(&name.to_string()).expect("it is removed");
    }

    /// Does it with the file out of the cache, and notes what it took.
    fn time(&mut self, name: &'static str, reads: &Path, work: impl FnOnce() -> io::Result<u64>) {
        forget(reads);
        // Of threads that have ended, too.
        let cpu_so_far = || {
            let (user, kernel) = user_and_kernel(std::process::id());
            user + kernel
        };
        let cpu = cpu_so_far();
        let began = Instant::now();
        let came = work().expect(name);
        let seconds = began.elapsed().as_secs_f64();
        let cpu = cpu_so_far().saturating_sub(cpu).as_secs_f64();
        let share = came as f64 / self.bytes as f64;
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => {
                row.seconds.push(seconds);
                row.cpu = row.cpu.min(cpu);
            }
            None => self.rows.push(Row { name, seconds: vec![seconds], cpu, share }),
        }
    }

    fn print(&mut self) {
        for Row { name, seconds, cpu, share } in &mut self.rows {
            seconds.sort_by(f64::total_cmp);
            let mb_s = |seconds: f64| self.bytes as f64 / 1e6 / seconds;
            let (median, slowest) =
                (mb_s(seconds[seconds.len() / 2]), mb_s(seconds[seconds.len() - 1]));
            let cpu = *cpu / (self.bytes as f64 / 1e9);
            println!("| {name} | {median:.0} | {slowest:.0} | {cpu:.2} | {share:.3} |");
        }
    }
}

/// Reads a file in pieces, does something with each, and writes what comes of it, each piece behind its length where it is
/// not the piece itself. Gives the bytes that came of it.
fn moved(
    from: &Path,
    to: &Path,
    mut piece_of: impl FnMut(Vec<u8>) -> io::Result<Vec<u8>>,
) -> io::Result<u64> {
    let (from, mut to) =
        (File::open(from)?, File::options().write(true).create(true).truncate(true).open(to)?);
    let mut all = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        if (&from).take(PIECE as u64).read_to_end(&mut piece)? == 0 {
            break;
        }
        let read = piece.len();
        let piece = piece_of(piece)?;
        if piece.len() != read {
            to.write_all(&(piece.len() as u32).to_le_bytes())?;
        }
        to.write_all(&piece)?;
        all += piece.len() as u64;
    }
    if to.metadata()?.is_file() {
        to.sync_all()?;
    }
    Ok(all)
}

/// Drops a file's pages from the cache, as far as they are written.
fn forget(path: &Path) {
    let file = File::open(path).expect("it is there");
    fadvise(&file, 0, None, Advice::DontNeed).expect("advice is taken");
}
