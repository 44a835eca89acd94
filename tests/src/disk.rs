//! A small disk of its own, whose power can be cut: a file with a file system in it, mounted from a loop device.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::testdir::TestDir;

/// Its file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's own.
    Ext4,
    /// Red Hat's own, and of many NAS.
    Xfs,
    /// In memory: it can fill up, but not lose its power.
    Tmpfs,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Tmpfs => "tmpfs",
        })
    }
}

impl Kind {
    /// The least that is of use.
    fn mebibytes(self) -> u64 {
        match self {
            Self::Ext4 => 16,
            // What its maker takes.
            Self::Xfs => 300,
            Self::Tmpfs => 4,
        }
    }

    fn format(self, image: &Path) -> bool {
        match self {
            Self::Ext4 => run("mkfs.ext4", &["-q", "-F"], &[image]),
            Self::Xfs => run("mkfs.xfs", &["-q", "-f"], &[image]),
            Self::Tmpfs => true,
        }
    }
}

/// The disk; unmounted with its value.
#[derive(Debug)]
pub struct Disk {
    kind: Kind,
    dir: TestDir,
    at: PathBuf,
}

impl Disk {
    /// A new one, as small as can be. `None`, and a line that says so, where such disks cannot be made here.
    pub fn make(kind: Kind, test: &str) -> Option<Self> {
        Self::of(kind, kind.mebibytes(), test)
    }

    /// The same with more room.
    pub fn roomy(kind: Kind, test: &str) -> Option<Self> {
        Self::of(kind, 512, test)
    }

    fn of(kind: Kind, mebibytes: u64, test: &str) -> Option<Self> {
        let dir = TestDir::new();
        let (image, at) = (dir.path("image"), dir.make_dir("disk"));
        let file = File::create(&image).expect("an image");
        file.set_len(mebibytes << 20).expect("its length");
        let disk = Self { kind, dir, at };
        // Without xfs_io there is no way to cut it.
        let possible = (kind == Kind::Tmpfs || run("xfs_io", &["-V"], &[]))
            && kind.format(&image)
            && disk.mount();
        if !possible {
            eprintln!(
                "SKIPPED: {test}: no {kind} can be made and mounted (as root, with xfsprogs)"
            );
        }
        possible.then_some(disk)
    }

    fn mount(&self) -> bool {
        match self.kind {
            Kind::Tmpfs => {
                let options = format!("size={}m,mode=700", self.kind.mebibytes());
                run("mount", &["-t", "tmpfs", "-o", &options, "lockstep"], &[&self.at])
            }
            _ => run("mount", &["-o", "loop"], &[&self.dir.path("image"), &self.at]),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The power goes: nothing reaches the disk any more, what was not synced is gone, and every call fails.
    #[track_caller]
    pub fn shut_down(&self) {
        assert!(run("xfs_io", &["-x", "-c", "shutdown"], &[&self.at]), "shut {} down", self.kind);
    }

    /// The power is back.
    #[track_caller]
    pub fn mount_again(&self) {
        // A process that was killed may hold it for a moment.
        let unmounted = (0..100).any(|_| {
            let unmounted = run("umount", &[], &[&self.at]);
            if !unmounted {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            unmounted
        });
        assert!(unmounted && self.mount(), "mount {} again", self.kind);
    }

    /// A power cut, over at once.
    #[track_caller]
    pub fn cut(&self) {
        self.shut_down();
        self.mount_again();
    }

    /// Fills it up, but for so many bytes.
    pub fn fill_up_to(&self, left: u64) {
        let path = self.at.join("ballast");
        let mut file = File::create(&path).expect("a file");
        let chunk = vec![1; 64 << 10];
        // Until there is no room.
        while file.write_all(&chunk).is_ok() && file.sync_data().is_ok() {}
        let len = file.metadata().expect("its length").len();
        file.set_len(len.saturating_sub(left)).expect("a shorter one");
    }

    /// Takes away what [`fill_up_to`](Self::fill_up_to) wrote.
    pub fn make_room(&self) {
        fs::remove_file(self.at.join("ballast")).expect("remove the ballast");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, since a process may still be in it.
        run("umount", &["-l"], &[&self.at]);
    }
}

fn run(program: &str, arguments: &[&str], paths: &[&Path]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).args(paths).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
