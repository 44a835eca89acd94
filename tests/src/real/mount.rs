//! Destinations that fill up, hang and go away. Needs root.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::daemons::{on_path, say};
use super::process::{is_root, signal};
use super::wait::wait_for;

/// Whether mounts can be made here; or a line that says why not.
pub fn possible_or_skip(test: &str) -> bool {
    if !is_root() {
        say(&format!("SKIPPED: {test}: mounting needs root"));
        return false;
    }
    true
}

/// A file system in memory; unmounted with its value.
pub struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    /// One of this size, such as `8m`; `None` and a line where the system forbids it.
    pub fn mount(path: &Path, size: &str, test: &str) -> Option<Self> {
        std::fs::create_dir_all(path).expect("a mount point");
        let arguments = ["-t", "tmpfs", "-o", &format!("size={size}"), "lockstep"];
        if !run(Command::new("mount").args(arguments).arg(path)) {
            say(&format!("SKIPPED: {test}: tmpfs cannot be mounted"));
            return None;
        }
        Some(Self { path: path.to_owned() })
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        let option = format!("remount,size={size}");
        assert!(run(Command::new("mount").args(["-o", &option]).arg(&self.path)), "remount");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// A folder mounted at another place.
pub struct Bind {
    from: PathBuf,
    path: PathBuf,
}

impl Bind {
    /// `None` and a line where the system forbids it.
    pub fn mount(from: &Path, path: &Path, test: &str) -> Option<Self> {
        for folder in [from, path] {
            std::fs::create_dir_all(folder).expect("folders");
        }
        let bind = Self { from: from.to_owned(), path: path.to_owned() };
        if !bind.again() {
            say(&format!("SKIPPED: {test}: nothing can be mounted"));
            return None;
        }
        Some(bind)
    }

    /// Mounts it again.
    pub fn again(&self) -> bool {
        run(Command::new("mount").arg("--bind").arg(&self.from).arg(&self.path))
    }

    /// Takes it away, in use or not.
    pub fn unmount(&self) {
        unmount(&self.path);
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// A folder mounted by a process, which can be stopped.
pub struct Fuse {
    daemon: Child,
    path: PathBuf,
}

impl Fuse {
    /// By `bindfs`; `None` and a line where that is not installed or not allowed.
    pub fn mount(from: &Path, path: &Path, test: &str) -> Option<Self> {
        let Ok(bindfs) = on_path("bindfs") else {
            say(&format!("SKIPPED: {test}: no bindfs"));
            return None;
        };
        if !Path::new("/dev/fuse").exists() {
            say(&format!("SKIPPED: {test}: no /dev/fuse"));
            return None;
        }
        for folder in [from, path] {
            std::fs::create_dir_all(folder).expect("folders");
        }
        let quiet = Stdio::null;
        let daemon = Command::new(bindfs).arg("-f").args([from, path]).stderr(quiet()).spawn();
        let daemon = daemon.expect("bindfs starts");
        wait_for("the mount", || is_mounted(path).then_some(()));
        Some(Self { daemon, path: path.to_owned() })
    }

    /// From here on whoever uses it hangs.
    pub fn hang(&self) {
        signal(&[self.daemon.id()], "STOP");
    }

    /// It answers again.
    pub fn go_on(&self) {
        signal(&[self.daemon.id()], "CONT");
    }

    /// The daemon dies: whoever uses it gets an error.
    pub fn die(&mut self) {
        self.daemon.kill().expect("kill -9");
        self.daemon.wait().expect("its end");
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // What hangs in the kernel ends with an error.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        unmount(&self.path);
    }
}

/// Whether something is mounted there.
pub fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(path))
}

fn unmount(path: &Path) {
    // It may be gone already.
    run(Command::new("umount").arg("-l").arg(path));
}

fn run(command: &mut Command) -> bool {
    let output = command.stdin(Stdio::null()).output().expect("the program runs");
    output.status.success()
}
