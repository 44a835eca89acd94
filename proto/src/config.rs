//! `backup.lock`: which store a database belongs to, and where it is written. In the network directory,
//! because nothing that `db_write` needs may come from an option of lightningd.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::destination::Destination;
use crate::error::{Error, Result};
use crate::heartbeat::INTERVAL_S;
use crate::record::{Destinations, KnownDestination};
use crate::replica::{Mode, Policy as Replication};
use crate::retention::Policy;
use crate::seal::{KeyError, KeyRing, StoreId};
use crate::store::{Fencing, Options, sync_parent};
use crate::version::FORMAT_VERSION;

/// Name of the folder that the shadow is kept in.
pub const SHADOW_FOLDER: &str = "backup.shadow";
/// Name of the folder that a standby is kept in.
pub const STANDBY_FOLDER: &str = "backup.standby";
/// Name of the lock file in the network directory.
pub const LOCK_FILE: &str = "backup.lock";
/// Name of the file with the credentials of the destinations, beside it: one `NAME=VALUE` a line.
pub const CREDENTIALS_FILE: &str = "backup-credentials";
/// Name of the key file beside it.
pub const KEY_FILE: &str = "backup.key";

const FORMAT: &str = "lockstep-lock";
/// How long an append is tried again before lightningd is stopped, where nothing else is configured.
const STALL_TIMEOUT_S: u64 = 60;

/// Bytes of log behind the newest snapshot that start a compaction, where nothing else is configured.
const TAIL_BYTES: u64 = 32 << 20;
/// Expected seconds of its replay that do.
const REPLAY_SECONDS: u64 = 60;

/// Bytes of a database whose content is compared at lightningd's start, where nothing else is configured: half a
/// second where it is in memory, a second from a slow disk.
const COMPARE_MAX_BYTES: u64 = 128 << 20;

/// A destination and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedDestination {
    /// How messages and commands name it.
    pub name: String,
    /// Where it is.
    pub url: Destination,
    /// Whether an append waits for it.
    #[serde(default, skip_serializing_if = "Mode::is_sync")]
    pub mode: Mode,
    /// How well the place keeps a second writer out, as it was found when the backup was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fencing: Option<Fencing>,
}

impl NamedDestination {
    /// One that counts, and of which nothing more is known.
    pub fn new(name: impl Into<String>, url: Destination) -> Self {
        Self { name: name.into(), url, mode: Mode::Sync, fencing: None }
    }
}

/// The content of the lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockFile {
    format: String,
    version: u16,
    /// The store that this directory's database belongs to.
    pub store_id: StoreId,
    /// Tells this directory from any other that the database was restored to: the log belongs to one.
    pub directory: String,
    /// Where the log is written.
    pub destinations: Vec<NamedDestination>,
    /// How many of the `sync` destinations must have a record before it is acknowledged; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<u32>,
    /// Seconds that an append is tried again before lightningd is stopped.
    #[serde(default = "stall_timeout_s")]
    pub stall_timeout_s: u64,
    /// Seconds after which a quiet node says at each destination that it is alive.
    #[serde(default = "heartbeat_s", skip_serializing_if = "is_usual_heartbeat")]
    pub heartbeat_s: u64,
    /// The wallet, where it is not `lightningd.sqlite3` beside this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wallet: Option<PathBuf>,
    /// Which points in time stay.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retention: Policy,
    /// When the plugin compacts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compaction: Compaction,
    /// Where the plugin gives numbers for Prometheus: nowhere, unless this says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// Which files are kept beside the database.
    #[serde(default, skip_serializing_if = "is_default")]
    pub files: Files,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn stall_timeout_s() -> u64 {
    STALL_TIMEOUT_S
}

fn heartbeat_s() -> u64 {
    INTERVAL_S
}

fn is_usual_heartbeat(seconds: &u64) -> bool {
    *seconds == INTERVAL_S
}

