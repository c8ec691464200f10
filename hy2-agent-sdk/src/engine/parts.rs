//! Parts of a server that are exchanged while it runs.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use hy2_core::{
    Address, BoxFuture,
    http::{Request, Response},
    masquerade::{
        Body, Content, Files, Masquerade, NotFound, OrdinarySite, ProxyConfig, ReverseProxy,
    },
    outbound::{AddressPolicy, DialError, Direct, Outbound, TcpConnection, UdpAssociation},
    tls::{CertificateError, ServerTls},
};
use hy2_proto::control::rpc::{ErrorCode, FieldError};

use crate::{
    ledger::field_error,
    settings::{CertificateSource, NodeSettings, Site},
};

/// The site of the moment.
pub(super) struct SiteSwitch(ArcSwap<Box<dyn Masquerade>>);

impl SiteSwitch {
    pub(super) fn new(site: Box<dyn Masquerade>) -> Self {
        Self(ArcSwap::from_pointee(site))
    }

    pub(super) fn set(&self, site: Box<dyn Masquerade>) {
        self.0.store(Arc::new(site));
    }
}

impl fmt::Debug for SiteSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SiteSwitch")
    }
}

impl Masquerade for SiteSwitch {
    fn serve(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        let site = self.0.load_full();
        Box::pin(async move { site.serve(request).await })
    }
}

/// The way to targets of the moment.
pub(super) struct OutboundSwitch(ArcSwap<Box<dyn Outbound>>);

impl OutboundSwitch {
    pub(super) fn new(outbound: Box<dyn Outbound>) -> Self {
        Self(ArcSwap::from_pointee(outbound))
    }

    pub(super) fn set(&self, outbound: Box<dyn Outbound>) {
        self.0.store(Arc::new(outbound));
    }
}

impl Outbound for OutboundSwitch {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        let outbound = self.0.load_full();
        Box::pin(async move { outbound.tcp(target).await })
    }

    fn udp<'a>(
        &'a self,
        first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        let outbound = self.0.load_full();
        Box::pin(async move { outbound.udp(first).await })
    }
}

/// Dials from this host.
pub(super) fn direct(allow_private: bool) -> Box<dyn Outbound> {
    Box::new(Direct::new(if allow_private {
        AddressPolicy::allow_all()
    } else {
        AddressPolicy::public_only()
    }))
}

/// Reads the certificate and makes the site. Blocks on files.
pub(super) fn load(
    settings: &NodeSettings,
) -> Result<(ServerTls, Box<dyn Masquerade>), Vec<FieldError>> {
    let (tls, site) = (load_tls(settings), load_site(&settings.site));
    match (tls, site) {
        (Ok(tls), Ok(site)) => Ok((tls, site)),
        (tls, site) => Err(tls.err().into_iter().chain(site.err()).collect()),
    }
}

fn load_tls(settings: &NodeSettings) -> Result<ServerTls, FieldError> {
    let loaded = match &settings.certificate {
        CertificateSource::Files { certificate, key } => {
            ServerTls::from_pem_files(certificate, key)
        }
        CertificateSource::Issued { chain, key } => {
            ServerTls::from_der(chain.clone(), CertificateSource::issued_key(key))
        }
    };
    match loaded {
        Ok(tls) => Ok(tls.sni_guard(settings.sni_guard)),
        Err(error) => {
            let path = match (&settings.certificate, &error) {
                (CertificateSource::Issued { .. }, _) => "tls.issued",
                (
                    CertificateSource::Files { key, .. },
                    CertificateError::Read { path, .. } | CertificateError::Pem { path, .. },
                ) if path == key => "tls.files.key",
                (CertificateSource::Files { .. }, CertificateError::Mismatch(_)) => "tls.files",
                (CertificateSource::Files { .. }, _) => "tls.files.certificate",
            };
            Err(field_error(ErrorCode::Certificate, path, &chain_of(&error)))
        }
    }
}

fn load_site(site: &Site) -> Result<Box<dyn Masquerade>, FieldError> {
    let wrong = |path: &str, error: &dyn std::error::Error| {
        field_error(ErrorCode::InvalidField, path, &chain_of(error))
    };
    Ok(match site {
        Site::BuiltIn => Box::new(OrdinarySite::default()),
        Site::NotFound => Box::new(NotFound::new()),
        Site::Text {
            content,
            headers,
            status,
        } => Box::new(
            Content::new(content.clone(), headers.clone(), *status)
                .map_err(|error| wrong("masquerade.string", &error))?,
        ),
        Site::Files(folder) => Box::new(
            Files::new(folder).map_err(|error| wrong("masquerade.file.directory", &error))?,
        ),
        Site::Proxy {
            url,
            rewrite_host,
            x_forwarded,
            insecure,
        } => {
            let mut config = ProxyConfig::new(url);
            config.rewrite_host = *rewrite_host;
            config.x_forwarded = *x_forwarded;
            config.insecure = *insecure;
            Box::new(
                ReverseProxy::new(config).map_err(|error| wrong("masquerade.proxy.url", &error))?,
            )
        }
    })
}

/// An error with what caused it, on one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
