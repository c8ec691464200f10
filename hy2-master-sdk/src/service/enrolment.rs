//! How nodes become part of the fleet and stop being it, and what they tell of themselves.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::moment::Moment;
use super::nodes::node_record;
use super::regions::check_region;
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{NodeId, RegionId, Timestamp};
use crate::store::certificates::{self, CertificateRow, NewToken, TokenRow};
use crate::store::leases;
use crate::store::nodes::{self, NodeRow};
use crate::store::observed::MetricsRow;

/// How long an enrolment token may be valid, in seconds.
const MAX_TOKEN_S: u32 = 86_400;

/// An enrolment token to make.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateEnrolmentToken {
    /// What it is for.
    pub label: String,
    /// How long it is valid, 60 to 86400 seconds; absent: 900.
    pub valid_s: Option<u32>,
    /// From where it may be used; absent: anywhere.
    #[schema(value_type = Option<String>)]
    pub bind_cidr: Option<ipnet::IpNet>,
    /// Region of the node.
    pub region_id: Option<i64>,
    /// Tags of the node.
    pub tags: Vec<String>,
}

/// An enrolment token as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = EnrolmentToken)]
pub struct EnrolmentTokenView {
    /// Id.
    pub id: Uuid,
    /// What it is for.
    pub label: String,
    /// From where it may be used.
    pub bind_cidr: Option<String>,
    /// Region of the node.
    pub region_id: Option<i64>,
    /// Tags of the node.
    pub tags: Vec<String>,
    /// When it is over.
    pub expires_at: Moment,
    /// When it was used.
    pub used_at: Option<Moment>,
    /// The node that used it.
    pub node_id: Option<i64>,
    /// When it was made worthless.
    pub revoked_at: Option<Moment>,
    /// Made at.
    pub created_at: Moment,
}

impl From<TokenRow> for EnrolmentTokenView {
    fn from(row: TokenRow) -> Self {
        Self {
            id: row.id,
            label: row.label,
            bind_cidr: row.bind_cidr,
            region_id: row.region_id.map(|id| id.0),
            tags: row.tags.0,
            expires_at: Moment(row.expires_at),
            used_at: row.used_at.map(Moment),
            node_id: row.node_id.map(|id| id.0),
            revoked_at: row.revoked_at.map(Moment),
            created_at: Moment(row.created_at),
        }
    }
}

/// A certificate of a node as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = NodeCertificate)]
pub struct CertificateView {
    /// SHA-256 of the certificate in hexadecimal.
    pub fingerprint: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Valid from.
    pub not_before: Moment,
    /// Valid until.
    pub not_after: Moment,
    /// When another took its place.
    pub replaced_at: Option<Moment>,
    /// When it was revoked.
    pub revoked_at: Option<Moment>,
    /// Why.
    pub revoke_reason: Option<String>,
}

impl From<CertificateRow> for CertificateView {
    fn from(row: CertificateRow) -> Self {
        Self {
            fingerprint: hex::encode(row.fingerprint),
            serial: hex::encode(row.serial),
            not_before: Moment(row.not_before),
            not_after: Moment(row.not_after),
            replaced_at: row.replaced_at.map(Moment),
            revoked_at: row.revoked_at.map(Moment),
            revoke_reason: row.revoke_reason,
        }
    }
}

impl Service {
    /// Returns a node's samples of `resolution_s` 15, 300 or 3600 seconds.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`] of the resolution.
    pub async fn node_metrics(
        &self,
        access: Access<'_>,
        id: NodeId,
        resolution_s: i64,
        from: Option<Moment>,
        limit: u32,
    ) -> Result<Vec<MetricsRow>, ServiceError> {
        self.node(access, id).await?;
        if ![15, 300, 3_600].contains(&resolution_s) {
            return Err(ServiceError::invalid(
                "resolution_s",
                "must be 15, 300 or 3600",
            ));
        }
        let hour = std::time::Duration::from_secs(3_600);
        let from = from.map_or_else(|| self.now().minus(hour), |at| at.0);
        Ok(self
            .store()
            .metrics(
                id,
                resolution_s,
                from,
                Timestamp(i64::MAX),
                limit.clamp(1, 5_000),
            )
            .await?)
    }

