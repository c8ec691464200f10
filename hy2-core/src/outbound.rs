//! How the server reaches targets: the [`Outbound`] trait, and [`Direct`] which dials them itself.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Duration,
};

use hy2_proto::address::{Address, Host};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::{TcpSocket, TcpStream, UdpSocket},
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout},
};

use crate::BoxFuture;

mod own;

/// A TCP connection to a target. Vectored writes are used when supported.
pub trait TcpConnection: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Makes the coming drop a cut that the target can tell from an end.
    ///
    /// Called when the client did not end its side in order: it reset the stream, its connection
    /// was lost, or the server ended it. A TCP socket is reset then, and what it has not sent yet
    /// is lost. The default does nothing, which is right where there is no such difference.
    fn cut(&mut self) {}
}

impl TcpConnection for TcpStream {
    fn cut(&mut self) {
        // Fails only when the connection is over already.
        let _ = self.set_zero_linger();
    }
}

impl TcpConnection for DuplexStream {}

impl<T: TcpConnection + ?Sized> TcpConnection for Box<T> {
    fn cut(&mut self) {
        (**self).cut();
    }
}

/// A UDP association of one session: one local socket, any number of destinations (full cone).
pub trait UdpAssociation: Send + Sync + 'static {
    /// Sends one datagram now, or reports `WouldBlock`; UDP may lose it either way.
    ///
    /// # Errors
    ///
    /// The socket's error. `PermissionDenied` when policy refuses the destination.
    fn try_send_to(&self, data: &[u8], destination: SocketAddr) -> io::Result<()>;

    /// Receives one datagram into `buf` and returns its length and source.
    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>>;

    /// Finds the address to send to for a destination named by the client.
    ///
    /// # Errors
    ///
    /// [`DialError::Denied`] when policy refuses every address of it.
    fn resolve<'a>(&'a self, target: &'a Address) -> BoxFuture<'a, Result<SocketAddr, DialError>>;

    /// Decides about a literal destination without waiting; `None` means [`Self::resolve`] it.
    ///
    /// # Errors
    ///
    /// [`DialError::Denied`] when policy refuses it.
    fn resolve_now(&self, target: &Address) -> Option<Result<SocketAddr, DialError>> {
        let _ = target;
        None
    }
}

/// Reaches targets on behalf of clients. Called for every TCP stream and UDP session.
///
/// Policy belongs here: the implementation judges the **resolved** address and dials that very
/// address, so that a name cannot be rebound in between.
pub trait Outbound: Send + Sync + 'static {
    /// Opens a TCP connection to `target`.
    ///
    /// # Errors
    ///
    /// A [`DialError`]; only its class reaches the client.
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>>;

    /// Opens a UDP association; `first` is the destination of its first datagram.
    ///
    /// # Errors
    ///
    /// A [`DialError`]; the datagram is dropped.
    fn udp<'a>(
        &'a self,
        first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>>;
}

impl<O: Outbound + ?Sized> Outbound for Arc<O> {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        (**self).tcp(target)
    }

    fn udp<'a>(
        &'a self,
        first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        (**self).udp(first)
    }
}

