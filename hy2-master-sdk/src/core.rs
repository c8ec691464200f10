//! What every part of a running master shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hy2_proto::control::rpc;
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::auth::ca::{CaError, CertificateAuthority};
use crate::auth::signing::{InvalidSigningKey, ManifestSigner};
use crate::config::MasterConfig;
use crate::domain::{Clock, Timestamp, UserId};
use crate::rpc::live::LiveNodes;
use crate::rpc::peers::Peers;
use crate::rpc::publish::Views;
use crate::rpc::reverse::Reverse;
use crate::secrets::{FleetKeys, OpenError, RandomError, Vault};
use crate::signers;
use crate::store::cluster::{self, AuthorityRow, SigningKeyRow};
use crate::store::{Store, StoreError};

/// Shared by listeners, services and reconcilers.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) id: Uuid,
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) vault: Vault,
    pub(crate) keys: FleetKeys,
    pub(crate) config: MasterConfig,
    pub(crate) trust: ArcSwap<Trust>,
    pub(crate) epoch: AtomicI64,
    pub(crate) epoch_started_at: AtomicI64,
    pub(crate) started_at: Timestamp,
    pub(crate) tls_made_at: AtomicI64,
    pub(crate) live: LiveNodes,
    pub(crate) peers: Arc<Peers>,
    pub(crate) reverse: Reverse,
    pub(crate) views: Views,
    /// Sessions, to be awaited at the end.
    pub(crate) tasks: TaskTracker,
    /// Whose counters grew, for the quota task.
    pub(crate) grown: Grown,
    pub(crate) shutdown: CancellationToken,
}

/// Users whose counters grew since somebody looked.
#[derive(Debug, Default)]
pub(crate) struct Grown {
    users: parking_lot::Mutex<std::collections::BTreeSet<UserId>>,
    pub(crate) notify: Notify,
}

impl Grown {
    pub(crate) fn add(&self, users: impl IntoIterator<Item = UserId>) {
        self.users.lock().extend(users);
        self.notify.notify_one();
    }

    pub(crate) fn take(&self) -> Vec<UserId> {
        std::mem::take(&mut *self.users.lock())
            .into_iter()
            .collect()
    }
}

/// Authorities and signing keys in force.
#[derive(Debug)]
pub(crate) struct Trust {
    /// Issues.
    pub(crate) authority: CertificateAuthority,
    /// Everything that agents trust, the issuing one first.
    pub(crate) trusted: Vec<CertificateDer<'static>>,
    /// The one among them that takes over when every node has been told of it.
    pub(crate) next: Option<Uuid>,
    /// Signs.
    pub(crate) signer: ManifestSigner,
    /// Every key whose signatures agents take.
    pub(crate) signing_keys: Vec<rpc::SigningKey>,
}

impl Trust {
    pub(crate) fn trusted_cas(&self) -> Vec<Bytes> {
        self.trusted
            .iter()
            .map(|der| Bytes::copy_from_slice(der))
            .collect()
    }

    /// Returns whether agents are told the same as of another.
    pub(crate) fn tells_the_same(&self, other: &Self) -> bool {
        self.trusted == other.trusted && self.signing_keys == other.signing_keys
    }

    /// Returns what agents are told.
    pub(crate) fn to_wire(&self, renew_now: bool) -> rpc::CertificateUpdate {
        rpc::CertificateUpdate {
            trusted_cas: self.trusted_cas(),
            signing_keys: self.signing_keys.clone(),
            renew_now,
        }
    }
}

