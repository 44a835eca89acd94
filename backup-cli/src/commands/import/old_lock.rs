//! `backup.lock` as the Python plugin writes it, and the file that it names.

use std::path::{Path, PathBuf};

use lockstep_node::LightningDir;
use lockstep_proto::config::LockFile;

use crate::failure::{Failure, Result};

/// The Python plugin's lock file, once ours has taken its name.
const KEPT_LOCK: &str = "backup.lock.python";

/// The Python plugin's lock file.
pub struct OldLock {
    /// What it says.
    pub backend_url: String,
    /// The file that it names.
    pub old: Option<PathBuf>,
    /// Where it is kept.
    pub kept: PathBuf,
}

impl OldLock {
    /// Refuses where the node has a backup of ours.
    pub fn find(node: &LightningDir) -> Result<Option<Self>> {
        let taken = |path: &Path| {
            Failure::new(
                format!(
                    "'{}' exists: this node has a backup already, or an 'init' was interrupted",
                    path.display()
                ),
                "'backup-cli status' shows it; nothing was changed.",
            )
        };
        if node.key_file().exists() {
            return Err(taken(&node.key_file()));
        }
        let lock: Option<serde_json::Value> = std::fs::read(node.lock_file())
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok());
        let backend_url = lock.as_ref().and_then(|lock| lock.get("backend_url")?.as_str());
        let Some(backend_url) = backend_url else {
            return match LockFile::read(node.path())? {
                None => Ok(None),
                Some(_) => Err(taken(&node.lock_file())),
            };
        };
        let kept = node.path().join(KEPT_LOCK);
        if kept.exists() && std::fs::read(&kept).ok() != std::fs::read(node.lock_file()).ok() {
            return Err(Failure::new(
                format!("'{}' exists and is another than backup.lock", kept.display()),
                "move it aside; nothing was changed.",
            ));
        }
        let old = old_path(backend_url).ok();
        Ok(Some(Self { backend_url: backend_url.into(), old, kept }))
    }

    /// Gives it a second name before ours takes the first.
    pub fn keep(&self, node: &LightningDir) -> Result<()> {
        match std::fs::hard_link(node.lock_file(), &self.kept) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked.map_err(Failure::file("write", &self.kept)),
        }
    }
}

/// The file that a path or a URL of the Python plugin names.
pub fn old_path(text: &str) -> Result<PathBuf> {
    if text.starts_with("socket:") {
        return Err(Failure::new(
            format!("'{text}' is a server"),
            "run this where the server's file is, or copy that file here; stop the server first.",
        ));
    }
    let path = match text.strip_prefix("file:") {
        // As the plugin reads it: no escapes, and what is between the slashes names no host that matters.
        Some(rest) => match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or(rest, |at| &rest[at..]),
            None => rest,
        },
        None => text,
    };
    let path = Path::new(path);
    let path = std::path::absolute(path).map_err(Failure::file("find", path))?;
    if path.is_dir() {
        return Err(Failure::new(
            format!("'{}' is a directory", path.display()),
            "the Python plugin's backup is one file; its backup.lock says which.",
        ));
    }
    Ok(path)
}
