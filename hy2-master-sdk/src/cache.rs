//! Answers that are cheap to keep and dear to make: in memory, or in memory and Redis.
//!
//! Never the only copy of anything. Keys carry the revisions of what the answer was made from,
//! so nothing has to be invalidated and a flushed Redis costs time, not truth.

use std::time::Duration;

use bytes::Bytes;

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
    shared: Option<shared::Shared>,
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

    /// Keeps in memory and in Redis, where other masters find it; all keys begin with `prefix`.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn shared(connection: redis::aio::ConnectionManager, prefix: impl Into<String>) -> Self {
        Self {
            shared: Some(shared::Shared::new(connection, prefix.into())),
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
            && let Some(found) = shared.get(key).await
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
            shared.put(&key, &value).await;
        }
        self.memory.insert(key, value);
    }
}

#[cfg(feature = "redis")]
mod shared {
    use super::{Bytes, Duration, KEEP};
    use redis::aio::ConnectionManager;

    /// How long Redis may take before the answer is made anew.
    const PATIENCE: Duration = Duration::from_millis(250);

    #[derive(Clone)]
    pub(super) struct Shared {
        connection: ConnectionManager,
        prefix: String,
    }

    impl Shared {
        pub(super) const fn new(connection: ConnectionManager, prefix: String) -> Self {
            Self { connection, prefix }
        }

        pub(super) async fn get(&self, key: &str) -> Option<Bytes> {
            let mut connection = self.connection.clone();
            let mut command = redis::cmd("GET");
            command.arg(format!("{}c:{key}", self.prefix));
            let answer = command.query_async::<Option<Vec<u8>>>(&mut connection);
            let found = tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()?;
            found.map(Bytes::from)
        }

        pub(super) async fn put(&self, key: &str, value: &Bytes) {
            let mut connection = self.connection.clone();
            let mut command = redis::cmd("SET");
            command
                .arg(format!("{}c:{key}", self.prefix))
                .arg(value.as_ref())
                .arg("EX")
                .arg(KEEP.as_secs());
            let answer = command.query_async::<()>(&mut connection);
            if !matches!(tokio::time::timeout(PATIENCE, answer).await, Ok(Ok(()))) {
                metrics::counter!("hy2_master_cache_fallbacks_total").increment(1);
            }
        }
    }

    impl std::fmt::Debug for Shared {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Shared")
                .field("prefix", &self.prefix)
                .finish_non_exhaustive()
        }
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
