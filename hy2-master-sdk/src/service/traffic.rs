//! Traffic, live connections, and what can be done about them at once.

use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::fleet::{NodeLogError, NodeLogLine, NodeSession, Reach};
use super::moment::Moment;
use super::user_rules::check_rates;
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{NodeId, Timestamp, UserId};
use crate::store::traffic_report::{self, Bucket, Detail, TopUser, TrafficFilter};

/// Longest time that one question may cover.
const MAX_SPAN: i64 = 400 * Timestamp::DAY;

/// Most buckets of a series.
const MAX_BUCKETS: i64 = 10_000;

/// Longest time for which a rate may be set.
const MAX_RATE_S: u32 = 30 * 86_400;

/// Sums of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Traffic)]
pub struct TrafficView {
    /// From clients to targets.
    pub tx_bytes: i64,
    /// From targets to clients.
    pub rx_bytes: i64,
    /// Billed bytes, with what imported users had used elsewhere; only without a span of time.
    pub billed_bytes: Option<i64>,
    /// Bytes set aside because nobody knows whose they are; only where everybody's is asked for.
    pub quarantined_bytes: Option<i64>,
}

/// A live connection.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Session)]
pub struct SessionView {
    /// Node.
    pub node_id: i64,
    /// User.
    pub user_id: i64,
    /// Connection, as the node numbers it.
    pub connection_id: u64,
    /// Address of the client.
    pub remote: String,
    /// Since when.
    pub since: Option<Moment>,
    /// Bytes from client to targets.
    pub tx_bytes: u64,
    /// Bytes from targets to client.
    pub rx_bytes: u64,
    /// Smoothed round-trip time.
    pub rtt_ms: f64,
    /// Packets lost of a thousand.
    pub loss_permille: u32,
    /// TCP streams.
    pub tcp_streams: u32,
    /// UDP sessions.
    pub udp_sessions: u32,
}

impl From<NodeSession> for SessionView {
    fn from(of: NodeSession) -> Self {
        let session = of.session;
        Self {
            node_id: of.node.0,
            user_id: i64::try_from(session.user_id).unwrap_or(i64::MAX),
            connection_id: session.connection_id,
            remote: session.remote,
            since: session.since.map(|at| Moment(Timestamp::from_proto(&at))),
            tx_bytes: session.tx_bytes,
            rx_bytes: session.rx_bytes,
            rtt_ms: session.rtt_ms,
            loss_permille: session.loss_permille,
            tcp_streams: session.tcp_streams,
            udp_sessions: session.udp_sessions,
        }
    }
}

/// What came of asking several nodes.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Reach)]
pub struct ReachView {
    /// Nodes that answered.
    pub reached: Vec<i64>,
    /// Nodes that did not.
    pub unreachable: Vec<i64>,
    /// Connections closed or changed.
    pub connections: u64,
}

impl From<Reach> for ReachView {
    fn from(reach: Reach) -> Self {
        let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(|id| id.0).collect();
        Self {
            reached: ids(reach.reached),
            unreachable: ids(reach.unreachable),
            connections: reach.connections,
        }
    }
}

/// Whose traffic, and when; without both times the counters since ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrafficQuery {
    /// Only of this user.
    pub user: Option<UserId>,
    /// Only through this node.
    pub node: Option<NodeId>,
    /// From this hour on.
    pub from: Option<Timestamp>,
    /// Before this hour.
    pub to: Option<Timestamp>,
}

/// Most lines of a node's log that are read at once: what a node keeps.
pub const MAX_LOG_LINES: u32 = 1_000;

