//! The list of users: filtered, sorted, by key.

use sqlx::{PgPool, SqlitePool};

use super::users::{UserRow, fold, user_columns};
use super::{Db, Store, StoreError};
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

/// An order of the list: what it sorts by, and the narrow index that has it, the name and what is
/// filtered by.
struct Order {
    key: &'static str,
    index: &'static str,
    /// Keys repeat: a page that begins in the middle of those of one key needs a statement for them.
    repeats: bool,
}

const BY_ID: Order = Order {
    key: "u.id",
    index: "users_by_id",
    repeats: false,
};
const BY_NAME: Order = Order {
    key: "u.username",
    index: "users_by_name",
    repeats: false,
};
const BY_CREATION: Order = Order {
    key: "u.created_at",
    index: "users_by_creation",
    repeats: true,
};
const BY_END: Order = Order {
    key: "coalesce(u.expires_at, 9223372036854775807)",
    index: "users_by_end",
    repeats: true,
};

/// Which users of an order a statement is about. `$4` key, `$5` id.
///
/// A page begins at a key, not at a pair of key and id: SQLite finds no pair with the id in an index. So
/// users with the key come from a statement of their own. The unary plus keeps the planner from the
/// primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// All of them.
    Start,
    /// With the key, after the id.
    Same,
    /// Beyond the key.
    Beyond,
}

/// How a statement looks for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Not at all.
    All,
    /// Among the first [`PROBE`] users of the place.
    Probe,
    /// Among users of known numbers.
    Among,
    /// In each name of the place.
    Walk,
}

fn direction(descending: bool) -> &'static str {
    if descending { " desc" } else { "" }
}

/// Composes the condition of a place.
fn bounds(order: &Order, descending: bool, place: Place) -> String {
    let key = order.key;
    let after = if descending { "<" } else { ">" };
    match place {
        // No text comes after all others in every collation: the first page by name begins before all.
        Place::Start if key == BY_NAME.key => format!("{key} > $4 and +u.id > $5"),
        Place::Start => format!("{key} {after}= $4 and +u.id {after}= $5"),
        Place::Same => format!("{key} = $4 and u.id {after} $5"),
        Place::Beyond if key == BY_NAME.key => format!("{key} {after} $4 and +u.id > $5"),
        Place::Beyond => format!("{key} {after} $4 and +u.id {after}= $5"),
    }
}

/// Composes PostgreSQL's statement for how many users the index of parts finds, and the numbers of the first of these that
/// are on the page: `place` and what comes after it.
///
/// Parameters as those of [`statement`], but `$8` parts, `$9` how many are counted at most.
fn found(order: &Order, descending: bool, place: Place) -> String {
    let (key, dir) = (order.key, direction(descending));
    let place = match place {
        Place::Same if descending => format!("({key}, u.id) < ($4, $5)"),
        Place::Same => format!("({key}, u.id) > ($4, $5)"),
        Place::Start | Place::Beyond => bounds(order, descending, place),
    };
    format!(
        "with found as materialized (select * from users_found($8, $7, $9)) select (select count(*) from found), \
         array(select u.id from found u where {place} and ($1 is null or u.status = $1) \
         and ($2 is null or u.plan_id = $2) and ($3 is null or u.admin_id = $3) \
         order by {key}{dir}, u.id{dir} limit $6)"
    )
}

