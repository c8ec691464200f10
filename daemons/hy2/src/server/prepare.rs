//! Turns settings into a server that only needs an address.

use std::{error::Error, fs, path::Path, sync::Arc};

use hy2_core::{
    BoxFuture, Server, ServerBuilder,
    authenticator::{Password, UserPass},
    http::{HeaderMap, Request, Response},
    masquerade::{
        Body, Content, Files, Masquerade, NotFound, OrdinarySite, ProxyConfig, ReverseProxy,
    },
    outbound::{AddressPolicy, Direct},
    quic::ResetKey,
    server::ServerConfig,
    tls::{CertificateError, ServerTls, SniGuard},
};
use sha2::{Digest, Sha256};

use crate::{
    config::{self, Auth, ConfigError, Listen, Site},
    prepare::{self, Loading},
};

/// A server that only needs an address.
pub(crate) struct Prepared {
    pub(super) listen: Listen,
    pub(super) settings: config::Masquerade,
    pub(super) tls: ServerTls,
    pub(super) site: Arc<dyn Masquerade>,
    pub(super) builder: ServerBuilder,
}

/// Loads what the settings refer to and builds a server of it.
///
/// # Errors
///
/// All references that are of no use, each with its path in the file.
pub(crate) fn prepare(settings: config::Server) -> Result<Prepared, ConfigError> {
    let mut loading = Loading::default();
    let files = &settings.tls;
    let mut names = vec![("tls.cert", &*files.certificate), ("tls.key", &*files.key)];
    names.extend(
        files
            .client_ca
            .as_deref()
            .map(|path| ("tls.clientCA", path)),
    );
    let tls = loading.keep_certificate(load_tls(files), &names);
    let site = load_site(&settings.masquerade.site);
    let site = loading.keep("masquerade", site).map(Shared);
    let config = loading.keep("obfs", server_config(&settings));
    let loaded = tls.zip(site).zip(config);
    let ((tls, site), config) = loading.finish(loaded)?;

    let policy = if settings.allow_private_targets {
        AddressPolicy::allow_all()
    } else {
        AddressPolicy::public_only()
    };
    let mut builder = Server::builder(tls.clone())
        .config(config)
        .outbound(Direct::new(policy))
        .masquerade(site.clone());
    if let Some(key) = reset_key(&settings.tls.key) {
        builder = builder.reset_key(key);
    }
    let builder = match &settings.auth {
        Auth::Password(password) => builder.authenticator(Password::new(password.reveal())),
        Auth::UserPass(users) => {
            let users = users
                .iter()
                .map(|(name, password)| (name, password.reveal()));
            builder.authenticator(UserPass::new(users))
        }
    };
    Ok(Prepared {
        listen: settings.listen,
        settings: settings.masquerade,
        tls,
        site: site.0,
        builder,
    })
}

fn load_tls(files: &config::ServerTls) -> Result<ServerTls, CertificateError> {
    let tls = ServerTls::from_pem_files(&files.certificate, &files.key)?;
    let tls = tls.sni_guard(match files.sni_guard {
        config::SniGuard::DnsSan => SniGuard::DnsSan,
        config::SniGuard::Strict => SniGuard::Strict,
        config::SniGuard::Disable => SniGuard::Disable,
    });
    match &files.client_ca {
        None => Ok(tls),
        Some(path) => tls.client_ca_file(path),
    }
}

fn load_site(site: &Site) -> Result<Arc<dyn Masquerade>, Box<dyn Error>> {
    Ok(match site {
        Site::BuiltIn => Arc::new(OrdinarySite::default()),
        Site::NotFound => Arc::new(NotFound::new()),
        Site::Files(folder) => {
            Arc::new(Files::new(folder).map_err(|error| format!("{}: {error}", folder.display()))?)
        }
        Site::Proxy {
            url,
            rewrite_host,
            forwarded,
            insecure,
        } => {
            let mut proxy = ProxyConfig::new(url);
            proxy.rewrite_host = *rewrite_host;
            proxy.x_forwarded = *forwarded;
            proxy.insecure = *insecure;
            Arc::new(ReverseProxy::new(proxy)?)
        }
        Site::Text {
            content,
            headers,
            status,
        } => {
            let headers: HeaderMap = headers.iter().cloned().collect();
            Arc::new(Content::new(content.clone(), headers, status.as_u16())?)
        }
    })
}

fn server_config(settings: &config::Server) -> Result<ServerConfig, Box<dyn Error>> {
    let mut server = ServerConfig::default();
    server.quic = prepare::quic(&settings.quic);
    server.max_tx = settings.rate.up;
    server.max_rx = settings.rate.down;
    server.loss_compensation = settings.rate.loss_compensation;
    server.overclaim_guard = settings.rate.overclaim_guard;
    server.ignore_client_bandwidth = settings.ignore_client_bandwidth;
    server.congestion = prepare::congestion(settings.congestion);
    server.disable_udp = settings.disable_udp;
    server.udp_idle_timeout = settings.udp_idle_timeout;
    server.speed_test = settings.speed_test;
    server.obfuscation = prepare::obfuscation(&settings.obfs)?;
    Ok(server)
}

/// Derives the stateless reset key from the TLS key: it stays secret and survives a restart, so
/// that clients notice the restart at once, and needs no file of its own.
fn reset_key(tls_key: &Path) -> Option<ResetKey> {
    let key = fs::read(tls_key).ok()?;
    let secret = Sha256::new()
        .chain_update(b"hy2 stateless reset key\0")
        .chain_update(key)
        .finalize();
    Some(ResetKey::new(secret.into()))
}

/// One site for HTTP/3 and for TCP.
#[derive(Debug, Clone)]
struct Shared(Arc<dyn Masquerade>);

impl Masquerade for Shared {
    fn serve(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        self.0.serve(request)
    }
}
