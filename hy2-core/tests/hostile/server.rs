//! The server under attack, in a process of its own.
//!
//! The process is this test binary again, told by an environment variable to be the server. It
//! prints its address and certificate, answers each line on its standard input with its figures,
//! and ends with that input.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, Write},
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use hy2_core::{
    Address, BoxFuture, Client, ClientConfig, Server,
    authenticator::{AuthContext, AuthDecision, Authenticator, Grant, UserLimits, UserPass},
    client::ServerAddress,
    memory::MemoryBudget,
    outbound::{AddressPolicy, DialError, Direct, Outbound, TcpConnection, UdpAssociation},
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
    server::ServerConfig,
    socket::Obfuscation,
    tls::ServerTls,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{recorder, say};

const VARIABLE: &str = "HY2_HOSTILE_SERVER";
const MARK: &str = "hy2-server";

/// Key of the servers that obfuscate.
pub(crate) const OBFUSCATION_KEY: &str = "sixteen or more bytes";

/// What an honest user logs in with; an attacker who has an account is `mallory`.
pub(crate) const HONEST: &str = "alice:wonderland";
pub(crate) const MALLORY: &str = "mallory:a stolen password";

/// Held by cases that measure or load the machine, so that they run one at a time.
pub(crate) async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ALONE.lock().await
}

/// Room for tables and queues, which keep the size they once needed.
const TABLES: u64 = 256 << 10;

/// What the allocator may keep for itself after an attack.
const RETAINED: u64 = 160 << 20;

/// A running server process.
pub(crate) struct ServerProcess {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    pub(crate) address: SocketAddr,
    pub(crate) certificate: CertificateDer<'static>,
    obfuscation: Obfuscation,
}

/// What the server says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Figures(HashMap<String, u64>);

impl Figures {
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Tells what grew since `before`.
    pub(crate) fn since(&self, before: &Self) -> Growth {
        Growth {
            held: self.heap().saturating_sub(before.heap()),
            resident: self.rss().saturating_sub(before.rss()),
        }
    }

    /// Allocated and not freed, in bytes.
    fn heap(&self) -> u64 {
        self.get("heap")
    }

    /// Resident memory in bytes.
    pub(crate) fn rss(&self) -> u64 {
        self.get("rss")
    }
}

/// What a server holds more than it did, and how much more of it is resident.
///
/// The first is what the cases judge: allocated and not freed, exact. The second also has what the
/// allocator keeps for the next time, which differs from run to run; it is printed, and
/// [`ServerProcess::recovers`] bounds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Growth {
    pub(crate) held: u64,
    resident: u64,
}

impl Growth {
    /// The share of one of `peers`.
    pub(crate) fn each(self, peers: u64) -> Self {
        Self {
            held: self.held / peers,
            resident: self.resident / peers,
        }
    }
}

impl std::fmt::Display for Growth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { held, resident } = *self;
        write!(
            f,
            "{:.2} MiB held, {:.2} resident",
            mib(held),
            mib(resident)
        )
    }
}