/// Composes a statement: the page's numbers from a narrow index, then its rows.
///
/// `$1` status, `$2` plan, `$3` owner, `$4` key, `$5` id, `$6` limit, `$7` what is looked for, `$8` numbers.
fn statement(order: &Order, descending: bool, place: Place, way: Way, postgres: bool) -> String {
    let Order {
        key,
        index,
        repeats,
    } = order;
    let dir = direction(descending);
    let place = bounds(order, descending, place);
    // SQLite takes the index named and joins from left to right; PostgreSQL chooses by itself.
    let (by, join, has) = match postgres {
        true => (String::new(), "join", "strpos(u.name_folded, $7) > 0"),
        false => (
            format!("indexed by {index}"),
            "cross join",
            "instr(u.name_folded, $7) > 0",
        ),
    };
    let filter = format!(
        "u.deleted_at is null and {place} and ($1 is null or u.status = $1) \
         and ($2 is null or u.plan_id = $2) and ($3 is null or u.admin_id = $3)"
    );
    let (first, again) = match repeats {
        true => (
            format!("order by k{dir}, n{dir} limit"),
            format!("order by f.k{dir}, f.n{dir}"),
        ),
        false => (
            format!("order by k{dir} limit"),
            format!("order by f.k{dir}"),
        ),
    };
    let page = match way {
        Way::All => {
            format!("select u.id as n, {key} as k from users u {by} where {filter} {first} $6")
        }
        Way::Walk => format!(
            "select u.id as n, {key} as k from users u {by} where {filter} and {has} {first} $6"
        ),
        Way::Probe => format!(
            "select u.n, u.k from (select u.id as n, {key} as k, u.name_folded from users u {by} \
             where {filter} {first} {PROBE}) u where {has} {first} $6"
        ),
        // The offset keeps PostgreSQL from walking through the order instead.
        Way::Among if postgres => format!(
            "select u.n, u.k from (select u.id as n, {key} as k from users u where u.id = any($8) \
             and {filter} and {has} offset 0) u {first} $6"
        ),
        Way::Among => format!(
            "select u.id as n, {key} as k from json_each($8) f cross join users u on u.id = f.value \
             where {filter} and {has} {first} $6"
        ),
    };
    format!(
        "select {} from ({page}) f {join} users u on u.id = f.n \
         left join user_counters c on c.user_id = u.id {again}",
        user_columns!()
    )
}

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
    let whole = match filter.search.as_deref() {
        None | Some("") => None,
        // No name has it, and no database takes it.
        Some(search) if search.contains('\0') => return Ok(Vec::new()),
        Some(search) => Some(fold(search)),
    };
    let order = match sort {
        UserSort::Id => &BY_ID,
        UserSort::Username => &BY_NAME,
        UserSort::CreatedAt => &BY_CREATION,
        UserSort::ExpiresAt => &BY_END,
    };
    let end = if descending { i64::MAX } else { i64::MIN };
    let ask = Ask {
        store,
        filter,
        whole: whole.as_deref(),
        order,
        descending,
        limit,
    };
    match (sort, after) {
        (UserSort::Username, Some(UserKey::Text(name))) => {
            ask.page(&[Place::Beyond], name, i64::MIN, i64::MIN).await
        }
        (UserSort::Username, _) => {
            ask.page(&[Place::Start], String::new(), i64::MIN, i64::MIN)
                .await
        }
        (_, Some(UserKey::Number(key, id))) if order.repeats => {
            ask.page(&[Place::Same, Place::Beyond], key, id.0, end)
                .await
        }
        (_, Some(UserKey::Number(key, _))) => ask.page(&[Place::Beyond], key, end, end).await,
        (_, _) => ask.page(&[Place::Start], end, end, end).await,
    }
}

/// What all statements of one list have in common.
struct Ask<'a> {
    store: &'a Store,
    filter: &'a UserFilter,
    /// What is looked for, folded.
    whole: Option<&'a str>,
    order: &'static Order,
    descending: bool,
    limit: i64,
}

/// A key as either database takes it.
trait Key:
    Clone
    + Send
    + Sync
    + for<'q> sqlx::Encode<'q, sqlx::Postgres>
    + sqlx::Type<sqlx::Postgres>
    + for<'q> sqlx::Encode<'q, sqlx::Sqlite>
    + sqlx::Type<sqlx::Sqlite>
{
}

impl Key for i64 {}
impl Key for String {}

impl Ask<'_> {
    /// Fills a page from the places, one after another. `id` is where [`Place::Same`] begins, `end`
    /// what every number is beyond.
    ///
    /// What many names have fills the page from the first users already. What few have, the index of
    /// parts finds, and these few are sorted. Only names that many have, but none here, are walked to.
    async fn page<K: Key>(
        &self,
        places: &[Place],
        key: K,
        id: i64,
        end: i64,
    ) -> Result<Vec<UserRow>, StoreError> {
        let mut numbers = None;
        let mut way = Way::All;
        if let Some(whole) = self.whole {
            if let Some(rows) = self.probe(places[0], &key, id).await? {
                return Ok(rows);
            }
            numbers = match self.store.db() {
                Db::Pg(pool) => {
                    let id = if places[0] == Place::Same { id } else { end };
                    self.found(pool, whole, places[0], &key, id).await?
                }
                Db::Sqlite { read, .. } => with_parts(read, whole).await?,
            };
            way = match &numbers {
                None => Way::Walk,
                Some(numbers) if numbers.is_empty() => return Ok(Vec::new()),
                Some(_) => Way::Among,
            };
        }
        let mut page = Vec::new();
        for place in places {
            let left = self.limit - i64::try_from(page.len()).unwrap_or(i64::MAX);
            if left <= 0 {
                break;
            }
            let id = if *place == Place::Same { id } else { end };
            page.extend(
                self.rows(*place, way, &key, id, left, numbers.as_ref())
                    .await?,
            );
        }
        Ok(page)
    }

    /// Asks PostgreSQL's index of parts for the users of the page who have all parts of a folded text; none when more than
    /// [`FEW`] have them, on this page or another.
    async fn found<K: Key>(
        &self,
        pool: &PgPool,
        whole: &str,
        place: Place,
        key: &K,
        id: i64,
    ) -> Result<Option<Numbers>, StoreError> {
        let sql = found(self.order, self.descending, place);
        // Made of constants alone.
        let (count, numbers): (i64, Vec<i64>) = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(self.filter.status)
            .bind(self.filter.plan)
            .bind(self.filter.owner)
            .bind(key.clone())
            .bind(id)
            .bind(self.limit)
            .bind(whole)
            .bind(parts(whole))
            .bind(FEW + 1)
            .fetch_one(pool)
            .await?;
        Ok((count <= FEW).then_some(Numbers::Pg(numbers)))
    }

    /// Looks among the first users of a place; none if these do not fill the page.
    async fn probe<K: Key>(
        &self,
        place: Place,
        key: &K,
        id: i64,
    ) -> Result<Option<Vec<UserRow>>, StoreError> {
        let rows = self
            .rows(place, Way::Probe, key, id, self.limit, None)
            .await?;
        let full = i64::try_from(rows.len()).is_ok_and(|found| found >= self.limit);
        Ok(full.then_some(rows))
    }

    async fn rows<K: Key>(
        &self,
        place: Place,
        way: Way,
        key: &K,
        id: i64,
        limit: i64,
        numbers: Option<&Numbers>,
    ) -> Result<Vec<UserRow>, StoreError> {
        let postgres = self.store.is_postgres();
        let sql = statement(self.order, self.descending, place, way, postgres);
        macro_rules! ask {
            ($pool:expr, $database:path) => {{
                // Made of constants alone.
                let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
                    .bind(self.filter.status)
                    .bind(self.filter.plan)
                    .bind(self.filter.owner)
                    .bind(key.clone())
                    .bind(id)
                    .bind(limit);
                if let Some(whole) = self.whole {
                    query = query.bind(whole);
                }
                if let Some($database(numbers)) = numbers {
                    query = query.bind(numbers);
                }
                // PostgreSQL's way depends on the filters: it is to plan with their values each time.
                query
                    .persistent(!postgres || way == Way::All)
                    .fetch_all($pool)
                    .await?
            }};
        }
        Ok(match self.store.db() {
            Db::Pg(pool) => ask!(pool, Numbers::Pg),
            Db::Sqlite { read, .. } => ask!(read, Numbers::Sqlite),
        })
    }
}