/// Why a target could not be reached.
///
/// The client is told the class (see [`DialError::class`]) and never the details: they would turn
/// the server into a port scanner and an oracle for its internal names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The target's name has no address.
    #[error("name does not resolve")]
    Unresolvable(#[source] Option<io::Error>),
    /// The target refused the connection.
    #[error("connection refused")]
    Refused(#[source] io::Error),
    /// No route to the target.
    #[error("target unreachable")]
    Unreachable(#[source] io::Error),
    /// The target did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// Policy does not allow this target.
    #[error("target not allowed")]
    Denied,
    /// The server could not open a socket.
    #[error("local failure")]
    Local(#[source] io::Error),
}

impl DialError {
    /// Returns the fixed text that a client is told.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Unresolvable(_) => "name does not resolve",
            Self::Refused(_) => "connection refused",
            Self::Unreachable(_) => "target unreachable",
            Self::TimedOut => "timed out",
            Self::Denied => "not allowed",
            Self::Local(_) => "server failure",
        }
    }

    /// Says now and then in the log that the process has no file descriptor left: the client is told
    /// no more than [`Self::class`], and the operator would look everywhere else.
    pub(crate) fn warn_of_descriptors(&self) {
        static SAID: Mutex<Option<Instant>> = Mutex::new(None);
        let Self::Local(error) = self else {
            return;
        };
        if !error.raw_os_error().is_some_and(is_out_of_descriptors) {
            return;
        }
        let mut said = SAID.lock();
        if said.is_none_or(|said| said.elapsed() >= QUIET) {
            *said = Some(Instant::now());
            tracing::warn!(%error, "targets are not reached: raise the limit of open files");
        }
    }
}

/// Every stream may fail for the same reason; the log need not say so each time.
const QUIET: Duration = Duration::from_secs(5);

/// Whether an error of the system means that the process, or the host, has no descriptor left.
fn is_out_of_descriptors(error: i32) -> bool {
    cfg!(unix) && matches!(error, libc::EMFILE | libc::ENFILE)
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused | K::ConnectionReset => Self::Refused(error),
            K::HostUnreachable | K::NetworkUnreachable | K::AddrNotAvailable => {
                Self::Unreachable(error)
            }
            K::TimedOut => Self::TimedOut,
            K::PermissionDenied => Self::Denied,
            _ => Self::Local(error),
        }
    }
}

/// Where mail servers take mail from each other.
const MAIL: u16 = 25;

/// Which addresses [`Direct`] may dial.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    allow_private: bool,
    allow_mail: bool,
    allowed: Vec<IpNet>,
}

impl AddressPolicy {
    /// Refuses every range that is not globally routable, every address of this machine's own, and TCP to port 25;
    /// the default.
    pub fn public_only() -> Self {
        Self::default()
    }

    /// Allows every address, as the reference does.
    pub fn allow_all() -> Self {
        Self {
            allow_private: true,
            allow_mail: true,
            allowed: Vec::new(),
        }
    }

    /// Also allows TCP to port 25: users may send mail from this machine's address.
    pub fn allow_mail(mut self) -> Self {
        self.allow_mail = true;
        self
    }

    /// Also allows `net`, though it is private or this machine's own.
    pub fn allow(mut self, net: IpNet) -> Self {
        self.allowed.push(net);
        self
    }

    /// Tells whether `ip` may be dialled.
    pub fn permits(&self, ip: IpAddr) -> bool {
        self.allow_private
            || (is_public(ip) && !own::is_own(ip.to_canonical()))
            || self.allowed.iter().any(|net| net.contains(&ip))
    }

    fn permits_tcp_port(&self, port: u16) -> bool {
        self.allow_mail || port != MAIL
    }
}

/// Dials targets from this host.
#[derive(Debug, Clone)]
pub struct Direct {
    policy: Arc<AddressPolicy>,
    connect_timeout: Duration,
    udp_buffer: usize,
}

impl Default for Direct {
    fn default() -> Self {
        Self::new(AddressPolicy::public_only())
    }
}

impl Direct {
    /// Dials what `policy` permits, with the reference's 10 s limit per connection.
    pub fn new(policy: AddressPolicy) -> Self {
        Self {
            policy: Arc::new(policy),
            connect_timeout: Duration::from_secs(10),
            udp_buffer: 1 << 20,
        }
    }

