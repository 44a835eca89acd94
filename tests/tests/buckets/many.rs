//! A million records, each an object of its own because nothing was put together yet: whoever opens the log, says how
//! it is or plans a restore asks for little, is done soon, and stays small.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockstep_proto::config::{LockFile, read_key_file};
use lockstep_proto::fence::Claimant;
use lockstep_proto::layout::{self, SegmentName};
use lockstep_proto::store::{
    Append, BucketStore, Entry, Fencing, NewObject, Options, Store, StoreError,
};
use lockstep_proto::version::DataVersion;
use lockstep_proto::writer::{Call, Outcome, Writer};
use lockstep_tests::Step;
use lockstep_tests::backed::{Backed, ci_or_long};
use lockstep_tests::binaries::Cli;
use lockstep_tests::servers::Memory;
use lockstep_tests::workload::Workload;
use rusqlite::Connection;

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
const RESIDENT_MAX: u64 = 64 * MIB;
/// Records of a segment, as buckets have them.
const SEGMENT: usize = 1024;
/// Objects that one request lists.
const PAGE: usize = 1000;
/// How far away a server is on the other side of a country, roughly. With half as much again the first write, which takes two
/// listings, would take longer than the plugin waits for a place.
const AWAY: Duration = Duration::from_millis(20);

/// A bucket in which nothing is ever put together, and records are made without requests.
struct InParts {
    bucket: BucketStore,
    server: Arc<Memory>,
    url: String,
}

struct Parts {
    server: Arc<Memory>,
    url: String,
    header: Vec<u8>,
    first: u64,
    count: usize,
}

impl Append for Parts {
    fn append(&mut self, frame: &[u8]) -> Result<(), StoreError> {
        let name = layout::part(self.first + self.count as u64, None);
        self.server.put(&self.url, &name, &[&self.header, frame].concat());
        self.count += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn is_full(&self) -> bool {
        self.count >= SEGMENT
    }
}

impl Store for InParts {
    fn label(&self) -> &str {
        self.bucket.label()
    }

    fn fencing(&self) -> Result<Fencing, StoreError> {
        self.bucket.fencing()
    }

    fn create_stream<'a>(&'a self, name: &str) -> Result<Box<dyn NewObject + 'a>, StoreError> {
        self.bucket.create_stream(name)
    }

    fn create_append(&self, name: &str, header: &[u8]) -> Result<Box<dyn Append>, StoreError> {
        let name = SegmentName::parse_object(name).expect("the name of a segment");
        Ok(Box::new(Parts {
            server: self.server.clone(),
            url: self.url.clone(),
            header: header.to_vec(),
            first: name.first_seq,
            count: 0,
        }))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.bucket.replace(name, bytes)
    }

    fn resume_append(
        &self,
        name: &str,
        header: &[u8],
        records: &[Arc<[u8]>],
    ) -> Result<Box<dyn Append>, StoreError> {
        self.bucket.resume_append(name, header, records)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        self.bucket.read(name)
    }

    fn read_stream(&self, name: &str) -> Result<Box<dyn io::Read + Send>, StoreError> {
        self.bucket.read_stream(name)
    }

    fn exists(&self, name: &str) -> Result<bool, StoreError> {
        self.bucket.exists(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        self.bucket.list(folder)
    }

    fn list_all(&self, folder: &str) -> Result<Vec<Entry>, StoreError> {
        self.bucket.list_all(folder)
    }

    fn sync(&self, name: &str) -> Result<(), StoreError> {
        self.bucket.sync(name)
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.bucket.remove(name)
    }
}

/// A node that stands still, and its log with so many more records.
struct Scene {
    server: Arc<Memory>,
    backed: Backed,
    records: usize,
}

/// What a command took.
struct Cost {
    took: Duration,
    resident: u64,
    asked: BTreeMap<String, usize>,
}

impl Scene {
    fn new(records: usize) -> Self {
        let server = Arc::new(Memory::start());
        let backed = Backed::at(server.prefix("many"), server.env.clone());
        backed.init().run().expect_success();
        let mut node = backed.running(&mut Workload::seeded(1));
        node.kill().unwrap();
        let scene = Self { server, backed, records };
        scene.fill();
        scene
    }

