//! The list of users: filtered, sorted, by key.

use super::users::{UserRow, user_columns};
use super::{Db, Store, StoreError, on};
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

/// Every way to look for names: not at all; by comparing each name; among those that an index of
/// parts of names has found.
type Statements = [&'static str; 3];

/// `$1` status, `$2` plan, `$3` owner, `$4` key, `$5` id, `$6` limit, `$7` pattern, `$8` parts.
///
/// A page begins at a key, not at a pair of key and id: SQLite finds a pair in an index of columns
/// alone, and would read an index of an expression from its start. So where keys repeat, users with the
/// key come from a statement of their own. The unary plus keeps the planner from the primary key.
macro_rules! statements {
    (@one $place:expr, $search:expr, $order:expr) => {
        concat!(
            "select ", user_columns!(), " from users u left join user_counters c on c.user_id = u.id \
             where u.deleted_at is null and ", $place, " and ($1 is null or u.status = $1) \
             and ($2 is null or u.plan_id = $2) and ($3 is null or u.admin_id = $3)", $search,
            " order by ", $order, " limit $6"
        )
    };
    ($place:expr, $order:expr) => {
        [
            statements!(@one $place, "", $order),
            statements!(@one $place, " and lower(u.username) like $7 escape '\\'", $order),
            statements!(
                @one $place,
                " and lower(u.username) like $7 escape '\\' \
                 and +u.id in (select rowid from users_search where users_search match $8)",
                $order
            ),
        ]
    };
}

macro_rules! created_at {
    () => {
        "u.created_at"
    };
}

macro_rules! expires_at {
    () => {
        "coalesce(u.expires_at, 9223372036854775807)"
    };
}

/// Users with the key, after an id; users beyond the key.
macro_rules! by_key {
    ($key:ident, up) => {
        [
            statements!(
                concat!($key!(), " = $4 and u.id > $5"),
                concat!($key!(), ", u.id")
            ),
            statements!(
                concat!($key!(), " > $4 and +u.id > $5"),
                concat!($key!(), ", u.id")
            ),
        ]
    };
    ($key:ident, down) => {
        [
            statements!(
                concat!($key!(), " = $4 and u.id < $5"),
                concat!($key!(), " desc, u.id desc")
            ),
            statements!(
                concat!($key!(), " < $4 and +u.id < $5"),
                concat!($key!(), " desc, u.id desc")
            ),
        ]
    };
}

const ID_UP: Statements = statements!("u.id > $4 and +u.id > $5", "u.id");
const ID_DOWN: Statements = statements!("u.id < $4 and +u.id < $5", "u.id desc");
const CREATED_UP: [Statements; 2] = by_key!(created_at, up);
const CREATED_DOWN: [Statements; 2] = by_key!(created_at, down);
const EXPIRES_UP: [Statements; 2] = by_key!(expires_at, up);
const EXPIRES_DOWN: [Statements; 2] = by_key!(expires_at, down);
const NAME_UP: Statements = statements!("u.username > $4 and +u.id > $5", "u.username");
/// No text comes after all others in every collation: the first page begins before all.
const NAME_DOWN_START: Statements =
    statements!("u.username > $4 and +u.id > $5", "u.username desc");
const NAME_DOWN: Statements = statements!("u.username < $4 and +u.id > $5", "u.username desc");

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
    let search = match filter.search.as_deref() {
        // No name has it, and no database takes it.
        Some(search) if search.contains('\0') => return Ok(Vec::new()),
        Some(search) => Some(Search::prepare(store, search).await?),
        None => None,
    };
    let ask = Ask {
        store,
        filter,
        search,
        limit,
    };
    if sort == UserSort::Username {
        let key = match after {
            Some(UserKey::Text(name)) => Some(name),
            _ => None,
        };
        let statements = match (descending, &key) {
            (false, _) => NAME_UP,
            (true, None) => NAME_DOWN_START,
            (true, Some(_)) => NAME_DOWN,
        };
        return ask
            .rows(statements, key.unwrap_or_default(), i64::MIN, limit)
            .await;
    }
    let statements = match (sort, descending) {
        (UserSort::CreatedAt, false) => CREATED_UP,
        (UserSort::CreatedAt, true) => CREATED_DOWN,
        (UserSort::ExpiresAt, false) => EXPIRES_UP,
        (UserSort::ExpiresAt, true) => EXPIRES_DOWN,
        (_, up_or_down) => {
            let (statements, end) = match up_or_down {
                false => (ID_UP, i64::MIN),
                true => (ID_DOWN, i64::MAX),
            };
            let key = match after {
                Some(UserKey::Number(key, _)) => key,
                _ => end,
            };
            return ask.rows(statements, key, end, limit).await;
        }
    };
    let end = if descending { i64::MAX } else { i64::MIN };
    let (key, id) = match after {
        Some(UserKey::Number(key, id)) => (key, id.0),
        // Never expiring is the greatest key, so it may be the first one's.
        _ => (end, end),
    };
    let [same, beyond] = statements;
    let mut rows = ask.rows(same, key, id, limit).await?;
    let left = ask.limit - i64::try_from(rows.len()).unwrap_or(i64::MAX);
    if left > 0 {
        rows.extend(ask.rows(beyond, key, end, left).await?);
    }
    Ok(rows)
}