/// When the plugin compacts, and with what: the section `compaction` of the lock file. What is not in it has its
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compaction {
    /// Whether it does so by itself. `backup-compact` does it in any case.
    pub enabled: bool,
    /// Bytes of log, as they are stored, behind the newest snapshot that start one. 32 MiB.
    pub tail_bytes: u64,
    /// Seconds that a restore is expected to replay them which start one. 60.
    pub replay_seconds: u64,
    /// Folder of the shadow, as a path from the network directory. `backup.shadow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<PathBuf>,
    /// Bytes of the node's database beyond which it is not compacted by the plugin: the shadow takes as much of
    /// this machine's disk. No limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_max_bytes: Option<u64>,
    /// Bytes of the node's database beyond which it is not read at the start, to be compared with the shadow later.
    /// 128 MiB.
    pub compare_max_bytes: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            enabled: true,
            tail_bytes: TAIL_BYTES,
            replay_seconds: REPLAY_SECONDS,
            shadow: None,
            shadow_max_bytes: None,
            compare_max_bytes: COMPARE_MAX_BYTES,
        }
    }
}

/// Where the plugin gives numbers for Prometheus: the section `metrics` of the lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Address and port.
    pub listen: SocketAddr,
    /// Whether that may be another address than this machine's own. False.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remote: bool,
}

/// Which companion files are kept: the section `files` of the lock file. What is not in it has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Files {
    /// Whether any are. True.
    pub enabled: bool,
    /// `hsm_secret`, too: whoever opens the backup then has the node's keys. False.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub include_secret: bool,
    /// Others, by their paths from the network directory, or absolute; of a folder the files in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
}

impl Default for Files {
    fn default() -> Self {
        Self { enabled: true, include_secret: false, include: Vec::new() }
    }
}

impl Compaction {
    /// The shadow's folder, for the network directory `directory`.
    pub fn shadow_in(&self, directory: &Path) -> PathBuf {
        directory.join(self.shadow.as_deref().unwrap_or(Path::new(SHADOW_FOLDER)))
    }
}

