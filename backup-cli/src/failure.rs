//! Errors and their exit codes.

use std::path::Path;

use lockstep_node::config::ConfigError;
use lockstep_node::content::ContentError;
use lockstep_node::{DirError, SecretError, WalletError};
use lockstep_proto::error::{Class, Error};

/// Result of a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What went wrong, and what to do next.
#[derive(Debug, Clone)]
pub struct Failure {
    class: Class,
    /// Only some of several destinations are bad.
    partly: bool,
    message: String,
    hint: Option<String>,
    /// What comes behind the hint, for people.
    then: Option<String>,
}

impl Failure {
    /// Something that is refused or failed, in the class that has no code of its own.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::of(Class::Failed, message.into(), Some(hint.into()))
    }

    fn of(class: Class, message: String, hint: Option<String>) -> Self {
        Self { class, partly: false, message, hint, then: None }
    }

    /// Fails where any of several destinations is bad; the message is `what` and their names.
    pub fn if_any<'a>(bad: impl Iterator<Item = &'a str>, what: &str, hint: &str) -> Result<()> {
        let names: Vec<&str> = bad.collect();
        match names.is_empty() {
            true => Ok(()),
            false => Err(Self::partly(format!("{what} {}", names.join(", ")), hint)),
        }
    }

    /// Versions that do not go together.
    pub fn version(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { class: Class::Version, ..Self::new(message, hint) }
    }

    /// Another copy of the node is, or may be, the one that writes.
    pub fn fenced(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { class: Class::Fenced, ..Self::new(message, hint) }
    }

    /// A key that does not open what it should.
    pub fn wrong_key(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { class: Class::WrongKey, ..Self::new(message, hint) }
    }

    /// Stored bytes that are not what was written.
    pub fn damaged(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { class: Class::Damaged, ..Self::new(message, hint) }
    }

    /// Some of several destinations are bad, but not all. The result says which.
    pub fn partly(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { partly: true, ..Self::new(message, hint) }
    }

    /// A file of this machine.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let failed = Error::file(action, path);
        move |source| failed(source).into()
    }

    /// What was being done when it went wrong.
    pub fn doing(mut self, what: &str) -> Self {
        self.message = format!("failed to {what}: {}", self.message);
        self
    }

    /// The same, with another hint.
    pub fn hinting(mut self, hint: String) -> Self {
        self.hint = Some(hint);
        self
    }

    /// The same, in other words.
    pub fn saying(mut self, message: String) -> Self {
        self.message = message;
        self
    }

    /// The same, with more to say; nothing changes where that is nothing.
    pub fn adding(mut self, more: &str) -> Self {
        if !more.is_empty() {
            self.message += &format!(": {more}");
        }
        self
    }

    /// The same, with what a person may want to read after it.
    pub fn followed_by(mut self, then: String) -> Self {
        self.then = Some(then);
        self
    }

    /// What a person may want to read after it.
    pub fn then(&self) -> Option<&str> {
        self.then.as_deref()
    }

    /// The exit code of its class.
    pub fn exit_code(&self) -> u8 {
        match self.class {
            _ if self.partly => 3,
            Class::Failed => 1,
            Class::Nothing => 10,
            Class::Fenced => 11,
            Class::WrongKey => 12,
            Class::Damaged => 13,
            Class::Version => 14,
        }
    }

    /// The name of its class, for `--json`.
    pub fn class_name(&self) -> &'static str {
        match self.class {
            _ if self.partly => "partly",
            Class::Failed => "failed",
            Class::Nothing => "nothing",
            Class::Fenced => "fenced",
            Class::WrongKey => "wrong_key",
            Class::Damaged => "damaged",
            Class::Version => "version",
        }
    }

    /// True where something was not done for a reason that has no class of its own.
    pub fn is_refusal(&self) -> bool {
        self.class == Class::Failed && !self.partly
    }

    /// True where there is no backup at a place.
    pub fn is_nothing(&self) -> bool {
        self.class == Class::Nothing
    }

    /// True where a key does not open what it should.
    pub fn is_wrong_key(&self) -> bool {
        self.class == Class::WrongKey
    }

    /// True where stored bytes are not what was written, or two histories meet.
    pub fn is_damage(&self) -> bool {
        self.class == Class::Damaged
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do next.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(error.class(), error.to_string(), error.hint())
    }
}

impl From<lockstep_proto::store::StoreError> for Failure {
    fn from(error: lockstep_proto::store::StoreError) -> Self {
        Error::from(error).into()
    }
}

impl From<DirError> for Failure {
    fn from(error: DirError) -> Self {
        Self::of(Class::Failed, error.to_string(), error.hint())
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Self {
        let class = match error {
            SecretError::Io { .. } | SecretError::Exists { .. } => Class::Failed,
            _ => Class::WrongKey,
        };
        Self::of(class, error.to_string(), error.hint().map(Into::into))
    }
}

impl From<WalletError> for Failure {
    fn from(error: WalletError) -> Self {
        Self::of(Class::Failed, error.to_string(), error.hint().map(Into::into))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(error.to_string(), "correct the file; lightningd would not start with it either.")
    }
}

impl From<ContentError> for Failure {
    fn from(error: ContentError) -> Self {
        Self::damaged(
            error.to_string(),
            "look at the disk that the database is on, then try again.",
        )
    }
}
