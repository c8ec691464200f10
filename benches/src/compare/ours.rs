//! Our server and client as processes for the comparison, speaking the same JSON lines as the
//! reference peer.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use hy2_core::{
    Bandwidth, Client, ClientConfig, Server,
    authenticator::Password,
    client::ServerAddress,
    inbound::{InboundLimits, TcpForward, TcpForwardConfig, UdpForward, UdpForwardConfig},
    outbound::{AddressPolicy, Direct},
    quic::QuicConfig,
    server::ServerConfig,
    socket::{self, DirectSocketFactory, Obfuscation, SocketFactory, SocketOptions},
    tls::ServerTls,
};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::Level;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    role: Role,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Server,
    Client,
    /// Holds many connections.
    Crowd,
    /// Connects over and over.
    Connects,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let config: Value = serde_json::from_str(&line)?;
    let threads = config["threads"].as_u64().unwrap_or(1);
    let runtime = if threads == 1 {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(61)
            .build()?
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(usize::try_from(threads)?)
            .enable_all()
            .build()?
    };
    let (sender, questions) = mpsc::channel(1);
    // The parent holds our standard input; when it is gone, so are we.
    std::thread::spawn(move || {
        for line in io::stdin().lines().map_while(io::Result::ok) {
            let question = serde_json::from_str(&line).unwrap_or_default();
            // A role that answers nothing is not asked.
            let _ = sender.blocking_send(question);
        }
        std::process::exit(0);
    });
    runtime.block_on(async {
        match arguments.role {
            Role::Server => serve(&config, questions).await,
            Role::Client => forward(&config, questions).await,
            Role::Crowd => crowd(&config).await,
            Role::Connects => connects(&config).await,
        }
    })
}

fn obfuscation(config: &Value) -> Result<Obfuscation> {
    Ok(match config["obfs"]["password"].as_str() {
        Some(password) => Obfuscation::salamander(password)?,
        None => Obfuscation::default(),
    })
}

fn rate(value: &Value) -> Option<Bandwidth> {
    value
        .as_u64()
        .filter(|rate| *rate > 0)
        .map(Bandwidth::from_bytes_per_sec)
}

/// Puts what the comparison asks for into the transport settings.
fn transport(config: &Value, quic: &mut QuicConfig, socket: &mut SocketOptions) {
    let asked = &config["quic"];
    if let Some(bytes) = asked["stream_window"].as_u64() {
        quic.stream_receive_window = bytes;
    }
    if let Some(bytes) = asked["conn_window"].as_u64() {
        quic.receive_window = bytes;
    }
    socket.gso = asked["disable_gso"] != true;
    for (buffer, bytes) in [
        (&mut socket.recv_buffer, &config["buffers"]["recv"]),
        (&mut socket.send_buffer, &config["buffers"]["send"]),
    ] {
        if let Some(bytes) = bytes.as_u64().and_then(|bytes| usize::try_from(bytes).ok()) {
            *buffer = bytes;
        }
    }
}

/// What the kernel has granted a socket, in its own accounting, which is twice what was asked for.
fn buffers(socket: &UdpSocket) -> Result<Value> {
    let socket = SockRef::from(socket);
    Ok(json!({"rcvbuf": socket.recv_buffer_size()?, "sndbuf": socket.send_buffer_size()?}))
}

/// Answers each question with what `facts` says then.
async fn answer(mut questions: mpsc::Receiver<Value>, facts: impl Fn() -> Result<Value>) {
    while let Some(question) = questions.recv().await {
        let mut line = json!({"event": "answer", "id": question["id"], "ok": true});
        match facts() {
            Ok(facts) => line["result"] = facts,
            Err(error) => {
                line["ok"] = false.into();
                line["error"] = format!("{error:#}").into();
            }
        }
        println!("{line}");
    }
}

async fn serve(config: &Value, questions: mpsc::Receiver<Value>) -> Result<()> {
    let certificate = config["tls_cert"].as_str().context("tls_cert")?;
    let key = config["tls_key"].as_str().context("tls_key")?;
    let mut settings = ServerConfig::default();
    settings.obfuscation = obfuscation(config)?;
    settings.overclaim_guard = config["overclaim_guard"] == true;
    transport(config, &mut settings.quic, &mut settings.socket);
    let socket = socket::bind("127.0.0.1:0".parse()?, &settings.socket)?;
    // The same socket, to ask the kernel about.
    let same = socket.try_clone()?;
    let server = Server::builder(ServerTls::from_pem_files(certificate, key)?)
        .socket(socket)
        .authenticator(Password::new(
            config["password"].as_str().context("password")?,
        ))
        .outbound(Direct::new(AddressPolicy::allow_all()))
        .config(settings)
        .bind()?;
    println!(
        "{}",
        json!({"event": "ready", "addr": server.local_addrs()[0].to_string()})
    );
    // Such as why it closed a connection.
    say("hy2_core", Level::WARN);
    let handle = server.handle();
    let facts = || {
        let settings = handle.config();
        let traffic: serde_json::Map<String, Value> = handle
            .users()
            .into_iter()
            .map(|user| {
                let counted = json!({"tx": user.traffic.tx, "rx": user.traffic.rx});
                (user.user.to_string(), counted)
            })
            .collect();
        Ok(json!({
            "socket": buffers(&same)?,
            "gso_asked_for": settings.socket.gso,
            "stream_window": settings.quic.stream_receive_window,
            "conn_window": settings.quic.receive_window,
            "traffic": traffic,
        }))
    };
    tokio::select! {
        () = server.closed() => {}
        () = answer(questions, facts) => {}
    }
    Ok(())
}

