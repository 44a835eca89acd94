//! Whether a lightningd runs in a network directory.
//!
//! Three signs are looked for, since each can be missing:
//!
//! - *The RPC socket answers.* lightningd makes it after its database is open, so
//!   not yet during a migration, and a socket without a lightningd stays behind
//!   after a crash: only a connection counts. Source: `setup_jsonrpc` in
//!   `lightningd/jsonrpc.c`, which asks the same way whether it is in use.
//! - *The pid file is locked*, with `lockf`, which on Linux is a POSIX lock. lightningd
//!   takes it before it opens the database and holds it to its end. The file alone
//!   says nothing (a crash leaves it), nor does the number in it alone: lightningd
//!   writes over an older, longer number without cutting the file, so the number is
//!   its first line. It is `lightningd-<network>.pid` in the *base* directory.
//!   Source: `pidfile_create` in `lightningd/lightningd.c`, `handle_early_opts` in
//!   `lightningd/options.c`.
//! - *A process named lightningd works in the directory*: it changes there before
//!   it does anything else and stays. Linux only, and only of processes that we may
//!   look at; this finds nodes whose files were moved on the command line.
//!
//! `rpc-file=` and `pid-file=` in the configuration files are followed. All of it is
//! a look at one moment: a node may start right afterwards.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Flock, FlockType};

use crate::config;
use crate::dir::{DirError, LightningDir};

/// A lightningd that runs, and how one knows; displayed as one phrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningNode {
    evidence: Vec<Evidence>,
}

/// One sign of a running lightningd.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// Something answers on the RPC socket.
    Rpc {
        /// The socket.
        socket: PathBuf,
    },
    /// The pid file is locked.
    PidFile {
        /// The pid file.
        file: PathBuf,
        /// Who holds the lock, if the system or the file tells. Another container's
        /// process has another number there, or none here.
        pid: Option<u32>,
    },
    /// A process named lightningd has the directory as its working directory.
    Process {
        /// The process.
        pid: u32,
    },
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rpc { socket } => write!(f, "'{}' answers", socket.display()),
            Self::PidFile { file, pid: Some(pid) } => {
                write!(f, "process {pid} holds the lock on '{}'", file.display())
            }
            Self::PidFile { file, pid: None } => write!(f, "'{}' is locked", file.display()),
            Self::Process { pid } => write!(f, "lightningd (process {pid}) works in it"),
        }
    }
}

impl fmt::Display for RunningNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, evidence) in self.evidence.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            evidence.fmt(f)?;
        }
        Ok(())
    }
}

impl RunningNode {
    /// What was found, at least one sign.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// lightningd's process, if a sign tells.
    pub fn pid(&self) -> Option<u32> {
        self.evidence.iter().find_map(|evidence| match evidence {
            Evidence::PidFile { pid, .. } => *pid,
            Evidence::Process { pid } => Some(*pid),
            Evidence::Rpc { .. } => None,
        })
    }
}

impl LightningDir {
    /// Whether a lightningd runs here. Never waits, not even for a node that is too
    /// busy to take a connection (that one runs).
    ///
    /// Fails with [`DirError::Io`] where a sign is there but may not be read: then
    /// nobody can say.
    pub fn running(&self) -> Result<Option<RunningNode>, DirError> {
        // A configuration that cannot be read only takes its hints away.
        let lines = config::read(self).unwrap_or_default();
        let configured =
            |name| config::last(&lines, name).map(|(_, value)| self.path().join(value));
        let mut evidence = Vec::new();
        for socket in distinct([Some(self.rpc_socket()), configured("rpc-file")]) {
            if answers(&socket).map_err(DirError::io("connect to", &socket))? {
                evidence.push(Evidence::Rpc { socket });
            }
        }
        let name = self.path().file_name().unwrap_or(OsStr::new(""));
        let name = format!("lightningd-{}.pid", name.to_string_lossy());
        let in_base = self.base().map(|base| base.join(&name));
        let here = Some(self.path().join(&name));
        for file in distinct([in_base, here, configured("pid-file")]) {
            if let Some(pid) = locked(&file).map_err(DirError::io("look for a lock on", &file))? {
                evidence.push(Evidence::PidFile { file, pid });
            }
        }
        evidence.extend(processes_in(self.path()).into_iter().map(|pid| Evidence::Process { pid }));
        Ok((!evidence.is_empty()).then_some(RunningNode { evidence }))
    }
}

fn distinct<const N: usize>(paths: [Option<PathBuf>; N]) -> Vec<PathBuf> {
    let mut distinct: Vec<PathBuf> = Vec::with_capacity(N);
    for path in paths.into_iter().flatten() {
        if !distinct.contains(&path) {
            distinct.push(path);
        }
    }
    distinct
}

