//! Plans.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::moment::{Moment, present};
use super::page::{Page, PageRequest};
use super::user_rules::check_rates;
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{PlanId, QuotaPeriod, Timestamp};
use crate::store::nodes::check_rev;
use crate::store::plans::{self, PlanRow};
use crate::store::{StoreError, Tx};

/// Most days of a plan, a hundred years: whatever is reckoned with it is a date that everybody can read.
const MAX_DURATION_DAYS: i64 = 36_500;

/// A plan as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Plan)]
pub struct PlanView {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Bytes in a period.
    pub quota_bytes: Option<i64>,
    /// `none`, `day`, `week`, `month`, `month_rolling` or `year`.
    pub period: String,
    /// How long a user's access lasts.
    pub duration_days: Option<i64>,
    /// Devices at once.
    pub max_devices: Option<i64>,
    /// Connections at once.
    pub max_connections: Option<i64>,
    /// Most that a user sends, bytes per second.
    pub up_bytes_per_s: Option<i64>,
    /// Most that a user receives, bytes per second.
    pub down_bytes_per_s: Option<i64>,
    /// Nodes that the assignment task gives a user.
    pub nodes_per_user: i64,
    /// Plan that follows.
    pub next_plan_id: Option<i64>,
    /// Since when it is not offered any more.
    pub archived_at: Option<Moment>,
    /// Revision, also the `ETag`.
    pub rev: i64,
    /// Made at.
    pub created_at: Moment,
    /// Changed at.
    pub updated_at: Moment,
}

impl From<PlanRow> for PlanView {
    fn from(row: PlanRow) -> Self {
        Self {
            id: row.id.0,
            name: row.name,
            quota_bytes: row.quota_bytes,
            period: row.period.as_str().to_owned(),
            duration_days: row.duration_days,
            max_devices: row.max_devices,
            max_connections: row.max_connections,
            up_bytes_per_s: row.up_bytes_per_s,
            down_bytes_per_s: row.down_bytes_per_s,
            nodes_per_user: row.nodes_per_user,
            next_plan_id: row.next_plan_id.map(|id| id.0),
            archived_at: row.archived_at.map(Moment),
            rev: row.rev,
            created_at: Moment(row.created_at),
            updated_at: Moment(row.updated_at),
        }
    }
}

/// A plan to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePlan {
    /// 1 to 64 bytes.
    pub name: String,
    /// Bytes in a period.
    #[serde(default)]
    pub quota_bytes: Option<i64>,
    /// When the quota starts anew.
    #[serde(default = "never")]
    #[schema(value_type = String, default = "none")]
    pub period: QuotaPeriod,
    /// How many days the access of a user lasts who is given the plan, if no end of the user's own is set; 1 to 36500.
    /// Absent: who comes from a plan that has some has no end any more, also where this plan follows that one.
    #[serde(default)]
    pub duration_days: Option<i64>,
    /// Devices at once.
    #[serde(default)]
    pub max_devices: Option<i64>,
    /// Connections at once.
    #[serde(default)]
    pub max_connections: Option<i64>,
    /// Most that a user sends, bytes per second; 1024 at least.
    #[serde(default)]
    pub up_bytes_per_s: Option<i64>,
    /// Most that a user receives, bytes per second; 1024 at least.
    #[serde(default)]
    pub down_bytes_per_s: Option<i64>,
    /// Nodes that the assignment task gives a user, 1 to 64.
    #[serde(default = "three")]
    #[schema(default = 3)]
    pub nodes_per_user: i64,
    /// Plan that follows when a user's time is over; the quota starts anew.
    #[serde(default)]
    pub next_plan_id: Option<i64>,
}

const fn never() -> QuotaPeriod {
    QuotaPeriod::None
}

const fn three() -> i64 {
    3
}

/// What changes of a plan; absent fields stay, `null` clears.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdatePlan {
    /// Name.
    pub name: Option<String>,
    /// Bytes in a period.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub quota_bytes: Option<Option<i64>>,
    /// When the quota starts anew.
    #[schema(value_type = Option<String>)]
    pub period: Option<QuotaPeriod>,
    /// How many days access lasts, 1 to 36500, of users who are given the plan from now on.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub duration_days: Option<Option<i64>>,
    /// Devices at once.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub max_devices: Option<Option<i64>>,
    /// Connections at once.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub max_connections: Option<Option<i64>>,
    /// Most that a user sends, bytes per second; 1024 at least.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub up_bytes_per_s: Option<Option<i64>>,
    /// Most that a user receives, bytes per second; 1024 at least.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub down_bytes_per_s: Option<Option<i64>>,
    /// Nodes that the assignment task gives a user.
    pub nodes_per_user: Option<i64>,
    /// Plan that follows when a user's time is over; the quota starts anew.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub next_plan_id: Option<Option<i64>>,
    /// Whether it is offered no more: who has it keeps it, nobody else is given it but by `next_plan_id`.
    pub archived: Option<bool>,
}

impl Service {
    /// Lists plans, archived ones when asked for.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page, or the store fails.
    pub async fn plans(
        &self,
        _access: Access<'_>,
        page: &PageRequest,
        archived: bool,
    ) -> Result<Page<PlanRow>, ServiceError> {
        let limit = page.limit()?;
        let after = page.key::<i64>()?.unwrap_or(0);
        let rows = plans::list(self.store(), archived, after, i64::from(limit) + 1).await?;
        Ok(Page::new(rows, limit, |row| row.id.0))
    }

