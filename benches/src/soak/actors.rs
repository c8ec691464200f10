//! Those who use the server, and misuse it.

use std::{
    fmt,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hy2_core::{Client, ClientConfig, ServerHandle};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    origin::Origins,
    sockets::FewSockets,
    world::{World, client_config},
};

/// Every wait of an actor ends; the machine may be slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// A name that no resolver knows (RFC 6761, section 6.4).
const UNKNOWN: &str = "nobody.invalid";

/// An address to which the kernel sends nothing: broadcasts have to be asked for.
const UNSENDABLE: &str = "255.255.255.255";

/// How often each thing was done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) connects: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) datagrams: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) refusals: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) kicks: AtomicU64,
    /// Clients that were killed, and servers.
    pub(crate) killed: AtomicU64,
    /// Servers that were started to be killed.
    doomed: AtomicU64,
    pub(crate) widowed: AtomicU64,
    pub(crate) hopped: AtomicU64,
    /// Names that did not resolve.
    pub(crate) unresolved: AtomicU64,
    pub(crate) socket_errors: AtomicU64,
    pub(crate) restarts: AtomicU64,
    /// Times in which no descriptor was to be had.
    pub(crate) starved: AtomicU64,
    /// Actions that a kick or a slow machine cut short.
    pub(crate) failures: AtomicU64,
    /// What must never happen, however slow the machine is; the first few.
    broken: Mutex<Vec<String>>,
}

/// More say nothing new.
const MOST_BROKEN: usize = 8;

impl Tally {
    fn done(&self) -> [(&'static str, u64); 12] {
        let count = |cell: &AtomicU64| cell.load(Relaxed);
        [
            ("connects", count(&self.connects)),
            ("streams", count(&self.streams)),
            ("datagrams", count(&self.datagrams)),
            ("resets", count(&self.resets)),
            ("refusals", count(&self.refusals)),
            ("rejected", count(&self.rejected)),
            ("kicks", count(&self.kicks)),
            ("clients killed", count(&self.killed)),
            ("servers killed", count(&self.widowed)),
            ("hopped", count(&self.hopped)),
            ("unresolved", count(&self.unresolved)),
            ("socket errors", count(&self.socket_errors)),
        ]
    }

    fn broken(&self, what: &str) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.len() < MOST_BROKEN {
            broken.push(what.to_owned());
        }
    }

    /// Promises that were not kept.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.clone()
    }

    /// What should happen all the time and never did.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let missing = self.done().into_iter().filter(|(_, count)| *count == 0);
        missing.map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in self.done() {
            write!(f, "{count} {name}, ")?;
        }
        let (restarts, failures) = (self.restarts.load(Relaxed), self.failures.load(Relaxed));
        let starved = self.starved.load(Relaxed);
        write!(
            f,
            "{restarts} restarts, {starved} times out of descriptors, {failures} cut short"
        )
    }
}

/// Something that must never happen.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(String);

fn promise(kept: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if kept {
        return Ok(());
    }
    Err(Broken(otherwise()).into())
}

/// What must not be reached.
fn out_of_question<T, E>(answer: Result<T, E>, target: &str) -> Result<()> {
    promise(answer.is_err(), || format!("reached {target}"))
}

/// One who does one thing after the other.
pub(crate) struct Actors {
    config: ClientConfig,
    /// The same server through several ports.
    hopping: ClientConfig,
    address: SocketAddr,
    origins: Origins,
    server: ServerHandle,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
}

/// What one may do, and how often in a hundred.
#[derive(Debug, Clone, Copy)]
enum Action {
    Use,
    Datagrams,
    Resets,
    Refusals,
    WrongPassword,
    Kick,
    Hop,
    Kill,
    KillServer,
    SocketErrors,
}

const ACTIONS: [(u64, Action); 10] = [
    (36, Action::Use),
    (20, Action::Datagrams),
    (14, Action::Resets),
    (8, Action::Refusals),
    (6, Action::WrongPassword),
    (6, Action::Kick),
    (4, Action::Hop),
    (2, Action::Kill),
    (1, Action::KillServer),
    (3, Action::SocketErrors),
];

