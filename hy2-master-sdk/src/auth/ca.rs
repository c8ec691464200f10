//! The private certificate authority: node identities, the master's own certificate, certificates
//! of signing keys, and Hysteria certificates of nodes that have none of their own.
//!
//! Nodes pin the authority's public key. What a certificate is for is in its DNS name, and each
//! kind has its own: a node's certificate passes neither for the master nor for a signer.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use hy2_proto::control::{MASTER_NAME, NODE_NAME_SUFFIX, SIGNER_NAME};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use time::OffsetDateTime;
use uuid::Uuid;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::domain::Timestamp;
use crate::secrets::{random, sha256};

/// An authority with its private key.
pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    spki_sha256: [u8; 32],
    not_before: Timestamp,
    not_after: Timestamp,
}

/// A certificate that the authority issued.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Issued {
    /// DER.
    pub certificate: CertificateDer<'static>,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// Random, 16 bytes.
    pub serial: Vec<u8>,
    /// SHA-256 of the subject's public key (SubjectPublicKeyInfo).
    pub spki_sha256: [u8; 32],
    /// From when on it is valid; some minutes back, for clocks that are late.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

/// A certificate with a key that was made for it.
pub struct IssuedKey {
    /// The certificate.
    pub issued: Issued,
    /// PKCS#8, DER.
    pub key: Zeroizing<Vec<u8>>,
}

