//! Requests that may come twice: finished whether or not somebody still waits for the answer, so that their keys do not
//! stay between two answers.
//!
//! What a key is owed when the store is away, its answer or its freedom, is brought to the store when it is back. A
//! process that ends leaves its keys as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::problem::Problem;
use crate::domain::{AdminId, Timestamp};
use crate::service::Service;
use crate::store::idempotency::{self, Remembered};
use crate::store::{Store, StoreError};

/// How long a key is taken.
const KEEP: Duration = Duration::from_secs(86_400);

/// How long the first request with a key is taken to run, at another master too: longer than any may.
const RUNS: Duration = Duration::from_secs(120);

/// Requests at work at once whose caller need not be there any more.
const MAX_AT_WORK: usize = 256;

/// Keys that are owed something at once.
const MAX_OWED: usize = 4_096;

/// Bytes of the answers that keys are owed.
const MAX_OWED_BYTES: usize = 16 << 20;

/// The pause before the store is asked again to take what keys are owed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a request may go on when the process ends.
const GRACE: Duration = Duration::from_secs(3);

/// Whose key, and which.
type Id = (AdminId, String);

/// Requests with keys at this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keyed {
    inner: Arc<Inner>,
}

struct Inner {
    stop: CancellationToken,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    running: BTreeSet<Id>,
    owed: BTreeMap<Id, Owed>,
    owed_bytes: usize,
    /// Whether somebody tells the store what is owed.
    settling: bool,
}

/// What the store has to be told of a key.
#[derive(Clone)]
struct Owed {
    claimed_at: Timestamp,
    end: End,
}

/// How a request with a key ended.
#[derive(Clone)]
pub(crate) enum End {
    /// With an answer that is kept.
    Answered {
        /// Its status.
        status: u16,
        /// The answer, sealed.
        sealed: Arc<[u8]>,
    },
    /// It was refused, or need not be kept: the key may be used again.
    Refused,
    /// It failed: the key may be used again if nothing has changed.
    Failed,
}

/// What is known of a key that was asked for.
pub(crate) enum Claimed {
    /// It was free; the request runs once.
    Ours(Held),
    /// Another request had it first.
    Known {
        /// What is known of that.
        first: Remembered,
        /// Whether its answer is still to come.
        runs: bool,
    },
}

/// A key that is taken for a request of this process.
pub(crate) struct Held {
    keyed: Keyed,
    id: Id,
    claimed_at: Timestamp,
}

impl Keyed {
    /// Begins without any; requests that run at `stop` are cut off a little later.
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self {
            inner: Arc::new(Inner {
                stop,
                tasks: TaskTracker::new(),
                places: Arc::new(Semaphore::new(MAX_AT_WORK)),
                keys: Mutex::default(),
            }),
        }
    }

    /// Works to the end, also when the caller goes away.
    ///
    /// # Errors
    ///
    /// Too much is at work, or the process ends.
    ///
    /// # Panics
    ///
    /// The work does.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the work goes on.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        let Ok(place) = Arc::clone(&self.inner.places).try_acquire_owned() else {
            return Err(Problem::busy());
        };
        let stop = self.inner.stop.clone();
        let done = self.inner.tasks.spawn(async move {
            let _place = place;
            let late = async {
                stop.cancelled().await;
                sleep(GRACE).await;
            };
            tokio::select! {
                biased;
                done = work => Some(done),
                () = late => None,
            }
        });
        match done.await {
            Ok(done) => done.ok_or_else(Problem::stopping),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(_) => Err(Problem::stopping()),
        }
    }

    /// Takes a key for a request.
    ///
    /// # Errors
    ///
    /// The store fails.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the key may be taken. For work in [`Keyed::finish`].
    pub(crate) async fn claim(
        &self,
        service: &Service,
        admin: AdminId,
        key: &str,
        hash: &[u8],
    ) -> Result<Claimed, StoreError> {
        let (store, now) = (service.store(), service.now());
        let id = (admin, key.to_owned());
        // Looked up first: a request that ends meanwhile has not been cut off.
        let runs = self.is_awaited(&id);
        let asked = store.in_time(1, async {
            let mut tx = store.begin().await?;
            let known = idempotency::claim(&mut tx, admin, key, hash, now, now.plus(KEEP)).await?;
            Ok::<_, StoreError>((known, tx.commit().await))
        });
        let (known, committed) = match asked.await {
            Ok(asked) => asked?,
            Err(late) => (None, Err(late)),
        };
        if let Some(first) = known {
            committed?;
            let runs = runs || self.is_awaited(&id) || now.since(first.created_at) < RUNS;
            return Ok(Claimed::Known { first, runs });
        }
        if let Err(error) = committed {
            // Whether it is taken is not known.
            let end = End::Failed;
            let claimed_at = now;
            self.owe(store, id, Owed { claimed_at, end });
            return Err(error);
        }
        self.inner.keys.lock().begin(&id);
        Ok(Claimed::Ours(Held {
            keyed: self.clone(),
            id,
            claimed_at: now,
        }))
    }

    /// Waits for requests that run; they end by themselves after the end of the process began.
    pub(crate) async fn wait(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn is_awaited(&self, id: &Id) -> bool {
        let keys = self.inner.keys.lock();
        keys.running.contains(id) || keys.owed.contains_key(id)
    }

    /// Tells the store what keys are owed until nothing is left.
    async fn settle(self, store: Store) {
        loop {
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return,
                () = sleep(PAUSE) => {}
            }
            let owed: Vec<(Id, Owed)> = {
                let keys = self.inner.keys.lock();
                let owed = keys.owed.iter();
                owed.map(|(id, owed)| (id.clone(), owed.clone())).collect()
            };
            for (id, owed) in owed {
                let told = tokio::select! {
                    biased;
                    () = self.inner.stop.cancelled() => return,
                    told = owed.tell(&store, &id) => told,
                };
                match told {
                    Err(error) if error.is_transient() => {
                        tracing::debug!(%error, "keys wait for the store");
                        break;
                    }
                    Err(error) => tracing::warn!(%error, "a key stays taken"),
                    Ok(()) => {}
                }
                self.inner.keys.lock().settled(&id, owed.claimed_at);
            }
            let mut keys = self.inner.keys.lock();
            if keys.owed.is_empty() {
                keys.settling = false;
                return;
            }
        }
    }

    /// Has the store told later.
    fn owe(&self, store: &Store, id: Id, owed: Owed) {
        let mut keys = self.inner.keys.lock();
        if keys.owed.len() >= MAX_OWED || keys.owed_bytes + owed.bytes() > MAX_OWED_BYTES {
            tracing::warn!("too many keys wait for the store: one stays taken");
            return;
        }
        keys.forget(&id);
        keys.owed_bytes += owed.bytes();
        keys.owed.insert(id, owed);
        if !std::mem::replace(&mut keys.settling, true) {
            let settling = self.clone().settle(store.clone());
            self.inner.tasks.spawn(settling);
        }
    }
}

