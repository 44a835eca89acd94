//! File systems that lack something, and what others left in a folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::store::disk::Found;

/// What is odd about a file system.
#[derive(Clone, Copy)]
enum Oddity {
    None,
    NoLinks,
    LinksFail,
    NoRoomForFolders,
    /// Of each folder it shows a name more, whose file goes away just then.
    Vanishing,
}

/// A folder of the system's, with an oddity.
struct Odd {
    below: Arc<dyn Folder>,
    oddity: Oddity,
}

impl Folder for Odd {
    fn open_folder(&self, name: &str) -> io::Result<Arc<dyn Folder>> {
        Ok(Arc::new(Self { below: self.below.open_folder(name)?, ..*self }))
    }

    fn make_folder(&self, name: &str) -> io::Result<()> {
        match self.oddity {
            Oddity::NoRoomForFolders => Err(Errno::NOSPC.into()),
            _ => self.below.make_folder(name),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn OpenFile>> {
        self.below.create(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        self.below.open(name)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        match self.oddity {
            Oddity::NoLinks => Err(Errno::PERM.into()),
            Oddity::LinksFail => Err(Errno::IO.into()),
            _ => self.below.link(from, to),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.below.remove(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = self.below.names()?;
        if matches!(self.oddity, Oddity::Vanishing) {
            names.push("vanishing".into());
        }
        Ok(names)
    }

    fn look_up(&self, name: &str) -> io::Result<Found> {
        self.below.look_up(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.below.sync()
    }

    /// Wherever the tests run.
    fn is_local(&self) -> bool {
        true
    }

    fn fencing(&self) -> Fencing {
        self.below.fencing()
    }
}

fn odd(oddity: Oddity) -> (TempDir, FileStore) {
    let folder = tempfile::tempdir().unwrap();
    let below = Arc::new(OsFolder::open(folder.path()).unwrap());
    (folder, FileStore::on("odd".into(), Arc::new(Odd { below, oddity })))
}

/// All that lies in a folder, hidden or not.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn without_hard_links_an_object_is_created_once_and_whole() {
    let (folder, store) = odd(Oddity::NoLinks);
    store.create("keys/a", b"first").unwrap();
    assert_eq!(store.read("keys/a").unwrap(), b"first");
    let again = store.create("keys/a", b"second").unwrap_err();
    assert!(matches!(again.kind, StoreErrorKind::Exists), "{again}");
    assert_eq!(store.read("keys/a").unwrap(), b"first");
    assert_eq!(files(&folder.path().join("keys")), ["a"]);
}

/// Without links the name would be there before its content is.
#[test]
fn a_link_that_fails_is_no_lack_of_links() {
    let (folder, store) = odd(Oddity::LinksFail);
    let error = store.create("keys/a", b"first").unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::Io(_)), "{error}");
    assert_eq!(files(&folder.path().join("keys")), [""; 0]);
}

#[test]
fn what_was_written_or_given_up_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::create_root(folder.path()).unwrap();
    store.create("keys/a", b"first").unwrap();
    store.create_stream("keys/b").unwrap().write(b"given up").unwrap();
    store.replace("keys/a", b"second").unwrap();
    assert_eq!(files(&folder.path().join("keys")), ["a"]);
}

#[test]
fn what_is_deleted_under_its_writer_is_gone() {
    let (folder, store) = odd(Oddity::None);
    let mut append = store.create_append("log/00000001/a", b"header").unwrap();
    fs::remove_dir_all(folder.path().join("log/00000001")).unwrap();
    let error = append.append(b"record").unwrap_err();
    assert!(matches!(error.kind, StoreErrorKind::Gone(_)), "{error}");
    let error = store.create_append("log/00000001/b", b"header").err().unwrap();
    assert!(matches!(error.kind, StoreErrorKind::Gone(_)), "{error}");
}

#[test]
fn a_file_system_that_is_none_of_this_machines_disks_is_known_for_it() {
    let elsewhere = OsFolder::open(Path::new("/proc")).unwrap();
    assert!(!elsewhere.is_local());
}

#[test]
fn a_folder_that_there_is_no_room_for_is_named_as_that() {
    let (_folder, store) = odd(Oddity::NoRoomForFolders);
    let error = store.create("keys/a", b"first").unwrap_err();
    assert!(error.hint().unwrap().contains("free space"), "{error}");
}

#[test]
fn what_goes_away_while_a_folder_is_listed_is_left_out() {
    let (_folder, store) = odd(Oddity::Vanishing);
    store.create("keys/a", b"first").unwrap();
    let listed: Vec<_> = store.list("keys").unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(listed, ["a"]);
}

#[test]
fn what_a_dead_process_left_is_removed_after_a_day_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::create_root(folder.path()).unwrap();
    store.create("snapshots/00000001/a", b"snapshot").unwrap();
    let there = folder.path().join("snapshots/00000001");
    let days = |days: u64| SystemTime::now() - Duration::from_secs(days * 24 * 3600 + 600);
    for (name, age) in [(".b.0.tmp", 1), (".c.0.tmp", 0), (".nfs0", 1), ("d.tmp", 1), ("a", 1)] {
        let file = File::options().create(true).append(true).open(there.join(name)).unwrap();
        file.set_modified(days(age)).unwrap();
    }
    store.create_stream("snapshots/00000001/e").unwrap().commit().unwrap();
    assert_eq!(files(&there), [".c.0.tmp", ".nfs0", "a", "d.tmp", "e"]);
}

/// Whoever can write to the place could otherwise have files of this machine overwritten, or taken for the backup's.
#[test]
fn no_symbolic_link_within_the_folder_is_followed() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(elsewhere.path().join("a"), b"elsewhere").unwrap();
    symlink(elsewhere.path(), folder.path().join("keys")).unwrap();
    fs::create_dir(folder.path().join("epochs")).unwrap();
    symlink(elsewhere.path().join("a"), folder.path().join("epochs/a")).unwrap();
    let store = FileStore::open_root(folder.path()).unwrap();
    for name in ["keys/a", "epochs/a"] {
        assert!(store.read(name).is_err(), "{name}");
        assert!(store.create(name, b"new").is_err(), "{name}");
    }
    assert!(store.create("keys/b", b"new").is_err());
    assert_eq!(files(elsewhere.path()), ["a"]);
    assert_eq!(fs::read(elsewhere.path().join("a")).unwrap(), b"elsewhere");
}
