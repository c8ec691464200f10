//! The node's private key, and the keys derived from it.

use std::fmt;

use aws_lc_rs::{digest, hkdf};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, SigningKey,
    string::PrintableString,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// An ECDSA P-256 key; wiped on drop and never printed.
pub struct NodeKey {
    pair: KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(***)")
    }
}

impl NodeKey {
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let pkcs8 = Zeroizing::new(pair.serialize_der());
        Ok(Self { pair, pkcs8 })
    }

    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Self, rcgen::Error> {
        let pair = KeyPair::try_from(der)?;
        let pkcs8 = Zeroizing::new(der.to_vec());
        Ok(Self { pair, pkcs8 })
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// Returns the key for rustls.
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }

    /// Returns the SHA-256 of the public key as certificates carry it.
    pub fn spki_sha256(&self) -> [u8; 32] {
        sha256(&self.pair.subject_public_key_info())
    }

    /// Returns a certificate request (PKCS#10, DER) for this key.
    pub(crate) fn request(&self, name: &str) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The master decides about names; this one is for people who look at the request.
        // What writes it (yasna 0.6) panics at a question mark, which rcgen lets through.
        let name = match PrintableString::try_from(name) {
            Ok(printable) if !name.contains('?') => printable,
            _ => "node".try_into()?,
        };
        params
            .distinguished_name
            .push(DnType::CommonName, rcgen::DnValue::PrintableString(name));
        let request = params.serialize_request(&self.pair)?;
        Ok(request.der().to_vec())
    }

    /// Signs `message` (ECDSA P-256, SHA-256, ASN.1).
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.pair.sign(message)
    }

    /// Derives a symmetric key for one purpose.
    pub(crate) fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        struct Len;
        impl hkdf::KeyType for Len {
            fn len(&self) -> usize {
                32
            }
        }
        let mut key = Zeroizing::new([0; 32]);
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"hy2 agent").extract(&self.pkcs8);
        let filled = secret
            .expand(&[purpose], Len)
            .and_then(|okm| okm.fill(&mut *key));
        filled.expect("32 bytes are within what HKDF-SHA256 gives");
        key
    }
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_made_for_any_name() {
        let key = NodeKey::generate().unwrap();
        for name in ["fra-1", "a?b", "\u{646}", "a*b", ""] {
            assert!(key.request(name).is_ok(), "{name}");
        }
    }
}