impl Service {
    /// Returns sums of traffic.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the times, [`ServiceError::NotFound`] of the user.
    pub async fn traffic(
        &self,
        access: Access<'_>,
        query: TrafficQuery,
    ) -> Result<TrafficView, ServiceError> {
        if let Some(user) = query.user {
            self.user(access, user).await?;
        }
        if query.from.is_none() && query.to.is_none() && query.node.is_none() {
            let (tx, rx, billed) =
                traffic_report::counters(self.store(), query.user, access.owner()).await?;
            let everybody = query.user.is_none() && access.owner().is_none();
            let quarantined = match everybody {
                true => Some(traffic_report::quarantined(self.store(), None).await?),
                false => None,
            };
            return Ok(TrafficView {
                tx_bytes: tx,
                rx_bytes: rx,
                billed_bytes: Some(billed),
                quarantined_bytes: quarantined.map(|sums| sums.tx.saturating_add(sums.rx)),
            });
        }
        let filter = self.filter(access, query)?;
        self.check_kept(filter, Detail::Days)?;
        let sums = traffic_report::sums(self.store(), filter).await?;
        Ok(TrafficView {
            tx_bytes: sums.tx,
            rx_bytes: sums.rx,
            billed_bytes: None,
            quarantined_bytes: None,
        })
    }

    /// Returns traffic by hour or day.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of times and step, [`ServiceError::NotFound`] of the user.
    pub async fn traffic_series(
        &self,
        access: Access<'_>,
        query: TrafficQuery,
        by_day: bool,
    ) -> Result<Vec<Bucket>, ServiceError> {
        if let Some(user) = query.user {
            self.user(access, user).await?;
        }
        let filter = self.filter(access, query)?;
        let step = if by_day {
            Timestamp::DAY
        } else {
            Timestamp::HOUR
        };
        if (filter.to.0 - filter.from.0) / step > MAX_BUCKETS {
            return Err(ServiceError::invalid(
                "from",
                "too many steps; ask for less or by day",
            ));
        }
        let detail = if by_day { Detail::Days } else { Detail::Hours };
        self.check_kept(filter, detail)?;
        Ok(traffic_report::series(self.store(), filter, by_day).await?)
    }

    /// Returns who used most.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the times.
    pub async fn traffic_top(
        &self,
        access: Access<'_>,
        query: TrafficQuery,
        limit: u32,
    ) -> Result<Vec<TopUser>, ServiceError> {
        if !(1..=500).contains(&limit) {
            return Err(ServiceError::invalid("size", "must be between 1 and 500"));
        }
        if let Some(user) = query.user {
            self.user(access, user).await?;
        }
        let filter = self.filter(access, query)?;
        self.check_kept(filter, Detail::Users)?;
        Ok(traffic_report::top(self.store(), filter, i64::from(limit)).await?)
    }