    /// Returns a plan.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn plan(&self, _access: Access<'_>, id: PlanId) -> Result<PlanRow, ServiceError> {
        Ok(plans::get(self.store(), id).await?)
    }

    /// Makes a plan.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`], [`ServiceError::Conflict`] if the name is taken.
    pub async fn create_plan(
        &self,
        access: Access<'_>,
        new: CreatePlan,
    ) -> Result<PlanRow, ServiceError> {
        let now = self.now();
        let plan = PlanRow {
            id: PlanId(0),
            name: new.name,
            quota_bytes: new.quota_bytes,
            period: new.period,
            duration_days: new.duration_days,
            max_devices: new.max_devices,
            max_connections: new.max_connections,
            up_bytes_per_s: new.up_bytes_per_s,
            down_bytes_per_s: new.down_bytes_per_s,
            nodes_per_user: new.nodes_per_user,
            next_plan_id: new.next_plan_id.map(PlanId),
            archived_at: None,
            rev: 0,
            created_at: now,
            updated_at: now,
        };
        check(&plan, None)?;
        let mut tx = self.store().begin().await?;
        check_next(&mut tx, plan.next_plan_id).await?;
        let row = plans::create(&mut tx, &plan, now).await?;
        record(
            &mut tx,
            access,
            plan_record(None, Some(&row), "plan.created"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Changes a plan; the limits of its users change at once.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`], [`ServiceError::Invalid`].
    pub async fn update_plan(
        &self,
        access: Access<'_>,
        id: PlanId,
        expected: Option<i64>,
        change: UpdatePlan,
    ) -> Result<PlanRow, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = plans::get_in(&mut tx, id).await?;
        check_rev("plan", expected, old.rev)?;
        let plan = changed(&old, change, now);
        check(&plan, Some(&old))?;
        check_next(&mut tx, plan.next_plan_id).await?;
        let row = plans::update(&mut tx, &plan, now).await?;
        record(
            &mut tx,
            access,
            plan_record(Some(&old), Some(&row), "plan.updated"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Removes a plan that nobody has.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Conflict`] if somebody has it.
    pub async fn delete_plan(
        &self,
        access: Access<'_>,
        id: PlanId,
        expected: Option<i64>,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let old = plans::get_in(&mut tx, id).await?;
        check_rev("plan", expected, old.rev)?;
        plans::delete(&mut tx, id, old.rev).await?;
        record(
            &mut tx,
            access,
            plan_record(Some(&old), None, "plan.deleted"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }
}

fn changed(old: &PlanRow, change: UpdatePlan, now: Timestamp) -> PlanRow {
    PlanRow {
        id: old.id,
        name: change.name.unwrap_or_else(|| old.name.clone()),
        quota_bytes: change.quota_bytes.unwrap_or(old.quota_bytes),
        period: change.period.unwrap_or(old.period),
        duration_days: change.duration_days.unwrap_or(old.duration_days),
        max_devices: change.max_devices.unwrap_or(old.max_devices),
        max_connections: change.max_connections.unwrap_or(old.max_connections),
        up_bytes_per_s: change.up_bytes_per_s.unwrap_or(old.up_bytes_per_s),
        down_bytes_per_s: change.down_bytes_per_s.unwrap_or(old.down_bytes_per_s),
        nodes_per_user: change.nodes_per_user.unwrap_or(old.nodes_per_user),
        next_plan_id: change
            .next_plan_id
            .map_or(old.next_plan_id, |id| id.map(PlanId)),
        archived_at: match change.archived {
            None => old.archived_at,
            Some(false) => None,
            Some(true) => old.archived_at.or(Some(now)),
        },
        rev: old.rev,
        created_at: old.created_at,
        updated_at: now,
    }
}

/// Fails unless the plan that follows exists.
async fn check_next(tx: &mut Tx, next: Option<PlanId>) -> Result<(), ServiceError> {
    let Some(next) = next else {
        return Ok(());
    };
    match plans::get_in(tx, next).await {
        Err(StoreError::NotFound(_)) => Err(ServiceError::invalid(
            "next_plan_id",
            "there is no such plan",
        )),
        found => Ok(found.map(drop)?),
    }
}

/// Checks a plan; `old` is as it was.
fn check(plan: &PlanRow, old: Option<&PlanRow>) -> Result<(), ServiceError> {
    let mut issues = Vec::new();
    if !(1..=64).contains(&plan.name.len()) {
        issues.push(FieldIssue::new("name", "must have 1 to 64 bytes"));
    }
    let limits = [
        ("quota_bytes", plan.quota_bytes),
        ("duration_days", plan.duration_days),
        ("max_devices", plan.max_devices),
        ("max_connections", plan.max_connections),
        ("up_bytes_per_s", plan.up_bytes_per_s),
        ("down_bytes_per_s", plan.down_bytes_per_s),
    ];
    for (field, value) in limits {
        if value.is_some_and(|value| value <= 0) {
            issues.push(FieldIssue::new(field, "must be positive"));
        }
    }
    let rates = |plan: &PlanRow| [plan.up_bytes_per_s, plan.down_bytes_per_s];
    check_rates(&mut issues, "", rates(plan), old.map_or([None; 2], rates));
    let days = plan.duration_days;
    if days.is_some_and(|days| days > MAX_DURATION_DAYS) {
        let message = format!("must be at most {MAX_DURATION_DAYS}; null for no end");
        issues.push(FieldIssue::new("duration_days", message));
    }
    if !(1..=64).contains(&plan.nodes_per_user) {
        issues.push(FieldIssue::new(
            "nodes_per_user",
            "must be between 1 and 64",
        ));
    }
    if issues.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(issues))
    }
}

fn plan_record<'a>(
    before: Option<&PlanRow>,
    after: Option<&PlanRow>,
    topic: &'a str,
) -> Record<'a> {
    let view =
        |row: &PlanRow| serde_json::to_value(PlanView::from(row.clone())).unwrap_or(Value::Null);
    Record {
        kind: "plan",
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
