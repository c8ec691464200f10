//! What can be asked of a fleet, once: REST and AdminService call the same methods.
//!
//! Every method takes an [`Access`], which only the table of rights gives out. A mutation is one
//! transaction: rows, revisions of the nodes concerned, audit entry and event.

pub mod accounts;
pub mod admins;
pub mod alerts;
pub mod api_tokens;
pub mod assignments;
pub mod configs;
pub mod enrolment;
mod error;
pub mod fleet;
pub mod import;
pub mod moment;
pub mod nodes;
mod obfuscation;
pub mod page;
pub mod plans;
pub mod pools;
pub mod regions;
pub mod system;
pub mod traffic;
mod user_rules;
mod user_view;
pub mod users;
pub mod webhooks;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use url::Url;
use uuid::Uuid;

pub use error::{FieldIssue, ServiceError};
pub use fleet::Fleet;

use crate::auth::access::{Access, Credential};
use crate::auth::external::Authenticator;
use crate::auth::jwt::TokenSigner;
use crate::auth::password::Passwords;
use crate::auth::session::SessionKeys;
use crate::cache::Cache;
use crate::domain::{AdminId, Clock, Timestamp};
use crate::ratelimit::RateLimiter;
use crate::secrets::{FleetKeys, Vault};
use crate::store::{Store, Tx, audit, events};
use crate::targets::TargetPolicy;

/// What the operations need. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

/// What a [`Service`] is made of.
pub struct Parts {
    /// Where everything is kept.
    pub store: Store,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Seals what the store keeps.
    pub vault: Vault,
    /// Derive and hash users' credentials.
    pub fleet_keys: FleetKeys,
    /// Keys of sessions.
    pub session_keys: SessionKeys,
    /// Reaches the nodes.
    pub fleet: Arc<dyn Fleet>,
    /// Counts attempts.
    pub limiter: RateLimiter,
    /// Keeps rendered answers.
    pub cache: Cache,
    /// Hashes administrators' passwords.
    pub passwords: Passwords,
    /// Makes and checks access tokens.
    pub tokens: TokenSigner,
    /// Where subscriptions are fetched: `https://sub.example.org/`; none: addresses are paths.
    pub public_url: Option<Url>,
    /// Where webhooks may be sent to.
    pub targets: TargetPolicy,
    /// Recognises administrators by other means than the master's own.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// How long hourly traffic is kept.
    pub keep_hourly: Duration,
    /// How long daily traffic is kept.
    pub keep_daily: Duration,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("public_url", &self.public_url.as_ref().map(Url::as_str))
            .finish_non_exhaustive()
    }
}

struct Inner {
    parts: Parts,
    /// Whether the store answered, and when it was asked last.
    ready: tokio::sync::Mutex<Option<(tokio::time::Instant, bool)>>,
}

/// How long the store may take to say that it is there.
const READY_PATIENCE: Duration = Duration::from_secs(2);

/// How long its answer is good for everybody who asks.
const READY_FOR: Duration = Duration::from_secs(1);

impl Service {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts,
                ready: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Returns whether the store answers within two seconds. Asked often, it looks once a second: anybody may ask.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn is_ready(&self) -> bool {
        let mut ready = self.inner.ready.lock().await;
        let known = ready.filter(|(at, _)| at.elapsed() < READY_FOR);
        if let Some((_, answers)) = known {
            return answers;
        }
        let asked = tokio::time::timeout(READY_PATIENCE, self.store().cluster()).await;
        let answers = matches!(asked, Ok(Ok(_)));
        *ready = Some((tokio::time::Instant::now(), answers));
        answers
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.parts.store
    }

    /// Returns the present moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.parts.clock.now()
    }

    /// Returns how long hourly and daily traffic is kept.
    fn traffic_kept(&self) -> (Duration, Duration) {
        (self.inner.parts.keep_hourly, self.inner.parts.keep_daily)
    }

    /// Returns the rate limiter.
    #[must_use]
    pub fn limiter(&self) -> &RateLimiter {
        &self.inner.parts.limiter
    }

    /// Returns the cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.inner.parts.cache
    }

    /// Returns what seals and opens.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.inner.parts.vault
    }

    /// Returns the keys of users' credentials.
    #[must_use]
    pub fn fleet_keys(&self) -> &FleetKeys {
        &self.inner.parts.fleet_keys
    }

    /// Returns the keys of sessions.
    #[must_use]
    pub fn session_keys(&self) -> &SessionKeys {
        &self.inner.parts.session_keys
    }

    /// Returns the hasher of passwords.
    #[must_use]
    pub fn passwords(&self) -> &Passwords {
        &self.inner.parts.passwords
    }

    /// Returns the signer of access tokens.
    #[must_use]
    pub fn tokens(&self) -> &TokenSigner {
        &self.inner.parts.tokens
    }

    /// Returns what reaches the nodes.
    #[must_use]
    pub fn fleet(&self) -> &dyn Fleet {
        &*self.inner.parts.fleet
    }

    /// Returns what recognises administrators by other means than the master's own.
    pub(crate) fn authenticator(&self) -> Option<&dyn Authenticator> {
        self.inner.parts.authenticator.as_deref()
    }

    /// Returns where webhooks may be sent to.
    #[must_use]
    pub fn targets(&self) -> TargetPolicy {
        self.inner.parts.targets
    }

    /// Returns the address of a subscription; its path, if it is not known where subscriptions are fetched.
    #[must_use]
    pub fn subscription_url(&self, token: &str) -> String {
        let base = self.inner.parts.public_url.as_ref().map_or("", Url::as_str);
        let base = base.trim_end_matches('/');
        format!("{base}/sub/{token}")
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

/// What a mutation leaves behind beside its rows.
pub(crate) struct Record<'a> {
    /// Kind of object: `user`.
    pub kind: &'static str,
    /// Which.
    pub id: String,
    /// As it was, without secrets.
    pub before: Option<Value>,
    /// As it is, without secrets.
    pub after: Option<Value>,
    /// Whose object it is.
    pub owner: Option<AdminId>,
    /// Topic of the event: `user.updated`.
    pub topic: &'a str,
}

/// Writes audit entry and event of a mutation, in its transaction.
pub(crate) async fn record(
    tx: &mut Tx,
    access: Access<'_>,
    record: Record<'_>,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let caller = access.caller();
    let actor_kind = match caller.credential {
        Credential::Session { .. } | Credential::External => "admin",
        Credential::Token { .. } => "token",
        Credential::Host => "host",
    };
    let entry = audit::NewEntry {
        at: now,
        actor_kind,
        actor: caller.username.clone(),
        address: caller.address.map(|address| address.to_string()),
        action: access.operation().name().to_owned(),
        object_kind: record.kind,
        object_id: record.id.clone(),
        before: record.before,
        after: record.after.clone(),
        request_id: Some(Uuid::new_v4()),
    };
    audit::append(tx, &entry).await?;
    let payload = record.after.unwrap_or(Value::Null);
    events::emit(tx, record.topic, &record.id, &payload, record.owner, now).await?;
    Ok(())
}
