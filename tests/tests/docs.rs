//! What the pages tell people to type works: each command that they name exists with its options, and the blocks of
//! commands are run, in their order, on a simulated node, or say why they are not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lockstep_proto::destination::Destination;
use lockstep_tests::binaries::{self, Cli};
use lockstep_tests::servers::moto;
use lockstep_tests::sim::{Node, NodeConfig};
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::Workload;

const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

/// Marks of blocks that are run: on the node's machine, …
const RUN: &str = "run";
/// … where nothing of the node is left, …
const RUN_ELSEWHERE: &str = "run on a new machine";
/// … on a third machine, …
const RUN_ON_STANDBY: &str = "run on a standby";
/// … on a node without a backup, with a bucket of the name `bucket`, …
const RUN_WITH_BUCKET: &str = "run with a bucket";
/// … or that has one of the Python plugin.
const RUN_FROM_PYTHON: &str = "run, coming from the Python plugin";
/// What else the command ends with, and why.
const EXIT_CODE: &str = "run, exit code ";
/// Why a block is not run.
const NOT_RUN: &str = "not run: ";
/// What `.ci/run` itself takes out of the README.
const RUN_BY_CI: [&str; 2] = ["demo", "all tests"];

/// Every page for people, by its path from the top, with its text.
fn pages() -> Vec<(String, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = Vec::new();
    for folder in ["", "docs", "contrib/examples", "contrib/reader"] {
        for entry in fs::read_dir(top.join(folder)).expect("a folder of pages") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
            if name.ends_with(".md") && name != "CHANGELOG.md" {
                let text = fs::read_to_string(&path).expect("a page");
                pages.push((Path::new(folder).join(name).display().to_string(), text));
            }
        }
    }
    pages.sort();
    assert!(pages.len() > 8, "{pages:?}");
    pages
}

/// The commands in a text: what stands between backquotes, or on a line of a block, from `backup-cli` on; and what is
/// between backquotes with an option, as `verify --heal`.
fn commands(text: &str) -> Vec<String> {
    let is_end = |character: char| "`|;#()'\"".contains(character);
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().flat_map(|line| line.split("backup-cli ").skip(1));
    let command = lines.map(|rest| rest.split(is_end).next().unwrap_or_default().trim().to_owned());
    let spans = joined.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let spans = spans.filter(|span| span.contains(" --") && !span.contains("backup-cli"));
    command.filter(|command| !command.is_empty()).chain(spans.map(ToOwned::to_owned)).collect()
}

/// The help of a verb, or of a verb's own verb; `None` where there is no such thing.
fn help(words: &[&str], known: &mut BTreeMap<String, Option<String>>) -> Option<String> {
    let key = words.join(" ");
    let ask = || {
        let run = Cli::new(words).arg("--help").run();
        (run.code == Some(0)).then_some(run.stdout)
    };
    known.entry(key).or_insert_with(ask).clone()
}

#[test]
fn each_command_that_the_pages_name_exists_with_its_options() {
    let verbs: BTreeSet<String> = Cli::new(["--help"])
        .run()
        .expect_success()
        .stdout
        .lines()
        .filter_map(|line| {
            line.strip_prefix("  ")?.split_whitespace().next().map(ToOwned::to_owned)
        })
        .collect();
    let mut known = BTreeMap::new();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (page, text) in pages() {
        for command in commands(&text) {
            let words: Vec<&str> = command.split_whitespace().collect();
            // Prose goes on after the name of the program: only a verb makes a command.
            if !verbs.contains(words[0]) {
                continue;
            }
            let nested =
                ["key", "destination", "files", "secret"].contains(&words[0]) && words.len() > 1;
            let verb = &words[..if nested && !words[1].starts_with('-') { 2 } else { 1 }];
            let Some(help) = help(verb, &mut known) else {
                wrong.push(format!("{page}: there is no 'backup-cli {}'", verb.join(" ")));
                continue;
            };
            let options = words.iter().filter(|word| word.starts_with("--"));
            for option in
                options.map(|word| word.split(['=', ',', ']', '[', '.']).next().unwrap_or_default())
            {
                checked += 1;
                let is_there = help
                    .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                    .any(|word| word == option);
                if !is_there {
                    wrong.push(format!("{page}: 'backup-cli {}' has no {option}", verb.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 40, "only {checked} options were found: the search is broken");
}

#[test]
fn each_kind_of_error_has_its_remedy() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/src/error.rs");
    let source = fs::read_to_string(source).expect("the errors");
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md"));
    let page = page.expect("the page");
    let mut count = 0;
    for text in source.split("#[error(").skip(1) {
        let Some(text) =
            text.trim_start().strip_prefix('"').and_then(|text| text.split('"').next())
        else {
            continue;
        };
        // What stands between two values, the longest of it.
        let parts = text
            .split(['{', '}'])
            .step_by(2)
            .flat_map(|part| part.split(['\'', ':', '(', ')', '\\']));
        let longest =
            parts.map(|part| part.trim()).max_by_key(|part| part.len()).unwrap_or_default();
        // Those that are all values name their place; their remedy goes by that.
        if longest.len() > 8 {
            count += 1;
            assert!(page.contains(longest), "docs/operations.md has no remedy for: {text}");
        }
    }
    assert!(count >= 10, "only {count} kinds of errors were found: the search is broken");
}

/// A block of commands: the mark before it, and what stands in it.
struct Block<'a> {
    mark: &'a str,
    text: String,
}

/// The blocks of commands of a page. What a person types is in a block of the language `sh`, and has a mark.
fn blocks<'a>(page: &str, text: &'a str) -> Vec<Block<'a>> {
    let (mut blocks, mut before) = (Vec::new(), "");
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            before = if line.is_empty() { before } else { line };
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let typed = ["backup-cli ", "lightning-cli ", "cargo ", "sudo ", "systemctl "];
        let is_typed = block.iter().any(|line| typed.iter().any(|name| line.starts_with(name)));
        if language == "sh" {
            let mark = before.strip_prefix("<!-- ").and_then(|mark| mark.strip_suffix(" -->"));
            let mark = mark.unwrap_or_else(|| panic!("{page}: a block has no mark: {block:?}"));
            blocks.push(Block { mark, text: block.join("\n") });
        } else {
            assert!(!is_typed, "{page}: a block of commands that is not marked 'sh': {block:?}");
        }
        before = "";
    }
    blocks
}

