//! How the orchestrator proves who it is: by the system's authorities, by a file of authorities, or
//! by a pinned public key.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};

/// Makes the settings of TLS.
pub(crate) fn config(ca: Option<&str>, pin: Option<&str>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    if let Some(pin) = pin {
        let pin = Pinned {
            pin: read_pin(pin)?,
            provider,
        };
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pin))
            .with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    if let Some(pem) = ca {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.context("the file of authorities is not PEM")?;
            roots
                .add(certificate)
                .context("not a certificate of an authority")?;
        }
        ensure!(
            !roots.is_empty(),
            "the file of authorities holds no certificate"
        );
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Reads `sha256:` and 64 hexadecimal digits.
pub(crate) fn read_pin(text: &str) -> anyhow::Result<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let mut pin = [0; 32];
    if hex::decode_to_slice(digits, &mut pin).is_err() {
        bail!("a pin is sha256: and 64 hexadecimal digits");
    }
    Ok(pin)
}

/// Trusts one public key: that of the certificate itself, or that of the authority it comes from,
/// which is then checked like any other.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn is_pinned(&self, certificate: &[u8]) -> bool {
        x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| {
            Sha256::digest(parsed.tbs_certificate.subject_pki.raw).as_slice() == self.pin
        })
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.is_pinned(end_entity) {
            // The handshake proves that the peer has the key; a name adds nothing.
            return Ok(ServerCertVerified::assertion());
        }
        let Some(authority) = intermediates.iter().find(|der| self.is_pinned(der)) else {
            return Err(Error::General(
                "the certificate is not the pinned one".to_owned(),
            ));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
