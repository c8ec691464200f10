//! The one table of rights: role × operation × ownership, used by REST and AdminService alike.
//!
//! An [`Operation`] is one thing that can be asked for; its name is the `operationId` of the
//! OpenAPI document. [`Caller::access`] is the only way to an [`Access`], and operations on the
//! store take one: what is not authorised does not compile into a query.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::AdminId;

/// What an administrator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, other administrators included.
    Owner,
    /// Everything that concerns nodes, users and configuration.
    Operator,
    /// Reads, and helps users: kick, rate, reset.
    Support,
    /// Their own users only.
    Reseller,
    /// Reads everything but secrets, changes nothing.
    Auditor,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Owner,
        Self::Operator,
        Self::Support,
        Self::Reseller,
        Self::Auditor,
    ];

    /// Returns the name in the store and in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Operator => "operator",
            Self::Support => "support",
            Self::Reseller => "reseller",
            Self::Auditor => "auditor",
        }
    }

    /// Returns the role of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

/// Whose objects a role may touch with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Nobody's.
    Denied,
    /// Those that belong to the caller.
    Own,
    /// Everybody's.
    Any,
}

macro_rules! operations {
    ($($(#[doc = $doc:literal])* $variant:ident, $name:literal, $scope:literal, [$($grant:ident)*];)*) => {
        /// One thing that can be asked for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Operation {
            $($(#[doc = $doc])* #[doc = concat!("`", $name, "`, scope `", $scope, "`.")] $variant,)*
        }

        impl Operation {
            /// All operations.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the `operationId`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns the scope that an API token needs; `session` is never given to one.
            #[must_use]
            pub const fn scope(self) -> &'static str {
                match self { $(Self::$variant => $scope,)* }
            }

            /// Returns the grants in the order of [`Role::ALL`].
            const fn grants(self) -> [Grant; 5] {
                match self { $(Self::$variant => [$(Grant::$grant),*],)* }
            }
        }
    };
}

operations! {
    // Own account: every administrator.                          owner operator support reseller auditor
    GetMe, "get_me", "account:read",                             [Own Own Own Own Own];
    Logout, "logout", "session",                                 [Own Own Own Own Own];
    ChangePassword, "change_password", "session",                [Own Own Own Own Own];
    BeginTotp, "begin_totp", "session",                          [Own Own Own Own Own];
    ConfirmTotp, "confirm_totp", "session",                      [Own Own Own Own Own];
    DisableTotp, "disable_totp", "session",                      [Own Own Own Own Own];
    ListMySessions, "list_my_sessions", "session",               [Own Own Own Own Own];
    RevokeMySession, "revoke_my_session", "session",             [Own Own Own Own Own];
    ListApiTokens, "list_api_tokens", "session",                 [Any Own Own Own Own];
    CreateApiToken, "create_api_token", "session",               [Own Own Own Own Own];
    RevokeApiToken, "revoke_api_token", "session",               [Any Own Own Own Own];

    ListNodes, "list_nodes", "nodes:read",                       [Any Any Any Denied Any];
    GetNode, "get_node", "nodes:read",                           [Any Any Any Denied Any];
    UpdateNode, "update_node", "nodes:write",                    [Any Any Denied Denied Denied];
    DeleteNode, "delete_node", "nodes:write",                    [Any Any Denied Denied Denied];
    SetNodeState, "set_node_state", "nodes:write",               [Any Any Denied Denied Denied];
    GetNodeMetrics, "get_node_metrics", "nodes:read",            [Any Any Any Denied Any];
    ListNodeSessions, "list_node_sessions", "sessions:read",     [Any Any Any Denied Denied];
    GetNodeLogs, "get_node_logs", "logs:read",                   [Any Any Denied Denied Denied];
    ListNodeCertificates, "list_node_certificates", "nodes:read", [Any Any Denied Denied Any];
    RevokeNodeCertificates, "revoke_node_certificates", "nodes:write", [Any Any Denied Denied Denied];
    ForfeitNode, "forfeit_node", "nodes:write",                  [Any Any Denied Denied Denied];

    ListAlerts, "list_alerts", "nodes:read",                     [Any Any Any Denied Any];
    CloseAlert, "close_alert", "nodes:write",                    [Any Any Denied Denied Denied];

    ListNodePools, "list_node_pools", "nodes:read",              [Any Any Any Denied Any];
    GetNodePool, "get_node_pool", "nodes:read",                  [Any Any Any Denied Any];
    CreateNodePool, "create_node_pool", "nodes:write",           [Any Any Denied Denied Denied];
    UpdateNodePool, "update_node_pool", "nodes:write",           [Any Any Denied Denied Denied];
    DeleteNodePool, "delete_node_pool", "nodes:write",           [Any Any Denied Denied Denied];

    ListRegions, "list_regions", "nodes:read",                   [Any Any Any Any Any];
    GetRegion, "get_region", "nodes:read",                       [Any Any Any Any Any];
    CreateRegion, "create_region", "nodes:write",                [Any Any Denied Denied Denied];
    UpdateRegion, "update_region", "nodes:write",                [Any Any Denied Denied Denied];
    DeleteRegion, "delete_region", "nodes:write",                [Any Any Denied Denied Denied];

    ListEnrolmentTokens, "list_enrolment_tokens", "nodes:read",  [Any Any Denied Denied Any];
    CreateEnrolmentToken, "create_enrolment_token", "nodes:write", [Any Any Denied Denied Denied];
    RevokeEnrolmentToken, "revoke_enrolment_token", "nodes:write", [Any Any Denied Denied Denied];

    ListUsers, "list_users", "users:read",                       [Any Any Any Own Any];
    GetUser, "get_user", "users:read",                           [Any Any Any Own Any];
    CreateUser, "create_user", "users:write",                    [Any Any Denied Own Denied];
    UpdateUser, "update_user", "users:write",                    [Any Any Denied Own Denied];
    DeleteUser, "delete_user", "users:write",                    [Any Any Denied Own Denied];
    BatchUsers, "batch_users", "users:write",                    [Any Any Denied Own Denied];
    ImportUsers, "import_users", "users:write",                  [Any Any Denied Own Denied];
    ExportUsers, "export_users", "users:read",                   [Any Any Denied Own Denied];
    GetUserTraffic, "get_user_traffic", "traffic:read",          [Any Any Any Own Any];
    ListUserSessions, "list_user_sessions", "sessions:read",     [Any Any Any Own Denied];
    ListUserAssignments, "list_user_assignments", "users:read",  [Any Any Any Own Any];
    GetUserSubscription, "get_user_subscription", "subscriptions:read", [Any Any Any Own Denied];
    RotateUserSubscription, "rotate_user_subscription", "users:write", [Any Any Any Own Denied];
    RotateUserCredentials, "rotate_user_credentials", "users:write", [Any Any Denied Own Denied];
    ResetUserTraffic, "reset_user_traffic", "users:write",       [Any Any Any Own Denied];
    KickUser, "kick_user", "sessions:write",                     [Any Any Any Own Denied];
    SetUserRate, "set_user_rate", "sessions:write",              [Any Any Any Own Denied];

    ListPlans, "list_plans", "plans:read",                       [Any Any Any Any Any];
    GetPlan, "get_plan", "plans:read",                           [Any Any Any Any Any];
    CreatePlan, "create_plan", "plans:write",                    [Any Any Denied Denied Denied];
    UpdatePlan, "update_plan", "plans:write",                    [Any Any Denied Denied Denied];
    DeletePlan, "delete_plan", "plans:write",                    [Any Any Denied Denied Denied];
    GetPlanPools, "get_plan_pools", "plans:read",                [Any Any Any Denied Any];
    SetPlanPools, "set_plan_pools", "plans:write",               [Any Any Denied Denied Denied];

    ListAssignments, "list_assignments", "users:read",           [Any Any Any Own Any];
    AssignUser, "assign_user", "users:write",                    [Any Any Denied Denied Denied];
    ReleaseUser, "release_user", "users:write",                  [Any Any Denied Denied Denied];

    GetTraffic, "get_traffic", "traffic:read",                   [Any Any Any Own Any];
    GetTrafficSeries, "get_traffic_series", "traffic:read",      [Any Any Any Own Any];
    GetTrafficTop, "get_traffic_top", "traffic:read",            [Any Any Any Own Any];

    GetConfig, "get_config", "configs:read",                     [Any Any Denied Denied Denied];
    PutConfig, "put_config", "configs:write",                    [Any Any Denied Denied Denied];
    ListRevisions, "list_revisions", "configs:read",             [Any Any Denied Denied Any];
    GetRevision, "get_revision", "configs:read",                 [Any Any Denied Denied Denied];
    DiffRevisions, "diff_revisions", "configs:read",             [Any Any Denied Denied Denied];
    RollbackConfig, "rollback_config", "configs:write",          [Any Any Denied Denied Denied];

    ListAdmins, "list_admins", "admins:read",                    [Any Denied Denied Denied Any];
    GetAdmin, "get_admin", "admins:read",                        [Any Denied Denied Denied Any];
    CreateAdmin, "create_admin", "admins:write",                 [Any Denied Denied Denied Denied];
    UpdateAdmin, "update_admin", "admins:write",                 [Any Denied Denied Denied Denied];
    DeleteAdmin, "delete_admin", "admins:write",                 [Any Denied Denied Denied Denied];

    ListAudit, "list_audit", "audit:read",                       [Any Denied Denied Denied Any];
    VerifyAudit, "verify_audit", "audit:read",                   [Any Denied Denied Denied Any];
    WatchEvents, "watch_events", "events:read",                  [Any Any Any Denied Any];

    ListWebhooks, "list_webhooks", "webhooks:read",              [Any Any Denied Denied Any];
    GetWebhook, "get_webhook", "webhooks:read",                  [Any Any Denied Denied Any];
    CreateWebhook, "create_webhook", "webhooks:write",           [Any Any Denied Denied Denied];
    UpdateWebhook, "update_webhook", "webhooks:write",           [Any Any Denied Denied Denied];
    DeleteWebhook, "delete_webhook", "webhooks:write",           [Any Any Denied Denied Denied];
    RotateWebhook, "rotate_webhook", "webhooks:write",           [Any Any Denied Denied Denied];
    ListWebhookDeliveries, "list_webhook_deliveries", "webhooks:read", [Any Any Denied Denied Any];
    RetryWebhookDelivery, "retry_webhook_delivery", "webhooks:write", [Any Any Denied Denied Denied];

    ListSettings, "list_settings", "settings:read",              [Any Any Denied Denied Any];
    GetSetting, "get_setting", "settings:read",                  [Any Any Denied Denied Any];
    PutSetting, "put_setting", "settings:write",                 [Any Denied Denied Denied Denied];

    CreateBackup, "create_backup", "backups:write",              [Any Denied Denied Denied Denied];
    GetOpenapi, "get_openapi", "account:read",                   [Any Any Any Any Any];
    GetMetrics, "get_metrics", "metrics:read",                   [Any Any Denied Denied Any];
}

impl Operation {
    /// Returns the operation with that `operationId`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|op| op.name() == name)
    }

    /// Returns whose objects a role may touch.
    #[must_use]
    pub const fn grant(self, role: Role) -> Grant {
        self.grants()[role as usize]
    }
}

/// Returns whether an API token may have that scope.
#[must_use]
pub fn is_token_scope(scope: &str) -> bool {
    scope != SESSION_SCOPE && Operation::ALL.iter().any(|op| op.scope() == scope)
}

/// The scope of operations that a person does in a session.
const SESSION_SCOPE: &str = "session";

/// By what a caller proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// A logged-in session.
    Session {
        /// Its id.
        id: Uuid,
    },
    /// An API token.
    Token {
        /// Its id.
        id: Uuid,
        /// What it may be used for.
        scopes: Vec<String>,
    },
    /// A token that the embedder's [`Authenticator`](super::external::Authenticator) knows.
    External,
    /// Somebody on the master's own host, with access to its database.
    Host,
}

