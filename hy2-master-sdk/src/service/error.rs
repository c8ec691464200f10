//! Why an operation was refused or failed, before it becomes a problem document or a gRPC status.

use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::access::Denied;
use crate::auth::password::PasswordError;
use crate::ratelimit::Limited;
use crate::store::StoreError;

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldIssue {
    /// Path of the field: `quota_bytes`, `users[3].username`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl FieldIssue {
    /// Says what is wrong with a field.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// Why an operation was refused or failed. Nothing of it has happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// No credential, or one that does not hold. Callers hear no more than that.
    #[error("authentication required")]
    Unauthenticated,
    /// Name, password or code do not belong together.
    #[error("wrong name, password or code")]
    WrongCredentials,
    /// Name and password are right, the code of the second factor is missing.
    #[error("a one-time code is required")]
    CodeRequired,
    /// The caller may not.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The caller may not, because of what a field asks for.
    #[error("{denied}")]
    DeniedField {
        /// What is missing.
        denied: Denied,
        /// The field, and what the caller may have in it.
        issue: FieldIssue,
    },
    /// There is no such object, or it is not the caller's.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Fields are wrong.
    #[error("the request is not valid")]
    Invalid(Vec<FieldIssue>),
    /// The object is not at the revision that the caller saw.
    #[error("{0} has changed meanwhile")]
    Stale(&'static str),
    /// The state of things does not allow it.
    #[error("{detail}")]
    Conflict {
        /// Stable, for programs.
        code: &'static str,
        /// For people.
        detail: String,
    },
    /// Too often.
    #[error(transparent)]
    Limited(#[from] Limited),
    /// The store does not answer; later it may.
    #[error("temporarily unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A fault of ours.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ServiceError {
    /// Says that one field is wrong.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldIssue::new(path, message)])
    }

    /// Says that the state of things does not allow it.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Conflict {
            code,
            detail: detail.into(),
        }
    }

    /// Puts the place of the whole in front of its fields.
    #[must_use]
    pub(crate) fn within(self, place: &str) -> Self {
        match self {
            Self::Invalid(mut issues) => {
                for issue in &mut issues {
                    issue.path.insert_str(0, place);
                }
                Self::Invalid(issues)
            }
            other => other,
        }
    }

    /// Gives fields the names that they have elsewhere, of pairs of ours and theirs.
    #[must_use]
    pub(crate) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        if let Self::Invalid(issues) = &mut self {
            for issue in issues {
                if let Some((_, theirs)) = names.iter().find(|(ours, _)| issue.path == *ours) {
                    (*theirs).clone_into(&mut issue.path);
                }
            }
        }
        self
    }

    /// Wraps a fault of ours.
    pub fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(what) => Self::NotFound(what),
            StoreError::StaleRevision { what, .. } => Self::Stale(what),
            StoreError::Duplicate(constraint) => duplicate(&constraint),
            StoreError::Reference(constraint) => Self::Conflict {
                code: "reference",
                detail: format!("something refers to it, or it refers to nothing ({constraint})"),
            },
            StoreError::Check(constraint) => {
                Self::invalid("", format!("a value is out of range ({constraint})"))
            }
            error if error.is_transient() => Self::Unavailable(error.into()),
            error => Self::Internal(error.into()),
        }
    }
}

impl From<PasswordError> for ServiceError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::TooShort | PasswordError::TooLong => {
                Self::invalid("password", error.to_string())
            }
            PasswordError::Hashing => Self::Internal(error.into()),
        }
    }
}

/// Constraints by name, as the field that is taken.
fn duplicate(constraint: &str) -> ServiceError {
    let field = match constraint {
        "users_username_key" | "admins_username_key" => "username",
        "users_auth_hash_key" => "password",
        "vps_nodes_name_key" | "plans_name_key" => "name",
        "regions_code_key" => "code",
        _ => {
            return ServiceError::conflict("duplicate", format!("{constraint} is taken"));
        }
    };
    ServiceError::Conflict {
        code: "duplicate",
        detail: format!("{field} is taken"),
    }
}
