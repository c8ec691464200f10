//! Nodes: pokes, revocations, heartbeats, silence.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::driver::TaskError;
use crate::core::Core;
use crate::domain::ObservedState;
use crate::rpc::peers::Identity;
use crate::store::cluster::{self, Fence};
use crate::store::observed;

/// Pokes the Sessions of nodes whose desired revision changed.
pub(super) async fn poke(core: Arc<Core>) -> Result<(), TaskError> {
    if core.live.is_empty() {
        return Ok(());
    }
    let desired = core.store.desired_revs(core.id).await?;
    core.live.poke(&desired);
    Ok(())
}

/// Cuts connections whose certificate is not good any more.
pub(super) async fn revocations(core: Arc<Core>) -> Result<(), TaskError> {
    // Asked about what was open before the store is: one that opens meanwhile was looked up itself.
    let open = core.peers.identities();
    for chunk in open.chunks(1_000) {
        let nodes = chunk
            .iter()
            .map(|identity| identity.node)
            .collect::<Vec<_>>();
        let good = core.store.good_certificates(&nodes, core.now()).await?;
        let good = good.into_iter().collect::<HashSet<_>>();
        let is_bad = |identity: &&Identity| !good.contains(identity.fingerprint.as_slice());
        let bad = chunk.iter().filter(is_bad).copied().collect::<Vec<_>>();
        let mut retired = Vec::new();
        for identity in &bad {
            if core.store.is_retired(&identity.fingerprint).await? {
                retired.push(*identity);
            }
        }
        if !retired.is_empty() {
            // They are told, and then cut.
            core.peers.retire(&retired);
            tokio::time::sleep(FAREWELL).await;
        }
        let cut = core.peers.cut(&bad);
        if cut > 0 {
            tracing::info!(
                connections = cut,
                "connections of revoked certificates were cut"
            );
        }
    }
    Ok(())
}

/// Writes what heartbeats said, and that this master lives.
pub(super) async fn seen(core: Arc<Core>) -> Result<(), TaskError> {
    let seen = core.live.take_seen();
    let now = core.now();
    core.store.note_seen(&seen, now).await?;
    core.store
        .master_heartbeat(core.id, "", env!("CARGO_PKG_VERSION"), now)
        .await?;
    metrics::gauge!("hy2_master_nodes_connected").set(f64::from(
        u32::try_from(core.live.list().len()).unwrap_or(u32::MAX),
    ));
    Ok(())
}

/// How long a node has for hearing that it must not serve any more.
const FAREWELL: Duration = Duration::from_millis(500);

/// Closes connections for commands that nobody uses, and forgets what is known of absent nodes.
pub(super) async fn idle(core: Arc<Core>) -> Result<(), TaskError> {
    core.reverse.close_idle(COMMANDS_IDLE);
    core.views.retain(|node| core.live.contains(node));
    std::future::ready(Ok(())).await
}

/// Lets silent nodes become suspect, then offline. Not just after a start: everybody was silent then.
pub(super) async fn liveness(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    let now = core.now();
    if now.since(core.started_at) < core.config.start_grace {
        return Ok(());
    }
    let mut tx = core.store.begin().await?;
    if let Some(fence) = &fence {
        cluster::check_fence(&mut tx, fence).await?;
    }
    let changed = observed::expire_silent(
        &mut tx,
        now.minus(core.config.suspect_after),
        now.minus(core.config.offline_after),
        now,
    )
    .await?;
    if changed.is_empty() {
        tx.rollback().await?;
        return Ok(());
    }
    tx.commit().await?;
    for node in changed {
        if node.observed_state == ObservedState::Offline {
            tracing::warn!(node = node.id.0, name = node.name, "node is offline");
        } else {
            tracing::info!(node = node.id.0, name = node.name, "node is suspect");
        }
    }
    Ok(())
}

/// A revocation cuts open streams within 5 s even when its call is lost.
pub(super) const MAX_REVOCATION_DELAY: Duration = Duration::from_secs(3);
const COMMANDS_IDLE: Duration = Duration::from_secs(60);
