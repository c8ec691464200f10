//! What happens, live: the sealer that numbers events and audit entries, and the hub that tells
//! listeners when there is more.
//!
//! Listeners read numbered events from the store after the last number they saw, woken by the hub:
//! a slow one holds nobody up and misses nothing that retention has kept.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::domain::{Clock, Timestamp};
use crate::store::audit::{self, Checkpoint};
pub use crate::store::events::Event;
use crate::store::{Store, StoreError, Topic, events};

/// How often the sealer looks without being called.
const TICK: Duration = Duration::from_secs(1);

/// How often a checkpoint of the audit log is signed, at most.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);

/// Tells listeners that there are events up to a number. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventHub {
    newest: Arc<watch::Sender<i64>>,
}

impl Default for EventHub {
    fn default() -> Self {
        Self {
            newest: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl EventHub {
    /// Starts to listen; the value is the number of the newest event that is known.
    #[must_use]
    pub fn listen(&self) -> watch::Receiver<i64> {
        self.newest.subscribe()
    }

    fn tell(&self, newest: i64) {
        self.newest.send_if_modified(|known| {
            let more = newest > *known;
            *known = newest.max(*known);
            more
        });
    }
}

/// The key that signs checkpoints of the audit log.
pub struct AuditKey {
    pair: Ed25519KeyPair,
    id: Vec<u8>,
}

/// The stored key is none.
#[derive(Debug, thiserror::Error)]
#[error("the stored audit key is invalid")]
pub struct InvalidAuditKey;

impl AuditKey {
    /// Takes a stored key, PKCS#8.
    ///
    /// # Errors
    ///
    /// It is not Ed25519.
    pub fn load(pkcs8: &[u8]) -> Result<Self, InvalidAuditKey> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| InvalidAuditKey)?;
        let id = crate::secrets::sha256(pair.public_key().as_ref())[..16].to_vec();
        Ok(Self { pair, id })
    }

    /// Returns the name of the key.
    #[must_use]
    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// Signs a checkpoint.
    #[must_use]
    pub fn sign(&self, seq: i64, hash: Vec<u8>, at: Timestamp) -> Checkpoint {
        let message = audit::checkpoint_message(seq, &hash);
        self.signed(&message, (seq, hash), at)
    }

    /// Signs a note that an entry is the newest.
    #[must_use]
    pub fn sign_head(&self, seq: i64, hash: Vec<u8>, at: Timestamp) -> Checkpoint {
        let message = audit::head_message(seq, &hash);
        self.signed(&message, (seq, hash), at)
    }

    fn signed(&self, message: &[u8], (seq, hash): (i64, Vec<u8>), at: Timestamp) -> Checkpoint {
        Checkpoint {
            seq,
            hash,
            key_id: self.id.clone(),
            signature: self.pair.sign(message).as_ref().to_vec(),
            at,
        }
    }
}

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditKey")
            .field("id", &hex::encode(&self.id))
            .finish_non_exhaustive()
    }
}

/// Returns whether a checkpoint is signed by the key with that public half.
#[must_use]
pub fn is_signed(point: &Checkpoint, public_key: &[u8]) -> bool {
    is_signature(
        &audit::checkpoint_message(point.seq, &point.hash),
        point,
        public_key,
    )
}

/// Returns whether a note of the newest entry is signed by the key with that public half.
#[must_use]
pub fn is_head_signed(head: &Checkpoint, public_key: &[u8]) -> bool {
    is_signature(&audit::head_message(head.seq, &head.hash), head, public_key)
}

fn is_signature(message: &[u8], point: &Checkpoint, public_key: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(message, &point.signature)
        .is_ok()
}

/// Numbers events and audit entries until it is cancelled. Every master runs one: a lock in the
/// store lets one work at a time.
#[derive(Debug)]
pub struct Sealer {
    store: Store,
    clock: Arc<dyn Clock>,
    hub: EventHub,
    key: AuditKey,
}

impl Sealer {
    /// Puts the parts together.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>, hub: EventHub, key: AuditKey) -> Self {
        Self {
            store,
            clock,
            hub,
            key,
        }
    }

    /// Works until `stop`.
    ///
    /// # Cancel safety
    ///
    /// What is not sealed when it is dropped is sealed by the next.
    pub async fn run(self, stop: CancellationToken) {
        let mut calls = self.store.bus().listen();
        let mut signed_at = Timestamp(0);
        loop {
            // A run is many transactions: the next goes on where the time was over.
            let sealed = self.store.in_time(1, self.seal_all()).await.flatten();
            if let Err(error) = sealed {
                warn!(%error, "events and audit entries wait to be sealed");
            }
            let now = self.clock.now();
            if now.since(signed_at) >= CHECKPOINT_EVERY {
                let signed = self.store.in_time(1, self.sign_head(now)).await.flatten();
                match signed {
                    Ok(()) => signed_at = now,
                    Err(error) => warn!(%error, "the audit log waits for a checkpoint"),
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = called(&mut calls) => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Seals everything that is committed, and tells the hub.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn seal_all(&self) -> Result<(), StoreError> {
        while audit::seal(&self.store).await? > 0 {}
        while events::seal(&self.store).await? > 0 {}
        self.hub.tell(events::newest(&self.store).await?);
        Ok(())
    }

    /// Signs a checkpoint for the newest entry, if it is newer than the last checkpoint.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn sign_head(&self, now: Timestamp) -> Result<(), StoreError> {
        if let Some((seq, hash)) = audit::unsigned_head(&self.store).await? {
            let head = self.key.sign_head(seq, hash.clone(), now);
            audit::add_checkpoint(&self.store, &self.key.sign(seq, hash, now), &head).await?;
        }
        Ok(())
    }
}

/// Is told of everything that happens in the fleet, in order: `user.created`, `node.offline`, …
/// The same events that webhooks and live streams carry; never a secret in them.
pub trait EventSink: Send + Sync + 'static {
    /// Returns the number of the last event that the sink has dealt with, so that a start goes on
    /// after it; `None`, or a number that was not given yet: with what happens from now on. Asked once, at the start.
    fn last(&self) -> BoxFuture<'_, Option<i64>> {
        Box::pin(std::future::ready(None))
    }

    /// Takes one event. The next comes when this returns, so a slow sink is late and holds nobody
    /// up. After a crash of the process an event may come again; its number says so.
    fn event<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, ()>;
}

/// Tells a sink of every event after a number, until the token is cancelled.
pub(crate) async fn feed(
    (store, hub, stop): (Store, EventHub, CancellationToken),
    sink: Arc<dyn EventSink>,
    mut after: i64,
) {
    let mut calls = hub.listen();
    loop {
        let found = events::after(&store, after, FEED_BATCH);
        match store.in_time(1, found).await.flatten() {
            Ok(found) if found.is_empty() => {}
            Ok(found) => {
                for event in &found {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = sink.event(event) => after = event.seq,
                    }
                }
                continue;
            }
            Err(error) => warn!(%error, "the event sink waits for the store"),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // Another master's sealer numbers events without a call on this hub.
            _ = calls.changed() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Returns the number of the newest event.
pub(crate) async fn newest(store: &Store) -> Result<i64, StoreError> {
    events::newest(store).await
}

/// Events read at once for a sink.
const FEED_BATCH: i64 = 200;

/// Returns when there may be something to seal. Cancel safe: a call that is lost is made up for by
/// the timer.
async fn called(calls: &mut broadcast::Receiver<Topic>) {
    loop {
        match calls.recv().await {
            Ok(Topic::Events) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}
