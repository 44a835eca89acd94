//! lightningd: which plugins its configuration names, where its database is, which version it has.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep_node::config::{self, ConfigLine};
use lockstep_node::wallet::config_wallet;
use lockstep_node::{ConfiguredWallet, LightningDir};
use lockstep_proto::config::LockFile;
use serde_json::{Value, json};

use super::Findings;
use crate::PROGRAM;
use crate::commands::running_node::ask;

const PLUGIN: &str = "cln-lockstep";
/// The Python plugin's file.
const PYTHON_PLUGIN: &str = "backup.py";
/// The oldest and newest release of lightningd that this was run on: year and month.
const TRIED: [(u32, u32); 2] = [(25, 12), (26, 6)];
const IMPORTANT: &str = "important-plugin";

/// Looks.
pub fn look(node: &LightningDir, running: bool, findings: &mut Findings) {
    let lines = match config::read(node) {
        Ok(lines) => lines,
        Err(error) => {
            findings.error(
                "config",
                error.to_string(),
                "lightningd would not start with it either.",
            );
            Vec::new()
        }
    };
    if running {
        running_plugin(node, findings);
    }
    configured_plugin(node, &lines, running, findings);
    python_plugin(node, &lines, findings);
    wallet(node, findings);
    version(node, running, findings);
}

/// What lightningd itself says.
fn running_plugin(node: &LightningDir, findings: &mut Findings) {
    const CHECK: &str = "plugin";
    let status = match ask(node, "backup-status", &json!({})) {
        Ok(status) => status,
        Err(error) => {
            findings.error(
                CHECK,
                format!("lightningd runs without a backup: {error}"),
                format!(
                    "write '{IMPORTANT}=/path/to/{PLUGIN}' into its config, and start it again."
                ),
            );
            return;
        }
    };
    findings.ok(CHECK, "lightningd runs with the plugin");
    let warnings = status["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for warning in warnings {
        let (what, hint) = warning.split_once(". hint: ").unwrap_or((warning, ""));
        let hint =
            if hint.is_empty() { "see docs/operations.md, \"In lightningd's log\"." } else { hint };
        findings.warning(CHECK, what, hint);
    }
    for destination in status["destinations"].as_array().into_iter().flatten() {
        let (name, state) = (&destination["name"], destination["state"].as_str().unwrap_or(""));
        if !matches!(state, "ready" | "current") {
            findings.warning(
                "destination",
                format!("{name} is {state} for the running node"),
                "'backup-cli status' says what it lacks.",
            );
        }
    }
}

fn configured_plugin(
    node: &LightningDir,
    lines: &[ConfigLine],
    running: bool,
    findings: &mut Findings,
) {
    const CHECK: &str = "config";
    let named = |option: &str| {
        lines.iter().rev().find_map(|line| {
            let path = Path::new(line.value.as_deref()?);
            let ours = line.name == option && path.file_name() == Some(OsStr::new(PLUGIN));
            ours.then(|| (line.at.to_string(), in_base(node, path)))
        })
    };
    let write = format!(
        "write '{IMPORTANT}=' instead, so that lightningd never goes on without its backup."
    );
    if let Some((at, path)) = named(IMPORTANT) {
        match is_program(&path) {
            true => findings.ok(CHECK, format!("{at}: {IMPORTANT}={}", path.display())),
            false => findings.error(
                CHECK,
                format!("{at}: '{}' is no program that can be run", path.display()),
                "lightningd will not start with it: correct the path, or install the plugin there.",
            ),
        }
        plugin_version(&path, findings);
    } else if let Some((at, path)) = named("plugin") {
        findings.error(
            CHECK,
            format!("{at}: plugin={}: it is not important", path.display()),
            write,
        );
        plugin_version(&path, findings);
    } else if let Some(path) = in_plugin_folder(node, lines) {
        let message = format!("'{}' is started, but is not important", path.display());
        findings.error(CHECK, message, format!("move it out of that folder, and {write}"));
    } else if !running {
        findings.warning(
            CHECK,
            format!("no line of lightningd's config files names {PLUGIN}"),
            format!("write '{IMPORTANT}=/path/to/{PLUGIN}' (unless it stands on lightningd's command line)."),
        );
    } else if !is_important(node) {
        let message = format!("{PLUGIN} runs, and is not important to lightningd");
        findings.error(CHECK, message, write);
    }
}

/// A relative path counts from the base directory.
fn in_base(node: &LightningDir, path: &Path) -> PathBuf {
    node.base().unwrap_or(node.path()).join(path)
}

