//! From what the store says a node should have to the messages that bring it there.

use std::sync::Arc;

use bytes::Bytes;
use hy2_proto::control::{RESOURCE_CONFIG, RESOURCE_USERS, hash, rpc};
use prost::Message;
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::chain;
use crate::auth::ca::CaError;
use crate::core::{Core, NODE_TLS_KEY};
use crate::domain::config::{self, ConfigBody, ConfigError, NodeParts, TlsBody};
use crate::domain::{NodeId, Timestamp, UserId};
use crate::plan::{self, UserSet};
use crate::secrets::OpenError;
use crate::store::nodes::{self, NodeRow};
use crate::store::published::{self, NodeTlsRow};
use crate::store::{StoreError, Tx};

/// What this master knows of a node's set of users. Kept while the process runs, so that a change
/// costs what changed.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// The node's revision up to which changes are in the set.
    rev: i64,
    set: UserSet,
}

/// What a node holds, as it said or acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Have {
    pub(super) epoch: u64,
    pub(super) config: Option<[u8; 32]>,
    /// Revision of the set of users; `None`: start anew.
    pub(super) users: Option<(i64, [u8; 32])>,
}

impl Have {
    /// Takes what a node says when it connects.
    pub(super) fn of(hello: &rpc::Hello) -> Self {
        let find = |kind: &str| {
            hello
                .have
                .iter()
                .find(|resource| resource.r#type == kind)
                .and_then(|resource| {
                    let hash: [u8; 32] = resource.sha256.as_ref().try_into().ok()?;
                    Some((i64::try_from(resource.rev).ok()?, hash))
                })
        };
        Self {
            epoch: hello.cluster_epoch,
            config: find(RESOURCE_CONFIG).map(|(_, hash)| hash),
            users: find(RESOURCE_USERS),
        }
    }
}

/// An update on its way.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) rev: i64,
    /// What the node has when it acknowledges.
    pub(super) have: Have,
    /// Whether the set of users was sent anew.
    pub(super) snapshot: bool,
    /// Users who are no longer on the node.
    pub(super) removed: Vec<UserId>,
    pub(super) parts: Vec<rpc::ResourceUpdate>,
}

