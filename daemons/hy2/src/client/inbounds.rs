//! The local inbounds of a client: bound together, run together.

use anyhow::Context;
use hy2_core::inbound::{
    Credentials, Dialer, HttpProxy, HttpProxyConfig, Mixed, Socks5, Socks5Config, TcpForward,
    TcpForwardConfig, UdpForward, UdpForwardConfig,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{HttpInbound, Inbounds, Listen, Login, Socks5Inbound};

/// Inbounds whose addresses are bound.
#[derive(Debug, Default)]
pub(super) struct Bound {
    socks5: Option<Socks5>,
    http: Option<HttpProxy>,
    mixed: Option<Mixed>,
    tcp_forwards: Vec<TcpForward>,
    udp_forwards: Vec<UdpForward>,
}

impl Bound {
    /// Binds everything that the settings name, and logs where.
    pub(super) async fn bind(settings: &Inbounds) -> anyhow::Result<Self> {
        let mut bound = Self::default();
        match (&settings.socks5, &settings.http) {
            // The reference shares a port as well.
            (Some(socks5), Some(http))
                if socks5.listen == http.listen && socks5.listen.port() != 0 =>
            {
                let mixed = Mixed::bind(socks5_config(socks5).await?, http_config(http).await?);
                let mixed = mixed.with_context(|| cannot_listen("socks5", &socks5.listen))?;
                announce("socks5 and http", mixed.local_addr()?);
                bound.mixed = Some(mixed);
            }
            (socks5, http) => {
                if let Some(settings) = socks5 {
                    let socks5 = Socks5::bind(socks5_config(settings).await?)
                        .with_context(|| cannot_listen("socks5", &settings.listen))?;
                    announce("socks5", socks5.local_addr()?);
                    bound.socks5 = Some(socks5);
                }
                if let Some(settings) = http {
                    let http = HttpProxy::bind(http_config(settings).await?)
                        .with_context(|| cannot_listen("http", &settings.listen))?;
                    announce("http", http.local_addr()?);
                    bound.http = Some(http);
                }
            }
        }
        for settings in &settings.tcp_forwards {
            let forward = TcpForward::bind(TcpForwardConfig {
                listen: resolve(&settings.listen).await?,
                remote: settings.remote.clone(),
                limits: Default::default(),
            })
            .with_context(|| cannot_listen("tcpForwarding", &settings.listen))?;
            announce("tcpForwarding", forward.local_addr()?);
            bound.tcp_forwards.push(forward);
        }
        for settings in &settings.udp_forwards {
            let listen = resolve(&settings.forward.listen).await?;
            let mut config = UdpForwardConfig::new(listen, settings.forward.remote.clone());
            config.timeout = settings.timeout;
            let forward = UdpForward::bind(config)
                .with_context(|| cannot_listen("udpForwarding", &settings.forward.listen))?;
            announce("udpForwarding", forward.local_addr()?);
            bound.udp_forwards.push(forward);
        }
        Ok(bound)
    }

    /// Serves until `stop` is cancelled.
    pub(super) fn run<D: Dialer>(
        self,
        dialer: &D,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + use<D> {
        let mut tasks = JoinSet::new();
        if let Some(inbound) = self.socks5 {
            tasks.spawn(inbound.run(dialer.clone(), stop.clone()));
        }
        if let Some(inbound) = self.http {
            tasks.spawn(inbound.run(dialer.clone(), stop.clone()));
        }
        if let Some(inbound) = self.mixed {
            tasks.spawn(inbound.run(dialer.clone(), stop.clone()));
        }
        for inbound in self.tcp_forwards {
            tasks.spawn(inbound.run(dialer.clone(), stop.clone()));
        }
        for inbound in self.udp_forwards {
            tasks.spawn(inbound.run(dialer.clone(), stop.clone()));
        }
        async move { while tasks.join_next().await.is_some() {} }
    }
}

async fn socks5_config(settings: &Socks5Inbound) -> anyhow::Result<Socks5Config> {
    let mut config = Socks5Config::new(resolve(&settings.listen).await?);
    config.credentials = settings.login.as_ref().map(credentials);
    config.disable_udp = settings.disable_udp;
    Ok(config)
}

async fn http_config(settings: &HttpInbound) -> anyhow::Result<HttpProxyConfig> {
    let mut config = HttpProxyConfig::new(resolve(&settings.listen).await?);
    config.credentials = settings.login.as_ref().map(credentials);
    config.realm.clone_from(&settings.realm);
    Ok(config)
}

fn credentials(login: &Login) -> Credentials {
    Credentials::new(&login.username, login.password.reveal())
}

async fn resolve(listen: &Listen) -> anyhow::Result<std::net::SocketAddr> {
    listen
        .resolve()
        .await
        .with_context(|| format!("cannot listen on {listen}"))
}

fn cannot_listen(kind: &str, listen: &Listen) -> String {
    format!("{kind}: cannot listen on {listen}")
}

fn announce(kind: &str, address: std::net::SocketAddr) {
    info!(kind, %address, "listening");
}
