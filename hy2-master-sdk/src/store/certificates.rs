//! Identities of nodes: enrolment tokens and certificates.

use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Rows as _, Store, StoreError, Topic, Tx, on};
use crate::auth::ca::Issued;
use crate::domain::{AdminId, NodeId, ObservedState, RegionId, Timestamp};

/// A token with which one node enrols.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct TokenRow {
    pub id: Uuid,
    pub label: String,
    pub bind_cidr: Option<String>,
    pub region_id: Option<RegionId>,
    pub tags: Json<Vec<String>>,
    pub expires_at: Timestamp,
    pub created_by: Option<AdminId>,
    pub used_at: Option<Timestamp>,
    pub used_spki_sha256: Option<Vec<u8>>,
    pub node_id: Option<NodeId>,
    pub revoked_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

macro_rules! token_columns {
    () => {
        "id, label, bind_cidr, region_id, tags, expires_at, created_by, used_at, used_spki_sha256, node_id, \
         revoked_at, created_at"
    };
}

/// A node's certificate.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct CertificateRow {
    pub fingerprint: Vec<u8>,
    pub serial: Vec<u8>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub replaced_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub revoke_reason: Option<String>,
}

/// Returns a node's certificates, the newest first.
///
/// # Errors
///
/// The store fails.
pub async fn of_node(store: &Store, node: NodeId) -> Result<Vec<CertificateRow>, StoreError> {
    const SQL: &str = "select fingerprint, serial, not_before, not_after, replaced_at, revoked_at, revoke_reason \
                       from node_certificates where node_id = $1 order by created_at desc limit 200";
    Ok(
        on!(read store, |ex| sqlx::query_as::<_, CertificateRow>(SQL).bind(node).fetch_all(ex).await)?,
    )
}

/// A new token.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NewToken {
    pub secret_hash: [u8; 32],
    pub label: String,
    pub bind_cidr: Option<ipnet::IpNet>,
    pub region_id: Option<RegionId>,
    pub tags: Vec<String>,
    pub expires_at: Timestamp,
    pub created_by: Option<AdminId>,
}

/// Whose certificate it is.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct IdentityRow {
    pub fingerprint: Vec<u8>,
    pub node_id: NodeId,
    pub node_uid: Uuid,
    pub spki_sha256: Vec<u8>,
    pub not_after: Timestamp,
    pub grace_until: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl IdentityRow {
    /// Returns whether the certificate is good, apart from its own validity.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.grace_until.is_none_or(|until| now < until)
    }
}

/// When the last certificate of a node ends.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct EndRow {
    pub node_id: NodeId,
    pub name: String,
    pub not_after: Timestamp,
}

