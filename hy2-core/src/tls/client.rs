//! How a client judges the server: roots, a leaf pin, and what it shows of itself.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};

use super::{
    ALPN_H3,
    anchor::{self, Leaf},
    provider::provider,
    server::CertificateError,
};

/// TLS settings of a client; the keys of the reference's `tls` section.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct ClientTls {
    /// The name to ask for; default is the server's host. An IP address sends no name.
    pub sni: Option<String>,
    /// Accepts any certificate chain. A pin still counts.
    pub insecure: bool,
    /// SHA-256 of the leaf certificate in DER form; checked in addition to the chain.
    pub pin_sha256: Option<[u8; 32]>,
    /// Roots to trust; `None` means the system's, or Mozilla's where the system has none.
    pub roots: Option<Arc<RootCertStore>>,
    /// Chain (leaf first) and key shown to servers that ask for one (mutual TLS).
    pub identity: Option<ClientIdentity>,
}

/// A client's own certificate chain and key.
#[derive(Clone)]
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl ClientIdentity {
    /// Shows `chain` (leaf first) and proves it with `key`, both in DER form.
    ///
    /// Whether they fit together shows when connecting.
    pub fn from_der(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self {
            chain,
            key: Arc::new(key),
        }
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(***)")
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("sni", &self.sni)
            .field("insecure", &self.insecure)
            .field("pinned", &self.pin_sha256.is_some())
            .field("own_roots", &self.roots.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

impl ClientTls {
    /// Trusts exactly the certificates in the PEM file `path` (reference: `tls.ca`).
    ///
    /// # Errors
    ///
    /// [`CertificateError`] when the file is missing or holds no certificate.
    pub fn with_ca_file(mut self, path: impl AsRef<Path>) -> Result<Self, CertificateError> {
        self.roots = Some(Arc::new(roots_of(path.as_ref())?));
        Ok(self)
    }

    /// Shows the certificate in `certificate` with `key`, both PEM files (reference:
    /// `tls.clientCertificate`, `tls.clientKey`).
    ///
    /// # Errors
    ///
    /// [`CertificateError`] when a file is missing, holds no PEM, or the two do not fit together.
    pub fn with_identity_files(
        mut self,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, CertificateError> {
        let chain = certificates_of(certificate.as_ref())?;
        let text = super::server::read(key.as_ref())?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| CertificateError::Pem {
            path: key.as_ref().to_owned(),
            what: "private key",
        })?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
            .map_err(CertificateError::Mismatch)?;
        self.identity = Some(ClientIdentity::from_der(chain, key));
        Ok(self)
    }

    /// Reads a pin as people write it: hexadecimal, any case, `:` and `-` ignored.
    pub fn parse_pin(text: &str) -> Option<[u8; 32]> {
        let mut nibbles = text
            .chars()
            .filter(|c| !matches!(c, ':' | '-'))
            .map(|c| c.to_digit(16));
        let mut pin = [0u8; 32];
        for byte in &mut pin {
            let (high, low) = (nibbles.next()??, nibbles.next()??);
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        nibbles.next().is_none().then_some(pin)
    }

    /// Prepares one connection attempt.
    pub(crate) fn connect(&self) -> Result<ConnectTls, CertificateError> {
        let failure = Arc::new(TlsFailure::default());
        let roots = match (&self.roots, self.insecure) {
            (_, true) => None,
            (Some(roots), false) => Some(Arc::clone(roots)),
            (None, false) => Some(system_roots()),
        };
        let chain = roots
            .map(|roots| {
                let built =
                    WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider());
                Ok((roots, built.build()?))
            })
            .transpose()
            .map_err(CertificateError::ClientCa)?;
        let verifier = Verifier {
            chain,
            pin: self.pin_sha256,
            failure: Arc::clone(&failure),
        };
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(CertificateError::Mismatch)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(CertificateError::Mismatch)?,
        };
        config.alpn_protocols = vec![ALPN_H3.to_vec()];
        // The protocol authenticates each connection anew; tickets would only mark us.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(ConnectTls { config, failure })
    }
}

/// What one attempt needs, and why its certificate check failed, if it did.
pub(crate) struct ConnectTls {
    pub(crate) config: rustls::ClientConfig,
    pub(crate) failure: Arc<TlsFailure>,
}

/// Remembers the judgement on the server's certificate: the QUIC layer passes on texts only.
#[derive(Debug, Default)]
pub(crate) struct TlsFailure {
    pin: AtomicBool,
    chain: OnceLock<String>,
}

impl TlsFailure {
    /// Tells whether the leaf did not match the pin.
    pub(crate) fn pin_mismatch(&self) -> bool {
        self.pin.load(Relaxed)
    }

    /// What is wrong with the chain, if something is.
    pub(crate) fn chain(&self) -> Option<&str> {
        self.chain.get().map(String::as_str)
    }
}

/// Says in a sentence why a certificate is not accepted. The texts of rustls are the names of its
/// variants.
fn in_words(error: &rustls::Error) -> String {
    use rustls::CertificateError as Wrong;
    let rustls::Error::InvalidCertificate(wrong) = error else {
        return format!("the server's certificate cannot be checked: {error}");
    };
    match wrong {
        Wrong::UnknownIssuer => {
            "the server's certificate is not issued by an authority that is trusted here".into()
        }
        Wrong::Expired | Wrong::ExpiredContext { .. } => {
            "the server's certificate has expired".into()
        }
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet (is the clock right?)".into()
        }
        Wrong::NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            if presented.is_empty() {
                format!("the server's certificate is not for {expected}, it names nobody")
            } else {
                let presented = presented.join(", ");
                format!("the server's certificate is not for {expected}, it is for {presented}")
            }
        }
        Wrong::NotValidForName => "the server's certificate is for another name".into(),
        Wrong::BadEncoding => "the server's certificate is damaged".into(),
        // Mostly an authority of the same name with another key.
        Wrong::BadSignature => {
            "the server's certificate is not signed by the authority that is trusted here".into()
        }
        Wrong::Revoked => "the server's certificate is revoked".into(),
        Wrong::InvalidPurpose | Wrong::InvalidPurposeContext { .. } => {
            "the server's certificate is not meant for servers".into()
        }
        // The verifier's own errors; this is the one that people meet.
        Wrong::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the server shows the certificate of an authority instead of one for servers".into()
        }
        _ => "the server's certificate is not one that this client can check".into(),
    }
}

