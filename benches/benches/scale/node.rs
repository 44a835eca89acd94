//! A node as far as its backup sees it: calls that are acknowledged, an end, and a start with the database that they
//! came to.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use lockstep_benches::process::{self, Ran};
use lockstep_benches::{Plugin, Raw, bare, message, percentile};
use lockstep_tests::Batch;
use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::{self, Cli};
use lockstep_tests::step::version_bump;

/// The plugin, running.
pub struct Node {
    /// The plugin.
    pub plugin: Plugin,
    /// What it backs up, and what it has acknowledged so far.
    pub past: Past,
}

/// A node's directory and store, and a bare file beside them on the same disk. Nothing writes there while no plugin runs.
pub struct Past {
    /// Its directory, and the store.
    pub backed: Backed,
    raw: Raw,
    version: u32,
    calls: usize,
    acknowledged: SystemTime,
}

/// What it takes to go on.
pub struct Reopened {
    /// Until the first call of the next session is acknowledged.
    pub open: Duration,
    /// `backup-cli status` of the stopped node.
    pub status: Ran,
    /// `backup-cli restore`.
    pub restore: Ran,
    /// Bytes of the database.
    pub database: u64,
}

/// The times of calls, and of bare writes of as many bytes in turn with them.
#[derive(Default)]
pub struct Times {
    calls: Vec<Duration>,
    floor: Vec<Duration>,
}

impl Times {
    /// p50 and p99 of the calls, then of the floor, in microseconds, as cells of a table.
    pub fn cells(&mut self) -> String {
        let of = |times: &mut Vec<Duration>| [0.5, 0.99].map(|p| percentile(times, p));
        let ([call, slow], [floor, floor_slow]) = (of(&mut self.calls), of(&mut self.floor));
        format!("{call:.0} | {slow:.0} | {floor:.0} | {floor_slow:.0}")
    }

    /// The median call in microseconds.
    pub fn p50(&mut self) -> f64 {
        percentile(&mut self.calls, 0.5)
    }
}

impl Node {
    /// Starts the plugin of a node whose database is at `version`.
    pub fn start(backed: Backed, version: u32) -> Self {
        let directory = backed.network_dir();
        let mut plugin = Plugin::start(&binaries::plugin(), &directory).expect("it starts");
        plugin.init(&directory).expect("the plugin takes init");
        let raw = Raw::new(&backed.dir().path("raw"), 64 << 20).expect("a file of zeros");
        let acknowledged = SystemTime::UNIX_EPOCH;
        Self { plugin, past: Past { backed, raw, version, calls: 0, acknowledged } }
    }

    /// One call: a transaction, whose version it adds, or settings.
    pub fn call(&mut self, mut writes: Vec<String>, settings: bool, times: Option<&mut Times>) {
        let past = &mut self.past;
        if !settings {
            writes.push(version_bump(past.version.into()));
            past.version += 1;
        }
        past.calls += 1;
        let message = message(past.calls, &Batch { data_version: past.version, writes });
        let began = Instant::now();
        self.plugin.call(&message).expect("the plugin acknowledges");
        let took = began.elapsed();
        past.acknowledged = SystemTime::now();
        if let Some(times) = times {
            times.calls.push(took);
            let floor = past.raw.write(bare::bytes_of(message.len()));
            times.floor.push(floor.expect("the floor writes"));
        }
    }

    /// Stops in order.
    pub fn stop(self) -> Past {
        self.plugin.stop();
        self.past
    }
}

impl Past {
    /// Restores, and goes on with what was restored, which is the database that the node would have.
    pub fn reopen(self) -> (Node, Reopened) {
        let Self { backed, raw, version, calls, acknowledged } = self;
        let database = backed.network_file("lightningd.sqlite3");
        let restored = backed.new_dest();
        // A large one may be more than there is room for.
        let _ = fs::remove_file(&database);
        let restore = process::run(&mut backed.restore(&restored).command());
        // It was written when its last transaction was.
        let file = File::options().append(true).open(&restored).expect("it is there");
        file.set_modified(acknowledged).expect("its time is set");
        fs::rename(&restored, &database).expect("it is put in place");
        let status = Cli::new(["status", "--lightning-dir"]).arg(backed.network_dir());
        let status = process::run(&mut status.command());
        let began = Instant::now();
        let plugin = Plugin::start(&binaries::plugin(), &backed.network_dir());
        let mut plugin = plugin.expect("the plugin starts");
        let writes = vec![version_bump(version.into())];
        let first = message(calls + 1, &Batch { data_version: version + 1, writes });
        plugin.call(&first).expect("the plugin acknowledges");
        let open = began.elapsed();
        let acknowledged = SystemTime::now();
        plugin.init(&backed.network_dir()).expect("the plugin takes init");
        let database = fs::metadata(database).expect("it is there").len();
        let (version, calls) = (version + 1, calls + 1);
        let past = Past { backed, raw, version, calls, acknowledged };
        (Node { plugin, past }, Reopened { open, status, restore, database })
    }

    /// A restore of the whole history, as if nothing had ever been compacted.
    pub fn replay(&self) -> Ran {
        let snapshots = self.backed.store().join("snapshots");
        let aside: PathBuf = self.backed.dir().path("snapshots.aside");
        let compacted = fs::rename(&snapshots, &aside).is_ok();
        let dest = self.backed.new_dest();
        let ran = process::run(&mut self.backed.restore(&dest).command());
        fs::remove_file(dest).expect("it is there");
        if compacted {
            fs::rename(aside, snapshots).expect("they are put back");
        }
        ran
    }
}
