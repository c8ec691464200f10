//! Who a node is: whatever key and identity files hold, and whatever a master issues, it is taken as it is or refused, and
//! what was taken is there after a restart.
//!
//! Planted bug: a certificate for another key was taken.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arbitrary::Unstructured;
use hy2_agent_sdk::{
    fuzzing::identity::{certificate, renewal_due, renewal_request, renewed},
    identity::{Identity, IdentityError},
};
use hy2_proto::control::rpc::{EnrollResponse, IssuedCertificate};
use prost::Message;

use crate::{folder::Folder, read, take};

/// Takes files, or what a master issues.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    match read::<u8>(&mut input) % 4 {
        0 => any_files(&mut input),
        _ => issued(&mut input),
    }
}

/// Keys with their certificates, of this node and of another; made once.
static KEYS: LazyLock<[(Vec<u8>, Vec<u8>); 2]> = LazyLock::new(|| {
    [(), ()].map(|()| {
        let folder = Folder::new();
        let identity = Identity::open(folder.path()).expect("a new key");
        let file = fs::read(folder.path().join("node.key")).expect("the key");
        (file, certificate(identity.key()).expect("a certificate"))
    })
});

fn open(folder: &Folder) -> Result<Identity, IdentityError> {
    let opened = Identity::open(folder.path());
    assert!(matches!(opened, Ok(_) | Err(IdentityError::Damaged { .. })));
    opened
}

fn any_files(input: &mut Unstructured<'_>) {
    let folder = Folder::new();
    let len = usize::from(read::<u8>(input));
    let mut key = KEYS[0].0.clone();
    match read::<u8>(input) % 3 {
        0 => {}
        1 => {
            let at = len % key.len();
            key[at] ^= read::<u8>(input);
        }
        _ => key = take(input, len).to_vec(),
    }
    fs::write(folder.path().join("node.key"), key).expect("room");
    let rest = input.len();
    fs::write(folder.path().join("identity"), take(input, rest)).expect("room");
    if let Ok(identity) = open(&folder) {
        assert!(identity.credentials().is_some());
        used(&identity, UNIX_EPOCH);
    }
}

/// A message that the input has, with certificates that fit put into it.
fn message(input: &mut Unstructured<'_>) -> Option<EnrollResponse> {
    let (fitting, len) = (read::<u8>(input), read::<u8>(input));
    let mut message = EnrollResponse::decode(take(input, len.into())).ok()?;
    let [own, other] = &*KEYS;
    if fitting & 1 != 0 {
        let issued = message.certificate.get_or_insert_default();
        let leaf = if fitting & 2 == 0 { &own.1 } else { &other.1 };
        issued.chain.insert(0, leaf.clone().into());
    }
    if fitting & 4 != 0 {
        message.trusted_cas.push(other.1.clone().into());
    }
    if fitting & 8 != 0 {
        message.node_uid = vec![7; 16].into();
    }
    Some(message)
}

fn issued(input: &mut Unstructured<'_>) {
    let [own, _] = &*KEYS;
    let folder = Folder::new();
    fs::write(folder.path().join("node.key"), &own.0).expect("room");
    let identity = open(&folder).expect("a good key");
    assert!(identity.credentials().is_none());
    for _ in 0..6 {
        let Some(message) = message(input) else { break };
        let now = UNIX_EPOCH.checked_add(Duration::from_secs(read::<u64>(input) >> 1));
        let before = identity.credentials();
        let certificate: Option<&IssuedCertificate> = message.certificate.as_ref();
        let taken = match read::<u8>(input) % 4 {
            0 | 2 => {
                let taken = identity.accept(&message);
                // It would be the same if it had been in the file.
                let other = Folder::new();
                fs::write(other.path().join("node.key"), &own.0).expect("room");
                let file = message.encode_to_vec();
                fs::write(other.path().join("identity"), file).expect("room");
                assert_eq!(open(&other).is_ok(), taken.is_ok());
                taken
            }
            _ => renewed(
                &identity,
                certificate,
                &message.trusted_cas,
                &message.signing_keys,
            ),
        };
        if taken.is_err() {
            assert_eq!(identity.credentials(), before, "half of it was taken");
        }
        if let Some(current) = identity.credentials() {
            assert_eq!(current.chain[0].as_ref(), own.1, "of another key");
            assert!(!current.trusted_cas.is_empty());
            assert!(current.renew_after <= current.not_after);
        }
        let again = open(&folder).expect("our own files");
        assert_eq!(again.credentials(), identity.credentials());
        used(&identity, now.unwrap_or(UNIX_EPOCH));
    }
}

/// What happens at any moment.
fn used(identity: &Identity, now: SystemTime) {
    let Some(current) = identity.credentials() else {
        assert!(renewal_request(identity, now, true).is_err());
        assert!(!renewal_due(identity, now));
        return;
    };
    for by_key in [false, true] {
        let request = renewal_request(identity, now, by_key).expect("who is enrolled can renew");
        let signed = by_key || current.is_expired(now);
        assert_eq!(!request.signature.is_empty(), signed);
    }
    if renewal_due(identity, now) {
        assert!(now >= current.renew_after);
    } else {
        // A share of the time that is left passes first, but not all of it.
        assert!(now < current.not_after, "it ran out");
    }
}
