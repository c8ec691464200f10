//! Configuration of nodes: bodies for the fleet, a region or a node, kept for ever, never changed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::moment::Moment;
use super::page::{Page, PageRequest};
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::config::{self, ConfigBody};
use crate::domain::{ConfigRevisionId, ConfigScope, NodeId, RegionId};
use crate::store::published::{self, ConfigRow, NewConfig};
use crate::store::{StoreError, Tx, config_list, regions};

/// What passwords in a body read as; written back, they stay what they are.
const HIDDEN: &str = "***";

/// For how long an obfuscation is accepted beside the one that follows it: by then clients have
/// fetched their subscriptions.
const OBFUSCATION_KEPT: Duration = Duration::from_secs(86_400);

/// A revision as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ConfigRevision)]
pub struct ConfigView {
    /// Number.
    pub id: i64,
    /// `fleet`, `region` or `node`.
    pub scope: String,
    /// Region or node.
    pub scope_id: i64,
    /// The body; passwords read `***`.
    #[schema(value_type = ConfigBody)]
    pub body: Value,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Administrator who wrote it.
    pub author: Option<i64>,
    /// Why.
    pub message: String,
    /// The one before.
    pub parent: Option<i64>,
    /// When.
    pub created_at: Moment,
}

impl From<ConfigRow> for ConfigView {
    fn from(row: ConfigRow) -> Self {
        let mut body = row.body.0;
        hide(&mut body);
        Self {
            id: row.id.0,
            scope: row.scope.as_str().to_owned(),
            scope_id: row.scope_id,
            body,
            sha256: hex::encode(row.sha256),
            author: row.author.map(|id| id.0),
            message: row.message,
            parent: row.parent.map(|id| id.0),
            created_at: Moment(row.created_at),
        }
    }
}

/// A body to put in force.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutConfig {
    /// The body: only what differs from the more general scope. A password that reads `***` stays.
    #[schema(value_type = ConfigBody)]
    pub body: Value,
    /// Why.
    #[serde(default)]
    pub message: String,
    /// The newest revision that the writer has seen; absent: whatever it is.
    #[serde(default)]
    pub parent: Option<i64>,
    /// Checks and changes nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// One difference between two bodies.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ConfigChange {
    /// Path of the field.
    pub path: String,
    /// As it was; absent if it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<Value>,
    /// As it is; absent if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<Value>,
}

impl Service {
    /// Returns the newest revision of a scope.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`] if there is none.
    pub async fn config(
        &self,
        _access: Access<'_>,
        scope: ConfigScope,
        scope_id: i64,
    ) -> Result<ConfigRow, ServiceError> {
        let rows = self.store().configs(scope, scope_id, None, 1).await?;
        rows.into_iter()
            .next()
            .ok_or(ServiceError::NotFound("configuration"))
    }

    /// Lists revisions of a scope, the newest first.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page.
    pub async fn revisions(
        &self,
        _access: Access<'_>,
        scope: ConfigScope,
        scope_id: i64,
        page: &PageRequest,
    ) -> Result<Page<ConfigRow>, ServiceError> {
        let limit = page.limit()?;
        let before = page.key::<i64>()?.map(ConfigRevisionId);
        let rows = self
            .store()
            .configs(scope, scope_id, before, limit + 1)
            .await?;
        Ok(Page::new(rows, limit, |row| row.id.0))
    }