    /// Gives up on a TCP connection after `limit`, over all addresses of the target.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    async fn addresses(&self, target: &Address) -> Result<Vec<SocketAddr>, DialError> {
        resolve_permitted(&self.policy, target).await
    }

    async fn dial(&self, target: &Address) -> Result<TcpStream, DialError> {
        if !self.policy.permits_tcp_port(target.port) {
            return Err(DialError::Denied);
        }
        let addresses = self.addresses(target).await?;
        // The usual case needs no race, and no task for it.
        if let [address] = *addresses {
            return Ok(connect(address).await?);
        }
        // Next address after 250 ms or at the first failure (RFC 8305 §5).
        let mut attempts = JoinSet::new();
        let mut addresses = addresses.into_iter().peekable();
        let mut last = DialError::TimedOut;
        loop {
            if let Some(address) = addresses.next() {
                attempts.spawn(connect(address));
            }
            let next_due = async {
                if addresses.peek().is_some() {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                finished = attempts.join_next() => match finished {
                    Some(Ok(Ok(stream))) => return Ok(stream),
                    Some(Ok(Err(error))) => last = error.into(),
                    Some(Err(panic)) => last = DialError::Local(io::Error::other(panic)),
                    None => return Err(last),
                },
                () = next_due => {}
            }
            if attempts.is_empty() && addresses.peek().is_none() {
                return Err(last);
            }
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Lookups at once, of everybody. Each takes one of the runtime's 512 blocking threads until the
/// system's resolver gives up, and the masquerade's files are read on such threads too.
const LOOKUPS: usize = 384;

/// Lookups at once of one user: who names hosts that nobody resolves waits for himself.
const LOOKUPS_OF_ONE: usize = 32;

static EVERYBODYS_LOOKUPS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(LOOKUPS)));

tokio::task_local! {
    /// The turns of the user on whose behalf a task reaches a target.
    static OWN_LOOKUPS: Arc<Semaphore>;
}

/// The turns of one user at looking names up.
#[derive(Debug, Clone)]
pub(crate) struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_OF_ONE)))
    }
}

impl Lookups {
    /// Has what `work` looks up, in this task, wait for a turn of these.
    pub(crate) async fn of<F: Future>(&self, work: F) -> F::Output {
        OWN_LOOKUPS.scope(Arc::clone(&self.0), work).await
    }
}

/// Does what blocks a thread when it is the user's turn. The turn lasts as long as the thread is taken, also when nobody
/// waits for the result any more: who asks and goes away would have as many threads as he likes.
async fn in_turn<T: Send + 'static>(lookup: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    // Neither is ever closed.
    let own = match OWN_LOOKUPS.try_with(Arc::clone) {
        Ok(own) => own.acquire_owned().await.ok(),
        Err(_) => None,
    };
    let turn = Arc::clone(&EVERYBODYS_LOOKUPS).acquire_owned().await.ok();
    let done = spawn_blocking(move || {
        let _turns = (own, turn);
        lookup()
    });
    done.await.map_err(io::Error::other)
}

async fn resolve_permitted(
    policy: &AddressPolicy,
    target: &Address,
) -> Result<Vec<SocketAddr>, DialError> {
    let name = match &target.host {
        Host::Ip(ip) if policy.permits(*ip) => return Ok(vec![SocketAddr::new(*ip, target.port)]),
        Host::Ip(_) => return Err(DialError::Denied),
        Host::Domain(name) => name,
    };
    let asked = (name.to_string(), target.port);
    let found: Vec<SocketAddr> = in_turn(move || asked.to_socket_addrs())
        .await
        .and_then(|found| found)
        .map_err(|error| DialError::Unresolvable(Some(error)))?
        .collect();
    if found.is_empty() {
        return Err(DialError::Unresolvable(None));
    }
    let permitted: Vec<SocketAddr> = found
        .into_iter()
        .filter(|address| policy.permits(address.ip()))
        .collect();
    if permitted.is_empty() {
        return Err(DialError::Denied);
    }
    Ok(permitted)
}