impl Held {
    /// Works for the request that took the key.
    pub(crate) async fn work<T>(&self, work: impl Future<Output = T>) -> T {
        let (admin, key) = self.id.clone();
        idempotency::acting(admin, key, work).await
    }

    /// Tells the store how the request ended; where the store is away, later.
    pub(crate) async fn end(self, store: &Store, end: End) {
        let owed = Owed {
            claimed_at: self.claimed_at,
            end,
        };
        if let Err(error) = owed.tell(store, &self.id).await {
            tracing::warn!(%error, "a key waits for the store");
            self.keyed.owe(store, self.id.clone(), owed);
        }
    }
}

impl std::fmt::Debug for Keyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys are their clients' own business.
        f.debug_struct("Keyed").finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keyed.inner.keys.lock().running.remove(&self.id);
    }
}

impl Keys {
    /// A key that was free in the store is owed nothing.
    fn begin(&mut self, id: &Id) {
        self.forget(id);
        self.running.insert(id.clone());
    }

    fn forget(&mut self, id: &Id) {
        if let Some(owed) = self.owed.remove(id) {
            self.owed_bytes -= owed.bytes();
        }
    }

    /// Notes that the store was told; not of another request with the same key.
    fn settled(&mut self, id: &Id, claimed_at: Timestamp) {
        let owed = self.owed.get(id);
        if owed.is_some_and(|owed| owed.claimed_at == claimed_at) {
            self.forget(id);
        }
    }
}

impl Owed {
    fn bytes(&self) -> usize {
        match &self.end {
            End::Answered { sealed, .. } => sealed.len(),
            End::Refused | End::Failed => 0,
        }
    }

    async fn tell(&self, store: &Store, (admin, key): &Id) -> Result<(), StoreError> {
        let at = self.claimed_at;
        let told = store.in_time(1, async {
            match &self.end {
                End::Answered { status, sealed } => {
                    idempotency::remember(store, *admin, key, at, *status, sealed).await
                }
                End::Refused => idempotency::release(store, *admin, key, at, true).await,
                End::Failed => idempotency::release(store, *admin, key, at, false).await,
            }
        });
        told.await.flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_without_its_caller_and_is_waited_for() {
        let stop = CancellationToken::new();
        let keyed = Keyed::new(stop.clone());
        let done = CancellationToken::new();
        let says = done.clone();
        let work = async move {
            sleep(Duration::from_secs(2)).await;
            says.cancel();
        };
        let left = timeout(Duration::from_secs(1), keyed.finish(work)).await;
        assert!(left.is_err());
        stop.cancel();
        keyed.wait().await;
        assert!(done.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_does_not_end_is_cut_off_soon_after_the_process_is_told_to_end() {
        let stop = CancellationToken::new();
        let keyed = Keyed::new(stop.clone());
        let start = Instant::now();
        stop.cancel();
        let cut = keyed.finish(pending::<()>()).await.expect_err("cut off");
        assert_eq!((cut.status, start.elapsed()), (503, GRACE));
        keyed.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn callers_who_have_gone_hold_their_places() {
        let keyed = Keyed::new(CancellationToken::new());
        for _ in 0..MAX_AT_WORK {
            let left = timeout(Duration::ZERO, keyed.finish(pending::<()>())).await;
            assert!(left.is_err());
        }
        let refused = keyed.finish(async {}).await.expect_err("no place");
        assert_eq!(
            (refused.status, refused.code.as_str()),
            (503, "unavailable")
        );
    }
}
