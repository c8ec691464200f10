//! Buckets in Redis, shared by several masters.

use std::time::Duration;

use redis::Script;

use super::{Limit, Limited, hash};
use crate::redis::Redis;

/// Token bucket: tokens and the time of the last refill (Redis's own clock, in microseconds) in
/// one hash; returns 0, or the microseconds until the next token. Takes a token or puts one back. Numbers are written out in full:
/// Lua's own way keeps 14 digits, and microseconds have 16.
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
if ARGV[3] == 'back' then
  tokens = math.min(burst, tokens + 1)
elseif tokens >= 1 then
  tokens = tokens - 1
else
  wait = math.ceil((1 - tokens) * each)
end
redis.call('HSET', KEYS[1], 't', string.format('%.6f', tokens), 'a', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst * each / 1000) + 1000)
return wait
";

/// Redis with the bucket script.
pub struct SharedLimiter {
    redis: Redis,
    script: Script,
}

impl SharedLimiter {
    /// Keeps buckets in `redis`.
    #[must_use]
    pub fn new(redis: Redis) -> Self {
        Self {
            redis,
            script: Script::new(BUCKET),
        }
    }

    /// Takes one from the bucket of `key`; `None` if Redis does not answer.
    pub async fn check(&self, limit: Limit, key: &str) -> Option<Result<(), Limited>> {
        Some(match self.run(limit, key, "take").await? {
            0 => Ok(()),
            wait => Err(Limited {
                retry_after: Duration::from_micros(wait),
            }),
        })
    }

    /// Puts back what was taken of the bucket of `key`; if Redis does not answer, it comes back with time.
    pub async fn give_back(&self, limit: Limit, key: &str) {
        self.run(limit, key, "back").await;
    }

    async fn run(&self, limit: Limit, key: &str, what: &str) -> Option<u64> {
        let burst = limit.burst.max(1);
        let each = (limit.period / burst).as_micros().max(1);
        let key = hex::encode(hash(key));
        let mut call = self.script.prepare_invoke();
        call.key(self.redis.key("limit", &format!("{}:{key}", limit.name)))
            .arg(burst)
            .arg(u64::try_from(each).unwrap_or(u64::MAX))
            .arg(what);
        let ask = |mut connection| async move { call.invoke_async::<u64>(&mut connection).await };
        self.redis.ask(ask).await
    }
}

impl std::fmt::Debug for SharedLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedLimiter")
            .field("redis", &self.redis)
            .finish_non_exhaustive()
    }
}