    /// Writes the records, and takes the node's database to where they lead.
    fn fill(&self) {
        let (server, url) = (self.server.clone(), self.backed.url());
        let options = Options::from_vars(server.env.clone());
        let bucket = BucketStore::connect(&url.parse().unwrap(), &options, PATIENCE).unwrap();
        let store = Arc::new(InParts { bucket, server, url });
        let lock = LockFile::read(&self.backed.network_dir()).unwrap().expect("a lock file");
        let keys = read_key_file(&self.backed.network_file("backup.key")).unwrap();
        let claimant = Claimant::this_process("test", "node", &lock.directory, now()).unwrap();
        let mut writer = Writer::open(store, keys, claimant, now()).unwrap();
        let head = writer.session().newest().data_version.unwrap_or_default().0;
        let last = head + u32::try_from(self.records).unwrap();
        for version in head + 1..=last {
            let set = format!("UPDATE vars SET intval = {version} WHERE name = 'data_version'");
            let data_version = DataVersion(version);
            let call = Call { data_version, transaction: true, writes: &[set] };
            let outcome = writer.append(&call, now()).unwrap();
            assert!(matches!(outcome, Outcome::Acknowledged { .. }), "{outcome:?}");
        }
        let database = Connection::open(self.backed.network_file("lightningd.sqlite3")).unwrap();
        let set = "UPDATE vars SET intval = ?1 WHERE name = 'data_version'";
        assert_eq!(database.execute(set, [last]).unwrap(), 1);
    }

    /// Runs a command to its end.
    fn run(&self, cli: Cli) -> Cost {
        self.server.take_counts();
        let (began, mut resident) = (Instant::now(), 0);
        let mut child = cli.spawn();
        let status = loop {
            resident = peak(child.id()).unwrap_or(resident);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = began.elapsed();
        let output = child.wait_with_output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Cost { took, resident, asked: self.server.take_counts() }
    }

    /// Starts the node: up to the plugin's manifest, and up to the answer to its first write.
    fn start(&self) -> [Cost; 2] {
        self.server.take_counts();
        let began = Instant::now();
        let mut node = self.backed.launch();
        let id = node.plugin().unwrap().id();
        let cost = || Cost {
            took: began.elapsed(),
            resident: peak(id).unwrap(),
            asked: self.server.take_counts(),
        };
        let looked = cost();
        let set = "UPDATE vars SET intval = intval + 1 WHERE name = 'next_pay_index'";
        node.write(&Step::transaction([set])).unwrap().expect_committed();
        let opened = cost();
        node.kill().unwrap();
        [looked, opened]
    }

    fn expect(&self, what: &str, cost: &Cost, listings: usize, time_max: Duration) {
        let Cost { took, resident, asked } = cost;
        println!(
            "{what}, {} records: {:.1} s, {:.1} MiB, {asked:?}",
            self.records,
            took.as_secs_f64(),
            *resident as f64 / MIB as f64
        );
        let pages = asked.get("LIST").copied().unwrap_or(0);
        let one = self.records.div_ceil(PAGE);
        assert!(pages <= listings * one + 60, "{what} lists all {} times", pages / one);
        assert!(*resident <= RESIDENT_MAX, "{what}: {resident} bytes resident");
        assert!(*took <= time_max, "{what}: {took:?}");
    }
}

/// Bytes of a process that were in memory at most.
fn peak(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

#[test]
fn a_million_records_that_nobody_put_together() {
    let scene = Scene::new(ci_or_long(20_000, 1_000_000));
    println!("{} objects", scene.server.len());
    let minute = Duration::from_secs(60);
    for away in [Duration::ZERO, AWAY] {
        println!("answers after {away:?}:");
        scene.server.be_away(away);
        let dir = scene.backed.network_dir();
        let status = scene.run(Cli::new(["status", "--lightning-dir"]).arg(&dir));
        scene.expect("status", &status, 2, 2 * minute);
        let restore = scene.backed.restore(&scene.backed.new_dest());
        scene.expect("restore --dry-run", &scene.run(restore.arg("--dry-run")), 2, 2 * minute);
        let [looked, opened] = scene.start();
        // lightningd kills a plugin that takes longer for its manifest.
        scene.expect("getmanifest", &looked, 1, minute);
        scene.expect("first write", &opened, 3, 2 * minute);
    }
}
