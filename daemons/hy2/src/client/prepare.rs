//! Turns settings into a client that only needs to connect.

use std::{error::Error, path::Path};

use hy2_core::{
    client::{ClientConfig, ServerAddress},
    socket::HopInterval,
    tls::{CertificateError, ClientTls},
};

use crate::{
    config::{self, ConfigError, Inbounds},
    prepare::{self, Loading},
};

/// A client that only needs to connect.
pub(crate) struct Prepared {
    /// For messages.
    pub(super) server: config::ServerAddress,
    pub(super) config: ClientConfig,
    pub(super) lazy: bool,
    pub(super) inbounds: Inbounds,
}

/// Loads what the settings refer to.
///
/// # Errors
///
/// All references that are of no use, each with its path in the file.
pub(crate) fn prepare(settings: config::Client) -> Result<Prepared, ConfigError> {
    let mut loading = Loading::default();
    let files = &settings.tls;
    let mut names: Vec<(&str, &Path)> = Vec::new();
    if let Some((certificate, key)) = &files.identity {
        names.push(("tls.clientCertificate", certificate));
        names.push(("tls.clientKey", key));
    }
    names.extend(files.ca.as_deref().map(|path| ("tls.ca", path)));
    let tls = loading.keep_certificate(load_tls(files), &names);
    let config = loading.keep("obfs", client_config(&settings));
    let hop = HopInterval::random(settings.hop.min, settings.hop.max);
    let hop = loading.keep("transport.udp", hop);
    let ((tls, mut config), hop) = loading.finish(tls.zip(config).zip(hop))?;
    config.tls = tls;
    config.hop = hop;
    Ok(Prepared {
        server: settings.server,
        config,
        lazy: settings.lazy,
        inbounds: settings.inbounds,
    })
}

fn load_tls(settings: &config::ClientTls) -> Result<ClientTls, CertificateError> {
    let mut tls = ClientTls::default();
    tls.sni.clone_from(&settings.sni);
    tls.insecure = settings.insecure;
    tls.pin_sha256 = settings.pin;
    if let Some(ca) = &settings.ca {
        tls = tls.with_ca_file(ca)?;
    }
    if let Some((certificate, key)) = &settings.identity {
        tls = tls.with_identity_files(certificate, key)?;
    }
    Ok(tls)
}

fn client_config(settings: &config::Client) -> Result<ClientConfig, Box<dyn Error>> {
    let server = ServerAddress {
        host: settings.server.host_text(),
        ports: settings.server.ports.clone(),
    };
    let mut client = ClientConfig::new(server, settings.auth.reveal());
    client.quic = prepare::quic(&settings.quic);
    client.up = settings.rate.up;
    client.down = settings.rate.down;
    client.loss_compensation = settings.rate.loss_compensation;
    client.overclaim_guard = settings.rate.overclaim_guard;
    client.congestion = prepare::congestion(settings.congestion);
    client.obfuscation = prepare::obfuscation(&settings.obfs)?;
    client.fast_open = settings.fast_open;
    client
        .socket
        .bind_device
        .clone_from(&settings.quic.socket.interface);
    client.socket.fwmark = settings.quic.socket.mark;
    Ok(client)
}
