//! Users: who may connect, with what, for how long.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

use super::moment::Moment;
use super::page::{Page, PageRequest};
use super::regions::check_region;
use super::user_rules::{
    NEVER_STARTS, check_change, check_new_rates, check_reseller_plan, check_reseller_quota,
    check_reseller_resets, check_reseller_room, check_reseller_status, check_reseller_user,
    check_user, to_store,
};
pub use super::user_view::{BatchAction, CreateUser, UpdateUser, UserView};
use super::{Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{AssignmentSource, NodeId, PlanId, RegionId, Timestamp, UserId, UserStatus};
use crate::secrets::{Credential, SubscriptionToken, UserSecrets};
use crate::store::assignments::{self, AssignmentRow, NewAssignment};
use crate::store::plans::{self, PlanRow};
use crate::store::user_list::{self, UserFilter, UserKey, UserSort};
use crate::store::users::{self, NewUser, UserRow};
use crate::store::{StoreError, Tx};

/// Most users in one batch.
pub const MAX_BATCH: usize = 500;

/// Nodes that one user may be assigned to.
const MAX_NODES: u32 = 1_000;

/// Returns the plan that somebody is to be given.
async fn plan_of(tx: &mut Tx, id: i64) -> Result<PlanRow, ServiceError> {
    match plans::get_in(tx, PlanId(id)).await {
        Err(StoreError::NotFound(_)) => {
            Err(ServiceError::invalid("plan_id", "there is no such plan"))
        }
        found => {
            let plan = found?;
            if plan.archived_at.is_some() {
                let message = "the plan is archived: only who has it keeps it";
                return Err(ServiceError::invalid("plan_id", message));
            }
            Ok(plan)
        }
    }
}

/// What a user brings who was one elsewhere.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Why the user is made disabled.
    pub(super) disabled: Option<String>,
    /// Billed bytes used of the quota in the present period.
    pub(super) used: i64,
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
        let past = Past::default();
        let row = self
            .create_user_in(&mut tx, access, &new, &past, now)
            .await?;
        if let Some(owner) = access.owner() {
            check_reseller_room(&mut tx, owner).await?;
        }
        tx.commit().await?;
        Ok(row)
    }

    /// Makes a user in a transaction that makes others too. `new` has been checked; whether a reseller may have so many is
    /// checked after the last one.
    pub(super) async fn create_user_in(
        &self,
        tx: &mut Tx,
        access: Access<'_>,
        new: &CreateUser,
        past: &Past,
        now: Timestamp,
    ) -> Result<UserRow, ServiceError> {
        let plan = match new.plan_id {
            Some(plan) => Some(plan_of(tx, plan).await?),
            None => None,
        };
        if let Some(owner) = access.owner() {
            check_reseller_user(tx, owner, new.quota_bytes, plan.as_ref()).await?;
        }
        let end = plan.and_then(|plan| plan.end(now));
        check_region(tx, "home_region_id", new.home_region_id).await?;
        let uid = Uuid::new_v4();
        let secrets = UserSecrets::generate(self.vault(), uid).map_err(ServiceError::internal)?;
        let chosen = new
            .password
            .as_ref()
            .map(|password| Credential::chosen(password.0.expose_secret()));
        let on_hold = new.hold_duration_s.is_some();
        if on_hold && new.expires_at.is_some_and(|at| at.0 <= now) {
            return Err(ServiceError::invalid("expires_at", NEVER_STARTS));
        }
        let user = NewUser {
            uid,
            username: new.username.clone(),
            admin_id: Some(access.caller().admin).filter(|admin| admin.0 > 0),
            plan_id: new.plan_id.map(PlanId),
            status: match past.disabled {
                Some(_) => UserStatus::Disabled,
                None if on_hold => UserStatus::OnHold,
                None => UserStatus::Active,
            },
            seed_enc: secrets.seed_enc,
            credential_enc: chosen.as_ref().map(|chosen| chosen.seal(self.vault(), uid)),
            auth_hash: chosen
                .as_ref()
                .map(|chosen| self.fleet_keys().auth_hash(chosen).to_vec()),
            subscription_hash: secrets.subscription_hash,
            subscription_enc: secrets.subscription_enc,
            expires_at: match new.expires_at {
                Some(at) => Some(at.0),
                // The end of a hold begins with its start.
                None => end.filter(|_| !on_hold),
            },
            hold_duration_ms: new
                .hold_duration_s
                .map(|seconds| i64::from(seconds) * 1_000),
            hold_deadline: None,
            quota_bytes: new.quota_bytes,
            max_devices: new.max_devices,
            max_connections: new.max_connections,
            up_bytes_per_s: new.up_bytes_per_s,
            down_bytes_per_s: new.down_bytes_per_s,
            home_region_id: new.home_region_id.map(RegionId),
            email: new.email.clone(),
            telegram_id: new.telegram_id,
            note: new.note.clone(),
            tags: new.tags.clone(),
        };
        let mut row = users::create(tx, &user, now).await?;
        if past.disabled.is_some() || past.used > 0 {
            let reason = past.disabled.as_deref().unwrap_or_default();
            row = users::set_past(tx, row.id, reason, past.used).await?;
        }
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
            assignments::assign(tx, &assignment, now)
                .await
                .map_err(|error| match error {
                    StoreError::NotFound(_) | StoreError::Reference(_) => {
                        let reason = format!("there is no node {node}");
                        ServiceError::invalid("node_ids", reason)
                    }
                    error => error.into(),
                })?;
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
        mut change: UpdateUser,
    ) -> Result<UserRow, ServiceError> {
        check_change(&change)?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = reach(access, users::get_for_update(&mut tx, id).await?)?;
        check_new_rates(&change, &old)?;
        if access.owner().is_some() {
            check_reseller_status(&old, change.status)?;
        }
        if let Some(Some(plan)) = change.plan_id
            && old.plan_id != Some(PlanId(plan))
        {
            let plan = plan_of(&mut tx, plan).await?;
            if let Some(owner) = access.owner() {
                check_reseller_plan(&mut tx, owner, &plan).await?;
            }
            let is_free = change.expires_at.is_none() && !old.waits();
            // An end goes with the plan that it came from, as where a plan follows another.
            let goes = match old.plan_id {
                Some(old) => plans::get_in(&mut tx, old).await?.duration_days.is_some(),
                None => false,
            };
            if is_free && (plan.duration_days.is_some() || goes) {
                change.expires_at = Some(plan.end(now).map(Moment));
            }
        }
        check_region(&mut tx, "home_region_id", change.home_region_id.flatten()).await?;
        let row = users::update(
            &mut tx,
            id,
            expected,
            &to_store(change, &old, access, now)?,
            now,
        )
        .await?;
        if let Some(owner) = access.owner() {
            check_reseller_quota(&mut tx, owner, &old, &row).await?;
        }
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
        let all: Vec<_> = order.iter().map(|(_, id)| UserId(*id)).collect();
        users::lock(&mut tx, &all).await?;
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
        if let (BatchAction::ResetTraffic, Some(owner)) = (action, access.owner()) {
            check_reseller_resets(&mut tx, owner).await?;
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
        if access.owner().is_some() {
            check_reseller_status(&old, Some(status))?;
        }
        let change = UpdateUser {
            status: Some(status),
            ..UpdateUser::default()
        };
        let row = users::update(tx, id, None, &to_store(change, &old, access, now)?, now).await?;
        record(
            tx,
            access,
            user_record(Some(&old), Some(&row), "user.updated"),
            now,
        )
        .await
    }

    /// Starts a user's quota anew. What was used of it is spent of the quota that the user's administrator has.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Conflict`] if a reseller's own quota has no room for it.
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
        if let Some(owner) = access.owner() {
            check_reseller_resets(&mut tx, owner).await?;
        }
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
