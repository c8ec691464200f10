//! Alerts, as operators see and close them.

use std::collections::HashMap;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::moment::Moment;
use super::page::{Page, PageRequest};
use super::{Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::NodeId;
use crate::store::alerts::{self, AlertFilter, AlertRow};

/// An alert as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Alert)]
pub struct AlertView {
    /// Its id.
    pub id: Uuid,
    /// Of which node; absent: of the fleet.
    pub node_id: Option<i64>,
    /// Stable, for programs: `clock_skew`, `spool_nearly_full`, `certificate_expiring`, ...
    pub rule: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// For people.
    pub message: String,
    /// Since when.
    pub opened_at: Moment,
    /// When it was said last.
    pub updated_at: Moment,
    /// When it was over, or somebody closed it; absent while it is open.
    pub closed_at: Option<Moment>,
}

impl From<AlertRow> for AlertView {
    fn from(row: AlertRow) -> Self {
        Self {
            id: row.id,
            node_id: row.node_id.map(|id| id.0),
            rule: row.rule,
            severity: row.severity,
            message: row.message,
            opened_at: Moment(row.opened_at),
            updated_at: Moment(row.updated_at),
            closed_at: row.closed_at.map(Moment),
        }
    }
}

impl Service {
    /// Lists alerts, the newest first.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page.
    pub async fn alerts(
        &self,
        _access: Access<'_>,
        filter: AlertFilter,
        page: &PageRequest,
    ) -> Result<Page<AlertRow>, ServiceError> {
        let limit = page.limit()?;
        let before = page.key::<(i64, Uuid)>()?;
        let rows = alerts::list(self.store(), filter, before, limit + 1).await?;
        Ok(Page::new(rows, limit, |row| (row.opened_at.0, row.id)))
    }

    /// Returns how many alerts of each node are open; a node without one is absent.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn open_alerts(
        &self,
        _access: Access<'_>,
    ) -> Result<HashMap<NodeId, i64>, ServiceError> {
        let counts = alerts::open_counts(self.store()).await?;
        Ok(counts.into_iter().collect())
    }

    /// Closes an alert that somebody has looked at; one that is closed stays as it is. What goes on opens another.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn close_alert(
        &self,
        access: Access<'_>,
        id: Uuid,
    ) -> Result<AlertRow, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let Some(closed) = alerts::close(&mut tx, id, now).await? else {
            tx.rollback().await?;
            return Ok(alerts::get(self.store(), id).await?);
        };
        let before = AlertRow {
            closed_at: None,
            ..closed.clone()
        };
        let written = Record {
            kind: "alert",
            id: id.to_string(),
            before: Some(before.told()),
            after: Some(closed.told()),
            owner: None,
            topic: "alert.closed",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(closed)
    }
}
