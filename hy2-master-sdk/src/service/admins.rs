//! Administrators, as owners manage them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::accounts::{check_standing, own_account};
use super::moment::{Moment, SecretText, present};
use super::page::{Page, PageRequest};
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::{Access, Caller, Credential, Operation, Role};
use crate::auth::password;
use crate::domain::AdminId;
use crate::store::admins::{self, AdminRow, NewAdmin};
use crate::store::nodes::check_rev;

/// An administrator as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Admin)]
pub struct AdminView {
    /// Number.
    pub id: i64,
    /// Login name.
    pub username: String,
    /// Role.
    pub role: String,
    /// `active` or `disabled`.
    pub status: String,
    /// Whether a second factor is in force.
    pub totp: bool,
    /// Whether the password has to be changed first.
    pub must_change_password: bool,
    /// Most that the quotas of a reseller's users and `spent_bytes` may add up to.
    pub quota_bytes: Option<i64>,
    /// What users have used for good: in periods that are over, before their quota was started anew by somebody, or
    /// before they were deleted. What present users have used of their present quotas is not in it.
    pub spent_bytes: i64,
    /// Most users of a reseller.
    pub max_users: Option<i64>,
    /// Last login.
    pub last_login_at: Option<Moment>,
    /// Revision, also the `ETag`.
    pub rev: i64,
    /// Made at.
    pub created_at: Moment,
}

impl From<AdminRow> for AdminView {
    fn from(row: AdminRow) -> Self {
        Self {
            id: row.id.0,
            username: row.username,
            role: row.role,
            status: row.status,
            totp: row.totp_enc.is_some(),
            must_change_password: row.must_change_password,
            quota_bytes: row.quota_bytes,
            spent_bytes: row.spent_bytes,
            max_users: row.max_users,
            last_login_at: row.last_login_at.map(Moment),
            rev: row.rev,
            created_at: Moment(row.created_at),
        }
    }
}

/// An administrator to make.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAdmin {
    /// 1 to 64 of lower-case letters, digits and `._@-`.
    pub username: String,
    /// At least 12 characters; has to be changed at the first login.
    pub password: SecretText,
    /// Role.
    pub role: Role,
    /// Most that a reseller's users may use in all: their quotas and what is spent may add up to no more.
    #[serde(default)]
    pub quota_bytes: Option<i64>,
    /// Most users of a reseller.
    #[serde(default)]
    pub max_users: Option<i64>,
}

impl std::fmt::Debug for CreateAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateAdmin")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What changes of an administrator; absent fields stay, `null` clears.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateAdmin {
    /// Role.
    pub role: Option<Role>,
    /// `active` or `disabled`.
    pub status: Option<String>,
    /// Most that a reseller's users may use in all: their quotas and what is spent may add up to no more.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub quota_bytes: Option<Option<i64>>,
    /// Most users of a reseller.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub max_users: Option<Option<i64>>,
    /// A new password, to be changed at the next login; ends all sessions.
    pub password: Option<SecretText>,
    /// `true` removes the second factor of somebody who has lost it.
    pub remove_totp: bool,
}

impl std::fmt::Debug for UpdateAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpdateAdmin")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A secret that is shown once.
#[derive(Debug)]
pub struct Credentials {
    /// Login name.
    pub username: String,
    /// Password.
    pub password: SecretString,
}

impl Service {
    /// Lists administrators.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page, or the store fails.
    pub async fn admins(
        &self,
        _access: Access<'_>,
        page: &PageRequest,
    ) -> Result<Page<AdminRow>, ServiceError> {
        let limit = page.limit()?;
        let after = page.key::<i64>()?.unwrap_or(0);
        let rows = admins::list(self.store(), after, i64::from(limit) + 1).await?;
        Ok(Page::new(rows, limit, |row| row.id.0))
    }

