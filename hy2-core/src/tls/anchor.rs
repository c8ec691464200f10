//! Leaves that are themselves among the roots.
//!
//! `openssl req -x509` makes an authority's certificate, people show it as a server's (or a client's) and trust the
//! same file at the other end. The reference, whose library accepts any certificate that is in its pool, connects;
//! webpki refuses to take an authority for a leaf. Whoever has an anchor's key could issue any leaf, so nothing is lost
//! by taking the anchor's own.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::{danger::HandshakeSignatureValid, verify_server_name},
    server::{
        ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{ExtendedKeyUsage, FromDer, X509Certificate};

/// Whose certificate it is to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leaf<'a> {
    Server(&'a ServerName<'a>),
    Client,
}

/// Judges a leaf that has the name and the key of a root: by its times, its purpose and, of a server, its names.
/// `None` when it has not.
pub(super) fn judge(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    of: Leaf<'_>,
    now: UnixTime,
) -> Option<Result<(), Error>> {
    let mut own = RootCertStore::empty();
    own.add(leaf.clone().into_owned()).ok()?;
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let is_root = |root| own.roots.first() == Some(root);
    if !roots.roots.iter().any(is_root) {
        return None;
    }
    Some(is_good(leaf, &parsed, of, now))
}

fn is_good(
    leaf: &CertificateDer<'_>,
    parsed: &X509Certificate<'_>,
    of: Leaf<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let Ok(purposes) = parsed.extended_key_usage() else {
        return Err(CertificateError::BadEncoding.into());
    };
    let named = |purposes: &ExtendedKeyUsage<'_>| match of {
        Leaf::Server(_) => purposes.server_auth,
        Leaf::Client => purposes.client_auth,
    };
    if purposes.is_some_and(|purposes| !purposes.value.any && !named(purposes.value)) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    match of {
        Leaf::Server(name) => verify_server_name(&ParsedCertificate::try_from(leaf)?, name),
        Leaf::Client => Ok(()),
    }
}

/// Judges clients as webpki does, and takes those that show a root itself.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    roots: Arc<RootCertStore>,
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientVerifier {
    pub(super) fn new(roots: &Arc<RootCertStore>) -> Result<Self, VerifierBuilderError> {
        let roots = Arc::clone(roots);
        let provider = super::provider::provider();
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider);
        Ok(Self {
            roots,
            chain: chain.build()?,
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match judge(&self.roots, leaf, Leaf::Client, now) {
            Some(judgement) => judgement.map(|()| ClientCertVerified::assertion()),
            None => self.chain.verify_client_cert(leaf, intermediates, now),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
