//! Administrators and their sessions.

use sqlx::types::Json;
use uuid::Uuid;

use super::{Store, StoreError, Tx, on};
use crate::auth::access::Role;
use crate::domain::{AdminId, Timestamp};

/// An administrator as stored.
#[derive(Clone, sqlx::FromRow)]
pub struct AdminRow {
    /// Row number.
    pub id: AdminId,
    /// Login name.
    pub username: String,
    /// PHC string.
    pub password_hash: String,
    /// Name of the role.
    pub role: String,
    /// `active` or `disabled`.
    pub status: String,
    /// Second factor, sealed.
    pub totp_enc: Option<Vec<u8>>,
    /// Counter of the last accepted code.
    pub totp_last_step: i64,
    /// Second factor that is not confirmed, sealed.
    pub totp_pending_enc: Option<Vec<u8>>,
    /// Whether the password was given by somebody else.
    pub must_change_password: bool,
    /// Most traffic of a reseller's users: their quotas, and what was used before those.
    pub quota_bytes: Option<i64>,
    /// Most users that a reseller may have.
    pub max_users: Option<i64>,
    /// What users have used in periods that are over, and those who are gone.
    pub spent_bytes: i64,
    /// Sessions of earlier epochs are over.
    pub session_epoch: i64,
    /// Last login.
    pub last_login_at: Option<Timestamp>,
    /// Revision.
    pub rev: i64,
    /// Made at.
    pub created_at: Timestamp,
    /// Changed at.
    pub updated_at: Timestamp,
}

impl std::fmt::Debug for AdminRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminRow")
            .field("id", &self.id)
            .field("username", &self.username)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// An administrator to make.
#[derive(Clone)]
pub struct NewAdmin {
    /// Login name.
    pub username: String,
    /// PHC string.
    pub password_hash: String,
    /// Role.
    pub role: Role,
    /// Whether the password has to be changed first.
    pub must_change_password: bool,
    /// See [`AdminRow::quota_bytes`].
    pub quota_bytes: Option<i64>,
    /// See [`AdminRow::max_users`].
    pub max_users: Option<i64>,
}

impl std::fmt::Debug for NewAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewAdmin")
            .field("username", &self.username)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A session as stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SessionRow {
    /// Its id, in access and refresh tokens.
    pub id: Uuid,
    /// Whose.
    pub admin_id: AdminId,
    /// Of the refresh token in force.
    pub refresh_hash: Vec<u8>,
    /// Where it was opened.
    pub address: Option<String>,
    /// By what program.
    pub user_agent: Option<String>,
    /// Opened at.
    pub created_at: Timestamp,
    /// Last renewed at.
    pub refreshed_at: Timestamp,
    /// Over at.
    pub expires_at: Timestamp,
    /// Ended at.
    pub revoked_at: Option<Timestamp>,
}

const ADMIN_BY_ID: &str = "select a.id, a.username, a.password_hash, r.name as role, a.status, a.totp_enc, \
    a.totp_last_step, a.totp_pending_enc, a.must_change_password, a.quota_bytes, a.max_users, \
    a.spent_bytes, a.session_epoch, a.last_login_at, a.rev, a.created_at, a.updated_at \
    from admins a join admin_roles r on r.id = a.role_id where a.id = $1";

const ADMIN_BY_NAME: &str = "select a.id, a.username, a.password_hash, r.name as role, a.status, a.totp_enc, \
    a.totp_last_step, a.totp_pending_enc, a.must_change_password, a.quota_bytes, a.max_users, \
    a.spent_bytes, a.session_epoch, a.last_login_at, a.rev, a.created_at, a.updated_at \
    from admins a join admin_roles r on r.id = a.role_id where a.username = $1";

