//! What holds of every user, and of a reseller's.

use secrecy::ExposeSecret;

use super::moment::Moment;
use super::user_view::{CreateUser, UpdateUser};
use super::{FieldIssue, ServiceError};
use crate::auth::access::Access;
use crate::domain::{AdminId, PlanId, QuotaPeriod, RegionId, Timestamp, UserStatus};
use crate::store::due::TIME_IS_OVER;
use crate::store::plans::PlanRow;
use crate::store::users::{UserChange, UserRow};
use crate::store::{Tx, admins};

/// Most seconds of a hold: 36,500 days, as of a plan.
const MAX_HOLD_S: u32 = 36_500 * 86_400;

/// Lowest limit of a rate, in bytes per second, as NodeManager has it: less moves nothing useful.
const MIN_RATE: i64 = 1_024;

/// Why a user is disabled whom no reseller lets in again.
const BY_OPERATOR: &str = "an operator disabled this user";

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
    check_rates(
        &mut issues,
        at,
        [new.up_bytes_per_s, new.down_bytes_per_s],
        [None; 2],
    );
    check_texts(
        &mut issues,
        at,
        Some(&new.note),
        Some(&new.tags),
        new.email.as_deref(),
    );
    let in_bounds = |seconds: &u32| (1..=MAX_HOLD_S).contains(seconds);
    if !new.hold_duration_s.as_ref().is_none_or(in_bounds) {
        issues.push(FieldIssue::new(
            format!("{at}hold_duration_s"),
            format!("must be between 1 and {MAX_HOLD_S} (36500 days)"),
        ));
    }
    check_end(&mut issues, at, new.expires_at);
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

pub(super) fn check_change(change: &UpdateUser) -> Result<(), ServiceError> {
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
    check_end(&mut issues, "", change.expires_at.flatten());
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

/// Checks limits of rates, up and down, that are not as they were: those from before there was a lowest one stay.
pub(super) fn check_rates(
    issues: &mut Vec<FieldIssue>,
    at: &str,
    new: [Option<i64>; 2],
    old: [Option<i64>; 2],
) {
    let fields = ["up_bytes_per_s", "down_bytes_per_s"];
    for (field, (new, old)) in fields.into_iter().zip(new.into_iter().zip(old)) {
        if new != old && new.is_some_and(|rate| (1..MIN_RATE).contains(&rate)) {
            let message = format!("must be at least {MIN_RATE}: less moves nothing useful");
            issues.push(FieldIssue::new(format!("{at}{field}"), message));
        }
    }
}

/// Checks the limits of rates that a user is given.
pub(super) fn check_new_rates(change: &UpdateUser, old: &UserRow) -> Result<(), ServiceError> {
    let mut issues = Vec::new();
    check_rates(
        &mut issues,
        "",
        [
            change.up_bytes_per_s.flatten(),
            change.down_bytes_per_s.flatten(),
        ],
        [old.up_bytes_per_s, old.down_bytes_per_s],
    );
    if issues.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(issues))
    }
}

/// Not every way in reads RFC 3339: contracts and foreign exports count from 1970.
fn check_end(issues: &mut Vec<FieldIssue>, at: &str, end: Option<Moment>) {
    if end.is_some_and(|end| !end.0.is_rfc_3339()) {
        let message = "must be between the years 0 and 9999";
        issues.push(FieldIssue::new(format!("{at}expires_at"), message));
    }
}

fn check_texts(
    issues: &mut Vec<FieldIssue>,
    at: &str,
    note: Option<&String>,
    tags: Option<&Vec<String>>,
    email: Option<&str>,
) {
    // REST and AdminService let none in; an import has texts within its text.
    let has_nul = |text: &String| text.contains('\0');
    let with_nul = [
        ("note", note.is_some_and(has_nul)),
        ("tags", tags.is_some_and(|tags| tags.iter().any(has_nul))),
        ("email", email.is_some_and(|email| email.contains('\0'))),
    ];
    for (field, _) in with_nul.iter().filter(|(_, found)| *found) {
        let path = format!("{at}{field}");
        issues.push(FieldIssue::new(path, "must not contain NUL"));
    }
    if note.is_some_and(|note| note.len() > 2_000) {
        issues.push(FieldIssue::new(
            format!("{at}note"),
            "must have at most 2000 bytes",
        ));
    }
    let is_address = |email: &str| {
        email.len() <= 254 && email.contains('@') && !email.contains(char::is_whitespace)
    };
    if email.is_some_and(|email| !is_address(email)) {
        issues.push(FieldIssue::new(format!("{at}email"), "is not an address"));
    }
    let bad = |tag: &String| tag.is_empty() || tag.len() > 64;
    if tags.is_some_and(|tags| tags.len() > 32 || tags.iter().any(bad)) {
        let message = "must have at most 32 entries of 1 to 64 bytes";
        issues.push(FieldIssue::new(format!("{at}tags"), message));
    }
}

