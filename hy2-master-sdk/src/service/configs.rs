//! Configuration of nodes: bodies for the fleet, a region or a node, kept for ever, never changed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::moment::Moment;
use super::obfuscation::{self, Bodies, FLEET, KeepError, Place, places};
use super::page::{Page, PageRequest};
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::config::{self, ConfigBody};
use crate::domain::{ConfigRevisionId, ConfigScope, NodeId, RegionId};
use crate::store::nodes::{self, NodeRow};
use crate::store::published::{self, ConfigRow, NewConfig};
use crate::store::{StoreError, Tx, config_list, regions};

/// What passwords in a body read as; written back, they stay what they are.
const HIDDEN: &str = "***";

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
        let said = self.said(old, &mut body)?;
        let revision = Revision {
            place: (scope, scope_id),
            body,
            message: put.message,
        };
        self.append(tx, access, revision, said, "body.obfs", put.dry_run)
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
        let mut body = old.body.0;
        if let Some(fields) = body.as_object_mut() {
            // The window of then was for what was before it then.
            fields.remove("previous_obfs");
        }
        let revision = Revision {
            place: (old.scope, old.scope_id),
            body,
            message,
        };
        let row = self
            .append(tx, access, revision, None, "obfs", false)
            .await?;
        row.ok_or_else(|| ServiceError::internal("a rollback is no dry run"))
    }

    /// Puts a body in force, and what keeps nodes from cutting those who use the obfuscation of before; `field` is
    /// named when that is impossible.
    async fn append(
        &self,
        mut tx: Tx,
        access: Access<'_>,
        mut revision: Revision,
        said: Option<Value>,
        field: &str,
        dry_run: bool,
    ) -> Result<Option<ConfigRow>, ServiceError> {
        if config::open(self.vault(), &mut revision.body.clone()).is_err() {
            let message = "a password begins with \"sealed:\", which only those do that this master has sealed";
            return Err(ServiceError::invalid("body", message));
        }
        config::seal(self.vault(), &mut revision.body);
        let place = revision.place;
        let nodes = concerned(&mut tx, place).await?;
        let mut before = Bodies::default();
        before.load(&mut tx, &[FLEET, place]).await?;
        for node in &nodes {
            before.load(&mut tx, node).await?;
        }
        let mut after = before.clone();
        after.put(place, revision.body);
        self.check_merged(&after, place, &nodes)?;
        for node in &nodes {
            let (old, new) = (before.merged(node), after.merged(node));
            if let Some((_, id)) = node.last().filter(|_| old["listen"] != new["listen"]) {
                let port = nodes::get(&mut tx, NodeId(*id)).await?.listen_port;
                keep_port((&old, port), (&new, port), *id, "body.listen")?;
            }
        }
        let others = self.keep_obfuscation(&before, &mut after, (place, &nodes), said, field)?;
        if dry_run {
            tx.rollback().await?;
            return Ok(None);
        }
        revision.body = after.of(place);
        let row = self.write_config(&mut tx, access, revision).await?;
        for other in others {
            let revision = Revision {
                place: other,
                body: after.of(other),
                message: format!("previous_obfs, after revision {}", row.id),
            };
            self.write_config(&mut tx, access, revision).await?;
        }
        tx.commit().await?;
        Ok(Some(row))
    }

    /// Appends a revision whose passwords are sealed.
    pub(super) async fn write_config(
        &self,
        tx: &mut Tx,
        access: Access<'_>,
        revision: Revision,
    ) -> Result<ConfigRow, ServiceError> {
        let (scope, scope_id) = revision.place;
        let now = self.now();
        let new = NewConfig {
            scope,
            scope_id,
            body: revision.body,
            author: Some(access.caller().admin).filter(|admin| admin.0 > 0),
            message: revision.message,
        };
        let row = published::append_config(tx, &new, now).await?;
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
        record(tx, access, written, now).await?;
        Ok(row)
    }

    /// Returns what a body says of the obfuscation that is accepted beside its own. A window that came back with the
    /// rest of the body, as it was read, says nothing of this change, and is taken out.
    fn said(&self, old: Option<&Value>, body: &mut Value) -> Result<Option<Value>, ServiceError> {
        let Some(window) = body.get("previous_obfs").cloned() else {
            return Ok(None);
        };
        let known = old.and_then(|old| old.get("previous_obfs"));
        let until = window["until"].as_i64();
        let over = until.is_some_and(|until| until <= self.now().0);
        if over && known.and_then(|known| known["until"].as_i64()) != until {
            return Err(ServiceError::invalid(
                "body.previous_obfs.until",
                "is over: leave previous_obfs out, or name a time to come",
            ));
        }
        if !over && (window.is_null() || known != Some(&window)) {
            return Ok(Some(window));
        }
        if let Some(fields) = body.as_object_mut() {
            fields.remove("previous_obfs");
        }
        Ok(None)
    }

    /// Lets clients use the obfuscation of before for a day more wherever `after` brings another one, and keeps such
    /// windows that are open. Returns the places whose bodies have to be others for that, beside the changed one.
    fn keep_obfuscation(
        &self,
        before: &Bodies,
        after: &mut Bodies,
        (place, nodes): (Place, &[Vec<Place>]),
        said: Option<Value>,
        field: &str,
    ) -> Result<Vec<Place>, ServiceError> {
        // Where nothing runs yet, nobody uses anything.
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut paths = vec![path_of(place, nodes)];
        if place == FLEET {
            let regions: BTreeSet<_> = nodes
                .iter()
                .flatten()
                .filter(|(scope, _)| *scope == ConfigScope::Region)
                .map(|(_, id)| *id)
                .collect();
            let below = regions.into_iter();
            paths.extend(below.map(|id| vec![FLEET, (ConfigScope::Region, id)]));
        }
        if place.0 != ConfigScope::Node {
            paths.extend_from_slice(nodes);
        }
        let mut others = Vec::new();
        for path in paths {
            let kept = obfuscation::keep(
                self.vault(),
                self.now(),
                (before, &path),
                (after, &path),
                said.as_ref(),
            );
            let Some(&last) = path.last() else { continue };
            match kept {
                Ok(is_other) => others.extend((is_other && last != place).then_some(last)),
                Err(KeepError::Open(error)) => return Err(ServiceError::internal(error)),
                Err(KeepError::Taken(until)) => {
                    let message = format!(
                        "node {} accepts until {until} what clients used before the last change of its obfuscation, \
                         and cannot accept a third one: wait until then, or say with previous_obfs in the body which \
                         one is accepted beside the new one (null: none)",
                        last.1
                    );
                    return Err(ServiceError::invalid(field, message));
                }
            }
        }
        Ok(others)
    }

    /// Checks a changed body by itself and merged with the others for every node concerned.
    fn check_merged(
        &self,
        after: &Bodies,
        place: Place,
        nodes: &[Vec<Place>],
    ) -> Result<(), ServiceError> {
        self.check_body(after.merged(&path_of(place, nodes)), "body")?;
        for node in nodes {
            let number = node.last().map_or(0, |(_, id)| *id);
            self.check_body(after.merged(node), &format!("body, on node {number}"))?;
        }
        Ok(())
    }

    fn check_body(&self, mut merged: Value, at: &str) -> Result<(), ServiceError> {
        config::open(self.vault(), &mut merged).map_err(ServiceError::internal)?;
        let checked = ConfigBody::parse(merged).and_then(|body| body.check_for_nodes());
        checked.map_err(|errors| {
            let issue = |error: config::ConfigError| {
                FieldIssue::new(format!("{at}: {}", error.path), error.message)
            };
            ServiceError::Invalid(errors.into_iter().map(issue).collect())
        })
    }

    /// Lets the clients of a node that has gone to another region use the obfuscation of before for a day more, and lets
    /// neither that nor another port send them where the node does not listen; `tx` has the lock of configurations.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of `region_id` if the configuration of the region is not one for this node, and of
    /// `listen_port`.
    pub(super) async fn configure_moved(
        &self,
        tx: &mut Tx,
        access: Access<'_>,
        [old, new]: [&NodeRow; 2],
    ) -> Result<(), ServiceError> {
        let node = new.id;
        let places = [old, new].map(|row| places(row.id, row.region_id));
        let mut before = Bodies::default();
        for place in &places {
            before.load(tx, place).await?;
        }
        let merged = places.each_ref().map(|place| before.merged(place));
        let moved = old.region_id != new.region_id;
        let field = if moved { "region_id" } else { "listen_port" };
        let [was, is] = &merged;
        keep_port((was, old.listen_port), (is, new.listen_port), node.0, field)?;
        if !moved {
            return Ok(());
        }
        let mut after = before.clone();
        let [old, new] = places;
        self.check_body(after.merged(&new), "region_id")?;
        let own = (ConfigScope::Node, node.0);
        let both = (&mut after, new.as_slice());
        match obfuscation::keep(self.vault(), self.now(), (&before, &old), both, None) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let revision = Revision {
                    place: own,
                    body: after.of(own),
                    message: "previous_obfs, after the move to another region".to_owned(),
                };
                self.write_config(tx, access, revision).await.map(drop)
            }
            Err(KeepError::Open(error)) => Err(ServiceError::internal(error)),
            Err(KeepError::Taken(until)) => {
                let message = format!(
                    "there the node gets another obfuscation, and it accepts until {until} what clients used before \
                     the last change of the one it has, and cannot accept a third one: wait until then, or give up \
                     the older one with previous_obfs: null in the configuration of the node"
                );
                Err(ServiceError::invalid("region_id", message))
            }
        }
    }
}