    /// Returns an administrator.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn admin(&self, _access: Access<'_>, id: AdminId) -> Result<AdminRow, ServiceError> {
        Ok(admins::get(self.store(), id).await?)
    }

    /// Makes an administrator.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`], [`ServiceError::Conflict`] if the name is taken.
    pub async fn create_admin(
        &self,
        access: Access<'_>,
        new: CreateAdmin,
    ) -> Result<AdminRow, ServiceError> {
        let mut issues = Vec::new();
        check_username(&mut issues, &new.username);
        if let Err(error) = password::check_rules(&new.password.0) {
            issues.push(FieldIssue::new("password", error.to_string()));
        }
        check_limits(&mut issues, new.quota_bytes, new.max_users);
        if !issues.is_empty() {
            return Err(ServiceError::Invalid(issues));
        }
        let admin = NewAdmin {
            username: new.username,
            password_hash: self.passwords().hash(new.password.0).await?,
            role: new.role,
            must_change_password: true,
            quota_bytes: new.quota_bytes,
            max_users: new.max_users,
        };
        let now = self.now();
        let mut tx = self.store().begin().await?;
        if access.caller().credential != Credential::Host {
            own_account(&mut tx, access, now).await?;
        }
        let id = admins::insert(&mut tx, &admin, now).await?;
        let row = admins::get_in(&mut tx, id).await?;
        record(
            &mut tx,
            access,
            admin_record(None, Some(&row), "admin.created"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Changes an administrator; with role, status or password all their sessions end.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Conflict`] if no active owner would be left, [`ServiceError::Stale`],
    /// [`ServiceError::Invalid`].
    pub async fn update_admin(
        &self,
        access: Access<'_>,
        id: AdminId,
        expected: Option<i64>,
        change: UpdateAdmin,
    ) -> Result<AdminRow, ServiceError> {
        let mut issues = Vec::new();
        let status = change.status.as_deref();
        if status.is_some_and(|status| !matches!(status, "active" | "disabled")) {
            issues.push(FieldIssue::new("status", "must be active or disabled"));
        }
        let limits = (change.quota_bytes.flatten(), change.max_users.flatten());
        check_limits(&mut issues, limits.0, limits.1);
        if !issues.is_empty() {
            return Err(ServiceError::Invalid(issues));
        }
        let hash = match change.password {
            Some(password) => Some(self.passwords().hash(password.0).await?),
            None => None,
        };
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let others = admins::other_owners(&mut tx, id).await?;
        let old = admins::get_for_update(&mut tx, id).await?;
        check_standing(&mut tx, access, now).await?;
        check_rev("administrator", expected, old.rev)?;
        let old_role = role_of(&old)?;
        let role = change.role.unwrap_or(old_role);
        let status = status.unwrap_or(&old.status);
        if others == 0 && (role != Role::Owner || status != "active") {
            return Err(ServiceError::conflict(
                "last_owner",
                "an active owner has to remain",
            ));
        }
        let ends = role != old_role || status != old.status;
        admins::update(
            &mut tx,
            id,
            old.rev,
            role,
            status,
            change.quota_bytes.unwrap_or(old.quota_bytes),
            change.max_users.unwrap_or(old.max_users),
            ends,
            now,
        )
        .await?;
        if let Some(hash) = hash {
            admins::set_password(&mut tx, id, &hash, true, now).await?;
        }
        if change.remove_totp {
            admins::set_totp(&mut tx, id, None, old.totp_last_step, now).await?;
        }
        let row = admins::get_in(&mut tx, id).await?;
        record(
            &mut tx,
            access,
            admin_record(Some(&old), Some(&row), "admin.updated"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Removes an administrator who has no users.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Conflict`] if there are users, or no active owner would be left.
    pub async fn delete_admin(
        &self,
        access: Access<'_>,
        id: AdminId,
        expected: Option<i64>,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let others = admins::other_owners(&mut tx, id).await?;
        let old = admins::get_for_update(&mut tx, id).await?;
        check_rev("administrator", expected, old.rev)?;
        if others == 0 {
            return Err(ServiceError::conflict(
                "last_owner",
                "an active owner has to remain",
            ));
        }
        admins::delete(&mut tx, id, old.rev).await?;
        record(
            &mut tx,
            access,
            admin_record(Some(&old), None, "admin.deleted"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Makes the built-in roles, and the first owner when there is no administrator; the password
    /// is generated and returned this once.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn bootstrap_admins(&self) -> Result<Option<Credentials>, ServiceError> {
        let now = self.now();
        let (credentials, hash) = self.generated("admin").await?;
        let mut tx = self.store().begin().await?;
        admins::ensure_roles(&mut tx, now).await?;
        if admins::count(&mut tx).await? > 0 {
            tx.commit().await?;
            return Ok(None);
        }
        let admin = NewAdmin {
            username: credentials.username.clone(),
            password_hash: hash,
            role: Role::Owner,
            must_change_password: false,
            quota_bytes: None,
            max_users: None,
        };
        let id = admins::insert(&mut tx, &admin, now).await?;
        let row = admins::get_in(&mut tx, id).await?;
        let host = Caller::host();
        let access = host.access(Operation::CreateAdmin)?;
        record(
            &mut tx,
            access,
            admin_record(None, Some(&row), "admin.created"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(Some(credentials))
    }

    /// Gives an administrator a new password on the master's own host, makes them an active owner
    /// and removes the second factor; makes them if they are not there.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn recover_admin(&self, username: &str) -> Result<Credentials, ServiceError> {
        let mut issues = Vec::new();
        check_username(&mut issues, username);
        if !issues.is_empty() {
            return Err(ServiceError::Invalid(issues));
        }
        let now = self.now();
        let (credentials, hash) = self.generated(username).await?;
        let known = admins::find(self.store(), username).await?;
        let mut tx = self.store().begin().await?;
        admins::ensure_roles(&mut tx, now).await?;
        let id = match &known {
            Some(old) => {
                let (quota, users) = (old.quota_bytes, old.max_users);
                let role = Role::Owner;
                admins::update(
                    &mut tx, old.id, old.rev, role, "active", quota, users, true, now,
                )
                .await?;
                admins::set_password(&mut tx, old.id, &hash, false, now).await?;
                admins::set_totp(&mut tx, old.id, None, old.totp_last_step, now).await?;
                old.id
            }
            None => {
                let admin = NewAdmin {
                    username: username.to_owned(),
                    password_hash: hash,
                    role: Role::Owner,
                    must_change_password: false,
                    quota_bytes: None,
                    max_users: None,
                };
                admins::insert(&mut tx, &admin, now).await?
            }
        };
        let row = admins::get_in(&mut tx, id).await?;
        let host = Caller::host();
        let access = host.access(Operation::UpdateAdmin)?;
        let written = admin_record(known.as_ref(), Some(&row), "admin.recovered");
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(credentials)
    }

    async fn generated(&self, username: &str) -> Result<(Credentials, String), ServiceError> {
        let password = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 18]>());
        let password = SecretString::from(password);
        let hash = self.passwords().hash(password.clone()).await?;
        let username = username.to_owned();
        Ok((Credentials { username, password }, hash))
    }
}

fn role_of(row: &AdminRow) -> Result<Role, ServiceError> {
    Role::from_name(&row.role)
        .ok_or_else(|| ServiceError::internal(format!("unknown role {}", row.role)))
}

fn check_username(issues: &mut Vec<FieldIssue>, name: &str) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._@-".contains(c);
    if !(1..=64).contains(&name.len()) || !name.chars().all(allowed) {
        let message = "must be 1 to 64 of lower-case letters, digits and ._@-";
        issues.push(FieldIssue::new("username", message));
    }
}

fn check_limits(issues: &mut Vec<FieldIssue>, quota: Option<i64>, users: Option<i64>) {
    if quota.is_some_and(|quota| quota <= 0) {
        issues.push(FieldIssue::new("quota_bytes", "must be positive"));
    }
    if users.is_some_and(|users| users < 0) {
        issues.push(FieldIssue::new("max_users", "must not be negative"));
    }
}

fn admin_record<'a>(
    before: Option<&AdminRow>,
    after: Option<&AdminRow>,
    topic: &'a str,
) -> Record<'a> {
    let view = |row: &AdminRow| {
        let mut view = serde_json::to_value(AdminView::from(row.clone())).unwrap_or(Value::Null);
        view["session_epoch"] = json!(row.session_epoch);
        view
    };
    Record {
        kind: "admin",
        id: before
            .or(after)
            .map(|row| row.id.to_string())
            .unwrap_or_default(),
        before: before.map(view),
        after: after.map(view),
        owner: None,
        topic,
    }
}