/// Bytes as MiB, for messages.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl ServerProcess {
    /// Starts a server. `options` are words: `auth=table` for [`UserPass`], `idle=SECONDS`, `memory=MIB`, `private=deny` or the
    /// private range that is allowed,
    /// `obfs=salamander|gecko`, `connections=PER_USER`, `unauthenticated=N`, `streams=N`.
    pub(crate) async fn start(options: &str) -> Self {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args([
                "--exact",
                "server::the_server_process_reports_and_ends",
                "--nocapture",
            ])
            .env(VARIABLE, options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a child");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut server = Self {
            _child: child,
            input,
            output,
            address: ([0, 0, 0, 0], 0).into(),
            certificate: CertificateDer::from(Vec::new()),
            obfuscation: obfuscation(word(options, "obfs").unwrap_or("plain")),
        };
        let words = server.line().await;
        server.address = words[0].parse().expect("an address");
        server.certificate = hex::decode(&words[1]).expect("hex").into();
        server
    }

    async fn line(&mut self) -> Vec<String> {
        loop {
            let line = self
                .output
                .next_line()
                .await
                .expect("readable")
                .expect("the server lives");
            if let Some(rest) = line.strip_prefix(MARK) {
                return rest.split_whitespace().map(str::to_owned).collect();
            }
        }
    }

    pub(crate) async fn figures(&mut self) -> Figures {
        self.input
            .write_all(b"figures\n")
            .await
            .expect("the server lives");
        let words = self.line().await;
        let pairs = words.iter().filter_map(|word| word.split_once('='));
        Figures(
            pairs
                .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
                .collect(),
        )
    }

    /// Checks that nothing panicked, caught or not, and that the server still lets a user in.
    pub(crate) async fn is_well(&mut self) -> Figures {
        let figures = self.figures().await;
        assert_eq!(figures.get("hy2_panics_total"), 0);
        assert_eq!(figures.get("panics_seen"), 0);
        let client = Client::connect(self.client_config(HONEST))
            .await
            .expect("let in");
        client.close().await;
        figures
    }

    /// Waits until `enough` says that the figures are as they should be; gives up with a panic.
    pub(crate) async fn until(&mut self, what: &str, enough: impl Fn(&Figures) -> bool) -> Figures {
        let start = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let figures = self.figures().await;
            if enough(&figures) {
                return figures;
            }
            assert!(
                start.elapsed() < Duration::from_secs(90),
                "never {what}: {figures:?}"
            );
        }
    }

    /// Waits until nobody is connected, everything that is counted was given back, and the server
    /// holds what it held before and no more than a tenth and [`TABLES`] beyond that; checks what
    /// is resident.
    ///
    /// Allocators keep freed pages for the next time, so resident memory of a fresh server does not
    /// fall back to where it was. That it does not rise attack by attack is another case.
    pub(crate) async fn recovers(&mut self, before: &Figures) {
        self.recovers_but_for(TABLES, before).await;
    }

    /// Does the same with `tables` in place of [`TABLES`].
    pub(crate) async fn recovers_but_for(&mut self, tables: u64, before: &Figures) {
        let start = Instant::now();
        let allowed = before.heap() + before.heap() / 10 + tables;
        let after = self
            .until("as before", |now| {
                now.get("connections") == 0 && now.get("budget") == 0 && now.heap() <= allowed
            })
            .await;
        say(format_args!(
            "over after {:.1} s: {:.2} MiB held, {:.2} before; {:.1} MiB resident, {:.1} before",
            start.elapsed().as_secs_f64(),
            mib(after.heap()),
            mib(before.heap()),
            mib(after.rss()),
            mib(before.rss()),
        ));
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(after.rss() < before.rss() + RETAINED, "{after:?}");
    }

    /// Returns the figures of a server that has served before, so that what it allocates once is
    /// there already.
    pub(crate) async fn warmed_up(&mut self) -> Figures {
        for _ in 0..20 {
            let client = Client::connect(self.client_config(HONEST))
                .await
                .expect("let in");
            client.close().await;
        }
        self.until("quiet", |figures| figures.get("connections") == 0)
            .await
    }

    pub(crate) fn client_config(&self, auth: &str) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        let address = ServerAddress::new(self.address.ip().to_string(), self.address.port());
        let mut config = ClientConfig::new(address, auth);
        config.tls.roots = Some(Arc::new(roots));
        config.tls.sni = Some("localhost".to_owned());
        config.obfuscation = self.obfuscation.clone();
        config
    }
}

fn obfuscation(name: &str) -> Obfuscation {
    match name {
        "plain" => Obfuscation::Plain,
        "salamander" => Obfuscation::salamander(OBFUSCATION_KEY).expect("a key"),
        "gecko" => Obfuscation::gecko(OBFUSCATION_KEY, 512, 1200).expect("a key"),
        other => panic!("obfs={other}"),
    }
}

fn word<'a>(options: &'a str, name: &str) -> Option<&'a str> {
    options
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Two users, each with a limit on connections.
struct Accounts(Option<u32>);

