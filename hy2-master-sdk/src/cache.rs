//! Answers that are cheap to keep and dear to make: in memory, or in memory and Redis.
//!
//! Never the only copy of anything. Keys carry the revisions of what the answer was made from,
//! so nothing has to be invalidated and a flushed Redis costs time, not truth.

use std::time::Duration;

use bytes::Bytes;

#[cfg(feature = "redis")]
use crate::redis::Redis;

/// How long an answer is kept.
const KEEP: Duration = Duration::from_secs(300);

/// Bytes kept in memory.
const MEMORY: u64 = 32 << 20;

/// Largest answer that is kept, in bytes.
const MAX_VALUE: usize = 1 << 20;

/// Keeps answers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache {
    memory: moka::sync::Cache<String, Bytes>,
    #[cfg(feature = "redis")]
    shared: Option<Redis>,
}

impl Default for Cache {
    fn default() -> Self {
        Self::memory()
    }
}

impl Cache {
    /// Keeps in memory.
    #[must_use]
    pub fn memory() -> Self {
        let memory = moka::sync::Cache::builder()
            .max_capacity(MEMORY)
            .weigher(|key: &String, value: &Bytes| {
                u32::try_from(key.len() + value.len() + 64).unwrap_or(u32::MAX)
            })
            .time_to_live(KEEP)
            .build();
        Self {
            memory,
            #[cfg(feature = "redis")]
            shared: None,
        }
    }

    /// Keeps in memory and in Redis, where other masters find it.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn shared(redis: Redis) -> Self {
        Self {
            shared: Some(redis),
            ..Self::memory()
        }
    }

    /// Returns what is kept under `key`.
    #[cfg_attr(
        not(feature = "redis"),
        allow(clippy::unused_async, reason = "same shape with Redis")
    )]
    pub async fn get(&self, key: &str) -> Option<Bytes> {
        if let Some(found) = self.memory.get(key) {
            return Some(found);
        }
        #[cfg(feature = "redis")]
        if let Some(shared) = &self.shared
            && let Some(found) = read(shared, key).await
        {
            self.memory.insert(key.to_owned(), found.clone());
            return Some(found);
        }
        None
    }

    /// Keeps `value` under `key`, if it is not too large.
    #[cfg_attr(
        not(feature = "redis"),
        allow(clippy::unused_async, reason = "same shape with Redis")
    )]
    pub async fn put(&self, key: String, value: Bytes) {
        if value.len() > MAX_VALUE {
            return;
        }
        #[cfg(feature = "redis")]
        if let Some(shared) = &self.shared {
            write(shared, &key, &value).await;
        }
        self.memory.insert(key, value);
    }
}

#[cfg(feature = "redis")]
async fn read(shared: &Redis, key: &str) -> Option<Bytes> {
    let mut command = redis::cmd("GET");
    command.arg(shared.key("cache", key));
    let ask = |mut connection| async move { command.query_async(&mut connection).await };
    let found: Option<Vec<u8>> = shared.ask(ask).await?;
    found.map(Bytes::from)
}

#[cfg(feature = "redis")]
async fn write(shared: &Redis, key: &str, value: &Bytes) {
    let mut command = redis::cmd("SET");
    command
        .arg(shared.key("cache", key))
        .arg(value.as_ref())
        .arg("EX")
        .arg(KEEP.as_secs());
    let ask = |mut connection| async move { command.query_async::<()>(&mut connection).await };
    if shared.ask(ask).await.is_none() {
        metrics::counter!("hy2_master_cache_fallbacks_total").increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_put_is_found_unless_it_is_too_large() {
        let cache = Cache::memory();
        cache.put("a".into(), Bytes::from_static(b"1")).await;
        cache.put("b".into(), vec![0; MAX_VALUE + 1].into()).await;
        assert_eq!(cache.get("a").await.as_deref(), Some(&b"1"[..]));
        assert_eq!(cache.get("b").await, None);
    }
}