    /// Returns a revision.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn revision(
        &self,
        _access: Access<'_>,
        id: ConfigRevisionId,
    ) -> Result<ConfigRow, ServiceError> {
        Ok(config_list::get(self.store(), id).await?)
    }

    /// Returns what differs between two revisions.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn diff_revisions(
        &self,
        access: Access<'_>,
        from: ConfigRevisionId,
        to: ConfigRevisionId,
    ) -> Result<Vec<ConfigChange>, ServiceError> {
        let old = self.revision(access, from).await?;
        let new = self.revision(access, to).await?;
        let mut changes = Vec::new();
        diff(&mut changes, "", Some(&old.body.0), Some(&new.body.0));
        Ok(changes)
    }

    /// Puts a body in force for a scope. It is merged with the others of every node concerned and
    /// checked as a whole first.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] with the paths, [`ServiceError::Stale`], [`ServiceError::NotFound`]
    /// of region or node.
    pub async fn put_config(
        &self,
        access: Access<'_>,
        scope: ConfigScope,
        scope_id: i64,
        put: PutConfig,
    ) -> Result<Option<ConfigRow>, ServiceError> {
        if !put.body.is_object() {
            return Err(ServiceError::invalid("body", "must be an object"));
        }
        if put.message.len() > 500 {
            return Err(ServiceError::invalid(
                "message",
                "must have at most 500 bytes",
            ));
        }
        let mut tx = self.store().begin().await?;
        config_list::lock(&mut tx).await?;
        let newest = config_list::newest(&mut tx, scope, scope_id).await?;
        let seen = newest.as_ref().map_or(0, |row| row.id.0);
        if put.parent.is_some_and(|parent| parent != seen) {
            return Err(ServiceError::Stale("configuration"));
        }
        let mut body = put.body;
        let old = newest.as_ref().map(|row| &row.body.0);
        keep_hidden(&mut body, old, "body")?;
        let until = body.pointer("/previous_obfs/until").and_then(Value::as_i64);
        let known = old.and_then(|old| old.pointer("/previous_obfs/until")?.as_i64());
        // One that has run out since may come back with the rest of the body.
        if until.is_some_and(|until| until <= self.now().0) && until != known {
            return Err(ServiceError::invalid(
                "body.previous_obfs.until",
                "is over: leave previous_obfs out, or name a time to come",
            ));
        }
        self.keep_obfuscation(&mut tx, scope, old, &mut body)
            .await?;
        self.append(
            tx,
            access,
            (scope, scope_id),
            body,
            put.message,
            put.dry_run,
        )
        .await
    }

    /// Puts the body of an earlier revision in force again, as a new revision.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`] if it does not fit the others any more.
    pub async fn rollback_config(
        &self,
        access: Access<'_>,
        id: ConfigRevisionId,
    ) -> Result<ConfigRow, ServiceError> {
        let old = config_list::get(self.store(), id).await?;
        let mut tx = self.store().begin().await?;
        config_list::lock(&mut tx).await?;
        let message = format!("back to revision {id}");
        let scope = (old.scope, old.scope_id);
        let newest = config_list::newest(&mut tx, old.scope, old.scope_id).await?;
        let mut body = old.body.0;
        if let Some(fields) = body.as_object_mut() {
            // The window of then was for what was before it then.
            fields.remove("previous_obfs");
        }
        let newest = newest.as_ref().map(|row| &row.body.0);
        self.keep_obfuscation(&mut tx, old.scope, newest, &mut body)
            .await?;
        let row = self.append(tx, access, scope, body, message, false).await?;
        row.ok_or_else(|| ServiceError::internal("a rollback is no dry run"))
    }

    async fn append(
        &self,
        mut tx: Tx,
        access: Access<'_>,
        (scope, scope_id): (ConfigScope, i64),
        mut body: Value,
        message: String,
        dry_run: bool,
    ) -> Result<Option<ConfigRow>, ServiceError> {
        config::seal(self.vault(), &mut body);
        self.check_merged(&mut tx, scope, scope_id, &body).await?;
        if dry_run {
            tx.rollback().await?;
            return Ok(None);
        }
        let now = self.now();
        let new = NewConfig {
            scope,
            scope_id,
            body,
            author: Some(access.caller().admin).filter(|admin| admin.0 > 0),
            message,
        };
        let row = published::append_config(&mut tx, &new, now).await?;
        let after = json!({
            "revision": row.id, "scope": row.scope, "scope_id": row.scope_id,
            "sha256": hex::encode(&row.sha256), "message": row.message,
        });
        let written = Record {
            kind: "config",
            id: format!("{scope}/{scope_id}"),
            before: row.parent.map(|parent| json!({"revision": parent})),
            after: Some(after),
            owner: None,
            topic: "config.changed",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(Some(row))
    }

    /// Lets clients use the obfuscation of now for a day more when `body` brings another one, unless it says itself
    /// what is accepted beside it; and keeps such a window that is open.
    async fn keep_obfuscation(
        &self,
        tx: &mut Tx,
        scope: ConfigScope,
        old: Option<&Value>,
        body: &mut Value,
    ) -> Result<(), ServiceError> {
        let fleet = match scope {
            ConfigScope::Fleet => None,
            _ => config_list::newest(tx, ConfigScope::Fleet, 0).await?,
        };
        let inherited = fleet.as_ref().and_then(|row| row.body.0.get("obfs"));
        let of = |body: Option<&Value>| {
            let own = body.and_then(|body| body.get("obfs"));
            own.or(inherited)
                .filter(|obfs| !obfs.is_null())
                .cloned()
                .unwrap_or(Value::Null)
        };
        let (before, after) = (of(old), of(Some(body)));
        let open = |mut obfs: Value| {
            config::open(self.vault(), &mut obfs).map_err(ServiceError::internal)?;
            Ok::<_, ServiceError>(obfs)
        };
        let changes = open(before.clone())? != open(after)?;
        // Where nothing runs yet, nobody uses anything.
        let is_used = old.is_some() || !config_list::nodes(tx, None, None).await?.is_empty();
        let now = self.now();
        let window = match old.and_then(|old| old.get("previous_obfs")) {
            _ if changes && !is_used => None,
            _ if changes => {
                let until = now.plus(OBFUSCATION_KEPT);
                // Plain is said as such: a window of the fleet's would be merged into one that is silent.
                Some(json!({"obfs": before, "until": until}))
            }
            Some(window) if window["until"].as_i64().is_some_and(|until| until > now.0) => {
                Some(window.clone())
            }
            _ => None,
        };
        if let (Some(window), Some(fields)) = (window, body.as_object_mut()) {
            fields.entry("previous_obfs").or_insert(window);
        }
        Ok(())
    }

    /// Checks the body by itself and merged with the others for every node concerned.
    async fn check_merged(
        &self,
        tx: &mut Tx,
        scope: ConfigScope,
        scope_id: i64,
        body: &Value,
    ) -> Result<(), ServiceError> {
        let concerned = match scope {
            ConfigScope::Fleet if scope_id == 0 => config_list::nodes(tx, None, None).await?,
            ConfigScope::Fleet => return Err(ServiceError::NotFound("configuration")),
            ConfigScope::Region => {
                regions::check(tx, RegionId(scope_id)).await?;
                config_list::nodes(tx, Some(RegionId(scope_id)), None).await?
            }
            ConfigScope::Node => {
                let node = NodeId(scope_id);
                let found = config_list::nodes(tx, None, Some(node)).await?;
                if found.is_empty() {
                    return Err(StoreError::NotFound("node").into());
                }
                found
            }
        };
        let fleet = match scope {
            ConfigScope::Fleet => body.clone(),
            _ => {
                let newest = config_list::newest(tx, ConfigScope::Fleet, 0).await?;
                newest.map_or_else(|| json!({}), |row| row.body.0)
            }
        };
        // Without a node in the way of it, the body alone over the fleet's.
        let mut alone = fleet.clone();
        config::merge(&mut alone, body);
        self.check_body(alone, "body")?;
        for (node, region) in concerned {
            let mut merged = fleet.clone();
            let layers = [
                (ConfigScope::Region, region.map(|id| id.0)),
                (ConfigScope::Node, Some(node.0)),
            ];
            for (layer, id) in layers {
                let Some(id) = id else { continue };
                if layer == scope && id == scope_id {
                    config::merge(&mut merged, body);
                } else if let Some(row) = config_list::newest(tx, layer, id).await? {
                    config::merge(&mut merged, &row.body.0);
                }
            }
            self.check_body(merged, &format!("body, on node {node}"))?;
        }
        Ok(())
    }

    fn check_body(&self, mut merged: Value, at: &str) -> Result<(), ServiceError> {
        config::open(self.vault(), &mut merged).map_err(ServiceError::internal)?;
        ConfigBody::parse(merged).map(drop).map_err(|errors| {
            let issue = |error: config::ConfigError| {
                FieldIssue::new(format!("{at}: {}", error.path), error.message)
            };
            ServiceError::Invalid(errors.into_iter().map(issue).collect())
        })
    }
}

