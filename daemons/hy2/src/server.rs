//! `hy2 server`: from settings to a running server.

mod figures;
mod prepare;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use hy2_core::{
    event::{EventSink, Peer},
    masquerade::{Masquerade, TcpSite, TcpSiteConfig, TcpSiteHandle},
    proto::bandwidth::Bandwidth,
    tls::ServerTls,
};
use hy2_daemon_runtime::{FileWatch, Signal, Signals, service};
use tracing::{debug, error, info, warn};

pub(crate) use self::prepare::{Prepared, prepare};
use crate::{cli, config, process};

/// How often certificate files are looked at.
const WATCH_PERIOD: Duration = Duration::from_secs(2);

/// Runs a server until it is told to end.
pub(crate) async fn run(prepared: Prepared, flags: &cli::Serve) -> anyhow::Result<()> {
    let mut signals = Signals::install()?;
    let metrics = process::serve_metrics(flags.run.metrics)?;
    let Prepared {
        listen,
        settings,
        tls,
        site,
        builder,
    } = prepared;
    let address = listen
        .resolve()
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let server = builder.listen(address).events(Log).bind()?;
    for address in server.local_addrs() {
        info!(kind = "quic", %address, "listening");
    }
    let quic_port = server
        .local_addrs()
        .first()
        .map_or_else(|| listen.port(), |address| address.port());
    let tcp_site = serve_site(&settings, &tls, site, quic_port).await?;
    let _figures = metrics.is_some().then(|| figures::export(server.handle()));

    service::ready();
    let watchdog = service::watchdog();
    let mut watch = FileWatch::new(
        tls.files().into_iter().flat_map(|(c, k)| [c, k]),
        WATCH_PERIOD,
    );
    loop {
        // Every arm is cancel safe: signals and changes wait for the next round.
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Terminate => break,
                Signal::Reload => reload(&tls),
            },
            () = watch.changed() => reload(&tls),
        }
    }

    service::stopping();
    drop(watchdog);
    info!(grace = ?flags.drain, "ending: no new streams, waiting for open ones");
    let ended = async {
        tokio::join!(server.drain(flags.drain), async {
            if let Some(site) = tcp_site {
                site.shutdown(flags.drain).await;
            }
        })
    };
    tokio::select! {
        _ = ended => info!("ended"),
        () = terminated(&mut signals) => warn!("told twice to end: not waiting any longer"),
    }
    Ok(())
}

async fn terminated(signals: &mut Signals) {
    while signals.next().await != Signal::Terminate {}
}

/// Reads the certificate files again; what is wrong with them leaves the present ones in use.
fn reload(tls: &ServerTls) {
    match tls.reload() {
        Ok(()) => info!("certificate reloaded"),
        Err(error) => error!(
            error = &error as &dyn std::error::Error,
            "certificate not reloaded, the present one stays in use"
        ),
    }
}

/// Serves the masquerade over TCP, where the settings ask for it.
async fn serve_site(
    settings: &config::Masquerade,
    tls: &ServerTls,
    site: Arc<dyn Masquerade>,
    quic_port: u16,
) -> anyhow::Result<Option<TcpSiteHandle>> {
    let Some(listen) = &settings.listen_https else {
        return Ok(None);
    };
    let mut config = TcpSiteConfig::new(quic_port);
    config.https = Some((listen.resolve().await?, tls.https()?));
    if let Some(listen) = &settings.listen_http {
        config.http = Some(listen.resolve().await?);
    }
    config.force_https = settings.force_https;
    let site = TcpSite::bind(config, site)?.spawn();
    for (kind, address) in [("https", site.https_addr()), ("http", site.http_addr())] {
        if let Some(address) = address {
            info!(kind, %address, "listening");
        }
    }
    Ok(Some(site))
}

/// Logs what clients do. Addresses and destinations are private: not above debug.
struct Log;

impl EventSink for Log {
    fn connected(&self, peer: &Peer, tx: Option<Bandwidth>) {
        let tx = tx.map(tracing::field::display);
        info!(conn = %peer.connection, user = %peer.user, tx, "client connected");
        debug!(conn = %peer.connection, remote = %peer.remote, "client address");
    }

    fn disconnected(&self, peer: &Peer, reason: &hy2_core::quinn::ConnectionError) {
        info!(conn = %peer.connection, user = %peer.user, %reason, "client disconnected");
    }

    fn tcp_requested(&self, peer: &Peer, target: &str) {
        debug!(conn = %peer.connection, destination = target, "TCP request");
    }

    fn tcp_closed(
        &self,
        peer: &Peer,
        target: &str,
        error: Option<&(dyn std::error::Error + 'static)>,
    ) {
        debug!(conn = %peer.connection, destination = target, error, "TCP closed");
    }

    fn udp_opened(&self, peer: &Peer, session: u32, target: &str) {
        debug!(conn = %peer.connection, session, destination = target, "UDP session opened");
    }

    fn udp_closed(&self, peer: &Peer, session: u32) {
        debug!(conn = %peer.connection, session, "UDP session closed");
    }
}
