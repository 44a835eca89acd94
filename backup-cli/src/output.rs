//! Results on stdout; progress and errors on stderr.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockstep_proto::record::TimeMs;
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;

/// Where a command's words go.
pub struct Output {
    json: bool,
    colour: bool,
    unread: AtomicBool,
}

/// What a word means, as a colour on a terminal.
#[derive(Debug, Clone, Copy)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Look at it.
    Unusual,
    /// Do something.
    Bad,
    /// A heading.
    Quiet,
}

impl Output {
    /// For people, or for programs.
    pub fn new(json: bool) -> Self {
        // https://no-color.org
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            colour: !json && !refused && std::io::stdout().is_terminal(),
            unread: AtomicBool::new(false),
        }
    }

    /// Words of a result, in a colour where there is one.
    pub fn paint(&self, tone: Tone, words: &str) -> String {
        let code = match tone {
            Tone::Good => 32,
            Tone::Unusual => 33,
            Tone::Bad => 31,
            Tone::Quiet => 2,
        };
        if self.colour { format!("\x1b[{code}m{words}\x1b[0m") } else { words.to_owned() }
    }

    /// Empties a terminal, before what it shows is shown again.
    pub fn clear(&self) {
        if !self.json && std::io::stdout().is_terminal() {
            print!("\x1b[H\x1b[2J");
        }
    }

    /// Whether a program reads it.
    pub fn is_json(&self) -> bool {
        self.json
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
        if writeln!(std::io::stdout(), "{}", line.trim_end()).is_err() {
            self.unread.store(true, Ordering::Relaxed);
        }
    }

    /// True where nobody reads results any more.
    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
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

/// `1 segment`, `2 segments`, `3 batches`: how many of what goes by this name.
pub fn counted(number: u64, name: &str) -> String {
    match number {
        1 => format!("1 {name}"),
        _ if name.ends_with("ch") => format!("{number} {name}es"),
        _ => format!("{number} {name}s"),
    }
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