/// An administrator who proved who they are.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Their id; 0 is the host itself.
    pub admin: AdminId,
    /// Their name, for the audit log.
    pub username: String,
    /// Their role as the store has it with this request.
    pub role: Role,
    /// By what.
    pub credential: Credential,
    /// From where, if known.
    pub address: Option<IpAddr>,
    /// Whether nothing but changing the password is allowed.
    pub must_change_password: bool,
}

/// The caller may not do that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// The role has no right to the operation.
    #[error("role {} may not {}", .0.as_str(), .1.name())]
    Role(Role, Operation),
    /// The password was given by somebody else and has to be changed first.
    #[error("the password has to be changed first")]
    PasswordChange,
    /// The API token lacks the scope, or the operation wants a session.
    #[error("token lacks scope {}", .0.scope())]
    Scope(Operation),
}

impl Caller {
    /// The host itself: `recover-admin` and other commands that open the database.
    #[must_use]
    pub fn host() -> Self {
        Self {
            admin: AdminId(0),
            username: "host".to_owned(),
            role: Role::Owner,
            credential: Credential::Host,
            address: None,
            must_change_password: false,
        }
    }

    /// Returns what this caller may do, in a form of its own for everything that makes a difference: kept answers are
    /// given to nobody who may do less, or something else.
    pub(crate) fn standing(&self) -> String {
        let credential = match &self.credential {
            Credential::Session { .. } => "session".to_owned(),
            Credential::Token { id, scopes } => format!("token {id} {}", scopes.join(" ")),
            Credential::External => "external".to_owned(),
            Credential::Host => "host".to_owned(),
        };
        let role = self.role.as_str();
        let held = self.must_change_password;
        format!("{role} {held} {credential}")
    }

