//! A whole client and server with a link between them that does no harm, in virtual time on one
//! thread: nothing waits for a clock, so the time it takes is the CPU's.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use hy2_core::{
    Address, BoxFuture, Client, ClientConfig, Server,
    authenticator::Password,
    client::{ServerAddress, UdpSession},
    memory::MemoryBudget,
    outbound::{DialError, Outbound, TcpConnection, UdpAssociation},
    rustls::{RootCertStore, pki_types::PrivateKeyDer},
    server::ServerConfig,
    tls::ServerTls,
};
use hy2_link_emulator::{
    memory::{Direction, MemorySocket, Network, Path},
    model::LinkConfig,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    runtime::{Builder, Runtime},
    sync::OnceCell,
};

const PASSWORD: &str = "a long enough password";

/// Bytes that a pipe holds in each direction, like a small socket buffer.
const PIPE: usize = 256 << 10;

/// Each way. Some, so that acknowledgements come in flocks as on a real path.
const DELAY: Duration = Duration::from_millis(1);

/// What one call of the origin moves.
const BLOCK: usize = 64 << 10;

/// Bytes of a relayed UDP datagram.
const DATAGRAM: usize = 1200;

/// A server, a client that is connected to it, and what is between them.
pub struct Stack {
    network: Network,
    path: Path,
    link: LinkConfig,
    roots: Arc<RootCertStore>,
    client: Client,
    /// Opened by the first datagram.
    session: OnceCell<UdpSession>,
    _server: Server,
    next_address: AtomicU16,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

/// Returns a runtime of one thread whose clock jumps whenever nothing is left to do.
///
/// # Panics
///
/// When the system gives it no files.
pub fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    let built = builder.enable_all().start_paused(true).build();
    built.expect("a runtime")
}

impl Stack {
    /// Starts both and connects.
    ///
    /// # Panics
    ///
    /// When that fails, which nothing here gives a reason for.
    pub async fn start() -> Self {
        let network = Network::new(7);
        let link = LinkConfig {
            delay: DELAY,
            ..LinkConfig::default()
        };
        let path = network.path(link, link);
        let (tls, roots) = certificate();
        let mut config = ServerConfig::default();
        config.memory = MemoryBudget::new(1 << 30);
        let server = Server::builder(tls)
            .abstract_socket(network.socket(address("10.0.0.1:443"), None))
            .authenticator(Password::new(PASSWORD))
            .outbound(Origin)
            .config(config)
            .bind()
            .expect("server");
        let socket = network.socket(address("10.0.0.2:40000"), Some(&path));
        let client = Client::connect(client_config(&roots, &socket));
        let client = client.await.expect("client");
        Self {
            network,
            path,
            link,
            roots,
            client,
            session: OnceCell::new(),
            _server: server,
            next_address: AtomicU16::new(1),
        }
    }

    /// Relays `bytes` from the origin to an application.
    ///
    /// # Panics
    ///
    /// When not all of them arrive.
    pub async fn download(&self, bytes: u64) {
        let (mut application, local) = duplex(PIPE);
        let stream = self.client.tcp("origin.test:1").await.expect("stream");
        let relay = tokio::spawn(stream.relay(local));
        let request = bytes.to_be_bytes();
        application.write_all(&request).await.expect("request");
        let mut block = vec![0; BLOCK];
        let mut got = 0;
        while got < bytes {
            let count = application.read(&mut block).await.expect("data");
            assert!(count > 0, "{got} of {bytes} bytes");
            got += count as u64;
        }
        drop(application);
        // How a relay ends that its application left is not the point.
        let _ = relay.await;
    }