#[derive(Debug)]
struct Verifier {
    chain: Option<(Arc<RootCertStore>, Arc<WebPkiServerVerifier>)>,
    pin: Option<[u8; 32]>,
    failure: Arc<TlsFailure>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The leaf alone: an attacker can add any certificate to the chain.
        if let Some(pin) = self.pin
            && <[u8; 32]>::from(Sha256::digest(leaf)) != pin
        {
            self.failure.pin.store(true, Relaxed);
            return Err(rustls::CertificateError::ApplicationVerificationFailure.into());
        }
        match &self.chain {
            Some((roots, chain)) => {
                let judgement = match anchor::judge(roots, leaf, Leaf::Server(name), now) {
                    Some(judgement) => judgement.map(|()| ServerCertVerified::assertion()),
                    None => chain.verify_server_cert(leaf, intermediates, name, ocsp, now),
                };
                judgement.inspect_err(|error| {
                    // One connection is judged once.
                    let _ = self.failure.chain.set(in_words(error));
                })
            }
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn system_roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(native.certs);
    if added == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Arc::new(roots)
}

pub(super) fn certificates_of(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let unusable = || CertificateError::Pem {
        path: path.to_owned(),
        what: "certificate",
    };
    let text = super::server::read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable())?;
    if chain.is_empty() {
        return Err(unusable());
    }
    Ok(chain)
}

pub(super) fn roots_of(path: &Path) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_of(path)? {
        roots.add(certificate).map_err(CertificateError::Mismatch)?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_people_write_them() {
        let plain = "ab".repeat(32);
        let colons = plain
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
            .collect::<Vec<_>>()
            .join(":");
        assert_eq!(ClientTls::parse_pin(&plain), Some([0xab; 32]));
        assert_eq!(ClientTls::parse_pin(&colons), Some([0xab; 32]));
        for wrong in ["", "ab", "xy", &format!("{plain}a"), &format!("{plain}ab")] {
            assert_eq!(ClientTls::parse_pin(wrong), None, "{wrong:?}");
        }
    }
}
