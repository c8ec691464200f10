//! Reference clients come back after our server restarted.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use hy2_core::quic::ResetKey;
use tokio::runtime::{Builder, Runtime};

use crate::{
    ours::{Checked, Identity, OurServer, until},
    peer::{Client, Origin, Version},
};

/// Our server in a runtime of its own, which can be stopped without a word to the clients.
struct Mortal {
    server: Option<OurServer>,
    runtime: Option<Runtime>,
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not be dropped, which waits, inside another.
            runtime.shutdown_background();
        }
    }
}

impl Mortal {
    fn start(identity: &Identity, address: SocketAddr, key: [u8; 32]) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let server = {
            let _inside = runtime.enter();
            let key = ResetKey::new(key);
            OurServer::bind(identity, address, |_| (), |b| b.reset_key(key))
        };
        Self {
            server: Some(server),
            runtime: Some(runtime),
        }
    }

    fn server(&self) -> &OurServer {
        self.server.as_ref().expect("it lives")
    }

    /// Ends with a word to the clients.
    async fn drain(mut self) {
        let server = self.server.take().expect("it lives").server;
        server.drain(Duration::ZERO).await;
    }

    /// Ends like a process that was killed.
    async fn kill(mut self) {
        let runtime = self.runtime.take().expect("it lives");
        let stop = move || runtime.shutdown_timeout(Duration::from_secs(5));
        tokio::task::spawn_blocking(stop).await.expect("stopped");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With a word to the clients.
    Drained,
    /// Without; the new server has the same key.
    Killed,
    /// Without, and the new server has another key.
    KilledAndForgotten,
}

/// Restarts a server under a client and returns how long the client was away.
async fn away(
    version: Version,
    end: End,
    idle: Duration,
) -> Result<Duration, Box<dyn std::error::Error>> {
    let origin = Origin::start().await;
    let identity = Identity::new();
    let mortal = Mortal::start(&identity, (Ipv4Addr::LOCALHOST, 0).into(), [7; 32]);
    let address = mortal.server().addr;
    let mut config = mortal.server().client_config();
    config.quic.max_idle_timeout_ms = u64::try_from(idle.as_millis())?;
    let client = Client::start_version(version, &config)
        .await
        .expect("a right configuration");
    client.tcp_echo(&origin.echo, 1000, 1).await?;
    client.hold("h", &origin.silent, 1).await?;
    match end {
        End::Drained => mortal.drain().await,
        End::Killed | End::KilledAndForgotten => mortal.kill().await,
    }
    until("the port is free", || UdpSocket::bind(address).is_ok()).await;
    let key = if end == End::KilledAndForgotten { 8 } else { 7 };
    let _second = Mortal::start(&identity, address, [key; 32]);
    let start = Instant::now();
    let back = client.reconnect(&origin.echo).await?;
    let away = start.elapsed();
    assert_eq!(back.connections, 2, "{back:?}");
    let ended = client.stream_ended("h", |_| true).await;
    println!(
        "{version:?}, {end:?}: away {away:?}, {back:?}; the old stream: {} {ended}",
        ended.cause
    );
    match end {
        End::Drained => assert_eq!(
            (&*ended.cause, ended.code),
            ("application_close", Some(0x100))
        ),
        End::Killed => assert_eq!(ended.cause, "stateless_reset"),
        End::KilledAndForgotten => assert_eq!(ended.cause, "idle_timeout"),
    }
    Ok(away)
}

#[tokio::test]
async fn clients_come_back_at_once_after_a_drain() -> Checked {
    for version in [Version::Current, Version::Core210] {
        let away = away(version, End::Drained, Duration::from_secs(30)).await?;
        assert!(away < Duration::from_secs(5), "{away:?}");
    }
    Ok(())
}

#[tokio::test]
async fn clients_come_back_at_once_after_a_crash_with_the_same_key() -> Checked {
    for version in [Version::Current, Version::Core210] {
        let away = away(version, End::Killed, Duration::from_secs(30)).await?;
        assert!(away < Duration::from_secs(10), "{away:?}");
    }
    Ok(())
}

#[tokio::test]
async fn clients_come_back_after_their_idle_timeout_with_another_key() -> Checked {
    // The Chrome parrot of the newer client waits 30 s whatever it is told.
    let away = away(
        Version::Core210,
        End::KilledAndForgotten,
        Duration::from_secs(4),
    )
    .await?;
    assert!(away < Duration::from_secs(15), "{away:?}");
    Ok(())
}
