//! Directories to run a node in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Set, it keeps every directory and says where.
const KEEP_VARIABLE: &str = "LOCKSTEP_KEEP";

/// A temporary directory with a lightning directory in it. It stays, and its
/// place is printed, when the test panics or `LOCKSTEP_KEEP` is set.
#[derive(Debug)]
pub struct TestDir {
    directory: Option<TempDir>,
    path: PathBuf,
}

impl TestDir {
    /// A new directory, with the network directory of a fresh regtest node.
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// The same in another folder, such as one on another file system.
    pub fn new_in(folder: &Path) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("lockstep-")
            .tempdir_in(folder)
            .expect("a temporary directory");
        let path = directory.path().to_owned();
        let made = Self { directory: Some(directory), path };
        fs::create_dir_all(made.network_dir()).expect("a network directory");
        made
    }

    /// A path inside.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.path.join(inside)
    }

    /// lightningd's `--lightning-dir`.
    pub fn lightning_dir(&self) -> PathBuf {
        self.path("lightning")
    }

    /// Where the database, `hsm_secret` and `backup.lock` live.
    pub fn network_dir(&self) -> PathBuf {
        self.path("lightning/regtest")
    }

    /// A second network directory, as of another machine or a restore.
    pub fn make_dir(&self, inside: impl AsRef<Path>) -> PathBuf {
        let path = self.path(inside);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// Writes a plain `hsm_secret`: 32 bytes of this value, readable by the
    /// owner only.
    pub fn write_hsm_secret(&self, byte: u8) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.network_dir().join("hsm_secret");
        fs::write(&path, [byte; 32]).expect("write hsm_secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("hide hsm_secret");
        path
    }

    /// The URL of a folder inside.
    pub fn file_url(&self, inside: impl AsRef<Path>) -> String {
        format!("file://{}", self.path(inside).display())
    }
}

impl Default for TestDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if (std::thread::panicking() || std::env::var_os(KEEP_VARIABLE).is_some())
            && let Some(directory) = self.directory.take()
        {
            eprintln!("kept {}", directory.keep().display());
        }
    }
}

/// A file system of its own, mounted on a folder until it is dropped.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// A file system in memory, of so many bytes. `None`, and a visible line
    /// on stderr, where this user may not mount.
    pub fn tmpfs(at: &Path, bytes: u64, test: &str) -> Option<Self> {
        fs::create_dir_all(at).expect("a directory");
        let options = format!("size={bytes},mode=700");
        let mounted = mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], at);
        if !mounted {
            eprintln!("{test}: skipped, this user may not mount (root may)");
        }
        mounted.then(|| Self { at: at.to_owned() })
    }

    /// Mounts it again with these options, such as `ro` or `size=…`.
    #[track_caller]
    pub fn remount(&self, options: &str) {
        assert!(mount(&["-o", &format!("remount,{options}")], &self.at), "remount {options}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, since a process may still be in it; what fails here shows as a directory left.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn mount(arguments: &[&str], at: &Path) -> bool {
    let mut command = Command::new("mount");
    command.args(arguments).arg(at).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Copies a directory with everything in it, such as a store at one moment.
/// Sockets and other special files are left out.
pub fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_when_all_went_well() {
        let dir = TestDir::new();
        let path = dir.network_dir();
        dir.write_hsm_secret(7);
        copy_dir(&path, &dir.path("copy")).unwrap();
        assert_eq!(fs::read(dir.path("copy/hsm_secret")).unwrap(), [7; 32]);
        assert!(dir.file_url("store").starts_with("file:///"));
        drop(dir);
        assert!(!path.exists());
    }
}