const ADMINS_AFTER: &str = "select a.id, a.username, a.password_hash, r.name as role, a.status, a.totp_enc, \
    a.totp_last_step, a.totp_pending_enc, a.must_change_password, a.quota_bytes, a.max_users, \
    a.spent_bytes, a.session_epoch, a.last_login_at, a.rev, a.created_at, a.updated_at \
    from admins a join admin_roles r on r.id = a.role_id where a.id > $1 order by a.id limit $2";

const SESSION: &str = "select id, admin_id, refresh_hash, address, user_agent, created_at, refreshed_at, \
    expires_at, revoked_at from admin_sessions where id = $1";

/// Makes the built-in roles that are missing.
///
/// # Errors
///
/// The database refuses.
pub async fn ensure_roles(tx: &mut Tx, now: Timestamp) -> Result<(), StoreError> {
    for role in Role::ALL {
        on!(tx, |ex| sqlx::query(
            "insert into admin_roles (name, permissions, built_in, created_at, updated_at) \
             values ($1, $2, true, $3, $3) on conflict (name) do nothing",
        )
        .bind(role.as_str())
        .bind(Json(serde_json::json!({})))
        .bind(now)
        .execute(ex)
        .await
        .map(drop))?;
    }
    Ok(())
}

/// Returns an administrator.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn get(store: &Store, id: AdminId) -> Result<AdminRow, StoreError> {
    let row = on!(read store, |ex| sqlx::query_as(ADMIN_BY_ID).bind(id).fetch_optional(ex).await)?;
    row.ok_or(StoreError::NotFound("administrator"))
}

/// Returns an administrator within a transaction.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn get_in(tx: &mut Tx, id: AdminId) -> Result<AdminRow, StoreError> {
    let row = on!(tx, |ex| sqlx::query_as(ADMIN_BY_ID)
        .bind(id)
        .fetch_optional(ex)
        .await)?;
    row.ok_or(StoreError::NotFound("administrator"))
}

/// Returns the administrator of that name, if there is one.
///
/// # Errors
///
/// The database refuses.
pub async fn find(store: &Store, username: &str) -> Result<Option<AdminRow>, StoreError> {
    let row = on!(read store, |ex| sqlx::query_as(ADMIN_BY_NAME)
        .bind(username)
        .fetch_optional(ex)
        .await)?;
    Ok(row)
}

/// Lists administrators after `after` in order of their ids.
///
/// # Errors
///
/// The database refuses.
pub async fn list(store: &Store, after: i64, limit: i64) -> Result<Vec<AdminRow>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(ADMINS_AFTER)
        .bind(after)
        .bind(limit)
        .fetch_all(ex)
        .await)?;
    Ok(rows)
}

/// Returns how many administrators there are.
///
/// # Errors
///
/// The database refuses.
pub async fn count(tx: &mut Tx) -> Result<i64, StoreError> {
    let (count,): (i64,) = on!(tx, |ex| sqlx::query_as("select count(*) from admins")
        .fetch_one(ex)
        .await)?;
    Ok(count)
}

/// Returns how many active owners there are beside one administrator, and keeps others from
/// changing that until the transaction ends.
///
/// # Errors
///
/// The database refuses.
pub async fn other_owners(tx: &mut Tx, id: AdminId) -> Result<i64, StoreError> {
    // Every change of an owner locks the same row first; on SQLite there is one writer anyway.
    on!(tx, |ex| sqlx::query(
        "update admin_roles set updated_at = updated_at where name = 'owner'"
    )
    .execute(ex)
    .await
    .map(drop))?;
    let (count,): (i64,) = on!(tx, |ex| sqlx::query_as(
        "select count(*) from admins a join admin_roles r on r.id = a.role_id \
         where r.name = 'owner' and a.status = 'active' and a.id <> $1",
    )
    .bind(id)
    .fetch_one(ex)
    .await)?;
    Ok(count)
}

