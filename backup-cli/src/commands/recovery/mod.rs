//! `restore --plan`: what there is to get a node back from, and what can be done with it, best first.

mod look;
mod ways;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::restoring::Dest;
use crate::args::RestoreArgs;
use crate::failure::Result;
use crate::output::{Output, bytes, utc};
use crate::unlock::Means;

/// What there is, and what can be done.
#[derive(Serialize)]
pub struct Report {
    found: Found,
    /// Best first; at least one.
    ways: Vec<Way>,
}

/// What there is.
#[derive(Serialize)]
struct Found {
    /// The directory of the node that is to be.
    directory: PathBuf,
    /// A lightningd runs there.
    running: bool,
    /// The backup, at each place that was named.
    logs: Vec<Log>,
    database: Option<Database>,
    /// The form of the secret: of the file in the directory, or of what was given.
    secret: Option<Secret>,
    emergency_recover: Option<Emergency>,
    /// A copy that `follow` kept.
    standby: bool,
    /// There is a `backup.lock`: a node ran here with the plugin.
    backed_up: bool,
    /// The lightningd on PATH.
    lightningd: Option<String>,
    /// What belongs into its config.
    #[serde(skip)]
    plugin_line: String,
}

/// The backup at one place.
#[derive(Serialize)]
struct Log {
    place: String,
    #[serde(flatten)]
    state: LogState,
}

#[derive(Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum LogState {
    /// It leads to the newest state that was acknowledged there.
    Whole {
        seq: u64,
        data_version: Option<u32>,
        time: u64,
        /// A place that the log names, which does not answer, or holds another history.
        incomplete: Option<String>,
        /// Whoever writes it looks alive.
        alive: Option<String>,
    },
    /// It is intact up to there.
    Damaged { seq: Option<u64>, data_version: Option<u32>, time: Option<u64>, error: String },
    /// What was given does not open it.
    Closed { error: String },
    /// It does not answer, or there is none.
    Away { error: String },
}

#[derive(Serialize)]
struct Database {
    path: PathBuf,
    data_version: Option<u32>,
    /// Why it is of no use.
    error: Option<String>,
    /// The release of lightningd that last changed its schema.
    upgraded_by: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Secret {
    /// A file in the directory.
    Here(String),
    /// A file elsewhere.
    File(PathBuf),
    /// They are typed.
    Words,
}

#[derive(Serialize)]
struct Emergency {
    path: PathBuf,
    bytes: u64,
    /// When it was written.
    time: Option<u64>,
}

/// Something that can be done.
#[derive(Serialize)]
struct Way {
    kind: Kind,
    /// What it is, and what it costs.
    what: String,
    /// In this order; a line that begins with `#` is for a person.
    commands: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// The node goes on where it was.
    Exact,
    /// It may be an older state.
    Risk,
    /// Every channel is closed.
    Closing,
    /// Nothing can be done with this.
    Nothing,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::Exact => "exact resume",
            Self::Risk => "resume with risk",
            Self::Closing => "channel-closing recovery",
            Self::Nothing => "nothing yet",
        }
    }
}

/// Looks, and thinks. `chosen` is the key that the arguments choose.
///
/// Fails only where the directory cannot be looked at: whatever else is wrong is part of the report.
pub fn look(
    args: &RestoreArgs,
    dest: &Dest,
    chosen: Option<&Means>,
    output: &Output,
) -> Result<Report> {
    let found = look::look(args, dest, chosen, output)?;
    let ways = ways::ways(&found, args);
    Ok(Report { found, ways })
}

impl Report {
    /// True where every record of a backup is intact.
    pub fn has_whole_log(&self) -> bool {
        self.found.logs.iter().any(|log| matches!(log.state, LogState::Whole { .. }))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::from("what there is:\n");
        let mut line = |name: &str, what: String| text += &format!("  {name:18} {what}\n");
        let found = &self.found;
        if found.logs.is_empty() {
            line("backup", "none was named: give its URL".into());
        }
        for log in &found.logs {
            line("backup", log.text());
        }
        line("database", found.database.as_ref().map_or("none".into(), Database::text));
        line(
            "secret",
            match &found.secret {
                Some(Secret::Here(kind)) => format!("hsm_secret, {kind}"),
                Some(Secret::File(path)) => path.display().to_string(),
                Some(Secret::Words) => "the words".into(),
                None => "none: no hsm_secret there, and no words were given".into(),
            },
        );
        line(
            "emergency.recover",
            found.emergency_recover.as_ref().map_or("none".into(), |found| {
                let time = found.time.map_or("unknown".into(), utc);
                format!("{}, of {time}", bytes(found.bytes))
            }),
        );
        if found.standby {
            line("standby", "a copy that 'follow' kept".into());
        }
        line("lightningd", found.lightningd.clone().unwrap_or_else(|| "none on PATH".into()));
        text += "what can be done, best first:\n";
        for (number, way) in (1..).zip(&self.ways) {
            text += &format!("{number}. {}: {}\n", way.kind.words(), way.what);
            for command in &way.commands {
                text += &format!("     {command}\n");
            }
        }
        text
    }
}

impl Log {
    fn text(&self) -> String {
        let version = |version: &Option<u32>| version.map_or("none".into(), |v| v.to_string());
        let state = match &self.state {
            LogState::Whole { seq, data_version, time, .. } => format!(
                "whole, up to seq {seq}, data_version {}, {}",
                version(data_version),
                utc(*time)
            ),
            LogState::Damaged { seq: Some(seq), data_version, time, error } => format!(
                "damaged ({error}); intact up to seq {seq}, data_version {}, {}",
                version(data_version),
                time.map_or("unknown".into(), utc)
            ),
            LogState::Damaged { error, .. } => {
                format!("damaged, nothing of it is intact ({error})")
            }
            LogState::Closed { error } => format!("closed: {error}"),
            LogState::Away { error } => format!("away: {error}"),
        };
        format!("{}: {state}", self.place)
    }
}

impl Database {
    fn text(&self) -> String {
        let version = self.data_version.map_or("none".into(), |version| version.to_string());
        let mut text = match &self.error {
            Some(error) => error.clone(),
            None => format!("{}, data_version {version}", self.path.display()),
        };
        if let Some(release) = &self.upgraded_by {
            text += &format!(", last upgraded by {release}");
        }
        text
    }
}

/// A path as an argument of a command.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
