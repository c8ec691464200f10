//! What the exchange of the authority asks and changes.

use uuid::Uuid;

use super::cluster::{AuthorityRow, SIGNING_KEYS, SigningKeyRow};
use super::{Rows as _, StoreError, Topic, Tx, on};
use crate::domain::{NodeId, Timestamp};

/// Returns the names of nodes that hold an identity and have not been heard since a moment.
pub(crate) async fn not_seen_since(
    tx: &mut Tx,
    since: Timestamp,
) -> Result<Vec<String>, StoreError> {
    const SQL: &str = "select name from vps_nodes n where coalesce(last_seen_at, 0) < $1 and exists \
                       (select 1 from node_certificates c where c.node_id = n.id and c.revoked_at is null) \
                       order by name";
    Ok(on!(tx, |ex| sqlx::query_scalar(SQL)
        .bind(since)
        .fetch_all(ex)
        .await)?)
}

/// Returns the names of nodes that hold an identity, but none since the active authority took over, or
/// whose state was signed before.
pub(crate) async fn not_renewed(tx: &mut Tx) -> Result<Vec<String>, StoreError> {
    const SQL: &str = "select name from vps_nodes n where exists \
                       (select 1 from node_certificates c where c.node_id = n.id and c.revoked_at is null) \
                       and (applied_rev < desired_rev or not exists (select 1 from node_certificates c \
                       where c.node_id = n.id and c.revoked_at is null and c.created_at >= \
                       (select max(updated_at) from certificate_authorities where state = 'active'))) \
                       order by name";
    Ok(on!(tx, |ex| sqlx::query_scalar(SQL).fetch_all(ex).await)?)
}

/// Returns every node.
pub(crate) async fn node_ids(tx: &mut Tx) -> Result<Vec<NodeId>, StoreError> {
    const SQL: &str = "select id from vps_nodes order by id";
    Ok(on!(tx, |ex| sqlx::query_scalar(SQL).fetch_all(ex).await)?)
}

/// Moves an authority to another state.
pub(crate) async fn set_authority_state(
    tx: &mut Tx,
    id: Uuid,
    state: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str =
        "update certificate_authorities set state = $2, updated_at = $3 where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(state)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Settings);
    Ok(())
}

/// Removes an authority.
pub(crate) async fn remove_authority(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "delete from certificate_authorities where id = $1";
    on!(tx, |ex| sqlx::query(SQL).bind(id).execute(ex).await.rows())?;
    tx.call(Topic::Settings);
    Ok(())
}

/// Removes the keys that signed for nodes before the active authority took over.
pub(crate) async fn remove_signers_before_active(tx: &mut Tx) -> Result<(), StoreError> {
    const SQL: &str = "delete from signing_keys where purpose = 'manifest' and created_at < \
                       (select max(updated_at) from certificate_authorities where state = 'active')";
    on!(tx, |ex| sqlx::query(SQL).execute(ex).await.rows())?;
    tx.call(Topic::Settings);
    Ok(())
}

/// Returns the active authority and keeps it so until the transaction ends; `None` when another one
/// took over meanwhile.
pub(crate) async fn lock_active_authority(tx: &mut Tx) -> Result<Option<AuthorityRow>, StoreError> {
    const SQL: &str = "update certificate_authorities set state = state where state = 'active' \
                       returning id, certificate, private_key_enc, spki_sha256, state, not_before, not_after";
    Ok(on!(tx, |ex| sqlx::query_as::<_, AuthorityRow>(SQL)
        .fetch_optional(ex)
        .await)?)
}

/// Returns the keys that sign for nodes as the transaction sees them, the newest first.
pub(crate) async fn signers(tx: &mut Tx) -> Result<Vec<SigningKeyRow>, StoreError> {
    Ok(on!(tx, |ex| sqlx::query_as::<_, SigningKeyRow>(
        SIGNING_KEYS
    )
    .bind("manifest")
    .fetch_all(ex)
    .await)?)
}

/// Lets none of the keys sign for nodes any more; their signatures stay good until their ends.
pub(crate) async fn retire_signers(tx: &mut Tx, now: Timestamp) -> Result<(), StoreError> {
    const SQL: &str = "update signing_keys set state = 'retired', updated_at = $1 \
                       where purpose = 'manifest' and state <> 'retired'";
    on!(tx, |ex| sqlx::query(SQL).bind(now).execute(ex).await.rows())?;
    tx.call(Topic::Settings);
    Ok(())
}

/// Moves a signing key to another state.
pub(crate) async fn set_signer_state(
    tx: &mut Tx,
    id: Uuid,
    state: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "update signing_keys set state = $2, updated_at = $3 where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(state)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Settings);
    Ok(())
}

/// Removes the keys that no longer sign for nodes and ended before a moment.
pub(crate) async fn remove_signers_ended_before(
    tx: &mut Tx,
    before: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "delete from signing_keys where purpose = 'manifest' and state = 'retired' \
                       and not_after <= $1";
    let removed = on!(tx, |ex| sqlx::query(SQL)
        .bind(before)
        .execute(ex)
        .await
        .rows())?;
    if removed > 0 {
        tx.call(Topic::Settings);
    }
    Ok(())
}