/// The authority cannot do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CaError {
    /// The request is malformed, too large, or not signed with its own key.
    #[error("csr: {0}")]
    Request(&'static str),
    /// A name that cannot stand in a certificate.
    #[error("{0:?} cannot be the name in a certificate")]
    Name(String),
    /// The stored authority cannot be read.
    #[error("the stored certificate authority is invalid")]
    Stored(#[source] rcgen::Error),
    /// Making keys or signing failed.
    #[error("cannot issue a certificate")]
    Issue(#[source] rcgen::Error),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] crate::secrets::RandomError),
}

impl CertificateAuthority {
    /// Makes a new authority. Returns it with its key (PKCS#8, DER), to be sealed.
    ///
    /// # Errors
    ///
    /// Making the key fails.
    pub fn generate(now: Timestamp) -> Result<(Self, Zeroizing<Vec<u8>>), CaError> {
        let key = KeyPair::generate().map_err(CaError::Issue)?;
        let mut params = params(now.minus(BACKDATED), now.plus(CA_VALIDITY))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "hy2 cluster CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .map_err(CaError::Issue)?
            .der()
            .clone();
        let sealed = Zeroizing::new(key.serialize_der());
        Ok((Self::load(certificate, &sealed)?, sealed))
    }

    /// Takes a stored authority: certificate (DER) and key (PKCS#8, DER).
    ///
    /// # Errors
    ///
    /// Either is invalid, or they do not belong together.
    pub fn load(certificate: CertificateDer<'static>, key: &[u8]) -> Result<Self, CaError> {
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key)).map_err(CaError::Stored)?;
        let stored = |_| CaError::Stored(rcgen::Error::CouldNotParseCertificate);
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(stored)?;
        let spki = key.subject_public_key_info();
        if parsed.public_key().raw != spki {
            return Err(CaError::Stored(rcgen::Error::CouldNotParseKeyPair));
        }
        let moment = |at: ASN1Time| Timestamp(at.timestamp().saturating_mul(1000));
        let not_before = moment(parsed.validity().not_before);
        let not_after = moment(parsed.validity().not_after);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Stored)?;
        Ok(Self {
            spki_sha256: sha256(&spki),
            not_before,
            not_after,
            issuer,
            certificate,
        })
    }

    /// Returns the certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the SHA-256 of the public key.
    pub fn spki_sha256(&self) -> &[u8; 32] {
        &self.spki_sha256
    }

    /// Returns what agents pin: `sha256:<hex>`.
    pub fn pin(&self) -> String {
        format!("sha256:{}", hex::encode(self.spki_sha256))
    }

    /// Returns until when the authority is valid.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Issues a node's identity for the key of a request. Of the request only the key counts.
    ///
    /// # Errors
    ///
    /// [`CaError::Request`].
    pub fn issue_node(
        &self,
        node: Uuid,
        request: &NodeRequest,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        let mut params = params(self.not_before, now.plus(NODE_VALIDITY))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "hy2 node");
        params.subject_alt_names = vec![
            dns(&format!("{node}{NODE_NAME_SUFFIX}"))?,
            SanType::URI(ia5(&format!("urn:uuid:{node}"))?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node is a server too, where its NodeManager listens on a port of the host. It cannot
        // pass for the master: that has a name which only `issue_master` gives.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let signed = CertificateSigningRequestParams {
            params: params.clone(),
            public_key: request.parsed.public_key.clone(),
        }
        .signed_by(&self.issuer)
        .map_err(CaError::Issue)?;
        Ok(issued(&params, signed.der().clone(), request.spki_sha256))
    }

    /// Issues the certificate that the master shows to agents, for these names and addresses beside
    /// the fixed one.
    ///
    /// # Errors
    ///
    /// [`CaError::Name`].
    pub fn issue_master(&self, names: &[String], now: Timestamp) -> Result<IssuedKey, CaError> {
        let mut params = params(self.not_before, now.plus(NODE_VALIDITY))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "hy2 master");
        params.subject_alt_names.push(dns(MASTER_NAME)?);
        for name in names {
            params.subject_alt_names.push(host(name)?);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue_with_key(&params, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// Issues a certificate with which an operator reaches NodeManager on a node's loopback port. It is good for every
    /// node, and no node asks whether it was revoked: it should be short.
    ///
    /// # Errors
    ///
    /// [`CaError::Name`].
    pub fn issue_operator(
        &self,
        name: &str,
        validity: Duration,
        now: Timestamp,
    ) -> Result<IssuedKey, CaError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > MAX_OPERATOR_NAME || !name.chars().all(plain) {
            return Err(CaError::Name(name.to_owned()));
        }
        let mut params = params(self.not_before, now.plus(validity))?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("hy2 operator {name}"));
        let uri = format!("urn:hy2:operator:{name}");
        params.subject_alt_names.push(SanType::URI(ia5(&uri)?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue_with_key(&params, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// Issues the certificate of a new Ed25519 key that signs manifests.
    ///
    /// # Errors
    ///
    /// Making the key fails.
    pub fn issue_signer(&self, now: Timestamp) -> Result<IssuedKey, CaError> {
        let mut params = params(self.not_before, now.plus(SIGNER_VALIDITY))?;
        params
            .distinguished_name
            .push(DnType::CommonName, "hy2 signer");
        params.subject_alt_names.push(dns(SIGNER_NAME)?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        self.issue_with_key(&params, &rcgen::PKCS_ED25519)
    }

    /// Issues a certificate for a node's Hysteria server. Clients pin it, so it lasts long.
    ///
    /// # Errors
    ///
    /// [`CaError::Name`].
    pub fn issue_hysteria(&self, public_host: &str, now: Timestamp) -> Result<IssuedKey, CaError> {
        let mut params = params(now.minus(BACKDATED), now.plus(HYSTERIA_VALIDITY))?;
        // A public certificate is seen by whoever probes: nothing in it names this software.
        params
            .distinguished_name
            .push(DnType::CommonName, public_host);
        params.subject_alt_names.push(host(public_host)?);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(CaError::Issue)?;
        let certificate = params
            .self_signed(&key)
            .map_err(CaError::Issue)?
            .der()
            .clone();
        let spki = sha256(&key.subject_public_key_info());
        Ok(IssuedKey {
            issued: issued(&params, certificate, spki),
            key: Zeroizing::new(key.serialize_der()),
        })
    }

    fn issue_with_key(
        &self,
        params: &CertificateParams,
        algorithm: &'static rcgen::SignatureAlgorithm,
    ) -> Result<IssuedKey, CaError> {
        let key = KeyPair::generate_for(algorithm).map_err(CaError::Issue)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(CaError::Issue)?
            .der()
            .clone();
        let spki = sha256(&key.subject_public_key_info());
        Ok(IssuedKey {
            issued: issued(params, certificate, spki),
            key: Zeroizing::new(key.serialize_der()),
        })
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("pin", &self.pin())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedKey")
            .field("issued", &self.issued)
            .field("key", &"***")
            .finish()
    }
}

/// A node's request for a certificate whose signature proves that it has the key.
#[derive(Debug, Clone)]
pub struct NodeRequest {
    parsed: CertificateSigningRequestParams,
    spki_sha256: [u8; 32],
}

impl NodeRequest {
    /// Checks a request (PKCS#10, DER): P-256, P-384 or Ed25519, signed with its own key.
    ///
    /// # Errors
    ///
    /// [`CaError::Request`] says why not.
    pub fn parse(der: &[u8]) -> Result<Self, CaError> {
        use x509_parser::certification_request::X509CertificationRequest;
        if der.len() > MAX_REQUEST {
            return Err(CaError::Request("larger than 8 KiB"));
        }
        let (rest, request) = X509CertificationRequest::from_der(der)
            .map_err(|_| CaError::Request("not a PKCS#10 request"))?;
        if !rest.is_empty() {
            return Err(CaError::Request("bytes follow the request"));
        }
        let spki_sha256 = sha256(request.certification_request_info.subject_pki.raw);
        let parsed =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                .map_err(|error| match error {
                    rcgen::Error::InvalidCertificationRequestSignature => {
                        CaError::Request("not signed with the key that it names")
                    }
                    _ => CaError::Request("not a request that this authority understands"),
                })?;
        let algorithm = parsed.public_key.algorithm();
        let accepted = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ];
        if !accepted.contains(&algorithm) {
            return Err(CaError::Request(
                "the key is neither P-256, P-384 nor Ed25519",
            ));
        }
        Ok(Self {
            parsed,
            spki_sha256,
        })
    }

    /// Returns the SHA-256 of the public key.
    pub fn spki_sha256(&self) -> &[u8; 32] {
        &self.spki_sha256
    }
}

/// Returns the UUID in the name of a node's certificate.
pub fn node_of(certificate: &X509Certificate<'_>) -> Option<Uuid> {
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => {
                Uuid::try_parse(name.strip_suffix(NODE_NAME_SUFFIX)?).ok()
            }
            _ => None,
        })
}

/// Reads a node's certificate: the UUID in its name, and what [`CertificateAuthority::issue_node`] returned. Whether an
/// authority signed it is not looked at.
pub(crate) fn read_node(certificate: &[u8]) -> Option<(Uuid, Issued)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let moment = |at: ASN1Time| Timestamp(at.timestamp().saturating_mul(1000));
    let issued = Issued {
        fingerprint: sha256(certificate),
        serial: parsed.raw_serial().to_vec(),
        spki_sha256: sha256(parsed.public_key().raw),
        not_before: moment(parsed.validity().not_before),
        not_after: moment(parsed.validity().not_after),
        certificate: certificate.to_vec().into(),
    };
    Some((node_of(&parsed)?, issued))
}

