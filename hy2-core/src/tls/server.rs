//! The server's certificate, reloadable while connections live, and who may see it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{ALPN_H3, anchor::ClientVerifier, provider::provider};

/// Whether the name in the client's hello must match the certificate (reference: `tls.sniGuard`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SniGuard {
    /// Checked when the certificate carries DNS names; the default. A hello without a name does
    /// not match.
    #[default]
    DnsSan,
    /// Always checked.
    Strict,
    /// Never checked.
    Disable,
}

/// Why a certificate could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file holds no PEM block of the expected kind, or a damaged one.
    #[error("{path}: no usable {what} in PEM form")]
    Pem {
        /// The file.
        path: PathBuf,
        /// The kind of block that was looked for.
        what: &'static str,
    },
    /// Certificate and key do not fit together or are not supported.
    #[error("certificate and key are not usable together")]
    Mismatch(#[source] rustls::Error),
    /// The client CA cannot be used to verify clients.
    #[error("client CA is not usable")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
}

/// TLS settings of a server: one certificate chain, an SNI guard, an optional client CA.
///
/// Clones share certificate and guard: [`ServerTls::reload`] changes what new connections see
/// everywhere, live connections keep going.
#[derive(Clone)]
pub struct ServerTls {
    current: Arc<ArcSwap<Served>>,
    files: Option<Arc<(PathBuf, PathBuf)>>,
    client_ca: Option<Arc<RootCertStore>>,
}

struct Served {
    key: Arc<CertifiedKey>,
    dns_names: Vec<String>,
    guard: SniGuard,
}

impl Served {
    fn guarded(&self, guard: SniGuard) -> Self {
        Self {
            key: Arc::clone(&self.key),
            dns_names: self.dns_names.clone(),
            guard,
        }
    }
}

impl ServerTls {
    /// Serves the chain in `certificate` with the private key in `key`, both PEM files.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] when a file is missing, holds no PEM, or the two do not match.
    pub fn from_pem_files(
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, CertificateError> {
        let (certificate, key) = (certificate.as_ref(), key.as_ref());
        let served = load(certificate, key)?;
        Ok(Self {
            files: Some(Arc::new((certificate.to_owned(), key.to_owned()))),
            ..Self::from_served(served)
        })
    }

    /// Serves a chain (leaf first) and key that the caller holds in DER form.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Mismatch`] when they do not fit together.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        Ok(Self::from_served(served(chain, key)?))
    }

    fn from_served(served: Served) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(served)),
            files: None,
            client_ca: None,
        }
    }

    /// Checks the client's server name by `guard`.
    pub fn sni_guard(self, guard: SniGuard) -> Self {
        let guarded = self.current.load().guarded(guard);
        self.current.store(Arc::new(guarded));
        self
    }

    /// Takes over the certificate and the guard of `other`; new connections see them. Where
    /// certificates come from ([`Self::files`]) and the client CA stay.
    pub fn adopt(&self, other: &Self) {
        self.current.store(other.current.load_full());
    }

    /// Lets in only clients with a certificate issued by one of `roots` (mutual TLS).
    pub fn client_ca(mut self, roots: RootCertStore) -> Self {
        self.client_ca = Some(Arc::new(roots));
        self
    }

    /// Reads the PEM file `path` as client CA, like [`Self::client_ca`].
    ///
    /// # Errors
    ///
    /// [`CertificateError`] when the file is missing or holds no certificate.
    pub fn client_ca_file(self, path: impl AsRef<Path>) -> Result<Self, CertificateError> {
        Ok(self.client_ca(super::client::roots_of(path.as_ref())?))
    }

    /// Reads the PEM files again; new connections see the result. On an error the certificate in
    /// use stays.
    ///
    /// # Errors
    ///
    /// As [`Self::from_pem_files`]. Does nothing when made from DER.
    pub fn reload(&self) -> Result<(), CertificateError> {
        if let Some(files) = &self.files {
            let loaded = load(&files.0, &files.1)?;
            self.put(loaded);
        }
        Ok(())
    }

    /// Replaces the certificate; new connections see it.
    ///
    /// # Errors
    ///
    /// As [`Self::from_der`]; the certificate in use stays.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), CertificateError> {
        self.put(served(chain, key)?);
        Ok(())
    }

    fn put(&self, served: Served) {
        let guard = self.current.load().guard;
        self.current.store(Arc::new(served.guarded(guard)));
    }

    /// Returns the PEM files that [`Self::reload`] reads, certificate first.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        self.files
            .as_deref()
            .map(|(c, k)| (c.as_path(), k.as_path()))
    }

    /// Returns settings for HTTPS on TCP with the same certificate, which follow its renewals.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] when the parts do not make a configuration.
    pub fn https(&self) -> Result<Arc<rustls::ServerConfig>, CertificateError> {
        self.rustls(&[b"h2", b"http/1.1"]).map(Arc::new)
    }

    /// Returns rustls settings for `alpn` protocols, in order of preference.
    pub(crate) fn rustls(&self, alpn: &[&[u8]]) -> Result<rustls::ServerConfig, CertificateError> {
        let builder = rustls::ServerConfig::builder_with_provider(provider());
        let builder = if alpn == [ALPN_H3] {
            builder.with_protocol_versions(&[&rustls::version::TLS13])
        } else {
            builder.with_safe_default_protocol_versions()
        }
        .map_err(CertificateError::Mismatch)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = ClientVerifier::new(roots).map_err(CertificateError::ClientCa)?;
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Resolver {
            current: Arc::clone(&self.current),
        }));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.ignore_client_order = true;
        config.max_early_data_size = 0;
        Ok(config)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("files", &self.files)
            .field("sni_guard", &self.current.load().guard)
            .field("client_ca", &self.client_ca.is_some())
            .finish_non_exhaustive()
    }
}

