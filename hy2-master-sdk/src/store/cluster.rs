//! The cluster: its epoch, sealed keys, authorities, settings, masters and leases of singleton tasks.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Rows as _, Store, StoreError, Topic, Tx, on};
use crate::domain::Timestamp;

/// The cluster.
#[derive(Debug, Clone, FromRow)]
pub struct ClusterRow {
    /// Its UUID.
    pub uid: Uuid,
    /// Bumped by a restore from backup; revisions compare within an epoch only.
    pub epoch: i64,
    /// When this epoch began.
    pub epoch_started_at: Timestamp,
}

/// A certificate authority, its key sealed.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct AuthorityRow {
    pub id: Uuid,
    pub certificate: Vec<u8>,
    pub private_key_enc: Vec<u8>,
    pub spki_sha256: Vec<u8>,
    pub state: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// A signing key, sealed.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct SigningKeyRow {
    pub id: Uuid,
    pub purpose: String,
    pub key_id: Vec<u8>,
    pub public_key: Vec<u8>,
    pub private_key_enc: Vec<u8>,
    pub certificate: Option<Vec<u8>>,
    pub state: String,
    pub not_after: Timestamp,
}

/// A setting.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct SettingRow {
    pub key: String,
    pub value: Json<serde_json::Value>,
    pub rev: i64,
    pub updated_at: Timestamp,
}

/// Proof that this master runs a singleton task. Writes of the task name it and change nothing when
/// another master has taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Of which task.
    pub name: &'static str,
    /// Grows with each change of the holder.
    pub token: i64,
}

/// A lease of a singleton task as it is in the store. The default is none's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    token: i64,
    /// By the holder's clock, which may be wrong.
    expires_at: i64,
}

/// Who has a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// Who asked, from now on or still.
    Mine(Fence),
    /// Another master.
    Others(Held),
}

impl Store {
    /// Returns the cluster.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`] before [`init`].
    pub async fn cluster(&self) -> Result<ClusterRow, StoreError> {
        on!(read self, |ex| sqlx::query_as::<_, ClusterRow>(GET).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("cluster"))
    }

    /// Returns the authorities, the newest first.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn authorities(&self) -> Result<Vec<AuthorityRow>, StoreError> {
        Ok(on!(read self, |ex| sqlx::query_as::<_, AuthorityRow>(AUTHORITIES).fetch_all(ex).await)?)
    }

    /// Returns the keys of a purpose, the newest first.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn signing_keys(&self, purpose: &str) -> Result<Vec<SigningKeyRow>, StoreError> {
        Ok(
            on!(read self, |ex| sqlx::query_as::<_, SigningKeyRow>(SIGNING_KEYS).bind(purpose).fetch_all(ex).await)?,
        )
    }

    /// Returns a sealed secret of the cluster.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn secret(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        const SQL: &str = "select value_enc from secrets where name = $1";
        on!(read self, |ex| sqlx::query_scalar::<_, Vec<u8>>(SQL).bind(name).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("secret"))
    }

    /// Returns a setting, if it has ever been set.
    ///
    /// # Errors
    ///
    /// The store fails, or holds a value of another shape.
    pub async fn setting<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        const SQL: &str = "select key, value, rev, updated_at from settings where key = $1";
        let row = on!(read self, |ex| sqlx::query_as::<_, SettingRow>(SQL).bind(key).fetch_optional(ex).await)?;
        row.map(|row| {
            serde_json::from_value(row.value.0).map_err(|source| StoreError::Corrupt {
                what: "setting",
                source: source.into(),
            })
        })
        .transpose()
    }

    /// Takes or keeps the lease of a singleton task for `valid_ms`. Of another's lease it is told what it is; one that is
    /// `unchanged` since it was told is taken, too, whatever the clocks say. A master calls it so when it has seen no
    /// change for as long as a lease is valid: one that lives keeps its lease.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn acquire_lease(
        &self,
        name: &'static str,
        holder: Uuid,
        now: Timestamp,
        valid_ms: i64,
        unchanged: Option<Held>,
    ) -> Result<Lease, StoreError> {
        const SQL: &str = "insert into leases (name, holder, token, acquired_at, expires_at) \
                           values ($1, $2, 1, $3, $4) on conflict (name) do update set \
                           token = case when leases.holder = excluded.holder then leases.token else leases.token + 1 end, \
                           acquired_at = case when leases.holder = excluded.holder then leases.acquired_at \
                           else excluded.acquired_at end, \
                           holder = excluded.holder, expires_at = excluded.expires_at \
                           where leases.holder = excluded.holder or leases.expires_at <= $3 \
                           or (leases.token = $5 and leases.expires_at = $6) returning token";
        const HELD: &str = "select token, expires_at from leases where name = $1";
        // No lease has a token below 1.
        let unchanged = unchanged.unwrap_or_default();
        let token = on!(write self, |ex| sqlx::query_scalar::<_, i64>(SQL)
            .bind(name)
            .bind(holder)
            .bind(now)
            .bind(now.0.saturating_add(valid_ms))
            .bind(unchanged.token)
            .bind(unchanged.expires_at)
            .fetch_optional(ex)
            .await)?;
        if let Some(token) = token {
            return Ok(Lease::Mine(Fence { name, token }));
        }
        let held = on!(read self, |ex| sqlx::query_as::<_, (i64, i64)>(HELD)
            .bind(name)
            .fetch_optional(ex)
            .await)?;
        let (token, expires_at) = held.unwrap_or_default();
        Ok(Lease::Others(Held { token, expires_at }))
    }

    /// Gives the leases of a master back, so that another need not wait for them to run out, whatever its clock says.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn release_leases(&self, holder: Uuid) -> Result<(), StoreError> {
        const SQL: &str = "update leases set expires_at = 0 where holder = $1";
        on!(write self, |ex| sqlx::query(SQL).bind(holder).execute(ex).await.rows())?;
        Ok(())
    }

    /// Says that a master lives.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn master_heartbeat(
        &self,
        id: Uuid,
        address: &str,
        version: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const SQL: &str = "insert into masters (id, address, version, started_at, heartbeat_at) \
                           values ($1, $2, $3, $4, $4) \
                           on conflict (id) do update set heartbeat_at = excluded.heartbeat_at, stopped_at = null";
        on!(write self, |ex| sqlx::query(SQL)
            .bind(id)
            .bind(address)
            .bind(version)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
        Ok(())
    }
}

