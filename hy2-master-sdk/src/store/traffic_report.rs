//! What the accounts say: sums, series, who used most. Read only.
//!
//! Hours are kept for months, days for years: whole days are answered from the days where these have what is asked for,
//! the hours before the first and after the last whole day from the hours.

use sqlx::FromRow;

use super::{Store, StoreError, on};
use crate::domain::{AdminId, NodeId, Timestamp, UserId};

/// Bytes of some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromRow)]
pub struct Sums {
    /// From clients to targets.
    pub tx: i64,
    /// From targets to clients.
    pub rx: i64,
}

/// Bytes of one bucket of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Bucket {
    /// Its start.
    pub at: Timestamp,
    /// From clients to targets.
    pub tx: i64,
    /// From targets to clients.
    pub rx: i64,
}

/// One user's bytes.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct TopUser {
    /// Which.
    pub user_id: UserId,
    /// Name.
    pub username: String,
    /// From client to targets.
    pub tx: i64,
    /// From targets to client.
    pub rx: i64,
}

/// Whose traffic, and when.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrafficFilter {
    /// Only of this user.
    pub user: Option<UserId>,
    /// Only through this node.
    pub node: Option<NodeId>,
    /// Only of this administrator's users.
    pub owner: Option<AdminId>,
    /// From this hour on.
    pub from: Timestamp,
    /// Before this hour.
    pub to: Timestamp,
}

/// What a question is about: it decides whether days can answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Bytes by the hour.
    Hours,
    /// Sums, or bytes by the day.
    Days,
    /// Sums by user.
    Users,
}

/// Where the bytes of a span are found: within `first..last` in days, the rest in hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first whole day; equal to `last`: there is none.
    first: Timestamp,
    /// The end of the last whole day.
    last: Timestamp,
    /// Whether the days are those of nodes, not those of users.
    by_node: bool,
}

impl TrafficFilter {
    /// Returns where the bytes are found.
    pub fn span(&self, detail: Detail) -> Span {
        // Days know the user or the node, not both.
        let known = match (self.node, self.user, self.owner) {
            (None, _, _) => detail != Detail::Hours,
            (Some(_), None, None) => detail == Detail::Days,
            (Some(_), _, _) => false,
        };
        let first = up(self.from, Timestamp::DAY);
        let last = self.to.day();
        if known && first < last {
            return Span {
                first,
                last,
                by_node: self.node.is_some(),
            };
        }
        Span {
            first: self.to,
            last: self.to,
            by_node: false,
        }
    }

    /// Returns the first hour that is read as such, if there is one; days are read before that only from `first` on.
    pub fn first_hour(&self, span: Span) -> Option<Timestamp> {
        let first = up(self.from, Timestamp::HOUR);
        if first < span.first {
            return Some(first);
        }
        (span.last < self.to).then_some(span.last)
    }
}

impl Span {
    /// Returns the first day that is read as such, if there is one.
    pub fn first_day(&self) -> Option<Timestamp> {
        (self.first < self.last).then_some(self.first)
    }
}

/// Returns the first beginning of a step that is not before a moment.
fn up(at: Timestamp, step: i64) -> Timestamp {
    let missing = (-at.0.rem_euclid(step)).rem_euclid(step);
    Timestamp(at.0.saturating_add(missing))
}

/// The bytes of a filter as `t`: `$1` to `$5` of the filter in its order, `$6` to `$8` of the span.
macro_rules! traffic {
    ($head:literal, $tail:literal) => {
        concat!(
            $head,
            " from (select bucket, user_id, tx, rx from traffic_hourly where bucket >= $1 and bucket < $6 \
             and ($3 is null or user_id = $3) and ($4 is null or node_id = $4) \
             union all select bucket, user_id, tx, rx from traffic_hourly where bucket >= $7 and bucket < $2 \
             and ($3 is null or user_id = $3) and ($4 is null or node_id = $4) \
             union all select day as bucket, user_id, tx, rx from traffic_daily where not $8 \
             and day >= $6 and day < $7 and ($3 is null or user_id = $3) \
             union all select day as bucket, 0 as user_id, tx, rx from node_traffic_daily where $8 \
             and day >= $6 and day < $7 and node_id = $4) t",
            $tail
        )
    };
}

/// Binds a filter and its span.
macro_rules! bound {
    ($query:expr, $filter:expr, $span:expr) => {
        $query
            .bind($filter.from)
            .bind($filter.to)
            .bind($filter.user)
            .bind($filter.node)
            .bind($filter.owner)
            .bind($span.first)
            .bind($span.last)
            .bind($span.by_node)
    };
}

/// Returns the sum of a filter.
///
/// # Errors
///
/// The database refuses.
pub async fn sums(store: &Store, filter: TrafficFilter) -> Result<Sums, StoreError> {
    const SQL: &str = traffic!(
        "select cast(coalesce(sum(t.tx), 0) as bigint) as tx, cast(coalesce(sum(t.rx), 0) as bigint) as rx",
        " where ($5 is null or t.user_id in (select id from users where admin_id = $5))"
    );
    let span = filter.span(Detail::Days);
    let sums = on!(read store, |ex| bound!(sqlx::query_as(SQL), filter, span)
        .fetch_one(ex)
        .await)?;
    Ok(sums)
}