    /// Relays `bytes` from an application to the origin, which says when it has them.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn upload(&self, bytes: u64) {
        let (mut application, local) = duplex(PIPE);
        let stream = self.client.tcp("origin.test:2").await.expect("stream");
        let relay = tokio::spawn(stream.relay(local));
        let request = bytes.to_be_bytes();
        application.write_all(&request).await.expect("request");
        let block = vec![7; BLOCK];
        let mut left = bytes;
        while left > 0 {
            let count = left.min(BLOCK as u64) as usize;
            application.write_all(&block[..count]).await.expect("taken");
            left -= count as u64;
        }
        let mut done = [0];
        application.read_exact(&mut done).await.expect("receipt");
        drop(application);
        let _ = relay.await;
    }

    /// Opens a stream, has 200 bytes echoed and closes it.
    ///
    /// # Panics
    ///
    /// When they do not come back.
    pub async fn request(&self) {
        let mut stream = self.client.tcp("origin.test:3").await.expect("stream");
        stream.write_all(&[7; 200]).await.expect("sent");
        let mut answer = [0; 200];
        stream.read_exact(&mut answer).await.expect("answer");
        stream.shutdown().await.expect("end");
    }

    /// Has `count` datagrams of 1,200 bytes echoed, one after the other, through one UDP session.
    ///
    /// # Panics
    ///
    /// When one does not come back.
    pub async fn datagrams(&self, count: u64) {
        let session = self
            .session
            .get_or_init(async || self.client.udp().await.expect("session"));
        let session = session.await;
        for _ in 0..count {
            session
                .send(&[7; DATAGRAM], "203.0.113.17:7")
                .expect("sent");
            let answer = session.recv().await.expect("answer");
            assert_eq!(answer.data.len(), DATAGRAM);
        }
    }

    /// Connects and authenticates one more client, and disconnects it.
    ///
    /// # Panics
    ///
    /// When it is not let in.
    pub async fn connect(&self) {
        let number = self.next_address.fetch_add(1, Relaxed);
        let path = self.network.path(self.link, self.link);
        let at = SocketAddr::from(([10, 1, (number >> 8) as u8, number as u8], 4000));
        let socket = self.network.socket(at, Some(&path));
        let client = Client::connect(client_config(&self.roots, &socket)).await;
        client.expect("client").close().await;
    }

    /// Returns how many datagrams the client's path carried, both ways.
    pub fn packets(&self) -> u64 {
        let count = |direction| self.path.counters(direction).offered_packets;
        count(Direction::Up) + count(Direction::Down)
    }
}

fn client_config(roots: &Arc<RootCertStore>, socket: &Arc<MemorySocket>) -> ClientConfig {
    let mut config = ClientConfig::new(ServerAddress::new("10.0.0.1", 443), PASSWORD);
    config.tls.roots = Some(Arc::clone(roots));
    config.tls.sni = Some("localhost".to_owned());
    config.memory = MemoryBudget::new(1 << 30);
    config.abstract_socket = Some(Arc::clone(socket) as _);
    config
}

fn certificate() -> (ServerTls, Arc<RootCertStore>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let certificate = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("root");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
    let tls = ServerTls::from_der(vec![certificate], key).expect("tls");
    (tls, Arc::new(roots))
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// Targets in memory: port 1 sends as many bytes as asked for, port 2 takes them, port 3 echoes, and so does UDP.
struct Origin;

impl Outbound for Origin {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        Box::pin(async {
            let (near, far) = duplex(PIPE);
            // Ends with its connection.
            tokio::spawn(serve(far, target.port));
            Ok(Box::new(near) as Box<dyn TcpConnection>)
        })
    }

    fn udp<'a>(
        &'a self,
        _: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        Box::pin(async { Ok(Box::new(Echo::default()) as Box<dyn UdpAssociation>) })
    }
}

/// An error is a peer that has gone.
async fn serve(mut stream: DuplexStream, port: u16) -> io::Result<()> {
    let mut block = vec![7; BLOCK];
    if port == 3 {
        let (mut reader, mut writer) = tokio::io::split(stream);
        tokio::io::copy(&mut reader, &mut writer).await?;
        return writer.shutdown().await;
    }
    let mut left = stream.read_u64().await?;
    while left > 0 {
        let count = left.min(BLOCK as u64) as usize;
        left -= if port == 1 {
            stream.write_all(&block[..count]).await?;
            count as u64
        } else {
            match stream.read(&mut block[..count]).await? {
                0 => return Ok(()),
                count => count as u64,
            }
        };
    }
    if port == 2 {
        stream.write_all(&[1]).await?;
    }
    stream.shutdown().await
}

/// Sends back what comes in.
#[derive(Default)]
struct Echo(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<Vec<u8>>,
    /// Buffers to use again, so that the target allocates nothing.
    spare: Vec<Vec<u8>>,
    reader: Option<Waker>,
}

impl UdpAssociation for Echo {
    fn try_send_to(&self, data: &[u8], _: SocketAddr) -> io::Result<()> {
        let mut waiting = self.0.lock();
        let mut datagram = waiting.spare.pop().unwrap_or_default();
        datagram.clear();
        datagram.extend_from_slice(data);
        waiting.datagrams.push_back(datagram);
        if let Some(reader) = waiting.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn poll_recv_from(
        &self,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        let mut waiting = self.0.lock();
        let Some(datagram) = waiting.datagrams.pop_front() else {
            waiting.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        buf.put_slice(&datagram);
        waiting.spare.push(datagram);
        Poll::Ready(Ok(([203, 0, 113, 17], 7).into()))
    }

    fn resolve<'a>(&'a self, target: &'a Address) -> BoxFuture<'a, Result<SocketAddr, DialError>> {
        Box::pin(async { target.socket_addr().ok_or(DialError::Unresolvable(None)) })
    }
}
