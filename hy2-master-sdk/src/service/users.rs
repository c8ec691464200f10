//! Users: who may connect, with what, for how long.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::moment::{Moment, SecretText, present};
use super::page::{Page, PageRequest};
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{AdminId, AssignmentSource, NodeId, PlanId, Timestamp, UserId, UserStatus};
use crate::secrets::{Credential, SubscriptionToken, UserSecrets};
use crate::store::assignments::{self, AssignmentRow, NewAssignment};
use crate::store::user_list::{self, UserFilter, UserKey, UserSort};
use crate::store::users::{self, NewUser, UserChange, UserRow};
use crate::store::{Tx, admins};

/// Most users in one batch.
pub const MAX_BATCH: usize = 500;

/// Nodes that one user may be assigned to.
const MAX_NODES: u32 = 1_000;

/// A user as the API shows it. Limits are the user's own: `null` is what the plan says.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = User)]
pub struct UserView {
    /// Number.
    pub id: i64,
    /// UUID, the same on every master and in backups.
    pub uid: Uuid,
    /// Name.
    pub username: String,
    /// Whether and why not the user may connect.
    pub status: String,
    /// Who or what decided the status.
    pub status_reason: String,
    /// Plan.
    pub plan_id: Option<i64>,
    /// Administrator whose user this is.
    pub admin_id: Option<i64>,
    /// When access ends.
    pub expires_at: Option<Moment>,
    /// On hold: how long access lasts from the first connection on, in seconds.
    pub hold_duration_s: Option<i64>,
    /// Bytes in a period.
    pub quota_bytes: Option<i64>,
    /// Billed bytes of this period.
    pub used_bytes: i64,
    /// Bytes ever, from client to target.
    pub tx_bytes: i64,
    /// Bytes ever, from target to client.
    pub rx_bytes: i64,
    /// Devices at once.
    pub max_devices: Option<i64>,
    /// Connections at once.
    pub max_connections: Option<i64>,
    /// Most that the user sends, bytes per second.
    pub up_bytes_per_s: Option<i64>,
    /// Most that the user receives, bytes per second.
    pub down_bytes_per_s: Option<i64>,
    /// Whether the password was chosen: the same on every node.
    pub chosen_password: bool,
    /// Address.
    pub email: Option<String>,
    /// Telegram account.
    pub telegram_id: Option<i64>,
    /// Note.
    pub note: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Last traffic.
    pub online_at: Option<Moment>,
    /// Revision, also the `ETag`.
    pub rev: i64,
    /// Made at.
    pub created_at: Moment,
    /// Changed at.
    pub updated_at: Moment,
}

impl From<UserRow> for UserView {
    fn from(row: UserRow) -> Self {
        Self {
            id: row.id.0,
            uid: row.uid,
            used_bytes: row.used(),
            username: row.username,
            status: row.status.as_str().to_owned(),
            status_reason: row.status_reason,
            plan_id: row.plan_id.map(|id| id.0),
            admin_id: row.admin_id.map(|id| id.0),
            expires_at: row.expires_at.map(Moment),
            hold_duration_s: row.hold_duration_ms.map(|ms| ms / 1_000),
            quota_bytes: row.quota_bytes,
            tx_bytes: row.tx,
            rx_bytes: row.rx,
            max_devices: row.max_devices,
            max_connections: row.max_connections,
            up_bytes_per_s: row.up_bytes_per_s,
            down_bytes_per_s: row.down_bytes_per_s,
            chosen_password: row.credential_enc.is_some(),
            email: row.email,
            telegram_id: row.telegram_id,
            note: row.note,
            tags: row.tags.0,
            online_at: row.online_at.map(Moment),
            rev: row.rev,
            created_at: Moment(row.created_at),
            updated_at: Moment(row.updated_at),
        }
    }
}

