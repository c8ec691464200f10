//! Exchanging the private authority without enrolling anybody anew.
//!
//! Three steps, with time between them for every node to follow: a next authority is made and every
//! node is told to trust it; it takes over, signs the master's certificate and new signing keys, and
//! nodes renew; the one before is removed. A step refuses while a node would be left behind.

use thiserror::Error;
use uuid::Uuid;

use crate::Master;
use crate::auth::ca::CertificateAuthority;
use crate::core::{AUTHORITY_KEY, KeysError, insert_signer};
use crate::domain::Timestamp;
use crate::store::audit::{self, NewEntry};
use crate::store::cluster::{self, AuthorityRow};
use crate::store::nodes::{self, Bump};
use crate::store::{StoreError, Tx, rotation as store};

/// How long after its making a next authority is with everybody who is connected: every master
/// looks after the settings at least that often.
const SETTLED_MS: i64 = 10_000;

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
    /// A key cannot be made or read.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl Master {
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
    /// been here since it was made; they have to enrol anew.
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
            let since = Timestamp(next.not_before.0.saturating_add(SETTLED_MS));
            behind(store::not_seen_since(&mut tx, since).await?)?;
        }
        if let Some(active) = find(&mut tx, "active").await? {
            store::set_authority_state(&mut tx, active.id, "retired", now).await?;
        }
        store::set_authority_state(&mut tx, next.id, "active", now).await?;
        let key = self
            .vault()
            .open(AUTHORITY_KEY, next.id.as_bytes(), &next.private_key_enc)
            .map_err(|source| KeysError::Open {
                what: "certificate authority",
                source,
            })?;
        let authority = CertificateAuthority::load(next.certificate.clone().into(), &key)
            .map_err(KeysError::from)?;
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
        at: now,
        actor_kind: "host",
        actor: "host".to_owned(),
        address: None,
        action: action.to_owned(),
        object_kind: "authority",
        object_id: row.id.to_string(),
        before: None,
        after: Some(serde_json::json!({"pin": hex::encode(&row.spki_sha256)})),
        request_id: None,
    };
    audit::append(tx, &entry).await
}
