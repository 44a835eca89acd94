//! The ways to install it: the Debian package is built, installed and removed; Core Lightning's `reckless` installs the
//! sources; what the container file copies exists.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lockstep_tests::binaries::{self, Cli};
use lockstep_tests::servers::find;
use lockstep_tests::sim::{Node, NodeConfig};
use lockstep_tests::testdir::TestDir;
use lockstep_tests::workload::Workload;

const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Says in one line that the test is passed over where one of these programs is not on PATH.
fn lacks(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let missing = programs.iter().find(|name| !is_there(name));
    if let Some(missing) = missing {
        eprintln!("{test}: skipped, {missing} is not on PATH");
    }
    missing.is_some()
}

fn run<const N: usize>(program: &str, arguments: [&str; N]) -> binaries::Output {
    Cli::program(program, arguments).run().expect_success()
}

/// The package of the binaries that are tested; `None`, and a line, where there is no cargo-deb.
fn package() -> Option<PathBuf> {
    let cargo_deb = find::installed("cargo-deb", "cargo-deb/bin/cargo-deb")?;
    let folders = binaries::cli().parent().map(|profile| profile.parent().unwrap().to_owned());
    let path = std::env::var("PATH").unwrap();
    let made = Cli::program(format!("{TOP}/contrib/package/deb"), ["dev", "--fast"])
        .env("CARGO_TARGET_DIR", folders.unwrap())
        .env("PATH", format!("{}:{path}", cargo_deb.parent().unwrap().display()))
        .run()
        .expect_success();
    Some(Path::new(TOP).join(made.stdout.trim()))
}

#[test]
fn the_debian_package_is_installed_used_and_removed() {
    let name = "the_debian_package_is_installed_used_and_removed";
    if lacks(name, &["dpkg", "gzip"]) {
        return;
    }
    let Some(package) = package() else { return };
    let dir = TestDir::new();
    // A root of its own, with what this machine has installed: what the package depends on must be there.
    let root = dir.make_dir("root");
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/var/lib/dpkg/status", root.join("var/lib/dpkg/status")).expect("dpkg's status");
    let dpkg = |verb: &str, what: &str| {
        let root = format!("--root={}", root.display());
        run("dpkg", [&root, "--force-not-root", "--log=/dev/null", verb, what])
    };
    dpkg("--install", package.to_str().unwrap());

    let installed = |path: &str| root.join(path).to_str().unwrap().to_owned();
    let version = concat!(" ", env!("CARGO_PKG_VERSION"), "\n");
    let backup_cli = installed("usr/bin/backup-cli");
    assert!(run(&backup_cli, ["--version"]).stdout.ends_with(version));
    assert!(run(&backup_cli, ["--help"]).stdout.contains("Usage: backup-cli"));
    // The plugin that was installed with it is the one that it names, and it is one.
    let network = dir.network_dir();
    let init = Cli::program(&backup_cli, ["init", "--lightning-dir"]).arg(&network);
    let said = init.arg(dir.file_url("store")).run().expect_success();
    let plugin = installed("usr/libexec/cln-lockstep/cln-lockstep");
    assert!(said.stdout.contains(&format!("'important-plugin={plugin}'")), "{said}");
    let mut node = Node::launch(NodeConfig::new(plugin, network)).expect("the node starts");
    let mut workload = Workload::seeded(81);
    for _ in 0..workload.migrations_left() {
        node.write(&workload.next().unwrap()).unwrap().expect_committed();
    }
    node.init().unwrap();
    node.stop().unwrap();
    let status = Cli::program(&backup_cli, ["status", "--json", "--lightning-dir"]);
    let status = status.arg(dir.network_dir()).run().expect_success().json();
    assert_eq!(status["destinations"][0]["state"], "current", "{status}");

    let page = run("gzip", ["-dc", &installed("usr/share/man/man1/backup-cli-restore.1.gz")]);
    assert!(page.stdout.contains(".SH SYNOPSIS"), "{page}");
    let completions = installed("usr/share/bash-completion/completions/backup-cli");
    let completes = format!("source {completions} && complete -p backup-cli");
    assert!(run("bash", ["-c", &completes]).stdout.contains("backup-cli"));
    for path in [
        "usr/share/zsh/vendor-completions/_backup-cli",
        "usr/share/fish/vendor_completions.d/backup-cli.fish",
        "usr/share/doc/cln-lockstep/copyright",
        "usr/share/doc/cln-lockstep/docs/operations.md",
        "usr/share/doc/cln-lockstep/contrib/systemd/lockstep-drill.timer",
    ] {
        assert!(root.join(path).is_file(), "{path}");
    }

    dpkg("--remove", "cln-lockstep");
    for path in ["usr/bin/backup-cli", "usr/libexec/cln-lockstep", "usr/share/doc/cln-lockstep"] {
        assert!(!root.join(path).exists(), "{path} stayed");
    }
}

