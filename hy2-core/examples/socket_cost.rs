//! Measures what the socket layer costs: CPU seconds per GiB of a bulk transfer
//! TCP → QUIC → TCP over loopback, for each combination of obfuscation, merging and offload.
//!
//! ```text
//! cargo run --release -p hy2-core --example socket_cost -- [GiB per run] [rounds]
//! ```
//!
//! Client and server run in a thread each and only these two are counted (Linux only). The
//! variants take turns within a round, so that a busy machine disturbs all of them alike.
#![allow(missing_docs, clippy::print_stdout)]

use std::{
    io::{IoSlice, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use bytes::{Buf, Bytes, BytesMut};
use hy2_core::socket::{
    DirectSocketFactory, Obfuscation, SocketCounters, SocketOptions, bind, client_socket,
    server_socket,
};
use quinn::{Endpoint, EndpointConfig, TokioRuntime, TransportConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};

/// Anything that goes wrong ends the program.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Clone)]
struct Variant {
    name: &'static str,
    obfs: Obfuscation,
    options: SocketOptions,
}

struct Cost {
    seconds_per_gib: f64,
    gbit_per_second: f64,
    sender: SocketCounters,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let gib: f64 = args.next().map_or(Ok(2.0), |arg| arg.parse())?;
    let rounds: usize = args.next().map_or(Ok(5), |arg| arg.parse())?;
    let only: Vec<String> = args.collect();
    let bytes = (gib * (1u64 << 30) as f64) as u64;

    let variants: Vec<_> = variants()?
        .into_iter()
        .filter(|variant| only.is_empty() || only.iter().any(|name| name == variant.name))
        .collect();
    let mut costs: Vec<Vec<Cost>> = variants.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        for (variant, costs) in variants.iter().zip(&mut costs) {
            let cost = run(variant, bytes)?;
            // The first round warms caches and the clock of the CPU.
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    println!(
        "{:<22} {:>8} {:>8} {:>8} {:>10}",
        "variant", "s/GiB", "least", "Gbit/s", "per send"
    );
    for (variant, mut costs) in variants.iter().zip(costs) {
        costs.sort_by(|a, b| a.seconds_per_gib.total_cmp(&b.seconds_per_gib));
        let median = &costs[costs.len() / 2];
        let best = costs.iter().map(|c| c.gbit_per_second).fold(0.0, f64::max);
        println!(
            "{:<22} {:>8.2} {:>8.2} {:>8.1} {:>10.1}",
            variant.name,
            median.seconds_per_gib,
            costs[0].seconds_per_gib,
            best,
            median.sender.datagrams_per_send(),
        );
    }
    Ok(())
}

fn variants() -> Result<Vec<Variant>> {
    let merged = SocketOptions::default();
    let mut plain = merged.clone();
    plain.merge = false;
    let mut no_gso = merged.clone();
    no_gso.gso = false;
    let salamander = Obfuscation::salamander("a key of good length")?;
    let variant = |name, obfs: &Obfuscation, options: &SocketOptions| Variant {
        name,
        obfs: obfs.clone(),
        options: options.clone(),
    };
    Ok(vec![
        variant("plain", &Obfuscation::Plain, &plain),
        variant("plain-merged", &Obfuscation::Plain, &merged),
        variant("salamander", &salamander, &plain),
        variant("salamander-merged", &salamander, &merged),
        variant("plain-no-gso", &Obfuscation::Plain, &no_gso),
    ])
}

/// origin → TCP → server → QUIC → client → TCP → sink
fn run(variant: &Variant, bytes: u64) -> Result<Cost> {
    let origin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (origin_addr, sink_addr) = (origin.local_addr()?, sink.local_addr()?);
    let (cert, key) = certificate()?;

    let (bound_tx, bound_rx) = mpsc::channel();
    let (stop_tx, stop_rx) = oneshot::channel();
    let server = {
        let (variant, cert) = (variant.clone(), cert.clone());
        thread::spawn(move || -> Result<_> {
            runtime()?.block_on(serve(variant, cert, key, origin_addr, bound_tx, stop_rx))
        })
    };
    let client = {
        let variant = variant.clone();
        let server = bound_rx.recv()?;
        thread::spawn(move || -> Result<f64> {
            runtime()?.block_on(fetch(variant, cert, server, sink_addr))
        })
    };
    let feeder = thread::spawn(move || feed(&origin, bytes));
    let start = Instant::now();
    drain(&sink, bytes)?;
    let elapsed = start.elapsed().as_secs_f64();
    let client_cpu = client.join().map_err(|_| "client panicked")??;
    let _ = stop_tx.send(());
    let (server_cpu, sender) = server.join().map_err(|_| "server panicked")??;
    feeder.join().map_err(|_| "origin panicked")??;
    let gib = bytes as f64 / (1u64 << 30) as f64;
    Ok(Cost {
        seconds_per_gib: (client_cpu + server_cpu) / gib,
        gbit_per_second: bytes as f64 * 8.0 / 1e9 / elapsed,
        sender,
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

async fn serve(
    variant: Variant,
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    origin: SocketAddr,
    bound: mpsc::Sender<SocketAddr>,
    stop: oneshot::Receiver<()>,
) -> Result<(f64, SocketCounters)> {
    let socket = bind((Ipv4Addr::LOCALHOST, 0).into(), &variant.options)?;
    let socket = server_socket(socket, &variant.obfs, &variant.options)?;
    let endpoint = endpoint(&socket, Some(server_config(cert, key)?))?;
    bound.send(endpoint.local_addr()?)?;
    let connection = endpoint.accept().await.ok_or("closed")?.await?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    let _ = recv.read_chunk(usize::MAX, true).await?;
    let mut tcp = tokio::net::TcpStream::connect(origin).await?;
    let before = cpu()?;
    let mut buf = BytesMut::new();
    loop {
        buf.reserve(64 << 10);
        if tcp.read_buf(&mut buf).await? == 0 {
            break;
        }
        send.write_chunk(buf.split().freeze()).await?;
    }
    send.finish()?;
    let _ = stop.await;
    Ok((cpu()? - before, socket.stats().snapshot()))
}

async fn fetch(
    variant: Variant,
    cert: CertificateDer<'static>,
    server: SocketAddr,
    sink: SocketAddr,
) -> Result<f64> {
    let factory = Arc::new(DirectSocketFactory::new(variant.options.clone()));
    let socket = client_socket(server, None, factory, &variant.obfs, &variant.options)?;
    let endpoint = endpoint(&socket, None)?;
    let connection = endpoint
        .connect_with(client_config(cert)?, server, "localhost")?
        .await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"go").await?;
    let mut tcp = tokio::net::TcpStream::connect(sink).await?;
    let before = cpu()?;
    let mut chunks: Vec<Bytes> = vec![Bytes::new(); 64];
    while let Some(count) = recv.read_chunks(&mut chunks).await? {
        write_all(&mut tcp, &mut chunks[..count]).await?;
    }
    let spent = cpu()? - before;
    connection.close(0u32.into(), b"");
    Ok(spent)
}

async fn write_all(tcp: &mut tokio::net::TcpStream, mut chunks: &mut [Bytes]) -> Result<()> {
    while !chunks.is_empty() {
        let slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        let mut written = tcp.write_vectored(&slices).await?;
        while let Some(first) = chunks.first_mut() {
            let here = written.min(first.len());
            first.advance(here);
            written -= here;
            if !first.is_empty() {
                break;
            }
            chunks = &mut chunks[1..];
        }
    }
    Ok(())
}

fn endpoint(
    socket: &hy2_core::socket::QuicSocket,
    server: Option<quinn::ServerConfig>,
) -> Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(1472 - socket.overhead())?;
    Ok(Endpoint::new_with_abstract_socket(
        config,
        server,
        socket.socket(),
        Arc::new(TokioRuntime),
    )?)
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window((8u32 << 20).into())
        .receive_window((20u32 << 20).into());
    Arc::new(transport)
}

fn feed(origin: &TcpListener, bytes: u64) -> Result<()> {
    let (mut tcp, _) = origin.accept()?;
    let chunk = vec![0x5a; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let len = left.min(chunk.len() as u64) as usize;
        tcp.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    Ok(())
}

fn drain(sink: &TcpListener, bytes: u64) -> Result<()> {
    let (mut tcp, _): (TcpStream, _) = sink.accept()?;
    let mut chunk = vec![0; 256 << 10];
    let mut got = 0;
    loop {
        let len = tcp.read(&mut chunk)? as u64;
        got += len;
        if len == 0 {
            break;
        }
    }
    if got == bytes {
        Ok(())
    } else {
        Err(format!("{got} of {bytes} bytes arrived").into())
    }
}

/// CPU seconds this thread has used, user and system.
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: f64 = stat.split(' ').next().ok_or("empty schedstat")?.parse()?;
    Ok(nanos / 1e9)
}

fn certificate() -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    Ok((made.cert.der().clone(), key))
}

fn server_config(
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<quinn::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)?;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    Ok(config)
}

fn client_config(cert: CertificateDer<'static>) -> Result<quinn::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // One cipher for all runs: AES-128-GCM, which servers prefer.
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    Ok(config)
}
