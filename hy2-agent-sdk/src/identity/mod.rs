//! Who this node is: its key, which is made here and never leaves, and what the master issued for
//! it.
//!
//! The key is kept across renewals, because what is encrypted on disk hangs on it.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod key;
mod verify;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
use hy2_proto::control::rpc::{self, EnrollResponse, IssuedCertificate, SigningKey};
use prost::Message;
use rand::RngExt;
use rustls_pki_types::CertificateDer;

pub use key::NodeKey;
pub(crate) use verify::{PinVerifier, spki_sha256, verify_signer};

use crate::{clock::moment, files};

/// Why an identity could not be made, read or renewed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}: identity file")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is there but cannot be what the agent wrote.
    #[error("{path}: damaged identity file")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A key or a request could not be made.
    #[error("key or certificate request")]
    Crypto(#[source] rcgen::Error),
    /// The master answered with something that cannot be used.
    #[error("the master's answer: {0}")]
    Answer(&'static str),
}

/// What the master issued.
#[derive(Clone, PartialEq)]
pub struct Credentials {
    /// The node's UUID.
    pub node_uid: [u8; 16],
    /// The node's name.
    pub name: String,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// When the certificate runs out.
    pub not_after: SystemTime,
    /// From when on it should be renewed.
    pub renew_after: SystemTime,
    /// The CAs that master and signers may come from.
    pub trusted_cas: Vec<CertificateDer<'static>>,
    /// The keys that sign manifests.
    pub signing_keys: Vec<SigningKey>,
    /// The cluster's epoch when this was issued.
    pub cluster_epoch: u64,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("node_uid", &hex::encode(self.node_uid))
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .field("trusted_cas", &self.trusted_cas.len())
            .field("signing_keys", &self.signing_keys.len())
            .finish_non_exhaustive()
    }
}

/// The node's identity in its folder; clones are one.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    key: NodeKey,
    current: ArcSwapOption<Credentials>,
    /// What is in force is not on disk.
    unsaved: AtomicBool,
    /// Spreads renewals of nodes that were enrolled together: a share of the time that is left.
    jitter: f64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("folder", &self.inner.folder)
            .field("current", &self.inner.current.load())
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity in `folder`, and makes a key when there is none.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] when files cannot be read, written or understood.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(KEY_FILE);
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::File { path, source }
        };
        let key = match files::read(&path).map_err(fail(&path))? {
            Some(der) => NodeKey::from_pkcs8(&der)
                .map_err(|_| IdentityError::Damaged { path: path.clone() })?,
            None => {
                let key = NodeKey::generate().map_err(IdentityError::Crypto)?;
                // On disk before it is used: a repeated enrolment has to come with the same key.
                files::write_atomic(&path, key.pkcs8()).map_err(fail(&path))?;
                key
            }
        };
        let path = folder.join(IDENTITY_FILE);
        let stored = files::read(&path).map_err(fail(&path))?;
        let current = stored.map(|bytes| {
            let issued = EnrollResponse::decode(&*bytes).ok();
            issued
                .and_then(|issued| credentials(&issued, &key).ok())
                .ok_or_else(|| IdentityError::Damaged { path: path.clone() })
        });
        Ok(Self {
            inner: Arc::new(Inner {
                folder: folder.to_owned(),
                key,
                current: ArcSwapOption::new(current.transpose()?.map(Arc::new)),
                unsaved: AtomicBool::new(false),
                jitter: rand::rng().random_range(0.0..0.25),
            }),
        })
    }

    /// Returns the key.
    pub fn key(&self) -> &NodeKey {
        &self.inner.key
    }

    /// Returns what was issued; `None` until the node is enrolled.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.inner.current.load_full()
    }

    /// Takes what the master issued for this node's key and keeps it on disk.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Answer`] when it is not usable, [`IdentityError::File`] when it cannot be
    /// kept; nothing changes then.
    pub fn accept(&self, issued: &EnrollResponse) -> Result<(), IdentityError> {
        let credentials = credentials(issued, &self.inner.key)?;
        let path = self.inner.folder.join(IDENTITY_FILE);
        files::write_atomic(&path, &issued.encode_to_vec())
            .map_err(|source| IdentityError::File { path, source })?;
        self.inner.current.store(Some(Arc::new(credentials)));
        self.inner.unsaved.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Replaces the parts of what was issued that are given; empty lists change nothing. It is in force also when it cannot
    /// be kept: [`Self::save`] tries again.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Answer`] when it is not usable; nothing changes then. [`IdentityError::File`] when it is not on disk.
    pub(crate) fn renewed(
        &self,
        certificate: Option<&IssuedCertificate>,
        trusted_cas: &[bytes::Bytes],
        signing_keys: &[SigningKey],
    ) -> Result<(), IdentityError> {
        let Some(issued) = self.merged(certificate, trusted_cas, signing_keys)? else {
            return Ok(());
        };
        let credentials = credentials(&issued, &self.inner.key)?;
        self.inner.current.store(Some(Arc::new(credentials)));
        self.inner.unsaved.store(true, Ordering::SeqCst);
        self.save()
    }

    /// Writes what is in force to the disk if it is not there.
    pub(crate) fn save(&self) -> Result<(), IdentityError> {
        if !self.inner.unsaved.load(Ordering::SeqCst) {
            return Ok(());
        }
        match self.credentials() {
            Some(current) => self.accept(&current.to_message()),
            None => Ok(()),
        }
    }

    /// Returns what is in force with the parts that are given; `None` when that changes nothing.
    fn merged(
        &self,
        certificate: Option<&IssuedCertificate>,
        trusted_cas: &[bytes::Bytes],
        signing_keys: &[SigningKey],
    ) -> Result<Option<EnrollResponse>, IdentityError> {
        let Some(current) = self.credentials() else {
            return Err(IdentityError::Answer("the node is not enrolled"));
        };
        let before = current.to_message();
        let mut issued = before.clone();
        if let Some(certificate) = certificate {
            issued.certificate = Some(certificate.clone());
        }
        if !trusted_cas.is_empty() {
            issued.trusted_cas = trusted_cas.to_vec();
        }
        if !signing_keys.is_empty() {
            issued.signing_keys = signing_keys.to_vec();
        }
        if issued == before {
            return Ok(None);
        }
        Ok(Some(issued))
    }

    /// Tells whether the certificate should be renewed: past the moment that the master named, and
    /// a share of the rest of its life, so that nodes do not all come at once.
    pub(crate) fn renewal_due(&self, now: SystemTime) -> bool {
        self.credentials().is_some_and(|current| {
            let rest = current.not_after.duration_since(current.renew_after);
            let jitter = rest.unwrap_or_default().mul_f64(self.inner.jitter);
            // Past the end of all time is never.
            let due = current.renew_after.checked_add(jitter);
            due.is_some_and(|due| now >= due)
        })
    }
}