    /// Returns the proof that this caller may do `operation`, and to whose objects.
    ///
    /// # Errors
    ///
    /// [`Denied`] says whether role or token is the reason.
    pub fn access(&self, operation: Operation) -> Result<Access<'_>, Denied> {
        if let Credential::Token { scopes, .. } = &self.credential {
            let scope = operation.scope();
            if scope == SESSION_SCOPE || !scopes.iter().any(|given| given == scope) {
                return Err(Denied::Scope(operation));
            }
        }
        // Who needs no password of the master's has none to change.
        if self.credential == Credential::External && operation.scope() == SESSION_SCOPE {
            return Err(Denied::Scope(operation));
        }
        let changes_password = matches!(
            operation,
            Operation::ChangePassword | Operation::GetMe | Operation::Logout
        );
        if self.must_change_password && !changes_password {
            return Err(Denied::PasswordChange);
        }
        let owner = match operation.grant(self.role) {
            Grant::Denied => return Err(Denied::Role(self.role, operation)),
            Grant::Own => Some(self.admin),
            Grant::Any => None,
        };
        Ok(Access {
            caller: self,
            operation,
            owner,
        })
    }
}

/// Proof that a caller may do an operation. Only [`Caller::access`] makes one.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    caller: &'a Caller,
    operation: Operation,
    owner: Option<AdminId>,
}

