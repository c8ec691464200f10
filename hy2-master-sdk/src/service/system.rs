//! Settings, the audit log, and the keys that the API itself needs.

use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use utoipa::ToSchema;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::moment::Moment;
use super::page::{Page, PageRequest};
use super::{Record, Service, ServiceError, record};
use crate::auth::access::{Access, Caller, Operation};
use crate::auth::jwt::{MAX_LIFETIME_S, TokenKey, TokenSigner};
use crate::auth::session::SessionKeys;
use crate::backup::envelope::BackupKey;
use crate::backup::{self, BackupError};
use crate::domain::{Clock, Timestamp};
use crate::events::{AuditKey, is_head_signed, is_signed};
use crate::secrets::Vault;
use crate::store::audit::{self, AuditFilter, Checkpoint, Entry, Verification};
use crate::store::cluster::{self, SettingRow, SigningKeyRow};
use crate::store::{Store, settings};

/// Largest value of a setting, in bytes.
const MAX_SETTING: usize = 64 << 10;

/// Where sealed signing keys belong.
const KEY_PLACE: &str = "signing_keys.private_key";

/// Where sealed secrets of the cluster belong.
const SECRET_PLACE: &str = "secrets.value";

/// Name of the key of sessions.
const SESSION_KEY: &str = "api.sessions";

/// Purpose of the keys that sign access tokens.
const TOKENS: &str = "jwt";

/// How long a key that signs tokens is used, in milliseconds.
const KEY_VALID: i64 = 90 * Timestamp::DAY;

/// How long before a key's end the next one is made, in milliseconds.
const KEY_OVERLAP: i64 = 9 * Timestamp::DAY;

/// After how long every master has read a key that one of them made, in milliseconds.
const KEY_KNOWN_AFTER: i64 = 600_000;

/// How long a token can outlive its key, in milliseconds.
const TOKEN_MS: i64 = (MAX_LIFETIME_S + 60) * 1_000;

/// How often masters read the keys that sign tokens, called or not.
pub const KEYS_READ_EVERY: Duration = Duration::from_secs(60);

/// A setting as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Setting)]
pub struct SettingView {
    /// Name.
    pub key: String,
    /// Value.
    #[schema(value_type = Object)]
    pub value: Value,
    /// Revision, also the `ETag`.
    pub rev: i64,
    /// Changed at.
    pub updated_at: Moment,
}

impl From<SettingRow> for SettingView {
    fn from(row: SettingRow) -> Self {
        Self {
            key: row.key,
            value: row.value.0,
            rev: row.rev,
            updated_at: Moment(row.updated_at),
        }
    }
}

/// An audit entry as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct AuditView {
    /// Position in the chain.
    pub seq: i64,
    /// When.
    pub at: Moment,
    /// `admin`, `token`, `node`, `system` or `host`.
    pub actor_kind: String,
    /// Who.
    pub actor: String,
    /// From where.
    pub address: Option<String>,
    /// What.
    pub action: String,
    /// To what kind of object.
    pub object_kind: String,
    /// To which.
    pub object_id: String,
    /// As it was.
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
    /// As it is.
    #[schema(value_type = Option<Object>)]
    pub after: Option<Value>,
    /// Hash over this and the entry before, in hexadecimal.
    pub hash: String,
}

impl From<Entry> for AuditView {
    fn from(entry: Entry) -> Self {
        Self {
            seq: entry.seq,
            at: Moment(entry.at),
            actor_kind: entry.actor_kind,
            actor: entry.actor,
            address: entry.address,
            action: entry.action,
            object_kind: entry.object_kind,
            object_id: entry.object_id,
            before: entry.before.map(|json| json.0),
            after: entry.after.map(|json| json.0),
            hash: hex::encode(entry.hash),
        }
    }
}

/// Keys of the API, loaded or made.
#[derive(Debug)]
pub struct ApiKeys {
    /// Sign access tokens.
    pub tokens: TokenSigner,
    /// Mark refresh and CSRF tokens.
    pub sessions: SessionKeys,
    /// Signs checkpoints of the audit log.
    pub audit: AuditKey,
}