#[test]
fn reckless_finds_builds_and_enables_it() {
    let name = "reckless_finds_builds_and_enables_it";
    if lacks(name, &["reckless", "git"]) {
        return;
    }
    let dir = TestDir::new();
    // A folder of plugins, in which this one's has its name: that is what reckless goes by, and a Cargo.toml.
    let sources = dir.make_dir("sources");
    let clone = sources.join("cln-lockstep");
    run(
        "git",
        ["clone", "--quiet", "--depth=1", &format!("file://{TOP}"), clone.to_str().unwrap()],
    );
    // It calls cargo, which would build for minutes: here are the binaries that are there already.
    let calls = dir.path("calls");
    let cargo = dir.make_dir("bin").join("cargo");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >{}\nmkdir -p target/release\nln -s {} target/release/cln-lockstep\n",
        calls.display(),
        binaries::plugin().display()
    );
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let lightning = dir.make_dir("reckless-node");
    for folder in ["regtest", "reckless"] {
        fs::create_dir(lightning.join(folder)).unwrap();
    }
    fs::write(lightning.join("regtest/config"), "").unwrap();
    fs::write(lightning.join("reckless/.sources"), sources.to_str().unwrap()).unwrap();

    let path = std::env::var("PATH").unwrap();
    let reckless = Cli::program("reckless", ["-v", "--network=regtest", "-l"]).arg(&lightning);
    let said = reckless
        .arg("install")
        .arg("cln-lockstep")
        .env("PATH", format!("{}:{path}", cargo.parent().unwrap().display()))
        // It leaves folders there.
        .env("TMPDIR", dir.make_dir("tmp"))
        .run()
        .expect_success();
    assert!(said.stdout.contains("using installer rust"), "{said}");
    assert_eq!(fs::read_to_string(calls).unwrap(), "build --release -vv\n");
    let installed = lightning.join("reckless/cln-lockstep/cln-lockstep");
    assert!(installed.is_file());
    let enabled = fs::read_to_string(lightning.join("reckless/regtest-reckless.conf")).unwrap();
    assert!(enabled.contains(&format!("\nplugin={}", installed.display())), "{enabled}");
    // What it builds is both programs.
    let manifest = fs::read_to_string(clone.join("Cargo.toml")).unwrap();
    assert!(manifest.contains(r#"default-members = ["plugin", "backup-cli"]"#), "{manifest}");
}

#[test]
fn what_the_container_file_names_exists() {
    let file = fs::read_to_string(format!("{TOP}/contrib/container/Containerfile")).unwrap();
    let joined = file.replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let instructions: Vec<(&str, &str)> =
        lines.map(|line| line.split_once(' ').expect("an instruction and what it is of")).collect();
    let all = |name: &str| -> Vec<&str> {
        instructions.iter().filter(|(of, _)| *of == name).map(|(_, rest)| *rest).collect()
    };
    let known = ["FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT"];
    let unknown = instructions.iter().find(|(name, _)| !known.contains(name));
    assert_eq!(unknown, None);

    let cargo = fs::read_to_string(format!("{TOP}/Cargo.toml")).unwrap();
    let field = |name: &str| {
        let value = cargo.split(&format!("\n{name} = \"")).nth(1).expect("a field");
        value.split('"').next().unwrap().to_owned()
    };
    let from = all("FROM");
    assert!(from[0].starts_with(&format!("rust:{}-", field("rust-version"))), "{}", from[0]);
    assert!(from[0].ends_with(" AS build"));
    assert!(from[0].contains("bookworm") && from[1].contains("debian:12"), "of one C library");
    assert!(all("RUN").contains(&"cargo build --release --locked --bins"));

    let copied: Vec<Vec<&str>> = all("COPY").iter().map(|of| of.split(' ').collect()).collect();
    assert_eq!(copied[0], [".", "."]);
    let (from, to) = (&copied[1][1..copied[1].len() - 1], copied[1].last().unwrap());
    assert_eq!(copied[1][0], "--from=build");
    let names: Vec<&str> = from
        .iter()
        .map(|path| path.strip_prefix("/src/target/release/").expect("below WORKDIR"))
        .collect();
    assert_eq!(all("WORKDIR"), ["/src"]);
    for name in &names {
        let of = [binaries::cli(), binaries::plugin()];
        assert!(of.iter().any(|path| path.ends_with(name)), "{name} is no program of ours");
    }
    let entry = all("ENTRYPOINT")[0].trim_matches(['[', ']', '"']);
    assert!(names.iter().any(|name| Path::new(to).join(name) == Path::new(entry)), "{entry}");
    // Sources alone are sent to the builder: nothing that was built, and no history.
    let ignored = fs::read_to_string(format!("{TOP}/.dockerignore")).unwrap();
    for name in [".git", "target", "fuzz/target"] {
        assert!(ignored.lines().any(|line| line == name), "{name}");
    }
}
