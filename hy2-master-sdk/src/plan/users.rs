//! The set of users of a node.

use bytes::Bytes;
use hy2_proto::control::{hash, rpc};
use prost::Message;
use thiserror::Error;
use uuid::Uuid;

use crate::domain::{Timestamp, UserId};
use crate::secrets::{FleetKeys, OpenError, Seed, Vault};
use crate::store::published::EntryRow;

/// A user's entry cannot be made.
#[derive(Debug, Error)]
#[error("the secrets of user {user} do not open")]
pub struct EntryError {
    /// Whose.
    pub user: UserId,
    /// Why.
    #[source]
    pub source: OpenError,
}

/// Returns a user's entry on a node; `None` when the user is not to connect there.
///
/// # Errors
///
/// The user's secrets do not open.
pub fn user_entry(
    row: &EntryRow,
    node: Uuid,
    node_key: &[u8; 32],
    keys: &FleetKeys,
    vault: &Vault,
) -> Result<Option<rpc::UserEntry>, EntryError> {
    if row.assigned == 0 || !row.status.may_connect() {
        return Ok(None);
    }
    let auth_hash = match &row.auth_hash {
        Some(hash) => hash.as_slice().try_into().map_err(|_| OpenError::Format),
        None => Seed::open(vault, row.user_uid, &row.seed_enc)
            .map(|seed| keys.auth_hash(&seed.credential(node))),
    }
    .map_err(|source| EntryError {
        user: row.user_id,
        source,
    })?;
    let limit = |value: Option<i64>| value.map_or(0, i64::unsigned_abs);
    let count = |value: Option<i64>| u32::try_from(limit(value)).unwrap_or(u32::MAX);
    Ok(Some(rpc::UserEntry {
        user_id: row.user_id.to_wire(),
        verifier: Bytes::copy_from_slice(&FleetKeys::verifier(node_key, &auth_hash)),
        up_bytes_per_s: limit(row.up_bytes_per_s),
        down_bytes_per_s: limit(row.down_bytes_per_s),
        max_connections: count(row.max_connections),
        max_devices: count(row.max_devices),
        expires_at: row.expires_at.map(Timestamp::to_proto),
        metered: row.quota_bytes.is_some(),
        rev: row.rev.unsigned_abs(),
    }))
}

/// The digests of a node's entries: enough to name the set and to know what changed.
///
/// A sorted list: a tree takes half as much again, and a master holds one set for each of its nodes.
#[derive(Debug, Default)]
pub struct UserSet {
    digests: Vec<(u64, [u8; 32])>,
}

impl UserSet {
    /// Puts an entry in, or takes it out. Returns the encoded entry when there is one.
    pub fn set(&mut self, user: UserId, entry: Option<&rpc::UserEntry>) -> Option<Bytes> {
        let user = user.to_wire();
        let place = self.digests.binary_search_by_key(&user, |(user, _)| *user);
        let Some(entry) = entry else {
            if let Ok(at) = place {
                self.digests.remove(at);
            }
            return None;
        };
        let encoded = Bytes::from(entry.encode_to_vec());
        let digest = hash::blob(&encoded);
        match place {
            Ok(at) => self.digests[at].1 = digest,
            Err(at) => {
                if self.digests.len() == self.digests.capacity() {
                    self.digests.reserve_exact(self.digests.len() / 8 + 8);
                }
                self.digests.insert(at, (user, digest));
            }
        }
        Some(encoded)
    }

    /// Returns the hash by which a manifest names the set.
    pub fn hash(&self) -> [u8; 32] {
        hash::user_set(self.digests.iter().map(|(_, digest)| digest))
    }

    /// Returns how many users there are.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::UserStatus;
    use crate::secrets::{Credential, MasterKeys, UserSecrets};

    fn row(vault: &Vault, status: UserStatus) -> (EntryRow, UserSecrets) {
        let uid = Uuid::from_u128(3);
        let secrets = UserSecrets::generate(vault, uid).unwrap();
        let row = EntryRow {
            user_id: UserId(7),
            user_uid: uid,
            status,
            seed_enc: secrets.seed_enc.clone(),
            auth_hash: None,
            expires_at: Some(Timestamp(5000)),
            up_bytes_per_s: None,
            down_bytes_per_s: Some(10),
            max_connections: Some(2),
            max_devices: None,
            quota_bytes: Some(1),
            rev: 4,
            assigned: 1,
        };
        (row, secrets)
    }

    #[test]
    fn an_entry_verifies_the_credential_of_this_node_and_of_no_other() {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let keys = FleetKeys::generate().unwrap();
        let node = Uuid::from_u128(1);
        let (row, secrets) = row(&vault, UserStatus::Active);
        let entry = user_entry(&row, node, &keys.node_key(node), &keys, &vault)
            .unwrap()
            .unwrap();
        let verifier = |at: Uuid, credential: &Credential| {
            FleetKeys::verifier(&keys.node_key(at), &keys.auth_hash(credential)).to_vec()
        };
        assert_eq!(
            entry.verifier,
            verifier(node, &secrets.seed.credential(node))
        );
        assert_ne!(
            entry.verifier,
            verifier(node, &secrets.seed.credential(Uuid::from_u128(2)))
        );
        assert_eq!((entry.up_bytes_per_s, entry.down_bytes_per_s), (0, 10));
        assert!(entry.metered);
    }

    #[test]
    fn who_may_not_connect_has_no_entry() {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let keys = FleetKeys::generate().unwrap();
        let node = Uuid::from_u128(1);
        for status in UserStatus::ALL {
            let (mut row, _) = row(&vault, *status);
            let entry = user_entry(&row, node, &[0; 32], &keys, &vault).unwrap();
            assert_eq!(
                entry.is_some(),
                matches!(status, UserStatus::Active | UserStatus::OnHold),
                "{status}"
            );
            row.assigned = 0;
            assert!(
                user_entry(&row, node, &[0; 32], &keys, &vault)
                    .unwrap()
                    .is_none()
            );
        }
    }

    #[test]
    fn a_set_has_one_hash_however_it_came_about() {
        let entry = |user_id| rpc::UserEntry {
            user_id,
            ..Default::default()
        };
        let (mut a, mut b) = (UserSet::default(), UserSet::default());
        for id in [3, 1, 2] {
            a.set(UserId(id), Some(&entry(id.unsigned_abs())));
        }
        for id in [1, 9, 2, 3] {
            b.set(UserId(id), Some(&entry(id.unsigned_abs())));
        }
        assert_ne!(a.hash(), b.hash());
        b.set(UserId(9), None);
        assert_eq!(a.hash(), b.hash());
        assert_eq!(b.len(), 3);
    }
}