/// Makes the cluster unless it is there. Masters that start at once wait here for the first: what it
/// makes in its transaction, the others find.
///
/// # Errors
///
/// The store fails.
pub async fn init(tx: &mut Tx, uid: Uuid, now: Timestamp) -> Result<ClusterRow, StoreError> {
    const SQL: &str = "insert into cluster (id, uid, epoch, epoch_started_at, created_at, updated_at) values (1, $1, 1, $2, $2, $2) \
                       on conflict (id) do update set updated_at = excluded.updated_at";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(uid)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(on!(tx, |ex| sqlx::query_as::<_, ClusterRow>(GET)
        .fetch_one(ex)
        .await)?)
}

/// Begins a new epoch, after a restore from backup: nodes take whatever revision comes with it, and leases get numbers
/// that none had before. Its number is the time, in seconds: a backup may be restored more than once, and what the
/// backup says of epochs is the same each time.
///
/// # Errors
///
/// The store fails.
pub async fn bump_epoch(tx: &mut Tx, now: Timestamp) -> Result<i64, StoreError> {
    const SQL: &str = "update cluster set epoch = case when epoch < $2 then $2 else epoch + 1 end, epoch_started_at = $1, \
                       updated_at = $1 where id = 1 returning epoch";
    tx.call(Topic::Settings);
    let epoch = on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
        .bind(now)
        .bind(now.0 / 1_000)
        .fetch_one(ex)
        .await)?;
    super::leases::number_from(tx, super::leases::first_of_epoch(epoch)).await?;
    Ok(epoch)
}

/// Keeps a sealed secret under a name, unless there is one. Returns the one there is.
///
/// # Errors
///
/// The store fails.
pub async fn secret_or_insert(
    tx: &mut Tx,
    name: &str,
    make: impl FnOnce() -> Vec<u8>,
    now: Timestamp,
) -> Result<Vec<u8>, StoreError> {
    const SQL: &str = "select value_enc from secrets where name = $1";
    if let Some(found) = on!(tx, |ex| sqlx::query_scalar::<_, Vec<u8>>(SQL)
        .bind(name)
        .fetch_optional(ex)
        .await)?
    {
        return Ok(found);
    }
    let value = make();
    const INSERT: &str =
        "insert into secrets (name, value_enc, created_at, updated_at) values ($1, $2, $3, $3)";
    on!(tx, |ex| sqlx::query(INSERT)
        .bind(name)
        .bind(&value)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(value)
}

/// Returns the authorities as the transaction sees them, the newest first.
///
/// # Errors
///
/// The store fails.
pub async fn authorities(tx: &mut Tx) -> Result<Vec<AuthorityRow>, StoreError> {
    Ok(on!(tx, |ex| sqlx::query_as::<_, AuthorityRow>(
        AUTHORITIES
    )
    .fetch_all(ex)
    .await)?)
}

/// Adds an authority.
///
/// # Errors
///
/// The store fails.
pub async fn insert_authority(
    tx: &mut Tx,
    row: &AuthorityRow,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "insert into certificate_authorities (id, certificate, private_key_enc, spki_sha256, state, \
                       not_before, not_after, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $8)";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(row.id)
        .bind(&row.certificate)
        .bind(&row.private_key_enc)
        .bind(&row.spki_sha256)
        .bind(&row.state)
        .bind(row.not_before)
        .bind(row.not_after)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Settings);
    Ok(())
}