/// A node's desired state cannot be made.
#[derive(Debug, Error)]
pub(super) enum PublishError {
    #[error("the store fails")]
    Store(#[from] StoreError),
    #[error("the node's configuration is invalid: {}", list(.0))]
    Config(Vec<ConfigError>),
    #[error("a password in the configuration does not open")]
    Open(#[from] OpenError),
    #[error("cannot make the node's Hysteria certificate")]
    Certificate(#[from] CaError),
}

fn list(errors: &[ConfigError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Returns the update that brings a node from what it has to what it should have.
pub(super) async fn prepare(
    core: &Core,
    node: NodeId,
    view: &mut View,
    have: &Have,
) -> Result<Update, PublishError> {
    let epoch = core.epoch();
    // Outside the snapshot, because it writes.
    ensure_tls(core, node).await?;
    let mut tx = core.store.snapshot().await?;
    let row = nodes::get(&mut tx, node).await?;
    let config = Bytes::from(node_config(core, &mut tx, &row).await?.encode_to_vec());
    let config_hash = hash::blob(&config);
    let same_epoch = have.epoch == epoch.unsigned_abs();
    let base = have
        .users
        .filter(|(rev, _)| same_epoch && (1..=row.users_rev).contains(rev))
        .map(|(rev, _)| rev);
    let mut changes = load(core, &mut tx, &row, view, base).await?;
    tx.rollback().await?;
    let mut users_hash = view.set.hash();
    let mut snapshot = base.is_none();
    // At the same revision it holds another set: nothing leads from there to here.
    if !snapshot
        && have
            .users
            .is_some_and(|(rev, hash)| rev == row.users_rev && hash != users_hash)
    {
        let mut tx = core.store.snapshot().await?;
        changes = load(core, &mut tx, &row, view, None).await?;
        tx.rollback().await?;
        users_hash = view.set.hash();
        snapshot = true;
    }
    let manifest = plan::manifest(&row, epoch, config_hash, users_hash);
    let signed = core.trust.load().signer.sign(&manifest);
    let config = (!same_epoch || have.config != Some(config_hash)).then_some(config);
    let removed = changes.remove.clone();
    Ok(Update {
        rev: row.desired_rev,
        have: Have {
            epoch: epoch.unsigned_abs(),
            config: Some(config_hash),
            users: Some((row.users_rev, users_hash)),
        },
        snapshot,
        removed,
        parts: split(signed, config, snapshot, base.unwrap_or(0), changes),
    })
}

/// Changes of a set of users, each entry encoded.
#[derive(Debug, Default)]
struct Changes {
    upsert: Vec<Bytes>,
    remove: Vec<UserId>,
}

/// Brings the view up to the snapshot, and returns what changed after `base`, or everything.
async fn load(
    core: &Core,
    tx: &mut Tx,
    node: &NodeRow,
    view: &mut View,
    base: Option<i64>,
) -> Result<Changes, StoreError> {
    let mut changes = Changes::default();
    match base {
        None => {
            *view = View::default();
            read(core, tx, node, view, 0, Some(&mut changes)).await?;
            changes.remove.clear();
        }
        Some(base) => {
            if view.rev < base {
                // The node knows more than this master has looked at.
                read(core, tx, node, view, view.rev, None).await?;
            }
            read(core, tx, node, view, base, Some(&mut changes)).await?;
        }
    }
    view.rev = node.desired_rev;
    Ok(changes)
}

/// Puts the entries that changed after `since` into the view, and into `changes` when given.
async fn read(
    core: &Core,
    tx: &mut Tx,
    node: &NodeRow,
    view: &mut View,
    since: i64,
    mut changes: Option<&mut Changes>,
) -> Result<(), StoreError> {
    let key = core.keys.node_key(node.uid);
    let mut after = UserId(0);
    loop {
        let page = published::entries(tx, node.id, since, after, PAGE).await?;
        for row in &page {
            let entry = plan::user_entry(row, node.uid, &key, &core.keys, &core.vault)
                .unwrap_or_else(|error| {
                    // One damaged row does not keep the node from everybody else.
                    tracing::error!(error = chain(&error), "user left out");
                    None
                });
            let encoded = view.set.set(row.user_id, entry.as_ref());
            if let Some(changes) = &mut changes {
                match encoded {
                    Some(encoded) => changes.upsert.push(encoded),
                    None => changes.remove.push(row.user_id),
                }
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE as usize => after = last.user_id,
            _ => return Ok(()),
        }
    }
}

/// Splits an update into messages well below the limit; the last has the manifest.
fn split(
    manifest: rpc::SignedManifest,
    config: Option<Bytes>,
    snapshot: bool,
    base: i64,
    changes: Changes,
) -> Vec<rpc::ResourceUpdate> {
    let mut parts = vec![rpc::ResourceUpdate {
        has_config: config.is_some(),
        config: config.unwrap_or_default(),
        users_snapshot: snapshot,
        users_base_rev: base.unsigned_abs(),
        ..Default::default()
    }];
    let mut room = PART_BYTES;
    let upserts = changes.upsert.into_iter().map(Ok);
    for change in upserts.chain(changes.remove.into_iter().map(Err)) {
        let size = change.as_ref().map_or(10, Bytes::len) + 8;
        let full = parts
            .last()
            .is_some_and(|part| part.upsert_users.len() + part.remove_users.len() >= PART_USERS);
        if full || size > room {
            parts.push(rpc::ResourceUpdate {
                users_base_rev: base.unsigned_abs(),
                ..Default::default()
            });
            room = PART_BYTES;
        }
        room = room.saturating_sub(size);
        let part = parts.last_mut().expect("there is a first part");
        match change {
            Ok(entry) => part.upsert_users.push(entry),
            Err(user) => part.remove_users.push(user.to_wire()),
        }
    }
    for (number, part) in parts.iter_mut().enumerate() {
        part.part = u32::try_from(number).unwrap_or(u32::MAX);
    }
    let last = parts.last_mut().expect("there is a first part");
    last.last = true;
    last.manifest = Some(manifest);
    parts
}

async fn merged(core: &Core, tx: &mut Tx, node: &NodeRow) -> Result<ConfigBody, PublishError> {
    let mut body = serde_json::Value::Object(serde_json::Map::new());
    for patch in published::configs_of(tx, node.id, node.region_id).await? {
        config::merge(&mut body, &patch);
    }
    config::open(&core.vault, &mut body)?;
    ConfigBody::parse(body).map_err(PublishError::Config)
}

async fn node_config(
    core: &Core,
    tx: &mut Tx,
    node: &NodeRow,
) -> Result<rpc::NodeConfig, PublishError> {
    let body = merged(core, tx, node).await?;
    let port = u16::try_from(node.listen_port).unwrap_or(8080);
    let mut parts = NodeParts::new(port, *core.keys.fleet_key(), *core.keys.node_key(node.uid));
    if body.tls == TlsBody::Issued
        && let Some(tls) = published::node_tls(tx, node.id).await?
    {
        let key = core
            .vault
            .open(NODE_TLS_KEY, node.uid.as_bytes(), &tls.private_key_enc)?;
        parts.issued = Some((tls.certificate, key.to_vec()));
    }
    Ok(body.to_proto(&parts))
}

/// Makes the node's Hysteria certificate unless there is one.
async fn ensure_tls(core: &Core, node: NodeId) -> Result<(), PublishError> {
    if core.store.node_tls(node).await?.is_some() {
        return Ok(());
    }
    let now = core.now();
    let mut tx = core.store.begin().await?;
    let row = nodes::get(&mut tx, node).await?;
    let made = core
        .trust
        .load()
        .authority
        .issue_hysteria(&row.public_host, now)?;
    let tls = seal_tls(
        core,
        row.id,
        row.uid,
        &row.public_host,
        &made.issued.certificate,
        made.issued.not_after,
        &made.key,
    );
    published::insert_node_tls(&mut tx, &tls, now).await?;
    tx.commit().await?;
    Ok(())
}

fn seal_tls(
    core: &Core,
    node_id: NodeId,
    uid: Uuid,
    host: &str,
    certificate: &CertificateDer<'_>,
    not_after: Timestamp,
    key: &Zeroizing<Vec<u8>>,
) -> NodeTlsRow {
    NodeTlsRow {
        node_id,
        certificate: certificate.to_vec(),
        private_key_enc: core.vault.seal(NODE_TLS_KEY, uid.as_bytes(), key),
        sha256: crate::secrets::sha256(certificate).to_vec(),
        host: host.to_owned(),
        not_after,
    }
}

/// Views of all nodes that were published to.
#[derive(Debug, Default)]
pub(crate) struct Views {
    views: parking_lot::Mutex<std::collections::HashMap<NodeId, Arc<tokio::sync::Mutex<View>>>>,
}

impl Views {
    pub(super) fn of(&self, node: NodeId) -> Arc<tokio::sync::Mutex<View>> {
        Arc::clone(self.views.lock().entry(node).or_default())
    }

    /// Forgets nodes that are not connected: their sets are read again when they come back.
    pub(crate) fn retain(&self, connected: impl Fn(NodeId) -> bool) {
        self.views.lock().retain(|node, _| connected(*node));
    }
}

const PAGE: u32 = 5_000;
/// Few: a stream keeps a buffer as large as its largest message for as long as it lasts.
const PART_USERS: usize = 50;
const PART_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(upserts: usize, size: usize, removes: i64) -> Changes {
        Changes {
            upsert: (0..upserts).map(|_| Bytes::from(vec![0; size])).collect(),
            remove: (1..=removes).map(UserId).collect(),
        }
    }

    #[test]
    fn an_update_without_changes_is_one_part_with_the_manifest() {
        let parts = split(
            rpc::SignedManifest::default(),
            None,
            false,
            7,
            changes(0, 0, 0),
        );
        assert_eq!(parts.len(), 1);
        assert!(parts[0].last && parts[0].manifest.is_some() && !parts[0].has_config);
        assert_eq!(parts[0].users_base_rev, 7);
    }

    #[test]
    fn parts_are_numbered_bounded_and_only_the_last_has_the_manifest() {
        let config = Some(Bytes::from_static(b"config"));
        let parts = split(
            rpc::SignedManifest::default(),
            config,
            true,
            0,
            changes(1_200, 60, 30),
        );
        assert_eq!(parts.len(), 25);
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(part.part as usize, number);
            assert!(part.upsert_users.len() + part.remove_users.len() <= PART_USERS);
            assert_eq!(part.manifest.is_some(), part.last);
            assert_eq!(part.last, number == 24);
            assert_eq!(part.has_config, number == 0);
            assert_eq!(part.users_snapshot, number == 0);
        }
        let big = split(
            rpc::SignedManifest::default(),
            None,
            true,
            0,
            changes(100, 100 << 10, 0),
        );
        assert!(big.len() >= 10);
        assert!(big.iter().all(|part| part.encoded_len() < 2 << 20));
    }
}
