//! Users: who may connect, with which limits. Deleted ones are kept for the accounts.

use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::nodes::check_rev;
use super::{Connection, Rows as _, Store, StoreError, Topic, Tx, on};
use crate::domain::{AdminId, NodeId, PlanId, RegionId, Timestamp, UserId, UserStatus};

/// One user, with the counters.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct UserRow {
    pub id: UserId,
    pub uid: Uuid,
    pub username: String,
    pub admin_id: Option<AdminId>,
    pub plan_id: Option<PlanId>,
    pub status: UserStatus,
    pub status_reason: String,
    pub seed_enc: Vec<u8>,
    pub credential_enc: Option<Vec<u8>>,
    pub auth_hash: Option<Vec<u8>>,
    pub subscription_enc: Vec<u8>,
    pub subscription_rotated_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub hold_duration_ms: Option<i64>,
    pub hold_deadline: Option<Timestamp>,
    pub activated_at: Option<Timestamp>,
    pub quota_bytes: Option<i64>,
    pub period_started_at: Timestamp,
    pub max_devices: Option<i64>,
    pub max_connections: Option<i64>,
    pub up_bytes_per_s: Option<i64>,
    pub down_bytes_per_s: Option<i64>,
    pub home_region_id: Option<RegionId>,
    pub email: Option<String>,
    pub telegram_id: Option<i64>,
    pub note: String,
    pub tags: Json<Vec<String>>,
    pub rev: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub tx: i64,
    pub rx: i64,
    pub billed: i64,
    pub base_billed: i64,
    pub online_at: Option<Timestamp>,
    pub last_node_id: Option<NodeId>,
}

impl UserRow {
    /// Returns the billed bytes of the present period.
    pub fn used(&self) -> i64 {
        (self.billed - self.base_billed).max(0)
    }

    /// Returns whether a hold has not begun, also of who may not connect meanwhile.
    pub fn waits(&self) -> bool {
        let is_out = matches!(self.status, UserStatus::Disabled | UserStatus::Expired);
        let has_hold = self.hold_duration_ms.is_some() && self.activated_at.is_none();
        self.status == UserStatus::OnHold || (is_out && has_hold)
    }
}

/// The columns of a [`UserRow`], from `users u left join user_counters c`.
macro_rules! user_columns {
    () => {
        "u.id, u.uid, u.username, u.admin_id, u.plan_id, u.status, u.status_reason, u.seed_enc, u.credential_enc, \
         u.auth_hash, u.subscription_enc, u.subscription_rotated_at, u.expires_at, u.hold_duration_ms, \
         u.hold_deadline, u.activated_at, u.quota_bytes, u.period_started_at, u.max_devices, u.max_connections, \
         u.up_bytes_per_s, u.down_bytes_per_s, u.home_region_id, u.email, u.telegram_id, u.note, u.tags, u.rev, \
         u.created_at, u.updated_at, coalesce(c.tx, 0) as tx, coalesce(c.rx, 0) as rx, \
         coalesce(c.billed, 0) as billed, coalesce(c.base_billed, 0) as base_billed, c.online_at, c.last_node_id"
    };
}
pub(crate) use user_columns;

/// A new user. `seed_enc` and the subscription come from [`crate::secrets`].
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NewUser {
    pub uid: Uuid,
    pub username: String,
    pub admin_id: Option<AdminId>,
    pub plan_id: Option<PlanId>,
    pub status: UserStatus,
    pub seed_enc: Vec<u8>,
    pub credential_enc: Option<Vec<u8>>,
    pub auth_hash: Option<Vec<u8>>,
    pub subscription_hash: Vec<u8>,
    pub subscription_enc: Vec<u8>,
    pub expires_at: Option<Timestamp>,
    pub hold_duration_ms: Option<i64>,
    pub hold_deadline: Option<Timestamp>,
    pub quota_bytes: Option<i64>,
    pub max_devices: Option<i64>,
    pub max_connections: Option<i64>,
    pub up_bytes_per_s: Option<i64>,
    pub down_bytes_per_s: Option<i64>,
    pub home_region_id: Option<RegionId>,
    pub email: Option<String>,
    pub telegram_id: Option<i64>,
    pub note: String,
    pub tags: Vec<String>,
}

/// What changes of a user; `None` leaves a field alone.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct UserChange {
    pub username: Option<String>,
    pub admin_id: Option<Option<AdminId>>,
    pub plan_id: Option<Option<PlanId>>,
    pub status: Option<UserStatus>,
    pub status_reason: Option<String>,
    pub expires_at: Option<Option<Timestamp>>,
    pub quota_bytes: Option<Option<i64>>,
    pub max_devices: Option<Option<i64>>,
    pub max_connections: Option<Option<i64>>,
    pub up_bytes_per_s: Option<Option<i64>>,
    pub down_bytes_per_s: Option<Option<i64>>,
    pub home_region_id: Option<Option<RegionId>>,
    pub email: Option<Option<String>>,
    pub telegram_id: Option<Option<i64>>,
    pub note: Option<String>,
    pub tags: Option<Vec<String>>,
}