/// Users that a search looks at before it asks the index of parts. They fill a page where one in 100 has the name, and to look
/// at them costs less than to fetch thousands whom the index finds.
const PROBE: i64 = 5_000;

/// Names found by their parts that are fetched and sorted.
const FEW: i64 = 4_000;

/// Letters of the longest parts in the index.
const PART: usize = 3;

/// Parts that are looked for; what is found by them is compared with the whole text.
const MAX_PARTS: usize = 16;

/// Numbers of users, as either database takes them in one parameter.
#[derive(Debug)]
enum Numbers {
    Pg(Vec<i64>),
    /// JSON.
    Sqlite(String),
}

impl Numbers {
    fn is_empty(&self) -> bool {
        match self {
            Self::Pg(numbers) => numbers.is_empty(),
            Self::Sqlite(json) => json == "[]",
        }
    }
}

/// Asks SQLite's index of parts for the users who have all parts of a folded text; none when there are more than [`FEW`].
/// Some may have the parts, but not the whole.
async fn with_parts(read: &SqlitePool, whole: &str) -> Result<Option<Numbers>, StoreError> {
    // One or two letters: parts that begin with them, up to the greatest that can.
    const SHORT: &str = "select count(*), json_group_array(n) from \
        (select distinct doc as n from user_name_part_rows \
        where term >= $1 and term <= $1 || char(1114111, 1114111) limit $2)";
    const LONG: &str = "select count(*), json_group_array(n) from \
        (select rowid as n from user_name_parts where user_name_parts match $1 limit $2)";
    let parts = parts(whole);
    let (sql, asked) = match parts.as_slice() {
        [part] if part.chars().count() < PART => (SHORT, part.clone()),
        _ => {
            let quoted = |part: &String| format!("\"{}\"", part.replace('"', "\"\""));
            (LONG, parts.iter().map(quoted).collect::<Vec<_>>().join(" "))
        }
    };
    // One row: thousands would change threads as often.
    let (count, numbers): (i64, String) = sqlx::query_as(sql)
        .bind(asked)
        .bind(FEW + 1)
        .fetch_one(read)
        .await?;
    Ok((count <= FEW).then_some(Numbers::Sqlite(numbers)))
}

/// Cuts a text into parts of three letters, the last of which may overlap; a shorter one is one part.
fn parts(whole: &str) -> Vec<String> {
    let letters: Vec<char> = whole.chars().collect();
    let Some(last) = letters.len().checked_sub(PART) else {
        return vec![whole.to_owned()];
    };
    let starts = (0..last).step_by(PART).take(MAX_PARTS - 1).chain([last]);
    starts
        .map(|start| String::from_iter(&letters[start..start + PART]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_cover_the_whole_text() {
        assert_eq!(parts("a"), ["a"]);
        assert_eq!(parts("ab"), ["ab"]);
        assert_eq!(parts("abc"), ["abc"]);
        assert_eq!(parts("abcd"), ["abc", "bcd"]);
        assert_eq!(parts("abcdef"), ["abc", "def"]);
        assert_eq!(parts("müßig-1"), ["müß", "ig-", "g-1"]);
        assert_eq!(parts(&"x".repeat(1_000)).len(), 16);
    }
}
