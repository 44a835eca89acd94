use super::*;

struct Tree(tempfile::TempDir);

impl Tree {
    /// A temporary directory with these files in it; a name that ends in `/`
    /// is an empty directory.
    fn new(files: &[&str]) -> Self {
        let tree = tempfile::tempdir().unwrap();
        for file in files {
            let path = tree.path().join(file);
            if file.ends_with('/') {
                fs::create_dir_all(&path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, "").unwrap();
            }
        }
        Self(tree)
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.0.path().to_owned() } else { self.0.path().join(path) }
    }

    /// `locate(from)` finds `expected`.
    fn finds(&self, from: &str, expected: &str) {
        let dir = LightningDir::locate(&self.at(from)).unwrap();
        assert_eq!(dir.path(), self.at(expected), "from '{from}'");
    }

    fn fails(&self, from: &str) -> DirError {
        LightningDir::locate(&self.at(from)).unwrap_err()
    }
}

#[test]
fn the_network_directory_itself() {
    for mark in MARKS {
        Tree::new(&[&format!("bitcoin/{mark}")]).finds("bitcoin", "bitcoin");
        // Also under another name: a copy, a mount.
        Tree::new(&[&format!("copy/{mark}")]).finds("copy", "copy");
    }
}

#[test]
fn named_after_a_network_empty_or_not() {
    for network in NETWORKS {
        Tree::new(&[&format!("{network}/")]).finds(network, network);
        Tree::new(&[&format!("{network}/config")]).finds(network, network);
    }
}

#[test]
fn the_one_network_in_the_base_directory() {
    let tree = Tree::new(&[".lightning/config", ".lightning/bitcoin/hsm_secret"]);
    tree.finds(".lightning", ".lightning/bitcoin");
    let fresh = Tree::new(&["base/config", "base/regtest/"]);
    fresh.finds("base", "base/regtest");
    Tree::new(&["base/regtest/config"]).finds("base", "base/regtest");
    // Networks that were never used do not stand in the way of the one that is.
    let one = Tree::new(&["base/bitcoin/lightningd.sqlite3", "base/testnet/", "base/signet/x"]);
    one.finds("base", "base/bitcoin");
    // Neither does what is not named after a network.
    let odd = Tree::new(&["base/old/hsm_secret", "base/bitcoin/hsm_secret", "base/signet"]);
    odd.finds("base", "base/bitcoin");
}

#[test]
fn more_than_one_network_names_the_choices() {
    let tree = Tree::new(&["base/bitcoin/hsm_secret", "base/regtest/hsm_secret"]);
    let error = tree.fails("base");
    let DirError::Ambiguous { choices, .. } = &error else { panic!("{error}") };
    assert_eq!(*choices, [tree.at("base/bitcoin"), tree.at("base/regtest")]);
    assert_eq!(
        error.to_string(),
        format!(
            "'{0}' could mean more than one network directory: '{0}/bitcoin' '{0}/regtest'",
            tree.at("base").display()
        )
    );
    let fresh = Tree::new(&["base/bitcoin/", "base/regtest/"]);
    assert!(matches!(fresh.fails("base"), DirError::Ambiguous { .. }));
}

/// Somebody keeps a copy of `hsm_secret` in `~/.lightning`.
#[test]
fn marks_here_and_in_a_network_below_are_ambiguous() {
    let tree = Tree::new(&["base/hsm_secret", "base/bitcoin/hsm_secret"]);
    let DirError::Ambiguous { choices, .. } = tree.fails("base") else { panic!() };
    assert_eq!(choices, [tree.at("base"), tree.at("base/bitcoin")]);
    // Not so where the name decides.
    Tree::new(&["bitcoin/hsm_secret", "bitcoin/regtest/hsm_secret"]).finds("bitcoin", "bitcoin");
    // Nor where what is below was never used.
    Tree::new(&["copy/hsm_secret", "copy/bitcoin/"]).finds("copy", "copy");
}

#[test]
fn an_empty_directory_is_a_fresh_one() {
    Tree::new(&["new/"]).finds("new", "new");
    Tree::new(&["disk/lost+found/"]).finds("disk", "disk");
}