/// Replaces passwords by [`HIDDEN`].
fn hide(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(text) if key == "password" => HIDDEN.clone_into(text),
                    other => hide(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        _ => {}
    }
}

/// Puts back the passwords that came as [`HIDDEN`].
fn keep_hidden(value: &mut Value, old: Option<&Value>, at: &str) -> Result<(), ServiceError> {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let old = old.and_then(|old| old.get(key));
                let path = format!("{at}.{key}");
                if key == "password" && field == HIDDEN {
                    let Some(known) = old.filter(|old| old.is_string()) else {
                        return Err(ServiceError::invalid(path, "there is no password to keep"));
                    };
                    *field = known.clone();
                } else {
                    keep_hidden(field, old, &path)?;
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().enumerate().try_for_each(|(index, item)| {
            let old = old.and_then(|old| old.get(index));
            keep_hidden(item, old, &format!("{at}[{index}]"))
        }),
        _ => Ok(()),
    }
}

/// Lists what differs, passwords hidden: that they differ is said, what they are is not.
fn diff(changes: &mut Vec<ConfigChange>, at: &str, old: Option<&Value>, new: Option<&Value>) {
    if old == new {
        return;
    }
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (old, new) {
        let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let path = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            diff(changes, &path, a.get(key), b.get(key));
        }
        return;
    }
    let shown = |value: Option<&Value>| {
        value.cloned().map(|mut value| {
            match &mut value {
                Value::String(text) if at.ends_with("password") => HIDDEN.clone_into(text),
                other => hide(other),
            }
            value
        })
    };
    let (before, after) = (shown(old), shown(new));
    changes.push(ConfigChange {
        path: at.to_owned(),
        before,
        after,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_names_fields_and_hides_passwords() {
        let old = json!({"a": 1, "obfs": {"salamander": {"password": "secret one"}}, "gone": true});
        let new = json!({"a": 2, "obfs": {"salamander": {"password": "secret two"}}, "new": [1]});
        let mut changes = Vec::new();
        diff(&mut changes, "", Some(&old), Some(&new));
        let paths: Vec<_> = changes.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(paths, ["a", "gone", "new", "obfs.salamander.password"]);
        assert!(!format!("{changes:?}").contains("secret"));
        assert_eq!(changes[0].before, Some(json!(1)));
        assert_eq!(changes[1].after, None);
    }

    #[test]
    fn a_hidden_password_is_kept_and_none_is_made_up() {
        let old = json!({"obfs": {"salamander": {"password": "sealed:x"}}});
        let mut body = json!({"obfs": {"salamander": {"password": "***"}}, "speed_test": true});
        keep_hidden(&mut body, Some(&old), "body").unwrap();
        assert_eq!(body["obfs"], old["obfs"]);
        let mut other = json!({"obfs": {"gecko": {"password": "***"}}});
        let refused = keep_hidden(&mut other, Some(&old), "body").unwrap_err();
        let ServiceError::Invalid(issues) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(issues[0].path, "body.obfs.gecko.password");
    }
}
