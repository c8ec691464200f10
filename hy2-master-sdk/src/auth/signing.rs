//! Keys that sign manifests: Ed25519, certified by the authority that nodes pin.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use hy2_proto::control::{MANIFEST_SIGNATURE_CONTEXT, rpc};
use prost::Message;
use rustls_pki_types::CertificateDer;
use thiserror::Error;

use crate::secrets::sha256;

/// A key that signs manifests.
pub struct ManifestSigner {
    key: Ed25519KeyPair,
    key_id: Vec<u8>,
    certificate: CertificateDer<'static>,
}

/// The stored key cannot be read.
#[derive(Debug, Error)]
#[error("the stored signing key is invalid")]
pub struct InvalidSigningKey;

impl ManifestSigner {
    /// Takes a stored key (PKCS#8, DER) with its certificate (DER).
    ///
    /// # Errors
    ///
    /// The key is invalid.
    pub fn load(
        key: &[u8],
        certificate: CertificateDer<'static>,
    ) -> Result<Self, InvalidSigningKey> {
        let key = Ed25519KeyPair::from_pkcs8(key).map_err(|_| InvalidSigningKey)?;
        Ok(Self {
            key_id: sha256(key.public_key().as_ref())[..16].to_vec(),
            key,
            certificate,
        })
    }

    /// Returns the name of the key.
    pub fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// Returns the public key, 32 bytes.
    pub fn public_key(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    /// Returns the key as nodes get to know it.
    pub fn to_wire(&self) -> rpc::SigningKey {
        rpc::SigningKey {
            key_id: self.key_id.clone().into(),
            certificate: self.certificate.to_vec().into(),
        }
    }

    /// Signs a manifest.
    pub fn sign(&self, manifest: &rpc::Manifest) -> rpc::SignedManifest {
        let manifest = manifest.encode_to_vec();
        let signed = [MANIFEST_SIGNATURE_CONTEXT, &manifest].concat();
        rpc::SignedManifest {
            signature: self.key.sign(&signed).as_ref().to_vec().into(),
            manifest: manifest.into(),
            key_id: self.key_id.clone().into(),
        }
    }
}

impl fmt::Debug for ManifestSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManifestSigner")
            .field("key_id", &hex::encode(&self.key_id))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ca::CertificateAuthority;
    use crate::domain::Timestamp;
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn the_signature_verifies_with_the_certified_key_over_the_context_and_the_bytes() {
        let now = Timestamp(1_800_000_000_000);
        let (ca, _) = CertificateAuthority::generate(now).unwrap();
        let made = ca.issue_signer(now).unwrap();
        let signer = ManifestSigner::load(&made.key, made.issued.certificate.clone()).unwrap();
        let signed = signer.sign(&rpc::Manifest {
            rev: 3,
            ..Default::default()
        });
        let (_, certificate) = X509Certificate::from_der(&made.issued.certificate).unwrap();
        let key = certificate.public_key().subject_public_key.data.to_vec();
        assert_eq!(signer.public_key(), key);
        let key = UnparsedPublicKey::new(&ED25519, key);
        let message = [b"hy2 manifest v1\0".as_slice(), &signed.manifest].concat();
        key.verify(&message, &signed.signature).unwrap();
        assert!(key.verify(&signed.manifest, &signed.signature).is_err());
        assert_eq!(signed.key_id, signer.key_id());
    }
}
