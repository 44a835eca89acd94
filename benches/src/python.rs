//! The Python plugin `backup`, run as it is from where it was put.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Plugin;
use crate::process;

/// The folder with its `backup.py`: `plugins/backup` of github.com/lightningd/plugins.
const FOLDER_VARIABLE: &str = "LOCKSTEP_PYTHON_BACKUP";
/// A Python that has `pyln-client` and `psutil`; `python3` unless set.
const PYTHON_VARIABLE: &str = "LOCKSTEP_PYTHON";

/// What runs `backup.py` so that each file that it wrote to is synced before it is closed.
const SYNCED: &str = r#"
import builtins, os, runpy, sys
folder = sys.argv[1]
sys.path.insert(0, folder)
import filebackend

class Synced:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self.file
    def __exit__(self, *error):
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

def opened(path, mode="r"):
    file = builtins.open(path, mode)
    return file if mode in ("r", "rb") else Synced(file)

filebackend.open = opened
runpy.run_path(os.path.join(folder, "backup.py"), run_name="__main__")
"#;

/// Where it is.
#[derive(Clone)]
pub struct PythonBackup {
    folder: PathBuf,
    python: OsString,
}

impl PythonBackup {
    /// Where `LOCKSTEP_PYTHON_BACKUP` names it, and a line on stderr where it names nothing.
    pub fn locate_or_say(what: &str) -> Option<Self> {
        let folder = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
        let folder = folder.filter(|folder| folder.join("backup.py").is_file());
        if folder.is_none() {
            eprintln!("SKIPPED: {what} with the Python plugin: {FOLDER_VARIABLE} names none");
        }
        let python = std::env::var_os(PYTHON_VARIABLE).unwrap_or_else(|| "python3".into());
        Some(Self { folder: folder?, python })
    }

    /// The folder with its programs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an empty backup in `file`, as its `backup-cli init` does, and names it in the directory's `backup.lock`.
    pub fn init(&self, directory: &Path, file: &Path) {
        let url = url_of(file);
        process::run(&mut self.script(&format!("get_backend({url:?}, create=True)")));
        let lock = serde_json::json!({"backend_url": url});
        std::fs::write(directory.join("backup.lock"), lock.to_string()).expect("backup.lock");
    }

    /// Starts it in a network directory, `synced` or as it is.
    pub fn start(&self, directory: &Path, synced: bool) -> io::Result<Plugin> {
        let folder = self.folder.to_str().ok_or_else(|| io::Error::other("a path in UTF-8"))?;
        let program = format!("{folder}/backup.py");
        let args = if synced { vec!["-c", SYNCED, folder] } else { vec![program.as_str()] };
        Plugin::start_with(Path::new(&self.python), directory, &args)
    }

    /// What its `backup-cli restore` runs.
    pub fn restore(&self, file: &Path, to: &Path) -> Command {
        self.script(&format!(
            "get_backend({:?}).restore({:?})",
            url_of(file),
            to.display().to_string()
        ))
    }

    fn script(&self, call: &str) -> Command {
        let mut command = Command::new(&self.python);
        let import =
            "import sys; sys.path.insert(0, sys.argv[1]); from backends import get_backend;";
        command.arg("-c").arg(format!("{import} {call}")).arg(&self.folder);
        command
    }
}

fn url_of(file: &Path) -> String {
    format!("file://{}", file.display())
}
