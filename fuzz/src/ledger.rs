//! The desired state of an agent: any sequence of signed updates, and any bytes in its file. Epoch
//! and revision only grow, a refused update changes nothing, the users are those of a plain map, and
//! what is written is read back.
//!
//! Planted bug: a user who was removed and is not in the hash of the manifest was kept.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arbitrary::Unstructured;
use hy2_agent_sdk::fuzzing::ledger::State;
use hy2_proto::control::{
    RESOURCE_CONFIG, RESOURCE_USERS, hash,
    rpc::{Manifest, NodeConfig, ResourceRef, ResourceUpdate, SignedManifest, UserEntry},
};
use prost::Message;

use crate::{read, take};

const NODE: &[u8] = b"sixteen of bytes";

/// Takes the length of a file, its content, and a program.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let len = usize::from(read::<u8>(&mut input));
    let content = take(&mut input, len);
    let mut world = World {
        state: State::default(),
        epoch: 0,
        rev: 0,
        users: BTreeMap::new(),
        config: Vec::new(),
        users_rev: 0,
    };
    world.file(content);
    for _ in 0..30 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
}

struct World {
    state: State,
    epoch: u64,
    rev: u64,
    /// Encoded entries by number, as a plain reader of the updates has them.
    users: BTreeMap<u64, Vec<u8>>,
    config: Vec<u8>,
    users_rev: u64,
}

impl World {
    /// Bytes as the file, and as what a file holds.
    fn file(&self, content: &[u8]) {
        assert_eq!(self.state.unseal(content.to_vec()), None, "made without key");
        let expected = ResourceUpdate::decode(content).ok();
        let mut sealed = self.state.seal(content);
        assert_eq!(self.state.unseal(sealed.clone()), expected);
        if let Some(last) = sealed.last_mut() {
            *last ^= 1;
        }
        assert_eq!(self.state.unseal(sealed), None, "a flipped bit");
    }

    fn step(&mut self, input: &mut Unstructured<'_>) {
        let choice = read::<u8>(input);
        let snapshot = choice & 1 != 0;
        let mut users = if snapshot {
            BTreeMap::new()
        } else {
            self.users.clone()
        };
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        let mut proper = true;
        for _ in 0..read::<u8>(input) % 5 {
            let (entry, good) = entry(input);
            proper &= good;
            users.insert(entry.user_id, entry.encode_to_vec());
            upsert.push(entry.encode_to_vec().into());
        }
        for _ in 0..read::<u8>(input) % 3 {
            let id = u64::from(read::<u8>(input) % 6);
            users.remove(&id);
            remove.push(id);
        }
        let has_config = choice & 2 != 0;
        let config = if has_config {
            NodeConfig {
                listen: vec![format!(":{}", read::<u8>(input))],
                ..NodeConfig::default()
            }
            .encode_to_vec()
        } else {
            self.config.clone()
        };
        let (epoch, rev) = match choice >> 2 & 3 {
            0 | 1 => (self.epoch, self.rev + 1),
            2 => (
                u64::from(read::<u8>(input) % 4),
                u64::from(read::<u8>(input) % 8),
            ),
            _ => (self.epoch, self.rev),
        };
        let now = at(100);
        let valid_until = u64::from(read::<u8>(input));
        let spoil = read::<u8>(input);
        let mut digests = [
            hash::blob(&config),
            hash::user_set(&users.values().map(|it| hash::blob(it)).collect::<Vec<_>>()),
        ];
        match spoil % 16 {
            1 => digests[0][usize::from(spoil >> 4)] ^= 1,
            2 => digests[1][usize::from(spoil >> 4)] ^= 1,
            _ => {}
        }
        let wrong_hash = matches!(spoil % 16, 1 | 2);
        let wrong_node = spoil % 16 == 3;
        let wrong_base = spoil % 16 == 4;
        let reference = |kind: &str, digest: &[u8]| ResourceRef {
            r#type: kind.to_owned(),
            rev,
            sha256: digest.to_vec().into(),
        };
        let manifest = Manifest {
            node_uid: if wrong_node { b"another" } else { NODE }.to_vec().into(),
            cluster_epoch: epoch,
            rev,
            valid_until: Some(at(valid_until).into()),
            resources: vec![
                reference(RESOURCE_CONFIG, &digests[0]),
                reference(RESOURCE_USERS, &digests[1]),
            ],
            ..Manifest::default()
        };
        let changed = !upsert.is_empty() || !remove.is_empty();
        let update = ResourceUpdate {
            manifest: Some(SignedManifest {
                manifest: manifest.encode_to_vec().into(),
                ..SignedManifest::default()
            }),
            config: if has_config { config.clone() } else { Vec::new() }.into(),
            has_config,
            users_snapshot: snapshot,
            users_base_rev: self.users_rev + u64::from(wrong_base),
            upsert_users: upsert,
            remove_users: remove,
            last: true,
            ..ResourceUpdate::default()
        };
        let any_age = choice & 16 != 0;
        let before = self.state.in_force();
        let taken = self.state.take(&update, NODE, now, any_age);
        let good = proper
            && !wrong_hash
            && !wrong_node
            && !(wrong_base && changed && !snapshot)
            && (any_age || valid_until > 100)
            && (has_config || before.is_some())
            && (before.is_none() || (epoch, rev) > (self.epoch, self.rev));
        match taken {
            Ok(Some((file, changes))) => {
                assert!(good, "accepted");
                assert_eq!(changes.all, snapshot);
                (self.epoch, self.rev) = (epoch, rev);
                (self.users, self.config, self.users_rev) = (users, config, rev);
                self.read_back(file);
            }
            Ok(None) => {
                assert_eq!(self.state.in_force(), before);
                assert_eq!((epoch, rev), (self.epoch, self.rev));
            }
            Err(errors) => {
                assert!(!good, "refused: {errors:?}");
                assert!(errors.iter().all(|it| !it.path.is_empty() && !it.message.is_empty()));
                assert!(!errors.is_empty());
                assert_eq!(self.state.in_force(), before, "changed by what was refused");
            }
        }
        let expected = self.users.keys().copied().collect::<Vec<_>>();
        if let Some((at, users)) = self.state.in_force() {
            assert_eq!((at, users), ((self.epoch, self.rev), expected));
        }
    }

    /// A node that starts from the file has the same state.
    fn read_back(&self, file: Vec<u8>) {
        let stored = self.state.unseal(file).expect("our own file");
        let mut started = State::default();
        let taken = started.take(&stored, NODE, at(100), true);
        assert!(matches!(taken, Ok(Some(_))), "{taken:?}");
        assert_eq!(started.in_force(), self.state.in_force());
        let encoded = stored.upsert_users.iter().map(|it| &it[..]);
        assert!(encoded.eq(self.users.values().map(|it| &it[..])));
    }
}

/// A user, and whether it is acceptable.
fn entry(input: &mut Unstructured<'_>) -> (UserEntry, bool) {
    let choice = read::<u8>(input);
    let verifier = if choice % 16 == 15 { 31 } else { 32 };
    let past = choice % 16 == 14;
    let entry = UserEntry {
        user_id: u64::from(read::<u8>(input) % 6),
        verifier: vec![choice; verifier].into(),
        expires_at: past.then_some(prost_types::Timestamp {
            seconds: -5,
            nanos: 0,
        }),
        ..UserEntry::default()
    };
    let good = entry.user_id != 0 && verifier == 32 && !past;
    (entry, good)
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}
