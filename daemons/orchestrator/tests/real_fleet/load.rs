//! Local programs that use a tunnel: streams and datagrams whose every byte is checked.
//!
//! Each has at most one chunk on its way in each direction, so that what is lost with a process
//! that is killed is known to be no more than that.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::JoinSet,
};

use crate::random::Random;

/// How a program gets into the tunnel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Door {
    /// SOCKS5.
    Socks(SocketAddr),
    /// Local ports that lead to one target.
    Forward { tcp: SocketAddr, udp: SocketAddr },
}

impl Door {
    /// Opens a stream.
    pub(crate) async fn tcp(self, target: SocketAddr) -> io::Result<TcpStream> {
        match self {
            Self::Socks(proxy) => {
                let (stream, reply) = socks(proxy, 1, target).await?;
                match reply[1] {
                    0 => Ok(stream),
                    code => Err(io::Error::other(format!("SOCKS5 reply {code}"))),
                }
            }
            Self::Forward { tcp, .. } => TcpStream::connect(tcp).await,
        }
    }

    /// Opens a UDP session.
    pub(crate) async fn udp(self, target: SocketAddr) -> io::Result<Datagrams> {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
        match self {
            Self::Socks(proxy) => {
                let (control, reply) = socks(proxy, 3, ([0, 0, 0, 0], 0).into()).await?;
                if reply[1] != 0 {
                    return Err(io::Error::other(format!("SOCKS5 reply {}", reply[1])));
                }
                let relay = u16::from_be_bytes([reply[8], reply[9]]);
                socket.connect(("127.0.0.1", relay)).await?;
                let mut head = vec![0, 0, 0];
                head.extend_from_slice(&request(1, target)[3..]);
                Ok(Datagrams {
                    socket,
                    head,
                    _control: Some(control),
                })
            }
            Self::Forward { udp, .. } => {
                socket.connect(udp).await?;
                Ok(Datagrams {
                    socket,
                    head: Vec::new(),
                    _control: None,
                })
            }
        }
    }
}

/// A UDP session of a local program.
#[derive(Debug)]
pub(crate) struct Datagrams {
    socket: UdpSocket,
    head: Vec<u8>,
    _control: Option<TcpStream>,
}

impl Datagrams {
    /// Sends a datagram and waits a moment for its echo.
    pub(crate) async fn exchange(&self, data: &[u8], wait: Duration) -> io::Result<bool> {
        let mut packet = self.head.clone();
        packet.extend_from_slice(data);
        self.socket.send(&packet).await?;
        let mut buf = vec![0; 65_536];
        let answered = tokio::time::timeout(wait, async {
            loop {
                // A refused port is reported on the next call.
                let read = self.socket.recv(&mut buf).await?;
                if buf[..read].get(self.head.len()..) == Some(data) {
                    return Ok::<_, io::Error>(());
                }
            }
        })
        .await;
        match answered {
            Ok(done) => done.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

fn request(command: u8, target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(target) = target else {
        panic!("the tests use IPv4");
    };
    let mut request = vec![5, command, 0, 1];
    request.extend_from_slice(&target.ip().octets());
    request.extend_from_slice(&target.port().to_be_bytes());
    request
}

async fn socks(
    proxy: SocketAddr,
    command: u8,
    target: SocketAddr,
) -> io::Result<(TcpStream, [u8; 10])> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(&[5, 1, 0]).await?;
    stream.read_exact(&mut [0; 2]).await?;
    stream.write_all(&request(command, target)).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    Ok((stream, reply))
}

/// What becomes of a stream that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnCut {
    /// It fails the test.
    Fail,
    /// Another takes its place, as soon as one can be opened.
    Reopen,
    /// It is over.
    End,
}

/// What streams do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) streams: usize,
    pub(crate) datagrams: usize,
    /// Largest chunk, bytes.
    pub(crate) chunk: usize,
    pub(crate) pause: Duration,
    pub(crate) on_cut: OnCut,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    rounds: AtomicU64,
    cuts: AtomicU64,
    live: AtomicU64,
}

/// Programs at work.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<Result<(), String>>,
}

/// How long a program waits for the echo of a datagram.
const DATAGRAM_WAIT: Duration = Duration::from_millis(500);

