//! Who serves whom, as operators decide it; the assignment task decides the rest.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::moment::Moment;
use super::page::{Page, PageRequest};
use super::{Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{AssignmentId, AssignmentSource, NodeId, UserId};
use crate::store::assignments::{self, AssignmentRow, NewAssignment};
use crate::store::{nodes, users};

/// An assignment as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Assignment)]
pub struct AssignmentView {
    /// Number.
    pub id: i64,
    /// User.
    pub user_id: i64,
    /// Node.
    pub node_id: i64,
    /// Place of the node in the user's subscription.
    pub rank: i64,
    /// `auto`, `manual`, `pinned` or `failover`.
    pub source: String,
    /// Since when.
    pub assigned_at: Moment,
    /// Until when.
    pub released_at: Option<Moment>,
}

impl From<AssignmentRow> for AssignmentView {
    fn from(row: AssignmentRow) -> Self {
        Self {
            id: row.id.0,
            user_id: row.user_id.0,
            node_id: row.node_id.0,
            rank: row.rank,
            source: row.source.as_str().to_owned(),
            assigned_at: Moment(row.assigned_at),
            released_at: row.released_at.map(Moment),
        }
    }
}

/// An assignment to make.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignUser {
    /// User.
    pub user_id: i64,
    /// Node.
    pub node_id: i64,
    /// Place of the node in the user's subscription, from 0.
    #[serde(default)]
    pub rank: u16,
    /// Whether the assignment task has to leave it alone.
    #[serde(default)]
    pub pinned: bool,
}

impl Service {
    /// Lists assignments, of one user or node when given.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page; [`ServiceError::NotFound`] of a user that is not
    /// the caller's.
    pub async fn assignments(
        &self,
        access: Access<'_>,
        page: &PageRequest,
        user: Option<UserId>,
        node: Option<NodeId>,
        released: bool,
    ) -> Result<Page<AssignmentRow>, ServiceError> {
        let limit = page.limit()?;
        let after = page.key::<i64>()?.map(AssignmentId);
        if access.owner().is_some() {
            let Some(user) = user else {
                return Err(ServiceError::invalid(
                    "user_id",
                    "is required with your role",
                ));
            };
            self.user(access, user).await?;
        }
        let rows = self
            .store()
            .assignments(user, node, released, after, limit + 1)
            .await?;
        Ok(Page::new(rows, limit, |row| row.id.0))
    }

    /// Lets a node serve a user.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`] of either.
    pub async fn assign_user(
        &self,
        access: Access<'_>,
        new: AssignUser,
    ) -> Result<AssignmentRow, ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let user = users::get(&mut tx, UserId(new.user_id)).await?;
        nodes::get(&mut tx, NodeId(new.node_id)).await?;
        let assignment = NewAssignment {
            user_id: user.id,
            node_id: NodeId(new.node_id),
            rank: i64::from(new.rank),
            source: if new.pinned {
                AssignmentSource::Pinned
            } else {
                AssignmentSource::Manual
            },
            score: None,
        };
        let row = assignments::assign(&mut tx, &assignment, now).await?;
        let view = serde_json::to_value(AssignmentView::from(row.clone())).unwrap_or(Value::Null);
        let written = Record {
            kind: "assignment",
            id: row.id.to_string(),
            before: None,
            after: Some(view),
            owner: user.admin_id,
            topic: "assignment.created",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Takes a user off a node; connections there end, and no task assigns it again.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn release_user(
        &self,
        access: Access<'_>,
        user: UserId,
        node: NodeId,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let row = users::get(&mut tx, user).await?;
        assignments::take_off(&mut tx, user, node, now).await?;
        let pair = json!({"user_id": user.0, "node_id": node.0});
        let written = Record {
            kind: "assignment",
            id: format!("{user}/{node}"),
            before: Some(pair),
            after: None,
            owner: row.admin_id,
            topic: "assignment.released",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(())
    }
}