/// A user to make.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateUser {
    /// 1 to 64 of letters, digits and `._@-`.
    pub username: String,
    /// Plan.
    pub plan_id: Option<i64>,
    /// When access ends.
    pub expires_at: Option<Moment>,
    /// Access lasts so many seconds from the first connection on.
    pub hold_duration_s: Option<u32>,
    /// Bytes in a period.
    pub quota_bytes: Option<i64>,
    /// Devices at once.
    pub max_devices: Option<i64>,
    /// Connections at once.
    pub max_connections: Option<i64>,
    /// Most that the user sends, bytes per second.
    pub up_bytes_per_s: Option<i64>,
    /// Most that the user receives, bytes per second.
    pub down_bytes_per_s: Option<i64>,
    /// Address.
    pub email: Option<String>,
    /// Telegram account.
    pub telegram_id: Option<i64>,
    /// Note.
    pub note: String,
    /// Tags.
    pub tags: Vec<String>,
    /// A password of one's own choice, the same on every node and hence weaker. Absent: a random
    /// one for each node.
    pub password: Option<SecretText>,
    /// Nodes to serve the user beside those that the assignment task picks.
    pub node_ids: Vec<i64>,
}

impl std::fmt::Debug for CreateUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateUser")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What changes of a user; absent fields stay, `null` clears.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateUser {
    /// New name.
    pub username: Option<String>,
    /// `active` or `disabled`.
    #[schema(value_type = Option<String>)]
    pub status: Option<UserStatus>,
    /// Plan.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub plan_id: Option<Option<i64>>,
    /// When access ends.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<Moment>)]
    pub expires_at: Option<Option<Moment>>,
    /// Bytes in a period.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub quota_bytes: Option<Option<i64>>,
    /// Devices at once.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub max_devices: Option<Option<i64>>,
    /// Connections at once.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub max_connections: Option<Option<i64>>,
    /// Most that the user sends, bytes per second.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub up_bytes_per_s: Option<Option<i64>>,
    /// Most that the user receives, bytes per second.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub down_bytes_per_s: Option<Option<i64>>,
    /// Address.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub email: Option<Option<String>>,
    /// Telegram account.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub telegram_id: Option<Option<i64>>,
    /// Note.
    pub note: Option<String>,
    /// Tags.
    pub tags: Option<Vec<String>>,
}

/// Which users to list.
#[derive(Debug, Clone, Default)]
pub struct ListUsers {
    /// Which page.
    pub page: PageRequest,
    /// Which users. The owner is set by the access.
    pub filter: UserFilter,
    /// In which order.
    pub sort: UserSort,
    /// Backwards.
    pub descending: bool,
}

/// What to do with each user of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchAction {
    /// Let them in again.
    Enable,
    /// Keep them out.
    Disable,
    /// Delete them.
    Delete,
    /// Start their quota anew.
    ResetTraffic,
}

impl Service {
    /// Lists users.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page, or the store fails.
    pub async fn users(
        &self,
        access: Access<'_>,
        mut query: ListUsers,
    ) -> Result<Page<UserRow>, ServiceError> {
        let limit = query.page.limit()?;
        if access.owner().is_some() {
            query.filter.owner = access.owner();
        }
        let after = match query.sort {
            UserSort::Username => query.page.key()?.map(UserKey::Text),
            _ => query.page.key()?.map(|(key, id)| UserKey::Number(key, id)),
        };
        let rows = user_list::list(
            self.store(),
            &query.filter,
            query.sort,
            query.descending,
            after,
            i64::from(limit) + 1,
        )
        .await?;
        Ok(Page::new(rows, limit, |row| match query.sort.key(row) {
            UserKey::Number(key, id) => json!([key, id]),
            UserKey::Text(name) => json!(name),
        }))
    }

    /// Returns a user.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], also of somebody else's.
    pub async fn user(&self, access: Access<'_>, id: UserId) -> Result<UserRow, ServiceError> {
        let row = self.store().user(id).await?;
        reach(access, row)
    }