impl Outbound for Direct {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        Box::pin(async move {
            let stream = timeout(self.connect_timeout, self.dial(target))
                .await
                .map_err(|_| DialError::TimedOut)??;
            Ok(Box::new(stream) as Box<dyn TcpConnection>)
        })
    }

    fn udp<'a>(
        &'a self,
        _first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        Box::pin(async move {
            let socket = open_udp(self.udp_buffer)?;
            Ok(Box::new(DirectUdp {
                dual_stack: socket.local_addr()?.is_ipv6(),
                socket,
                policy: Arc::clone(&self.policy),
            }) as Box<dyn UdpAssociation>)
        })
    }
}

/// Opens a socket that reaches both families, or IPv4 alone where IPv6 is off.
fn open_udp(buffer: usize) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let dual = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).and_then(|socket| {
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
        Ok(socket)
    });
    let socket = match dual {
        Ok(socket) => socket,
        Err(_) => {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
            socket
        }
    };
    socket.set_nonblocking(true)?;
    // The default of many hosts (208 KiB) drops bursts; the kernel caps what is not allowed.
    let _ = socket.set_recv_buffer_size(buffer);
    let _ = socket.set_send_buffer_size(buffer);
    UdpSocket::from_std(socket.into())
}

struct DirectUdp {
    socket: UdpSocket,
    policy: Arc<AddressPolicy>,
    dual_stack: bool,
}

impl UdpAssociation for DirectUdp {
    fn try_send_to(&self, data: &[u8], destination: SocketAddr) -> io::Result<()> {
        let destination = match destination {
            SocketAddr::V4(v4) if self.dual_stack => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            other => other,
        };
        // Past tokio's readiness, which is unknown until the first event and is not needed: a full
        // socket buffer loses the datagram either way.
        socket2::SockRef::from(&self.socket)
            .send_to(data, &destination.into())
            .map(|_| ())
    }

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        self.socket
            .poll_recv_from(cx, buf)
            .map_ok(|source| SocketAddr::new(source.ip().to_canonical(), source.port()))
    }

    fn resolve<'a>(&'a self, target: &'a Address) -> BoxFuture<'a, Result<SocketAddr, DialError>> {
        Box::pin(async move {
            let found = resolve_permitted(&self.policy, target).await?;
            found
                .iter()
                .find(|address| self.dual_stack || address.is_ipv4())
                .copied()
                .ok_or(DialError::Unresolvable(None))
        })
    }

    fn resolve_now(&self, target: &Address) -> Option<Result<SocketAddr, DialError>> {
        let address = target.socket_addr()?;
        Some(if self.policy.permits(address.ip()) {
            Ok(address)
        } else {
            Err(DialError::Denied)
        })
    }
}

