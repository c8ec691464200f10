//! The list of users: filtered, sorted, by key.

use super::users::{UserRow, user_columns};
use super::{Store, StoreError, on};
use crate::domain::{AdminId, PlanId, UserId, UserStatus};

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UserSort {
    /// By number.
    #[default]
    Id,
    /// By name.
    Username,
    /// By when they were made.
    CreatedAt,
    /// By when they end; those without an end come last.
    ExpiresAt,
}

/// Key of the last user of the page before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserKey {
    /// Value of a numeric order, and the user.
    Number(i64, UserId),
    /// Value of the order by name.
    Text(String),
}

/// Which users.
#[derive(Debug, Clone, Default)]
pub struct UserFilter {
    /// Only with this status.
    pub status: Option<UserStatus>,
    /// Only with this plan.
    pub plan: Option<PlanId>,
    /// Only of this administrator.
    pub owner: Option<AdminId>,
    /// Only with this in the name, in any case.
    pub search: Option<String>,
}

macro_rules! by_number {
    ($key:literal, $compare:literal, $direction:literal) => {
        concat!(
            "select ", user_columns!(), " from users u left join user_counters c on c.user_id = u.id \
             where u.deleted_at is null and (", $key, ", u.id) ", $compare, " ($1, $2) \
             and ($3 is null or u.status = $3) and ($4 is null or u.plan_id = $4) \
             and ($5 is null or u.admin_id = $5) and ($6 is null or lower(u.username) like $6 escape '\\') \
             order by ", $key, " ", $direction, ", u.id ", $direction, " limit $7"
        )
    };
}

macro_rules! by_name {
    ($compare:literal, $direction:literal) => {
        concat!(
            "select ", user_columns!(), " from users u left join user_counters c on c.user_id = u.id \
             where u.deleted_at is null and ($1 is null or u.username ", $compare, " $1) \
             and ($2 is null or u.status = $2) and ($3 is null or u.plan_id = $3) \
             and ($4 is null or u.admin_id = $4) and ($5 is null or lower(u.username) like $5 escape '\\') \
             order by u.username ", $direction, " limit $6"
        )
    };
}

const ID_UP: &str = by_number!("u.id", ">", "asc");
const ID_DOWN: &str = by_number!("u.id", "<", "desc");
const CREATED_UP: &str = by_number!("u.created_at", ">", "asc");
const CREATED_DOWN: &str = by_number!("u.created_at", "<", "desc");
const EXPIRES_UP: &str = by_number!("coalesce(u.expires_at, 9223372036854775807)", ">", "asc");
const EXPIRES_DOWN: &str = by_number!("coalesce(u.expires_at, 9223372036854775807)", "<", "desc");
const NAME_UP: &str = by_name!(">", "asc");
const NAME_DOWN: &str = by_name!("<", "desc");

impl UserSort {
    /// Returns the key of a user in this order.
    #[must_use]
    pub fn key(self, user: &UserRow) -> UserKey {
        match self {
            Self::Id => UserKey::Number(user.id.0, user.id),
            Self::CreatedAt => UserKey::Number(user.created_at.0, user.id),
            Self::ExpiresAt => {
                UserKey::Number(user.expires_at.map_or(i64::MAX, |at| at.0), user.id)
            }
            Self::Username => UserKey::Text(user.username.clone()),
        }
    }
}

/// Lists users after a key.
///
/// # Errors
///
/// The database refuses.
pub async fn list(
    store: &Store,
    filter: &UserFilter,
    sort: UserSort,
    descending: bool,
    after: Option<UserKey>,
    limit: i64,
) -> Result<Vec<UserRow>, StoreError> {
    let pattern = filter.search.as_deref().map(pattern);
    if sort == UserSort::Username {
        let sql = if descending { NAME_DOWN } else { NAME_UP };
        let key = match after {
            Some(UserKey::Text(name)) => Some(name),
            _ => None,
        };
        return Ok(on!(read store, |ex| sqlx::query_as(sql)
            .bind(&key)
            .bind(filter.status)
            .bind(filter.plan)
            .bind(filter.owner)
            .bind(&pattern)
            .bind(limit)
            .fetch_all(ex)
            .await)?);
    }
    let sql = match (sort, descending) {
        (UserSort::CreatedAt, false) => CREATED_UP,
        (UserSort::CreatedAt, true) => CREATED_DOWN,
        (UserSort::ExpiresAt, false) => EXPIRES_UP,
        (UserSort::ExpiresAt, true) => EXPIRES_DOWN,
        (_, false) => ID_UP,
        (_, true) => ID_DOWN,
    };
    let (key, id) = match after {
        Some(UserKey::Number(key, id)) => (key, id),
        _ if descending => (i64::MAX, UserId(i64::MAX)),
        _ => (i64::MIN, UserId(0)),
    };
    Ok(on!(read store, |ex| sqlx::query_as(sql)
        .bind(key)
        .bind(id)
        .bind(filter.status)
        .bind(filter.plan)
        .bind(filter.owner)
        .bind(&pattern)
        .bind(limit)
        .fetch_all(ex)
        .await)?)
}

/// Makes a pattern of a text in which nothing is special.
pub(super) fn pattern(search: &str) -> String {
    let mut pattern = String::from("%");
    for letter in search.to_lowercase().chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}

#[cfg(test)]
mod tests {
    use super::pattern;

    #[test]
    fn wildcards_in_a_search_are_letters() {
        assert_eq!(pattern("a_b%C\\"), "%a\\_b\\%c\\\\%");
    }
}