impl Store {
    /// Returns when the last good certificate of each node ends that is meant to serve.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn certificate_ends(&self) -> Result<Vec<EndRow>, StoreError> {
        const SQL: &str = "select n.id as node_id, n.name, max(c.not_after) as not_after from vps_nodes n \
                           join node_certificates c on c.node_id = n.id where c.revoked_at is null \
                           and n.observed_state <> 'revoked' and n.desired_state <> 'disabled' \
                           group by n.id, n.name order by n.id";
        Ok(on!(read self, |ex| sqlx::query_as::<_, EndRow>(SQL).fetch_all(ex).await)?)
    }

    /// Returns whose certificate has this fingerprint.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn identity(&self, fingerprint: &[u8]) -> Result<Option<IdentityRow>, StoreError> {
        const SQL: &str = "select c.fingerprint, c.node_id, n.uid as node_uid, c.spki_sha256, c.not_after, c.grace_until, \
                           c.revoked_at from node_certificates c join vps_nodes n on n.id = c.node_id \
                           where c.fingerprint = $1";
        Ok(on!(read self, |ex| sqlx::query_as::<_, IdentityRow>(SQL)
            .bind(fingerprint)
            .fetch_optional(ex)
            .await)?)
    }

    /// Returns who has a UUID and a key, whatever certificate it shows: the row of one that was revoked, or else of the
    /// newest. Keys stay when certificates are renewed.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub(crate) async fn identity_of_key(
        &self,
        node: Uuid,
        spki: &[u8],
    ) -> Result<Option<IdentityRow>, StoreError> {
        const SQL: &str = "select c.fingerprint, c.node_id, n.uid as node_uid, c.spki_sha256, c.not_after, c.grace_until, \
                           c.revoked_at from node_certificates c join vps_nodes n on n.id = c.node_id \
                           where c.spki_sha256 = $2 and n.uid = $1 \
                           order by case when c.revoked_at is null then 1 else 0 end, c.created_at desc limit 1";
        Ok(on!(read self, |ex| sqlx::query_as::<_, IdentityRow>(SQL)
            .bind(node)
            .bind(spki)
            .fetch_optional(ex)
            .await)?)
    }

    /// Returns whether a certificate is that of a node that was deleted or revoked, and must not serve. One that was
    /// replaced is not, nor is one that this store has never heard of: it may be an older copy.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn is_retired(&self, fingerprint: &[u8]) -> Result<bool, StoreError> {
        const SQL: &str = "select count(*) from (select fingerprint from deleted_node_certificates where fingerprint = $1 \
                           union all select fingerprint from node_certificates where fingerprint = $1 \
                           and revoked_at is not null) retired";
        let found = on!(read self, |ex| sqlx::query_scalar::<_, i64>(SQL)
            .bind(fingerprint)
            .fetch_one(ex)
            .await)?;
        Ok(found > 0)
    }

    /// Returns tokens, the newest first.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn enrolment_tokens(&self, limit: u32) -> Result<Vec<TokenRow>, StoreError> {
        const SQL: &str = concat!(
            "select ",
            token_columns!(),
            " from enrolment_tokens order by created_at desc, id limit $1"
        );
        Ok(
            on!(read self, |ex| sqlx::query_as::<_, TokenRow>(SQL).bind(i64::from(limit)).fetch_all(ex).await)?,
        )
    }
}

/// Makes a token.
///
/// # Errors
///
/// [`StoreError::Reference`] of the region.
pub async fn create_token(
    tx: &mut Tx,
    token: &NewToken,
    now: Timestamp,
) -> Result<TokenRow, StoreError> {
    const SQL: &str = concat!(
        "insert into enrolment_tokens (id, secret_hash, label, bind_cidr, region_id, tags, expires_at, created_by, \
         created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning ",
        token_columns!()
    );
    Ok(on!(tx, |ex| sqlx::query_as::<_, TokenRow>(SQL)
        .bind(Uuid::now_v7())
        .bind(token.secret_hash.to_vec())
        .bind(&token.label)
        .bind(token.bind_cidr.map(|cidr| cidr.to_string()))
        .bind(token.region_id)
        .bind(Json(&token.tags))
        .bind(token.expires_at)
        .bind(token.created_by)
        .bind(now)
        .fetch_one(ex)
        .await)?)
}

/// Returns the token whose secret has this hash.
///
/// # Errors
///
/// The store fails.
pub async fn token(tx: &mut Tx, secret_hash: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        token_columns!(),
        " from enrolment_tokens where secret_hash = $1"
    );
    Ok(on!(tx, |ex| sqlx::query_as::<_, TokenRow>(SQL)
        .bind(secret_hash.as_slice())
        .fetch_optional(ex)
        .await)?)
}

/// Uses a token up for the node and the key that enrol with it. False when it is used, revoked or
/// expired: of all who try at once, one succeeds.
///
/// # Errors
///
/// The store fails.
pub async fn use_token(
    tx: &mut Tx,
    id: Uuid,
    spki: &[u8; 32],
    now: Timestamp,
) -> Result<bool, StoreError> {
    const SQL: &str = "update enrolment_tokens set used_at = $3, used_spki_sha256 = $2 \
                       where id = $1 and used_at is null and revoked_at is null and expires_at > $3";
    let rows = on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(spki.as_slice())
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(rows == 1)
}