/// What all statements of one list have in common.
struct Ask<'a> {
    store: &'a Store,
    filter: &'a UserFilter,
    search: Option<Search>,
    limit: i64,
}

impl Ask<'_> {
    async fn rows<K>(
        &self,
        statements: Statements,
        key: K,
        id: i64,
        limit: i64,
    ) -> Result<Vec<UserRow>, StoreError>
    where
        for<'q> K: Clone
            + Send
            + Sync
            + sqlx::Encode<'q, sqlx::Postgres>
            + sqlx::Type<sqlx::Postgres>
            + sqlx::Encode<'q, sqlx::Sqlite>
            + sqlx::Type<sqlx::Sqlite>,
    {
        let [all, compare, among] = statements;
        let (sql, search) = match &self.search {
            None => (all, None),
            Some(Search { parts: None, .. }) => (compare, self.search.as_ref()),
            Some(_) => (among, self.search.as_ref()),
        };
        Ok(on!(read self.store, |ex| {
            let mut query = sqlx::query_as(sql)
                .bind(self.filter.status)
                .bind(self.filter.plan)
                .bind(self.filter.owner)
                .bind(key.clone())
                .bind(id)
                .bind(limit);
            if let Some(search) = search {
                // Which way is the short one depends on the pattern: planned each time.
                query = query.bind(&search.pattern).persistent(false);
                if let Some(parts) = &search.parts {
                    query = query.bind(parts);
                }
            }
            query.fetch_all(ex).await
        })?)
    }
}

/// A part of a name that is looked for.
struct Search {
    pattern: String,
    /// For SQLite's index of parts of names, when the text has parts that few names have.
    parts: Option<String>,
}

/// Names found by their parts that are fetched and sorted; when there are more, walking in the
/// order of the list fills a page sooner.
const FEW: i64 = 2_000;

/// Letters of one part.
const PART: usize = 3;

/// Parts that are looked for; what is found by them is compared with the whole text.
const MAX_PARTS: usize = 16;

impl Search {
    async fn prepare(store: &Store, search: &str) -> Result<Self, StoreError> {
        let pattern = pattern(search);
        let letters: Vec<char> = search.chars().collect();
        let Db::Sqlite { read, .. } = store.db() else {
            // PostgreSQL plans with its own index.
            return Ok(Self {
                pattern,
                parts: None,
            });
        };
        if letters.len() < PART {
            return Ok(Self {
                pattern,
                parts: None,
            });
        }
        let parts: Vec<String> = letters
            .windows(PART)
            .take(MAX_PARTS)
            .map(|part| format!("\"{}\"", String::from_iter(part).replace('"', "\"\"")))
            .collect();
        let parts = parts.join(" ");
        let found: i64 = sqlx::query_scalar(
            "select count(*) from \
             (select rowid from users_search where users_search match $1 limit $2)",
        )
        .bind(&parts)
        .bind(FEW + 1)
        .fetch_one(read)
        .await?;
        Ok(Self {
            pattern,
            parts: (found <= FEW).then_some(parts),
        })
    }
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
