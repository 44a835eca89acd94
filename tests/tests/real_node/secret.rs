//! Every form of the node's secret, alone, brings back the node with its channel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lockstep_tests::binaries::Cli;
use lockstep_tests::oracle;
use lockstep_tests::real::backup::WALLET;
use lockstep_tests::real::channel::{Pair, pay};
use lockstep_tests::real::wait::wait_for;
use lockstep_tests::real::{Backup, Daemons, Node, NodeOptions};
use lockstep_tests::testdir::TestDir;

const WORDS: &str = "legal winner thank year wave sausage worth useful legal winner thank yellow";
const PASSPHRASE: &str = "correct horse \u{1f40e}";

/// How a node keeps its secret.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// What lightningd makes by itself.
    Words,
    /// Of `lightning-hsmtool generatehsm`.
    WordsAndPassphrase,
    /// 32 bytes, of releases before v25.12.
    Plain,
    /// 73 bytes, of `lightning-hsmtool encrypt`.
    Encrypted,
}

impl Form {
    fn has_passphrase(self) -> bool {
        matches!(self, Self::WordsAndPassphrase | Self::Encrypted)
    }

    /// Makes the file as its user would have; lightningd makes the first form by itself.
    fn write(self, daemons: &Daemons, path: &Path) {
        let hsmtool = daemons.lightningd.with_file_name("lightning-hsmtool");
        let tool = |method: &str, lines: [&str; 2]| {
            let input = format!("{}\n{}\n", lines[0], lines[1]);
            Cli::program(&hsmtool, [method]).arg(path).stdin(input).run().expect_success();
        };
        match self {
            Self::Words => {}
            Self::WordsAndPassphrase => tool("generatehsm", [WORDS, PASSPHRASE]),
            Self::Plain => fs::write(path, [0x5a; 32]).unwrap(),
            Self::Encrypted => {
                fs::write(path, [0xa5; 32]).unwrap();
                tool("encrypt", [PASSPHRASE, PASSPHRASE]);
            }
        }
        if path.exists() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
        }
    }
}

/// A node with a channel, its backup, and a place for what its owner kept.
struct Loss {
    dir: TestDir,
    pair: Pair,
    backup: Backup,
    form: Form,
    options: NodeOptions,
    id: String,
    /// What the directory had, for comparison only.
    had: PathBuf,
    secret: Vec<u8>,
    passphrase_file: PathBuf,
}

impl Loss {
    /// Makes the node, has it pay, and destroys its directory.
    fn suffer(daemons: &Daemons, form: Form) -> Self {
        let dir = TestDir::new();
        let pair = Pair::start(daemons, &dir.path("net"));
        let mut options = pair.node("node");
        let directory = options.network_dir();
        fs::create_dir_all(&directory).unwrap();
        form.write(daemons, &directory.join("hsm_secret"));
        let passphrase_file = dir.path("passphrase");
        fs::write(&passphrase_file, format!("{PASSPHRASE}\n")).unwrap();
        let backup = Backup::at(dir.file_url("store"));
        let mut arguments = Vec::new();
        if form.has_passphrase() {
            options = options.arg("--hsm-passphrase").stdin(format!("{PASSPHRASE}\n"));
            arguments.extend(["--secret-passphrase-file", passphrase_file.to_str().unwrap()]);
        }
        backup.init_with(&options, arguments).expect_success();
        let node = options.clone().start();
        wait_for("the node slot", || {
            let status = node.backup_status();
            status["slots"].as_array()?.iter().any(|slot| slot == "node").then_some(())
        });
        let id = node.id();
        pair.open_channel(&node);
        pay_both_ways(&pair, &node);
        node.kill();
        let had = dir.path("had.sqlite3");
        backup.look(&options, &had);
        let secret = fs::read(directory.join("hsm_secret")).unwrap();
        fs::remove_dir_all(options.base()).unwrap();
        Self { dir, pair, backup, form, options, id, had, secret, passphrase_file }
    }

    /// Restores with the words, as lightningd wrote them or as they were made.
    fn restore_by_words(&self) {
        let words = match self.form {
            Form::Words => String::from_utf8(self.secret[32..].to_vec()).unwrap(),
            _ => WORDS.to_owned(),
        };
        let mut cli = self.backup.restore(&self.options.network_dir()).arg("--words");
        if self.form.has_passphrase() {
            cli = cli.arg("--secret-passphrase-file").arg(&self.passphrase_file);
        }
        cli.stdin(format!("{words}\n")).run().expect_success();
    }

    /// Restores with a copy of `hsm_secret`.
    fn restore_by_file(&self) {
        let copy = self.dir.path("kept-secret");
        fs::write(&copy, &self.secret).unwrap();
        let cli = self.backup.restore(&self.options.network_dir()).arg("--hsm-secret").arg(&copy);
        let passphrase = ["--secret-passphrase-file".as_ref(), self.passphrase_file.as_os_str()];
        let wanted = if self.form.has_passphrase() { &passphrase[..] } else { &[] };
        wanted.iter().fold(cli, |cli, arg| cli.arg(arg)).run().expect_success();
        // The words make the file; a file is copied by whoever kept it.
        let secret = self.options.network_dir().join("hsm_secret");
        if !secret.exists() {
            fs::copy(&copy, &secret).unwrap();
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o400)).unwrap();
        }
    }

    /// The same node, the same secret, the same channel.
    fn recover(self) {
        let directory = self.options.network_dir();
        oracle::assert_same(&self.had, &directory.join(WALLET));
        let secret = directory.join("hsm_secret");
        assert_eq!(fs::read(&secret).unwrap(), self.secret);
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o400);
        let node = self.options.clone().start();
        assert_eq!(node.id(), self.id);
        node.connect(&self.pair.peer);
        self.pair.wait_for_channels(&node, 1);
        pay_both_ways(&self.pair, &node);
        self.pair.assert_nothing_lost(&self.options);
    }
}

fn pay_both_ways(pair: &Pair, node: &Node) {
    let (ours, theirs) = (node.caller(), pair.peer.caller());
    let mut rng = fastrand::Rng::new();
    for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
        wait_for("a payment", || pay(from, to, &mut rng).ok());
    }
}

#[test]
fn twelve_words_bring_back_the_node_and_its_channel() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let loss = Loss::suffer(&daemons, Form::Words);
    assert_eq!(loss.secret[..32], [0; 32], "lightningd made another form");
    loss.restore_by_words();
    loss.recover();
}

#[test]
fn words_with_a_passphrase_bring_back_the_node_and_its_channel() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let loss = Loss::suffer(&daemons, Form::WordsAndPassphrase);
    loss.restore_by_words();
    loss.recover();
}

#[test]
fn a_plain_hsm_secret_brings_back_the_node_and_its_channel() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let loss = Loss::suffer(&daemons, Form::Plain);
    loss.restore_by_file();
    loss.recover();
}

#[test]
fn an_encrypted_hsm_secret_brings_back_the_node_and_its_channel() {
    let Some(daemons) = Daemons::or_skip() else { return };
    let loss = Loss::suffer(&daemons, Form::Encrypted);
    loss.restore_by_file();
    loss.recover();
}
