//! What an identity is used for, for the fuzz targets.

use super::*;

/// Makes a certificate that a key signs for itself.
///
/// # Errors
///
/// None that anybody knows.
pub fn certificate(key: &NodeKey) -> Result<Vec<u8>, rcgen::Error> {
    let pair = rcgen::KeyPair::try_from(key.pkcs8())?;
    let params = rcgen::CertificateParams::default();
    Ok(params.self_signed(&pair)?.der().to_vec())
}

/// See `NodeKey::request`.
///
/// # Errors
///
/// None that anybody knows.
pub fn request(key: &NodeKey, name: &str) -> Result<Vec<u8>, rcgen::Error> {
    key.request(name)
}

/// See `Identity::renewal_due`.
pub fn renewal_due(identity: &Identity, now: SystemTime) -> bool {
    identity.renewal_due(now)
}

/// See `Identity::renewed`.
///
/// # Errors
///
/// As there.
pub fn renewed(
    identity: &Identity,
    certificate: Option<&IssuedCertificate>,
    trusted_cas: &[bytes::Bytes],
    signing_keys: &[SigningKey],
) -> Result<(), IdentityError> {
    identity.renewed(certificate, trusted_cas, signing_keys)
}

/// See `renewal_request`.
///
/// # Errors
///
/// The node is not enrolled.
pub fn renewal_request(
    identity: &Identity,
    now: SystemTime,
    by_key: bool,
) -> Result<rpc::RenewCertificateRequest, IdentityError> {
    super::renewal_request(identity, now, by_key)
}