    /// Makes a user.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`], [`ServiceError::Conflict`] if the name is taken or a reseller's
    /// limits are used up.
    pub async fn create_user(
        &self,
        access: Access<'_>,
        new: CreateUser,
    ) -> Result<UserRow, ServiceError> {
        let now = self.now();
        check_user(&new, "")?;
        let mut tx = self.store().begin().await?;
        let row = self.create_user_in(&mut tx, access, &new, now).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Makes a user in a transaction that makes others too. `new` has been checked.
    pub(super) async fn create_user_in(
        &self,
        tx: &mut Tx,
        access: Access<'_>,
        new: &CreateUser,
        now: Timestamp,
    ) -> Result<UserRow, ServiceError> {
        if let Some(owner) = access.owner() {
            check_reseller(tx, owner, new.quota_bytes).await?;
        }
        let uid = Uuid::new_v4();
        let secrets = UserSecrets::generate(self.vault(), uid).map_err(ServiceError::internal)?;
        let chosen = new
            .password
            .as_ref()
            .map(|password| Credential::chosen(password.0.expose_secret()));
        let on_hold = new.hold_duration_s.is_some();
        let user = NewUser {
            uid,
            username: new.username.clone(),
            admin_id: Some(access.caller().admin).filter(|admin| admin.0 > 0),
            plan_id: new.plan_id.map(PlanId),
            status: if on_hold {
                UserStatus::OnHold
            } else {
                UserStatus::Active
            },
            seed_enc: secrets.seed_enc,
            credential_enc: chosen.as_ref().map(|chosen| chosen.seal(self.vault(), uid)),
            auth_hash: chosen
                .as_ref()
                .map(|chosen| self.fleet_keys().auth_hash(chosen).to_vec()),
            subscription_hash: secrets.subscription_hash,
            subscription_enc: secrets.subscription_enc,
            expires_at: new.expires_at.map(|at| at.0),
            hold_duration_ms: new
                .hold_duration_s
                .map(|seconds| i64::from(seconds) * 1_000),
            hold_deadline: None,
            quota_bytes: new.quota_bytes,
            max_devices: new.max_devices,
            max_connections: new.max_connections,
            up_bytes_per_s: new.up_bytes_per_s,
            down_bytes_per_s: new.down_bytes_per_s,
            home_region_id: None,
            email: new.email.clone(),
            telegram_id: new.telegram_id,
            note: new.note.clone(),
            tags: new.tags.clone(),
        };
        let row = users::create(tx, &user, now).await?;
        if !new.node_ids.is_empty() && access.owner().is_some() {
            return Err(ServiceError::invalid(
                "node_ids",
                "your role does not assign nodes",
            ));
        }
        for (rank, node) in (0_i64..).zip(&new.node_ids) {
            let assignment = NewAssignment {
                user_id: row.id,
                node_id: NodeId(*node),
                rank,
                source: AssignmentSource::Manual,
                score: None,
            };
            assignments::assign(tx, &assignment, now).await?;
        }
        record(
            tx,
            access,
            user_record(None, Some(&row), "user.created"),
            now,
        )
        .await?;
        Ok(row)
    }

    /// Changes a user. Connections end at once if the user may not connect any more.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`], [`ServiceError::Invalid`].
    pub async fn update_user(
        &self,
        access: Access<'_>,
        id: UserId,
        expected: Option<i64>,
        change: UpdateUser,
    ) -> Result<UserRow, ServiceError> {
        check_change(&change)?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = reach(access, users::get_for_update(&mut tx, id).await?)?;
        if let Some(owner) = access.owner() {
            check_reseller_change(&mut tx, owner, &old, &change).await?;
        }
        let row = users::update(&mut tx, id, expected, &to_store(change, &old, now), now).await?;
        record(
            &mut tx,
            access,
            user_record(Some(&old), Some(&row), "user.updated"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Deletes a user; the accounts stay.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`].
    pub async fn delete_user(
        &self,
        access: Access<'_>,
        id: UserId,
        expected: Option<i64>,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        self.delete_user_in(&mut tx, access, id, expected, now)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn delete_user_in(
        &self,
        tx: &mut Tx,
        access: Access<'_>,
        id: UserId,
        expected: Option<i64>,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        reach(access, users::get_for_update(tx, id).await?)?;
        let old = users::delete(tx, id, expected, now).await?;
        record(
            tx,
            access,
            user_record(Some(&old), None, "user.deleted"),
            now,
        )
        .await
    }

    /// Does the same with several users, all or none.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] names the entry that is not found.
    pub async fn batch_users(
        &self,
        access: Access<'_>,
        ids: &[i64],
        action: BatchAction,
    ) -> Result<usize, ServiceError> {
        if ids.is_empty() || ids.len() > MAX_BATCH {
            let message = format!("must have 1 to {MAX_BATCH} entries");
            return Err(ServiceError::invalid("ids", message));
        }
        // In one order everywhere: two batches cannot wait for each other.
        let mut order: Vec<(usize, i64)> = ids.iter().copied().enumerate().collect();
        order.sort_unstable_by_key(|(_, id)| *id);
        order.dedup_by_key(|(_, id)| *id);
        let now = self.now();
        let mut tx = self.store().begin().await?;
        for (at, id) in &order {
            let done = self
                .batch_one(&mut tx, access, UserId(*id), action, now)
                .await;
            done.map_err(|error| match error {
                ServiceError::NotFound(what) => {
                    ServiceError::invalid(format!("ids[{at}]"), format!("there is no such {what}"))
                }
                other => other,
            })?;
        }
        tx.commit().await?;
        Ok(order.len())
    }

    async fn batch_one(
        &self,
        tx: &mut Tx,
        access: Access<'_>,
        id: UserId,
        action: BatchAction,
        now: Timestamp,
    ) -> Result<(), ServiceError> {
        let status = match action {
            BatchAction::Delete => return self.delete_user_in(tx, access, id, None, now).await,
            BatchAction::ResetTraffic => {
                return self.reset_in(tx, access, id, "batch", now).await.map(drop);
            }
            BatchAction::Enable => UserStatus::Active,
            BatchAction::Disable => UserStatus::Disabled,
        };
        let old = reach(access, users::get_for_update(tx, id).await?)?;
        let change = UpdateUser {
            status: Some(status),
            ..UpdateUser::default()
        };
        let row = users::update(tx, id, None, &to_store(change, &old, now), now).await?;
        record(
            tx,
            access,
            user_record(Some(&old), Some(&row), "user.updated"),
            now,
        )
        .await
    }

    /// Starts a user's quota anew.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn reset_user_traffic(
        &self,
        access: Access<'_>,
        id: UserId,
        reason: &str,
    ) -> Result<UserRow, ServiceError> {
        if reason.len() > 200 {
            return Err(ServiceError::invalid(
                "reason",
                "must have at most 200 bytes",
            ));
        }
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let row = self.reset_in(&mut tx, access, id, reason, now).await?;
        tx.commit().await?;
        Ok(row)
    }

    async fn reset_in(
        &self,
        tx: &mut Tx,
        access: Access<'_>,
        id: UserId,
        reason: &str,
        now: Timestamp,
    ) -> Result<UserRow, ServiceError> {
        let old = reach(access, users::get_for_update(tx, id).await?)?;
        let actor = &access.caller().username;
        let row = users::reset_traffic(tx, id, reason, actor, now).await?;
        record(
            tx,
            access,
            user_record(Some(&old), Some(&row), "user.traffic_reset"),
            now,
        )
        .await?;
        Ok(row)
    }

    /// Returns the address of a user's subscription.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn user_subscription(
        &self,
        access: Access<'_>,
        id: UserId,
    ) -> Result<SecretString, ServiceError> {
        let user = self.user(access, id).await?;
        self.subscription_of(&user)
    }

    /// Returns the address of the subscription of a user that the caller reaches.
    pub(crate) fn subscription_of(&self, user: &UserRow) -> Result<SecretString, ServiceError> {
        let token = SubscriptionToken::open(self.vault(), user.uid, &user.subscription_enc)
            .map_err(ServiceError::internal)?;
        Ok(self.subscription_url(token.as_str()).into())
    }

    /// Gives a user a new subscription address; the old one is worth nothing.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn rotate_user_subscription(
        &self,
        access: Access<'_>,
        id: UserId,
    ) -> Result<SecretString, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = reach(access, users::get_for_update(&mut tx, id).await?)?;
        let token = SubscriptionToken::generate().map_err(ServiceError::internal)?;
        let hash = SubscriptionToken::hash(token.as_str());
        let sealed = token.seal(self.vault(), old.uid);
        users::set_subscription(&mut tx, id, &hash, &sealed, now).await?;
        let written = user_record(Some(&old), Some(&old), "user.subscription_rotated");
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(self.subscription_url(token.as_str()).into())
    }

    /// Gives a user new credentials on every node; connections with the old ones end.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn rotate_user_credentials(
        &self,
        access: Access<'_>,
        id: UserId,
    ) -> Result<UserRow, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = reach(access, users::get_for_update(&mut tx, id).await?)?;
        let secrets =
            UserSecrets::generate(self.vault(), old.uid).map_err(ServiceError::internal)?;
        users::set_secrets(&mut tx, id, &secrets.seed_enc, None, None, now).await?;
        let row = users::get(&mut tx, id).await?;
        let written = user_record(Some(&old), Some(&row), "user.credentials_rotated");
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Lists a user's assignments, released ones when asked for.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn user_assignments(
        &self,
        access: Access<'_>,
        id: UserId,
        released: bool,
    ) -> Result<Vec<AssignmentRow>, ServiceError> {
        self.user(access, id).await?;
        Ok(self
            .store()
            .assignments(Some(id), None, released, None, MAX_NODES)
            .await?)
    }

    /// Returns the nodes that serve a user.
    pub(super) async fn nodes_of(&self, id: UserId) -> Result<Vec<NodeId>, ServiceError> {
        let rows = self
            .store()
            .assignments(Some(id), None, false, None, MAX_NODES)
            .await?;
        Ok(rows.into_iter().map(|row| row.node_id).collect())
    }
}

/// Returns the user if the access reaches it; otherwise there is no such user.
fn reach(access: Access<'_>, row: UserRow) -> Result<UserRow, ServiceError> {
    if access.reaches(row.admin_id) {
        Ok(row)
    } else {
        Err(ServiceError::NotFound("user"))
    }
}

fn user_record<'a>(
    before: Option<&UserRow>,
    after: Option<&UserRow>,
    topic: &'a str,
) -> Record<'a> {
    let view =
        |row: &UserRow| serde_json::to_value(UserView::from(row.clone())).unwrap_or(Value::Null);
    let some = before.or(after);
    Record {
        kind: "user",
        id: some.map(|row| row.id.to_string()).unwrap_or_default(),
        before: before.map(view),
        after: after.map(view),
        owner: some.and_then(|row| row.admin_id),
        topic,
    }
}

/// Checks a new user; `at` is the path in front of the fields' names.
pub(super) fn check_user(new: &CreateUser, at: &str) -> Result<(), ServiceError> {
    let mut issues = Vec::new();
    check_name(&mut issues, at, &new.username);
    let limits = [
        ("quota_bytes", new.quota_bytes),
        ("max_devices", new.max_devices),
        ("max_connections", new.max_connections),
        ("up_bytes_per_s", new.up_bytes_per_s),
        ("down_bytes_per_s", new.down_bytes_per_s),
    ];
    for (field, value) in limits {
        check_positive(&mut issues, at, field, value);
    }
    check_texts(
        &mut issues,
        at,
        Some(&new.note),
        Some(&new.tags),
        new.email.as_deref(),
    );
    if new.hold_duration_s == Some(0) {
        issues.push(FieldIssue::new(
            format!("{at}hold_duration_s"),
            "must be positive",
        ));
    }
    if new.node_ids.len() > 64 {
        issues.push(FieldIssue::new(
            format!("{at}node_ids"),
            "must have at most 64 entries",
        ));
    }
    if let Some(password) = &new.password {
        let text = password.0.expose_secret();
        let printable = text.chars().all(|c| c.is_ascii_graphic());
        if !(16..=128).contains(&text.len()) || !printable {
            let message = "must be 16 to 128 printable ASCII characters without spaces";
            issues.push(FieldIssue::new(format!("{at}password"), message));
        }
    }
    if issues.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(issues))
    }
}

fn check_change(change: &UpdateUser) -> Result<(), ServiceError> {
    let mut issues = Vec::new();
    if let Some(name) = &change.username {
        check_name(&mut issues, "", name);
    }
    let limits = [
        ("quota_bytes", change.quota_bytes),
        ("max_devices", change.max_devices),
        ("max_connections", change.max_connections),
        ("up_bytes_per_s", change.up_bytes_per_s),
        ("down_bytes_per_s", change.down_bytes_per_s),
    ];
    for (field, value) in limits {
        check_positive(&mut issues, "", field, value.flatten());
    }
    let email = change.email.as_ref().and_then(Option::as_deref);
    check_texts(
        &mut issues,
        "",
        change.note.as_ref(),
        change.tags.as_ref(),
        email,
    );
    let settable = [UserStatus::Active, UserStatus::Disabled];
    if change
        .status
        .is_some_and(|status| !settable.contains(&status))
    {
        issues.push(FieldIssue::new(
            "status",
            "can be set to active or disabled only",
        ));
    }
    if issues.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(issues))
    }
}

fn check_name(issues: &mut Vec<FieldIssue>, at: &str, name: &str) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
    if !(1..=64).contains(&name.len()) || !name.chars().all(allowed) {
        let message = "must be 1 to 64 of letters, digits and ._@-";
        issues.push(FieldIssue::new(format!("{at}username"), message));
    }
}

fn check_positive(issues: &mut Vec<FieldIssue>, at: &str, field: &str, value: Option<i64>) {
    if value.is_some_and(|value| value <= 0) {
        issues.push(FieldIssue::new(format!("{at}{field}"), "must be positive"));
    }
}

fn check_texts(
    issues: &mut Vec<FieldIssue>,
    at: &str,
    note: Option<&String>,
    tags: Option<&Vec<String>>,
    email: Option<&str>,
) {
    if note.is_some_and(|note| note.len() > 2_000) {
        issues.push(FieldIssue::new(
            format!("{at}note"),
            "must have at most 2000 bytes",
        ));
    }
    if email.is_some_and(|email| email.len() > 254 || !email.contains('@')) {
        issues.push(FieldIssue::new(format!("{at}email"), "is not an address"));
    }
    let bad = |tag: &String| tag.is_empty() || tag.len() > 64;
    if tags.is_some_and(|tags| tags.len() > 32 || tags.iter().any(bad)) {
        let message = "must have at most 32 entries of 1 to 64 bytes";
        issues.push(FieldIssue::new(format!("{at}tags"), message));
    }
}

/// Checks a reseller's limits with the row locked, so that two requests at once count each other.
async fn check_reseller(
    tx: &mut Tx,
    owner: AdminId,
    quota: Option<i64>,
) -> Result<(), ServiceError> {
    let admin = admins::get_for_update(tx, owner).await?;
    let (users, granted) = admins::holdings(tx, owner).await?;
    if admin.max_users.is_some_and(|most| users >= most) {
        return Err(ServiceError::conflict(
            "user_limit",
            "your account may have no more users",
        ));
    }
    check_granted(&admin, granted, quota)
}

async fn check_reseller_change(
    tx: &mut Tx,
    owner: AdminId,
    old: &UserRow,
    change: &UpdateUser,
) -> Result<(), ServiceError> {
    let Some(quota) = change.quota_bytes.filter(|quota| *quota != old.quota_bytes) else {
        return Ok(());
    };
    let admin = admins::get_for_update(tx, owner).await?;
    let (_, granted) = admins::holdings(tx, owner).await?;
    check_granted(&admin, granted - old.quota_bytes.unwrap_or(0), quota)
}

fn check_granted(
    admin: &admins::AdminRow,
    granted: i64,
    quota: Option<i64>,
) -> Result<(), ServiceError> {
    let Some(most) = admin.quota_bytes else {
        return Ok(());
    };
    let Some(quota) = quota else {
        return Err(ServiceError::invalid(
            "quota_bytes",
            "your users need a quota",
        ));
    };
    if granted.saturating_add(quota) > most {
        let detail = "the quotas of your users would exceed that of your account";
        return Err(ServiceError::conflict("quota_limit", detail));
    }
    Ok(())
}

fn to_store(change: UpdateUser, old: &UserRow, now: Timestamp) -> UserChange {
    let expires_at = change.expires_at.map(|at| at.map(|at| at.0));
    let end = expires_at.unwrap_or(old.expires_at);
    let over = end.is_some_and(|end| end <= now);
    // A later end lets an expired user in again; a larger quota is judged by the quota task.
    let status = match (change.status, old.status) {
        (None, UserStatus::Expired) if expires_at.is_some() && !over => Some(UserStatus::Active),
        (Some(UserStatus::Active), _) if over => Some(UserStatus::Expired),
        (status, _) => status,
    };
    UserChange {
        username: change.username,
        admin_id: None,
        plan_id: change.plan_id.map(|plan| plan.map(PlanId)),
        status_reason: status.map(|_| String::new()),
        status,
        expires_at,
        quota_bytes: change.quota_bytes,
        max_devices: change.max_devices,
        max_connections: change.max_connections,
        up_bytes_per_s: change.up_bytes_per_s,
        down_bytes_per_s: change.down_bytes_per_s,
        home_region_id: None,
        email: change.email,
        telegram_id: change.telegram_id,
        note: change.note,
        tags: change.tags,
    }
}
