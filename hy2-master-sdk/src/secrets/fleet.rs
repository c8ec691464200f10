//! Credentials and their hashes.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{OpenError, RandomError, Vault, hmac, random, sha256};

/// The keys of the cluster that hash credentials. `K_fleet` is on every node, `K_node` on one: from
/// one node's keys and verifiers nothing follows about another's.
#[derive(Clone)]
pub struct FleetKeys {
    fleet: Zeroizing<[u8; 32]>,
    node_root: Zeroizing<[u8; 32]>,
}

/// What a user's credentials derive from.
#[derive(Clone)]
pub struct Seed(Zeroizing<[u8; 32]>);

/// What a client presents to a node.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(Zeroizing<String>);

/// What opens a user's subscription: 128 random bits.
#[derive(Clone, PartialEq, Eq)]
pub struct SubscriptionToken(Zeroizing<String>);

/// The secrets of a new user, in clear and as the store keeps them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UserSecrets {
    /// Derives credentials.
    pub seed: Seed,
    /// Sealed, for `users.seed_enc`.
    pub seed_enc: Vec<u8>,
    /// Shown to the user.
    pub subscription: SubscriptionToken,
    /// For `users.subscription_hash`.
    pub subscription_hash: Vec<u8>,
    /// Sealed, for `users.subscription_enc`.
    pub subscription_enc: Vec<u8>,
}

impl FleetKeys {
    /// Makes new ones, for a new cluster.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self {
            fleet: random()?,
            node_root: random()?,
        })
    }

    /// Takes what [`FleetKeys::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (fleet, node_root) = bytes.split_at_checked(32)?;
        Some(Self {
            fleet: Zeroizing::new(fleet.try_into().ok()?),
            node_root: Zeroizing::new(node_root.try_into().ok()?),
        })
    }

    /// Returns both keys, to be sealed.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([*self.fleet, *self.node_root].concat())
    }

    /// Returns `K_fleet`.
    pub fn fleet_key(&self) -> &[u8; 32] {
        &self.fleet
    }

    /// Returns `K_node` of a node.
    pub fn node_key(&self, node: Uuid) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(hmac(&*self.node_root, &[NODE_KEY, node.as_bytes()]))
    }

    /// Returns the hash of a credential that the store may keep.
    pub fn auth_hash(&self, credential: &Credential) -> [u8; 32] {
        hmac(&*self.fleet, &[credential.as_str().as_bytes()])
    }

    /// Returns the hash by which the node with `node_key` knows a credential.
    pub fn verifier(node_key: &[u8; 32], auth_hash: &[u8; 32]) -> [u8; 32] {
        hmac(node_key, &[auth_hash])
    }
}

impl fmt::Debug for FleetKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKeys(***)")
    }
}

impl Seed {
    /// Opens a user's sealed seed.
    ///
    /// # Errors
    ///
    /// It does not open.
    pub fn open(vault: &Vault, user: Uuid, sealed: &[u8]) -> Result<Self, OpenError> {
        let bytes = vault.open(SEED, user.as_bytes(), sealed)?;
        let bytes: [u8; 32] = bytes.as_slice().try_into().map_err(|_| OpenError::Format)?;
        Ok(Self(Zeroizing::new(bytes)))
    }

    /// Returns the user's credential on a node.
    pub fn credential(&self, node: Uuid) -> Credential {
        let hash = Zeroizing::new(hmac(&*self.0, &[CREDENTIAL, node.as_bytes()]));
        Credential(Zeroizing::new(URL_SAFE_NO_PAD.encode(&hash[..16])))
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(***)")
    }
}

impl Credential {
    /// Takes a credential that an operator chose: the same on every node, hence weaker.
    pub fn chosen(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// Seals a chosen credential, for `users.credential_enc`.
    pub fn seal(&self, vault: &Vault, user: Uuid) -> Vec<u8> {
        vault.seal(CHOSEN, user.as_bytes(), self.0.as_bytes())
    }

    /// Opens a user's sealed credential.
    ///
    /// # Errors
    ///
    /// It does not open.
    pub fn open(vault: &Vault, user: Uuid, sealed: &[u8]) -> Result<Self, OpenError> {
        let bytes = vault.open(CHOSEN, user.as_bytes(), sealed)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| OpenError::Format)?;
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// Returns the credential.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(***)")
    }
}

