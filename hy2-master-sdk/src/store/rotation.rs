//! What the exchange of the authority asks and changes.

use uuid::Uuid;

use super::cluster::{AuthorityRow, SIGNING_KEYS, SigningKeyRow};
use super::{Rows as _, Store, StoreError, Topic, Tx, on};
use crate::domain::{NodeId, Timestamp};

/// Returns the names of nodes that hold an identity and may not have heard of an authority.
pub(crate) async fn not_told(tx: &mut Tx, authority: Uuid) -> Result<Vec<String>, StoreError> {
    const SQL: &str = "select name from vps_nodes n where exists \
                       (select 1 from node_certificates c where c.node_id = n.id and c.revoked_at is null) \
                       and not exists (select 1 from told_authorities t where t.node_id = n.id and t.authority_id = $1) \
                       order by name";
    Ok(on!(tx, |ex| sqlx::query_scalar(SQL)
        .bind(authority)
        .fetch_all(ex)
        .await)?)
}

impl Store {
    /// Returns whether a node is known to have heard of an authority.
    pub(crate) async fn is_told(&self, node: NodeId, authority: Uuid) -> Result<bool, StoreError> {
        const SQL: &str =
            "select count(*) from told_authorities where node_id = $1 and authority_id = $2";
        let found = on!(read self, |ex| sqlx::query_scalar::<_, i64>(SQL)
            .bind(node)
            .bind(authority)
            .fetch_one(ex)
            .await)?;
        Ok(found > 0)
    }

    /// Notes that a node has heard of an authority, unless that is gone.
    pub(crate) async fn note_told(
        &self,
        node: NodeId,
        authority: Uuid,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const SQL: &str = "insert into told_authorities (node_id, authority_id, told_at) \
                           select n.id, a.id, $3 from vps_nodes n, certificate_authorities a \
                           where n.id = $1 and a.id = $2 on conflict (node_id, authority_id) do nothing";
        on!(write self, |ex| sqlx::query(SQL)
            .bind(node)
            .bind(authority)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
        Ok(())
    }

    /// Returns whether a node has no certificate from the time since an authority took over, which is the active one.
    pub(crate) async fn is_of_authority_before(
        &self,
        node: NodeId,
        active_spki: &[u8],
    ) -> Result<bool, StoreError> {
        const SQL: &str = "select count(*) from certificate_authorities a where a.state = 'active' and a.spki_sha256 = $2 \
                           and not exists (select 1 from node_certificates c where c.node_id = $1 \
                           and c.revoked_at is null and c.created_at >= a.updated_at)";
        let found = on!(read self, |ex| sqlx::query_scalar::<_, i64>(SQL)
            .bind(node)
            .bind(active_spki)
            .fetch_one(ex)
            .await)?;
        Ok(found > 0)
    }
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

/// Returns label and number of the open tokens of before the active authority took over, unless it is the first.
pub(crate) async fn outdated_tokens(
    tx: &mut Tx,
    now: Timestamp,
) -> Result<Vec<(String, Uuid)>, StoreError> {
    const SQL: &str = "select label, id from enrolment_tokens where used_at is null and revoked_at is null \
                       and expires_at > $1 and created_at < (select max(updated_at) from certificate_authorities \
                       where state = 'active') order by created_at, id limit 500";
    Ok(on!(tx, |ex| sqlx::query_as(SQL)
        .bind(now)
        .fetch_all(ex)
        .await)?)
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
