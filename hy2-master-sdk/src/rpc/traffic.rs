//! ReportTraffic: batches in, cursors out, each after its commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use hy2_proto::control::rpc;
use prost::Message;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::error::store;
use super::peers::{Identity, Peer};
use crate::core::Core;
use crate::domain::{LeaseId, Timestamp};
use crate::store::traffic::{Batch, BatchRow, Ingested};
use crate::store::{StoreError, alerts, traffic};

/// Answers each batch of a stream, one after another. A failure ends the stream: the agent sends
/// what was not acknowledged again.
pub(super) fn report(
    core: Arc<Core>,
    identity: Identity,
    peer: Peer,
    batches: Streaming<rpc::ReportTrafficRequest>,
) -> impl Stream<Item = Result<rpc::ReportTrafficResponse, Status>> {
    futures_util::stream::unfold(Some((core, batches)), move |state| {
        let cut = peer.cut.clone();
        async move {
            let (core, mut batches) = state?;
            let next = tokio::select! {
                biased;
                () = cut.cancelled() => return None,
                // Cancel safe: the stream keeps what it has not given out.
                next = batches.message() => next,
            };
            match next {
                Ok(Some(request)) => match handle(&core, identity, request).await {
                    Ok(ack) => Some((Ok(ack), Some((core, batches)))),
                    Err(status) => Some((Err(status), None)),
                },
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }
    })
}

async fn handle(
    core: &Core,
    identity: Identity,
    request: rpc::ReportTrafficRequest,
) -> Result<rpc::ReportTrafficResponse, Status> {
    if crc32c::crc32c(&request.batch) != request.crc32c {
        return Err(Status::data_loss("crc32c: the batch is damaged"));
    }
    let batch = rpc::TrafficBatch::decode(request.batch)
        .map_err(|error| Status::invalid_argument(format!("batch: {error}")))?;
    let now = core.now();
    let spool = batch.spool_id.clone();
    let batch = check(identity, batch, now)?;
    let done = core.store.in_time(1, ingest(core, batch, now)).await;
    let done = done.flatten().map_err(|error| store(&error))?;
    metrics::counter!("hy2_master_traffic_batches_total", "added" => if done.added { "true" } else { "false" })
        .increment(1);
    if done.quarantined > 0 {
        tracing::warn!(
            node = identity.node.0,
            rows = done.quarantined,
            "traffic of users that are not this node's was set aside"
        );
    }
    if !done.users.is_empty() {
        core.grown.add(done.users);
    }
    Ok(rpc::ReportTrafficResponse {
        ack: Some(rpc::TrafficAck {
            spool_id: spool,
            durable_seq: done.durable_seq.unsigned_abs(),
            quarantined: done.quarantined,
        }),
    })
}

/// Adds a batch in one transaction with its cursor. The multiplier is what the node's was when the batch was cut, however
/// late it comes.
async fn ingest(core: &Core, mut batch: Batch, now: Timestamp) -> Result<Ingested, StoreError> {
    let mut tx = core.store.begin().await?;
    batch.multiplier = traffic::multiplier_at(&mut tx, batch.node, batch.at).await?;
    let mut done = traffic::ingest(&mut tx, &batch, now).await?;
    if !done.added && batch.first_seq > done.durable_seq + 1 {
        // Batches are missing. Only a store that was restored from a backup cannot have seen them:
        // the agent had them acknowledged, and deleted them.
        let started = Timestamp(
            core.epoch_started_at
                .load(std::sync::atomic::Ordering::SeqCst),
        );
        let restored = core.epoch() > 1;
        if restored && traffic::cursor_is_older(&mut tx, batch.node, batch.spool, started).await? {
            let (node, from, to) = (batch.node, done.durable_seq + 1, batch.first_seq - 1);
            tracing::warn!(
                node = node.0,
                from,
                to,
                "batches from before the restore are lost"
            );
            traffic::skip_gap(&mut tx, node, batch.spool, from, to, now).await?;
            let message = format!(
                "traffic reported between the backup and the loss of the database before it is not in the accounts: \
                 batches {from} to {to}"
            );
            alerts::raise(&mut tx, Some(node), TRAFFIC_GAP, "critical", &message, now).await?;
            done = traffic::ingest(&mut tx, &batch, now).await?;
        }
    }
    if done.added {
        tx.commit().await?;
    } else {
        tx.rollback().await?;
    }
    Ok(done)
}

fn check(identity: Identity, batch: rpc::TrafficBatch, now: Timestamp) -> Result<Batch, Status> {
    let spool = uuid(&batch.spool_id)
        .ok_or_else(|| Status::invalid_argument("batch.spool_id: not 16 bytes"))?;
    let seq = |path: &str, value: u64| {
        i64::try_from(value)
            .ok()
            .filter(|seq| (1..MAX_SEQ).contains(seq))
            .ok_or_else(|| Status::invalid_argument(format!("batch.{path}: out of range")))
    };
    let first_seq = seq("first_seq", batch.first_seq)?;
    let last_seq = seq("last_seq", batch.last_seq)?;
    if last_seq < first_seq {
        return Err(Status::invalid_argument(
            "batch.last_seq: less than first_seq",
        ));
    }
    let to = batch.to.as_ref().map_or(now, Timestamp::from_proto);
    // A node's clock that is far off does not decide which hour it was.
    let believable = to <= now.plus(CLOCK_SLACK) && to >= now.minus(OLDEST_BATCH);
    let at = if believable { to.min(now) } else { now };
    // What does not fit is negative, which the store sets aside as invalid.
    let bytes = |value: u64| i64::try_from(value).unwrap_or(-1);
    let mut uses_left = MAX_LEASE_USES;
    let rows = batch
        .users
        .into_iter()
        .map(|user| BatchRow {
            user: i64::try_from(user.user_id).unwrap_or(0),
            tx: bytes(user.tx),
            rx: bytes(user.rx),
            seen: user
                .last_seen
                .as_ref()
                .map_or(at, Timestamp::from_proto)
                .min(now),
            leases: uses(&user.leases, &mut uses_left),
        })
        .collect();
    Ok(Batch {
        node: identity.node,
        spool,
        first_seq,
        last_seq,
        at,
        multiplier: 1_000_000_000,
        rows,
    })
}

/// Sums what was used of each lease. What is beyond the limit of a batch is left out: these leases
/// stay debited until they end, and the bytes count all the same.
fn uses(reported: &[rpc::LeaseUse], left: &mut usize) -> Vec<(LeaseId, i64)> {
    let mut sums = BTreeMap::<LeaseId, i64>::new();
    for lease in reported {
        let Some(id) = LeaseId::from_wire(lease.lease_id) else {
            continue;
        };
        let billed = i64::try_from(lease.billed_bytes).unwrap_or(i64::MAX);
        if let Some(sum) = sums.get_mut(&id) {
            *sum = sum.saturating_add(billed);
        } else if billed > 0 && *left > 0 {
            *left -= 1;
            sums.insert(id, billed);
        }
    }
    sums.into_iter().collect()
}

/// Returns a UUID of 16 bytes.
pub(super) fn uuid(bytes: &Bytes) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

/// Leases that one batch may consume, each with a statement: a batch has 20,000 users at most, with
/// mostly one lease each.
const MAX_LEASE_USES: usize = 50_000;
/// The alert of traffic that is not in the accounts.
const TRAFFIC_GAP: &str = "traffic_gap";
/// One batch a second for longer than anybody lives.
const MAX_SEQ: i64 = 1 << 53;
const CLOCK_SLACK: std::time::Duration = std::time::Duration::from_secs(300);
const OLDEST_BATCH: std::time::Duration = std::time::Duration::from_secs(31 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    fn used(lease_id: u64, billed_bytes: u64) -> rpc::LeaseUse {
        rpc::LeaseUse {
            lease_id,
            billed_bytes,
        }
    }

    #[test]
    fn uses_of_one_lease_are_summed_and_those_of_many_are_limited() {
        let mut left = 2;
        let reported = [
            used(1, 5),
            used(0, 9),
            used(2, 0),
            used(1, 6),
            used(3, u64::MAX),
            used(4, 1),
            used(3, 1),
        ];
        let kept = uses(&reported, &mut left);
        let kept: Vec<_> = kept.iter().map(|(id, sum)| (id.0, *sum)).collect();
        assert_eq!(kept, [(1, 11), (3, i64::MAX)]);
        assert_eq!(left, 0);
        assert!(uses(&[used(5, 1)], &mut left).is_empty());
    }
}
