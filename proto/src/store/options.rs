//! What reaches a bucket besides its URL.

#![cfg_attr(not(feature = "buckets"), allow(dead_code))]

use std::collections::BTreeMap;
use std::fmt;

/// Credentials and settings, by the names that the clients of the providers give them (`AWS_ACCESS_KEY_ID` …);
/// capitals do not matter. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Takes those of `vars` that concern destinations.
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        const PREFIXES: [&str; 5] =
            ["aws_", "azure_", "google_", "webdav_", "lockstep_destination_"];
        let lower = vars.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value));
        let wanted = lower.filter(|(key, _)| PREFIXES.iter().any(|prefix| key.starts_with(prefix)));
        Self(wanted.collect())
    }

    /// The same, where `other` says nothing else.
    pub fn overridden_by(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Sets one, in place of what was said before.
    pub(super) fn insert(&mut self, key: String, value: String) {
        self.0.insert(key, value);
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
