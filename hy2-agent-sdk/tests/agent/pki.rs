//! The cluster's private CA and what it certifies.

use std::time::{Duration, SystemTime};

use hy2_agent_sdk::hy2_proto::control::{
    MANIFEST_SIGNATURE_CONTEXT, MASTER_NAME, NODE_NAME_SUFFIX, SIGNER_NAME,
    rpc::{IssuedCertificate, Manifest, SignedManifest, SigningKey},
};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SigningKey as _,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    signer: KeyPair,
    pub(crate) signing_key: SigningKey,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, key).expect("a CA");
        let (signer, signing_key) = signer(&ca, "signer-1", None);
        Self {
            ca,
            signer,
            signing_key,
        }
    }

    pub(crate) fn ca(&self) -> CertificateDer<'static> {
        self.ca.der().clone()
    }

    pub(crate) fn pin(&self) -> String {
        let digest = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            &self.ca.key().subject_public_key_info(),
        );
        format!("sha256:{}", hex::encode(digest))
    }

    /// The master's chain, which ends with the CA, and its key.
    pub(crate) fn master(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![MASTER_NAME.to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.ca).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        (vec![leaf.der().clone(), self.ca()], key)
    }

    /// A certificate for anything else, with its key: an operator, another node.
    pub(crate) fn other(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let leaf = params.signed_by(&key, &self.ca).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        (leaf.der().clone(), key)
    }

    /// Issues to the key of a request.
    pub(crate) fn issue(&self, csr: &[u8], uid: &str, life: Duration) -> IssuedCertificate {
        let mut request =
            CertificateSigningRequestParams::from_der(&csr.to_vec().into()).expect("a request");
        let name = format!("{uid}{NODE_NAME_SUFFIX}");
        request.params.subject_alt_names = vec![SanType::DnsName(name.try_into().expect("ascii"))];
        // The agent shows it to operators on its loopback port, too.
        request.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let now = SystemTime::now();
        request.params.not_before = (now - Duration::from_secs(3600)).into();
        request.params.not_after = (now + life).into();
        let leaf = request.signed_by(&self.ca).expect("a certificate");
        IssuedCertificate {
            chain: vec![leaf.der().to_vec().into()],
            not_after: Some((now + life).into()),
            renew_after: Some((now + life.mul_f64(2.0 / 3.0)).into()),
        }
    }

    pub(crate) fn sign(&self, manifest: &Manifest) -> SignedManifest {
        sign(&self.signer, &self.signing_key, manifest)
    }

    /// Another key that the CA certifies as a signer, until a moment or for ever.
    pub(crate) fn another_signer(&self, key_id: &str, until: Option<SystemTime>) -> Signer {
        let (key, public) = signer(&self.ca, key_id, until);
        Signer { key, public }
    }
}

/// A key that signs manifests, beside the first one.
pub(crate) struct Signer {
    key: KeyPair,
    pub(crate) public: SigningKey,
}

impl Signer {
    pub(crate) fn sign(&self, manifest: &Manifest) -> SignedManifest {
        sign(&self.key, &self.public, manifest)
    }
}

fn signer(
    ca: &CertifiedIssuer<'static, KeyPair>,
    key_id: &str,
    until: Option<SystemTime>,
) -> (KeyPair, SigningKey) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::new(vec![SIGNER_NAME.to_owned()]).expect("a name");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if let Some(until) = until {
        params.not_after = until.into();
    }
    let certificate = params.signed_by(&key, ca).expect("a certificate");
    let public = SigningKey {
        key_id: key_id.to_owned().into(),
        certificate: certificate.der().to_vec().into(),
    };
    (key, public)
}

fn sign(key: &KeyPair, public: &SigningKey, manifest: &Manifest) -> SignedManifest {
    let manifest = manifest.encode_to_vec();
    let message = [MANIFEST_SIGNATURE_CONTEXT, &manifest].concat();
    SignedManifest {
        manifest: manifest.into(),
        signature: key.sign(&message).expect("a signature").into(),
        key_id: public.key_id.clone(),
    }
}