impl<'a> Access<'a> {
    /// Returns the caller.
    #[must_use]
    pub const fn caller(&self) -> &'a Caller {
        self.caller
    }

    /// Returns the operation.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// Returns the administrator whose objects alone may be touched; `None`: everybody's.
    #[must_use]
    pub const fn owner(&self) -> Option<AdminId> {
        self.owner
    }

    /// Returns whether an object of that administrator may be touched.
    #[must_use]
    pub fn reaches(&self, owner: Option<AdminId>) -> bool {
        self.owner.is_none_or(|own| owner == Some(own))
    }
}

impl fmt::Debug for Access<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("admin", &self.caller.admin)
            .field("operation", &self.operation.name())
            .field("owner", &self.owner)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role, credential: Credential) -> Caller {
        Caller {
            admin: AdminId(7),
            username: "a".into(),
            role,
            credential,
            address: None,
            must_change_password: false,
        }
    }

    fn session() -> Credential {
        Credential::Session { id: Uuid::nil() }
    }

    #[test]
    fn names_are_unique_and_lead_back() {
        for (at, op) in Operation::ALL.iter().enumerate() {
            assert_eq!(Operation::from_name(op.name()), Some(*op));
            let twice = Operation::ALL
                .iter()
                .skip(at + 1)
                .any(|other| other.name() == op.name());
            assert!(!twice, "{}", op.name());
        }
    }

    #[test]
    fn roles_stand_where_the_table_has_them() {
        for (at, role) in Role::ALL.into_iter().enumerate() {
            assert_eq!(role as usize, at);
            assert_eq!(Role::from_name(role.as_str()), Some(role));
        }
    }

    #[test]
    fn only_the_owner_reaches_administrators_and_backups() {
        for op in Operation::ALL {
            let owners = matches!(
                op.scope(),
                "admins:write" | "backups:write" | "settings:write"
            );
            if owners {
                for role in Role::ALL.into_iter().filter(|role| *role != Role::Owner) {
                    assert_eq!(
                        op.grant(role),
                        Grant::Denied,
                        "{} {}",
                        op.name(),
                        role.as_str()
                    );
                }
            }
        }
    }

    #[test]
    fn an_auditor_changes_nothing_but_their_own_account() {
        for op in Operation::ALL {
            let reads = op.scope().ends_with(":read") || op.scope() == "session";
            assert!(
                reads || op.grant(Role::Auditor) == Grant::Denied,
                "{}",
                op.name()
            );
        }
    }

    #[test]
    fn a_reseller_reaches_own_objects_only() {
        let caller = caller(Role::Reseller, session());
        let access = caller.access(Operation::UpdateUser).unwrap();
        assert!(access.reaches(Some(AdminId(7))));
        assert!(!access.reaches(Some(AdminId(8))));
        assert!(
            !access.reaches(None),
            "a user without owner is nobody's own"
        );
        assert!(caller.access(Operation::ListNodes).is_err());
    }

    #[test]
    fn a_given_password_is_changed_before_anything_else() {
        let mut caller = caller(Role::Owner, session());
        caller.must_change_password = true;
        assert_eq!(
            caller.access(Operation::ListUsers).unwrap_err(),
            Denied::PasswordChange
        );
        assert!(caller.access(Operation::ChangePassword).is_ok());
    }

    #[test]
    fn a_token_needs_the_scope_and_the_role() {
        let token = |role, scopes: &[&str]| {
            let scopes = scopes.iter().map(ToString::to_string).collect();
            let id = Uuid::nil();
            caller(role, Credential::Token { id, scopes })
        };
        assert!(
            token(Role::Operator, &["users:read"])
                .access(Operation::ListUsers)
                .is_ok()
        );
        let narrow = token(Role::Operator, &["users:read"]);
        assert!(matches!(
            narrow.access(Operation::CreateUser),
            Err(Denied::Scope(_))
        ));
        let wide = token(Role::Auditor, &["users:write"]);
        assert!(matches!(
            wide.access(Operation::CreateUser),
            Err(Denied::Role(..))
        ));
        let session = token(Role::Owner, &["session"]);
        assert!(session.access(Operation::CreateApiToken).is_err());
        assert!(!is_token_scope("session") && is_token_scope("users:write"));
        let external = caller(Role::Owner, Credential::External);
        assert!(external.access(Operation::ListUsers).is_ok());
        assert!(external.access(Operation::ChangePassword).is_err());
        assert!(external.access(Operation::CreateApiToken).is_err());
    }
}