fn params(not_before: Timestamp, not_after: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = moment(not_before);
    params.not_after = moment(not_after);
    let mut serial = *random::<16>()?;
    // Positive and of full length, whatever the encoding does with leading bits.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn issued(
    params: &CertificateParams,
    certificate: CertificateDer<'static>,
    spki_sha256: [u8; 32],
) -> Issued {
    Issued {
        fingerprint: sha256(&certificate),
        serial: params
            .serial_number
            .as_ref()
            .map(SerialNumber::to_bytes)
            .unwrap_or_default(),
        spki_sha256,
        not_before: Timestamp(params.not_before.unix_timestamp().saturating_mul(1000)),
        not_after: Timestamp(params.not_after.unix_timestamp().saturating_mul(1000)),
        certificate,
    }
}

/// Certificates count in whole seconds.
fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.0.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn dns(name: &str) -> Result<SanType, CaError> {
    Ok(SanType::DnsName(ia5(name)?))
}

fn host(name: &str) -> Result<SanType, CaError> {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) if rustls_pki_types::DnsName::try_from(name).is_ok() => dns(name),
        Err(_) => Err(CaError::Name(name.to_owned())),
    }
}

fn ia5(text: &str) -> Result<Ia5String, CaError> {
    Ia5String::try_from(text).map_err(|_| CaError::Name(text.to_owned()))
}

/// Letters of an operator's name at most.
const MAX_OPERATOR_NAME: usize = 40;

/// Validity of a node's identity (control-plane.md, rulings); the master's own certificate is made
/// anew with each start and each day.
pub const NODE_VALIDITY: Duration = Duration::from_secs(30 * 86_400);

const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Validity of a key that signs manifests; the next one is made in time.
pub(crate) const SIGNER_VALIDITY: Duration = Duration::from_secs(365 * 86_400);
const HYSTERIA_VALIDITY: Duration = Duration::from_secs(3 * 365 * 86_400);

