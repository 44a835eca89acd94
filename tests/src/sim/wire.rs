//! The messages, as lightningd writes and reads them.

use serde::Serialize;
use serde_json::Value;

use super::SimError;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Its `result`.
    Result(Value),
    /// Its `error`, whole.
    Error(Value),
}

impl Reply {
    /// The result, or `None` on an error.
    pub fn result(self) -> Option<Value> {
        match self {
            Self::Result(value) => Some(value),
            Self::Error(_) => None,
        }
    }

    /// The error's message, or `None` on a result.
    pub fn error_message(&self) -> Option<String> {
        match self {
            Self::Result(_) => None,
            Self::Error(error) => Some(match error["message"].as_str() {
                Some(message) => message.to_owned(),
                None => error.to_string(),
            }),
        }
    }

    /// Reads an answer's body.
    pub(super) fn parse(message: &Value) -> Result<Self, SimError> {
        match (message.get("result"), message.get("error")) {
            (Some(result), _) => Ok(Self::Result(result.clone())),
            (None, Some(error)) => Ok(Self::Error(error.clone())),
            (None, None) => {
                Err(SimError::Protocol(format!("neither result nor error in {message}")))
            }
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a, P: Serialize> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    method: &'a str,
    params: &'a P,
}

/// A request (or, without an id, a notification) with its closing blank line.
pub(super) fn message<P: Serialize>(id: Option<&str>, method: &str, params: &P) -> Vec<u8> {
    let envelope = Envelope { jsonrpc: "2.0", id, method, params };
    let mut bytes = serde_json::to_vec(&envelope).expect("messages are plain data");
    bytes.extend_from_slice(b"\n\n");
    bytes
}

/// What the plugin said of itself in answer to `getmanifest`.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    raw: Value,
}

impl Manifest {
    pub(super) fn parse(reply: Reply) -> Result<Self, SimError> {
        let raw = match reply {
            Reply::Result(raw) => raw,
            Reply::Error(error) => return Err(SimError::Protocol(format!("getmanifest: {error}"))),
        };
        if let Some(reason) = raw["disable"].as_str() {
            return Err(SimError::Disabled(reason.to_owned()));
        }
        for (field, required) in [("options", true), ("rpcmethods", true), ("hooks", false)] {
            if !(raw[field].is_array() || (!required && raw[field].is_null())) {
                let text = format!("manifest field {field} is not an array");
                return Err(SimError::Protocol(text));
            }
        }
        if raw["nonnumericids"] == Value::Bool(false) {
            let text = "plugin does not allow nonnumericids".to_owned();
            return Err(SimError::Protocol(text));
        }
        Ok(Self { raw })
    }

    /// The whole answer.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// The hooks it registered.
    pub fn hooks(&self) -> Vec<&str> {
        self.names("hooks")
    }

    /// The notifications it subscribed to.
    pub fn subscriptions(&self) -> Vec<&str> {
        self.names("subscriptions")
    }

    /// The RPC methods it offers.
    pub fn methods(&self) -> Vec<&str> {
        self.names("rpcmethods")
    }

    /// Whether it wants a notification.
    pub fn subscribes(&self, topic: &str) -> bool {
        let wanted = self.subscriptions();
        wanted.contains(&topic) || wanted.contains(&"*")
    }

    /// Its options that have a default, as `init` hands them back.
    pub(super) fn default_options(&self) -> serde_json::Map<String, Value> {
        let options = self.raw["options"].as_array().into_iter().flatten();
        options
            .filter_map(|option| {
                let default = option.get("default").filter(|value| !value.is_null())?;
                Some((option["name"].as_str()?.to_owned(), default.clone()))
            })
            .collect()
    }

    /// Entries are strings or objects with a name.
    fn names(&self, field: &str) -> Vec<&str> {
        let entries = self.raw[field].as_array().into_iter().flatten();
        entries.filter_map(|entry| entry.as_str().or_else(|| entry["name"].as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_written_as_lightningd_writes_them() {
        let params = json!({"allow-deprecated-apis": false});
        let text = String::from_utf8(message(Some("cln:getmanifest#1"), "getmanifest", &params));
        assert_eq!(
            text.unwrap(),
            "{\"jsonrpc\":\"2.0\",\"id\":\"cln:getmanifest#1\",\"method\":\"getmanifest\",\
             \"params\":{\"allow-deprecated-apis\":false}}\n\n"
        );
        let text = String::from_utf8(message(None, "shutdown", &json!({}))).unwrap();
        assert!(!text.contains("\"id\""));
    }

    #[test]
    fn hooks_may_be_strings_or_objects() {
        let raw = json!({"options": [], "rpcmethods": [{"name": "backup-status"}],
            "hooks": ["db_write", {"name": "peer_connected", "before": []}]});
        let manifest = Manifest::parse(Reply::Result(raw)).unwrap();
        assert_eq!(manifest.hooks(), ["db_write", "peer_connected"]);
        assert_eq!(manifest.methods(), ["backup-status"]);
        assert!(!manifest.subscribes("shutdown"));
    }

    #[test]
    fn a_plugin_can_disable_itself() {
        let raw = json!({"disable": "no lock file"});
        let error = Manifest::parse(Reply::Result(raw)).unwrap_err();
        assert!(matches!(error, SimError::Disabled(reason) if reason == "no lock file"));
    }
}