/// Whether somebody listens on a Unix socket. A file that is no socket, or one that
/// a crash left behind, refuses.
fn answers(path: &Path) -> io::Result<bool> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    // Else connecting waits while lightningd's queue is full, for as long as one of
    // its hooks is open.
    rustix::io::ioctl_fionbio(&socket, true)?;
    let connected = match SocketAddrUnix::new(path) {
        Ok(address) => rustix::net::connect(&socket, &address),
        Err(Errno::NAMETOOLONG) => {
            with_short_name(path, |address| rustix::net::connect(&socket, address))
        }
        Err(e) => Err(e),
    };
    match connected {
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// A socket's address has room for about 100 bytes. lightningd is in the directory
/// and names the file alone; we go through an open directory instead.
fn with_short_name(
    path: &Path,
    connect: impl FnOnce(&SocketAddrUnix) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::NAMETOOLONG);
    };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let parent = rustix::fs::open(parent, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    connect(&SocketAddrUnix::new(&short)?)
}

/// `Some` if another process holds a POSIX lock on the file, with its number if
/// that is known.
///
/// Closing the file would drop locks on it of this process, which has none.
fn locked(path: &Path) -> io::Result<Option<Option<u32>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let Some(lock) = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?
    else {
        return Ok(None);
    };
    let holder = lock.pid.map(|pid| pid.as_raw_pid()).and_then(|pid| u32::try_from(pid).ok());
    let mut text = [0; 32];
    let read = file.read(&mut text)?;
    let written = text.get(..read).and_then(first_line);
    Ok(Some(holder.or(written)))
}

