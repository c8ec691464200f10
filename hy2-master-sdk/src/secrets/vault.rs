//! Seals values for the store: AES-256-GCM, random nonce, the place as associated data, so that a
//! sealed value copied to another row or column does not open.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use thiserror::Error;
use zeroize::Zeroizing;

use super::MasterKeys;

/// Seals and opens with the master keys. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Vault {
    keys: Arc<MasterKeys>,
}

/// A sealed value does not open.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Too short, or of a format that this version does not know.
    #[error("not a sealed value")]
    Format,
    /// It was sealed with a key that is not in the key file.
    #[error("sealed with version {0} of the master key, which the key file does not hold")]
    UnknownKey(u32),
    /// It was changed, or belongs elsewhere, or the key is another of the same version.
    #[error("the sealed value does not open: wrong master key, or changed")]
    Tampered,
}

impl Vault {
    /// Uses some keys.
    pub fn new(keys: MasterKeys) -> Self {
        Self {
            keys: Arc::new(keys),
        }
    }

    /// Seals a value for its place, such as `users.seed` of the user with this UUID.
    pub fn seal(&self, place: &str, row: &[u8], plain: &[u8]) -> Vec<u8> {
        let (version, key) = self.keys.current();
        let mut body = Zeroizing::new(plain.to_vec());
        let nonce = key_of(key)
            .seal_in_place_append_tag(associated(place, row, version), &mut *body)
            .expect("far below the cipher's limit of 64 GiB, and the random source does not fail");
        let mut sealed = Vec::with_capacity(HEADER + body.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(&version.to_be_bytes());
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&body);
        sealed
    }

    /// Opens a value at its place.
    ///
    /// # Errors
    ///
    /// It was not sealed there with one of the keys.
    pub fn open(
        &self,
        place: &str,
        row: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (header, body) = sealed.split_at_checked(HEADER).ok_or(OpenError::Format)?;
        let (version, nonce) = match header.split_first() {
            Some((&FORMAT, rest)) => rest.split_first_chunk::<4>().ok_or(OpenError::Format)?,
            _ => return Err(OpenError::Format),
        };
        let version = u32::from_be_bytes(*version);
        let key = self
            .keys
            .version(version)
            .ok_or(OpenError::UnknownKey(version))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Format)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = key_of(key)
            .open_in_place(nonce, associated(place, row, version), &mut body)
            .map_err(|_| OpenError::Tampered)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

fn key_of(key: &[u8; 32]) -> RandomizedNonceKey {
    RandomizedNonceKey::new(&AES_256_GCM, key).expect("the cipher takes 32 bytes")
}

/// Each part with its length: no two places read the same.
fn associated(place: &str, row: &[u8], version: u32) -> Aad<Vec<u8>> {
    let mut data = Vec::with_capacity(place.len() + row.len() + 12);
    data.extend_from_slice(&version.to_be_bytes());
    for part in [place.as_bytes(), row] {
        data.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        data.extend_from_slice(part);
    }
    Aad::from(data)
}

const FORMAT: u8 = 1;
const HEADER: usize = 1 + 4 + NONCE_LEN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_at_its_place_only_and_not_when_a_bit_is_flipped() {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let sealed = vault.seal("users.seed", b"row 1", b"secret");
        assert_eq!(
            &**vault.open("users.seed", b"row 1", &sealed).unwrap(),
            b"secret"
        );
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert!(matches!(
            vault.open("users.seed", b"row 2", &sealed),
            Err(OpenError::Tampered)
        ));
        assert!(matches!(
            vault.open("users.see", b"drow 1", &sealed),
            Err(OpenError::Tampered)
        ));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(
                vault.open("users.seed", b"row 1", &changed).is_err(),
                "bit {bit}"
            );
        }
        for length in 0..sealed.len() {
            assert!(
                vault
                    .open("users.seed", b"row 1", &sealed[..length])
                    .is_err()
            );
        }
    }

    #[test]
    fn equal_values_are_sealed_differently() {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        assert_ne!(vault.seal("p", b"r", b"v"), vault.seal("p", b"r", b"v"));
    }

    #[test]
    fn after_a_rotation_old_values_open_and_a_lost_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let mut keys = MasterKeys::load_or_create(&path).unwrap();
        let old = Vault::new(keys.clone()).seal("p", b"r", b"v");
        keys.rotate(&path).unwrap();
        let vault = Vault::new(keys);
        assert_eq!(&**vault.open("p", b"r", &old).unwrap(), b"v");
        let new = vault.seal("p", b"r", b"v");
        let fresh = Vault::new(MasterKeys::generate().unwrap());
        assert!(matches!(
            fresh.open("p", b"r", &new),
            Err(OpenError::UnknownKey(2))
        ));
        assert!(matches!(
            fresh.open("p", b"r", &old),
            Err(OpenError::Tampered)
        ));
    }
}
