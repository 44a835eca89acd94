//! Results on stdout; progress and errors on stderr.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockstep_proto::record::TimeMs;
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;

/// Where a command's words go.
pub struct Output {
    json: bool,
}

impl Output {
    /// For people, or for programs.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// The result of a command: as one JSON object, or as `text`.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        let line = if self.json {
            serde_json::to_string(value)
                .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string())
        } else {
            text()
        };
        // A reader that has seen enough closes the pipe: nobody is left to tell.
        let _ = writeln!(std::io::stdout(), "{}", line.trim_end());
    }

    /// A line on the way, for people.
    pub fn note(&self, line: &str) {
        if !self.json {
            eprintln!("{line}");
        }
    }

    /// What went wrong.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let error = json!({
                "kind": "error",
                "code": failure.exit_code(),
                "name": failure.class_name(),
                "message": failure.message(),
                "hint": failure.hint(),
            });
            eprintln!("{error}");
            return;
        }
        eprintln!("error: {}", failure.message());
        if let Some(hint) = failure.hint() {
            eprintln!("hint: {hint}");
        }
        if let Some(then) = failure.then() {
            eprintln!("{}", then.trim_end());
        }
    }

    /// A progress bar in bytes, on a terminal only.
    pub fn bar(&self, what: &str, bytes: u64) -> ProgressBar {
        self.progress(
            ProgressBar::new(bytes),
            what,
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        )
    }

    /// A count without an end, on a terminal only.
    pub fn counter(&self, what: &str) -> ProgressBar {
        let bar = self.progress(
            ProgressBar::new_spinner(),
            what,
            "{spinner} {msg} {human_pos} {per_sec}",
        );
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn progress(&self, bar: ProgressBar, what: &str, template: &str) -> ProgressBar {
        if self.json || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.with_message(what.to_owned())
    }
}

/// A time for people: to the second, in UTC.
pub fn utc(time: TimeMs) -> String {
    i64::try_from(time)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "unknown".into(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