/// Makes an administrator.
///
/// # Errors
///
/// [`StoreError::Duplicate`] if the name is taken.
pub async fn insert(tx: &mut Tx, admin: &NewAdmin, now: Timestamp) -> Result<AdminId, StoreError> {
    let (id,): (AdminId,) = on!(tx, |ex| sqlx::query_as(
        "insert into admins (username, password_hash, role_id, recovery_hashes, \
         must_change_password, quota_bytes, max_users, created_at, updated_at) \
         values ($1, $2, (select id from admin_roles where name = $3), $4, $5, $6, $7, $8, $8) \
         returning id",
    )
    .bind(&admin.username)
    .bind(&admin.password_hash)
    .bind(admin.role.as_str())
    .bind(Json(serde_json::json!([])))
    .bind(admin.must_change_password)
    .bind(admin.quota_bytes)
    .bind(admin.max_users)
    .bind(now)
    .fetch_one(ex)
    .await)?;
    Ok(id)
}

/// Writes role, status and limits if the row is at `rev`; ends all sessions when `end_sessions`.
///
/// # Errors
///
/// [`StoreError::StaleRevision`] if it is not.
#[expect(clippy::too_many_arguments, reason = "the columns of one statement")]
pub async fn update(
    tx: &mut Tx,
    id: AdminId,
    rev: i64,
    role: Role,
    status: &str,
    quota_bytes: Option<i64>,
    max_users: Option<i64>,
    end_sessions: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    let changed = on!(tx, |ex| {
        sqlx::query(
        "update admins set role_id = (select id from admin_roles where name = $3), status = $4, \
         quota_bytes = $5, max_users = $6, session_epoch = session_epoch + $7, rev = rev + 1, \
         updated_at = $8 where id = $1 and rev = $2",
    )
    .bind(id)
    .bind(rev)
    .bind(role.as_str())
    .bind(status)
    .bind(quota_bytes)
    .bind(max_users)
    .bind(i64::from(end_sessions))
    .bind(now)
    .execute(ex)
    .await
    .map(|done| done.rows_affected())
    })?;
    stale_unless(changed, rev)?;
    if end_sessions {
        revoke_sessions(tx, id, "account changed", now).await?;
    }
    Ok(())
}

/// Writes a new password and ends all sessions.
///
/// # Errors
///
/// The database refuses.
pub async fn set_password(
    tx: &mut Tx,
    id: AdminId,
    hash: &str,
    must_change: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    on!(tx, |ex| sqlx::query(
        "update admins set password_hash = $2, must_change_password = $3, \
         session_epoch = session_epoch + 1, rev = rev + 1, updated_at = $4 where id = $1",
    )
    .bind(id)
    .bind(hash)
    .bind(must_change)
    .bind(now)
    .execute(ex)
    .await
    .map(drop))?;
    revoke_sessions(tx, id, "password changed", now).await
}

/// Replaces a password hash by one of higher cost, if it is still the same.
///
/// # Errors
///
/// The database refuses.
pub async fn rehash(store: &Store, id: AdminId, old: &str, new: &str) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query(
        "update admins set password_hash = $3 where id = $1 and password_hash = $2",
    )
    .bind(id)
    .bind(old)
    .bind(new)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Stores a second factor that waits for its first code.