impl SubscriptionToken {
    /// Makes a new one.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self(Zeroizing::new(
            URL_SAFE_NO_PAD.encode(*random::<16>()?),
        )))
    }

    /// Returns the hash by which the store finds the user. The token is random, so a plain hash
    /// gives nothing away.
    pub fn hash(token: &str) -> [u8; 32] {
        sha256(token.as_bytes())
    }

    /// Seals the token, for `users.subscription_enc`.
    pub fn seal(&self, vault: &Vault, user: Uuid) -> Vec<u8> {
        vault.seal(SUBSCRIPTION, user.as_bytes(), self.0.as_bytes())
    }

    /// Opens a user's sealed token.
    ///
    /// # Errors
    ///
    /// It does not open.
    pub fn open(vault: &Vault, user: Uuid, sealed: &[u8]) -> Result<Self, OpenError> {
        let bytes = vault.open(SUBSCRIPTION, user.as_bytes(), sealed)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| OpenError::Format)?;
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// Returns the token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SubscriptionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubscriptionToken(***)")
    }
}

impl UserSecrets {
    /// Makes the secrets of the user with this UUID.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn generate(vault: &Vault, user: Uuid) -> Result<Self, RandomError> {
        let seed = Seed(random()?);
        let subscription = SubscriptionToken::generate()?;
        Ok(Self {
            seed_enc: vault.seal(SEED, user.as_bytes(), &*seed.0),
            subscription_hash: SubscriptionToken::hash(subscription.as_str()).to_vec(),
            subscription_enc: subscription.seal(vault, user),
            seed,
            subscription,
        })
    }
}

const NODE_KEY: &[u8] = b"hy2 node key v1\0";
const CREDENTIAL: &[u8] = b"hy2 credential v1\0";
const SEED: &str = "users.seed";
const CHOSEN: &str = "users.credential";
const SUBSCRIPTION: &str = "users.subscription";

#[cfg(test)]
mod tests {
    use super::super::MasterKeys;
    use super::*;

    #[test]
    fn credentials_differ_by_node_and_by_user_and_last_as_long_as_the_seed() {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (one, two) = (Uuid::from_u128(11), Uuid::from_u128(12));
        let user_a = UserSecrets::generate(&vault, a).unwrap();
        let user_b = UserSecrets::generate(&vault, b).unwrap();
        let credential = user_a.seed.credential(one);
        assert_eq!(credential.as_str().len(), 22);
        assert_ne!(credential, user_a.seed.credential(two));
        assert_ne!(credential, user_b.seed.credential(one));
        let opened = Seed::open(&vault, a, &user_a.seed_enc).unwrap();
        assert_eq!(credential, opened.credential(one));
        assert!(Seed::open(&vault, b, &user_a.seed_enc).is_err());
    }

    #[test]
    fn a_verifier_is_what_the_contract_says() {
        use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
        let keys = FleetKeys::generate().unwrap();
        let node = Uuid::from_u128(7);
        let credential = Credential::chosen("letmein");
        let inner = sign(&Key::new(HMAC_SHA256, keys.fleet_key()), b"letmein");
        let outer = sign(
            &Key::new(HMAC_SHA256, &*keys.node_key(node)),
            inner.as_ref(),
        );
        let verifier = FleetKeys::verifier(&keys.node_key(node), &keys.auth_hash(&credential));
        assert_eq!(verifier.as_slice(), outer.as_ref());
        assert_ne!(*keys.node_key(node), *keys.node_key(Uuid::from_u128(8)));
        let again = FleetKeys::from_bytes(&keys.to_bytes()).unwrap();
        assert_eq!(again.auth_hash(&credential), keys.auth_hash(&credential));
        assert!(FleetKeys::from_bytes(&[0; 63]).is_none());
    }

    #[test]
    fn no_secret_is_printed() {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let secrets = UserSecrets::generate(&vault, Uuid::nil()).unwrap();
        let printed = format!("{secrets:?} {:?}", secrets.seed.credential(Uuid::nil()));
        assert!(!printed.contains(secrets.subscription.as_str()));
        assert!(!printed.contains(secrets.seed.credential(Uuid::nil()).as_str()));
    }
}
