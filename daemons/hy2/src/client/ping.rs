//! `hy2 ping`: one connection to the server, one to a target.

use std::{
    io::{self, Write},
    time::Instant,
};

use anyhow::Context;
use hy2_core::{Address, Client};

use super::Prepared;
use crate::cli;

/// Connects, opens a stream and prints how long each took.
pub(crate) async fn ping(prepared: Prepared, flags: &cli::Ping) -> anyhow::Result<()> {
    let target: Address = flags
        .target
        .parse()
        .with_context(|| format!("{:?} is no target such as example.com:80", flags.target))?;
    let server = prepared.server;
    let mut config = prepared.config;
    // The time of interest is that of the answer.
    config.fast_open = false;
    let start = Instant::now();
    let client = Client::connect(config)
        .await
        .with_context(|| format!("cannot connect to {server}"))?;
    let connected = start.elapsed();
    let info = client.info().await?;
    let mut out = io::stdout();
    let udp = if info.udp { "yes" } else { "no" };
    let rate = info
        .tx
        .map_or_else(|| "not agreed on".into(), |rate| rate.to_string());
    writeln!(
        out,
        "connected to {server} in {connected:.1?} (UDP: {udp}, send rate: {rate})"
    )?;
    let start = Instant::now();
    let opened = client.tcp(&target.to_string()).await;
    let took = start.elapsed();
    let result = match opened {
        Ok(_stream) => writeln!(out, "{target} reached in {took:.1?}").map_err(Into::into),
        Err(error) => Err(anyhow::Error::new(error).context(format!("{target} not reached"))),
    };
    client.close().await;
    result
}