///
/// # Errors
///
/// The database refuses.
pub async fn set_pending_totp(
    tx: &mut Tx,
    id: AdminId,
    sealed: &[u8],
    now: Timestamp,
) -> Result<(), StoreError> {
    on!(tx, |ex| sqlx::query(
        "update admins set totp_pending_enc = $2, updated_at = $3 where id = $1",
    )
    .bind(id)
    .bind(sealed)
    .bind(now)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Puts a second factor in force, or removes it; `step` is the counter of the code that was used.
///
/// # Errors
///
/// The database refuses.
pub async fn set_totp(
    tx: &mut Tx,
    id: AdminId,
    sealed: Option<&[u8]>,
    step: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    on!(tx, |ex| sqlx::query(
        "update admins set totp_enc = $2, totp_pending_enc = null, totp_last_step = $3, \
         rev = rev + 1, updated_at = $4 where id = $1",
    )
    .bind(id)
    .bind(sealed)
    .bind(step)
    .bind(now)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Spends a one-time code: returns whether `step` is later than every one before.
///
/// # Errors
///
/// The database refuses.
pub async fn spend_totp_step(tx: &mut Tx, id: AdminId, step: i64) -> Result<bool, StoreError> {
    let changed = on!(tx, |ex| sqlx::query(
        "update admins set totp_last_step = $2 where id = $1 and totp_last_step < $2",
    )
    .bind(id)
    .bind(step)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    Ok(changed == 1)
}

/// Removes an administrator; users and tokens must be gone or belong to somebody else first.
///
/// # Errors
///
/// [`StoreError::Reference`] if users are left.
pub async fn delete(tx: &mut Tx, id: AdminId, rev: i64) -> Result<(), StoreError> {
    let changed = on!(tx, |ex| sqlx::query(
        "delete from admins where id = $1 and rev = $2"
    )
    .bind(id)
    .bind(rev)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    stale_unless(changed, rev)
}

/// Opens a session, if the administrator is active and still at `epoch`; returns whether it is open. Otherwise what the
/// login was judged by has changed since it was read.
///
/// # Errors
///
/// The database refuses.
pub async fn insert_session(
    tx: &mut Tx,
    session: &SessionRow,
    epoch: i64,
) -> Result<bool, StoreError> {
    // First, because it waits for whoever is changing the account, and then sees what they have written: they in turn
    // end the sessions that they find.
    let held = on!(tx, |ex| {
        sqlx::query(
        "update admins set last_login_at = $2 where id = $1 and session_epoch = $3 and status = 'active'"
    )
    .bind(session.admin_id)
    .bind(session.created_at)
    .bind(epoch)
    .execute(ex)
    .await
    .map(|done| done.rows_affected())
    })?;
    if held == 0 {
        return Ok(false);
    }
    on!(tx, |ex| sqlx::query(
        "insert into admin_sessions (id, admin_id, refresh_hash, address, user_agent, created_at, \
         refreshed_at, expires_at) values ($1, $2, $3, $4, $5, $6, $6, $7)",
    )
    .bind(session.id)
    .bind(session.admin_id)
    .bind(&session.refresh_hash)
    .bind(&session.address)
    .bind(&session.user_agent)
    .bind(session.created_at)
    .bind(session.expires_at)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(true)
}

/// Returns a session, ended or not.
///
/// # Errors
///
/// The database refuses.
pub async fn session(store: &Store, id: Uuid) -> Result<Option<SessionRow>, StoreError> {
    let row = on!(read store, |ex| sqlx::query_as(SESSION).bind(id).fetch_optional(ex).await)?;
    Ok(row)
}

/// Returns a session as a transaction sees it.
///
/// # Errors
///
/// The database refuses.
pub async fn session_in(tx: &mut Tx, id: Uuid) -> Result<Option<SessionRow>, StoreError> {
    let row = on!(tx, |ex| sqlx::query_as(SESSION)
        .bind(id)
        .fetch_optional(ex)
        .await)?;
    Ok(row)
}

/// Ends all sessions of an administrator.
///
/// # Errors
///
/// The database refuses.
pub async fn revoke_sessions(
    tx: &mut Tx,
    admin: AdminId,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    on!(tx, |ex| sqlx::query(
        "update admin_sessions set revoked_at = $3, revoke_reason = $2 \
         where admin_id = $1 and revoked_at is null",
    )
    .bind(admin)
    .bind(reason)
    .bind(now)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Replaces the refresh token in force, if it is `old`; returns whether it was.
///
/// # Errors
///
/// The database refuses.
pub async fn rotate_session(
    tx: &mut Tx,
    id: Uuid,
    old: &[u8],
    new: &[u8],
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<bool, StoreError> {
    let changed = on!(tx, |ex| sqlx::query(
        "update admin_sessions set refresh_hash = $3, previous_hash = $2, refreshed_at = $4, \
         expires_at = $5 where id = $1 and refresh_hash = $2 and revoked_at is null \
         and expires_at > $4",
    )
    .bind(id)
    .bind(old)
    .bind(new)
    .bind(now)
    .bind(expires_at)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    Ok(changed == 1)
}

/// Ends a session; returns whether it was open.
///
/// # Errors
///
/// The database refuses.
pub async fn revoke_session(
    tx: &mut Tx,
    id: Uuid,
    reason: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = on!(tx, |ex| sqlx::query(
        "update admin_sessions set revoked_at = $3, revoke_reason = $2 \
         where id = $1 and revoked_at is null",
    )
    .bind(id)
    .bind(reason)
    .bind(now)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    Ok(changed == 1)
}

/// Lists the open sessions of an administrator, the newest first.
///
/// # Errors
///
/// The database refuses.
pub async fn sessions(
    store: &Store,
    admin: AdminId,
    now: Timestamp,
) -> Result<Vec<SessionRow>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select id, admin_id, refresh_hash, address, user_agent, created_at, refreshed_at, \
         expires_at, revoked_at from admin_sessions where admin_id = $1 and revoked_at is null \
         and expires_at > $2 order by created_at desc limit 200",
    )
    .bind(admin)
    .bind(now)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

const fn stale_unless(changed: u64, rev: i64) -> Result<(), StoreError> {
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::StaleRevision {
        what: "administrator",
        expected: rev,
        actual: -1,
    })
}

/// Returns an administrator and keeps others from changing it until the transaction ends.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn get_for_update(tx: &mut Tx, id: AdminId) -> Result<AdminRow, StoreError> {
    if tx.is_postgres() {
        on!(tx, |ex| sqlx::query(
            "update admins set rev = rev where id = $1"
        )
        .bind(id)
        .execute(ex)
        .await
        .map(drop))?;
    }
    get_in(tx, id).await
}

/// Returns how many users an administrator has.
///
/// # Errors
///
/// The database refuses.
pub async fn user_count(tx: &mut Tx, id: AdminId) -> Result<i64, StoreError> {
    Ok(on!(tx, |ex| sqlx::query_scalar(
        "select count(*) from users where admin_id = $1 and deleted_at is null",
    )
    .bind(id)
    .fetch_one(ex)
    .await)?)
}

/// Returns what an administrator's users hold of its quota: each the larger one of the user's quota and of what was
/// used of it, and what nodes reported of users who were gone.
///
/// # Errors
///
/// The database refuses.
pub async fn held_bytes(tx: &mut Tx, id: AdminId) -> Result<i64, StoreError> {
    // Sums beyond the numbers that there are end at the largest.
    const PG: &str = "select cast(least(coalesce(sum(greatest(c.billed - c.base_billed, \
        case when u.deleted_at is null then u.quota_bytes end, 0)), 0), 9223372036854775807) as bigint) \
        from users u join user_counters c on c.user_id = u.id where u.admin_id = $1";
    const SQLITE: &str = "select cast(total(max(c.billed - c.base_billed, \
        coalesce(case when u.deleted_at is null then u.quota_bytes end, 0))) as integer) \
        from users u join user_counters c on c.user_id = u.id where u.admin_id = $1";
    let sql = if tx.is_postgres() { PG } else { SQLITE };
    Ok(on!(tx, |ex| sqlx::query_scalar(sql)
        .bind(id)
        .fetch_one(ex)
        .await)?)
}

/// Adds to what an administrator's users have spent; not a change of the account, which keeps its revision.
pub(super) async fn add_spent(tx: &mut Tx, id: AdminId, bytes: i64) -> Result<(), StoreError> {
    const SQL: &str = "update admins set spent_bytes = case when spent_bytes > 9223372036854775807 - $2 \
                       then 9223372036854775807 else spent_bytes + $2 end where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(bytes)
        .execute(ex)
        .await
        .map(drop))?;
    Ok(())
}