/// Checks a user whom a reseller makes: what holds of each alone.
pub(super) async fn check_reseller_user(
    tx: &mut Tx,
    owner: AdminId,
    quota: Option<i64>,
    plan: Option<&PlanRow>,
) -> Result<(), ServiceError> {
    let admin = admins::get_in(tx, owner).await?;
    check_plan(&admin, plan)?;
    check_has_quota(&admin, quota)
}

/// Checks that what a reseller has made in this transaction is within its limits. After the last of it, so that the
/// reseller's row is locked after those of users and nodes, as everybody locks them; two requests at once count each
/// other.
pub(super) async fn check_reseller_room(tx: &mut Tx, owner: AdminId) -> Result<(), ServiceError> {
    let admin = admins::get_for_update(tx, owner).await?;
    if let Some(most) = admin.max_users
        && admins::user_count(tx, owner).await? > most
    {
        return Err(ServiceError::conflict(
            "user_limit",
            "your account may have no more users",
        ));
    }
    check_room(tx, &admin).await
}

/// Checks the quota that a reseller has given a user in this transaction.
pub(super) async fn check_reseller_quota(
    tx: &mut Tx,
    owner: AdminId,
    old: &UserRow,
    new: &UserRow,
) -> Result<(), ServiceError> {
    if new.quota_bytes == old.quota_bytes {
        return Ok(());
    }
    let admin = admins::get_for_update(tx, owner).await?;
    // Less is always possible, and what was used stays used, however small the quota becomes.
    let held = |row: &UserRow| row.quota_bytes.unwrap_or(0).max(old.used());
    check_has_quota(&admin, new.quota_bytes)?;
    match held(new) > held(old) {
        true => check_room(tx, &admin).await,
        false => Ok(()),
    }
}

/// Checks the plan that a reseller gives somebody.
pub(super) async fn check_reseller_plan(
    tx: &mut Tx,
    owner: AdminId,
    plan: &PlanRow,
) -> Result<(), ServiceError> {
    check_plan(&admins::get_in(tx, owner).await?, Some(plan))
}

/// Checks what a reseller set back in this transaction: it is spent, and their quotas are there once more.
pub(super) async fn check_reseller_resets(tx: &mut Tx, owner: AdminId) -> Result<(), ServiceError> {
    if tx.spent(owner) == 0 {
        return Ok(());
    }
    let admin = admins::get_for_update(tx, owner).await?;
    let Some(most) = admin.quota_bytes else {
        return Ok(());
    };
    if total(tx, &admin).await? > most {
        let detail = "what your users have used is spent; with their quotas anew it would exceed that of your account";
        return Err(ServiceError::conflict("quota_limit", detail));
    }
    Ok(())
}

/// Leaves users whom an operator disabled to operators.
pub(super) fn check_reseller_status(
    old: &UserRow,
    status: Option<UserStatus>,
) -> Result<(), ServiceError> {
    let is_kept = old.status == UserStatus::Disabled && old.status_reason == BY_OPERATOR;
    if is_kept && status.is_some_and(|status| status != UserStatus::Disabled) {
        let detail = "an operator disabled this user; only an operator can let it in again";
        return Err(ServiceError::conflict("disabled_by_operator", detail));
    }
    Ok(())
}