/// The cluster's keys cannot be loaded or made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The store fails.
    #[error("the store fails")]
    Store(#[from] StoreError),
    /// A sealed key does not open: the key file is not the one that sealed it.
    #[error(
        "cannot open the cluster's {what}: is this the master key file that belongs to the store?"
    )]
    Open {
        /// Which key.
        what: &'static str,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// A key is invalid.
    #[error("the certificate authority fails")]
    Authority(#[from] CaError),
    /// A key is invalid.
    #[error(transparent)]
    Signing(#[from] InvalidSigningKey),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// What [`load_keys`] finds or makes.
pub(crate) struct LoadedKeys {
    pub(crate) fleet: FleetKeys,
    pub(crate) trust: Trust,
    pub(crate) epoch: i64,
    pub(crate) epoch_started_at: Timestamp,
}

/// Loads the cluster's keys; makes them in a new store. Masters that start at once get the same.
pub(crate) async fn load_keys(
    store: &Store,
    vault: &Vault,
    now: Timestamp,
) -> Result<LoadedKeys, KeysError> {
    let mut tx = store.begin().await?;
    let cluster = cluster::init(&mut tx, Uuid::new_v4(), now).await?;
    let fresh = FleetKeys::generate()?;
    let sealed = cluster::secret_or_insert(
        &mut tx,
        FLEET_KEYS,
        || vault.seal(FLEET_KEYS, cluster.uid.as_bytes(), &fresh.to_bytes()),
        now,
    )
    .await?;
    let opened = vault
        .open(FLEET_KEYS, cluster.uid.as_bytes(), &sealed)
        .map_err(|source| KeysError::Open {
            what: "credential keys",
            source,
        })?;
    let fleet = FleetKeys::from_bytes(&opened).ok_or(KeysError::Open {
        what: "credential keys",
        source: OpenError::Format,
    })?;
    // `cluster::init` holds the row, so nobody else makes one meanwhile.
    if cluster::authorities(&mut tx).await?.is_empty() {
        let (authority, key) = CertificateAuthority::generate(now)?;
        let id = Uuid::now_v7();
        let row = AuthorityRow {
            id,
            certificate: authority.certificate().to_vec(),
            private_key_enc: vault.seal(AUTHORITY_KEY, id.as_bytes(), &key),
            spki_sha256: authority.spki_sha256().to_vec(),
            state: "active".to_owned(),
            not_before: now,
            not_after: authority.not_after(),
        };
        cluster::insert_authority(&mut tx, &row, now).await?;
        insert_signer(&mut tx, vault, &authority, "active", now).await?;
    }
    signers::keep(&mut tx, vault, now, true).await?;
    tx.commit().await?;
    Ok(LoadedKeys {
        fleet,
        trust: load_trust(store, vault).await?,
        epoch: cluster.epoch,
        epoch_started_at: cluster.epoch_started_at,
    })
}

/// Reads authorities and signing keys again.
pub(crate) async fn load_trust(store: &Store, vault: &Vault) -> Result<Trust, KeysError> {
    let rows = store.authorities().await?;
    let active = rows
        .iter()
        .find(|row| row.state == "active")
        .ok_or(StoreError::NotFound("certificate authority"))?;
    let key = vault
        .open(AUTHORITY_KEY, active.id.as_bytes(), &active.private_key_enc)
        .map_err(|source| KeysError::Open {
            what: "certificate authority",
            source,
        })?;
    let authority = CertificateAuthority::load(active.certificate.clone().into(), &key)?;
    let others = rows.iter().filter(|row| row.id != active.id);
    let next = rows.iter().find(|row| row.state == "next");
    let trusted = std::iter::once(active)
        .chain(others)
        .map(|row| CertificateDer::from(row.certificate.clone()))
        .collect();
    let mut signers = Vec::new();
    let mut signing_keys = Vec::new();
    for row in store.signing_keys("manifest").await? {
        let Some(certificate) = row.certificate.clone() else {
            continue;
        };
        let key = vault
            .open(SIGNING_KEY, row.id.as_bytes(), &row.private_key_enc)
            .map_err(|source| KeysError::Open {
                what: "signing key",
                source,
            })?;
        let signer = ManifestSigner::load(&key, certificate.into())?;
        signing_keys.push(signer.to_wire());
        if row.state == "active" {
            signers.push(signer);
        }
    }
    // The newest first, as the store gives them.
    let signer = signers
        .into_iter()
        .next()
        .ok_or(StoreError::NotFound("signing key"))?;
    Ok(Trust {
        authority,
        trusted,
        next: next.map(|row| row.id),
        signer,
        signing_keys,
    })
}

/// Makes a signing key in a state: `active`, in force at once, or `next`.
pub(crate) async fn insert_signer(
    tx: &mut crate::store::Tx,
    vault: &Vault,
    authority: &CertificateAuthority,
    state: &str,
    now: Timestamp,
) -> Result<SigningKeyRow, KeysError> {
    let made = authority.issue_signer(now)?;
    let signer = ManifestSigner::load(&made.key, made.issued.certificate.clone())?;
    let id = Uuid::now_v7();
    let row = SigningKeyRow {
        id,
        purpose: "manifest".to_owned(),
        key_id: signer.key_id().to_vec(),
        public_key: signer.public_key().to_vec(),
        private_key_enc: vault.seal(SIGNING_KEY, id.as_bytes(), &made.key),
        certificate: Some(made.issued.certificate.to_vec()),
        state: state.to_owned(),
        not_after: made.issued.not_after,
    };
    cluster::insert_signing_key(tx, &row, now).await?;
    Ok(row)
}

impl Core {
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Reads the cluster's epoch and keys again, after a call.
    pub(crate) async fn reload(&self) -> Result<(), KeysError> {
        let cluster = self.store.cluster().await?;
        self.epoch_started_at
            .store(cluster.epoch_started_at.0, Ordering::SeqCst);
        self.epoch.store(cluster.epoch, Ordering::SeqCst);
        self.trust
            .store(Arc::new(load_trust(&self.store, &self.vault).await?));
        Ok(())
    }
}

/// Name and place of the sealed keys of credentials.
pub(crate) const FLEET_KEYS: &str = "cluster.fleet_keys";
pub(crate) const AUTHORITY_KEY: &str = "certificate_authorities.private_key";
const SIGNING_KEY: &str = "signing_keys.private_key";
/// Place of a node's sealed Hysteria key.
pub(crate) const NODE_TLS_KEY: &str = "node_tls.private_key";