/// Loads the keys of the API, and makes those that are missing or old.
///
/// # Errors
///
/// The store fails, or a key does not open with this master key.
pub async fn load_api_keys(
    store: &Store,
    vault: &Vault,
    clock: &dyn Clock,
) -> Result<ApiKeys, ServiceError> {
    let now = clock.now();
    let sessions = session_keys(store, vault, now).await?;
    let (newest, older) = token_keys(store, vault, TOKENS, now).await?;
    let issuer = format!("hy2-{}", store.cluster().await?.uid);
    let tokens = TokenSigner::new(issuer, newest, older);
    let (newest, _) = token_keys(store, vault, "audit", now).await?;
    let audit = AuditKey::load(newest.pkcs8()).map_err(ServiceError::internal)?;
    Ok(ApiKeys {
        tokens,
        sessions,
        audit,
    })
}

async fn session_keys(
    store: &Store,
    vault: &Vault,
    now: Timestamp,
) -> Result<SessionKeys, ServiceError> {
    let mut tx = store.begin().await?;
    let made = Zeroizing::new(rand::random::<[u8; 32]>());
    let seal = || vault.seal(SECRET_PLACE, SESSION_KEY.as_bytes(), &*made);
    let sealed = cluster::secret_or_insert(&mut tx, SESSION_KEY, seal, now).await?;
    tx.commit().await?;
    let opened = vault
        .open(SECRET_PLACE, SESSION_KEY.as_bytes(), &sealed)
        .map_err(ServiceError::internal)?;
    let key = opened
        .as_slice()
        .try_into()
        .map_err(ServiceError::internal)?;
    Ok(SessionKeys::new(Zeroizing::new(key)))
}

/// Returns the key of a purpose that signs and the others that may still be checked with; makes the
/// next one in time. The next one signs when every master has had time to read it, and the one before
/// stays until what it signed is over. Two masters that make one at once make two: both are good.
async fn token_keys(
    store: &Store,
    vault: &Vault,
    purpose: &str,
    now: Timestamp,
) -> Result<(TokenKey, Vec<TokenKey>), ServiceError> {
    let mut rows = store.signing_keys(purpose).await?;
    let late = |row: &SigningKeyRow| row.not_after.0.saturating_sub(now.0) < KEY_OVERLAP;
    if rows.first().is_none_or(late) {
        let made = make_token_key(vault, purpose, now)?;
        let mut tx = store.begin().await?;
        cluster::insert_signing_key(&mut tx, &made, now).await?;
        tx.commit().await?;
        rows.insert(0, made);
    }
    let signs = signing_row(&rows, now).ok_or_else(|| ServiceError::internal("no key signs"))?;
    let (mut signing, mut others) = (None, Vec::new());
    for row in &rows {
        // Purposes with signatures that last look their keys up by themselves.
        if row.not_after.0.saturating_add(TOKEN_MS) < now.0 && row.id != signs {
            continue;
        }
        let opened = vault
            .open(KEY_PLACE, row.id.as_bytes(), &row.private_key_enc)
            .map_err(ServiceError::internal)?;
        let key = TokenKey::from_pkcs8(row.id, &opened).map_err(ServiceError::internal)?;
        match row.id == signs {
            true => signing = Some(key),
            false => others.push(key),
        }
    }
    let signing = signing.ok_or_else(|| ServiceError::internal("no key signs"))?;
    Ok((signing, others))
}

fn make_token_key(
    vault: &Vault,
    purpose: &str,
    now: Timestamp,
) -> Result<SigningKeyRow, ServiceError> {
    let id = Uuid::new_v4();
    let key = TokenKey::generate(id).map_err(ServiceError::internal)?;
    Ok(SigningKeyRow {
        id,
        purpose: purpose.to_owned(),
        key_id: crate::secrets::sha256(key.public_key())[..16].to_vec(),
        public_key: key.public_key().to_vec(),
        private_key_enc: vault.seal(KEY_PLACE, id.as_bytes(), key.pkcs8()),
        certificate: None,
        state: "active".to_owned(),
        not_after: Timestamp(now.0.saturating_add(KEY_VALID)),
    })
}

