//! Access tokens: JWT signed with Ed25519, short-lived, one algorithm, keys named by `kid`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::domain::AdminId;

/// How long an access token is valid, in seconds.
pub const LIFETIME_S: i64 = 600;

/// The longest that a token may claim to be valid, in seconds.
pub const MAX_LIFETIME_S: i64 = 900;

/// How far clocks may be apart, in seconds.
pub const LEEWAY_S: u64 = 5;

/// The audience of every token.
pub const AUDIENCE: &str = "hy2-admin";

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 2_048;

/// What an access token says. Role and rights are not in it: they come from the store with each
/// request, so that a change is in force at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Issuer: the cluster.
    pub iss: String,
    /// [`AUDIENCE`].
    pub aud: String,
    /// The administrator's id in decimal.
    pub sub: String,
    /// The session that it belongs to.
    pub sid: Uuid,
    /// The administrator's session epoch; older ones are refused.
    pub epoch: i64,
    /// Issued at, seconds since 1970.
    pub iat: i64,
    /// Expires at, seconds since 1970.
    pub exp: i64,
    /// Unique.
    pub jti: Uuid,
}

/// Why a token was refused. The caller of the API hears "invalid token" for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not a JWT, or its header is not ours.
    #[error("not a token of this service")]
    Malformed,
    /// Signed with something else than Ed25519.
    #[error("algorithm is not EdDSA")]
    Algorithm,
    /// No key of that name.
    #[error("unknown key")]
    UnknownKey,
    /// Signature or claims do not hold.
    #[error("signature or claims do not hold")]
    Invalid,
    /// Past its expiry.
    #[error("token has expired")]
    Expired,
}

/// Why a key was refused or a token was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not an Ed25519 key in PKCS#8.
    #[error("not an Ed25519 key")]
    Malformed,
    /// Signing failed.
    #[error("signing failed")]
    Signing,
}

/// One Ed25519 key with its name.
pub struct TokenKey {
    id: Uuid,
    pkcs8: Zeroizing<Vec<u8>>,
    public: Vec<u8>,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl TokenKey {
    /// Makes a new key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] if the system has no randomness.
    pub fn generate(id: Uuid) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Malformed)?;
        let document = pair.to_pkcs8().map_err(|_| KeyError::Malformed)?;
        Self::from_pkcs8(id, document.as_ref())
    }

    /// Reads a key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] if it is not Ed25519 in PKCS#8.
    pub fn from_pkcs8(id: Uuid, pkcs8: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeyError::Malformed)?;
        Ok(Self {
            id,
            public: pair.public_key().as_ref().to_vec(),
            encoding: EncodingKey::from_ed_der(pkcs8),
            decoding: DecodingKey::from_ed_der(pair.public_key().as_ref()),
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
        })
    }

    /// Returns its name.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// Returns the public key.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// Returns the private key, for the encrypted store.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Signs with the newest key and checks with all that are still valid.
#[derive(Debug, Clone)]
pub struct TokenSigner {
    issuer: Arc<str>,
    keys: Arc<ArcSwap<Keys>>,
}

#[derive(Debug)]
struct Keys {
    signing: Arc<TokenKey>,
    all: HashMap<String, Arc<TokenKey>>,
}

impl Keys {
    fn new(signing: TokenKey, older: Vec<TokenKey>) -> Self {
        let signing = Arc::new(signing);
        let mut all: HashMap<_, _> = older
            .into_iter()
            .map(|key| (key.id.to_string(), Arc::new(key)))
            .collect();
        all.insert(signing.id.to_string(), Arc::clone(&signing));
        Self { signing, all }
    }
}

impl TokenSigner {
    /// Signs with `signing`; tokens made with `older` keys are accepted until they expire.
    #[must_use]
    pub fn new(issuer: impl Into<Arc<str>>, signing: TokenKey, older: Vec<TokenKey>) -> Self {
        Self {
            issuer: issuer.into(),
            keys: Arc::new(ArcSwap::from_pointee(Keys::new(signing, older))),
        }
    }

    /// Replaces the keys, as after a rotation.
    pub fn replace(&self, signing: TokenKey, older: Vec<TokenKey>) {
        self.keys.store(Arc::new(Keys::new(signing, older)));
    }

