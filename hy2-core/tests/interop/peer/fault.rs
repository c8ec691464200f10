//! Errors as the peer reports them.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// What went wrong inside the peer: the library's class, the QUIC event below it, the text.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Fault {
    /// `auth`, `connect`, `dial`, `closed`, `config`, `usage`, `timeout`, `mismatch`, `partial`, `other`.
    pub(crate) kind: String,
    /// For example `application_close`, `idle_timeout`, `eof`; empty when unknown.
    #[serde(default)]
    pub(crate) cause: String,
    /// The error code that belongs to `cause`.
    pub(crate) code: Option<u64>,
    /// Whether this test's side, which is remote to the peer, raised `cause`.
    pub(crate) remote: Option<bool>,
    /// The HTTP status of a failed authentication.
    pub(crate) status: Option<u16>,
    pub(crate) text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

/// A command that failed.
#[derive(Debug, Clone)]
pub(crate) struct CallError {
    pub(crate) cmd: String,
    pub(crate) fault: Box<Fault>,
    /// What succeeded before; null if nothing.
    pub(crate) result: Value,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (result {})", self.cmd, self.fault, self.result)
    }
}

impl std::error::Error for CallError {}

/// Reads a fault; one that cannot be read is shown whole.
pub(crate) fn parse(value: &Value) -> Fault {
    Fault::deserialize(value).unwrap_or_else(|e| Fault {
        kind: "other".to_owned(),
        cause: String::new(),
        code: None,
        remote: None,
        status: None,
        text: format!("unreadable fault {value}: {e}"),
    })
}
