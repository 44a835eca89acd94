//! Companion files: what a node needs beside its database. All of them are one small sealed object, a *set*; when one
//! changes, another set is made. The newest counts.
//!
//! A set never forgets: a file that is gone from the directory stays in it as it was last.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::config::{Files, write_file};
use crate::error::{Error, Result};
use crate::hex;
use crate::layout;
use crate::record::TimeMs;
use crate::seal::{KeyRing, ObjectKind};
use crate::sealed;
use crate::store::{Store, StoreErrorKind};

/// A larger file is no companion: every change of one is stored again with all others.
pub const FILE_MAX: u64 = 4 << 20;
/// Sets that stay in a store.
const KEPT: usize = 8;

/// One file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompanionFile {
    /// Its path from the network directory, or an absolute one.
    pub name: String,
    /// Its permissions.
    pub mode: u32,
    /// When it was changed.
    pub modified: TimeMs,
    /// All of it.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub content: Zeroizing<Vec<u8>>,
}

impl CompanionFile {
    /// Writes it to a new file, with its permissions.
    ///
    /// # Errors
    /// Where there is one already, or the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_file(path, &self.content, self.mode & 0o777, false)
    }
}

/// Never the content.
impl fmt::Debug for CompanionFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.content.len())
    }
}

/// All of them at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSet {
    /// When they were read.
    pub time: TimeMs,
    /// `include` of the node's settings, so that a restored node keeps the same.
    #[serde(default)]
    pub include: Vec<String>,
    /// `include_secret` of them.
    #[serde(default)]
    pub include_secret: bool,
    /// In the order of their names, each once.
    pub files: Vec<CompanionFile>,
}

/// A name whose file is not in the set, and why.
pub type Unread = (String, String);

impl FileSet {
    /// Reads these files of `directory`. Of one that is not there, or cannot be read, what `previous` has stays; why it
    /// could not be read is given besides.
    pub fn read(
        directory: &Path,
        names: &[String],
        settings: &Files,
        previous: Option<&Self>,
        time: TimeMs,
    ) -> (Self, Vec<Unread>) {
        let (mut files, mut unread) = (Vec::new(), Vec::new());
        for name in names {
            let kept = || previous?.files.iter().find(|file| file.name == *name).cloned();
            match read_one(directory, name) {
                Ok(found) => files.extend(found.or_else(kept)),
                Err(why) => {
                    files.extend(kept());
                    unread.push((name.clone(), why));
                }
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files.dedup_by(|a, b| a.name == b.name);
        let Files { include, include_secret, .. } = settings.clone();
        (Self { time, include, include_secret, files }, unread)
    }

    /// True where it says the same as another, whenever the two were read.
    pub fn says_what(&self, other: &Self) -> bool {
        let what = |set: &Self| (set.include.clone(), set.include_secret, set.files.len());
        let same = |(a, b): (&CompanionFile, &CompanionFile)| {
            (&a.name, a.mode, &a.content) == (&b.name, b.mode, &b.content)
        };
        what(self) == what(other) && self.files.iter().zip(&other.files).all(same)
    }

    /// The bytes of the set that so many of `epoch` come before, the same for each place.
    ///
    /// # Errors
    /// Where the operating system has no randomness to give.
    pub fn seal(&self, keys: &KeyRing, at: (u32, u32)) -> Result<Vec<u8>> {
        sealed::seal(keys, ObjectKind::Files, at, self)
    }

    /// Puts the bytes of a set into a store, and removes those that are too old to be of use.
    ///
    /// # Errors
    /// Where the store cannot be written.
    pub fn store(store: &dyn Store, at: (u32, u32), bytes: &[u8]) -> Result<()> {
        store.create(&layout::files(at.0, at.1), bytes)?;
        let all = sets(store)?;
        let mut old = all.iter().rev().skip(KEPT);
        old.try_for_each(|&(epoch, index)| Ok(store.remove(&layout::files(epoch, index))?))
    }

    /// Reads the set of an epoch and index.
    ///
    /// # Errors
    /// Where it is damaged, or cannot be read.
    pub fn read_at(store: &dyn Store, keys: &KeyRing, at: (u32, u32)) -> Result<Self> {
        let name = layout::files(at.0, at.1);
        sealed::open(keys, ObjectKind::Files, at, &name, &store.read(&name)?)
    }

    /// The newest set of a store, if there is one.
    ///
    /// # Errors
    /// Where it is damaged, or cannot be read: an older one is never taken in its place unasked.
    pub fn newest(store: &dyn Store, keys: &KeyRing) -> Result<Option<Self>> {
        for at in sets(store)?.into_iter().rev() {
            match Self::read_at(store, keys, at) {
                // Newer ones were made meanwhile.
                Err(Error::Store(error)) if matches!(error.kind, StoreErrorKind::NotFound) => {}
                read => return read.map(Some),
            }
        }
        Ok(None)
    }

    /// Puts those files into a restored node's directory that belong into it and are not there.
    ///
    /// # Errors
    /// Where the directory cannot be written.
    pub fn put_back(&self, directory: &Path) -> Result<PutBack> {
        let mut names = PutBack::default();
        for file in &self.files {
            let path = directory.join(&file.name);
            if !is_inside(&file.name) || path.symlink_metadata().is_ok() {
                if !fs::read(&path).is_ok_and(|there| there == *file.content) {
                    names.left.push(file.name.clone());
                }
                continue;
            }
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
            }
            file.write(&path)?;
            names.put.push(file.name.clone());
        }
        Ok(names)
    }
}

/// What became of companion files in a restore, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Written.
    pub put: Vec<String>,
    /// There already, with another content, or none of the directory's own: for a person to ask for.
    pub left: Vec<String>,
}