/// lightningd starts what is in its folder of plugins, and in those that the config names.
fn in_plugin_folder(node: &LightningDir, lines: &[ConfigLine]) -> Option<PathBuf> {
    let named = lines.iter().filter(|line| line.name == "plugin-dir");
    let named = named.filter_map(|line| line.value.as_ref().map(PathBuf::from));
    let folders = [PathBuf::from("plugins")].into_iter().chain(named);
    folders.map(|folder| in_base(node, &folder).join(PLUGIN)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// As lightningd says.
fn is_important(node: &LightningDir) -> bool {
    let answer = ask(node, "listconfigs", &json!({ "config": IMPORTANT })).unwrap_or_default();
    let paths = answer.pointer("/configs/important-plugin/values_str").and_then(Value::as_array);
    let mut paths = paths.into_iter().flatten().filter_map(Value::as_str);
    paths.any(|path| Path::new(path).file_name() == Some(OsStr::new(PLUGIN)))
}

/// The two programs belong together.
fn plugin_version(path: &Path, findings: &mut Findings) {
    let Ok(said) = Command::new(path).arg("--version").output() else { return };
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    let version = |program: &str| program.split_once('/').map(|(_, version)| version.to_owned());
    if version(&said) == version(PROGRAM) {
        findings.ok("version", format!("{said}, as this program"));
        return;
    }
    findings.warning(
        "version",
        format!("the plugin is {said}, this program {PROGRAM}"),
        "install both from one release.",
    );
}

fn python_plugin(node: &LightningDir, lines: &[ConfigLine], findings: &mut Findings) {
    const CHECK: &str = "old plugin";
    for line in lines {
        let path = line.value.as_deref().map(Path::new);
        if line.name.ends_with("plugin")
            && path.and_then(Path::file_name) == Some(OsStr::new(PYTHON_PLUGIN))
        {
            findings.error(
                CHECK,
                format!("{}: the Python plugin 'backup' is still configured", line.at),
                "it stops lightningd, as it does not know our backup.lock: remove the line.",
            );
        }
    }
    let kept = node.path().join("backup.lock.python");
    if kept.exists() {
        findings.note(
            CHECK,
            format!("'{}' is left of the Python plugin", kept.display()),
            "once 'backup-cli verify' has passed, remove it and the old backup, which is not sealed.",
        );
    }
}

fn wallet(node: &LightningDir, findings: &mut Findings) {
    const CHECK: &str = "database";
    let lock = LockFile::read(node.path()).ok().flatten();
    let backed = match lock.and_then(|lock| lock.wallet) {
        Some(wallet) => node.path().join(wallet),
        None => LightningDir::new(node.path()).wallet().to_owned(),
    };
    match config_wallet(node) {
        Err(error) => findings.error(CHECK, error.to_string(), error.hint().unwrap_or_default()),
        Ok(Some(ConfiguredWallet::Postgres { at })) => findings.error(
            CHECK,
            format!("{at}: the wallet is in PostgreSQL, which lightningd reports nothing of"),
            "back it up with PostgreSQL's own replication.",
        ),
        Ok(Some(ConfiguredWallet::Sqlite { path, replica, at })) => {
            if path != backed {
                findings.error(
                    CHECK,
                    format!(
                        "{at}: the wallet is '{}', the backup is of '{}'",
                        path.display(),
                        backed.display()
                    ),
                    "write the wallet's path into 'wallet' of backup.lock.",
                );
            }
            if let Some(replica) = replica {
                findings.note(
                    CHECK,
                    format!("{at}: lightningd also writes a replica, '{}'", replica.display()),
                    "if the wallet is lost, move the replica away before the next start: it is overwritten.",
                );
            }
        }
        Ok(_) => {}
    }
}

fn version(node: &LightningDir, running: bool, findings: &mut Findings) {
    const CHECK: &str = "lightningd";
    let found = match running {
        true => ask(node, "getinfo", &json!({}))
            .ok()
            .and_then(|info| info["version"].as_str().map(ToOwned::to_owned)),
        false => Command::new("lightningd")
            .arg("--version")
            .output()
            .ok()
            .map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()),
    };
    let Some(found) = found.filter(|found| !found.is_empty()) else {
        let remedy = "look at 'lightning-cli getinfo'.";
        findings.note(CHECK, "its version is not known: no lightningd on PATH", remedy);
        return;
    };
    match release(&found) {
        Some(release) if release < TRIED[0] => findings.warning(
            CHECK,
            format!("{found} is older than any that this was tried with"),
            format!("use v{}.{:02} or newer.", TRIED[0].0, TRIED[0].1),
        ),
        Some(release) if release > TRIED[1] => findings.note(
            CHECK,
            format!("{found} is newer than any that this was tried with"),
            "nothing, as long as 'backup-cli drill' passes.",
        ),
        _ => findings.ok(CHECK, found),
    }
}

/// Year and month of `v26.06.6`, `v25.12rc1`, or `v26.06-12-gabcdef`.
fn release(version: &str) -> Option<(u32, u32)> {
    let (year, rest) = version.trim_start_matches('v').split_once('.')?;
    let month: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((year.parse().ok()?, month.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn a_release_is_year_and_month() {
        assert_eq!(release("v26.06.6"), Some((26, 6)));
        assert_eq!(release("v25.12rc1"), Some((25, 12)));
        assert_eq!(release("v26.09-31-gdeadbee"), Some((26, 9)));
        assert_eq!(release("unknown"), None);
    }
}