    /// Lists a node's certificates, the newest first.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn node_certificates(
        &self,
        access: Access<'_>,
        id: NodeId,
    ) -> Result<Vec<CertificateRow>, ServiceError> {
        self.node(access, id).await?;
        Ok(certificates::of_node(self.store(), id).await?)
    }

    /// Revokes a node's identity: its open streams are cut, and it has to enrol anew.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn revoke_node_certificates(
        &self,
        access: Access<'_>,
        id: NodeId,
        reason: &str,
    ) -> Result<NodeRow, ServiceError> {
        if reason.len() > 200 {
            return Err(ServiceError::invalid(
                "reason",
                "must have at most 200 bytes",
            ));
        }
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = nodes::get(&mut tx, id).await?;
        certificates::revoke_node(&mut tx, id, reason, now).await?;
        let row = nodes::get(&mut tx, id).await?;
        record(
            &mut tx,
            access,
            node_record(Some(&old), Some(&row), "node.revoked"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Writes off what a node that is away was lent of quotas, and of places for devices, so that its users can have it
    /// elsewhere. Should it come back, what it reports is counted all the same, and may exceed a quota by what it was
    /// lent. Returns how many slices.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`]; [`ServiceError::Conflict`] of a node that is here: it gives back by itself.
    pub async fn forfeit_node(&self, access: Access<'_>, id: NodeId) -> Result<u64, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let node = nodes::get(&mut tx, id).await?;
        if node.observed_state.is_connected() {
            let detail = "the node is connected: what its users leave comes back by itself";
            return Err(ServiceError::conflict("node_connected", detail));
        }
        let slices = leases::forfeit(&mut tx, id, None, now).await?;
        let mut written = node_record(Some(&node), Some(&node), "node.forfeited");
        written.after = Some(json!({ "slices": slices }));
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(slices)
    }

    /// Lists enrolment tokens, the newest first.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn enrolment_tokens(
        &self,
        _access: Access<'_>,
    ) -> Result<Vec<TokenRow>, ServiceError> {
        Ok(self.store().enrolment_tokens(500).await?)
    }

    /// Makes an enrolment token; it is returned this once, with the pin of the authority.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`].
    pub async fn create_enrolment_token(
        &self,
        access: Access<'_>,
        new: CreateEnrolmentToken,
    ) -> Result<(TokenRow, SecretString, String), ServiceError> {
        let valid_s = new.valid_s.unwrap_or(900);
        let mut issues = Vec::new();
        if new.label.len() > 100 {
            issues.push(FieldIssue::new("label", "must have at most 100 bytes"));
        }
        if !(60..=MAX_TOKEN_S).contains(&valid_s) {
            issues.push(FieldIssue::new("valid_s", "must be between 60 and 86400"));
        }
        if new.tags.len() > 32 || new.tags.iter().any(|tag| !(1..=64).contains(&tag.len())) {
            let message = "must have at most 32 entries of 1 to 64 bytes";
            issues.push(FieldIssue::new("tags", message));
        }
        if !issues.is_empty() {
            return Err(ServiceError::Invalid(issues));
        }
        let now = self.now();
        let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let token = NewToken {
            secret_hash: crate::secrets::sha256(secret.as_bytes()),
            label: new.label,
            bind_cidr: new.bind_cidr,
            region_id: new.region_id.map(RegionId),
            tags: new.tags,
            expires_at: now.plus(std::time::Duration::from_secs(u64::from(valid_s))),
            created_by: Some(access.caller().admin).filter(|admin| admin.0 > 0),
        };
        let mut tx = self.store().begin().await?;
        check_region(&mut tx, "region_id", new.region_id).await?;
        let row = certificates::create_token(&mut tx, &token, now).await?;
        record(
            &mut tx,
            access,
            token_record(&row, "enrolment_token.created"),
            now,
        )
        .await?;
        tx.commit().await?;
        let authorities = self.store().authorities().await?;
        let active = authorities
            .iter()
            .find(|authority| authority.state == "active");
        let pin = active.map(|authority| format!("sha256:{}", hex::encode(&authority.spki_sha256)));
        Ok((row, secret.into(), pin.unwrap_or_default()))
    }

    /// Makes an unused enrolment token worthless.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], also of one that is used.
    pub async fn revoke_enrolment_token(
        &self,
        access: Access<'_>,
        id: Uuid,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        certificates::revoke_token(&mut tx, id, now).await?;
        let written = Record {
            kind: "enrolment_token",
            id: id.to_string(),
            before: None,
            after: None,
            owner: None,
            topic: "enrolment_token.revoked",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(())
    }
}

fn token_record<'a>(row: &TokenRow, topic: &'a str) -> Record<'a> {
    let view = serde_json::to_value(EnrolmentTokenView::from(row.clone())).unwrap_or(Value::Null);
    Record {
        kind: "enrolment_token",
        id: row.id.to_string(),
        before: None,
        after: Some(view),
        owner: None,
        topic,
    }
}