/// A path that leads to a place below the directory that it starts from.
fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Epoch and index of each set, oldest first.
fn sets(store: &dyn Store) -> Result<Vec<(u32, u32)>> {
    let entries = store.list(layout::FILES)?;
    let mut sets: Vec<_> =
        entries.iter().filter_map(|entry| layout::parse_files(&entry.name)).collect();
    sets.sort_unstable();
    Ok(sets)
}

/// `None` where there is no such file.
fn read_one(directory: &Path, name: &str) -> std::result::Result<Option<CompanionFile>, String> {
    let path = directory.join(name);
    let found = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(|error| error.to_string())?,
    };
    if !found.is_file() {
        return Err("it is not a file".into());
    }
    if found.len() > FILE_MAX {
        return Err(format!("it has {} bytes, more than {FILE_MAX}", found.len()));
    }
    let content = fs::read(&path).map(Zeroizing::new).map_err(|error| error.to_string())?;
    let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |since| since.as_millis() as TimeMs);
    Ok(Some(CompanionFile { name: name.into(), mode: found.mode() & 0o777, modified, content }))
}

fn to_hex<S: Serializer>(content: &[u8], to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&Zeroizing::new(hex::encode(content)))
}

fn from_hex<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<Zeroizing<Vec<u8>>, D::Error> {
    let text = Zeroizing::new(String::deserialize(from)?);
    let bytes = hex::decode_vec(&text).map(Zeroizing::new);
    bytes.ok_or_else(|| serde::de::Error::custom("not hexadecimal"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::StoreId;
    use crate::store::FileStore;

    fn read(folder: &Path, names: &[&str], previous: Option<&FileSet>) -> (FileSet, Vec<Unread>) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        FileSet::read(folder, &names, &Files::default(), previous, 7)
    }

    fn names(set: &FileSet) -> Vec<&str> {
        set.files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn a_file_that_is_gone_or_unreadable_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| fs::write(folder.path().join(name), content);
        write("config", "alias=a").unwrap();
        write("ca.pem", "certificate").unwrap();
        let all = ["config", "ca.pem", "none"];
        let (first, unread) = read(folder.path(), &all, None);
        assert_eq!((names(&first), unread.len()), (vec!["ca.pem", "config"], 0));
        fs::remove_file(folder.path().join("ca.pem")).unwrap();
        write("config", "alias=b").unwrap();
        let (second, _) = read(folder.path(), &all, Some(&first));
        assert_eq!(names(&second), ["ca.pem", "config"]);
        assert!(!second.says_what(&first));
        assert_eq!(**second.files[1].content, *b"alias=b");
        // Too large: what was there before stays, and that is said.
        write("config", &"x".repeat(FILE_MAX as usize + 1)).unwrap();
        let (third, unread) = read(folder.path(), &all, Some(&second));
        assert!(third.says_what(&second));
        assert_eq!(unread[0].0, "config");
        // So it is with one that cannot be looked at.
        let (_, unread) = read(folder.path(), &["config/x"], Some(&second));
        assert_eq!(unread[0].0, "config/x");
        // No longer wanted: no longer there.
        let (fourth, _) = read(folder.path(), &["config"], Some(&second));
        assert_eq!(names(&fourth), ["config"]);
    }

    #[test]
    fn the_largest_file_is_taken_with_its_permissions_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "x".repeat(FILE_MAX as usize)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let (set, unread) = read(folder.path(), &["config"], None);
        assert_eq!((names(&set), unread.len()), (vec!["config"], 0));
        assert_eq!(set.files[0].mode, 0o640);
    }

    #[test]
    fn the_newest_set_counts_and_old_ones_go() {
        let (folder, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = FileStore::create_root(place.path()).unwrap();
        let keys = KeyRing::generate(StoreId([1; 16])).unwrap();
        assert_eq!(FileSet::newest(&store, &keys).unwrap(), None);
        for index in 0..12_u32 {
            fs::write(folder.path().join("config"), format!("{index}")).unwrap();
            let (set, _) = read(folder.path(), &["config"], None);
            let at = (1 + index / 6, index % 6);
            FileSet::store(&store, at, &set.seal(&keys, at).unwrap()).unwrap();
            assert_eq!(FileSet::newest(&store, &keys).unwrap(), Some(set));
        }
        assert_eq!(sets(&store).unwrap().len(), KEPT);
        // One that was moved to another name is not what it says.
        let from = place.path().join(layout::files(2, 5));
        fs::copy(from, place.path().join(layout::files(3, 0))).unwrap();
        assert!(matches!(FileSet::newest(&store, &keys), Err(Error::Damaged { .. })));
    }

    #[test]
    fn only_what_belongs_below_is_put_back_and_nothing_is_replaced() {
        let file = |name: &str| CompanionFile {
            name: name.into(),
            mode: 0o600,
            modified: 0,
            content: Zeroizing::new(name.as_bytes().to_vec()),
        };
        let names = ["config", "kept", "same", "a/b.pem", "../config", "/etc/x", "a/../../y", ""];
        let files = names.map(file).to_vec();
        let set = FileSet { time: 1, include: Vec::new(), include_secret: false, files };
        let outer = tempfile::tempdir().unwrap();
        let node = outer.path().join("node");
        fs::create_dir(&node).unwrap();
        fs::write(node.join("kept"), "mine").unwrap();
        fs::write(node.join("same"), "same").unwrap();
        let names = set.put_back(&node).unwrap();
        assert_eq!(names.put, ["config", "a/b.pem"]);
        assert_eq!(names.left, ["kept", "../config", "/etc/x", "a/../../y", ""]);
        assert_eq!(fs::read(node.join("kept")).unwrap(), b"mine");
        assert_eq!(fs::metadata(node.join("a/b.pem")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1, "nothing beside it");
    }
}