/// Chooses the key that signs, of rows with the newest first: the newest that every master knows;
/// otherwise the oldest, as just after the first start.
fn signing_row(rows: &[SigningKeyRow], now: Timestamp) -> Option<Uuid> {
    let known = |row: &&SigningKeyRow| {
        let made_at = row.not_after.0.saturating_sub(KEY_VALID);
        now.0.saturating_sub(made_at) >= KEY_KNOWN_AFTER
    };
    let row = rows.iter().find(known).or_else(|| rows.last())?;
    Some(row.id)
}

/// Reads the keys that sign access tokens again, makes the next one in time, and forgets those whose
/// tokens are long over.
///
/// # Errors
///
/// The store fails, or a key does not open with this master key.
pub(crate) async fn keep_token_keys(
    store: &Store,
    vault: &Vault,
    tokens: &TokenSigner,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let (signing, older) = token_keys(store, vault, TOKENS, now).await?;
    tokens.replace(signing, older);
    let before = Timestamp(now.0.saturating_sub(Timestamp::DAY));
    cluster::remove_signing_keys(store, TOKENS, before).await?;
    Ok(())
}

impl Service {
    /// Signs access tokens with a new key at once, as after a theft: those that older keys signed are
    /// refused here at once, and on other masters within [`KEYS_READ_EVERY`]. Sessions go on, with
    /// their refresh tokens.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn rotate_token_keys(&self) -> Result<(), ServiceError> {
        let now = self.now();
        let made = make_token_key(self.vault(), TOKENS, now)?;
        let mut tx = self.store().begin().await?;
        cluster::remove_signing_keys_in(&mut tx, TOKENS).await?;
        cluster::insert_signing_key(&mut tx, &made, now).await?;
        let host = Caller::host();
        let access = host.access(Operation::PutSetting)?;
        let written = Record {
            kind: "signing_key",
            id: made.id.to_string(),
            before: None,
            after: None,
            owner: None,
            topic: "signing_key.rotated",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        keep_token_keys(self.store(), self.vault(), self.tokens(), now).await
    }
}

impl Service {
    /// Lists settings.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn settings(&self, _access: Access<'_>) -> Result<Vec<SettingRow>, ServiceError> {
        Ok(settings::list(self.store()).await?)
    }

    /// Returns a setting.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`] if it was never set.
    pub async fn setting(
        &self,
        _access: Access<'_>,
        key: &str,
    ) -> Result<SettingRow, ServiceError> {
        check_key(key)?;
        settings::find(self.store(), key)
            .await?
            .ok_or(ServiceError::NotFound("setting"))
    }

    /// Writes a setting; with `expected`, only if it is at that revision (0: was never set).
    ///
    /// # Errors
    ///
    /// [`ServiceError::Stale`], [`ServiceError::Invalid`].
    pub async fn put_setting(
        &self,
        access: Access<'_>,
        key: &str,
        value: Value,
        expected: Option<i64>,
    ) -> Result<SettingRow, ServiceError> {
        check_key(key)?;
        if value.to_string().len() > MAX_SETTING {
            return Err(ServiceError::invalid("value", "is too large"));
        }
        let now = self.now();
        let old = settings::find(self.store(), key).await?;
        let mut tx = self.store().begin().await?;
        let rev = cluster::put_setting(&mut tx, key, &value, expected, now).await?;
        let written = Record {
            kind: "setting",
            id: key.to_owned(),
            before: old.map(|row| row.value.0),
            after: Some(value.clone()),
            owner: None,
            topic: "setting.changed",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        let value = sqlx::types::Json(value);
        Ok(SettingRow {
            key: key.to_owned(),
            value,
            rev,
            updated_at: now,
        })
    }

    /// Lists audit entries, the newest first.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page.
    pub async fn audit(
        &self,
        _access: Access<'_>,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Page<Entry>, ServiceError> {
        let limit = page.limit()?;
        let before = page.key::<i64>()?;
        let rows = audit::list(self.store(), filter, before, i64::from(limit) + 1).await?;
        Ok(Page::new(rows, limit, |row| row.seq))
    }

    /// Recomputes the chain of the audit log, checks every signature, and looks whether its end is there.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn verify_audit(&self, _access: Access<'_>) -> Result<Verification, ServiceError> {
        let keys = self.store().signing_keys("audit").await?;
        let key_of = |point: &Checkpoint| keys.iter().find(|key| key.key_id == point.key_id);
        // Read before the entries, which only grow.
        let head = audit::head(self.store()).await?;
        let mut found = audit::verify(self.store(), |point| {
            key_of(point).is_some_and(|key| is_signed(point, &key.public_key))
        })
        .await?;
        if let (Some(head), None) = (head, found.broken_at) {
            let signed = key_of(&head).is_some_and(|key| is_head_signed(&head, &key.public_key));
            if !signed || audit::hash_of(self.store(), head.seq).await? != Some(head.hash) {
                found.broken_at = Some(head.seq.min(found.entries + 1));
            }
        }
        Ok(found)
    }
}

