//! An agent against a small real master, with real clients and real sockets.

mod changes;
mod crash;
mod disk;
mod fleet;
mod identity;
mod leases;
mod manager;
mod master;
mod origin;
mod outage;
mod pki;
mod refusals;
mod restart;
mod revocation;
mod slice;
mod stub;

use std::time::Duration;

/// How long anything may take. Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `what` and fails loudly when it takes too long.
pub(crate) async fn soon<T>(what: &str, of: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, of)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}
