//! Keys and settings as the store has them, averages, retention, manifests that age.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::driver::TaskError;
use crate::core::Core;
use crate::domain::Timestamp;
use crate::plan::MANIFEST_VALIDITY_MS;
use crate::rpc::refresh_tls;
use crate::signers;
use crate::store::cluster::{self, Fence};
use crate::store::nodes::{self, Bump};
use crate::store::{rotation, upkeep as store};

/// Reads epoch, authorities and keys again; tells agents when they changed; makes the master's own
/// certificate anew.
pub(super) async fn settings(
    core: Arc<Core>,
    tls: Arc<ArcSwap<ServerConfig>>,
) -> Result<(), TaskError> {
    let before = core.trust.load_full();
    let epoch = core.epoch();
    core.reload().await?;
    let after = core.trust.load_full();
    let changed = !after.tells_the_same(&before);
    let renew_now = before.authority.spki_sha256() != after.authority.spki_sha256();
    let aged = core.now().since(Timestamp(
        core.tls_made_at.load(std::sync::atomic::Ordering::SeqCst),
    )) > TLS_AGE;
    if changed || aged {
        tls.store(refresh_tls(&core, &after)?);
        core.tls_made_at
            .store(core.now().0, std::sync::atomic::Ordering::SeqCst);
    }
    let prepared = after.next.is_some() && after.next != before.next;
    if renew_now || prepared {
        // A session may have sent the latest state between the change and this: with the signature of the
        // authority before, or with one that its node had not heard of. And what a node answers to a state that it
        // got after an authority says that it has heard of that.
        sign_anew(&core).await?;
    }
    if changed || core.epoch() != epoch {
        // Sessions tell their nodes.
        core.live.poke_all();
    }
    Ok(())
}

/// Lets the state of every node be signed and sent again.
async fn sign_anew(core: &Core) -> Result<(), TaskError> {
    let now = core.now();
    let mut tx = core.store.begin().await?;
    for node in rotation::node_ids(&mut tx).await? {
        nodes::bump(&mut tx, node, Bump::MANIFEST, now).await?;
    }
    tx.commit().await?;
    core.live.poke_all();
    Ok(())
}

/// Makes the next key that signs manifests, or lets it sign, when it is time.
pub(super) async fn signers(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    let mut tx = core.store.begin().await?;
    if let Some(fence) = &fence {
        cluster::check_fence(&mut tx, fence).await?;
    }
    signers::keep(&mut tx, &core.vault, core.now(), false).await?;
    tx.commit().await?;
    Ok(())
}

/// Averages, retention, and manifests that are half way to their end.
pub(super) async fn upkeep(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    let now = core.now();
    let mut tx = core.store.begin().await?;
    if let Some(fence) = &fence {
        cluster::check_fence(&mut tx, fence).await?;
    }
    for (source, target) in [(15, 300), (300, 3_600)] {
        let bucket = target * 1_000;
        // The last full bucket and those before it that a pause may have left out.
        let to = Timestamp(now.0 - now.0.rem_euclid(bucket));
        store::average_metrics(&mut tx, source, target, Timestamp(to.0 - 6 * bucket), to).await?;
    }
    store::renew_manifests(&mut tx, Timestamp(now.0 - MANIFEST_VALIDITY_MS / 2), now).await?;
    let until = store::retention_time(&mut tx, now).await?;
    let mut expired = store::expire(&mut tx, &core.config, until).await?;
    tx.commit().await?;
    // What a long pause left goes piece by piece, each in its own transaction.
    for _ in 0..MAX_PIECES {
        if !expired.more || core.shutdown.is_cancelled() {
            break;
        }
        let mut tx = core.store.begin().await?;
        if let Some(fence) = &fence {
            cluster::check_fence(&mut tx, fence).await?;
        }
        expired = store::expire(&mut tx, &core.config, until).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Pieces of one run; the next goes on.
const MAX_PIECES: usize = 200;

/// How much longer than others upkeep may take: a long pause leaves much.
pub(super) const PATIENCE: u32 = 10;

/// And what touches every node in one transaction.
pub(super) const EVERY_NODE_PATIENCE: u32 = 5;

/// The timer is for lost calls, and for what a command on the host of a SQLite changed: nobody calls then.
pub(super) const SETTINGS_INTERVAL: Duration = Duration::from_secs(10);
pub(super) const INTERVAL: Duration = Duration::from_secs(300);
const TLS_AGE: Duration = Duration::from_secs(86_400);