impl Service {
    /// Begins a backup and returns its pieces. One that fails on the way ends with an error, and
    /// what has been sent of it does not open.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of a weak passphrase, or the store fails.
    pub async fn create_backup(
        &self,
        access: Access<'_>,
        passphrase: SecretString,
    ) -> Result<mpsc::Receiver<Result<Bytes, BackupError>>, ServiceError> {
        if passphrase.expose_secret().chars().count() < 12 {
            let message = "must have at least 12 characters";
            return Err(ServiceError::invalid("passphrase", message));
        }
        let now = self.now();
        let written = Record {
            kind: "backup",
            id: now.to_string(),
            before: None,
            after: None,
            owner: None,
            topic: "backup.made",
        };
        let mut tx = self.store().begin().await?;
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        let store = self.store().clone();
        let (sender, pieces) = mpsc::channel(4);
        // Ends with the receiver: the request's body owns it.
        tokio::spawn(async move {
            let (out, mut sealed) = mpsc::channel(4);
            let key = BackupKey::Passphrase(passphrase);
            let writing = backup::dump::write(&store, &key, out);
            let passing = async {
                while let Some(piece) = sealed.recv().await {
                    if sender.send(Ok(piece)).await.is_err() {
                        break;
                    }
                }
                drop(sealed);
            };
            let (written, ()) = tokio::join!(writing, passing);
            if let Err(error) = written {
                tracing::error!(%error, "a backup failed");
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(pieces)
    }
}

/// Names of the master's own are no settings.
fn check_key(key: &str) -> Result<(), ServiceError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let named = (1..=64).contains(&key.len()) && key.chars().all(allowed);
    if named && !key.starts_with("internal.") {
        return Ok(());
    }
    Err(ServiceError::NotFound("setting"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u128, made_at: i64) -> SigningKeyRow {
        SigningKeyRow {
            id: Uuid::from_u128(id),
            purpose: TOKENS.to_owned(),
            key_id: Vec::new(),
            public_key: Vec::new(),
            private_key_enc: Vec::new(),
            certificate: None,
            state: "active".to_owned(),
            not_after: Timestamp(made_at + KEY_VALID),
        }
    }

    #[test]
    fn a_key_signs_once_every_master_knows_it() {
        let rows = [row(2, 1_000_000), row(1, 0)];
        let at = |now| signing_row(&rows, Timestamp(now)).map(|id| id.as_u128());
        assert_eq!(at(1_000_000), Some(1));
        assert_eq!(at(1_000_000 + KEY_KNOWN_AFTER - 1), Some(1));
        assert_eq!(at(1_000_000 + KEY_KNOWN_AFTER), Some(2));
        // The first of all signs at once.
        let first = signing_row(&rows[1..], Timestamp(0));
        assert_eq!(first, Some(Uuid::from_u128(1)));
        assert_eq!(signing_row(&[], Timestamp(0)), None);
    }
}