    /// Makes a token for a session, valid for [`LIFETIME_S`] from `now` (seconds since 1970).
    ///
    /// # Errors
    ///
    /// [`KeyError::Signing`] if the key cannot sign.
    pub fn issue(
        &self,
        admin: AdminId,
        session: Uuid,
        epoch: i64,
        now: i64,
    ) -> Result<String, KeyError> {
        let keys = self.keys.load();
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(keys.signing.id.to_string());
        let claims = Claims {
            iss: self.issuer.to_string(),
            aud: AUDIENCE.to_owned(),
            sub: admin.to_string(),
            sid: session,
            epoch,
            iat: now,
            exp: now + LIFETIME_S,
            jti: Uuid::new_v4(),
        };
        jsonwebtoken::encode(&header, &claims, &keys.signing.encoding)
            .map_err(|_| KeyError::Signing)
    }

    /// Checks a token at the time `now` (seconds since 1970).
    ///
    /// # Errors
    ///
    /// [`TokenError`] with the first thing that does not hold.
    pub fn check(&self, token: &str, now: i64) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.alg != Algorithm::EdDSA {
            return Err(TokenError::Algorithm);
        }
        // A key that the token brings along, or says where to find, is never looked at; such a
        // header is not one of ours.
        if header.jwk.is_some()
            || header.jku.is_some()
            || header.x5u.is_some()
            || header.x5c.is_some()
        {
            return Err(TokenError::Malformed);
        }
        let keys = self.keys.load();
        let key = header
            .kid
            .as_deref()
            .and_then(|kid| keys.all.get(kid))
            .ok_or(TokenError::UnknownKey)?;

        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&*self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Expiry is judged below, against the caller's clock.
        validation.validate_exp = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;

        let leeway = LEEWAY_S.cast_signed();
        if claims.exp.saturating_add(leeway) <= now {
            return Err(TokenError::Expired);
        }
        let lifetime = claims.exp.saturating_sub(claims.iat);
        if claims.iat > now.saturating_add(leeway) || !(1..=MAX_LIFETIME_S).contains(&lifetime) {
            return Err(TokenError::Invalid);
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    const NOW: i64 = 1_800_000_000;

    fn signer() -> (TokenSigner, Uuid, Vec<u8>) {
        let id = Uuid::new_v4();
        let key = TokenKey::generate(id).unwrap();
        let pkcs8 = key.pkcs8().to_vec();
        (TokenSigner::new("hy2-test", key, Vec::new()), id, pkcs8)
    }

    fn claims() -> Value {
        json!({"iss": "hy2-test", "aud": AUDIENCE, "sub": "7", "sid": Uuid::nil(), "epoch": 0,
               "iat": NOW, "exp": NOW + 600, "jti": Uuid::nil()})
    }

    /// Signs any header and claims with the service's own key.
    fn forge(pkcs8: &[u8], header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).unwrap();
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn header(kid: Uuid) -> Value {
        json!({"typ": "JWT", "alg": "EdDSA", "kid": kid})
    }

    #[test]
    fn an_issued_token_is_accepted() {
        let (signer, ..) = signer();
        let session = Uuid::new_v4();
        let token = signer.issue(AdminId(7), session, 3, NOW).unwrap();
        let claims = signer.check(&token, NOW + LIFETIME_S - 1).unwrap();
        assert_eq!(
            (claims.sub.as_str(), claims.sid, claims.epoch),
            ("7", session, 3)
        );
    }

    #[test]
    fn a_token_ends_after_its_lifetime_and_leeway() {
        let (signer, ..) = signer();
        let token = signer.issue(AdminId(7), Uuid::nil(), 0, NOW).unwrap();
        let end = NOW + LIFETIME_S + LEEWAY_S.cast_signed();
        assert!(signer.check(&token, end - 1).is_ok());
        assert_eq!(signer.check(&token, end), Err(TokenError::Expired));
    }

    #[test]
    fn other_algorithms_are_refused() {
        let (signer, kid, pkcs8) = signer();
        for alg in ["none", "None", "HS256", "HS512", "RS256", "ES256", "PS256"] {
            let head = json!({"typ": "JWT", "alg": alg, "kid": kid});
            let token = forge(&pkcs8, &head, &claims());
            assert!(signer.check(&token, NOW).is_err(), "{alg}");
            let unsigned = token.rsplit_once('.').unwrap().0.to_owned() + ".";
            assert!(signer.check(&unsigned, NOW).is_err(), "{alg} unsigned");
        }
    }

    #[test]
    fn the_public_key_is_no_secret_for_hs256() {
        let (signer, kid, pkcs8) = signer();
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).unwrap();
        let mut head = Header::new(Algorithm::HS256);
        head.kid = Some(kid.to_string());
        let secret = EncodingKey::from_secret(pair.public_key().as_ref());
        let token = jsonwebtoken::encode(&head, &claims(), &secret).unwrap();
        assert_eq!(signer.check(&token, NOW), Err(TokenError::Algorithm));
    }