/// Refuses a quota that starts anew by itself to resellers who have one.
fn check_plan(admin: &admins::AdminRow, plan: Option<&PlanRow>) -> Result<(), ServiceError> {
    let renews = |plan: &PlanRow| plan.period != QuotaPeriod::None || plan.next_plan_id.is_some();
    if admin.quota_bytes.is_some() && plan.is_some_and(renews) {
        return Err(ServiceError::invalid(
            "plan_id",
            "your users cannot have a plan whose quota starts anew, by its period or with the next plan",
        ));
    }
    Ok(())
}

fn check_has_quota(admin: &admins::AdminRow, quota: Option<i64>) -> Result<(), ServiceError> {
    match admin.quota_bytes.is_some() && quota.is_none() {
        true => Err(ServiceError::invalid(
            "quota_bytes",
            "your users need a quota",
        )),
        false => Ok(()),
    }
}

/// Checks that a reseller's quota has room for what its users have by now.
async fn check_room(tx: &mut Tx, admin: &admins::AdminRow) -> Result<(), ServiceError> {
    let Some(most) = admin.quota_bytes else {
        return Ok(());
    };
    if total(tx, admin).await? > most {
        let detail =
            "the quotas of your users and what was spent before would exceed that of your account";
        return Err(ServiceError::conflict("quota_limit", detail));
    }
    Ok(())
}

/// Returns what is taken of a reseller's quota: what is spent, and what users hold.
async fn total(tx: &mut Tx, admin: &admins::AdminRow) -> Result<i64, ServiceError> {
    let held = admins::held_bytes(tx, admin.id).await?;
    let spent = admin.spent_bytes.saturating_add(tx.spent(admin.id));
    Ok(held.saturating_add(spent))
}

/// Why a user on hold has no end in the past.
pub(super) const NEVER_STARTS: &str =
    "must be in the future: the user is on hold, and would never start";

/// Turns what was asked for into what changes in the store.
///
/// # Errors
///
/// [`ServiceError::Invalid`] of `expires_at` if a user on hold would never start.
pub(super) fn to_store(
    change: UpdateUser,
    old: &UserRow,
    access: Access<'_>,
    now: Timestamp,
) -> Result<UserChange, ServiceError> {
    let expires_at = change.expires_at.map(|at| at.map(|at| at.0));
    let end = expires_at.unwrap_or(old.expires_at);
    let over = end.is_some_and(|end| end <= now);
    // Nodes let nobody in past the end, and a hold starts with the first connection.
    if over && expires_at.is_some() && change.status.is_none() && old.status == UserStatus::OnHold {
        return Err(ServiceError::invalid("expires_at", NEVER_STARTS));
    }
    // A later end lets an expired user in again; a larger quota is judged by the quota task.
    let status = match (change.status, old.status) {
        (None, UserStatus::Expired) if expires_at.is_some() && !over => Some(UserStatus::Active),
        (Some(UserStatus::Active), _) if over => Some(UserStatus::Expired),
        // Who is ended by hand stays so: the plan's successor follows an end that came by itself.
        (None, UserStatus::Active | UserStatus::Limited) if expires_at.is_some() && over => {
            Some(UserStatus::Expired)
        }
        (status, _) => status,
    };
    // Whose hold has not begun is on hold again: active, they would have no end.
    let status = match status {
        Some(UserStatus::Active) if old.waits() => Some(UserStatus::OnHold),
        status => status,
    };
    Ok(UserChange {
        username: change.username,
        admin_id: None,
        plan_id: change.plan_id.map(|plan| plan.map(PlanId)),
        status_reason: status.map(|status| match status {
            UserStatus::Expired => TIME_IS_OVER.to_owned(),
            UserStatus::Disabled if access.owner().is_none() => BY_OPERATOR.to_owned(),
            // A reseller's repetition takes nothing back.
            UserStatus::Disabled if old.status == UserStatus::Disabled => old.status_reason.clone(),
            _ => String::new(),
        }),
        status,
        expires_at,
        quota_bytes: change.quota_bytes,
        max_devices: change.max_devices,
        max_connections: change.max_connections,
        up_bytes_per_s: change.up_bytes_per_s,
        down_bytes_per_s: change.down_bytes_per_s,
        home_region_id: change.home_region_id.map(|region| region.map(RegionId)),
        email: change.email,
        telegram_id: change.telegram_id,
        note: change.note,
        tags: change.tags,
    })
}
