//! What a node feels: the wall time of payments over one channel between two real nodes on regtest, both set
//! up alike, with this plugin and with what else there is, against a plugin that only writes and syncs.
//!
//! Needs `lightningd`, `lightning-cli`, `bitcoind` and `bitcoin-cli` on `PATH`; says so in one line and ends
//! where they are not. `LOCKSTEP_PYTHON_BACKUP` names the folder with the Python plugin's `backup.py` and
//! `backup-cli`; `LOCKSTEP_OTHER_FS` a folder on another file system, `/dev/shm` unless set; `LOCKSTEP_RUNS`
//! and `LOCKSTEP_PAYMENTS` make it shorter, and so does a word of a row as argument.
//!
//! All couples of nodes run all the time, and pay in turn, ten payments each: what else the machine does
//! meets all alike.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_benches::bare;
use lockstep_benches::python::PythonBackup;
use lockstep_tests::binaries::Cli;
use lockstep_tests::real::backup::{WALLET, data_version};
use lockstep_tests::real::channel::{
    lean, open_channel, send_coins, wait_for_channels, wait_for_coins,
};
use lockstep_tests::real::daemons::say;
use lockstep_tests::real::{Backup, Bitcoind, Daemons, Node, NodeOptions};
use lockstep_tests::testdir::TestDir;
use serde_json::{Value, json};

const RUNS: usize = 5;
const PAYMENTS: usize = 300;
/// So many at once before another couple's turn. Untimed ones before the first run are as many.
const BLOCK: usize = 10;
/// Between two couples: the last payment's commitments settle after its payer has its answer.
const PAUSE: Duration = Duration::from_millis(100);
const AMOUNT_MSAT: u64 = 10_000;
const REFERENCE: &str = "a bare plugin, write + fdatasync of as many bytes";

fn main() {
    if bare::run_if_asked() {
        return;
    }
    let Some(daemons) = Daemons::or_skip() else { return };
    let (runs, payments) = (number("LOCKSTEP_RUNS", RUNS), number("LOCKSTEP_PAYMENTS", PAYMENTS));
    let dir = TestDir::new();
    let bitcoind = Bitcoind::start(&daemons, &dir.path("bitcoin"));
    let elsewhere = other_file_system(&dir);
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mut setups = setups(elsewhere.as_ref());
    setups.retain(|setup| filter.as_ref().is_none_or(|word| setup.name().contains(word)));
    let mut couples: Vec<Couple> = setups
        .into_iter()
        .enumerate()
        .map(|(index, setup)| Couple::start(setup, &daemons, &bitcoind, &dir, index))
        .collect();
    open_channels(&couples, &bitcoind);
    couples.iter_mut().for_each(|couple| {
        couple.block(BLOCK);
    });
    let before: Vec<u32> = couples.iter().map(Couple::transactions).collect();
    for run in 0..runs {
        let mut took = vec![Duration::ZERO; couples.len()];
        for block in 0..payments.div_ceil(BLOCK) {
            let size = BLOCK.min(payments - block * BLOCK);
            for turn in 0..couples.len() {
                // Nobody always comes after the same one.
                let index = (run + block + turn) % couples.len();
                took[index] += couples[index].block(size);
            }
        }
        for (couple, took) in couples.iter_mut().zip(took) {
            say(&format!("run {run}: {:.2} s, {}", took.as_secs_f64(), couple.setup.name()));
            couple.took.push(took);
        }
    }
    for (couple, before) in couples.iter_mut().zip(before) {
        let made = couple.transactions() - before;
        couple.transactions_each = f64::from(made) / (runs * payments) as f64;
    }
    print(&daemons.version(), &couples, payments);
}

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A folder on another file system than the nodes', or a line that says that there is none.
fn other_file_system(dir: &TestDir) -> Option<TestDir> {
    let folder = std::env::var_os("LOCKSTEP_OTHER_FS").unwrap_or_else(|| "/dev/shm".into());
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let there = device(Path::new(&folder));
    if there.is_none() || there == device(&dir.path("")) {
        say(
            "SKIPPED: payments with the destination on another file system: LOCKSTEP_OTHER_FS names none",
        );
        return None;
    }
    Some(TestDir::new_in(Path::new(&folder)))
}

