//! Exchanging the private authority without enrolling anybody anew.
//!
//! Three steps, with time between them for every node to follow: a next authority is made and every
//! node is told to trust it; it takes over, signs the master's certificate and new signing keys, and
//! nodes renew; the one before is removed. A step refuses while a node would be left behind.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::Master;
use crate::auth::ca::CertificateAuthority;
use crate::core::{AUTHORITY_KEY, KeysError, insert_signer};
use crate::domain::Timestamp;
use crate::store::audit::{self, NewEntry};
use crate::store::cluster::{self, AuthorityRow};
use crate::store::nodes::{self, Bump};
use crate::store::{StoreError, Tx, rotation as store};

/// An authority, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthorityView {
    /// What nodes pin that enrol while it is active: `sha256:<hex>`.
    pub pin: String,
    /// `next`, `active` or `retired`.
    pub state: String,
    /// Until when its certificate is valid.
    pub not_after: Timestamp,
}

/// A step of the exchange was refused; nothing has changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RotationError {
    /// There is a next authority already.
    #[error("there is a next authority already: activate it")]
    Prepared,
    /// There is no next authority.
    #[error("there is no next authority: prepare one")]
    NotPrepared,
    /// There is no authority to remove.
    #[error("there is no retired authority")]
    NothingRetired,
    /// These nodes have not followed yet.
    #[error("nodes have not followed yet: {}", .0.join(", "))]
    Behind(Vec<String>),
    /// The store fails.
    #[error("the store fails")]
    Store(#[from] StoreError),
    /// That is no validity.
    #[error("an operator's certificate lasts 1 to {OPERATOR_DAYS_MAX} days")]
    Days,
    /// A key cannot be made or read.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// What an operator needs to reach a node's NodeManager, as PEM: key, certificate, and the authority by which nodes are
/// known.
#[derive(Debug)]
#[non_exhaustive]
pub struct OperatorIdentity {
    /// All three, one after the other.
    pub pem: Zeroizing<String>,
    /// Until when the certificate is valid.
    pub not_after: Timestamp,
}

/// Longest validity of an operator's certificate, in days.
pub const OPERATOR_DAYS_MAX: u32 = 90;

impl Master {
    /// Issues an operator's certificate for NodeManager on the loopback ports of nodes, valid for `days`, 1 to
    /// [`OPERATOR_DAYS_MAX`]. The audit log has it.
    ///
    /// # Errors
    ///
    /// [`RotationError::Days`], [`RotationError::Keys`] of the name, or the store fails.
    pub async fn issue_operator(
        &self,
        name: &str,
        days: u32,
    ) -> Result<OperatorIdentity, RotationError> {
        if !(1..=OPERATOR_DAYS_MAX).contains(&days) {
            return Err(RotationError::Days);
        }
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let row = find(&mut tx, "active")
            .await?
            .ok_or(StoreError::NotFound("authority"))?;
        let authority = self.authority(&row)?;
        let validity = Duration::from_secs(u64::from(days) * 86_400);
        let issued = authority
            .issue_operator(name, validity, now)
            .map_err(KeysError::from)?;
        // One piece, so that no copy of the key stays behind when it grows.
        let mut pem = Zeroizing::new(String::with_capacity(8 << 10));
        for (label, der) in [
            ("PRIVATE KEY", &issued.key[..]),
            ("CERTIFICATE", &issued.issued.certificate[..]),
            ("CERTIFICATE", &row.certificate[..]),
        ] {
            push_pem(&mut pem, label, der);
        }
        let entry = NewEntry {
            object_kind: "operator_certificate",
            object_id: hex::encode(&issued.issued.serial),
            after: Some(serde_json::json!({"name": name, "not_after": issued.issued.not_after})),
            ..on_host("issue_operator", now)
        };
        audit::append(&mut tx, &entry).await?;
        tx.commit().await?;
        Ok(OperatorIdentity {
            pem,
            not_after: issued.issued.not_after,
        })
    }

    /// Opens the key of an authority in the store.
    fn authority(&self, row: &AuthorityRow) -> Result<CertificateAuthority, RotationError> {
        let key = self
            .vault()
            .open(AUTHORITY_KEY, row.id.as_bytes(), &row.private_key_enc)
            .map_err(|source| KeysError::Open {
                what: "certificate authority",
                source,
            })?;
        let loaded = CertificateAuthority::load(row.certificate.clone().into(), &key);
        Ok(loaded.map_err(KeysError::from)?)
    }

    /// Lists the authorities, the newest first.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn authorities(&self) -> Result<Vec<AuthorityView>, StoreError> {
        let rows = self.store().authorities().await?;
        Ok(rows.into_iter().map(view).collect())
    }

    /// Makes the next authority. Nodes trust it from now on, those that are away when they come back.
    ///
    /// # Errors
    ///
    /// [`RotationError::Prepared`], or the store fails.
    pub async fn prepare_authority(&self) -> Result<AuthorityView, RotationError> {
        let now = self.now();
        let (authority, key) = CertificateAuthority::generate(now).map_err(KeysError::from)?;
        let id = Uuid::now_v7();
        let row = AuthorityRow {
            id,
            certificate: authority.certificate().to_vec(),
            private_key_enc: self.vault().seal(AUTHORITY_KEY, id.as_bytes(), &key),
            spki_sha256: authority.spki_sha256().to_vec(),
            state: "next".to_owned(),
            not_before: now,
            not_after: authority.not_after(),
        };
        let mut tx = self.store().begin().await?;
        if find(&mut tx, "next").await?.is_some() {
            return Err(RotationError::Prepared);
        }
        cluster::insert_authority(&mut tx, &row, now).await?;
        note(&mut tx, "prepare_authority", &row, now).await?;
        tx.commit().await?;
        Ok(view(row))
    }

    /// Lets the next authority take over: it signs what is signed from now on, every node renews its
    /// certificate, and every node's state is signed anew. `force` leaves behind nodes that have not
    /// been told of it; they have to enrol anew.
    ///
    /// # Errors
    ///
    /// [`RotationError::NotPrepared`], [`RotationError::Behind`], or the store fails.
    pub async fn activate_authority(&self, force: bool) -> Result<AuthorityView, RotationError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let mut next = find(&mut tx, "next")
            .await?
            .ok_or(RotationError::NotPrepared)?;
        if !force {
            behind(store::not_told(&mut tx, next.id).await?)?;
        }
        if let Some(active) = find(&mut tx, "active").await? {
            store::set_authority_state(&mut tx, active.id, "retired", now).await?;
        }
        store::set_authority_state(&mut tx, next.id, "active", now).await?;
        let authority = self.authority(&next)?;
        // Those that the one before certified sign no more, not even one that waits for its turn.
        store::retire_signers(&mut tx, now).await?;
        insert_signer(&mut tx, self.vault(), &authority, "active", now).await?;
        for node in store::node_ids(&mut tx).await? {
            nodes::bump(&mut tx, node, Bump::MANIFEST, now).await?;
        }
        note(&mut tx, "activate_authority", &next, now).await?;
        tx.commit().await?;
        next.state = "active".to_owned();
        Ok(view(next))
    }

    /// Returns the enrolment tokens that are open and were made before the active authority took over, as `label (id)`:
    /// they go with the pin of the one before, by which no master is known any more.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn outdated_enrolment_tokens(&self) -> Result<Vec<String>, StoreError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let tokens = store::outdated_tokens(&mut tx, now).await?;
        tx.rollback().await?;
        let shown = tokens
            .into_iter()
            .map(|(label, id)| format!("{label:?} ({id})"));
        Ok(shown.collect())
    }

    /// Removes the authorities before the active one, and the signing keys that they certified: nodes
    /// trust them no more. `force` leaves behind nodes that have not renewed; they have to enrol anew.
    ///
    /// # Errors
    ///
    /// [`RotationError::NothingRetired`], [`RotationError::Behind`], or the store fails.
    pub async fn retire_authorities(&self, force: bool) -> Result<(), RotationError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let retired: Vec<AuthorityRow> = cluster::authorities(&mut tx)
            .await?
            .into_iter()
            .filter(|row| row.state == "retired")
            .collect();
        if retired.is_empty() {
            return Err(RotationError::NothingRetired);
        }
        if !force {
            behind(store::not_renewed(&mut tx).await?)?;
        }
        store::remove_signers_before_active(&mut tx).await?;
        for row in &retired {
            store::remove_authority(&mut tx, row.id).await?;
            note(&mut tx, "retire_authority", row, now).await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

fn behind(names: Vec<String>) -> Result<(), RotationError> {
    if names.is_empty() {
        Ok(())
    } else {
        Err(RotationError::Behind(names))
    }
}

async fn find(tx: &mut Tx, state: &str) -> Result<Option<AuthorityRow>, StoreError> {
    let rows = cluster::authorities(tx).await?;
    Ok(rows.into_iter().find(|row| row.state == state))
}

fn view(row: AuthorityRow) -> AuthorityView {
    AuthorityView {
        pin: format!("sha256:{}", hex::encode(&row.spki_sha256)),
        state: row.state,
        not_after: row.not_after,
    }
}

/// The audit log knows it as done on the host.
async fn note(
    tx: &mut Tx,
    action: &str,
    row: &AuthorityRow,
    now: Timestamp,
) -> Result<(), StoreError> {
    let entry = NewEntry {
        object_kind: "authority",
        object_id: row.id.to_string(),
        after: Some(serde_json::json!({"pin": hex::encode(&row.spki_sha256)})),
        ..on_host(action, now)
    };
    audit::append(tx, &entry).await
}

/// The beginning of an entry.
fn on_host(action: &str, now: Timestamp) -> NewEntry {
    NewEntry {
        at: now,
        actor_kind: "host",
        actor: "host".to_owned(),
        address: None,
        action: action.to_owned(),
        object_kind: "",
        object_id: String::new(),
        before: None,
        after: None,
        request_id: None,
    }
}

/// Appends a block of PEM (RFC 7468).
fn push_pem(pem: &mut Zeroizing<String>, label: &str, der: &[u8]) {
    let body = Zeroizing::new(STANDARD.encode(der));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    let mut rest = &body[..];
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
}