/// Removes the keys of a purpose whose time was over before a moment.
///
/// # Errors
///
/// The store fails.
pub async fn remove_signing_keys(
    store: &Store,
    purpose: &str,
    before: Timestamp,
) -> Result<u64, StoreError> {
    const SQL: &str = "delete from signing_keys where purpose = $1 and not_after < $2";
    Ok(on!(write store, |ex| sqlx::query(SQL)
        .bind(purpose)
        .bind(before)
        .execute(ex)
        .await
        .rows())?)
}

/// Removes all keys of a purpose.
///
/// # Errors
///
/// The store fails.
pub async fn remove_signing_keys_in(tx: &mut Tx, purpose: &str) -> Result<u64, StoreError> {
    const SQL: &str = "delete from signing_keys where purpose = $1";
    Ok(on!(tx, |ex| sqlx::query(SQL)
        .bind(purpose)
        .execute(ex)
        .await
        .rows())?)
}

/// Adds a signing key.
///
/// # Errors
///
/// The store fails.
pub async fn insert_signing_key(
    tx: &mut Tx,
    row: &SigningKeyRow,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "insert into signing_keys (id, purpose, key_id, public_key, private_key_enc, certificate, state, \
                       not_after, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(row.id)
        .bind(&row.purpose)
        .bind(&row.key_id)
        .bind(&row.public_key)
        .bind(&row.private_key_enc)
        .bind(&row.certificate)
        .bind(&row.state)
        .bind(row.not_after)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Settings);
    Ok(())
}

/// Sets a setting, if it is still at `expected_rev` (`None`: whatever it is at; 0: not set).
///
/// # Errors
///
/// [`StoreError::StaleRevision`].
pub async fn put_setting(
    tx: &mut Tx,
    key: &str,
    value: &impl Serialize,
    expected_rev: Option<i64>,
    now: Timestamp,
) -> Result<i64, StoreError> {
    const SQL: &str = "insert into settings (key, value, rev, updated_at) values ($1, $2, 1, $3) \
                       on conflict (key) do update set value = excluded.value, rev = settings.rev + 1, \
                       updated_at = excluded.updated_at returning rev";
    let value = serde_json::to_value(value).map_err(|source| StoreError::Corrupt {
        what: "setting",
        source: source.into(),
    })?;
    let rev = on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
        .bind(key)
        .bind(Json(&value))
        .bind(now)
        .fetch_one(ex)
        .await)?;
    super::nodes::check_rev("setting", expected_rev, rev - 1)?;
    tx.call(Topic::Settings);
    Ok(rev)
}

/// Fails unless the fence still holds; keeps it held until the transaction ends.
///
/// # Errors
///
/// [`StoreError::Fenced`].
pub async fn check_fence(tx: &mut Tx, fence: &Fence) -> Result<(), StoreError> {
    const SQL: &str = "update leases set token = token where name = $1 and token = $2";
    let rows = on!(tx, |ex| sqlx::query(SQL)
        .bind(fence.name)
        .bind(fence.token)
        .execute(ex)
        .await
        .rows())?;
    if rows == 0 {
        return Err(StoreError::Fenced(fence.name));
    }
    Ok(())
}

pub(super) const SIGNING_KEYS: &str = "select id, purpose, key_id, public_key, private_key_enc, certificate, state, \
                                       not_after from signing_keys where purpose = $1 \
                                       order by created_at desc, id";
const GET: &str = "select uid, epoch, epoch_started_at from cluster where id = 1";
const AUTHORITIES: &str = "select id, certificate, private_key_enc, spki_sha256, state, not_before, not_after \
                           from certificate_authorities order by created_at desc, id";
