//! What holds keys leaves no core dump.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use lockstep_tests::backed::Backed;
use lockstep_tests::binaries;

/// Runs a program in a folder with core dumps allowed.
fn start(folder: &Path, program: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\""]).arg(program).args(arguments);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = pipes.current_dir(folder).spawn().expect("it starts");
    // Until it is what it will be, and waits for input.
    thread::sleep(Duration::from_millis(700));
    child
}

/// Dies as of a defect.
fn crash(mut child: Child) -> ExitStatus {
    let killed = Command::new("kill").args(["-ABRT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    child.wait().expect("it ends")
}

/// Files that were not there before.
fn new_files(folder: &Path, before: &[String]) -> Vec<String> {
    names(folder).into_iter().filter(|name| !before.contains(name)).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn neither_program_leaves_a_core_dump() {
    let backed = Backed::fresh();
    let directory = backed.network_dir();
    let folder = backed.dir().make_dir("control");
    let control = crash(start(&folder, Path::new("cat"), &[]));
    if !control.core_dumped() {
        eprintln!("SKIPPED: core dumps: this machine makes none at all");
        return;
    }
    let (before, url) = (names(&directory), backed.url());
    // Both with the key in memory, or about to be; the plugin has been asked for its manifest.
    let mut plugin = start(&directory, &binaries::plugin(), &[]);
    let manifest =
        b"{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"getmanifest\",\"params\":{}}\n\n";
    std::io::Write::write_all(plugin.stdin.as_mut().unwrap(), manifest).unwrap();
    thread::sleep(Duration::from_millis(500));
    let restored = directory.join("restored.sqlite3");
    let words = ["restore", "--no-claim", "--words", &url, restored.to_str().unwrap()];
    let cli = start(&directory, &binaries::cli(), &words);
    for child in [plugin, cli] {
        let status = crash(child);
        assert_eq!(status.signal(), Some(6), "{status:?}");
        assert!(!status.core_dumped(), "{status:?}");
    }
    assert_eq!(new_files(&directory, &before), Vec::<String>::new());
}
