//! Relays UDP between clients and a server through a modelled link.
//!
//! Prints one JSON line with the bound address when it is ready, and one with what happened when its
//! standard input closes or it gets SIGTERM or SIGINT.
#![allow(
    clippy::print_stdout,
    reason = "the JSON lines are the command's answer"
)]

use std::{io::Read, net::SocketAddr};

use anyhow::Context;
use clap::Parser;
use hy2_link_emulator::{
    model::LinkConfig,
    relay::{Relay, RelayConfig},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// Relays UDP between clients and a server through a modelled link.
///
/// A link is written as key=value pairs with commas between them: rate (Mbit/s), delay (ms, one way),
/// buffer (ms of the rate), loss (share), bursts (Gilbert-Elliott: to-bad:to-good:loss-good:loss-bad),
/// reorder (share:ms), duplicate (share), mtu (bytes).
#[derive(Debug, Parser)]
struct Arguments {
    /// Address that clients send to; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the server
    #[arg(long)]
    target: SocketAddr,
    /// Link from clients to the server, e.g. rate=200,delay=150,loss=0.3
    #[arg(long, default_value = "")]
    up: LinkConfig,
    /// Link from the server to clients
    #[arg(long, default_value = "")]
    down: LinkConfig,
    /// What all random decisions follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Arguments {
        listen,
        target,
        up,
        down,
        seed,
    } = Arguments::parse();
    // Before the ready line, so that whoever saw it can rely on the signals.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let relay = Relay::start(&RelayConfig {
        listen,
        target,
        up,
        down,
        seed,
    })
    .with_context(|| format!("cannot listen on {listen}"))?;
    let [receive_buffer, send_buffer] = relay.granted_buffers();
    let ready = serde_json::json!({
        "listen": relay.local_addr(),
        "target": target,
        "seed": seed,
        "receive_buffer": receive_buffer,
        "send_buffer": send_buffer,
    });
    println!("{ready}");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = stdin_closed() => {}
    }
    println!("{}", serde_json::to_string(&relay.stop())?);
    // The thread that reads standard input may still wait for it.
    std::process::exit(0);
}

/// Ends when standard input does.
async fn stdin_closed() {
    let (sender, closed) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
        drop(sender);
    });
    let _ = closed.await;
}