impl Store {
    /// Returns a user that is not deleted.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn user(&self, id: UserId) -> Result<UserRow, StoreError> {
        on!(read self, |ex| sqlx::query_as::<_, UserRow>(GET).bind(id).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("user"))
    }

    /// Returns the user with a name.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn user_by_name(&self, username: &str) -> Result<UserRow, StoreError> {
        const SQL: &str = concat!(
            "select ",
            user_columns!(),
            " from users u left join user_counters c on c.user_id = u.id \
             where u.username = $1 and u.deleted_at is null"
        );
        on!(read self, |ex| sqlx::query_as::<_, UserRow>(SQL).bind(username).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("user"))
    }

    /// Returns the user whose subscription token has this hash.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn user_by_subscription(&self, hash: &[u8]) -> Result<UserRow, StoreError> {
        const SQL: &str = concat!(
            "select ",
            user_columns!(),
            " from users u left join user_counters c on c.user_id = u.id \
             where u.subscription_hash = $1 and u.deleted_at is null"
        );
        on!(read self, |ex| sqlx::query_as::<_, UserRow>(SQL).bind(hash).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("user"))
    }

    /// Returns users in order of their number, after `after`.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn users(
        &self,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<UserRow>, StoreError> {
        const SQL: &str = concat!(
            "select ",
            user_columns!(),
            " from users u left join user_counters c on c.user_id = u.id \
             where u.id > $1 and u.deleted_at is null order by u.id limit $2"
        );
        Ok(on!(read self, |ex| sqlx::query_as::<_, UserRow>(SQL)
            .bind(after.unwrap_or(UserId(0)))
            .bind(i64::from(limit))
            .fetch_all(ex)
            .await)?)
    }
}

/// Makes a user. Nodes get the user with an assignment.
///
/// # Errors
///
/// [`StoreError::Duplicate`] of `users_username_key` or `users_auth_hash_key`,
/// [`StoreError::Reference`], [`StoreError::Check`].
pub async fn create(tx: &mut Tx, user: &NewUser, now: Timestamp) -> Result<UserRow, StoreError> {
    const SQL: &str = "insert into users (uid, username, admin_id, plan_id, status, seed_enc, credential_enc, auth_hash, \
                       subscription_hash, subscription_enc, expires_at, hold_duration_ms, hold_deadline, quota_bytes, \
                       max_devices, max_connections, up_bytes_per_s, down_bytes_per_s, home_region_id, email, \
                       telegram_id, note, tags, subscription_rotated_at, period_started_at, created_at, updated_at, name_folded) \
                       values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
                       $20, $21, $22, $23, $24, $24, $24, $24, $25) returning id";
    let id = on!(tx, |ex| sqlx::query_scalar::<_, UserId>(SQL)
        .bind(user.uid)
        .bind(&user.username)
        .bind(user.admin_id)
        .bind(user.plan_id)
        .bind(user.status)
        .bind(&user.seed_enc)
        .bind(&user.credential_enc)
        .bind(&user.auth_hash)
        .bind(&user.subscription_hash)
        .bind(&user.subscription_enc)
        .bind(user.expires_at)
        .bind(user.hold_duration_ms)
        .bind(user.hold_deadline)
        .bind(user.quota_bytes)
        .bind(user.max_devices)
        .bind(user.max_connections)
        .bind(user.up_bytes_per_s)
        .bind(user.down_bytes_per_s)
        .bind(user.home_region_id)
        .bind(&user.email)
        .bind(user.telegram_id)
        .bind(&user.note)
        .bind(Json(&user.tags))
        .bind(now)
        .bind(fold(&user.username))
        .fetch_one(ex)
        .await)?;
    const COUNTERS: &str = "insert into user_counters (user_id) values ($1)";
    on!(tx, |ex| sqlx::query(COUNTERS)
        .bind(id)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Users);
    get(tx, id).await
}

/// Gives a user who was made in this transaction the reason of the status, and what was used of the quota elsewhere.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub(crate) async fn set_past(
    tx: &mut Tx,
    id: UserId,
    reason: &str,
    used: i64,
) -> Result<UserRow, StoreError> {
    const REASON: &str = "update users set status_reason = $2 where id = $1";
    on!(tx, |ex| sqlx::query(REASON)
        .bind(id)
        .bind(reason)
        .execute(ex)
        .await
        .rows())?;
    const USED: &str = "update user_counters set billed = billed + $2 where user_id = $1";
    on!(tx, |ex| sqlx::query(USED)
        .bind(id)
        .bind(used)
        .execute(ex)
        .await
        .rows())?;
    get(tx, id).await
}