impl Load {
    /// Starts, and returns when every stream has made a round.
    pub(crate) async fn start(
        door: Door,
        targets: (SocketAddr, SocketAddr),
        plan: Plan,
        seed: u64,
    ) -> Self {
        let mut load = Self {
            shared: Arc::default(),
            tasks: JoinSet::new(),
        };
        let mut random = Random::of(seed);
        for _ in 0..plan.streams {
            let (shared, random) = (Arc::clone(&load.shared), Random::of(random.next()));
            load.tasks.spawn(async move {
                let told = format!("{door:?}");
                stream(door, targets.0, plan, random, &shared)
                    .await
                    .map_err(|error| format!("{told}: {error}"))
            });
        }
        for _ in 0..plan.datagrams {
            let (shared, random) = (Arc::clone(&load.shared), Random::of(random.next()));
            load.tasks
                .spawn(async move { datagrams(door, targets.1, plan, random, &shared).await });
        }
        let all = u64::try_from(plan.streams + plan.datagrams).expect("few");
        let deadline = tokio::time::Instant::now() + crate::PATIENCE;
        while load.shared.live.load(SeqCst) < all {
            if let Some(ended) = load.tasks.try_join_next() {
                panic!("a program ended before all had begun: {ended:?}");
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{door:?}: {} of {all} programs have begun",
                load.shared.live.load(SeqCst)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        load
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.shared.rounds.load(SeqCst)
    }

    /// Streams that were cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.shared.cuts.load(SeqCst)
    }

    /// Waits until so many more rounds were made, or everything is over.
    pub(crate) async fn more(&self, rounds: u64) {
        let wanted = self.rounds() + rounds;
        crate::soon("traffic", async {
            while self.rounds() < wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Ends every stream in order.
    pub(crate) async fn finish(mut self) {
        self.shared.stop.store(true, SeqCst);
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended.expect("no panic") {
                    panic!("{error}");
                }
            }
        };
        crate::soon("the end of the load", all).await;
    }

    /// Waits until every stream was cut, with [`OnCut::End`]; datagrams go on until told.
    pub(crate) async fn until_cut(&self, streams: usize) {
        let streams = u64::try_from(streams).expect("few");
        crate::soon("the cut of every stream", async {
            while self.cuts() < streams {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn stream(
    door: Door,
    target: SocketAddr,
    plan: Plan,
    mut random: Random,
    shared: &Shared,
) -> Result<(), String> {
    let mut begun = false;
    while !shared.stop.load(SeqCst) {
        let opened = tokio::time::timeout(crate::PATIENCE, door.tcp(target)).await;
        let mut tunnel = match opened {
            Ok(Ok(tunnel)) => tunnel,
            Ok(Err(_)) if plan.on_cut == OnCut::Reopen || !begun => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Ok(Err(error)) => return Err(format!("not opened: {error}")),
            Err(_) => return Err("not opened in time".to_owned()),
        };
        match rounds(&mut tunnel, plan, &mut random, shared, &mut begun).await {
            Ok(()) => {}
            Err(Broken::Wrong(what)) => return Err(what),
            Err(Broken::Cut(_)) if !begun => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(Broken::Cut(what)) => {
                shared.cuts.fetch_add(1, SeqCst);
                match plan.on_cut {
                    OnCut::Fail => return Err(format!("cut: {what}")),
                    OnCut::End => return Ok(()),
                    OnCut::Reopen => {}
                }
            }
        }
    }
    Ok(())
}

enum Broken {
    /// The tunnel ended.
    Cut(io::Error),
    /// It carried other bytes.
    Wrong(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Cut(error)
    }
}

async fn rounds(
    tunnel: &mut TcpStream,
    plan: Plan,
    random: &mut Random,
    shared: &Shared,
    begun: &mut bool,
) -> Result<(), Broken> {
    let mut back = vec![0; plan.chunk];
    while !shared.stop.load(SeqCst) {
        let sent = chunk(random, plan.chunk);
        tunnel.write_all(&sent).await?;
        let back = &mut back[..sent.len()];
        tunnel.read_exact(back).await?;
        if *back != sent {
            return Err(Broken::Wrong("other bytes came back".to_owned()));
        }
        shared.rounds.fetch_add(1, SeqCst);
        if !*begun {
            *begun = true;
            shared.live.fetch_add(1, SeqCst);
        }
        tokio::time::sleep(plan.pause).await;
    }
    tunnel.shutdown().await?;
    match tunnel.read(&mut back).await? {
        0 => Ok(()),
        _ => Err(Broken::Wrong("bytes after the end".to_owned())),
    }
}

/// Bytes that differ from those of every other round.
fn chunk(random: &mut Random, largest: usize) -> Vec<u8> {
    let length = usize::try_from(random.below(largest as u64)).expect("in range") + 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

async fn datagrams(
    door: Door,
    target: SocketAddr,
    plan: Plan,
    mut random: Random,
    shared: &Shared,
) -> Result<(), String> {
    let mut begun = false;
    while !shared.stop.load(SeqCst) {
        let Ok(session) = door.udp(target).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !shared.stop.load(SeqCst) {
            let mut data = chunk(&mut random, plan.chunk.min(1000));
            data.extend_from_slice(&random.next().to_le_bytes());
            match session.exchange(&data, DATAGRAM_WAIT).await {
                Ok(true) => {
                    shared.rounds.fetch_add(1, SeqCst);
                    if !begun {
                        begun = true;
                        shared.live.fetch_add(1, SeqCst);
                    }
                }
                // Lost, as datagrams may be, or the session is over: that is seen by nobody.
                Ok(false) => break,
                Err(_) => break,
            }
            tokio::time::sleep(plan.pause).await;
        }
    }
    Ok(())
}
