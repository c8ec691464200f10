//! Pure functions: rows in, what a node should have out.

pub mod assign;
mod users;

use hy2_proto::control::{RESOURCE_CONFIG, RESOURCE_USERS, rpc};

use crate::domain::{DesiredState, Timestamp};
use crate::store::nodes::NodeRow;

pub use self::users::{EntryError, UserSet, user_entry};

/// Returns the manifest of a node's desired revision. Everything in it follows from that revision:
/// two masters, or one master twice, sign the same bytes.
pub fn manifest(node: &NodeRow, epoch: i64, config: [u8; 32], users: [u8; 32]) -> rpc::Manifest {
    let resource = |kind: &str, rev: i64, sha256: [u8; 32]| rpc::ResourceRef {
        r#type: kind.to_owned(),
        rev: rev.unsigned_abs(),
        sha256: sha256.to_vec().into(),
    };
    rpc::Manifest {
        cluster_epoch: epoch.unsigned_abs(),
        node_uid: node.uid.as_bytes().to_vec().into(),
        rev: node.desired_rev.unsigned_abs(),
        resources: vec![
            resource(RESOURCE_CONFIG, node.config_rev, config),
            resource(RESOURCE_USERS, node.users_rev, users),
        ],
        issued_at: Some(node.desired_at.to_proto()),
        valid_until: Some(
            Timestamp(node.desired_at.0.saturating_add(MANIFEST_VALIDITY_MS)).to_proto(),
        ),
        desired_state: match node.desired_state {
            DesiredState::Active => rpc::NodeDesiredState::Active,
            DesiredState::Cordoned => rpc::NodeDesiredState::Cordoned,
            DesiredState::Draining => rpc::NodeDesiredState::Draining,
            DesiredState::Maintenance => rpc::NodeDesiredState::Maintenance,
            DesiredState::Disabled => rpc::NodeDesiredState::Disabled,
        }
        .into(),
        drain_deadline: node.drain_deadline.map(Timestamp::to_proto),
    }
}

/// How long a signed manifest is good (control-plane.md, rulings); half of it is when it is renewed.
pub const MANIFEST_VALIDITY_MS: i64 = 7 * Timestamp::DAY;