impl Credentials {
    fn to_message(&self) -> EnrollResponse {
        let der = |certificates: &[CertificateDer<'static>]| {
            certificates
                .iter()
                .map(|certificate| certificate.to_vec().into())
                .collect()
        };
        EnrollResponse {
            node_uid: self.node_uid.to_vec().into(),
            name: self.name.clone(),
            certificate: Some(IssuedCertificate {
                chain: der(&self.chain),
                not_after: Some(self.not_after.into()),
                renew_after: Some(self.renew_after.into()),
            }),
            trusted_cas: der(&self.trusted_cas),
            signing_keys: self.signing_keys.clone(),
            cluster_epoch: self.cluster_epoch,
        }
    }

    /// Tells whether the certificate has run out.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }
}

fn credentials(issued: &EnrollResponse, key: &NodeKey) -> Result<Credentials, IdentityError> {
    let refuse = IdentityError::Answer;
    let certificate = issued
        .certificate
        .as_ref()
        .ok_or_else(|| refuse("no certificate"))?;
    let der = |certificates: &[bytes::Bytes]| -> Vec<CertificateDer<'static>> {
        certificates
            .iter()
            .map(|certificate| CertificateDer::from(certificate.to_vec()))
            .collect()
    };
    let chain = der(&certificate.chain);
    let leaf = chain
        .first()
        .ok_or_else(|| refuse("an empty certificate chain"))?;
    match spki_sha256(leaf) {
        Some(found) if found == key.spki_sha256() => {}
        Some(_) => return Err(refuse("a certificate for another key")),
        None => return Err(refuse("an unreadable certificate")),
    }
    let trusted_cas = der(&issued.trusted_cas);
    if trusted_cas.is_empty() || trusted_cas.iter().any(|ca| spki_sha256(ca).is_none()) {
        return Err(refuse("no readable CA"));
    }
    let not_after =
        moment(certificate.not_after.as_ref()).ok_or_else(|| refuse("no end of validity"))?;
    Ok(Credentials {
        node_uid: (&*issued.node_uid)
            .try_into()
            .map_err(|_| refuse("a node UUID that has not 16 bytes"))?,
        name: issued.name.clone(),
        chain,
        renew_after: moment(certificate.renew_after.as_ref())
            .unwrap_or(not_after)
            .min(not_after),
        not_after,
        trusted_cas,
        signing_keys: issued.signing_keys.clone(),
        cluster_epoch: issued.cluster_epoch,
    })
}

/// What a request for renewal carries; see [`rpc::RenewCertificateRequest`]. `by_key`: the key is the proof, as it is
/// when the certificate has run out.
pub(crate) fn renewal_request(
    identity: &Identity,
    now: SystemTime,
    by_key: bool,
) -> Result<rpc::RenewCertificateRequest, IdentityError> {
    let current = identity
        .credentials()
        .ok_or(IdentityError::Answer("the node is not enrolled"))?;
    let csr = identity
        .key()
        .request(&current.name)
        .map_err(IdentityError::Crypto)?;
    let mut request = rpc::RenewCertificateRequest {
        csr: csr.into(),
        ..Default::default()
    };
    if by_key || current.is_expired(now) {
        let at = crate::clock::unix_ms(now) / 1000;
        let context = hy2_proto::control::RENEW_SIGNATURE_CONTEXT;
        let signed = [context, &request.csr, at.to_string().as_bytes()].concat();
        let signature = identity
            .key()
            .sign(&signed)
            .map_err(IdentityError::Crypto)?;
        request.signature = signature.into();
        request.expired_certificate = current
            .chain
            .first()
            .map(|leaf| leaf.to_vec().into())
            .unwrap_or_default();
        request.at = Some(crate::clock::from_unix_ms(at * 1000).into());
    }
    Ok(request)
}

const KEY_FILE: &str = "node.key";
const IDENTITY_FILE: &str = "identity";
