//! Tokens for programs, as administrators manage them.

use secrecy::SecretString;
use serde_json::json;
use sqlx::types::Json;
use uuid::Uuid;

use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::{Access, Grant, Operation, Role, is_token_scope};
use crate::auth::api_token::ApiToken;
use crate::domain::Timestamp;
use crate::store::api_tokens::{self, ApiTokenRow};

/// Tokens that an administrator may have.
const MAX_API_TOKENS: i64 = 50;

/// An API token, as shown once.
#[derive(Debug)]
pub struct RevealedToken {
    /// What is stored.
    pub row: ApiTokenRow,
    /// The token.
    pub token: SecretString,
}

/// What a new API token is to be.
#[derive(Debug, Clone)]
pub struct NewApiToken {
    /// What it is for.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<String>,
    /// From where; empty: anywhere.
    pub cidrs: Vec<ipnet::IpNet>,
    /// When it is over.
    pub expires_at: Option<Timestamp>,
}

impl Service {
    /// Lists API tokens in force.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn api_tokens(&self, access: Access<'_>) -> Result<Vec<ApiTokenRow>, ServiceError> {
        Ok(api_tokens::list(self.store(), access.owner(), self.now(), 1_000).await?)
    }

    /// Makes an API token of the caller.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] if a scope does not exist or the role has no use for it.
    pub async fn create_api_token(
        &self,
        access: Access<'_>,
        new: NewApiToken,
    ) -> Result<RevealedToken, ServiceError> {
        let now = self.now();
        check_new_token(&new, access.caller().role, now)?;
        let token = ApiToken::generate();
        let row = ApiTokenRow {
            id: token.id(),
            admin_id: access.caller().admin,
            name: new.name,
            prefix: token.prefix(),
            secret_hash: token.hash().to_vec(),
            scopes: Json(new.scopes),
            cidrs: Json(new.cidrs),
            expires_at: new.expires_at,
            last_used_at: None,
            revoked_at: None,
            created_at: now,
        };
        let mut tx = self.store().begin().await?;
        if api_tokens::count(&mut tx, row.admin_id, now).await? >= MAX_API_TOKENS {
            let detail = format!("an administrator has at most {MAX_API_TOKENS} tokens");
            return Err(ServiceError::conflict("too_many_tokens", detail));
        }
        api_tokens::insert(&mut tx, &row).await?;
        let after = json!({"name": row.name, "scopes": row.scopes.0, "prefix": row.prefix});
        let written = Record {
            kind: "api_token",
            id: row.id.to_string(),
            before: None,
            after: Some(after),
            owner: Some(row.admin_id),
            topic: "api_token.created",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        let token = token.reveal().into();
        Ok(RevealedToken { row, token })
    }

    /// Ends an API token.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`] if there is none that the caller may end.
    pub async fn revoke_api_token(&self, access: Access<'_>, id: Uuid) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        if !api_tokens::revoke(&mut tx, id, access.owner(), now).await? {
            return Err(ServiceError::NotFound("API token"));
        }
        let written = Record {
            kind: "api_token",
            id: id.to_string(),
            before: None,
            after: None,
            owner: access.owner(),
            topic: "api_token.revoked",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(())
    }
}

fn check_new_token(new: &NewApiToken, role: Role, now: Timestamp) -> Result<(), ServiceError> {
    let mut issues = Vec::new();
    if new.name.is_empty() || new.name.len() > 100 {
        issues.push(FieldIssue::new("name", "must have 1 to 100 bytes"));
    }
    if new.scopes.is_empty() || new.scopes.len() > 64 {
        issues.push(FieldIssue::new("scopes", "must have 1 to 64 entries"));
    }
    for (at, scope) in new.scopes.iter().enumerate() {
        let useful = is_token_scope(scope)
            && Operation::ALL
                .iter()
                .any(|op| op.scope() == scope && op.grant(role) != Grant::Denied);
        if !useful {
            let message = "no such scope, or none that your role may use";
            issues.push(FieldIssue::new(format!("scopes[{at}]"), message));
        }
    }
    if new.cidrs.len() > 64 {
        issues.push(FieldIssue::new("cidrs", "must have at most 64 entries"));
    }
    if new.expires_at.is_some_and(|end| end <= now) {
        issues.push(FieldIssue::new("expires_at", "must be in the future"));
    }
    if issues.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(issues))
    }
}
