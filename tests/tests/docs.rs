//! What the pages tell people to type works: each command that they name exists with its options, and the blocks that
//! are marked are run, in their order, on a simulated node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use lockstep_tests::binaries::{self, Cli};
use lockstep_tests::sim::{Node, NodeConfig};
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::Workload;

const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

/// Blocks that follow this line are run.
const RUN: &str = "<!-- run -->";
/// The same, where nothing of the node is left.
const RUN_ELSEWHERE: &str = "<!-- run on a new machine -->";

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

/// The marked blocks of a page: the mark, and the commands.
fn marked(text: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line != RUN && line != RUN_ELSEWHERE {
            continue;
        }
        let fence = lines.find(|line| !line.is_empty()).unwrap_or_default();
        assert!(["```sh", "```console"].contains(&fence), "no block behind {line}: {fence}");
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((line, block.join("\n")));
    }
    blocks
}

/// Where the blocks are run: a machine with a node, and another with nothing.
struct Machines {
    dir: TestDir,
}

impl Machines {
    fn new() -> Self {
        let dir = TestDir::new();
        for folder in ["home/.lightning", "elsewhere/.lightning", "mnt/nas", "usb", "bin"] {
            dir.make_dir(folder);
        }
        let secret = dir.network_dir().join("hsm_secret");
        fs::write(secret, [&[0; 32], WORDS.as_bytes()].concat()).expect("a secret");
        fs::write(dir.network_dir().join("config"), "alias=a-node\n").expect("a config");
        symlink(dir.network_dir(), dir.path("home/.lightning/bitcoin")).expect("a link");
        // lightningd is simulated: there is none to stop.
        let stub = dir.path("bin/lightning-cli");
        fs::write(&stub, "#!/bin/sh\nexit 0\n").expect("a stub");
        fs::set_permissions(stub, fs::Permissions::from_mode(0o755)).expect("chmod");
        Self { dir }
    }

    /// Runs a block with the paths of this machine.
    #[track_caller]
    fn run(&self, page: &str, mark: &str, block: &str) {
        let home = self.dir.path(if mark == RUN { "home" } else { "elsewhere" });
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
            .stdin(format!("{WORDS}\n"))
            .run();
        assert_eq!(run.code, Some(0), "{page}:\n{block}\n{run}");
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
fn the_marked_blocks_of_each_page_run() {
    let mut count = 0;
    for (page, text) in pages() {
        let blocks = marked(&text);
        if blocks.is_empty() {
            continue;
        }
        let machines = Machines::new();
        // A page begins with its own `init`, or with a node that has a backup.
        let (mut blocks, mut begun) = (blocks.into_iter().peekable(), false);
        if !blocks.peek().is_some_and(|(_, block)| block.contains("backup-cli init")) {
            machines.run(
                &page,
                RUN,
                "backup-cli init --lightning-dir ~/.lightning/bitcoin file:///mnt/nas/my-node",
            );
            machines.live();
            begun = true;
        }
        for (mark, block) in blocks {
            machines.run(&page, mark, &block);
            count += 1;
            if !begun {
                machines.live();
                begun = true;
            }
        }
    }
    assert!(count >= 8, "{count} blocks were run");
}
