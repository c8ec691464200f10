//! Users as the API shows and takes them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::moment::{Moment, SecretText, present};
use crate::domain::UserStatus;
use crate::store::users::UserRow;

/// A user as the API shows it. Limits are the user's own: `null` is what the plan says.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = User)]
pub struct UserView {
    /// Number.
    pub id: i64,
    /// UUID, the same on every master and in backups.
    pub uid: Uuid,
    /// Name.
    pub username: String,
    /// Whether and why not the user may connect.
    pub status: String,
    /// Who or what decided the status.
    pub status_reason: String,
    /// Plan.
    pub plan_id: Option<i64>,
    /// Home region: where the assignment task looks for nodes first.
    pub home_region_id: Option<i64>,
    /// Administrator whose user this is.
    pub admin_id: Option<i64>,
    /// When access ends.
    pub expires_at: Option<Moment>,
    /// On hold: how long access lasts from the first connection on, in seconds; never beyond `expires_at`.
    pub hold_duration_s: Option<i64>,
    /// Bytes in a period.
    pub quota_bytes: Option<i64>,
    /// Billed bytes of this period.
    pub used_bytes: i64,
    /// Bytes ever, from client to target.
    pub tx_bytes: i64,
    /// Bytes ever, from target to client.
    pub rx_bytes: i64,
    /// Devices at once.
    pub max_devices: Option<i64>,
    /// Connections at once.
    pub max_connections: Option<i64>,
    /// Most that the user sends, bytes per second.
    pub up_bytes_per_s: Option<i64>,
    /// Most that the user receives, bytes per second.
    pub down_bytes_per_s: Option<i64>,
    /// Whether the password was chosen: the same on every node.
    pub chosen_password: bool,
    /// Address.
    pub email: Option<String>,
    /// Telegram account.
    pub telegram_id: Option<i64>,
    /// Note.
    pub note: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Last traffic.
    pub online_at: Option<Moment>,
    /// Revision, also the `ETag`.
    pub rev: i64,
    /// Made at.
    pub created_at: Moment,
    /// Changed at.
    pub updated_at: Moment,
}

impl From<UserRow> for UserView {
    fn from(row: UserRow) -> Self {
        Self {
            id: row.id.0,
            uid: row.uid,
            used_bytes: row.used(),
            username: row.username,
            status: row.status.as_str().to_owned(),
            status_reason: row.status_reason,
            plan_id: row.plan_id.map(|id| id.0),
            home_region_id: row.home_region_id.map(|id| id.0),
            admin_id: row.admin_id.map(|id| id.0),
            expires_at: row.expires_at.map(Moment),
            hold_duration_s: row.hold_duration_ms.map(|ms| ms / 1_000),
            quota_bytes: row.quota_bytes,
            tx_bytes: row.tx,
            rx_bytes: row.rx,
            max_devices: row.max_devices,
            max_connections: row.max_connections,
            up_bytes_per_s: row.up_bytes_per_s,
            down_bytes_per_s: row.down_bytes_per_s,
            chosen_password: row.credential_enc.is_some(),
            email: row.email,
            telegram_id: row.telegram_id,
            note: row.note,
            tags: row.tags.0,
            online_at: row.online_at.map(Moment),
            rev: row.rev,
            created_at: Moment(row.created_at),
            updated_at: Moment(row.updated_at),
        }
    }
}

/// A user to make.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateUser {
    /// 1 to 64 of letters, digits and `._@-`.
    pub username: String,
    /// Plan, not an archived one.
    pub plan_id: Option<i64>,
    /// Home region: nodes in it come first when the assignment task looks for some, and all but the last
    /// are of it while there are enough.
    pub home_region_id: Option<i64>,
    /// When access ends.
    pub expires_at: Option<Moment>,
    /// Access lasts so many seconds from the first connection on, and not beyond `expires_at`; 36500 days at most.
    pub hold_duration_s: Option<u32>,
    /// Bytes in a period.
    pub quota_bytes: Option<i64>,
    /// Devices at once.
    pub max_devices: Option<i64>,
    /// Connections at once.
    pub max_connections: Option<i64>,
    /// Most that the user sends, bytes per second; 1024 at least.
    pub up_bytes_per_s: Option<i64>,
    /// Most that the user receives, bytes per second; 1024 at least.
    pub down_bytes_per_s: Option<i64>,
    /// Address.
    pub email: Option<String>,
    /// Telegram account.
    pub telegram_id: Option<i64>,
    /// Note.
    pub note: String,
    /// Tags.
    pub tags: Vec<String>,
    /// A password of one's own choice, the same on every node and hence weaker. Absent: a random
    /// one for each node.
    pub password: Option<SecretText>,
    /// Nodes to serve the user beside those that the assignment task picks.
    pub node_ids: Vec<i64>,
}

impl std::fmt::Debug for CreateUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateUser")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What changes of a user; absent fields stay, `null` clears.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateUser {
    /// New name.
    pub username: Option<String>,
    /// `active` or `disabled`. Who is let in again whose hold has not begun is `on_hold` again.
    #[schema(value_type = Option<String>)]
    pub status: Option<UserStatus>,
    /// Plan, not an archived one. Access ends as the new one says, if `expires_at` is not given: after its
    /// `duration_days`; or, if it has none, never for who comes from a plan that has some, and otherwise as before. To one
    /// with pools the user moves: nodes outside these are left for nodes in them, as soon as there are some; assignments by
    /// hand stay.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub plan_id: Option<Option<i64>>,
    /// Home region. The user keeps the nodes that are there; it counts when nodes are looked for again.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub home_region_id: Option<Option<i64>>,
    /// When access ends.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<Moment>)]
    pub expires_at: Option<Option<Moment>>,
    /// Bytes in a period.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub quota_bytes: Option<Option<i64>>,
    /// Devices at once.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub max_devices: Option<Option<i64>>,
    /// Connections at once.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub max_connections: Option<Option<i64>>,
    /// Most that the user sends, bytes per second; 1024 at least.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub up_bytes_per_s: Option<Option<i64>>,
    /// Most that the user receives, bytes per second; 1024 at least.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub down_bytes_per_s: Option<Option<i64>>,
    /// Address.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub email: Option<Option<String>>,
    /// Telegram account.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub telegram_id: Option<Option<i64>>,
    /// Note.
    pub note: Option<String>,
    /// Tags.
    pub tags: Option<Vec<String>>,
}

/// What to do with each user of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchAction {
    /// Let them in again.
    Enable,
    /// Keep them out.
    Disable,
    /// Delete them.
    Delete,
    /// Start their quota anew.
    ResetTraffic,
}
