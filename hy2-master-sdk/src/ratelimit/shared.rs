//! Buckets in Redis, shared by several masters.

use std::time::Duration;

use redis::Script;
use redis::aio::ConnectionManager;

use super::{Limit, Limited};

/// How long Redis may take before this process decides by itself.
const PATIENCE: Duration = Duration::from_millis(250);

/// Token bucket: tokens and the time of the last refill (Redis's own clock, in microseconds) in
/// one hash; returns 0, or the microseconds until the next token.
const BUCKET: &str = r"
local now = redis.call('TIME')
now = tonumber(now[1]) * 1000000 + tonumber(now[2])
local burst = tonumber(ARGV[1])
local each = tonumber(ARGV[2])
local state = redis.call('HMGET', KEYS[1], 't', 'a')
local tokens = tonumber(state[1]) or burst
local at = tonumber(state[2]) or now
if now > at then
  tokens = math.min(burst, tokens + (now - at) / each)
end
local wait = 0
if tokens >= 1 then
  tokens = tokens - 1
else
  wait = math.ceil((1 - tokens) * each)
end
redis.call('HSET', KEYS[1], 't', tostring(tokens), 'a', tostring(now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst * each / 1000) + 1000)
return wait
";

/// A connection to Redis with the bucket script.
pub struct SharedLimiter {
    connection: ConnectionManager,
    script: Script,
    prefix: String,
}

impl SharedLimiter {
    /// Uses a connection; all keys begin with `prefix`.
    #[must_use]
    pub fn new(connection: ConnectionManager, prefix: impl Into<String>) -> Self {
        Self {
            connection,
            script: Script::new(BUCKET),
            prefix: prefix.into(),
        }
    }

    /// Takes one from the bucket of `key`; `None` if Redis does not answer in time.
    pub async fn check(&self, limit: Limit, key: &str) -> Option<Result<(), Limited>> {
        let burst = limit.burst.max(1);
        let each = (limit.period / burst).as_micros().max(1);
        let mut connection = self.connection.clone();
        let mut call = self.script.prepare_invoke();
        call.key(format!("{}rl:{}:{key}", self.prefix, limit.name))
            .arg(burst)
            .arg(u64::try_from(each).unwrap_or(u64::MAX));
        let wait: u64 = tokio::time::timeout(PATIENCE, call.invoke_async(&mut connection))
            .await
            .ok()?
            .ok()?;
        Some(match wait {
            0 => Ok(()),
            wait => Err(Limited {
                retry_after: Duration::from_micros(wait),
            }),
        })
    }
}

impl std::fmt::Debug for SharedLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedLimiter")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