fn load(certificate: &Path, key: &Path) -> Result<Served, CertificateError> {
    let chain = super::client::certificates_of(certificate)?;
    let text = read(key)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| CertificateError::Pem {
        path: key.to_owned(),
        what: "private key",
    })?;
    served(chain, key)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|source| CertificateError::Read {
        path: path.to_owned(),
        source,
    })
}

fn served(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Served, CertificateError> {
    let dns_names = chain.first().map(dns_names).unwrap_or_default();
    let key =
        CertifiedKey::from_der(chain, key, &provider()).map_err(CertificateError::Mismatch)?;
    Ok(Served {
        key: Arc::new(key),
        dns_names,
        guard: SniGuard::default(),
    })
}

/// Reads the DNS names of a certificate, lower-cased.
fn dns_names(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

struct Resolver {
    current: Arc<ArcSwap<Served>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let served = self.current.load();
        let checked = match served.guard {
            SniGuard::Disable => false,
            SniGuard::DnsSan => !served.dns_names.is_empty(),
            SniGuard::Strict => true,
        };
        let fits = !checked
            || hello
                .server_name()
                .is_some_and(|name| covers(&served.dns_names, name));
        fits.then(|| Arc::clone(&served.key))
    }
}

/// Tells whether one of `patterns` names `host`; a leading `*.` stands for one label
/// (RFC 6125 §6.4.3).
fn covers(patterns: &[String], host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    patterns
        .iter()
        .any(|pattern| match pattern.strip_prefix("*.") {
            Some(parent) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            None => *pattern == host,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        let patterns = ["example.com".to_owned(), "*.example.com".to_owned()];
        for host in ["example.com", "EXAMPLE.com.", "a.example.com"] {
            assert!(covers(&patterns, host), "{host}");
        }
        for host in ["b.a.example.com", ".example.com", "example.org", "com", ""] {
            assert!(!covers(&patterns, host), "{host}");
        }
    }

    #[test]
    fn missing_and_wrong_files_say_which() {
        let dir = tempfile::tempdir().expect("tempdir");
        let missing = dir.path().join("none.pem");
        let error = ServerTls::from_pem_files(&missing, &missing).expect_err("missing");
        assert!(error.to_string().contains("none.pem"), "{error}");
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "nothing").expect("write");
        let error = ServerTls::from_pem_files(&empty, &empty).expect_err("empty");
        assert!(
            matches!(
                error,
                CertificateError::Pem {
                    what: "certificate",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_broken_reload_keeps_the_old_certificate() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let made = rcgen::generate_simple_self_signed(["one.example".to_owned()]).expect("cert");
        std::fs::write(&cert, made.cert.pem()).expect("write");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("write");
        let tls = ServerTls::from_pem_files(&cert, &key).expect("load");
        assert_eq!(tls.current.load().dns_names, ["one.example"]);
        std::fs::write(&key, "broken").expect("write");
        tls.reload().expect_err("broken key");
        assert_eq!(tls.current.load().dns_names, ["one.example"]);
        let other = rcgen::generate_simple_self_signed(["two.example".to_owned()]).expect("cert");
        std::fs::write(&cert, other.cert.pem()).expect("write");
        std::fs::write(&key, other.signing_key.serialize_pem()).expect("write");
        tls.reload().expect("reload");
        assert_eq!(tls.current.load().dns_names, ["two.example"]);
    }
}
