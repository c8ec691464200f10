//! Secrets: the master key that seals what the store keeps, and what derives from a user's seed.
//!
//! - [`MasterKeys`] the key file, one key per version
//! - [`Vault`] seals and opens values, each bound to its place
//! - [`FleetKeys`] credentials of a (user, node), and the hashes by which nodes know them
//!
//! A credential is `base64url(HMAC(seed, node)[..16])`: what one node learns from its clients opens
//! nothing on another. A node holds `verifier = HMAC(K_node, HMAC(K_fleet, credential))`, from which
//! no credential follows.

mod fleet;
mod keys;
mod vault;

use thiserror::Error;
use zeroize::Zeroizing;

pub use self::fleet::{Credential, FleetKeys, Seed, SubscriptionToken, UserSecrets};
pub use self::keys::{KeyFileError, MasterKeys};
pub use self::vault::{OpenError, Vault};

/// The random source failed.
#[derive(Debug, Error)]
#[error("the system gives no random bytes")]
pub struct RandomError;

/// Returns random bytes.
///
/// # Errors
///
/// The system has none.
pub fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, RandomError> {
    let mut bytes = Zeroizing::new([0; N]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| RandomError)?;
    Ok(bytes)
}

/// Returns the SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let mut context = aws_lc_rs::hmac::Context::with_key(&key);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.sign().as_ref());
    hash
}
