//! Long-lived tokens for programs: `hy2_<id>_<secret>`, stored as a hash, limited by scopes.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

/// What every token begins with; secret scanners know it by this.
pub const PREFIX: &str = "hy2_";

/// Length of the secret in bytes.
const SECRET_LEN: usize = 32;

/// A token in parts.
#[derive(Clone)]
pub struct ApiToken {
    id: Uuid,
    secret: Zeroizing<[u8; SECRET_LEN]>,
}

/// The text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API token")]
pub struct ApiTokenError;

impl ApiToken {
    /// Makes a new token.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            id: Uuid::new_v4(),
            secret: Zeroizing::new(rand::random()),
        }
    }

    /// Returns the id, under which the hash is stored.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// Returns what is stored. The secret has 256 bits, so one hash is enough.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new()
            .chain_update(b"hy2 api token v1\0")
            .chain_update(self.id.as_bytes())
            .chain_update(self.secret.as_slice())
            .finalize()
            .into()
    }

    /// Returns whether this token has that hash, in constant time.
    #[must_use]
    pub fn matches(&self, hash: &[u8]) -> bool {
        self.hash().ct_eq(hash).into()
    }

    /// Returns the beginning that may be shown in lists: enough to tell tokens apart, nothing of
    /// the secret.
    #[must_use]
    pub fn prefix(&self) -> String {
        let id = self.id.simple().to_string();
        format!("{PREFIX}{}", id.get(..8).unwrap_or_default())
    }

    /// Returns the whole token, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        let secret = URL_SAFE_NO_PAD.encode(self.secret.as_slice());
        format!("{PREFIX}{}_{secret}", self.id.simple())
    }
}

impl FromStr for ApiToken {
    type Err = ApiTokenError;

    fn from_str(text: &str) -> Result<Self, ApiTokenError> {
        let rest = text.strip_prefix(PREFIX).ok_or(ApiTokenError)?;
        let (id, secret) = rest.split_once('_').ok_or(ApiTokenError)?;
        if id.len() != 32 || secret.len() > 64 {
            return Err(ApiTokenError);
        }
        let id = Uuid::try_parse(id).map_err(|_| ApiTokenError)?;
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).map_err(|_| ApiTokenError)?);
        let secret = secret.as_slice().try_into().map_err(|_| ApiTokenError)?;
        Ok(Self {
            id,
            secret: Zeroizing::new(secret),
        })
    }
}

impl std::fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiToken")
            .field("id", &self.id)
            .field("secret", &"***")
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_matches_its_own_hash_only() {
        let token = ApiToken::generate();
        let read: ApiToken = token.reveal().parse().unwrap();
        assert!(read.matches(&token.hash()));
        assert!(!ApiToken::generate().matches(&token.hash()));
        let mut swapped = ApiToken::generate();
        swapped.secret = token.secret.clone();
        assert!(!swapped.matches(&token.hash()), "the hash binds the id");
    }

    #[test]
    fn nothing_of_the_secret_is_in_prefix_or_debug() {
        let token = ApiToken::generate();
        let secret = token.reveal().splitn(3, '_').nth(2).unwrap().to_owned();
        assert!(!token.prefix().contains(&secret[..8]));
        assert!(!format!("{token:?}").contains(&secret[..8]));
    }

    #[test]
    fn other_texts_are_refused() {
        let token = ApiToken::generate().reveal();
        let shorter = &token[..token.len() - 2];
        for text in [
            "",
            "hy2_",
            "hy2__",
            "hy2_x_y",
            "Bearer x",
            shorter,
            &format!("{token}AA"),
        ] {
            assert!(text.parse::<ApiToken>().is_err(), "{text}");
        }
    }
}