/// How a page begins that has no beginning of its own.
const INIT: &str = "backup-cli init --lightning-dir ~/.lightning/bitcoin file:///mnt/nas/my-node";
const HOME: &str = "home";

/// Where the blocks are run: a machine with a node, and another with nothing.
struct Machines {
    dir: TestDir,
}

impl Machines {
    fn new() -> Self {
        let dir = TestDir::new();
        for folder in [
            "home/.lightning",
            "elsewhere/.lightning",
            "standby/.lightning",
            "mnt/nas",
            "usb",
            "bin",
        ] {
            dir.make_dir(folder);
        }
        let secret = dir.network_dir().join("hsm_secret");
        fs::write(secret, [&[0; 32], WORDS.as_bytes()].concat()).expect("a secret");
        fs::write(dir.network_dir().join("config"), "alias=a-node\n").expect("a config");
        symlink(dir.network_dir(), dir.path("home/.lightning/bitcoin")).expect("a link");
        // lightningd is simulated, and nothing is a service: there is none to stop.
        for name in ["lightning-cli", "systemctl"] {
            let stub = dir.path("bin").join(name);
            fs::write(&stub, "#!/bin/sh\nexit 0\n").expect("a stub");
            fs::set_permissions(stub, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        Self { dir }
    }

    /// Runs a block with the paths of this machine.
    #[track_caller]
    fn run(&self, page: &str, home: &str, block: &str) {
        self.run_to(0, page, home, block, &[]);
    }

    /// The same, with that exit code, and more in the environment.
    #[track_caller]
    fn run_to(&self, code: i32, page: &str, home: &str, block: &str, more: &[(String, String)]) {
        let home = self.dir.path(home);
        let root = self.dir.path("");
        let root = root.to_str().expect("a path").trim_end_matches('/');
        let block = block
            .replace("/mnt/nas", &format!("{root}/mnt/nas"))
            .replace("/usb/", &format!("{root}/usb/"));
        let programs: Vec<PathBuf> = [binaries::cli(), binaries::plugin()]
            .iter()
            .filter_map(|program| program.parent().map(Path::to_owned))
            .chain([self.dir.path("bin")])
            .collect();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(programs.into_iter().chain(std::env::split_paths(&path)));
        let run = Cli::program("bash", ["-euo", "pipefail", "-c", &block])
            .env("HOME", &home)
            .env("PATH", path.expect("paths"))
            .current_dir(&home)
            .stdin(format!("{WORDS}\n"));
        let run = more.iter().fold(run, |run, (name, value)| run.env(name, value)).run();
        assert_eq!(run.code, Some(code), "{page}:\n{block}\n{run}");
    }

    /// A node with a backup, for pages that do not begin with making one.
    fn backed_up(page: &str) -> Self {
        let machines = Self::new();
        machines.run(page, HOME, INIT);
        machines.live();
        machines
    }

    /// A node that has a backup of the Python plugin, and none of ours.
    fn of_python_plugin(page: &str) -> Self {
        let machines = Self::backed_up(page);
        let export =
            "backup-cli export --lightning-dir ~/.lightning/bitcoin --to /mnt/nas/my-node.bkp";
        machines.run(page, HOME, export);
        for name in ["backup.lock", "backup.key", "backup.witness"] {
            fs::remove_file(machines.dir.network_dir().join(name)).expect("a file of ours");
        }
        fs::remove_dir_all(machines.dir.path("mnt/nas/my-node")).expect("our backup");
        let config = "plugin=/opt/plugins/backup/backup.py\nalias=a-node\n";
        fs::write(machines.dir.path("home/.lightning/config"), config).expect("a config");
        machines
    }

    /// The node writes a while, with the plugin.
    fn live(&self) {
        let mut workload = Workload::seeded(71);
        let config = NodeConfig::new(binaries::plugin(), self.dir.network_dir());
        let mut node = Node::launch(config).expect("the node starts");
        for _ in 0..workload.migrations_left() {
            let step = workload.next().expect("a workload is endless");
            node.write(&step).expect("a write").expect_committed();
        }
        node.init().expect("init is answered");
        for step in workload.take(20) {
            node.write(&step).expect("a write").expect_committed();
        }
        node.stop().expect("it stops");
    }
}

#[test]
fn each_block_of_each_page_is_run_or_says_why_not() {
    let name = "each_block_of_each_page_is_run_or_says_why_not";
    let mut count = 0;
    for (page, text) in pages() {
        let mut own: Option<Machines> = None;
        for Block { mark, text } in blocks(&page, &text) {
            if let Some(reason) = mark.strip_prefix(NOT_RUN) {
                eprintln!("{name}: {page}: not run, {reason}: {}", text.replace('\n', "; "));
                assert!(reason.len() > 20, "{page}: a reason: {reason}");
                continue;
            }
            if RUN_BY_CI.contains(&mark) {
                assert_eq!(page, "README.md");
                continue;
            }
            count += 1;
            match mark {
                RUN_WITH_BUCKET => {
                    let Some(server) = moto::start() else { continue };
                    let server = server.with_bucket("bucket");
                    Machines::new().run_to(0, &page, HOME, &text, &server.env);
                    continue;
                }
                RUN_FROM_PYTHON => {
                    let machines = Machines::of_python_plugin(&page);
                    machines.run(&page, HOME, &text);
                    let config = fs::read_to_string(machines.dir.path("home/.lightning/config"));
                    let line = "important-plugin=/usr/local/bin/cln-lockstep\n";
                    assert!(config.expect("a config").starts_with(line));
                    continue;
                }
                _ => {}
            }
            // A page begins with its own `init`, or with a node that has a backup.
            let Some(machines) = &own else {
                let begins = text.contains("backup-cli init");
                let machines = if begins { Machines::new() } else { Machines::backed_up(&page) };
                machines.run(&page, HOME, &text);
                if begins {
                    machines.live();
                }
                own = Some(machines);
                continue;
            };
            match mark {
                RUN => machines.run(&page, HOME, &text),
                RUN_ELSEWHERE => machines.run(&page, "elsewhere", &text),
                RUN_ON_STANDBY => machines.run(&page, "standby", &text),
                _ => {
                    let code = mark.strip_prefix(EXIT_CODE).and_then(|rest| rest.split_once(": "));
                    let (code, _) = code.unwrap_or_else(|| panic!("{page}: what is '{mark}'?"));
                    machines.run_to(code.parse().expect("a code"), &page, HOME, &text, &[]);
                }
            }
        }
    }
    assert!(count >= 17, "{count} blocks were run");
}

#[test]
fn each_url_of_the_examples_is_one() {
    let mut count = 0;
    for (page, text) in pages() {
        let words = text.split(|of: char| of.is_whitespace() || "`'|,;()".contains(of));
        let known = ["s3://", "gs://", "az://", "file://", "https://"];
        for url in words.filter(|word| known.iter().any(|scheme| word.starts_with(scheme))) {
            // Links to pages, and schemes that stand for themselves.
            let is_link = url.starts_with("https://") && !url.contains("my-node");
            if is_link || url.contains('…') || known.contains(&url) {
                continue;
            }
            count += 1;
            let parsed = url.parse::<Destination>();
            assert!(parsed.is_ok(), "{page}: {url}: {:?}", parsed.err());
        }
    }
    assert!(count >= 20, "only {count} URLs were found: the search is broken");
    for (page, providers) in [
        ("nfs.md", &["Synology", "TrueNAS"][..]),
        ("smb.md", &["cifs"]),
        ("s3.md", &["AWS", "Cloudflare R2", "Backblaze B2", "MinIO", "Garage", "Ceph"]),
        ("webdav.md", &["Nextcloud"]),
        ("tor.md", &["socks5h"]),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/examples").join(page);
        let text = fs::read_to_string(path).expect("an example");
        for provider in providers {
            assert!(text.contains(provider), "{page} says nothing of {provider}");
        }
    }
}