/// What both nodes of a couple run with.
enum Setup {
    Nothing,
    Answers,
    Synced,
    Lockstep { destination: PathBuf, where_to: &'static str },
    Python { program: PathBuf },
    Replica,
}

fn setups(elsewhere: Option<&TestDir>) -> Vec<Setup> {
    let mut setups = vec![Setup::Nothing, Setup::Answers, Setup::Synced];
    setups.push(Setup::Lockstep { destination: PathBuf::new(), where_to: "the node's own disk" });
    if let Some(elsewhere) = elsewhere {
        let where_to = "another file system";
        setups.push(Setup::Lockstep { destination: elsewhere.path(""), where_to });
    }
    if let Some(python) = PythonBackup::locate_or_say("payments") {
        setups.push(Setup::Python { program: python.folder().to_owned() });
    }
    setups.push(Setup::Replica);
    setups
}

impl Setup {
    fn name(&self) -> String {
        match self {
            Self::Nothing => "no plugin".into(),
            Self::Answers => "a bare plugin, which only answers".into(),
            Self::Synced => REFERENCE.into(),
            Self::Lockstep { where_to, .. } => {
                format!("**cln-lockstep**, destination on {where_to}")
            }
            Self::Python { .. } => "the Python plugin, which syncs nothing".into(),
            Self::Replica => "`wallet=sqlite3://main:replica`".into(),
        }
    }

    /// Prepares the directory of a new node.
    fn apply(&self, options: NodeOptions, name: &str) -> NodeOptions {
        let base = options.base().to_owned();
        fs::create_dir_all(options.network_dir()).expect("a network directory");
        let important = |path: &Path| format!("--important-plugin={}", path.display());
        match self {
            Self::Nothing => options.without_plugin(),
            Self::Answers => {
                let script = bare::script(&base.join("bare.sh"), None);
                options.without_plugin().arg(important(&script))
            }
            Self::Synced => {
                let script = bare::script(&base.join("bare.sh"), Some(&base.join("bare.data")));
                options.without_plugin().arg(important(&script))
            }
            Self::Lockstep { destination, .. } => {
                let store = base.join(destination).join(format!("store-{name}"));
                Backup::init(&options, format!("file://{}", store.display()));
                options
            }
            Self::Python { program } => {
                let cli = Cli::program(program.join("backup-cli"), ["init", "--lightning-dir"]);
                let url = format!("file://{}", base.join("python.bkp").display());
                cli.arg(options.network_dir()).arg(url).run().expect_success();
                options.without_plugin().arg(important(&program.join("backup.py")))
            }
            Self::Replica => {
                let (main, replica) = (options.network_dir().join(WALLET), base.join("replica"));
                let wallet = format!("--wallet=sqlite3://{}:{}", main.display(), replica.display());
                options.without_plugin().arg(wallet)
            }
        }
    }
}

/// Two running nodes with one setup and a channel.
struct Couple {
    setup: Setup,
    payer: Node,
    payee: Node,
    pays: Rpc,
    invoices: Rpc,
    invoiced: usize,
    took: Vec<Duration>,
    /// Of the database, a payment and its invoice, on both nodes.
    transactions_each: f64,
}

impl Couple {
    fn start(
        setup: Setup,
        daemons: &Daemons,
        bitcoind: &Bitcoind,
        dir: &TestDir,
        index: usize,
    ) -> Self {
        let node = |role: &str| {
            let name = format!("{index}-{role}");
            let options = NodeOptions::new(daemons, bitcoind, dir.path(&name));
            setup.apply(lean(options.production()), &name).start()
        };
        let (payer, payee) = (node("payer"), node("payee"));
        payer.connect(&payee);
        let (pays, invoices) = (Rpc::connect(&payer), Rpc::connect(&payee));
        Self {
            setup,
            payer,
            payee,
            pays,
            invoices,
            invoiced: 0,
            took: Vec::new(),
            transactions_each: f64::NAN,
        }
    }

