//! Refresh tokens and CSRF tokens: bound to a session, made and checked with keys of the cluster. So are the hashes by
//! which repeated requests are known.
//!
//! A refresh token is used once. Each carries a mark of ours, so that one of an earlier renewal is
//! told from one that was made up: the first ends its session, because two hold it; the second
//! is refused and does nothing.

use std::fmt;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

/// What every refresh token begins with.
const PREFIX: &str = "hy2r_";

/// Bytes of a refresh token: session, secret, mark.
const LEN: usize = 16 + 32 + 16;

/// Makes and checks tokens of sessions.
#[derive(Clone)]
pub struct SessionKeys {
    key: Zeroizing<[u8; 32]>,
}

/// A refresh token that carries our mark. Whether it is the one in force, the store knows.
#[derive(Clone)]
pub struct RefreshToken {
    session: Uuid,
    bytes: Zeroizing<[u8; LEN]>,
}

impl SessionKeys {
    /// Uses a key of the cluster.
    #[must_use]
    pub const fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self { key }
    }

    /// Makes a refresh token for a session.
    #[must_use]
    pub fn refresh_token(&self, session: Uuid) -> RefreshToken {
        let mut bytes = Zeroizing::new([0; LEN]);
        let secret = Zeroizing::new(rand::random::<[u8; 32]>());
        bytes[..16].copy_from_slice(session.as_bytes());
        bytes[16..48].copy_from_slice(&*secret);
        let mark = self.mac(b"refresh", &bytes[..48]);
        bytes[48..].copy_from_slice(&mark[..16]);
        RefreshToken { session, bytes }
    }

    /// Reads a refresh token; `None` if it does not carry our mark.
    #[must_use]
    pub fn read_refresh_token(&self, text: &str) -> Option<RefreshToken> {
        let text = text.strip_prefix(PREFIX).filter(|text| text.len() < 128)?;
        let decoded = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        let bytes: Zeroizing<[u8; LEN]> = Zeroizing::new(decoded.as_slice().try_into().ok()?);
        let mark = self.mac(b"refresh", &bytes[..48]);
        if !bool::from(bytes[48..].ct_eq(&mark[..16])) {
            return None;
        }
        let session = Uuid::from_slice(&bytes[..16]).ok()?;
        Some(RefreshToken { session, bytes })
    }

    /// Returns the CSRF token of a session.
    #[must_use]
    pub fn csrf_token(&self, session: Uuid) -> String {
        URL_SAFE_NO_PAD.encode(self.mac(b"csrf", session.as_bytes()))
    }

    /// Returns whether `text` is the CSRF token of a session, in constant time.
    #[must_use]
    pub fn is_csrf_token(&self, session: Uuid, text: &str) -> bool {
        self.csrf_token(session)
            .as_bytes()
            .ct_eq(text.as_bytes())
            .into()
    }

    /// Returns a hash of a request that came with an idempotency key, by which it is known when it comes again. Requests
    /// hold passwords: without the key of the cluster none can be guessed by it. No part runs into the next.
    #[must_use]
    pub(crate) fn request_hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(part);
        }
        self.mac(b"request", &hasher.finalize())
    }

    fn mac(&self, what: &[u8], data: &[u8]) -> [u8; 32] {
        let message = [b"hy2 session ", what, b" v1\0", data].concat();
        let tag = sign(&Key::new(HMAC_SHA256, &*self.key), &message);
        let mut mac = [0; 32];
        mac.copy_from_slice(tag.as_ref());
        mac
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKeys(***)")
    }
}

impl RefreshToken {
    /// Returns the session that it renews.
    #[must_use]
    pub const fn session(&self) -> Uuid {
        self.session
    }

    /// Returns what is stored of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.bytes.as_slice()).into()
    }

    /// Returns the token, to be given to the client.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.bytes.as_slice()))
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshToken")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(byte: u8) -> SessionKeys {
        SessionKeys::new(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn a_refresh_token_reads_back_under_its_own_key_only() {
        let session = Uuid::new_v4();
        let token = keys(1).refresh_token(session);
        let read = keys(1).read_refresh_token(&token.reveal()).unwrap();
        assert_eq!((read.session(), read.hash()), (session, token.hash()));
        assert!(keys(2).read_refresh_token(&token.reveal()).is_none());
    }

    #[test]
    fn a_made_up_token_for_a_known_session_carries_no_mark() {
        let token = keys(1).refresh_token(Uuid::new_v4());
        let mut bytes = *token.bytes;
        bytes[20] ^= 1;
        let forged = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert!(keys(1).read_refresh_token(&forged).is_none());
        assert!(keys(1).read_refresh_token("hy2r_").is_none());
        assert!(keys(1).read_refresh_token("").is_none());
    }

    #[test]
    fn a_request_is_known_by_its_parts_under_one_key() {
        let hash = keys(1).request_hash(&[b"POST", b"/a", b"b"]);
        assert_eq!(hash, keys(1).request_hash(&[b"POST", b"/a", b"b"]));
        assert_ne!(hash, keys(1).request_hash(&[b"POST", b"/", b"ab"]));
        assert_ne!(hash, keys(2).request_hash(&[b"POST", b"/a", b"b"]));
    }

    #[test]
    fn csrf_tokens_are_bound_to_the_session() {
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        let token = keys(1).csrf_token(a);
        assert!(keys(1).is_csrf_token(a, &token));
        assert!(!keys(1).is_csrf_token(b, &token));
        assert!(!keys(2).is_csrf_token(a, &token));
        assert!(!keys(1).is_csrf_token(a, ""));
    }
}
