//! What a user may connect to, in the order in which clients should try.

use std::str::FromStr;

use hy2_proto::address::Host;
use hy2_proto::ports::PortUnion;
use hy2_proto::uri::{Obfs, ShareUri};
use sha2::{Digest, Sha256};

use crate::domain::config::{self, ConfigBody, ObfsBody, TlsBody};
use crate::domain::{DesiredState, ObservedState, Timestamp};
use crate::secrets::{Credential, Seed};
use crate::service::{Service, ServiceError};
use crate::store::nodes::NodeRow;
use crate::store::users::UserRow;
use crate::store::{plans, published};

/// Most servers of a subscription.
const MAX_SERVERS: u32 = 64;

/// A user with the nodes that serve them.
#[derive(Debug)]
pub struct Subscription {
    /// The user.
    pub user: UserRow,
    /// The quota in force: the user's or the plan's.
    pub quota: Option<i64>,
    /// The limit of devices in force.
    pub max_devices: Option<i64>,
    /// Nodes, the first to try first; none when the user may not connect.
    pub nodes: Vec<NodeRow>,
    /// Changes with everything that an answer is made from.
    pub fingerprint: String,
}

/// A server as clients need to know it.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// What to call it.
    pub name: String,
    /// Where it is.
    pub host: String,
    /// At which port.
    pub port: u16,
    /// With what.
    pub credential: Credential,
    /// Server name for TLS, where the certificate has another than `host`.
    pub sni: Option<String>,
    /// Certificate of the private authority that clients pin: its SHA-256, and DER.
    pub pinned: Option<([u8; 32], Vec<u8>)>,
    /// Obfuscation.
    pub obfs: Option<ObfsBody>,
}

impl Subscription {
    /// Looks up what serves a user.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn of(service: &Service, user: UserRow) -> Result<Self, ServiceError> {
        let store = service.store();
        let plan = match user.plan_id {
            Some(id) => Some(plans::get(store, id).await?),
            None => None,
        };
        let mut nodes = Vec::new();
        // That a time is over is noted by a task; nodes know it by themselves, and so does this.
        let over = user.expires_at.is_some_and(|end| end <= service.now());
        if user.status.may_connect() && !over {
            let assigned = store
                .assignments(Some(user.id), None, false, None, MAX_SERVERS)
                .await?;
            for assignment in assigned {
                let node = store.node(assignment.node_id).await?;
                if serves(&node) {
                    nodes.push((comes_last(&node), assignment.rank, node));
                }
            }
            nodes.sort_by_key(|(last, rank, node)| (*last, *rank, node.id));
        }
        let nodes: Vec<NodeRow> = nodes.into_iter().map(|(.., node)| node).collect();
        let mut hasher = Sha256::new();
        hasher.update(user.id.0.to_be_bytes());
        hasher.update(user.rev.to_be_bytes());
        for node in &nodes {
            hasher.update(node.id.0.to_be_bytes());
            hasher.update(node.rev.to_be_bytes());
            hasher.update(node.config_rev.to_be_bytes());
            hasher.update([u8::from(lags(node))]);
        }
        Ok(Self {
            quota: user
                .quota_bytes
                .or_else(|| plan.as_ref().and_then(|plan| plan.quota_bytes)),
            max_devices: user
                .max_devices
                .or_else(|| plan.and_then(|plan| plan.max_devices)),
            fingerprint: hex::encode(hasher.finalize()),
            user,
            nodes,
        })
    }

    /// Returns the servers with the user's credentials, and whether they are all: a node whose certificate is about to
    /// be made is left out, because clients could not tell it from another.
    ///
    /// # Errors
    ///
    /// The store fails, or a secret does not open.
    pub async fn servers(&self, service: &Service) -> Result<(Vec<Server>, bool), ServiceError> {
        let vault = service.vault();
        let chosen = match &self.user.credential_enc {
            Some(sealed) => Some(
                Credential::open(vault, self.user.uid, sealed).map_err(ServiceError::internal)?,
            ),
            None => None,
        };
        let seed = Seed::open(vault, self.user.uid, &self.user.seed_enc)
            .map_err(ServiceError::internal)?;
        let mut servers = Vec::with_capacity(self.nodes.len());
        let mut all = true;
        let mut tx = service.store().snapshot().await?;
        for node in &self.nodes {
            let bodies = published::configs_of(&mut tx, node.id, node.region_id).await?;
            let mut merged = serde_json::json!({});
            for body in &bodies {
                config::merge(&mut merged, body);
            }
            config::open(vault, &mut merged).map_err(ServiceError::internal)?;
            // What was put in force has been checked; a node that cannot run it is left out.
            let Ok(body) = ConfigBody::parse(merged) else {
                tracing::warn!(node = %node.id, "the node's configuration is not valid");
                continue;
            };
            let tls = match body.tls {
                TlsBody::Issued => {
                    let tls = published::node_tls(&mut tx, node.id).await?;
                    if tls.is_none() {
                        all = false;
                        continue;
                    }
                    tls
                }
                TlsBody::Files { .. } => None,
            };
            let pinned = match &tls {
                Some(tls) => {
                    let hash = <[u8; 32]>::try_from(tls.sha256.as_slice())
                        .map_err(ServiceError::internal)?;
                    Some((hash, tls.certificate.clone()))
                }
                None => None,
            };
            servers.push(Server {
                name: node.name.clone(),
                host: node.public_host.clone(),
                port: u16::try_from(node.listen_port).map_err(ServiceError::internal)?,
                credential: chosen.clone().unwrap_or_else(|| seed.credential(node.uid)),
                sni: tls
                    .map(|tls| tls.host)
                    .filter(|host| *host != node.public_host),
                pinned,
                obfs: spoken(body, lags(node), service.now()),
            });
        }
        tx.rollback().await?;
        Ok((servers, all))
    }
}

