//! Redis, shared by masters: asked for little, waited for briefly, missed by nobody.
//!
//! What is kept there can be made again: rendered subscriptions and rate-limit buckets. So a
//! Redis that is slow, stopped or empty costs time, and little of it: the first request that gets no
//! answer waits [`PATIENCE`], and from then on Redis is left alone until a probe beside the
//! requests finds that it takes what is written again: one that is full, or for reading only, is of no use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::RedisResult;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

/// How long a request waits for Redis, once: while Redis is known not to answer, requests do
/// not wait at all.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// How often a Redis that does not answer is asked whether it does.
const PROBE: Duration = Duration::from_millis(250);

/// How long a probe and a connection attempt may take.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// Probes that fail over one connection before another one is made: a connection that was not let in, because the password
/// was another one for a while, stays as it is for good.
const PROBES: u32 = 4;

/// How often at most a log line says why Redis is still not used.
const TELL: Duration = Duration::from_secs(5);

/// The reason when there is no answer.
const LATE: &str = "no answer in time";

/// What a probe does, as the rate limiter: a script, that writes what expires.
const WRITE: &str = "return redis.call('set', KEYS[1], '1', 'px', 1000)";

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
    client: redis::Client,
    connection: ArcSwap<ConnectionManager>,
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
        let connection = connect(&client).map_err(RedisAddressError)?;
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                connection: ArcSwap::from_pointee(connection),
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
        let connection = ConnectionManager::clone(&self.inner.connection.load());
        let error = match timeout(PATIENCE, ask(connection)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.to_string(),
            Err(_) => LATE.to_owned(),
        };
        self.mark_down(&error);
        None
    }

    /// Leaves Redis alone until a probe can write.
    fn mark_down(&self, error: &str) {
        metrics::counter!("hy2_master_redis_failures_total").increment(1);
        if self.inner.down.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(error, "Redis does not answer: going on without it");
        let (mut told, mut told_at) = (error.to_owned(), Instant::now());
        // Owned by nobody, but ends by itself when the last handle is gone.
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            for probe in 1_u32.. {
                sleep(PROBE).await;
                let Some(inner) = inner.upgrade() else { return };
                let Err(error) = inner.probe().await else {
                    inner.down.store(false, Ordering::Relaxed);
                    tracing::info!("Redis answers again");
                    return;
                };
                if error != told && told_at.elapsed() >= TELL {
                    tracing::warn!(error, "Redis is still not used, for another reason");
                    (told, told_at) = (error, Instant::now());
                }
                // The address was good for the first one.
                if probe % PROBES == 0
                    && let Ok(connection) = connect(&inner.client)
                {
                    inner.connection.store(Arc::new(connection));
                }
            }
        });
    }
}

impl Inner {
    /// Tries whether Redis does what is asked of it; says why not.
    async fn probe(&self) -> Result<(), String> {
        let mut connection = ConnectionManager::clone(&self.connection.load());
        let mut write = redis::cmd("EVAL");
        write.arg(WRITE).arg(1).arg(format!("{}probe", self.prefix));
        match timeout(PROBE_PATIENCE, write.query_async::<()>(&mut connection)).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err(LATE.to_owned()),
        }
    }
}

/// Describes a connection, which is made when it is first used.
fn connect(client: &redis::Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(PROBE_PATIENCE))
        .set_response_timeout(Some(PROBE_PATIENCE));
    client.get_connection_manager_lazy(config)
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
