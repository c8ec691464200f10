//! Redis, shared by masters: asked for little, waited for briefly, missed by nobody.
//!
//! What is kept there can be made again: rendered subscriptions and rate-limit buckets. So a
//! Redis that is slow, stopped or empty costs time, and little of it: the first request that gets no
//! answer waits [`PATIENCE`], and from then on Redis is left alone until a probe beside the
//! requests finds that it answers again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::RedisResult;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use thiserror::Error;
use tokio::time::{sleep, timeout};

/// How long a request waits for Redis, once: while Redis is known not to answer, requests do
/// not wait at all.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// How often a Redis that does not answer is asked whether it does.
const PROBE: Duration = Duration::from_millis(250);

/// How long a probe and a connection attempt may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The text is not an address of Redis.
#[derive(Debug, Error)]
#[error("must be redis://[:password@]host[:port][/number], rediss:// or unix:/path")]
pub struct RedisAddressError(#[source] redis::RedisError);

/// A connection to Redis that is made when it is first needed, and again when it breaks. Cheap
/// to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    connection: ConnectionManager,
    prefix: String,
    down: AtomicBool,
}

impl Redis {
    /// Describes a connection; all keys begin with `prefix`. Needs a tokio runtime, and no Redis:
    /// a master starts without it.
    ///
    /// # Errors
    ///
    /// `url` is not an address of Redis.
    pub fn new(url: &str, prefix: impl Into<String>) -> Result<Self, RedisAddressError> {
        let client = redis::Client::open(url).map_err(RedisAddressError)?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(PROBE_PATIENCE))
            .set_response_timeout(Some(PROBE_PATIENCE));
        let connection = client
            .get_connection_manager_lazy(config)
            .map_err(RedisAddressError)?;
        Ok(Self {
            inner: Arc::new(Inner {
                connection,
                prefix: prefix.into(),
                down: AtomicBool::new(false),
            }),
        })
    }

    /// Returns whether Redis answered when it was last asked.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !self.inner.down.load(Ordering::Relaxed)
    }

    /// Returns the full name of a key.
    pub(crate) fn key(&self, kind: &str, key: &str) -> String {
        format!("{}{kind}:{key}", self.inner.prefix)
    }

    /// Asks; `None` if Redis does not answer within [`PATIENCE`], answers with an error, or is
    /// known not to answer.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, Redis may still do what it was asked.
    pub(crate) async fn ask<T, F>(&self, ask: impl FnOnce(ConnectionManager) -> F) -> Option<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        if !self.is_up() {
            return None;
        }
        let error = match timeout(PATIENCE, ask(self.inner.connection.clone())).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", PATIENCE.as_millis()),
        };
        self.mark_down(&error);
        None
    }

    /// Leaves Redis alone until it answers a probe.
    fn mark_down(&self, error: &str) {
        metrics::counter!("hy2_master_redis_failures_total").increment(1);
        if self.inner.down.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(error, "Redis does not answer: going on without it");
        // Owned by nobody, but ends by itself when the last handle is gone.
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                sleep(PROBE).await;
                let Some(inner) = inner.upgrade() else { return };
                let mut connection = inner.connection.clone();
                let ping = redis::cmd("PING");
                let pong = ping.query_async::<()>(&mut connection);
                if let Ok(Ok(())) = timeout(PROBE_PATIENCE, pong).await {
                    inner.down.store(false, Ordering::Relaxed);
                    tracing::info!("Redis answers again");
                    return;
                }
            }
        });
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("prefix", &self.inner.prefix)
            .field("up", &self.is_up())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn only_the_first_request_waits_for_a_redis_that_does_not_answer() {
        // Connections are taken by the system and never served: a stopped process.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = silent.local_addr().expect("its address");
        let redis = Redis::new(&format!("redis://{address}"), "").expect("an address");
        let ping = |mut connection: ConnectionManager| async move {
            redis::cmd("PING").query_async::<()>(&mut connection).await
        };
        let start = Instant::now();
        assert_eq!(redis.ask(ping).await, None);
        assert_eq!(start.elapsed().as_millis(), PATIENCE.as_millis());
        let start = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(redis.ask(ping).await, None);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(!redis.is_up());
    }

    #[tokio::test]
    async fn wrong_addresses_are_refused_without_repeating_the_password() {
        for wrong in ["", "localhost", "http://:hunter2@localhost/"] {
            let error = Redis::new(wrong, "").expect_err(wrong);
            assert!(error.to_string().starts_with("must be redis://"));
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