/// Notes which node a used token made.
///
/// # Errors
///
/// The store fails.
pub async fn set_token_node(tx: &mut Tx, id: Uuid, node: NodeId) -> Result<(), StoreError> {
    const SQL: &str = "update enrolment_tokens set node_id = $2 where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(node)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Makes an unused token worthless.
///
/// # Errors
///
/// [`StoreError::NotFound`] also when it is used or revoked.
pub async fn revoke_token(tx: &mut Tx, id: Uuid, now: Timestamp) -> Result<(), StoreError> {
    const SQL: &str = "update enrolment_tokens set revoked_at = $2 where id = $1 and used_at is null and revoked_at is null";
    let rows = on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    if rows == 0 {
        return Err(StoreError::NotFound("enrolment token"));
    }
    Ok(())
}

/// Keeps a certificate that was issued to a node.
///
/// # Errors
///
/// The store fails.
pub async fn insert(
    tx: &mut Tx,
    node: NodeId,
    issued: &Issued,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "insert into node_certificates (fingerprint, node_id, serial, spki_sha256, not_before, not_after, \
                       created_at) values ($1, $2, $3, $4, $5, $6, $7)";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(issued.fingerprint.as_slice())
        .bind(node)
        .bind(&issued.serial)
        .bind(issued.spki_sha256.as_slice())
        .bind(issued.not_before)
        .bind(issued.not_after)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Keeps a certificate that the authority issued to a node before the store was set back, unless the node is revoked.
/// Returns whether it is kept.
///
/// # Errors
///
/// The store fails.
pub(crate) async fn adopt(
    tx: &mut Tx,
    node: NodeId,
    issued: &Issued,
    issued_at: Timestamp,
) -> Result<bool, StoreError> {
    // Locks the node, so that a revocation comes before or after, not between.
    let row = super::nodes::get_for_update(tx, node).await?;
    if row.observed_state == ObservedState::Revoked {
        return Ok(false);
    }
    const SQL: &str = "insert into node_certificates (fingerprint, node_id, serial, spki_sha256, not_before, not_after, \
                       created_at) values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(issued.fingerprint.as_slice())
        .bind(node)
        .bind(&issued.serial)
        .bind(issued.spki_sha256.as_slice())
        .bind(issued.not_before)
        .bind(issued.not_after)
        .bind(issued_at)
        .execute(ex)
        .await
        .rows())?;
    Ok(true)
}

/// Lets a node's other certificates be good until `grace_until` at the latest.
///
/// # Errors
///
/// The store fails.
pub async fn replace_others(
    tx: &mut Tx,
    node: NodeId,
    keep: &[u8; 32],
    grace_until: Timestamp,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "update node_certificates set replaced_at = $3, grace_until = $4 \
                       where node_id = $1 and fingerprint <> $2 and replaced_at is null";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(node)
        .bind(keep.as_slice())
        .bind(now)
        .bind(grace_until)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Revokes a node's identity for good: every certificate, and the state. What it was lent of quotas is free again: it
/// cannot report any more what it used.
///
/// # Errors
///
/// [`StoreError::NotFound`] of the node.
pub async fn revoke_node(
    tx: &mut Tx,
    node: NodeId,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    const CERTIFICATES: &str = "update node_certificates set revoked_at = $2, revoke_reason = $3 \
                                where node_id = $1 and revoked_at is null";
    on!(tx, |ex| sqlx::query(CERTIFICATES)
        .bind(node)
        .bind(now)
        .bind(reason)
        .execute(ex)
        .await
        .rows())?;
    const NODE: &str = "update vps_nodes set observed_state = $2, state_reason = $3, state_since = $4, \
                        owner_epoch = owner_epoch + 1, owner_master = null, rev = rev + 1, updated_at = $4 where id = $1";
    let rows = on!(tx, |ex| sqlx::query(NODE)
        .bind(node)
        .bind(ObservedState::Revoked)
        .bind(reason)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    for topic in [Topic::Revocations, Topic::Users] {
        tx.call(topic);
    }
    if rows == 0 {
        return Err(StoreError::NotFound("node"));
    }
    super::leases::forfeit(tx, node, None, now).await.map(drop)
}