impl LockFile {
    /// With these destinations, all of which count, and the default settings.
    pub fn new(
        store_id: StoreId,
        directory: String,
        destinations: Vec<NamedDestination>,
        wallet: Option<PathBuf>,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            store_id,
            directory,
            destinations,
            quorum: None,
            stall_timeout_s: STALL_TIMEOUT_S,
            heartbeat_s: INTERVAL_S,
            wallet,
            retention: Policy::default(),
            compaction: Compaction::default(),
            files: Files::default(),
            metrics: None,
        }
    }

    /// A fresh name for a directory, 32 hexadecimal digits.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn new_directory() -> Result<String> {
        let name: [u8; 16] = crate::seal::random_token()?;
        Ok(crate::hex::encode(&name))
    }

    /// After how long a quiet node says that it is alive: at least a second.
    pub fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(self.heartbeat_s.max(1))
    }

    /// How long an append is tried again.
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout_s)
    }

    /// The destinations that are written to, the first of them first, with the credentials and settings of
    /// `options`.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is none, two have one name, or the policy makes no sense.
    pub fn destinations(&self, options: &Options) -> Result<Vec<NamedDestination>> {
        self.policy()?;
        let mut destinations = self.destinations.clone();
        for (index, destination) in destinations.iter_mut().enumerate() {
            let name = &destination.name;
            if self.destinations[..index].iter().any(|other| other.name == *name) {
                return Err(Error::Refused {
                    what: format!("'{LOCK_FILE}' names two destinations '{name}'"),
                    hint: "give one of them another name in it.".into(),
                });
            }
            let patience = self.stall_timeout();
            destination.url = destination.url.clone().with_options(options).with_patience(patience);
        }
        Ok(destinations)
    }

    /// When a record is acknowledged.
    ///
    /// # Errors
    /// [`Error::Refused`] where the destinations and the quorum make no sense together.
    pub fn policy(&self) -> Result<Replication> {
        let sync = self.destinations.iter().filter(|destination| destination.mode.is_sync());
        Replication::new(sync.count(), self.quorum)
    }

    /// What the log says of its places: nothing where there is one.
    pub fn known_destinations(&self) -> Destinations {
        if self.destinations.len() < 2 {
            return Destinations::default();
        }
        let known = |destination: &NamedDestination| KnownDestination {
            name: destination.name.clone(),
            url: destination.url.to_string(),
            mode: destination.mode,
        };
        Destinations { named: self.destinations.iter().map(known).collect(), quorum: self.quorum }
    }

    /// Reads the lock file in `directory`; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is the Python plugin's, or none of ours.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(LOCK_FILE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(Error::file("read", &path))?,
        };
        Self::decode(&bytes, &path).map(Some)
    }

    /// Reads the content of the file at `path`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let refused = |what: &str, hint: &str| Error::Refused {
            what: format!("'{}' {what}", path.display()),
            hint: hint.into(),
        };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| {
            refused("is not readable", "restore it, or remove it and run 'backup-cli init'.")
        })?;
        if value.get("backend_url").is_some() {
            return Err(refused(
                "belongs to the Python plugin 'backup'",
                "stop lightningd and run 'backup-cli import OLD URL --lightning-dir DIR', OLD being its \
                 backup; keep that until the first 'backup-cli verify' has passed.",
            ));
        }
        if value.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
            return Err(refused(
                "is not a lock file of lockstep",
                "move it aside and run 'backup-cli init'.",
            ));
        }
        if let Some(version) = value.get("version").and_then(serde_json::Value::as_u64)
            && version != u64::from(FORMAT_VERSION)
        {
            let found = u16::try_from(version).unwrap_or(u16::MAX);
            return Err(Error::FormatVersion { object: LOCK_FILE.into(), found });
        }
        serde_json::from_value(value).map_err(|error| {
            refused(&format!("is malformed: {error}"), "correct it, or restore it from a copy.")
        })
    }

    /// Writes it, in place of the one that is there.
    ///
    /// # Errors
    /// Where the directory cannot be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(LOCK_FILE);
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::damaged(format!("'{LOCK_FILE}'"), error))?;
        bytes.push(b'\n');
        write_file(&path, &bytes, 0o600, true)
    }
}

/// Reads the key ring at `path`, which only its owner may be able to read.
///
/// # Errors
/// [`Error::Refused`] where others can read it; [`Error::Key`] where it is no key ring.
pub fn read_key_file(path: &Path) -> Result<KeyRing> {
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    expect_private(&file, path, "0400")?;
    let len = file.metadata().map_err(Error::file("look at", path))?.len();
    // As long from the beginning: what grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1));
    file.read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    KeyRing::decode(&bytes).map_err(|error| match error {
        KeyError::Malformed => Error::Refused {
            what: format!("'{}' is not a key ring of lockstep", path.display()),
            hint:
                "move it aside; 'backup-cli key write --lightning-dir DIR' makes it again from the \
                   node's secret."
                    .into(),
        },
        error => error.into(),
    })
}

/// Refuses a file that others can read or write, or that is another user's, who can change that at any time. root may use
/// anybody's.
fn expect_private(file: &File, path: &Path, mode: &str) -> Result<()> {
    let found = file.metadata().map_err(Error::file("look at", path))?;
    if found.mode() & 0o077 != 0 {
        let bits = found.mode() & 0o777;
        return Err(Error::Refused {
            what: format!("'{}' can be read by others (mode {bits:o})", path.display()),
            hint: format!("chmod {mode} {}", path.display()),
        });
    }
    let (owner, user) = (found.uid(), rustix::process::geteuid().as_raw());
    if is_anothers(owner, user) {
        return Err(Error::Refused {
            what: format!("'{}' belongs to user {owner}, not to {user}", path.display()),
            hint: format!("chown {user} {}", path.display()),
        });
    }
    Ok(())
}

/// Whether `user` cannot rely on a file of `owner`'s. root changes any file, and may use any.
fn is_anothers(owner: u32, user: u32) -> bool {
    const ROOT: u32 = 0;
    user != ROOT && owner != ROOT && owner != user
}