    /// Lists a user's live connections.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn user_sessions(
        &self,
        access: Access<'_>,
        id: UserId,
    ) -> Result<(Vec<NodeSession>, Reach), ServiceError> {
        self.user(access, id).await?;
        let nodes = self.nodes_of(id).await?;
        Ok(self.fleet().sessions(&nodes, Some(id)).await)
    }

    /// Lists a node's live connections.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn node_sessions(
        &self,
        access: Access<'_>,
        id: NodeId,
    ) -> Result<(Vec<NodeSession>, Reach), ServiceError> {
        self.node(access, id).await?;
        Ok(self.fleet().sessions(&[id], None).await)
    }

    /// Reads the last lines of a node's log at `level` or worse.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`] of number or level, and
    /// [`ServiceError::Conflict`] if the node does not answer or keeps no log.
    pub async fn node_logs(
        &self,
        access: Access<'_>,
        id: NodeId,
        lines: u32,
        level: &str,
    ) -> Result<Vec<NodeLogLine>, ServiceError> {
        let mut issues = Vec::new();
        if !(1..=MAX_LOG_LINES).contains(&lines) {
            issues.push(FieldIssue::new("lines", "must be between 1 and 1000"));
        }
        if !["error", "warn", "info", "debug"].contains(&level) {
            issues.push(FieldIssue::new(
                "level",
                "must be error, warn, info or debug",
            ));
        }
        if !issues.is_empty() {
            return Err(ServiceError::Invalid(issues));
        }
        self.node(access, id).await?;
        let read = self.fleet().logs(id, lines, level).await;
        read.map_err(|error| {
            let code = match error {
                NodeLogError::Unreachable => "node_unreachable",
                NodeLogError::NoLog => "no_log",
            };
            ServiceError::conflict(code, error.to_string())
        })
    }

    /// Closes all connections of a user. The user may connect again.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn kick_user(&self, access: Access<'_>, id: UserId) -> Result<Reach, ServiceError> {
        let user = self.user(access, id).await?;
        let nodes = self.nodes_of(id).await?;
        let reach = self.fleet().kick_user(&nodes, id).await;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let written = Record {
            kind: "user",
            id: id.to_string(),
            before: None,
            after: Some(json!({"connections": reach.connections})),
            owner: user.admin_id,
            topic: "user.kicked",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(reach)
    }

    /// Sets a user's rate for a while, without changing the user.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`] of the duration.
    pub async fn set_user_rate(
        &self,
        access: Access<'_>,
        id: UserId,
        up_bytes_per_s: u64,
        down_bytes_per_s: u64,
        for_s: u32,
    ) -> Result<Reach, ServiceError> {
        if for_s > MAX_RATE_S {
            return Err(ServiceError::invalid("for_s", "must be at most 30 days"));
        }
        let mut issues = Vec::new();
        let rates = [up_bytes_per_s, down_bytes_per_s].map(|rate| i64::try_from(rate).ok());
        check_rates(&mut issues, "", rates, [None, None]);
        if !issues.is_empty() {
            return Err(ServiceError::Invalid(issues));
        }
        let user = self.user(access, id).await?;
        let nodes = self.nodes_of(id).await?;
        let reach = self
            .fleet()
            .set_user_rate(&nodes, id, up_bytes_per_s, down_bytes_per_s, for_s)
            .await;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let after = json!({
            "up_bytes_per_s": up_bytes_per_s, "down_bytes_per_s": down_bytes_per_s, "for_s": for_s,
        });
        let written = Record {
            kind: "user",
            id: id.to_string(),
            before: None,
            after: Some(after),
            owner: user.admin_id,
            topic: "user.rate_set",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(reach)
    }

    fn filter(
        &self,
        access: Access<'_>,
        query: TrafficQuery,
    ) -> Result<TrafficFilter, ServiceError> {
        let to = query
            .to
            .unwrap_or_else(|| Timestamp(self.now().0 + Timestamp::HOUR));
        let from = query
            .from
            .unwrap_or_else(|| Timestamp(to.0.saturating_sub(Timestamp::DAY)));
        let span = to.0.saturating_sub(from.0);
        if !(1..=MAX_SPAN).contains(&span) {
            return Err(ServiceError::invalid(
                "from",
                "must be before to, by at most 400 days",
            ));
        }
        Ok(TrafficFilter {
            user: query.user,
            node: query.node,
            owner: access.owner(),
            from,
            to,
        })
    }

    /// Refuses what reaches further back than what it would be answered from: less than all would be given for all.
    fn check_kept(&self, filter: TrafficFilter, detail: Detail) -> Result<(), ServiceError> {
        let now = self.now();
        let (hours, days) = self.traffic_kept();
        let span = filter.span(detail);
        let is_gone = |first: Option<Timestamp>, kept| first.is_some_and(|at| at < now.minus(kept));
        let in_days = |kept: Duration| kept.as_secs() / 86_400;
        if is_gone(filter.first_hour(span), hours) {
            let why = match (detail, span.first_day()) {
                (Detail::Hours, _) => "ask by day for more",
                (_, Some(_)) => "before that let it begin and end at a midnight (UTC)",
                _ => {
                    "before that only whole days (UTC) of users or of a node are, not those of users through a node"
                }
            };
            let message = format!("hours are kept {} days; {why}", in_days(hours));
            return Err(ServiceError::invalid("from", message));
        }
        if is_gone(span.first_day(), days) {
            let message = format!("days are kept {} days", in_days(days));
            return Err(ServiceError::invalid("from", message));
        }
        Ok(())
    }
}
