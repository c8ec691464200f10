//! Lease: slices of quotas and device slots.

use hy2_proto::control::rpc;
use tonic::Status;

use super::error::store;
use super::peers::Identity;
use crate::core::Core;
use crate::domain::{LeaseId, NodeId, UserId};
use crate::store::leases::{self, Grant, Want};
use crate::store::{StoreError, Tx, traffic};

/// Grants what the limits allow. Users in ascending order: requests of several nodes lock them in
/// one order.
pub(super) async fn lease(
    core: &Core,
    identity: Identity,
    request: rpc::LeaseRequest,
) -> Result<rpc::LeaseResponse, Status> {
    if request.quotas.len() + request.devices.len() > MAX_WANTS {
        return Err(Status::invalid_argument(
            "quotas, devices: more than 2,000 users",
        ));
    }
    let now = core.now();
    let mut answer = rpc::LeaseResponse::default();
    let mut tx = core.store.begin().await.map_err(|error| store(&error))?;
    let multiplier = traffic::multiplier(&mut tx, identity.node)
        .await
        .map_err(|error| store(&error))?;
    let mut quotas = request.quotas;
    name_users(&mut tx, identity.node, &mut quotas)
        .await
        .map_err(|error| store(&error))?;
    // What comes back of a user's slices is said before what is asked for.
    quotas.sort_by_key(|want| want.user_id);
    let mut devices = request.devices;
    devices.sort_unstable_by_key(|want| want.user_id);
    devices.dedup_by_key(|want| want.user_id);
    let mut quotas = quotas.into_iter().peekable();
    let mut devices = devices.into_iter().peekable();
    loop {
        // Both lists together, by user.
        let next_quota = quotas.peek().map_or(u64::MAX, |want| want.user_id);
        let next_device = devices.peek().map_or(u64::MAX, |want| want.user_id);
        if next_quota <= next_device {
            let Some(want) = quotas.next() else { break };
            let Some(user) = UserId::from_wire(want.user_id) else {
                continue;
            };
            let wanted = Want {
                user,
                lease: LeaseId::from_wire(want.lease_id),
                remaining: i64::try_from(want.remaining_bytes).unwrap_or(i64::MAX),
                release: want.release,
                used: want
                    .used_bytes
                    .map(|used| i64::try_from(used).unwrap_or(i64::MAX)),
            };
            match leases::grant(&mut tx, identity.node, multiplier, wanted, now)
                .await
                .map_err(|error| store(&error))?
            {
                Grant::Slice {
                    lease,
                    granted,
                    expires_at,
                    multiplier,
                } => answer.quotas.push(rpc::QuotaLease {
                    lease_id: lease.to_wire(),
                    user_id: want.user_id,
                    granted_bytes: granted.unsigned_abs(),
                    expires_at: Some(expires_at.to_proto()),
                    billing_multiplier: multiplier.unsigned_abs(),
                }),
                Grant::Exhausted => answer.exhausted.push(want.user_id),
                Grant::Enough | Grant::None => {}
            }
        } else {
            let Some(want) = devices.next() else { break };
            let Some(user) = UserId::from_wire(want.user_id) else {
                continue;
            };
            let granted = leases::grant_devices(
                &mut tx,
                identity.node,
                user,
                i64::from(want.in_use),
                i64::from(want.wanted),
                now,
            )
            .await
            .map_err(|error| store(&error))?;
            if let Some((slots, expires_at)) = granted {
                answer.devices.push(rpc::DeviceLease {
                    user_id: want.user_id,
                    slots: u32::try_from(slots).unwrap_or(0),
                    expires_at: Some(expires_at.to_proto()),
                });
            }
        }
    }
    tx.commit().await.map_err(|error| store(&error))?;
    Ok(answer)
}

/// Says whose a slice is that comes back from a node that it was taken back from and that had never heard of it.
async fn name_users(
    tx: &mut Tx,
    node: NodeId,
    wants: &mut [rpc::LeaseWant],
) -> Result<(), StoreError> {
    let nameless = |want: &rpc::LeaseWant| want.release && want.user_id == 0;
    let leases: Vec<LeaseId> = wants
        .iter()
        .filter(|want| nameless(want))
        .filter_map(|want| LeaseId::from_wire(want.lease_id))
        .collect();
    if leases.is_empty() {
        return Ok(());
    }
    let users = leases::users_of(tx, node, &leases).await?;
    for want in wants.iter_mut().filter(|want| nameless(want)) {
        let lease = LeaseId::from_wire(want.lease_id);
        if let Some(user) = lease.and_then(|lease| users.get(&lease)) {
            want.user_id = user.to_wire();
        }
    }
    Ok(())
}

const MAX_WANTS: usize = 2_000;