/// Tells whether an address is globally routable: not one of the special-purpose ranges of the
/// IANA registries (RFC 6890), with embedded IPv4 addresses judged as such, and not the metadata
/// service of a cloud.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 168)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || a >= 224;
    // Metadata service outside those ranges (Azure's wire server).
    !special && ip != Ipv4Addr::new(168, 63, 129, 16)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let s = ip.segments();
    if s[..6] == [0; 6] {
        // ::/96 with the loopback, the unspecified and the deprecated compatible addresses.
        return false;
    }
    if s[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
        let [a, b] = s[6].to_be_bytes();
        let [c, d] = s[7].to_be_bytes();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    let special = (s[0] == 0x64 && s[1] == 0xff9b && s[2] == 1)
        || (s[0] == 0x100 && s[1] == 0 && s[2] == 0 && s[3] == 0)
        || (s[0] == 0x2001 && s[1] < 0x200)
        || (s[0] == 0x2001 && s[1] == 0xdb8)
        || s[0] == 0x2002
        || s[0] == 0x3fff
        || s[0] == 0x5f00
        || (s[0] & 0xfe00) == 0xfc00
        || (s[0] & 0xffc0) == 0xfe80
        || (s[0] & 0xffc0) == 0xfec0
        || s[0] >= 0xff00;
    !special
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[tokio::test]
    async fn who_names_hosts_that_nobody_resolves_waits_for_himself() {
        let (evil, good) = (Lookups::default(), Lookups::default());
        let begun = Arc::new(AtomicUsize::new(0));
        let (resolver, silence) = std::sync::mpsc::channel::<()>();
        let silence = Arc::new(Mutex::new(silence));
        let ask = || {
            let (evil, begun, silence) = (evil.clone(), Arc::clone(&begun), Arc::clone(&silence));
            async move {
                let lookup = move || {
                    begun.fetch_add(1, SeqCst);
                    let _ = silence.lock().recv();
                };
                evil.of(in_turn(lookup)).await
            }
        };
        let begins = async |count| {
            while begun.load(SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Asks, goes away, and asks again: what was begun goes on, and nothing beside it.
        for _ in 0..2 {
            let mut asking = JoinSet::new();
            for _ in 0..500 {
                asking.spawn(ask());
            }
            begins(LOOKUPS_OF_ONE).await;
            assert_eq!(good.of(in_turn(|| 7)).await.expect("no panic"), 7);
            asking.shutdown().await;
        }
        assert_eq!(begun.load(SeqCst), LOOKUPS_OF_ONE);
        drop(resolver);
        ask().await.expect("a turn that came back");
    }

    #[test]
    fn want_of_descriptors_is_told_from_other_failures() {
        assert!(is_out_of_descriptors(libc::EMFILE) && is_out_of_descriptors(libc::ENFILE));
        assert!(!is_out_of_descriptors(libc::ECONNREFUSED));
        DialError::Local(io::Error::from_raw_os_error(libc::EMFILE)).warn_of_descriptors();
    }

    #[test]
    fn special_ranges_are_not_public() {
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "3fff::1",
        ];
        for ip in refused {
            assert!(!is_public(ip.parse().expect(ip)), "{ip}");
        }
    }

    #[test]
    fn ordinary_addresses_are_public() {
        let fine = [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::8a",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ];
        for ip in fine {
            assert!(is_public(ip.parse().expect(ip)), "{ip}");
        }
    }

    #[test]
    fn a_policy_can_open_single_ranges() {
        let policy = AddressPolicy::public_only().allow("10.1.0.0/16".parse().expect("net"));
        assert!(policy.permits("10.1.2.3".parse().expect("ip")));
        assert!(!policy.permits("10.2.2.3".parse().expect("ip")));
        assert!(AddressPolicy::allow_all().permits("127.0.0.1".parse().expect("ip")));
    }

    #[tokio::test]
    async fn nobody_sends_mail_from_here_unless_allowed() {
        let target: Address = "127.0.0.1:25".parse().expect("address");
        let local = || AddressPolicy::public_only().allow("127.0.0.0/8".parse().expect("net"));
        let refused = Direct::new(local()).tcp(&target).await;
        assert!(matches!(refused, Err(DialError::Denied)));
        // Nobody listens there.
        let dialled = Direct::new(local().allow_mail()).tcp(&target).await;
        assert!(matches!(dialled, Err(DialError::Refused(_))));
    }

    #[tokio::test]
    async fn a_name_is_judged_by_its_address() {
        let direct = Direct::default();
        let target: Address = "localhost:1".parse().expect("address");
        assert!(matches!(direct.tcp(&target).await, Err(DialError::Denied)));
    }

    #[tokio::test]
    async fn refusal_and_missing_names_have_their_classes() {
        let direct = Direct::new(AddressPolicy::allow_all());
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = free.local_addr().expect("addr").port();
        drop(free);
        let refused: Address = format!("127.0.0.1:{port}").parse().expect("address");
        assert!(matches!(
            direct.tcp(&refused).await,
            Err(DialError::Refused(_))
        ));
        let nowhere: Address = "name.invalid:80".parse().expect("address");
        assert!(matches!(
            direct.tcp(&nowhere).await,
            Err(DialError::Unresolvable(_))
        ));
    }
}