/// Returns a user as the transaction sees it.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get(tx: &mut Tx, id: UserId) -> Result<UserRow, StoreError> {
    on!(tx, |ex| sqlx::query_as::<_, UserRow>(GET)
        .bind(id)
        .fetch_optional(ex)
        .await)?
    .ok_or(StoreError::NotFound("user"))
}

/// Changes a user, if it is still at `expected_rev` (`None`: whatever it is at), and bumps every
/// node that serves the user. With another plan that has pools, the user moves to nodes of these.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::StaleRevision`], [`StoreError::Duplicate`] of the name,
/// [`StoreError::Reference`], [`StoreError::Check`].
pub async fn update(
    tx: &mut Tx,
    id: UserId,
    expected_rev: Option<i64>,
    change: &UserChange,
    now: Timestamp,
) -> Result<UserRow, StoreError> {
    let old = get_for_update(tx, id).await?;
    check_rev("user", expected_rev, old.rev)?;
    if change.admin_id.is_some_and(|admin| admin != old.admin_id) {
        // The next one has the user with what is used, and its quota.
        tx.spend(old.admin_id, old.used());
    }
    const SQL: &str = "update users set username = $2, admin_id = $3, plan_id = $4, status = $5, status_reason = $6, \
                       expires_at = $7, quota_bytes = $8, max_devices = $9, max_connections = $10, \
                       up_bytes_per_s = $11, down_bytes_per_s = $12, home_region_id = $13, email = $14, \
                       telegram_id = $15, note = $16, tags = $17, name_folded = $19, rev = rev + 1, updated_at = $18 where id = $1";
    let username = change.username.as_ref().unwrap_or(&old.username);
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(username)
        .bind(change.admin_id.unwrap_or(old.admin_id))
        .bind(change.plan_id.unwrap_or(old.plan_id))
        .bind(change.status.unwrap_or(old.status))
        .bind(change.status_reason.as_ref().unwrap_or(&old.status_reason))
        .bind(change.expires_at.unwrap_or(old.expires_at))
        .bind(change.quota_bytes.unwrap_or(old.quota_bytes))
        .bind(change.max_devices.unwrap_or(old.max_devices))
        .bind(change.max_connections.unwrap_or(old.max_connections))
        .bind(change.up_bytes_per_s.unwrap_or(old.up_bytes_per_s))
        .bind(change.down_bytes_per_s.unwrap_or(old.down_bytes_per_s))
        .bind(change.home_region_id.unwrap_or(old.home_region_id))
        .bind(change.email.as_ref().unwrap_or(&old.email))
        .bind(change.telegram_id.unwrap_or(old.telegram_id))
        .bind(change.note.as_ref().unwrap_or(&old.note))
        .bind(Json(change.tags.as_ref().unwrap_or(&old.tags.0)))
        .bind(now)
        .bind(fold(username))
        .execute(ex)
        .await
        .rows())?;
    super::assignments::touch_users(tx, &[id], now).await?;
    if change.plan_id.is_some_and(|plan| plan != old.plan_id) {
        super::assignments::leave_other_pools(tx, id).await?;
    }
    tx.call(Topic::Users);
    get(tx, id).await
}

/// Deletes a user: nodes cut the connections, the accounts and the name's history stay, the name
/// becomes free, the secrets are destroyed.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::StaleRevision`].
pub async fn delete(
    tx: &mut Tx,
    id: UserId,
    expected_rev: Option<i64>,
    now: Timestamp,
) -> Result<UserRow, StoreError> {
    let old = get_for_update(tx, id).await?;
    check_rev("user", expected_rev, old.rev)?;
    spend_used(tx, &old).await?;
    super::assignments::release_all(tx, id, now).await?;
    const SQL: &str = "update users set status = 'deleted', deleted_at = $2, updated_at = $2, rev = rev + 1, \
                       seed_enc = $3, credential_enc = null, auth_hash = null, subscription_hash = $4, \
                       subscription_enc = $3 where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(now)
        .bind(Vec::<u8>::new())
        // Unique, and no hash of a token: those are 32 bytes.
        .bind(old.uid.as_bytes().to_vec())
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Users);
    Ok(old)
}

