//! A stand-in for the plugin, to test the simulator: appends every batch to
//! `fake.jsonl` in its directory (and `null` for every session) and
//! acknowledges.
//!
//! `FAKE_BEHAVIOUR` makes it misbehave, as `what` or `what@version`:
//! `refuse`, `error`, `die`, `hang`, `answer-twice`, `wrong-id`, `garbage`,
//! `no-hook`, `disable`, `deaf` (never reads on after its manifest).

use std::fs::OpenOptions;
use std::io::{self, BufReader, Write};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Request<'a> {
    id: Option<Value>,
    method: String,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

fn main() -> io::Result<()> {
    let behaviour = std::env::var("FAKE_BEHAVIOUR").unwrap_or_default();
    let (what, version) = match behaviour.split_once('@') {
        Some((what, version)) => (what.to_owned(), version.parse().ok()),
        None => (behaviour, None),
    };
    eprintln!("fake plugin is here");
    append("null")?;
    let stdin = BufReader::new(io::stdin().lock());
    let requests = serde_json::Deserializer::from_reader(stdin).into_iter::<Box<RawValue>>();
    for request in requests.map_while(Result::ok) {
        let request: Request = serde_json::from_str(request.get())?;
        let Some(id) = request.id else {
            if request.method == "shutdown" {
                return Ok(());
            }
            log(&format!("notified of {}", request.method))?;
            continue;
        };
        let result = match request.method.as_str() {
            "getmanifest" => json!({ "result": manifest(&what) }),
            "init" => json!({ "result": {} }),
            "db_write" => {
                let params = request.params.map_or("null", RawValue::get);
                let batch: Value = serde_json::from_str(params)?;
                let due = version.is_none_or(|version: u64| batch["data_version"] == version);
                write_batch(&id, params, if due { &what } else { "" })?
            }
            "backup-status" => json!({ "result": { "state": "ok" } }),
            other => {
                json!({ "error": { "code": -32601, "message": format!("no method {other}") } })
            }
        };
        answer(&id, result)?;
        if what == "deaf" {
            std::thread::sleep(Duration::from_secs(600));
        }
    }
    Ok(())
}

fn manifest(what: &str) -> Value {
    if what == "disable" {
        return json!({ "disable": "told to" });
    }
    let hooks = if what == "no-hook" { json!([]) } else { json!([{ "name": "db_write" }]) };
    json!({
        "options": [{ "name": "fake-option", "type": "string", "default": "x", "description": "" }],
        "rpcmethods": [{ "name": "backup-status", "usage": "", "description": "" }],
        "hooks": hooks,
        "subscriptions": ["shutdown", "block_added"],
        "dynamic": false,
        "nonnumericids": true,
    })
}

/// Appends a batch as one write, and gives the answer.
fn write_batch(id: &Value, params: &str, what: &str) -> io::Result<Value> {
    match what {
        "refuse" => return Ok(json!({ "result": { "result": "fail" } })),
        "error" => return Ok(json!({ "error": { "code": -1, "message": "disk is full" } })),
        "die" => std::process::exit(3),
        "hang" => std::thread::sleep(Duration::from_secs(600)),
        "garbage" => say("not json")?,
        "wrong-id" => answer(&json!("cln:other#9"), json!({ "result": {} }))?,
        _ => {}
    }
    log("appending")?;
    append(params)?;
    let result = json!({ "result": { "result": "continue" } });
    if what == "answer-twice" {
        answer(id, result.clone())?;
    }
    Ok(result)
}

fn append(line: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).open("fake.jsonl")?;
    // Begins with the line's end: what a death cut off spoils no other line.
    file.write_all(format!("\n{line}\n").as_bytes())
}

fn answer(id: &Value, mut message: Value) -> io::Result<()> {
    message["jsonrpc"] = "2.0".into();
    message["id"] = id.clone();
    say(&message.to_string())
}

fn log(text: &str) -> io::Result<()> {
    let params = json!({ "level": "info", "message": text });
    say(&json!({ "jsonrpc": "2.0", "method": "log", "params": params }).to_string())
}

fn say(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(format!("{text}\n\n").as_bytes())?;
    stdout.flush()
}
