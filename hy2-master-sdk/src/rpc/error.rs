//! What agents are told when something fails: a stable code and a short text; the log has the rest.

use std::error::Error;

use tonic::Status;

use crate::auth::ca::CaError;
use crate::store::StoreError;

/// Turns a failure of the store into an answer.
pub(crate) fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable(_) => {
            tracing::warn!(error = chain(error), "store");
            Status::unavailable("the store does not answer; try again")
        }
        StoreError::NotFound(what) => Status::not_found(format!("there is no such {what}")),
        StoreError::Fenced(_) => Status::aborted("another master holds this node"),
        _ => {
            tracing::error!(error = chain(error), "store");
            Status::internal("the master failed; its log has the reason")
        }
    }
}

/// Turns a failure of the certificate authority into an answer.
pub(crate) fn authority(error: &CaError) -> Status {
    match error {
        CaError::Request(_) => Status::invalid_argument(error.to_string()),
        _ => {
            tracing::error!(error = chain(error), "certificate authority");
            Status::internal("the master failed; its log has the reason")
        }
    }
}

/// Returns an error with everything that caused it, for the log.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