/// Starts a user's quota anew; counters are never set back. Of a user whom the quota limited, the
/// status is active again.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn reset_traffic(
    tx: &mut Tx,
    id: UserId,
    reason: &str,
    actor: &str,
    now: Timestamp,
) -> Result<UserRow, StoreError> {
    let old = get_for_update(tx, id).await?;
    let billed = spend_used(tx, &old).await?;
    const ROW: &str = "insert into traffic_resets (user_id, used_before, base_billed, reason, actor, at) \
                       values ($1, $2, $3, $4, $5, $6)";
    on!(tx, |ex| sqlx::query(ROW)
        .bind(id)
        .bind(billed - old.base_billed)
        .bind(billed)
        .bind(reason)
        .bind(actor)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    const SQL: &str = "update users set status = case when status = 'limited' then 'active' else status end, \
                       status_reason = case when status = 'limited' then '' else status_reason end, \
                       period_started_at = $2, rev = rev + 1, updated_at = $2 where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    super::assignments::touch_users(tx, &[id], now).await?;
    tx.call(Topic::Users);
    get(tx, id).await
}

/// Starts to count what a user has used from nothing; its administrator has spent it. Returns the billed bytes.
async fn spend_used(tx: &mut Tx, old: &UserRow) -> Result<i64, StoreError> {
    const SQL: &str =
        "update user_counters set base_billed = billed where user_id = $1 returning billed";
    let billed = on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
        .bind(old.id)
        .fetch_optional(ex)
        .await)?
    .unwrap_or(0);
    tx.spend(old.admin_id, billed - old.base_billed);
    Ok(billed)
}

/// Gives a user a new subscription token; the old one is worth nothing.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn set_subscription(
    tx: &mut Tx,
    id: UserId,
    hash: &[u8],
    sealed: &[u8],
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "update users set subscription_hash = $2, subscription_enc = $3, subscription_rotated_at = $4, \
                       rev = rev + 1, updated_at = $4 where id = $1 and deleted_at is null";
    let done = on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(hash)
        .bind(sealed)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    found("user", done)
}

/// Gives a user a new seed and, when the operator chose one, a credential; nodes cut the
/// connections that used the old.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::Duplicate`] of `users_auth_hash_key`.
pub async fn set_secrets(
    tx: &mut Tx,
    id: UserId,
    seed_enc: &[u8],
    credential_enc: Option<&[u8]>,
    auth_hash: Option<&[u8]>,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "update users set seed_enc = $2, credential_enc = $3, auth_hash = $4, rev = rev + 1, \
                       updated_at = $5 where id = $1 and deleted_at is null";
    let done = on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(seed_enc)
        .bind(credential_enc)
        .bind(auth_hash)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    found("user", done)?;
    super::assignments::touch_users(tx, &[id], now).await
}

/// Keeps others from changing users until the transaction ends. For a transaction that changes several: rows of users
/// are locked before those of nodes, so that nobody waits in a circle.
pub(crate) async fn lock(tx: &mut Tx, users: &[UserId]) -> Result<(), StoreError> {
    // On SQLite a transaction that writes is alone anyway.
    if let Connection::Pg(tx) = tx.connection() {
        const SQL: &str = "select id from users where id = any($1) order by id for no key update";
        let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
        sqlx::query(SQL).bind(ids).execute(&mut **tx).await?;
    }
    Ok(())
}

/// Returns a user and keeps others from changing it until the transaction ends.
pub(crate) async fn get_for_update(tx: &mut Tx, id: UserId) -> Result<UserRow, StoreError> {
    // On SQLite a transaction that writes is alone anyway.
    if tx.is_postgres() {
        const LOCK: &str = "update users set rev = rev where id = $1";
        on!(tx, |ex| sqlx::query(LOCK).bind(id).execute(ex).await.rows())?;
    }
    get(tx, id).await
}

fn found(what: &'static str, rows: u64) -> Result<(), StoreError> {
    if rows == 0 {
        return Err(StoreError::NotFound(what));
    }
    Ok(())
}

const GET: &str = concat!(
    "select ",
    user_columns!(),
    " from users u left join user_counters c on c.user_id = u.id where u.id = $1 and u.deleted_at is null"
);

/// Folds a name, or a part of one, into what searches compare: letter by letter, so that a part of a
/// name stays a part. (`str::to_lowercase` looks at a letter's neighbours.)
pub(super) fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_lowercase).collect()
}

/// Returns the note of the user with a name, if there is one that is not deleted.
///
/// # Errors
///
/// The store fails.
pub async fn note_of(tx: &mut Tx, username: &str) -> Result<Option<String>, StoreError> {
    const SQL: &str = "select note from users where username = $1 and deleted_at is null";
    Ok(on!(tx, |ex| sqlx::query_scalar::<_, String>(SQL)
        .bind(username)
        .fetch_optional(ex)
        .await)?)
}
