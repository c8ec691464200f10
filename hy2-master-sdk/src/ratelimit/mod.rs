//! How often something may happen: in this process, or shared by several masters through Redis.
//!
//! Limits are token buckets. The bucket of this process is asked first, always, and the one in Redis
//! after it: so when Redis does not answer or has lost its buckets, this process still knows what it
//! let through itself, and no outage lets through more than the limit times the number of
//! masters.

mod local;
#[cfg(feature = "redis")]
mod shared;

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

pub use local::LocalLimiter;
#[cfg(feature = "redis")]
pub use shared::SharedLimiter;

/// A bucket: so many at once, and as many again over a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Names the bucket; keys of different limits do not meet.
    pub name: &'static str,
    /// Size of the bucket; at least 1.
    pub burst: u32,
    /// How long an empty bucket takes to fill.
    pub period: Duration,
}

/// Logins of one account from one address that fail: 5 in 15 minutes.
pub const LOGIN: Limit = Limit::new("login", 5, 15 * 60);

/// Logins from one address, whatever the account: 30 in 15 minutes.
pub const LOGIN_ADDRESS: Limit = Limit::new("login-address", 30, 15 * 60);

/// Logins to one account from anywhere that fail: 100 an hour. Wide, because whoever uses it up locks the
/// account out.
pub const LOGIN_ACCOUNT: Limit = Limit::new("login-account", 100, 3_600);

/// Renewals of sessions from one address: 60 a minute.
pub const REFRESH: Limit = Limit::new("refresh", 60, 60);

/// Requests with one credential: 600 at once, 100 a second.
pub const REQUESTS: Limit = Limit::new("requests", 600, 6);

/// Requests without valid credential from one address: 60 a minute.
pub const UNAUTHENTICATED: Limit = Limit::new("unauthenticated", 60, 60);

/// Subscription requests from one address: 30 an hour.
pub const SUBSCRIPTION: Limit = Limit::new("subscription", 30, 3_600);

impl Limit {
    /// Makes a limit of `burst` per `period_s` seconds.
    #[must_use]
    pub const fn new(name: &'static str, burst: u32, period_s: u64) -> Self {
        Self {
            name,
            burst,
            period: Duration::from_secs(period_s),
        }
    }
}

/// Over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests")]
pub struct Limited {
    /// When one more will be let through.
    pub retry_after: Duration,
}

/// Counts and decides; cheap to clone.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    local: Arc<LocalLimiter>,
    #[cfg(feature = "redis")]
    shared: Option<Arc<SharedLimiter>>,
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self::local()
    }
}

impl RateLimiter {
    /// Counts in this process.
    #[must_use]
    pub fn local() -> Self {
        Self {
            local: Arc::new(LocalLimiter::default()),
            #[cfg(feature = "redis")]
            shared: None,
        }
    }

    /// Counts in this process and in Redis; in this process alone while Redis does not answer.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn shared(shared: SharedLimiter) -> Self {
        Self {
            local: Arc::new(LocalLimiter::default()),
            shared: Some(Arc::new(shared)),
        }
    }

    /// Takes one from the bucket of `key`.
    ///
    /// # Errors
    ///
    /// [`Limited`] if it is empty.
    #[cfg_attr(
        not(feature = "redis"),
        allow(clippy::unused_async, reason = "same shape with Redis")
    )]
    pub async fn check(&self, limit: Limit, key: &str) -> Result<(), Limited> {
        let answer = self.local.check(limit, key);
        #[cfg(feature = "redis")]
        let answer = match (answer, &self.shared) {
            (Ok(()), Some(shared)) => match shared.check(limit, key).await {
                Some(answer) => answer,
                None => {
                    metrics::counter!("hy2_master_ratelimit_fallbacks_total").increment(1);
                    Ok(())
                }
            },
            (answer, _) => answer,
        };
        if answer.is_err() {
            metrics::counter!("hy2_master_ratelimit_refusals_total", "limit" => limit.name)
                .increment(1);
        }
        answer
    }

    /// Puts back what [`check`](Self::check) took of the bucket of `key`: what was asked for has turned out to be right.
    #[cfg_attr(
        not(feature = "redis"),
        allow(clippy::unused_async, reason = "same shape with Redis")
    )]
    pub async fn give_back(&self, limit: Limit, key: &str) {
        self.local.give_back(limit, key);
        #[cfg(feature = "redis")]
        if let Some(shared) = &self.shared {
            shared.give_back(limit, key).await;
        }
    }
}

/// What a key is known by.
type KeyHash = [u8; 16];

/// Hashes a key. What was typed as a name may be a password, and addresses are private: their hash is enough.
fn hash(key: &str) -> KeyHash {
    let mut hash = KeyHash::default();
    hash.copy_from_slice(&Sha256::digest(key)[..16]);
    hash
}

/// Returns the part of an address that one customer usually has: the address, or the /64 of IPv6.
#[must_use]
pub fn address_key(address: std::net::IpAddr) -> String {
    use std::net::IpAddr;
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}
