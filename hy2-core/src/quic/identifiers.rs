//! Connection identifiers: random, and recognisable by who holds the key (RFC 9000 §5.1, §10.3).

use std::time::Duration;

use aws_lc_rs::hmac;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

/// Random bytes of an identifier.
///
/// quinn looks for the identifier of every packet among its connections first, also for that which
/// a Retry gave to a client that has no connection yet: when it happens to be in use, all packets
/// of the newcomer end at somebody else's connection and it waits for nothing. With the 3 bytes of
/// quinn's own generator a server of 10,000 connections met that once in 1,000 retries; with 5 it
/// is less than once in 10 million.
const NONCE: usize = 5;

/// Bytes of the keyed check: one of 16 million foreign packets passes for one of ours, and then
/// gets a reset that it would not have got.
const CHECK: usize = 3;

/// Length of an identifier. Every packet that a client sends carries one.
const LENGTH: usize = NONCE + CHECK;

/// Makes identifiers under a key and tells which were made under it.
#[derive(Clone)]
pub(super) struct Identifiers(hmac::Key);

impl Identifiers {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Tells whether `identifier` was made under this key; any length may be asked about.
    pub(super) fn recognise(&self, identifier: &[u8]) -> bool {
        identifier
            .split_at_checked(NONCE)
            .is_some_and(|(nonce, check)| {
                check.len() == CHECK && hmac::sign(&self.0, nonce).as_ref().starts_with(check)
            })
    }
}

impl ConnectionIdGenerator for Identifiers {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce: [u8; NONCE] = rand::random();
        let mut identifier = [0; LENGTH];
        let (head, check) = identifier.split_at_mut(NONCE);
        head.copy_from_slice(&nonce);
        let tag = hmac::sign(&self.0, &nonce);
        for (byte, tag) in check.iter_mut().zip(tag.as_ref()) {
            *byte = *tag;
        }
        ConnectionId::new(&identifier)
    }

    fn validate(&self, identifier: &ConnectionId) -> Result<(), InvalidCid> {
        match self.recognise(identifier) {
            true => Ok(()),
            false => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const COUNT: usize = 20_000;

    #[test]
    fn the_holder_of_the_key_knows_its_identifiers_and_no_others() {
        let mut ours = Identifiers::new(b"a key");
        let same = Identifiers::new(b"a key");
        let other = Identifiers::new(b"another key");
        let mut mistaken = 0;
        for _ in 0..COUNT {
            let identifier = ours.generate_cid();
            assert!(same.validate(&identifier).is_ok());
            mistaken += usize::from(other.recognise(&identifier));
            let mut changed = identifier.to_vec();
            changed[0] ^= 1;
            mistaken += usize::from(ours.recognise(&changed));
        }
        // 40,000 tries of 1 in 16 million each.
        assert!(mistaken <= 1, "{mistaken} foreign identifiers recognised");
    }

    #[test]
    fn identifiers_of_another_length_are_not_ours() {
        let mut ours = Identifiers::new(b"a key");
        let identifier = ours.generate_cid().to_vec();
        for length in 0..LENGTH {
            assert!(!ours.recognise(&identifier[..length]));
        }
        assert!(!ours.recognise(&[identifier, vec![0]].concat()));
    }

    #[test]
    fn tens_of_thousands_of_identifiers_do_not_meet() {
        let mut ours = Identifiers::new(b"a key");
        let all: HashSet<_> = (0..COUNT).map(|_| ours.generate_cid()).collect();
        // Three random bytes would bring twelve pairs, five bring 0.0002.
        assert!(all.len() >= COUNT - 1, "{} of {COUNT}", all.len());
    }
}