#[test]
fn a_base_directory_without_a_network_is_refused() {
    for tree in [&[".lightning/"][..], &["x/config"], &["x/lightningd-bitcoin.pid"]] {
        let from = if tree == [".lightning/"] { ".lightning" } else { "x" };
        let tree = Tree::new(tree);
        let error = tree.fails(from);
        assert!(matches!(error, DirError::NoNetwork { .. }), "{error}");
        let expected = tree.at(from).join("bitcoin").display().to_string();
        assert!(error.hint().unwrap().contains(&expected));
    }
}

#[test]
fn other_directories_are_refused() {
    let tree = Tree::new(&["photos/one.jpg", "photos/bitcoin"]);
    assert!(matches!(tree.fails("photos"), DirError::NotLightning { .. }));
    // A directory that happens to be named after a network.
    let tree = Tree::new(&["src/bitcoin/configure.ac", "src/lightning/Makefile"]);
    assert!(matches!(tree.fails("src"), DirError::NotLightning { .. }));
}

#[test]
fn nothing_and_files_are_refused() {
    let tree = Tree::new(&["bitcoin/lightningd.sqlite3"]);
    assert!(matches!(tree.fails("nowhere"), DirError::NotFound { .. }));
    assert!(matches!(tree.fails("bitcoin/lightningd.sqlite3"), DirError::NotADirectory { .. }));
    assert!(tree.fails("nowhere").hint().unwrap().contains("mkdir"));
}

#[test]
fn a_link_keeps_the_directory_above_it() {
    let tree = Tree::new(&["disk/data/hsm_secret", "base/config"]);
    std::os::unix::fs::symlink(tree.at("disk/data"), tree.at("base/bitcoin")).unwrap();
    tree.finds("base", "base/bitcoin");
    let dir = LightningDir::locate(&tree.at("base/bitcoin")).unwrap();
    assert_eq!(dir.base().unwrap(), tree.at("base"));
}

#[test]
fn two_dots_are_resolved() {
    let tree = Tree::new(&["base/bitcoin/hsm_secret", "base/bitcoin/sub/"]);
    let dir = LightningDir::locate(&tree.at("base/bitcoin/sub/..")).unwrap();
    assert_eq!(dir.path(), fs::canonicalize(tree.at("base/bitcoin")).unwrap());
    assert_eq!(dir.network(), Some("bitcoin"));
}

#[test]
fn a_trailing_slash_and_a_relative_path_change_nothing() {
    let tree = Tree::new(&["bitcoin/hsm_secret"]);
    let dir = LightningDir::locate(&tree.at("bitcoin/")).unwrap();
    assert_eq!(dir.network(), Some("bitcoin"));
    assert!(LightningDir::new(Path::new("regtest")).path().is_absolute());
}

#[test]
fn names() {
    let dir = LightningDir::new(Path::new("/l/regtest"));
    assert_eq!(dir.network(), Some("regtest"));
    assert_eq!(dir.base(), Some(Path::new("/l")));
    assert_eq!(dir.wallet(), Path::new("/l/regtest/lightningd.sqlite3"));
    assert_eq!(dir.hsm_secret(), Path::new("/l/regtest/hsm_secret"));
    assert_eq!(dir.lock_file(), Path::new("/l/regtest/backup.lock"));
    assert_eq!(dir.key_file(), Path::new("/l/regtest/backup.key"));
    assert_eq!(dir.rpc_socket(), Path::new("/l/regtest/lightning-rpc"));
    assert_eq!(dir.emergency_recover(), Path::new("/l/regtest/emergency.recover"));
    assert_eq!(LightningDir::new(Path::new("/l/copy")).base(), None);
}

#[test]
fn another_wallet() {
    let dir = LightningDir::new(Path::new("/l/regtest"));
    let relative = dir.clone().with_wallet("sub/w.db".into());
    assert_eq!(relative.wallet(), Path::new("/l/regtest/sub/w.db"));
    let absolute = dir.with_wallet("/data/w.db".into());
    assert_eq!(
        absolute.wallet_files(),
        ["/data/w.db", "/data/w.db-journal", "/data/w.db-wal", "/data/w.db-shm"].map(PathBuf::from)
    );
}
