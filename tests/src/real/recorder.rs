//! A second plugin on `db_write`, which notes the last call that the node made: the batch in flight where
//! the node dies before it commits. lightningd asks all plugins at once, so this one may miss a call that
//! the plugin under test got, but only where the node died while it wrote.
//!
//! It is the running test itself, started again by a script: a test named [`TEST`] must call [`run`].

use std::fs;
use std::io::{self, BufRead, Write};
use std::os::unix::fs::PermissionsExt;
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

/// Writes the script to give to lightningd as a plugin; `module` is where [`TEST`] is.
pub fn script(path: &Path, module: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    // The harness talks on stdout, which is lightningd's.
    let text = format!(
        "#!/bin/sh\n{VARIABLE}=1 exec '{}' --exact '{module}::{TEST}' --nocapture 3>&1 >/dev/null\n",
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
    if std::env::var_os(VARIABLE).is_none() {
        return Ok(());
    }
    let mut output = fs::File::options().write(true).open("/proc/self/fd/3")?;
    // A message is one line, and a blank one.
    for line in io::stdin().lock().lines() {
        let line = line?;
        // The end of a node that died while it wrote.
        let Ok(request) = serde_json::from_str::<Request<'_>>(&line) else { continue };
        let Some(id) = request.id else { continue };
        let result = match request.method.as_str() {
            "getmanifest" => {
                r#"{"options":[],"rpcmethods":[],"subscriptions":[],"hooks":[{"name":"db_write"}],"dynamic":false,"nonnumericids":true}"#
            }
            "db_write" => {
                let params = request.params.map_or("null", RawValue::get);
                fs::write("recorded.tmp", params)?;
                fs::rename("recorded.tmp", LAST)?;
                r#"{"result":"continue"}"#
            }
            _ => "{}",
        };
        write!(output, r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, id.get())?;
        output.write_all(b"\n\n")?;
    }
    fs::write(END, "")
}