/// Keeps the port that clients are sent to, a node's `listen_port`, among those that it listens at. Where it was not among
/// them before, something in front of the node brings clients there.
fn keep_port(
    (before, old): (&Value, i64),
    (after, new): (&Value, i64),
    node: i64,
    field: &str,
) -> Result<(), ServiceError> {
    if !listens_at(before, old) || listens_at(after, new) {
        return Ok(());
    }
    let message = format!(
        "clients are sent to port {new} of node {node} (listen_port), where it would not listen: to move them let it listen \
         at both ports, then change listen_port, then take the old port out"
    );
    Err(ServiceError::invalid(field, message))
}

/// Returns whether a body listens at a port; without addresses it does at the node's, whichever that is.
fn listens_at(body: &Value, port: i64) -> bool {
    let Some(addresses) = body["listen"].as_array().filter(|all| !all.is_empty()) else {
        return true;
    };
    addresses.iter().any(|address| {
        let at = address.as_str().and_then(|text| text.rsplit_once(':'));
        at.and_then(|(_, port)| port.parse().ok()) == Some(port)
    })
}

/// A body on its way into force.
pub(super) struct Revision {
    place: Place,
    body: Value,
    message: String,
}

/// Returns the places of every node that a body is for.
async fn concerned(tx: &mut Tx, (scope, id): Place) -> Result<Vec<Vec<Place>>, ServiceError> {
    let found = match scope {
        ConfigScope::Fleet if id == 0 => config_list::nodes(tx, None, None).await?,
        ConfigScope::Fleet => return Err(ServiceError::NotFound("configuration")),
        ConfigScope::Region => {
            regions::check(tx, RegionId(id)).await?;
            config_list::nodes(tx, Some(RegionId(id)), None).await?
        }
        ConfigScope::Node => {
            let found = config_list::nodes(tx, None, Some(NodeId(id))).await?;
            if found.is_empty() {
                return Err(StoreError::NotFound("node").into());
            }
            found
        }
    };
    let each = found.into_iter();
    Ok(each.map(|(node, region)| places(node, region)).collect())
}

/// Returns a place with the more general ones in front of it; `nodes` are those that it is for.
fn path_of(place: Place, nodes: &[Vec<Place>]) -> Vec<Place> {
    match place.0 {
        ConfigScope::Fleet => vec![FLEET],
        ConfigScope::Region => vec![FLEET, place],
        ConfigScope::Node => nodes.iter().flatten().copied().collect(),
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
        let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
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