    #[test]
    fn keys_are_found_by_name_only() {
        let (signer, kid, _) = signer();
        let foreign = TokenKey::generate(kid).unwrap();
        let token = forge(foreign.pkcs8(), &header(kid), &claims());
        assert_eq!(
            signer.check(&token, NOW),
            Err(TokenError::Invalid),
            "foreign key, known kid"
        );
        for name in [json!("../../etc/passwd"), json!("' or 1=1 --"), json!("")] {
            let head = json!({"typ": "JWT", "alg": "EdDSA", "kid": name});
            let token = forge(foreign.pkcs8(), &head, &claims());
            assert_eq!(signer.check(&token, NOW), Err(TokenError::UnknownKey));
        }
        let head = json!({"typ": "JWT", "alg": "EdDSA"});
        let token = forge(foreign.pkcs8(), &head, &claims());
        assert_eq!(
            signer.check(&token, NOW),
            Err(TokenError::UnknownKey),
            "no kid"
        );
    }

    #[test]
    fn claims_of_wrong_type_or_value_are_refused() {
        let (signer, kid, pkcs8) = signer();
        assert!(
            signer
                .check(&forge(&pkcs8, &header(kid), &claims()), NOW)
                .is_ok()
        );
        let bad = [
            ("exp", json!("9999999999")),
            ("exp", json!(null)),
            ("exp", json!(9e18)),
            ("exp", json!(NOW + 901)),
            ("exp", json!(i64::MAX)),
            ("exp", json!(NOW - 6)),
            ("iat", json!(NOW + 6)),
            ("iat", json!("now")),
            ("iss", json!("other")),
            ("aud", json!("other")),
            ("aud", json!(7)),
            ("sub", json!(7)),
            ("sid", json!("x")),
            ("role", json!("owner")),
        ];
        for (name, value) in bad {
            let mut claims = claims();
            claims[name] = value.clone();
            let token = forge(&pkcs8, &header(kid), &claims);
            assert!(signer.check(&token, NOW).is_err(), "{name} = {value}");
        }
        for name in ["exp", "iss", "aud", "sub", "sid", "epoch", "iat"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(name);
            let token = forge(&pkcs8, &header(kid), &claims);
            assert!(signer.check(&token, NOW).is_err(), "without {name}");
        }
    }

    #[test]
    fn any_changed_character_breaks_a_token() {
        let (signer, ..) = signer();
        let token = signer.issue(AdminId(7), Uuid::nil(), 0, NOW).unwrap();
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let last = at == token.len() - 1;
            // The last character carries bits that base64url pads with; a strict decoder
            // refuses them too.
            assert!(
                signer.check(&changed, NOW).is_err(),
                "at {at}, last: {last}"
            );
        }
    }

    #[test]
    fn rotation_accepts_older_keys_until_they_are_dropped() {
        let (signer, old, pkcs8) = signer();
        let token = signer.issue(AdminId(7), Uuid::nil(), 0, NOW).unwrap();
        let new = || TokenKey::generate(Uuid::new_v4()).unwrap();
        signer.replace(new(), vec![TokenKey::from_pkcs8(old, &pkcs8).unwrap()]);
        assert!(signer.check(&token, NOW).is_ok());
        signer.replace(new(), Vec::new());
        assert_eq!(signer.check(&token, NOW), Err(TokenError::UnknownKey));
    }
}
