//! `hy2 client` and the tools that connect like one.

mod figures;
mod inbounds;
mod ping;
mod prepare;
mod speedtest;
mod tunnel;

use std::time::Duration;

use anyhow::Context;
use hy2_core::{Client, client::ConnectionInfo};
use hy2_daemon_runtime::{Signal, Signals};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{inbounds::Bound, tunnel::Tunnel};
pub(crate) use self::{
    ping::ping,
    prepare::{Prepared, prepare},
    speedtest::speedtest,
};
use crate::{cli, failure, process};

/// First and longest wait between attempts to connect again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Runs a client until it is told to end.
pub(crate) async fn run(prepared: Prepared, flags: &cli::Run) -> anyhow::Result<()> {
    let mut signals = Signals::install()?;
    let metrics = process::serve_metrics(flags.metrics)?;
    // Bound first: an address in use is said before anything is sent.
    let bound = Bound::bind(&prepared.inbounds).await?;
    let lazy = prepared.lazy;
    let client = if lazy {
        info!(server = %prepared.server, "lazy: connecting when a program needs it");
        Client::lazy(prepared.config)
    } else {
        let connecting = connect(prepared);
        tokio::select! {
            client = connecting => client?,
            () = ended(&mut signals) => return Ok(()),
        }
    };

    let _figures = metrics.is_some().then(|| figures::export(client.clone()));
    let stop = CancellationToken::new();
    let tunnel = Tunnel::new(client.clone(), lazy);
    let serving = bound.run(&tunnel, &stop);
    let watching = async {
        match lazy {
            true => tunnel.watch_lazy().await,
            false => stay_connected(&client).await,
        }
    };
    tokio::select! {
        () = ended(&mut signals) => {}
        () = watching => {}
        () = serving => {}
    }
    info!("ending");
    stop.cancel();
    client.close().await;
    Ok(())
}

/// Connects and says so.
async fn connect(prepared: Prepared) -> anyhow::Result<Client> {
    let server = prepared.server;
    let client = Client::connect(prepared.config)
        .await
        .with_context(|| format!("cannot connect to {server}"))?;
    announce("connected", &client.info().await?);
    Ok(client)
}

fn announce(message: &'static str, info: &ConnectionInfo) {
    let tx = info.tx.map(tracing::field::display);
    info!(udp = info.udp, tx, rtt = ?info.rtt, "{message}");
}

/// Waits until the user wants the client to end.
async fn ended(signals: &mut Signals) {
    while signals.next().await != Signal::Terminate {
        info!("a client has nothing to reload");
    }
}

/// Connects again whenever the connection is lost, so that programs need not wait for it. A call
/// of a program that comes first does the same.
async fn stay_connected(client: &Client) {
    loop {
        client.disconnected().await;
        warn!("connection lost");
        let mut wait = RETRY.0;
        loop {
            match client.info().await {
                Ok(info) => break announce("connected again", &info),
                Err(hy2_core::error::ConnectError::Closed) => return,
                Err(error) => {
                    warn!(kind = failure::kind(&error), %error, retry = ?wait, "cannot connect");
                }
            }
            // A little apart from others who lost the same server.
            let spread = wait.mul_f64(f64::from(std::process::id() % 16) / 64.0);
            tokio::time::sleep(wait + spread).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}
