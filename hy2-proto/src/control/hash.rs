//! The hashes by which a manifest names resources.

use sha2::{Digest, Sha256};

/// Returns the SHA-256 of a resource that is one blob.
pub fn blob(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Returns the hash of a user set: SHA-256 of the concatenated SHA-256 of the encoded entries, in
/// ascending order of user. The caller gives the digests in that order ([`blob`] of each entry),
/// and keeps them, so that a change of one entry hashes one entry.
pub fn user_set<'a>(digests: impl IntoIterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for digest in digests {
        hash.update(digest);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_hashed_in_the_order_given_and_empty_is_the_hash_of_nothing() {
        let (a, b) = (blob(b"a"), blob(b"b"));
        assert_eq!(user_set([&a, &b]), blob(&[a, b].concat()));
        assert_ne!(user_set([&a, &b]), user_set([&b, &a]));
        assert_eq!(user_set([]), blob(b""));
    }
}