/// Prints on standard error what a part of our code says.
fn say(part: &str, level: Level) {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let wanted = Targets::new().with_target(part, level);
    tracing_subscriber::registry()
        .with(lines.with_filter(wanted))
        .init();
}

/// Opens the sockets that a client has anyway, and keeps the newest to ask the kernel about.
#[derive(Debug)]
struct Watched {
    ordinary: DirectSocketFactory,
    newest: Mutex<Option<UdpSocket>>,
}

impl SocketFactory for Watched {
    fn open(&self, remote: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.ordinary.open(remote)?;
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = Some(socket.try_clone()?);
        Ok(socket)
    }
}

fn client_settings(config: &Value) -> Result<ClientConfig> {
    let server: SocketAddr = config["server"].as_str().context("server")?.parse()?;
    let address = ServerAddress::new(server.ip().to_string(), server.port());
    let mut settings = ClientConfig::new(address, config["auth"].as_str().context("auth")?);
    settings.tls.insecure = true;
    settings.tls.sni = Some("localhost".to_owned());
    settings.obfuscation = obfuscation(config)?;
    settings.up = rate(&config["tx"]);
    settings.down = rate(&config["rx"]);
    settings.fast_open = config["fast_open"] == true;
    transport(config, &mut settings.quic, &mut settings.socket);
    Ok(settings)
}

async fn forward(config: &Value, questions: mpsc::Receiver<Value>) -> Result<()> {
    let target = config["target"].as_str().context("target")?.to_owned();
    let mut settings = client_settings(config)?;
    let watched = Arc::new(Watched {
        ordinary: DirectSocketFactory::new(settings.socket.clone()),
        newest: Mutex::default(),
    });
    settings.socket_factory = Some(Arc::clone(&watched) as _);
    let gso = settings.socket.gso;
    if config["warm"] == true {
        // The crypto library prepares its random numbers once per process.
        Client::connect(settings.clone()).await?.close().await;
    }
    let start = Instant::now();
    let client = Client::connect(settings).await?;
    let connect_ms = start.elapsed().as_secs_f64() * 1e3;
    let tcp = TcpForward::bind(TcpForwardConfig {
        listen: "127.0.0.1:0".parse()?,
        remote: target.parse()?,
        limits: InboundLimits::default(),
    })?;
    let udp_target = config["udp_target"].as_str().context("udp_target")?;
    let udp = UdpForwardConfig::new("127.0.0.1:0".parse()?, udp_target.parse()?);
    let udp = UdpForward::bind(udp)?;
    println!(
        "{}",
        json!({
            "event": "ready",
            "addr": tcp.local_addr()?.to_string(),
            "udp": udp.local_addr()?.to_string(),
            "connect_ms": connect_ms,
        })
    );
    // The load generator notices a connection that ends early, but not why.
    say("hy2_core::inbound::tcp_forward", Level::DEBUG);
    let facts = || {
        let newest = watched
            .newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(json!({
            "socket": buffers(newest.as_ref().context("no socket")?)?,
            "gso_asked_for": gso,
            "max_datagram": client.connection().and_then(|connection| connection.max_datagram),
        }))
    };
    let stop = CancellationToken::new();
    tokio::join!(
        tcp.run(client.clone(), stop.clone()),
        udp.run(client.clone(), stop),
        answer(questions, facts)
    );
    Ok(())
}

/// Connects, authenticates and disconnects for `seconds`, `at_once` at a time.
async fn connects(config: &Value) -> Result<()> {
    let mut settings = client_settings(config)?;
    settings.socket.recv_buffer = 64 << 10;
    settings.socket.send_buffer = 64 << 10;
    let at_once = config["at_once"].as_u64().context("at_once")?;
    let span = Duration::from_secs_f64(config["seconds"].as_f64().context("seconds")?);
    // What a process does once is not counted.
    Client::connect(settings.clone()).await?.close().await;
    println!("{}", json!({"event": "ready"}));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let settings = settings.clone();
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut failures = Vec::new();
            while start.elapsed() < span {
                let begun = Instant::now();
                // Dropped at once, which closes it; nobody waits until it has drained.
                match Client::connect(settings.clone()).await {
                    Ok(_client) => latencies.push(begun.elapsed().as_micros() as u64),
                    // A server may turn one of many away.
                    Err(error) => failures.push(error.to_string()),
                }
            }
            (latencies, failures)
        });
    }
    let (mut latencies, mut failures) = (Vec::new(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (mut came, mut failed) = ended?;
        latencies.append(&mut came);
        failures.append(&mut failed);
    }
    if let Some(first) = failures.first() {
        eprintln!("  {} connections failed: {first}", failures.len());
        anyhow::ensure!(
            failures.len() < latencies.len(),
            "most connections failed: {first}"
        );
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"event": "done", "seconds": seconds, "latencies_us": latencies})
    );
    std::future::pending().await
}

/// Opens `count` connections and keeps them; on the line `use` each carries one small transfer.
async fn crowd(config: &Value) -> Result<()> {
    let mut settings = client_settings(config)?;
    // Small buffers here: only the server's memory is measured.
    settings.socket.recv_buffer = 64 << 10;
    settings.socket.send_buffer = 64 << 10;
    let target = config["target"].as_str().context("target")?.to_owned();
    let count = config["count"].as_u64().context("count")?;
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::connect(settings.clone()).await?);
    }
    println!("{}", json!({"event": "ready"}));
    if config["use"] == true {
        for client in &clients {
            let mut stream = client.tcp(&target).await?;
            stream.write_all(b"D 65536\n").await?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await?;
        }
        println!("{}", json!({"event": "used"}));
    }
    std::future::pending().await
}
