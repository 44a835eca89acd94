//! What can go wrong with a replica log, by what the caller must do about it.

use crate::seal::{HeaderError, KeyError, KeyId, StoreId};
use crate::segment::SegmentError;
use crate::store::{StoreError, StoreErrorKind};
use crate::version::{DataVersion, FORMAT_VERSION};

/// The classes that programs tell apart; each has its own exit code (DESIGN of the command line).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Anything that has no class of its own: try again, or mend what the message names.
    Failed,
    /// There is no log there.
    Nothing,
    /// Another writer has taken over.
    Fenced,
    /// The key does not open this log.
    WrongKey,
    /// Stored bytes are not what was written.
    Damaged,
    /// Database, log or program are of versions that do not go together.
    Version,
}

/// An error of the replica log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A store did not do what was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no log at that place.
    #[error("no backup in '{store}': {what}")]
    Nothing {
        /// The store.
        store: String,
        /// What is missing.
        what: String,
    },
    /// A newer epoch has been claimed.
    #[error("'{store}' was taken over: epoch {newer} belongs to {who} (ours is {ours})")]
    Fenced {
        /// The store.
        store: String,
        /// The epoch of this writer.
        ours: u32,
        /// The epoch that another writer claimed.
        newer: u32,
        /// Host, process and time of the other writer, as far as its claim can be read.
        who: String,
    },
    /// A record of this number is there: an older writer's, which has not seen the newer claim yet, or one of our own
    /// that was given up and arrived all the same.
    #[error("'{store}': record seq {seq} is there already")]
    Overtaken {
        /// The store.
        store: String,
        /// The record.
        seq: u64,
    },
    /// Two destinations of one log hold records that do not follow each other.
    #[error("'{one}' and '{other}' hold two histories: '{at}' differs, or is only in the second")]
    TwoHistories {
        /// The one that was taken for the log.
        one: String,
        /// The other.
        other: String,
        /// The first segment that differs.
        at: String,
    },
    /// The log belongs to another directory: the database was restored there.
    #[error(
        "'{store}' belongs to another copy of this node: it was restored on {host}, data_version {head}"
    )]
    RestoredElsewhere {
        /// The store.
        store: String,
        /// The machine.
        host: String,
        /// The version there.
        head: DataVersion,
    },
    /// A slot or key that does not open the log.
    #[error("wrong key for '{store}': {what}")]
    WrongKey {
        /// The store.
        store: String,
        /// What did not fit.
        what: String,
    },
    /// An object sealed with a key that is not in the key ring.
    #[error(
        "wrong key for '{object}': it is sealed with key {key}, which the key ring does not hold"
    )]
    UnknownKey {
        /// Object name.
        object: String,
        /// The key that it names.
        key: KeyId,
    },
    /// An object of another store lies in this one.
    #[error("'{object}' belongs to store {found}, not to {expected}")]
    OtherStore {
        /// Object name.
        object: String,
        /// The store that was opened.
        expected: StoreId,
        /// The store that the object names.
        found: StoreId,
    },
    /// Bytes that are not what was written, with their place.
    #[error("{place}: {what}")]
    Damaged {
        /// Object, seq and offset.
        place: String,
        /// What is wrong there.
        what: String,
    },
    /// Written by a newer program.
    #[error("'{object}' has format version {found}, this program knows {FORMAT_VERSION}")]
    FormatVersion {
        /// Object name.
        object: String,
        /// The version that it names.
        found: u16,
    },
    /// An object or record kind that this format version does not have.
    #[error("{place}: {what}")]
    UnknownKind {
        /// Object and seq.
        place: String,
        /// The kind found, and the kinds known.
        what: String,
    },
    /// The database is older than its log.
    #[error("data_version went backward: the backup is at {head}, the database at {database}")]
    Behind {
        /// The version that the log's head has.
        head: DataVersion,
        /// The version that the database has.
        database: DataVersion,
    },
    /// A log that ends before a record that was acknowledged.
    #[error("'{store}' has lost records: it ends at seq {found}, and {by} knows of seq {known}")]
    RolledBack {
        /// The store.
        store: String,
        /// Where it ends.
        found: u64,
        /// What was acknowledged.
        known: u64,
        /// Who says so.
        by: String,
    },
    /// A replayed log does not give what the node's database holds.
    #[error(
        "the database is not what its backup says it is: data_version {data_version}, seq {seq} of generation \
         {generation}"
    )]
    Differs {
        /// The history.
        generation: u32,
        /// The place in it.
        seq: u64,
        /// The version of both.
        data_version: DataVersion,
    },
    /// Something that must not be done; nothing was changed.
    #[error("{what}")]
    Refused {
        /// What was asked, and why it is refused.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A record could not be made.
    #[error("write batch cannot be stored: {0}")]
    Batch(#[from] SegmentError),
    /// The restored database fails a check, or a statement fails on replay.
    #[error("{place}: {what}")]
    Database {
        /// Seq or file.
        place: String,
        /// SQLite's words, without any statement.
        what: String,
    },
    /// A replayed statement that reaches further than its own database, as none of lightningd's does.
    #[error("{place}: a statement reaches beyond its own database, and is not executed")]
    Forbidden {
        /// Seq of the batch.
        place: String,
    },
    /// A key could not be made or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A file on this machine.
    #[error("{action} '{path}': {source}")]
    File {
        /// Verb.
        action: &'static str,
        /// The file.
        path: String,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// A thread that could not be started, or has failed.
    #[error("thread '{name}': {source}")]
    Thread {
        /// What it is for.
        name: String,
        /// The operating system's words.
        source: std::io::Error,
    },
}

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What the caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Nothing { .. } => Class::Nothing,
            Self::Fenced { .. } | Self::Overtaken { .. } | Self::RestoredElsewhere { .. } => {
                Class::Fenced
            }
            Self::WrongKey { .. } | Self::UnknownKey { .. } => Class::WrongKey,
            Self::OtherStore { .. }
            | Self::Damaged { .. }
            | Self::TwoHistories { .. }
            | Self::Differs { .. }
            | Self::Database { .. }
            | Self::Forbidden { .. } => Class::Damaged,
            Self::FormatVersion { .. }
            | Self::UnknownKind { .. }
            | Self::Behind { .. }
            | Self::RolledBack { .. } => Class::Version,
            Self::Key(KeyError::Version(_)) => Class::Version,
            Self::Key(KeyError::Malformed) => Class::WrongKey,
            Self::Store(StoreError { kind: StoreErrorKind::Damaged(_), .. }) => Class::Damaged,
            Self::Store(_)
            | Self::Refused { .. }
            | Self::Batch(_)
            | Self::Key(_)
            | Self::File { .. }
            | Self::Thread { .. } => Class::Failed,
        }
    }

    /// The next step for the person who reads the message.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store(error) => return error.hint(),
            Self::Nothing { .. } => "check the URL and that the disk is mounted; \
                'backup-cli init' makes a new backup."
                .into(),
            Self::Overtaken { .. } => "start again: the log is then taken up from there. If that does not help, \
                another copy of this node is running."
                .into(),
            Self::Fenced { .. } => "a second node, or a restore, is using this backup; \
                make sure that only one copy of the node ever runs."
                .into(),
            Self::RestoredElsewhere { .. } => "this copy must never run again: the other one may have \
                gone on, and a peer can take all channel funds from the older. If the other is gone for good, \
                run 'backup-cli restore' into a new directory."
                .into(),
            Self::WrongKey { .. }
            | Self::UnknownKey { .. }
            | Self::Key(KeyError::Malformed) => "use the hsm_secret, words or key \
                file of the node that made this backup."
                .into(),
            Self::OtherStore { .. } => {
                "objects of two stores are mixed here; restore this folder from a copy.".into()
            }
            Self::Damaged { .. } => "earlier records are intact; nothing was changed. Use another \
                copy of this folder if there is one."
                .into(),
            Self::FormatVersion { .. }
            | Self::UnknownKind { .. }
            | Self::Key(KeyError::Version(_)) => {
                "a newer program wrote it; upgrade this one.".into()
            }
            Self::Behind { .. } => "this database is older than its backup: starting it can cost \
                all channel funds. Do not start it; run 'backup-cli restore' into a new directory."
                .into(),
            Self::RolledBack { .. } => "an older state was put there, or what was written there was lost. A node that \
                runs from an older state can lose all channel funds: look for the newest copy first."
                .into(),
            Self::TwoHistories { .. } => "two copies of this node wrote to them. They are never mixed: look at both with \
                'backup-cli status URL', then 'backup-cli destination remove' the one that is not the node's."
                .into(),
            Self::Differs { .. } => "somebody changed it without this plugin, or a disk did. Nothing is removed \
                from the backup any more, and no snapshot is made of it; stop lightningd and start it again: a new \
                generation then begins with a snapshot of the database. What was before stays until \
                'backup-cli prune --release-hold'."
                .into(),
            Self::Forbidden { .. } => "lightningd never writes such a statement: somebody else has this backup's key. \
                Nothing was changed; do not trust what was written from there on, and make a new backup \
                with 'backup-cli init'."
                .into(),
            Self::Refused { hint, .. } => hint.clone(),
            Self::File { path, .. } => {
                format!("look at '{path}', its permissions and the disk that it is on, then try again.")
            }
            Self::Thread { .. } => "look at how much memory and how many threads (ulimit -u) this user may have, then try \
                again."
                .into(),
            Self::Database { .. } => "if the disk is full or fails, mend that and try again; else report it, with what \
                'backup-cli verify' says."
                .into(),
            Self::Batch(_) => "this is a defect of the program; please report it.".into(),
            Self::Key(KeyError::NoRandomness) => "look at the operating system's random source.".into(),
        })
    }

    /// As one line, with what to do next.
    pub fn explain(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self}. hint: {}", hint.trim_end_matches('.')),
            None => self.to_string(),
        }
    }

    pub(crate) fn damaged(place: impl Into<String>, what: impl ToString) -> Self {
        Self::Damaged { place: place.into(), what: what.to_string() }
    }

    pub(crate) fn header(object: &str, error: HeaderError) -> Self {
        match error {
            HeaderError::Version(found) => Self::FormatVersion { object: object.into(), found },
            HeaderError::Kind(_) => {
                Self::UnknownKind { place: format!("'{object}'"), what: error.to_string() }
            }
            HeaderError::Short(_) | HeaderError::Damaged => {
                Self::damaged(format!("'{object}'"), error)
            }
        }
    }

    /// For a file of this machine.
    pub fn file(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File { action, path, source }
    }
}
