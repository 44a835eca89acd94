//! One message, and the parameters of `db_write`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A message, with its parameters as `P`: left alone until it is known who takes them, or read at once.
#[derive(Deserialize)]
pub struct Message<'a, P = &'a RawValue> {
    /// Absent in notifications. Kept as it came: lightningd's ids are strings.
    #[serde(borrow)]
    pub id: Option<&'a RawValue>,
    /// What is called.
    #[serde(borrow, default)]
    pub method: Cow<'a, str>,
    /// What it is called with.
    pub params: Option<P>,
}

impl<'a, P: Deserialize<'a>> Message<'a, P> {
    /// Reads a message.
    ///
    /// # Errors
    /// Where it is not JSON, or its parameters are no `P`.
    pub fn parse(bytes: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

/// The parameters of `db_write`.
#[derive(Deserialize)]
pub struct DbWrite<'a> {
    /// lightningd's version after the batch.
    pub data_version: u32,
    /// The statements in order.
    #[serde(borrow)]
    pub writes: Vec<Sql<'a>>,
}

/// A statement, borrowed from the message wherever it has no escapes.
#[derive(Deserialize)]
pub struct Sql<'a>(#[serde(borrow)] Cow<'a, str>);

impl AsRef<str> for Sql<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_borrowed_where_they_can_be() {
        let json =
            r#"{"data_version": 7, "writes": ["DELETE FROM a", "INSERT INTO b VALUES ('\n')"]}"#;
        let call: DbWrite<'_> = serde_json::from_str(json).unwrap();
        assert!(matches!(call.writes[0].0, Cow::Borrowed(_)));
        assert_eq!(call.writes[1].as_ref(), "INSERT INTO b VALUES ('\n')");
    }

    #[test]
    fn nesting_ends_before_the_stack_does() {
        for depth in [127, 100_000] {
            let nested = format!(r#"{{"params":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
            let _ = Message::<&RawValue>::parse(nested.as_bytes());
            assert!(Message::<DbWrite<'_>>::parse(nested.as_bytes()).is_err());
        }
    }
}