/// Reads `backup-credentials` in `directory`, which only its owner may be able to read: `NAME=VALUE` lines, with the
/// names that the environment would have. Nothing where there is no such file.
///
/// # Errors
/// [`Error::Refused`] where others can read it, or a line is something else; lines are not repeated.
pub fn read_credentials(directory: &Path) -> Result<Options> {
    let path = directory.join(CREDENTIALS_FILE);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Options::default()),
        file => file.map_err(Error::file("open", &path))?,
    };
    expect_private(&file, &path, "0600")?;
    let text = Zeroizing::new(io::read_to_string(file).map_err(Error::file("read", &path))?);
    let mut vars = Vec::new();
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| Error::Refused {
            what: format!("'{}' line {number} is not NAME=VALUE", path.display()),
            hint: "write one such pair a line, as AWS_ACCESS_KEY_ID=…".into(),
        })?;
        vars.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(Options::from_vars(vars))
}

/// What the environment says about destinations, and, before that, the credentials in `directory`.
///
/// # Errors
/// As [`read_credentials`].
pub fn destination_options(
    directory: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Options> {
    let text = |(key, value): (OsString, OsString)| {
        Some((key.into_string().ok()?, value.into_string().ok()?))
    };
    let environment = Options::from_vars(environment.into_iter().filter_map(text));
    let file = directory.map(read_credentials).transpose()?.unwrap_or_default();
    Ok(environment.overridden_by(file))
}

/// Writes the key ring to a new file that only its owner can read.
///
/// # Errors
/// Where there is one already, or the directory cannot be written.
pub fn write_key_file(path: &Path, keys: &KeyRing) -> Result<()> {
    write_file(path, &keys.encode()?, 0o400, false)
}

/// Writes a file whole: to a temporary name, synced, then under its own, then the directory synced.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32, replace: bool) -> Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if replace {
            std::fs::rename(&temporary, path)?;
        } else {
            std::fs::hard_link(&temporary, path)?;
        }
        sync_parent(path)
    })();
    let _ = std::fs::remove_file(&temporary);
    written.map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(compaction: &str) -> Result<Option<LockFile>> {
        let folder = tempfile::tempdir().unwrap();
        let url: Destination = "/backup".parse().unwrap();
        let destination = NamedDestination::new("nas", url);
        let lock = LockFile::new(StoreId([1; 16]), "here".into(), vec![destination], None);
        let text = serde_json::to_string(&lock).unwrap();
        assert!(!text.contains("compaction"), "defaults are not frozen into the file");
        let text = format!("{},\"compaction\":{compaction}}}", &text[..text.len() - 1]);
        std::fs::write(folder.path().join(LOCK_FILE), text).unwrap();
        LockFile::read(folder.path())
    }

    #[test]
    fn what_the_section_lacks_has_its_default() {
        let lock = read("{}").unwrap().unwrap();
        assert_eq!(lock.compaction, Compaction::default());
        assert_eq!(lock.compaction.shadow_in(Path::new("/n")), Path::new("/n/backup.shadow"));
        let lock = read(r#"{"tail_bytes": 7, "shadow": "/ssd/s"}"#).unwrap().unwrap();
        assert_eq!((lock.compaction.tail_bytes, lock.compaction.enabled), (7, true));
        assert_eq!(lock.compaction.shadow_in(Path::new("/n")), Path::new("/ssd/s"));
    }

    #[test]
    fn a_setting_is_in_the_file_where_it_is_not_the_usual_one() {
        let destination = NamedDestination::new("nas", "/backup".parse().unwrap());
        let mut lock = LockFile::new(StoreId([1; 16]), "here".into(), vec![destination], None);
        let again = |lock: &LockFile| {
            let text = serde_json::to_string(lock).unwrap();
            assert_eq!(serde_json::from_str::<LockFile>(&text).unwrap(), *lock);
            text
        };
        let usual = again(&lock);
        for setting in ["heartbeat_s", "retention", "compaction", "files"] {
            assert!(!usual.contains(setting), "{setting}");
        }
        lock.heartbeat_s = 7;
        lock.compaction.tail_bytes = 7;
        let text = again(&lock);
        assert!(
            text.contains(r#""heartbeat_s":7"#) && text.contains(r#""tail_bytes":7"#),
            "{text}"
        );
    }

    #[test]
    fn a_lock_file_without_a_setting_has_the_usual_one() {
        let folder = tempfile::tempdir().unwrap();
        let destination = NamedDestination::new("nas", "/backup".parse().unwrap());
        let usual = LockFile::new(StoreId([1; 16]), "here".into(), vec![destination], None);
        let mut value = serde_json::to_value(&usual).unwrap();
        value.as_object_mut().unwrap().remove("stall_timeout_s").unwrap();
        let lock = LockFile::decode(value.to_string().as_bytes(), folder.path()).unwrap();
        assert_eq!(lock, usual);
        assert_eq!(lock.heartbeat_interval(), Duration::from_secs(INTERVAL_S));
        let often = LockFile { heartbeat_s: 0, ..usual };
        assert_eq!(often.heartbeat_interval(), Duration::from_secs(1));
    }

    #[test]
    fn no_two_directories_have_one_name() {
        let names = [(); 2].map(|()| LockFile::new_directory().unwrap());
        assert_ne!(names[0], names[1]);
        assert_eq!(names[0].len(), 32);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(LockFile::read(folder.path()).unwrap().is_none());
        assert!(read_credentials(folder.path()).unwrap() == Options::default());
        for name in [LOCK_FILE, CREDENTIALS_FILE] {
            // It leads nowhere but to itself.
            std::os::unix::fs::symlink(name, folder.path().join(name)).unwrap();
        }
        assert!(LockFile::read(folder.path()).is_err());
        assert!(read_credentials(folder.path()).is_err());
    }

    #[test]
    fn credentials_may_have_comments_and_empty_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CREDENTIALS_FILE);
        let text = b"# of the bucket\n\n AWS_ACCESS_KEY_ID = me \n";
        write_file(&path, text, 0o600, true).unwrap();
        let vars = [("AWS_ACCESS_KEY_ID".to_owned(), "me".to_owned())];
        assert!(read_credentials(folder.path()).unwrap() == Options::from_vars(vars));
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        write_file(&folder.path().join(CREDENTIALS_FILE), b"", 0o640, true).unwrap();
        assert!(matches!(read_credentials(folder.path()), Err(Error::Refused { .. })));
        let path = folder.path().join("key");
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        write_file(&path, &keys.encode().unwrap(), 0o404, true).unwrap();
        assert!(matches!(read_key_file(&path), Err(Error::Refused { .. })));
    }

    #[test]
    fn a_file_of_another_user_than_root_is_refused_but_to_root() {
        for (owner, user, is_refused) in
            [(0, 0, false), (7, 0, false), (0, 7, false), (7, 7, false), (8, 7, true)]
        {
            assert_eq!(is_anothers(owner, user), is_refused, "of {owner}, to {user}");
        }
    }

    #[test]
    fn the_log_names_its_places_where_there_are_several() {
        let place = |name: &str| NamedDestination::new(name, "/backup".parse().unwrap());
        let lock = |places| {
            LockFile::new(StoreId([1; 16]), "here".into(), places, None).known_destinations()
        };
        assert!(lock(vec![place("a")]).is_empty());
        let named: Vec<_> =
            lock(vec![place("a"), place("b")]).named.into_iter().map(|known| known.name).collect();
        assert_eq!(named, ["a", "b"]);
        let places = ["a", "b", "c"].map(place).to_vec();
        assert_eq!(lock(places).named.len(), 3);
    }

    #[test]
    fn a_setting_that_is_none_is_refused_by_name() {
        let error = read(r#"{"tail_byte": 7}"#).unwrap_err().to_string();
        assert!(error.contains("tail_byte"), "{error}");
    }
}
