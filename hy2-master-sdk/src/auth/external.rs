//! Administrators whom the embedder recognises: by a single sign-on, a directory, another program.

use std::net::IpAddr;

use futures_util::future::BoxFuture;
use thiserror::Error;

/// Proves administrators by the embedder's means.
///
/// It is asked for bearer tokens that are neither an access token nor an API token of the master. What
/// the administrator may do stays in one place: the answer is the name of an account of the
/// master, and that account's role decides. Operations that belong to a session (passwords, second
/// factors, API tokens) are not open to such callers.
pub trait Authenticator: Send + Sync + 'static {
    /// Returns the name of the administrator whom `bearer` proves; `None` if it proves nobody.
    ///
    /// Runs for every request that presents such a token, before anything is known of the
    /// caller: an answer that is dear to make should be kept for a while, and strangers are
    /// slowed down by the master after 60 wrong tokens in a minute.
    ///
    /// # Errors
    ///
    /// [`Undecided`] when it cannot be told now; the caller hears 503.
    fn authenticate<'a>(
        &'a self,
        bearer: &'a str,
        from: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<Option<String>, Undecided>>;
}

/// Whether a token is right cannot be told now.
#[derive(Debug, Error)]
#[error("the authenticator does not answer")]
pub struct Undecided(#[source] pub Box<dyn std::error::Error + Send + Sync>);