impl Authenticator for Accounts {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        let known = [HONEST, MALLORY].contains(&request.auth);
        let decision = match request.auth.split_once(':') {
            Some((name, _)) if known => AuthDecision::Accept(Grant::new(name).limits(UserLimits {
                max_connections: self.0,
                ..UserLimits::default()
            })),
            _ => AuthDecision::Deny,
        };
        Box::pin(std::future::ready(decision))
    }
}

/// Dials like [`Direct`], but `slow.invalid` resolves never.
struct SlowNames(Direct);

impl Outbound for SlowNames {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        self.0.tcp(target)
    }

    fn udp<'a>(
        &'a self,
        first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        if first.to_string().starts_with("slow.invalid:") {
            return Box::pin(std::future::pending());
        }
        self.0.udp(first)
    }
}

#[test]
fn the_server_process_reports_and_ends() {
    if let Ok(options) = env::var(VARIABLE) {
        return serve(&options);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut server = ServerProcess::start("").await;
        let figures = server.is_well().await;
        assert!(figures.rss() > 1 << 20, "{figures:?}");
        let ServerProcess {
            _child: mut child,
            input,
            ..
        } = server;
        drop(input);
        assert!(child.wait().await.expect("ended").success());
    });
}

/// Runs the server of this process until standard input ends.
#[expect(clippy::print_stdout, reason = "how the parent is told")]
fn serve(options: &str) {
    recorder::install();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let number = |name| word(options, name).map(|text| text.parse::<usize>().expect(text));
    let mut config = ServerConfig::default();
    config.obfuscation = obfuscation(word(options, "obfs").unwrap_or("plain"));
    let memory = MemoryBudget::new(number("memory").unwrap_or(512) << 20);
    config.memory = Arc::clone(&memory);
    config.quic.max_idle_timeout = Duration::from_secs(number("idle").unwrap_or(4) as u64);
    if let Some(streams) = number("streams") {
        config.quic.max_incoming_streams = streams as u32;
    }
    if let Some(limit) = number("unauthenticated") {
        config.limits.unauthenticated = limit;
    }
    let policy = match word(options, "private") {
        None => AddressPolicy::allow_all(),
        Some("deny") => AddressPolicy::public_only(),
        Some(net) => AddressPolicy::public_only().allow(net.parse().expect("a range")),
    };

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
    let tls = ServerTls::from_der(vec![certificate.clone()], key).expect("tls");
    let builder = Server::builder(tls);
    let builder = match word(options, "auth") {
        Some("table") => {
            let known = [HONEST, MALLORY].map(|user| user.split_once(':').expect("both"));
            builder.authenticator(UserPass::new(known))
        }
        _ => builder.authenticator(Accounts(number("connections").map(|count| count as u32))),
    };
    let server = builder
        .listen(([127, 0, 0, 1], 0).into())
        .outbound(SlowNames(Direct::new(policy)))
        .config(config)
        .bind()
        .expect("server");
    let handle = server.handle();
    println!(
        "\n{MARK} {} {}",
        server.local_addrs()[0],
        hex::encode(&certificate)
    );
    for line in std::io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        let users = handle.users();
        let sessions: u32 = users.iter().map(|user| user.traffic.udp_sessions).sum();
        let streams: u32 = users.iter().map(|user| user.traffic.streams).sum();
        let authenticated: u32 = users.iter().map(|user| user.traffic.connections).sum();
        print!(
            "{MARK} rss={} heap={} budget={} connections={} authenticated={authenticated} streams={streams} sessions={sessions}",
            resident(),
            crate::ALLOCATOR.allocated(),
            memory.used(),
            handle.connection_count(),
        );
        for (name, value) in recorder::counters() {
            print!(" {name}={value}");
        }
        println!();
        let _ = std::io::stdout().flush();
    }
    drop(server);
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a resident size");
    let kibibytes: u64 = line
        .split_whitespace()
        .nth(1)
        .expect("a figure")
        .parse()
        .expect("a number");
    kibibytes << 10
}