impl Actors {
    pub(crate) fn new(world: &World, tally: Arc<Tally>, stop: Arc<AtomicBool>) -> Self {
        Self {
            config: world.client(&[world.address]),
            hopping: world.client(&world.fan),
            address: world.address,
            origins: world.origins,
            server: world.handle(),
            tally,
            stop,
        }
    }

    /// Acts until told to stop. The first action is the one of this number: a round with as many
    /// actors as there are actions does each at least once.
    pub(crate) async fn run(self, round: u64, number: usize) {
        let mut random = Random(round << 16 | number as u64);
        let mut next = ACTIONS.get(number).map(|(_, action)| *action);
        while !self.stop.load(Relaxed) {
            let action = next.take().unwrap_or_else(|| draw(&mut random));
            if let Err(error) = self.act(action, &mut random).await {
                if let Some(Broken(what)) = error.downcast_ref() {
                    self.tally.broken(&format!("{action:?}: {what}"));
                }
                // Kicks hit whoever is there.
                tracing::debug!(?action, %error, "cut short");
                self.tally.failures.fetch_add(1, Relaxed);
                // Where there are no descriptors, everything fails at once, and whoever only fails
                // leaves no time to the others.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn act(&self, action: Action, random: &mut Random) -> Result<()> {
        match action {
            Action::Use => self.uses(random).await,
            Action::Datagrams => self.datagrams(random).await,
            Action::Resets => self.resets(random).await,
            Action::Refusals => self.refusals().await,
            Action::WrongPassword => self.wrong_password().await,
            Action::Kick => self.kick(random),
            Action::Hop => self.hop().await,
            Action::Kill => self.kill().await,
            Action::KillServer => self.kill_server().await,
            Action::SocketErrors => self.socket_errors().await,
        }
    }

    async fn connect(&self) -> Result<Client> {
        self.connect_with(&self.config).await
    }

    async fn connect_with(&self, config: &ClientConfig) -> Result<Client> {
        let client = Client::connect(config.clone()).await?;
        self.tally.connects.fetch_add(1, Relaxed);
        Ok(client)
    }

    /// Some streams one after the other and some at once, ended in order or not at all.
    async fn uses(&self, random: &mut Random) -> Result<()> {
        let client = self.connect().await?;
        for _ in 0..1 + random.below(6) {
            let len = 1 + random.below(64 << 10) as usize;
            self.echo(&client, len).await?;
        }
        let (one, two) = tokio::join!(self.echo(&client, 30_000), self.echo(&client, 200));
        one.and(two)?;
        if random.below(2) == 0 {
            client.close().await;
        }
        Ok(())
    }

    async fn echo(&self, client: &Client, len: usize) -> Result<()> {
        let mut stream = client.tcp(&self.origins.echo.to_string()).await?;
        let sent: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let exchange = async {
            stream.write_all(&sent).await?;
            stream.shutdown().await?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await?;
            promise(got == sent, || {
                format!("{} of {len} bytes came back", got.len())
            })?;
            anyhow::Ok(())
        };
        timeout(PATIENCE, exchange).await??;
        self.tally.streams.fetch_add(1, Relaxed);
        Ok(())
    }

    /// A UDP session with datagrams of all sizes, whose last answers nobody waits for.
    async fn datagrams(&self, random: &mut Random) -> Result<()> {
        let client = self.connect().await?;
        let target = self.origins.udp.to_string();
        for _ in 0..1 + random.below(4) {
            let session = client.udp().await?;
            for _ in 0..20 {
                let len = 1 + random.below(4_000) as usize;
                session.send(&vec![7; len], &target)?;
                if random.below(2) == 0
                    && let Ok(Some(answer)) =
                        timeout(Duration::from_millis(300), session.recv()).await
                    // A session hears everybody: who was killed had this port, and some still send to it.
                    && answer.source() == target
                {
                    promise(answer.data.iter().all(|byte| *byte == 7), || {
                        "bytes that nobody sent".to_owned()
                    })?;
                    self.tally.datagrams.fetch_add(1, Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Streams that break in the middle, from either end.
    async fn resets(&self, random: &mut Random) -> Result<()> {
        let client = self.connect().await?;
        let mut buffer = vec![0; 16 << 10];
        let mut reset = client.tcp(&self.origins.resetter.to_string()).await?;
        reset.write_all(b"!").await?;
        let end = timeout(PATIENCE, reset.read(&mut buffer)).await?;
        promise(!matches!(end, Ok(1..)), || {
            "data from a target that sends none".to_owned()
        })?;
        self.tally.resets.fetch_add(1, Relaxed);
        // A download given up in the middle, and an upload that nobody takes.
        let mut download = client.tcp(&self.origins.source.to_string()).await?;
        for _ in 0..random.below(40) {
            timeout(PATIENCE, download.read(&mut buffer)).await??;
        }
        let mut upload = client.tcp(&self.origins.silent.to_string()).await?;
        let block = vec![7; 256 << 10];
        let _ = timeout(Duration::from_millis(50), upload.write_all(&block)).await;
        self.tally.resets.fetch_add(2, Relaxed);
        Ok(())
    }

    /// Targets that refuse, and names that do not resolve: of a target of each kind, and of the
    /// server.
    async fn refusals(&self) -> Result<()> {
        let client = self.connect().await?;
        let refused = self.origins.refused.to_string();
        self.out_of_reach(&client, &refused, &self.tally.refusals)
            .await?;
        let unknown = format!("{UNKNOWN}:80");
        self.out_of_reach(&client, &unknown, &self.tally.unresolved)
            .await?;
        client.udp().await?.send(b"anybody?", &unknown)?;
        let mut config = self.config.clone();
        config.server.host = UNKNOWN.to_owned();
        out_of_question(
            Client::connect(config).await,
            "a server whose name nobody knows",
        )?;
        self.tally.unresolved.fetch_add(2, Relaxed);
        Ok(())
    }

    async fn out_of_reach(&self, client: &Client, target: &str, count: &AtomicU64) -> Result<()> {
        let answer = timeout(PATIENCE, client.tcp(target)).await?;
        out_of_question(answer, target)?;
        count.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Sockets that cannot be had, that cannot send, and targets that cannot be sent to.
    async fn socket_errors(&self) -> Result<()> {
        let count = &self.tally.socket_errors;
        let mut none = self.config.clone();
        none.socket_factory = Some(Arc::new(FewSockets::new(0)));
        out_of_question(Client::connect(none).await, "a server without a socket")?;
        count.fetch_add(1, Relaxed);

        let mut mute = self.config.clone();
        mute.server.host = UNSENDABLE.to_owned();
        mute.connect_timeout = Duration::from_secs(1);
        out_of_question(Client::connect(mute).await, "everybody at once")?;
        count.fetch_add(1, Relaxed);

        // Hops that find no socket keep the one there is.
        let mut stays = self.hopping.clone();
        stays.socket_factory = Some(Arc::new(FewSockets::new(1)));
        let client = self.connect_with(&stays).await?;
        for _ in 0..8 {
            self.echo(&client, 5_000).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        count.fetch_add(1, Relaxed);

        // What the kernel refuses to send costs nothing but itself.
        let session = client.udp().await?;
        let target = self.origins.udp.to_string();
        for unsendable in [format!("{UNSENDABLE}:9"), "127.0.0.1:0".to_owned()] {
            session.send(b"nobody gets it", &unsendable)?;
            let answered = async {
                loop {
                    session.send(b"an answer, please", &target)?;
                    let wait = Duration::from_millis(300);
                    if let Ok(answer) = timeout(wait, session.recv()).await {
                        let answer = answer.context("the session ended")?;
                        if answer.source() != target {
                            continue;
                        }
                        promise(answer.data[..] == *b"an answer, please", || {
                            "the answer to another datagram".to_owned()
                        })?;
                        return anyhow::Ok(());
                    }
                }
            };
            timeout(PATIENCE, answered).await??;
            count.fetch_add(1, Relaxed);
        }
        self.out_of_reach(&client, &format!("{UNSENDABLE}:80"), count)
            .await
    }

    async fn wrong_password(&self) -> Result<()> {
        let mut config = self.config.clone();
        config.auth = "not the password".to_owned();
        out_of_question(
            Client::connect(config).await,
            "a server by a wrong password",
        )?;
        self.tally.rejected.fetch_add(1, Relaxed);
        Ok(())
    }

    fn kick(&self, random: &mut Random) -> Result<()> {
        let connections = self.server.connections();
        if connections.is_empty() {
            return Ok(());
        }
        let at = random.below(connections.len() as u64) as usize;
        if self.server.kick_connection(connections[at].peer.connection) {
            self.tally.kicks.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Stays long enough to hop some times; counts everybody who has.
    async fn hop(&self) -> Result<()> {
        let client = self.connect_with(&self.hopping).await?;
        for _ in 0..12 {
            self.echo(&client, 5_000).await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // A hop takes a new socket, so the server sees it as a move.
        let connections = self.server.connections();
        let moved = connections.iter().filter(|it| it.remote != it.peer.remote);
        self.tally.hopped.fetch_add(moved.count() as u64, Relaxed);
        Ok(())
    }

    /// A client in a process of its own, killed in the middle of a transfer.
    async fn kill(&self) -> Result<()> {
        let (server, source) = (self.address.to_string(), self.origins.source.to_string());
        let udp = self.origins.udp.to_string();
        let arguments = [
            "victim", "--server", &server, "--source", &source, "--udp", &udp,
        ];
        let (mut child, _) = spawn(&arguments).await?;
        child.kill().await?;
        self.tally.killed.fetch_add(1, Relaxed);
        Ok(())
    }

    /// A server in a process of its own, killed in the middle of a transfer.
    async fn kill_server(&self) -> Result<()> {
        // Of its own: another actor's server may get the port when this one is gone.
        let number = self.tally.doomed.fetch_add(1, Relaxed);
        let password = format!("the password of server {number}");
        let (mut child, address) = spawn(&["server", &password]).await?;
        let mut config = client_config(&[address.parse()?]);
        config.auth = password;
        config.memory = Arc::clone(&self.config.memory);
        let client = self.connect_with(&config).await?;
        let session = client.udp().await?;
        session.send(b"anybody there?", &self.origins.udp.to_string())?;
        let mut stream = client.tcp(&self.origins.source.to_string()).await?;
        let mut buffer = vec![0; 64 << 10];
        timeout(PATIENCE, stream.read_exact(&mut buffer)).await??;
        child.kill().await?;
        let end = async {
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) => {
                        return promise(false, || "a download that was cut ended well".to_owned());
                    }
                    Ok(_) => {}
                    Err(_) => return Ok(()),
                }
            }
        };
        timeout(PATIENCE, end).await??;
        out_of_question(client.udp().await, "a server that was killed")?;
        self.tally.widowed.fetch_add(1, Relaxed);
        Ok(())
    }
}

fn draw(random: &mut Random) -> Action {
    let mut draw = random.below(ACTIONS.iter().map(|(weight, _)| weight).sum());
    let mut action = Action::Use;
    for (weight, candidate) in ACTIONS {
        action = candidate;
        if draw < weight {
            break;
        }
        draw -= weight;
    }
    action
}

/// Starts this program in another role and returns it with the line that says it is ready.
async fn spawn(arguments: &[&str]) -> Result<(Child, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().context("stdout")?;
    let line = timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await??;
    Ok((child, line.context("it died by itself")?))
}

#[derive(clap::Args)]
pub(crate) struct VictimArguments {
    #[arg(long)]
    server: SocketAddr,
    #[arg(long)]
    source: SocketAddr,
    #[arg(long)]
    udp: SocketAddr,
}

/// Connects, says so in the middle of a download, and goes on until it is killed.
pub(crate) async fn victim(arguments: VictimArguments) {
    // A kick may come first: then there was nobody to kill, and the actor says so.
    let _ = download(arguments).await;
}

async fn download(arguments: VictimArguments) -> Result<()> {
    let client = Client::connect(client_config(&[arguments.server])).await?;
    let session = client.udp().await?;
    session.send(b"anybody there?", &arguments.udp.to_string())?;
    let mut stream = client.tcp(&arguments.source.to_string()).await?;
    let mut buffer = vec![0; 64 << 10];
    stream.read_exact(&mut buffer).await?;
    println!("downloading");
    loop {
        if stream.read(&mut buffer).await? == 0 {
            bail!("the source ended");
        }
    }
}

/// Draws of no quality, the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
