//! Which files of a node are worth keeping beside its database.
//!
//! `emergency.recover` is written anew whenever a channel is opened or closed (`chanbackup`, by rename); the
//! certificates (`*.pem`) are made by the plugins that serve gRPC and REST. `config` exists twice: the base
//! directory's, and the network's.

use std::path::Path;

use crate::LightningDir;
use crate::dir::WALLET;

/// lightningd's own, by their paths from the network directory.
const USUAL: [&str; 3] = ["config", "../config", "emergency.recover"];
const SECRET: &str = "hsm_secret";
/// What opens the backup, says where it is, or is in it anyway.
const NEVER: [&str; 3] = ["backup.key", "backup.lock", "backup-credentials"];

/// Their names: paths from the network directory, or absolute ones. Whether they are there nobody has looked, but for the
/// certificates and what folders of `include` hold: of these also those that there were `before`. The secret is among them
/// only with `secret`.
pub fn companion_names<'a>(
    dir: &LightningDir,
    secret: bool,
    include: &[String],
    before: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let is_wanted = |name: &str| {
        let is_below = |folder: &String| Path::new(name).starts_with(folder);
        is_certificate(name) || include.iter().any(is_below)
    };
    let mut names: Vec<String> = USUAL.iter().map(ToString::to_string).collect();
    names.extend(files_in(dir.path(), "").into_iter().filter(|name| is_certificate(name)));
    for name in include {
        match dir.path().join(name).is_dir() {
            true => names.extend(files_in(dir.path(), name)),
            false => names.push(name.clone()),
        }
    }
    names.extend(before.filter(|name| is_wanted(name)).map(ToOwned::to_owned));
    names.sort();
    names.dedup();
    names.retain(|name| {
        let own = NEVER.contains(&name.as_str()) || name.starts_with(WALLET);
        !own && name != SECRET
    });
    if secret {
        names.push(SECRET.to_owned());
    }
    names
}

/// Of a plugin that serves gRPC or REST.
fn is_certificate(name: &str) -> bool {
    !name.contains('/') && name.ends_with(".pem")
}

/// How a path is named in a set: from the network directory where it is below that, else absolute.
pub fn companion_name(dir: &LightningDir, path: &Path) -> String {
    path.strip_prefix(dir.path()).unwrap_or(path).to_string_lossy().into_owned()
}

/// The files of a folder, not those of folders in it; nothing where it cannot be read.
fn files_in(dir: &Path, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join(folder)).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    let name = |entry: std::fs::DirEntry| {
        Path::new(folder).join(entry.file_name()).to_str().map(ToOwned::to_owned)
    };
    files.filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_database_nor_the_key_nor_unasked_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let dir = LightningDir::new(folder.path());
        std::fs::create_dir(dir.path().join("more")).unwrap();
        for name in ["ca.pem", "hsm_secret", "backup.key", "lightningd.sqlite3", "more/x", "other"]
        {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let names = |secret, include: &[&str]| {
            let include: Vec<String> = include.iter().map(ToString::to_string).collect();
            let before = ["gone.pem", "gone", "dropped/gone.pem", "folder/gone"];
            companion_names(&dir, secret, &include, before.into_iter())
        };
        let usual = ["../config", "ca.pem", "config", "emergency.recover", "gone.pem"];
        assert_eq!(names(false, &[]), usual);
        assert_eq!(names(false, &["hsm_secret", "backup.key", "lightningd.sqlite3"]), usual);
        assert_eq!(names(true, &["more", "/etc/x"])[..2], ["../config", "/etc/x"]);
        assert!(names(true, &["more"]).contains(&"more/x".to_owned()));
        assert!(names(false, &["folder"]).contains(&"folder/gone".to_owned()));
        assert!(names(true, &[]).contains(&"hsm_secret".to_owned()));
    }
}
