//! Which disk a file lies on. Linux; elsewhere nothing is known.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How deep device mappers lie on each other.
const DEPTH_MAX: usize = 8;

/// Where a path lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file system's number.
    device: Option<u64>,
    /// What is mounted there.
    mount: Option<Mount>,
    /// The disks below it, by the kernel's names.
    disks: BTreeSet<String>,
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    source: String,
}

impl Place {
    /// Where `path`, or what it will lie in, is.
    pub fn of(path: &Path) -> Self {
        let there = path.ancestors().find_map(|path| path.canonicalize().ok());
        let device =
            there.as_deref().and_then(|path| path.metadata().ok()).map(|found| found.dev());
        let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mount = there.as_deref().and_then(|path| mount_of(&mounts, path));
        let disks = mount.as_ref().map_or_else(BTreeSet::new, |mount| disks_of(&mount.source));
        Self { device, mount, disks }
    }

    /// What goes with the one goes with the other; in words.
    pub fn shares_with(&self, other: &Self) -> Option<String> {
        if let Some(disk) = self.disks.intersection(&other.disks).next() {
            return Some(format!("the disk {disk}"));
        }
        let same = self.device.is_some() && self.device == other.device;
        let point =
            self.mount.as_ref().map_or("/".into(), |mount| mount.point.display().to_string());
        same.then(|| format!("the file system at {point}"))
    }

    /// True where it is gone with a restart.
    pub fn is_in_memory(&self) -> bool {
        self.mount.as_ref().is_some_and(|mount| matches!(mount.kind.as_str(), "tmpfs" | "ramfs"))
    }
}

/// The mount that `path` lies on: of those above it the deepest, and of several there the last.
fn mount_of(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    let lines = mountinfo.split(|byte| *byte == b'\n').filter_map(parse);
    let above = lines.filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.components().count())
}

/// Fields: id, parent, major:minor, root, mount point, options, optional ones, `-`, kind, source, …
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = unescape(fields.by_ref().nth(4)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let (kind, source) = (text(rest.next()?), text(rest.next()?));
    Some(Mount { point: PathBuf::from(OsStr::from_bytes(&point)), kind, source })
}

/// `\040` for a space, and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                plain.push(code);
                rest = &after[3..];
            }
            _ => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

/// The disks that a device is made of: a partition is its disk, a mapped device those below it.
fn disks_of(source: &str) -> BTreeSet<String> {
    let mut disks = BTreeSet::new();
    if source.starts_with("/dev/")
        && let Ok(device) = Path::new(source).canonicalize()
        && let Some(name) = device.file_name()
    {
        descend(name, DEPTH_MAX, &mut disks);
    }
    disks
}

fn descend(name: &OsStr, depth: usize, disks: &mut BTreeSet<String>) {
    let Ok(device) = Path::new("/sys/class/block").join(name).canonicalize() else { return };
    let below = std::fs::read_dir(device.join("slaves")).into_iter().flatten().flatten();
    let mut mapped = false;
    for entry in below {
        mapped = true;
        if depth > 0 {
            descend(&entry.file_name(), depth - 1, disks);
        }
    }
    if mapped {
        return;
    }
    let disk = match device.join("partition").exists() {
        true => device.parent(),
        false => Some(device.as_path()),
    };
    if let Some(name) = disk.and_then(Path::file_name) {
        disks.insert(name.to_string_lossy().into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n\
        30 22 0:40 / /mnt/my\\040nas rw - nfs4 nas:/export rw,vers=4.2\n\
        31 22 0:41 / /mnt rw - tmpfs tmpfs rw\n\
        32 31 8:17 / /mnt/usb rw shared:9 master:1 - vfat /dev/sdb1 rw\n";

    fn mounted(path: &str) -> (String, String) {
        let mount = mount_of(MOUNTS, Path::new(path)).unwrap();
        (mount.kind, mount.source)
    }

    #[test]
    fn the_deepest_mount_above_a_path_is_its_own() {
        assert_eq!(mounted("/home/a"), ("ext4".into(), "/dev/sda2".into()));
        assert_eq!(mounted("/mnt/my nas/node"), ("nfs4".into(), "nas:/export".into()));
        assert_eq!(mounted("/mnt/other").0, "tmpfs");
        assert_eq!(mounted("/mnt/usb/x/y").1, "/dev/sdb1");
    }

    #[test]
    fn one_folder_shares_with_itself_and_not_with_another_device() {
        let folder = tempfile::tempdir().unwrap();
        let here = Place::of(folder.path());
        assert!(here.shares_with(&Place::of(&folder.path().join("not/there/yet"))).is_some());
        let elsewhere = Place { device: Some(u64::MAX), mount: None, disks: BTreeSet::new() };
        assert_eq!(here.shares_with(&elsewhere), None);
        let disks = BTreeSet::from(["sdz".to_owned()]);
        let one = Place { device: Some(1), mount: None, disks: disks.clone() };
        let other = Place { device: Some(2), mount: None, disks };
        assert_eq!(one.shares_with(&other).as_deref(), Some("the disk sdz"));
    }
}
