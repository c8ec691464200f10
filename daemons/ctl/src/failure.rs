//! What goes wrong, and the exit code that says so.

use std::{fmt, io};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Shown under `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something failed on this side: a file, the terminal
  2  the command line is not right, or a confirmation is missing (--yes)
  3  not logged in, or not allowed
  4  there is no such thing
  5  refused: a field is not valid, or the state of things does not allow it
  6  the orchestrator cannot be reached, is busy or failed; try again later
  7  checked, and found broken (audit verify)";

/// An answer that is a problem document (RFC 9457).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) title: String,
    pub(crate) detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<Issue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_s: Option<u64>,
}

/// What is wrong with which field.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Issue {
    pub(crate) path: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code.as_str() {
            "unauthenticated" => f.write_str("not logged in, or the session is over: hy2ctl login"),
            "password_change_required" => {
                f.write_str("choose a password of your own first: hy2ctl passwd")
            }
            _ if self.detail.is_empty() => f.write_str(&self.title),
            _ => f.write_str(&self.detail),
        }?;
        for issue in &self.errors {
            match issue.path.is_empty() {
                true => write!(f, "\n  {}", issue.message)?,
                false => write!(f, "\n  {}: {}", issue.path, issue.message)?,
            }
        }
        if let Some(seconds) = self.retry_after_s {
            write!(f, " (try again in {seconds} s)")?;
        }
        Ok(())
    }
}

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// There are no credentials.
    #[error("{0}")]
    NotLoggedIn(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The orchestrator says no.
    #[error("{0}")]
    Problem(Problem),
    /// The orchestrator does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// A check found something broken.
    #[error("{0}")]
    Broken(String),
    /// Standard output is gone.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
    /// A program on this host failed, and has said why itself.
    #[error("failed")]
    Said,
    /// Anything else on this side.
    #[error("{0:#}")]
    Local(#[from] anyhow::Error),
}

impl Failure {
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Output(_) | Self::Said | Self::Local(_) => 1,
            Self::Usage(_) => 2,
            Self::NotLoggedIn(_) => 3,
            Self::NotFound(_) => 4,
            Self::Unreachable(_) => 6,
            Self::Broken(_) => 7,
            Self::Problem(problem) => match problem.status {
                401 | 403 => 3,
                404 => 4,
                408 | 429 | 500.. => 6,
                _ => 5,
            },
        }
    }

    /// Returns the failure for programs.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let code = match self {
            Self::Problem(problem) => {
                return serde_json::to_value(problem).unwrap_or_default();
            }
            Self::Usage(_) => "usage",
            Self::NotLoggedIn(_) => "not_logged_in",
            Self::NotFound(_) => "not_found",
            Self::Unreachable(_) => "unreachable",
            Self::Broken(_) => "broken",
            Self::Output(_) | Self::Said | Self::Local(_) => "local",
        };
        serde_json::json!({"code": code, "detail": self.to_string()})
    }
}

/// Returns what is wrong with a command line, out of what clap says of it for people: without the usage and where to find
/// more.
pub(crate) fn usage(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let ends = ["\n\nUsage:", "\n\nFor more information"];
    let end = ends.iter().filter_map(|end| text.find(end)).min();
    let text = end.and_then(|end| text.get(..end)).unwrap_or(text);
    text.trim_end().to_owned()
}