/// The number in the first line.
fn first_line(text: &[u8]) -> Option<u32> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// The lightningd processes whose working directory is `dir`, as far as `/proc` is
/// there and lets us look. Subdaemons (`lightning_hsmd` …) and plugins do not count.
fn processes_in(dir: &Path) -> Vec<u32> {
    let Ok(wanted) = fs::metadata(dir) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let works_here = |pid: &u32| {
        let process = Path::new("/proc").join(pid.to_string());
        // "contains", for wrappers that rename it (".lightningd-wra").
        fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.contains("lightningd"))
            && fs::metadata(process.join("cwd"))
                .is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (wanted.dev(), wanted.ino()))
    };
    pids.filter(works_here).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};

    struct Node {
        base: tempfile::TempDir,
        dir: LightningDir,
    }

    fn node() -> Node {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("regtest");
        fs::create_dir(&path).unwrap();
        let dir = LightningDir::new(&path);
        Node { base, dir }
    }

    /// Another process, since a process's own locks are not in its own way.
    struct Holder(Child);

    impl Holder {
        /// Run `script` and wait until it says that it is ready.
        fn run(command: &mut Command) -> Self {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            while !lines.next().unwrap().unwrap().contains("ready") {}
            Self(child)
        }

        /// This test binary again, running only [`hold_a_lock`].
        fn of_lock(file: &Path) -> Self {
            Self::run(
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "running::tests::hold_a_lock", "--nocapture"])
                    .env("LOCKSTEP_TEST_LOCK", file),
            )
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Not a test by itself: the process that [`Holder::of_lock`] starts.
    #[test]
    fn hold_a_lock() {
        let Some(path) = std::env::var_os("LOCKSTEP_TEST_LOCK") else { return };
        let file = File::options().write(true).open(path).unwrap();
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .unwrap();
        println!("ready");
        let _ = io::stdin().read(&mut [0]);
    }

    #[test]
    fn nothing_there() {
        assert_eq!(node().dir.running().unwrap(), None);
        assert_eq!(LightningDir::new(Path::new("/nonexistent/regtest")).running().unwrap(), None);
    }

    #[test]
    fn a_socket_that_answers() {
        let node = node();
        let socket = node.dir.rpc_socket();
        let listener = UnixListener::bind(&socket).unwrap();
        let running = node.dir.running().unwrap().unwrap();
        assert_eq!(running.evidence(), [Evidence::Rpc { socket: socket.clone() }]);
        assert_eq!(running.to_string(), format!("'{}' answers", socket.display()));
        assert_eq!(running.pid(), None);
        // What a crash leaves.
        drop(listener);
        assert!(socket.exists());
        assert_eq!(node.dir.running().unwrap(), None);
    }

    #[test]
    fn a_socket_too_busy_to_answer() {
        let node = node();
        let address = SocketAddrUnix::new(node.dir.rpc_socket()).unwrap();
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        let mut connections = Vec::new();
        for _ in 0..8 {
            let client =
                rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
            rustix::io::ioctl_fionbio(&client, true).unwrap();
            let _ = rustix::net::connect(&client, &address);
            connections.push(client);
        }
        assert!(node.dir.running().unwrap().is_some());
    }

    #[test]
    fn a_socket_with_a_path_longer_than_an_address() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("x".repeat(120)).join("regtest");
        fs::create_dir_all(&path).unwrap();
        let dir = LightningDir::new(&path);
        assert_eq!(dir.running().unwrap(), None);
        let link = base.path().join("short");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let _listener = UnixListener::bind(link.join("lightning-rpc")).unwrap();
        assert!(dir.running().unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_no_socket() {
        let node = node();
        fs::write(node.dir.rpc_socket(), "").unwrap();
        assert_eq!(node.dir.running().unwrap(), None);
    }

    #[test]
    fn a_socket_moved_by_the_configuration() {
        let node = node();
        fs::write(node.base.path().join("config"), "rpc-file=other\n").unwrap();
        let _listener = UnixListener::bind(node.dir.path().join("other")).unwrap();
        assert!(node.dir.running().unwrap().is_some());
    }

    #[test]
    fn a_locked_pid_file() {
        let node = node();
        let file = node.base.path().join("lightningd-regtest.pid");
        // 99 was written over a longer number of another time.
        fs::write(&file, "99\n4567\n").unwrap();
        assert_eq!(node.dir.running().unwrap(), None, "a file alone is no sign");
        let holder = Holder::of_lock(&file);
        let running = node.dir.running().unwrap().unwrap();
        let pid = holder.0.id();
        assert_eq!(running.evidence(), [Evidence::PidFile { file: file.clone(), pid: Some(pid) }]);
        assert_eq!(running.pid(), Some(pid));
        assert_eq!(
            running.to_string(),
            format!("process {pid} holds the lock on '{}'", file.display())
        );
        drop(holder);
        assert_eq!(node.dir.running().unwrap(), None);
    }

    #[test]
    fn a_pid_file_elsewhere() {
        let node = node();
        let here = node.dir.path().join("lightningd-regtest.pid");
        fs::write(&here, "1\n").unwrap();
        let holder = Holder::of_lock(&here);
        assert!(node.dir.running().unwrap().is_some());
        drop(holder);
        let other = node.base.path().join("other.pid");
        fs::write(&other, "1\n").unwrap();
        fs::write(node.dir.path().join("config"), "pid-file=../other.pid\n").unwrap();
        let _holder = Holder::of_lock(&other);
        assert!(node.dir.running().unwrap().is_some());
    }

    #[test]
    fn another_network_s_pid_file_is_not_ours() {
        let node = node();
        let file = node.base.path().join("lightningd-bitcoin.pid");
        fs::write(&file, "1\n").unwrap();
        let _holder = Holder::of_lock(&file);
        assert_eq!(node.dir.running().unwrap(), None);
    }

    #[test]
    fn the_pid_is_the_first_line() {
        assert_eq!(first_line(b"99\n4567\n"), Some(99));
        assert_eq!(first_line(b"99"), Some(99));
        assert_eq!(first_line(b""), None);
        assert_eq!(first_line(b"x\n"), None);
    }

    /// A process of that name (a copy of a shell) in the directory.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_in_the_directory() {
        let node = node();
        let program = node.base.path().join("lightningd");
        fs::copy("/bin/sh", &program).unwrap();
        let start = |cwd: &Path| {
            Holder::run(Command::new(&program).args(["-c", "echo ready; read x"]).current_dir(cwd))
        };
        let elsewhere = start(node.base.path());
        assert_eq!(node.dir.running().unwrap(), None);
        let here = start(node.dir.path());
        let running = node.dir.running().unwrap().unwrap();
        assert_eq!(running.evidence(), [Evidence::Process { pid: here.0.id() }]);
        assert_eq!(running.pid(), Some(here.0.id()));
        drop(elsewhere);
    }

    #[test]
    fn an_unreadable_pid_file_is_an_error() {
        let node = node();
        let file = node.base.path().join("lightningd-regtest.pid");
        fs::create_dir(&file).unwrap();
        // A directory opens; reading its lock works and finds none.
        assert_eq!(node.dir.running().unwrap(), None);
        fs::remove_dir(&file).unwrap();
        std::os::unix::fs::symlink("lightningd-regtest.pid", &file).unwrap();
        let error = node.dir.running().unwrap_err();
        assert!(error.to_string().starts_with("look for a lock on '"), "{error}");
    }
}