/// How long before it was made an authority is valid, and with it whatever it issues. A beginning keeps nobody out who
/// should be: it only makes enemies of clocks. A master whose clock was ahead for a minute would issue what is not valid
/// for as long as it was ahead, and a host that starts with its clock behind would believe nobody.
const BACKDATED: Duration = Duration::from_secs(365 * 86_400);
const MAX_REQUEST: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::certification_request::X509CertificationRequest;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(vec!["master.hy2.internal".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        (key, der)
    }

    #[test]
    fn what_is_issued_by_a_wrong_clock_is_valid_when_it_is_right() {
        let (ca, _) = CertificateAuthority::generate(NOW).unwrap();
        let (_, der) = request(&rcgen::PKCS_ED25519);
        let request = NodeRequest::parse(&der).unwrap();
        let ahead = NOW.plus(Duration::from_secs(25 * 86_400));
        let day = Duration::from_secs(86_400);
        for issued in [
            ca.issue_node(Uuid::from_u128(5), &request, ahead).unwrap(),
            ca.issue_master(&[], ahead).unwrap().issued,
            ca.issue_signer(ahead).unwrap().issued,
            ca.issue_operator("ann", day, ahead).unwrap().issued,
            ca.issue_hysteria("node.example.org", ahead).unwrap().issued,
        ] {
            let (_, parsed) = X509Certificate::from_der(&issued.certificate).unwrap();
            // By the right clock, and by one of a month before.
            for at in [NOW, NOW.minus(30 * day)] {
                let at = ASN1Time::from_timestamp(at.0 / 1000).unwrap();
                assert!(parsed.validity().is_valid_at(at), "{}", parsed.subject());
            }
            assert!(issued.not_after > ahead);
        }
    }

    #[test]
    fn of_a_request_only_the_key_counts() {
        let (ca, _) = CertificateAuthority::generate(NOW).unwrap();
        let (key, der) = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        let request = NodeRequest::parse(&der).unwrap();
        let node = Uuid::from_u128(5);
        let issued = ca.issue_node(node, &request, NOW).unwrap();
        let (_, parsed) = X509Certificate::from_der(&issued.certificate).unwrap();
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
        assert_eq!(&issued.spki_sha256, request.spki_sha256());
        assert_eq!(node_of(&parsed), Some(node));
        assert!(!parsed.is_ca());
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 2);
        let usage = parsed.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && usage.value.server_auth);
        assert_eq!(parsed.raw_serial(), issued.serial);
        assert_eq!(issued.not_after, NOW.plus(NODE_VALIDITY));
    }

    #[test]
    fn a_request_with_a_flipped_bit_or_a_foreign_signature_is_refused() {
        let (_, der) = request(&rcgen::PKCS_ED25519);
        assert!(NodeRequest::parse(&der).is_ok());
        // What is signed, and the signature; the algorithm's name between them is not.
        let signed = 3..X509CertificationRequest::from_der(&der)
            .map(|(_, request)| 3 + request.certification_request_info.raw.len())
            .unwrap();
        for at in signed.chain(der.len() - 64..der.len()) {
            let mut changed = der.clone();
            changed[at] ^= 1;
            assert!(NodeRequest::parse(&changed).is_err(), "byte {at}");
        }
        assert!(NodeRequest::parse(&[]).is_err());
        assert!(NodeRequest::parse(&vec![0x30; MAX_REQUEST + 1]).is_err());
        let mut longer = der;
        longer.push(0);
        assert!(matches!(
            NodeRequest::parse(&longer),
            Err(CaError::Request("bytes follow the request"))
        ));
    }

    #[test]
    fn an_authority_survives_storage_and_a_foreign_key_does_not_pass() {
        let (ca, key) = CertificateAuthority::generate(NOW).unwrap();
        let again = CertificateAuthority::load(ca.certificate().clone(), &key).unwrap();
        assert_eq!(again.pin(), ca.pin());
        assert_eq!(again.not_after(), NOW.plus(CA_VALIDITY));
        let (_, other) = CertificateAuthority::generate(NOW).unwrap();
        assert!(CertificateAuthority::load(ca.certificate().clone(), &other).is_err());
        let (_, der) = request(&rcgen::PKCS_ECDSA_P384_SHA384);
        let issued = again
            .issue_node(Uuid::nil(), &NodeRequest::parse(&der).unwrap(), NOW)
            .unwrap();
        let (_, root) = X509Certificate::from_der(ca.certificate()).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.certificate).unwrap();
        leaf.verify_signature(Some(root.public_key())).unwrap();
    }

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        let (ca, _) = CertificateAuthority::generate(NOW).unwrap();
        assert!(ca.issue_hysteria("203.0.113.7", NOW).is_ok());
        assert!(ca.issue_hysteria("vpn.example.com", NOW).is_ok());
        for name in ["", "a b", "naïve.example", "-"] {
            assert!(
                matches!(ca.issue_hysteria(name, NOW), Err(CaError::Name(_))),
                "{name:?}"
            );
        }
    }
}
