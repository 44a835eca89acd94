//! Other plugins beside the one under test.
//!
//! The *recorder* notes the last `db_write` that the node made: the batch in flight where the node dies
//! before it commits. lightningd asks all plugins at once, so it may miss a call that the plugin under test
//! got, but only where the node died while it wrote. The *late writer* stays at shutdown, and has the node
//! write when others have gone.
//!
//! Each is the running test itself, started again by a script: a test named [`TEST`] must call [`run`].

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::wait::within;
use crate::step::Batch;

/// The test that the script runs.
pub const TEST: &str = "record_for_lightningd";
const VARIABLE: &str = "LOCKSTEP_RECORDER";
const LAST: &str = "recorded.json";
const END: &str = "recorded.end";
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes the script of a recorder; `module` is where [`TEST`] is.
pub fn script(path: &Path, module: &str) -> PathBuf {
    write_script(path, module, 0)
}

/// Writes the script of a late writer, which has the node write this long after `shutdown`.
pub fn late_writer(path: &Path, module: &str, after: Duration) -> PathBuf {
    write_script(path, module, after.as_millis())
}

fn write_script(path: &Path, module: &str, late_ms: u128) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    // The harness talks on stdout, which is lightningd's.
    let text = format!(
        "#!/bin/sh\n{VARIABLE}={late_ms} exec '{}' --exact '{module}::{TEST}' --nocapture 3>&1 >/dev/null\n",
        test.display()
    );
    fs::write(path, text).expect("a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a script that runs");
    path.to_owned()
}

/// The last call of the node that died in `directory`, once the recorder has read all of it.
pub fn last_call(directory: &Path) -> Option<Batch> {
    within(PATIENCE, || directory.join(END).exists().then_some(()))?;
    serde_json::from_slice(&fs::read(directory.join(LAST)).ok()?).ok()
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: String,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// The plugin, where the script started this process; otherwise nothing.
pub fn run() -> io::Result<()> {
    let Ok(late_ms) = std::env::var(VARIABLE) else { return Ok(()) };
    let mut output = fs::File::options().write(true).open("/proc/self/fd/3")?;
    match late_ms.parse() {
        Ok(0) => record(&mut output),
        Ok(late_ms) => write_late(&mut output, Duration::from_millis(late_ms)),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Reads requests until `each` has enough. A message is one line, and a blank one.
fn serve(
    output: &mut fs::File,
    mut each: impl FnMut(&Request<'_>) -> io::Result<Option<&'static str>>,
) -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        // The end of a node that died while it wrote.
        let Ok(request) = serde_json::from_str::<Request<'_>>(&line) else { continue };
        let Some(result) = each(&request)? else { break };
        let Some(id) = request.id else { continue };
        write!(output, r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.get())?;
        output.write_all(b"\n\n")?;
    }
    Ok(())
}

fn record(output: &mut fs::File) -> io::Result<()> {
    serve(output, |request| {
        Ok(Some(match request.method.as_str() {
            "getmanifest" => {
                r#"{"options":[],"rpcmethods":[],"hooks":[{"name":"db_write"}],"dynamic":false,"nonnumericids":true}"#
            }
            "db_write" => {
                let params = request.params.map_or("null", RawValue::get);
                fs::write("recorded.tmp", params)?;
                fs::rename("recorded.tmp", LAST)?;
                r#"{"result":"continue"}"#
            }
            _ => "{}",
        }))
    })?;
    fs::write(END, "")
}

/// lightningd takes no new connections at shutdown, but serves those that are open.
fn write_late(output: &mut fs::File, after: Duration) -> io::Result<()> {
    let mut rpc = None;
    serve(output, |request| {
        Ok(Some(match request.method.as_str() {
            "getmanifest" => {
                r#"{"options":[],"rpcmethods":[],"subscriptions":["shutdown"],"dynamic":true,"nonnumericids":true}"#
            }
            "init" => {
                rpc = Some(UnixStream::connect("lightning-rpc")?);
                "{}"
            }
            "shutdown" => return Ok(None),
            _ => "{}",
        }))
    })?;
    std::thread::sleep(after);
    let Some(mut rpc) = rpc else { return Ok(()) };
    let key = std::process::id();
    write!(
        rpc,
        r#"{{"jsonrpc":"2.0","id":"late","method":"datastore","params":{{"key":["late","{key}"],"string":"x"}}}}"#
    )?;
    // Its answer: it is written.
    rpc.read(&mut [0; 4096]).map(drop)
}
