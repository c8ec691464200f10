//! Whom the agent believes: the master by a pin or a known CA, a signing key by a known CA.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hy2_proto::control::{SIGNER_NAME, rpc::SigningKey};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Credentials, key::sha256};
use crate::config::CaPin;

/// SHA-256 of a certificate's public key; `None` when it cannot be read.
pub(crate) fn spki_sha256(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(sha256(parsed.tbs_certificate.subject_pki.raw))
}

/// Believes a server whose chain ends at the CA with the pinned key.
#[derive(Debug)]
pub(crate) struct PinVerifier {
    pub(crate) pin: CaPin,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates
            .iter()
            .find(|certificate| spki_sha256(certificate) == Some(self.pin.0))
            .ok_or_else(|| unknown.clone())?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|_| unknown)?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Returns the Ed25519 public key of a signing key, when a trusted CA certifies it as a signer at
/// `now`.
pub(crate) fn verify_signer(
    key: &SigningKey,
    credentials: &Credentials,
    now: SystemTime,
) -> Option<[u8; 32]> {
    let der = CertificateDer::from(key.certificate.to_vec());
    let certificate = EndEntityCert::try_from(&der).ok()?;
    let anchors: Vec<_> = credentials
        .trusted_cas
        .iter()
        .filter_map(|ca| webpki::anchor_from_trusted_cert(ca).ok())
        .collect();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = UnixTime::since_unix_epoch(since);
    // The name tells the purpose; extended key usage is the CA's choice.
    let usages = [KeyUsage::server_auth(), KeyUsage::client_auth()];
    let certified = usages.into_iter().any(|usage| {
        certificate
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &[],
                now,
                usage,
                None,
                None,
            )
            .is_ok()
    });
    let name = ServerName::try_from(SIGNER_NAME).ok()?;
    if !certified || certificate.verify_is_valid_for_subject_name(&name).is_err() {
        return None;
    }
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let spki = parsed.public_key();
    let ed25519 = x509_parser::oid_registry::OID_SIG_ED25519;
    if spki.algorithm.algorithm != ed25519 {
        return None;
    }
    (&*spki.subject_public_key.data).try_into().ok()
}
