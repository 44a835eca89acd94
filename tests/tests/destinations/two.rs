//! A node with its backup in two folders, and what may happen to them.

use std::fs;
use std::path::{Path, PathBuf};

use lockstep_tests::backed::{Backed, files_under};
use lockstep_tests::binaries::{Cli, Output};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::workload::{Workload, WorkloadConfig};

/// A stopped node, whose destinations `primary` and `second` hold the same.
pub struct Two {
    pub backed: Backed,
}

impl Two {
    /// With two sessions, a snapshot, and a passphrase beside the node's own slot.
    pub fn new(seed: u64) -> Self {
        let backed = Backed::without_backup();
        let passphrase = backed.dir().path("passphrase");
        fs::write(&passphrase, "a passphrase\n").unwrap();
        let second = backed.dir().file_url("second");
        let init = backed.init().arg(second).arg("--passphrase-file").arg(passphrase);
        init.run().expect_success();
        let two = Self { backed };
        two.write(seed, 40);
        two.cli("compact", &[]).expect_success();
        two.write(seed + 1, 10);
        two.level();
        two
    }

    /// One more session. Whoever writes may write to one destination only: `level` makes them alike.
    pub fn write(&self, seed: u64, steps: usize) {
        let config = WorkloadConfig::seeded(seed).lean();
        let exists = self.backed.network_file("lightningd.sqlite3").exists();
        let mut workload = Workload::new(config);
        let mut node = match exists {
            false => self.backed.running(&mut workload),
            true => self.backed.launch(),
        };
        for step in 0..steps {
            let sql = format!(
                "INSERT OR REPLACE INTO vars (name, intval) VALUES ('mark {seed} {}', {step})",
                step % 5
            );
            node.write(&lockstep_tests::Step::transaction([sql])).unwrap().expect_committed();
        }
        node.stop().unwrap();
    }

    /// Makes both hold the same.
    #[track_caller]
    pub fn level(&self) {
        self.cli("verify", &["--heal"]).expect_success();
        assert_eq!(self.content("store"), self.content("second"));
    }

    /// A verb for this node.
    pub fn cli(&self, verb: &str, args: &[&str]) -> Output {
        let words = verb.split(' ').chain(args.iter().copied());
        Cli::new(words).arg("--lightning-dir").arg(self.backed.network_dir()).run()
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.backed.dir().path(name)
    }

    /// All files of a destination with what is in them; of segments without the zeros at the end.
    pub fn content(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = self.folder(name);
        let read = |file: PathBuf| {
            let mut bytes = fs::read(folder.join(&file)).unwrap();
            if file.extension().is_some_and(|end| end == "seg") {
                bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1));
            }
            (file, bytes)
        };
        files_under(&folder).into_iter().map(read).collect()
    }

    /// The files of a destination that end so, oldest first.
    pub fn files(&self, name: &str, end: &str) -> Vec<PathBuf> {
        let folder = self.folder(name);
        let files = files_under(&folder).into_iter().map(|file| folder.join(file));
        files.filter(|file| file.to_str().unwrap().ends_with(end)).collect()
    }

    /// A copy of a destination as it is now, to be put back with [`put_back`](Self::put_back).
    pub fn keep(&self, name: &str) -> PathBuf {
        let free = (0..).map(|number| self.folder(&format!("{name}-kept-{number}")));
        let kept = { free }.find(|folder| !folder.exists()).unwrap();
        copy_dir(&self.folder(name), &kept).unwrap();
        kept
    }

    pub fn put_back(&self, name: &str, kept: &Path) {
        fs::remove_dir_all(self.folder(name)).unwrap();
        copy_dir(kept, &self.folder(name)).unwrap();
    }
}

pub fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[track_caller]
pub fn says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output}");
    for word in words {
        let found = output.stdout.contains(word) || output.stderr.contains(word);
        assert!(found, "'{word}' is not in: {output}");
    }
}