fn serves(node: &NodeRow) -> bool {
    let wanted = matches!(
        node.desired_state,
        DesiredState::Active | DesiredState::Cordoned
    );
    let never = matches!(
        node.observed_state,
        ObservedState::Pending | ObservedState::Revoked
    );
    wanted && !never
}

/// A node whose control link is silent may well serve, and one that is to be empty does: they come last, not never.
fn comes_last(node: &NodeRow) -> bool {
    let silent = matches!(
        node.observed_state,
        ObservedState::Offline | ObservedState::Error
    );
    silent || node.desired_state == DesiredState::Cordoned
}

/// A node that runs, but not yet with the newest body: its control link may be silent for long.
fn lags(node: &NodeRow) -> bool {
    node.applied_rev > 0 && node.applied_rev < node.config_rev
}

/// Returns what a node understands for certain: one that lags may know the former obfuscation only, and both are
/// accepted while the window is open.
fn spoken(body: ConfigBody, lags: bool, now: Timestamp) -> Option<ObfsBody> {
    match body.previous_obfs {
        Some(previous) if lags && previous.until > now => previous.obfs,
        _ => body.obfs,
    }
}

impl Server {
    /// Returns the share link.
    ///
    /// # Errors
    ///
    /// The node's host is none.
    pub fn uri(&self) -> Result<ShareUri, ServiceError> {
        let host = Host::from_str(&self.host).map_err(ServiceError::internal)?;
        let mut uri = ShareUri::new(host);
        uri.auth = Some(self.credential.as_str().to_owned());
        uri.ports = Some(PortUnion::from(self.port));
        uri.sni.clone_from(&self.sni);
        uri.name = Some(self.name.clone());
        if let Some((hash, _)) = &self.pinned {
            // The pin decides; no public authority knows the certificate.
            uri.insecure = true;
            uri.pin_sha256 = Some(hex::encode(hash));
        }
        uri.obfs = match &self.obfs {
            None => None,
            Some(ObfsBody::Salamander { password }) => Some(Obfs::Salamander(password.clone())),
            Some(ObfsBody::Gecko { password, .. }) => Some(Obfs::Gecko(password.clone())),
        };
        Ok(uri)
    }

    /// Returns kind and password of the obfuscation.
    pub(super) fn obfuscation(&self) -> Option<(&'static str, &str)> {
        match &self.obfs {
            None => None,
            Some(ObfsBody::Salamander { password }) => Some(("salamander", password)),
            Some(ObfsBody::Gecko { password, .. }) => Some(("gecko", password)),
        }
    }
}