/// Returns the buckets of a filter, each an hour long, or a day.
///
/// # Errors
///
/// The database refuses.
pub async fn series(
    store: &Store,
    filter: TrafficFilter,
    by_day: bool,
) -> Result<Vec<Bucket>, StoreError> {
    const SQL: &str = traffic!(
        "select t.bucket - t.bucket % $9 as at, cast(sum(t.tx) as bigint) as tx, cast(sum(t.rx) as bigint) as rx",
        " where ($5 is null or t.user_id in (select id from users where admin_id = $5)) \
         group by t.bucket - t.bucket % $9 order by 1"
    );
    let (detail, step) = match by_day {
        true => (Detail::Days, Timestamp::DAY),
        false => (Detail::Hours, Timestamp::HOUR),
    };
    let span = filter.span(detail);
    let rows = on!(read store, |ex| bound!(sqlx::query_as(SQL), filter, span)
        .bind(step)
        .fetch_all(ex)
        .await)?;
    Ok(rows)
}

/// Returns who used most.
///
/// # Errors
///
/// The database refuses.
pub async fn top(
    store: &Store,
    filter: TrafficFilter,
    limit: i64,
) -> Result<Vec<TopUser>, StoreError> {
    const SQL: &str = traffic!(
        "select t.user_id, u.username, cast(sum(t.tx) as bigint) as tx, cast(sum(t.rx) as bigint) as rx",
        " join users u on u.id = t.user_id where ($5 is null or u.admin_id = $5) \
         group by t.user_id, u.username order by sum(t.tx) + sum(t.rx) desc, t.user_id limit $9"
    );
    let span = filter.span(Detail::Users);
    let rows = on!(read store, |ex| bound!(sqlx::query_as(SQL), filter, span)
        .bind(limit)
        .fetch_all(ex)
        .await)?;
    Ok(rows)
}

/// Returns what was set aside because nobody knows whose it is.
///
/// # Errors
///
/// The database refuses.
pub async fn quarantined(store: &Store, node: Option<NodeId>) -> Result<Sums, StoreError> {
    let sums = on!(read store, |ex| sqlx::query_as(
        "select cast(coalesce(sum(quarantined_tx), 0) as bigint) as tx, \
         cast(coalesce(sum(quarantined_rx), 0) as bigint) as rx \
         from node_counters where $1 is null or node_id = $1",
    )
    .bind(node)
    .fetch_one(ex)
    .await)?;
    Ok(sums)
}

/// Returns the counters since ever of one user or of all, and their billed bytes.
///
/// # Errors
///
/// The database refuses.
pub async fn counters(
    store: &Store,
    user: Option<UserId>,
    owner: Option<AdminId>,
) -> Result<(i64, i64, i64), StoreError> {
    let sums = on!(read store, |ex| sqlx::query_as(
        "select cast(coalesce(sum(c.tx), 0) as bigint), cast(coalesce(sum(c.rx), 0) as bigint), \
         cast(coalesce(sum(c.billed), 0) as bigint) from user_counters c \
         where ($1 is null or c.user_id = $1) \
         and ($2 is null or c.user_id in (select id from users where admin_id = $2))",
    )
    .bind(user)
    .bind(owner)
    .fetch_one(ex)
    .await)?;
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_days_come_from_days_where_these_know_enough() {
        let day = |number: i64| Timestamp(number * Timestamp::DAY);
        let filter = TrafficFilter {
            from: Timestamp(day(3).0 + 1),
            to: Timestamp(day(7).0 + Timestamp::HOUR),
            ..TrafficFilter::default()
        };
        let span = filter.span(Detail::Days);
        assert_eq!(
            (span.first, span.last, span.by_node),
            (day(4), day(7), false)
        );
        let second = Timestamp(day(3).0 + Timestamp::HOUR);
        assert_eq!(filter.first_hour(span), Some(second));
        let whole = TrafficFilter {
            from: day(3),
            ..filter
        };
        let span = whole.span(Detail::Users);
        assert_eq!(
            (span.first_day(), whole.first_hour(span)),
            (Some(day(3)), Some(day(7)))
        );
        let hours = whole.span(Detail::Hours);
        assert_eq!(
            (hours.first_day(), whole.first_hour(hours)),
            (None, Some(day(3)))
        );
        let node = TrafficFilter {
            node: Some(NodeId(1)),
            ..whole
        };
        assert!(node.span(Detail::Days).by_node);
        assert_eq!(node.span(Detail::Users).first_day(), None);
        let both = TrafficFilter {
            user: Some(UserId(1)),
            ..node
        };
        assert_eq!(both.span(Detail::Days).first_day(), None);
        // No whole day.
        let short = TrafficFilter {
            to: day(4),
            ..filter
        };
        assert_eq!(short.span(Detail::Days).first_day(), None);
    }
}