    /// Pays some invoices, one after the other; they are made before the clock starts.
    fn block(&mut self, payments: usize) -> Duration {
        let invoices: Vec<Value> = (0..payments).map(|_| self.invoice()).collect();
        std::thread::sleep(PAUSE);
        let began = Instant::now();
        for bolt11 in invoices {
            let paid = self.pays.call("pay", json!({ "bolt11": bolt11 }));
            assert_eq!(paid["status"], "complete", "{paid}");
        }
        began.elapsed()
    }

    fn invoice(&mut self) -> Value {
        self.invoiced += 1;
        let label = self.invoiced.to_string();
        let params =
            json!({"amount_msat": AMOUNT_MSAT, "label": label, "description": "a payment"});
        self.invoices.call("invoice", params)["bolt11"].clone()
    }

    /// Transactions that both have made.
    fn transactions(&self) -> u32 {
        let nodes = [&self.payer, &self.payee].into_iter();
        nodes.map(|node| data_version(&node.network_dir().join(WALLET))).sum()
    }

    fn median(&self) -> f64 {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get(took.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
    }
}

/// All at once, since a node as people run it looks for blocks only now and then.
fn open_channels(couples: &[Couple], bitcoind: &Bitcoind) {
    couples.iter().for_each(|couple| send_coins(bitcoind, &couple.payer));
    bitcoind.generate(1);
    for couple in couples {
        wait_for_coins(bitcoind, &couple.payer);
        open_channel(bitcoind, &couple.payer, &couple.payee).expect("a channel");
    }
    bitcoind.confirm(6);
    couples.iter().for_each(|couple| wait_for_channels(&couple.payer, &couple.payee, 1));
}

fn print(version: &str, couples: &[Couple], payments: usize) {
    let runs = couples.first().map_or(0, |couple| couple.took.len());
    println!(
        "\nlightningd {version}; {payments} payments, one after the other, median of {runs} runs"
    );
    let is_reference = |couple: &&Couple| couple.setup.name() == REFERENCE;
    let reference = couples.iter().find(is_reference).map_or(f64::NAN, Couple::median);
    println!(
        "\n| | s | fastest | slowest | ratio to the bare synced plugin |\n|---|---|---|---|---|"
    );
    for couple in couples {
        let seconds = || couple.took.iter().map(Duration::as_secs_f64);
        let (fastest, slowest) =
            (seconds().fold(f64::NAN, f64::min), seconds().fold(0.0, f64::max));
        let (name, median) = (couple.setup.name(), couple.median());
        let (ratio, each) = (median / reference, couple.transactions_each);
        println!("| {name} | {median:.2} | {fastest:.2} | {slowest:.2} | {ratio:.3} | {each:.1} |");
    }
}

/// A connection to a node: a `lightning-cli` for each call would take as long as some payments.
struct Rpc {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Rpc {
    fn connect(node: &Node) -> Self {
        let stream = UnixStream::connect(node.network_dir().join("lightning-rpc"));
        Self { stream: stream.expect("a connection to the node"), buffer: Vec::new() }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": "bench", "method": method, "params": params});
        self.stream.write_all(request.to_string().as_bytes()).expect("the node reads");
        let mut piece = [0; 64 * 1024];
        while !self.buffer.ends_with(b"\n\n") {
            let read = self.stream.read(&mut piece).expect("the node answers");
            assert_ne!(read, 0, "the node has ended");
            self.buffer.extend_from_slice(&piece[..read]);
        }
        let answer: Value = serde_json::from_slice(&self.buffer).expect("an answer in JSON");
        self.buffer.clear();
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }
}
