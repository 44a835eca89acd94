//! Plugins that do as little as a plugin can: what `db_write` costs whoever answers it.
//!
//! A bench is such a plugin when it is started with [`ARGUMENT`]; its `main` begins with [`run_if_asked`].

use std::fs::{File, Permissions, set_permissions, write};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use memchr::memmem::find;

use crate::Zeroed;

/// Makes a bench a bare plugin; a second argument names the file that it writes to.
pub const ARGUMENT: &str = "--bare-plugin";

const MANIFEST: &str = r#"{"options":[],"rpcmethods":[],"hooks":[{"name":"db_write"}],"dynamic":false,"nonnumericids":true}"#;
const FILE_SIZE: usize = 64 << 20;

/// About what the record of a message takes: its compressed share, and the frame.
pub fn bytes_of(message: usize) -> usize {
    40 + message / 12
}

/// Writes a script that lightningd can start as a plugin, which is this bench again. With a `file` it
/// writes as many bytes there as the record of a call would take, and syncs them, before it answers.
pub fn script(path: &Path, file: Option<&Path>) -> PathBuf {
    let bench = std::env::current_exe().expect("a running program has a path");
    let file = file.map(|file| format!(" '{}'", file.display())).unwrap_or_default();
    let text = format!("#!/bin/sh\nexec '{}' {ARGUMENT}{file}\n", bench.display());
    write(path, text).expect("a script");
    set_permissions(path, Permissions::from_mode(0o755)).expect("a script that runs");
    path.to_owned()
}

/// Is the plugin, and true, where this process was started as one.
pub fn run_if_asked() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|argument| argument != ARGUMENT) {
        return false;
    }
    let file = arguments.next().map(PathBuf::from);
    serve(file.as_deref()).expect("the bare plugin runs");
    true
}

fn serve(file: Option<&Path>) -> io::Result<()> {
    let mut file = file.map(|file| Zeroed::create(file, FILE_SIZE)).transpose()?;
    // Not through a buffer of the standard library: it would flush at each line.
    let mut stdout = File::options().write(true).open("/proc/self/fd/1")?;
    let mut stdin = io::stdin().lock();
    let (mut buffer, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let searched = buffer.len().saturating_sub(1);
        match stdin.read(&mut piece)? {
            0 => return Ok(()),
            read => buffer.extend_from_slice(&piece[..read]),
        }
        let mut from = searched;
        while let Some(end) = find(&buffer[from..], b"\n\n").map(|at| from + at + 2) {
            answer(&buffer[..end], file.as_mut(), &mut stdout)?;
            buffer.drain(..end);
            from = 0;
        }
    }
}

fn answer(message: &[u8], file: Option<&mut Zeroed>, stdout: &mut File) -> io::Result<()> {
    // Both stand before the parameters.
    let (Some(id), Some(method)) = (field(message, b"\"id\""), field(message, b"\"method\""))
    else {
        return Ok(());
    };
    let result = match method {
        b"\"getmanifest\"" => MANIFEST,
        b"\"db_write\"" => {
            if let Some(file) = file {
                file.write(bytes_of(message.len()))?;
            }
            r#"{"result":"continue"}"#
        }
        _ => "{}",
    };
    let id = String::from_utf8_lossy(id);
    let answer = format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}\n\n");
    stdout.write_all(answer.as_bytes())
}

/// The text of a field, with its quotes.
fn field<'a>(message: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = &message[find(message, name)? + name.len()..];
    let text = &rest[find(rest, b"\"")?..];
    Some(&text[..find(&text[1..], b"\"")? + 2])
}
