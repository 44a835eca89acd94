//! The files in the node's directory: who can read them, and whose they are.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lockstep_node::LightningDir;
use lockstep_proto::config::CREDENTIALS_FILE;

use super::Findings;

const CHECK: &str = "files";

/// Looks at modes and owners.
pub fn look(node: &LightningDir, findings: &mut Findings) {
    let Ok(directory) = node.path().metadata() else { return };
    let secrets = [
        (node.key_file(), "0400"),
        (node.hsm_secret(), "0400"),
        (node.lock_file(), "0600"),
        (node.path().join(CREDENTIALS_FILE), "0600"),
    ];
    let mut good = true;
    for (path, mode) in &secrets {
        let Ok(found) = path.metadata() else { continue };
        let mut wrong = false;
        if found.mode() & 0o077 != 0 {
            wrong = true;
            findings.error(
                CHECK,
                format!(
                    "'{}' can be read by others (mode {:04o})",
                    path.display(),
                    found.mode() & 0o7777
                ),
                format!("chmod {mode} {}", path.display()),
            );
        }
        wrong |= is_foreign(path, &found, &directory, findings);
        good &= !wrong;
    }
    if let Ok(found) = node.wallet().metadata() {
        if found.mode() & 0o044 != 0 && directory.mode() & 0o011 != 0 {
            good = false;
            findings.warning(
                CHECK,
                format!("the database can be read by others: '{}'", node.wallet().display()),
                format!("chmod 0700 {}", node.path().display()),
            );
        }
        good &= !is_foreign(node.wallet(), &found, &directory, findings);
    }
    if good {
        findings.ok(CHECK, "nobody but their owner can read what opens the backup");
    }
}

/// What another user owns lightningd cannot read, or not write.
fn is_foreign(
    path: &Path,
    found: &Metadata,
    directory: &Metadata,
    findings: &mut Findings,
) -> bool {
    if found.uid() == directory.uid() {
        return false;
    }
    findings.error(
        CHECK,
        format!(
            "'{}' belongs to user {}, the directory to user {}: lightningd's plugin cannot use it",
            path.display(),
            found.uid(),
            directory.uid()
        ),
        format!("chown {}:{} {}", directory.uid(), directory.gid(), path.display()),
    );
    true
}
