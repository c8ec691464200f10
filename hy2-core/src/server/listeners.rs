//! The sockets of a server: added, retired and changed while connections live.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{AsyncUdpSocket, Connection, Endpoint, TokioRuntime};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;

use super::{ServerConfig, Shared, accept};
use crate::{
    error::BindError,
    event::ConnectionId,
    quic::{self, ResetKey, ServerBase, close},
    socket::{self, Obfuscation, ObfuscationChanger, SocketStats},
};

/// How long connections under an obfuscation that ends have to hear that they are over.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long until the connections of a listener that ends are closed again, those among them that were established since.
const CLOSE_AGAIN: Duration = Duration::from_millis(100);

/// What to listen on.
pub(super) enum Listen {
    Address(SocketAddr),
    Socket(std::net::UdpSocket),
    Abstract(Arc<dyn AsyncUdpSocket>),
}

impl Listen {
    fn address(&self) -> SocketAddr {
        let local = match self {
            Self::Address(address) => Ok(*address),
            Self::Socket(socket) => socket.local_addr(),
            Self::Abstract(socket) => socket.local_addr(),
        };
        local.unwrap_or_else(|_| ([0, 0, 0, 0], 0).into())
    }
}

/// All listeners of a server.
pub(crate) struct Listeners {
    base: ServerBase,
    key: ResetKey,
    /// The accepting tasks and those that wait for a drain to be over.
    pub(super) tasks: TaskTracker,
    inner: Mutex<Inner>,
}

struct Inner {
    open: Vec<Listener>,
    obfuscation: Obfuscation,
    previous: Option<Obfuscation>,
    /// Ends the previous obfuscation in time.
    changeover: Option<AbortHandle>,
    /// The server is over.
    closed: bool,
}

struct Listener {
    asked: SocketAddr,
    endpoint: Endpoint,
    stats: Option<Arc<SocketStats>>,
    obfuscation: Option<ObfuscationChanger>,
    present: Arc<Present>,
    accepting: AbortHandle,
    /// Closes the listener after its drain; it takes no new client meanwhile.
    retiring: Option<AbortHandle>,
}

impl Listeners {
    pub(super) fn new(base: ServerBase, key: ResetKey, config: &ServerConfig) -> Self {
        Self {
            base,
            key,
            tasks: TaskTracker::new(),
            inner: Mutex::new(Inner {
                open: Vec::new(),
                obfuscation: config.obfuscation.clone(),
                previous: None,
                changeover: None,
                closed: false,
            }),
        }
    }

    /// Bytes that the obfuscation adds to a datagram at most.
    pub(super) fn overhead(&self) -> u16 {
        let inner = self.inner.lock();
        let previous = inner.previous.as_ref().map_or(0, Obfuscation::overhead);
        inner.obfuscation.overhead().max(previous)
    }

    pub(super) fn local_addrs(&self) -> Vec<SocketAddr> {
        let inner = self.inner.lock();
        let serving = inner.open.iter().filter(|one| one.retiring.is_none());
        serving
            .filter_map(|one| one.endpoint.local_addr().ok())
            .collect()
    }

    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let inner = self.inner.lock();
        inner.open.iter().map(|one| one.endpoint.clone()).collect()
    }

    /// Opens a listener. One that drains on the same address takes clients again.
    pub(super) fn open(
        &self,
        shared: &Arc<Shared>,
        listen: Listen,
    ) -> Result<SocketAddr, BindError> {
        let address = listen.address();
        let fail = |source: io::Error| BindError::Listen { address, source };
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(fail(io::Error::other("the server is over")));
        }
        if let Listen::Address(asked) = &listen
            && let Some(known) = inner.open.iter_mut().find(|one| one.is_at(*asked))
        {
            let Some(retiring) = known.retiring.take() else {
                return Err(fail(io::ErrorKind::AddrInUse.into()));
            };
            retiring.abort();
            known
                .endpoint
                .set_server_config(Some(self.base.listening()));
            return known.endpoint.local_addr().map_err(fail);
        }
        let (socket, stats, obfuscation) =
            bind(listen, &shared.config, &inner.obfuscation).map_err(fail)?;
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::endpoint_config(Some(&self.key)),
            Some(self.base.listening()),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(fail)?;
        let bound = endpoint.local_addr().map_err(fail)?;
        let present = Arc::<Present>::default();
        let run = accept::run(
            Arc::clone(shared),
            endpoint.clone(),
            self.base.clone(),
            Arc::clone(&present),
        );
        let accepting = self.tasks.spawn(run).abort_handle();
        inner.open.push(Listener {
            asked: address,
            endpoint,
            stats,
            obfuscation,
            present,
            accepting,
            retiring: None,
        });
        Ok(bound)
    }

    /// Lets no new client in at `address`, and closes it when its connections are over or `grace`
    /// is; `false` when no listener takes clients there.
    pub(super) fn retire(
        &self,
        shared: &Arc<Shared>,
        address: SocketAddr,
        grace: Duration,
    ) -> bool {
        let mut inner = self.inner.lock();
        let serving = inner
            .open
            .iter_mut()
            .find(|one| one.is_at(address) && one.retiring.is_none());
        let Some(listener) = serving else {
            return false;
        };
        listener.endpoint.set_server_config(None);
        let endpoint = listener.endpoint.clone();
        let present = Arc::clone(&listener.present);
        let shared = Arc::clone(shared);
        let closing = self.tasks.spawn(async move {
            let _ = timeout(grace, endpoint.wait_idle()).await;
            // Its connections, and not the endpoint: that would never take clients again, and until the peers were
            // told the listener may be wanted back.
            let told = async {
                loop {
                    present.close();
                    // A handshake may have been under way.
                    if timeout(CLOSE_AGAIN, endpoint.wait_idle()).await.is_ok() {
                        break;
                    }
                }
            };
            let _ = timeout(super::CLOSING_MAX, told).await;
            let mut inner = shared.listeners.inner.lock();
            let own = |one: &Listener| {
                let retiring = one.retiring.as_ref();
                retiring.is_some_and(|retiring| retiring.id() == tokio::task::id())
            };
            if let Some(at) = inner.open.iter().position(own) {
                let over = inner.open.swap_remove(at);
                over.endpoint.close(close::OK, b"");
            }
        });
        listener.retiring = Some(closing.abort_handle());
        true
    }

    /// Speaks `current`, and `previous` beside it until then; connections under any other end.
    pub(super) fn change_obfuscation(
        &self,
        shared: &Arc<Shared>,
        current: Obfuscation,
        previous: Option<(Obfuscation, Instant)>,
    ) {
        let mut inner = self.inner.lock();
        if let Some(changeover) = inner.changeover.take() {
            changeover.abort();
        }
        let previous =
            previous.filter(|(previous, until)| *previous != current && *until > Instant::now());
        let connections = shared.all_connections();
        for listener in &inner.open {
            let Some(changer) = &listener.obfuscation else {
                continue;
            };
            let mut peers = HashSet::new();
            for connection in &connections {
                let remote = connection.remote_address();
                let spoken = changer.towards(&remote);
                match &previous {
                    _ if spoken.as_ref() == Some(&current) => {}
                    Some((previous, _)) if spoken.as_ref() == Some(previous) => {
                        peers.insert(remote);
                    }
                    // Its answer goes out under the old one, before the change.
                    _ => connection.close(close::OK, b""),
                }
            }
            let recogniser = self.key.recogniser();
            let previous = previous
                .as_ref()
                .map(|(previous, _)| (previous, peers, recogniser));
            changer.change(&current, previous);
        }
        inner.obfuscation = current;
        inner.previous = previous.as_ref().map(|(previous, _)| previous.clone());
        if let Some((_, until)) = previous {
            let shared = Arc::clone(shared);
            let task = self.tasks.spawn(async move {
                sleep_until(until).await;
                shared.listeners.end_previous(&shared);
                sleep(FAREWELL).await;
                let mut inner = shared.listeners.inner.lock();
                let current = inner.obfuscation.clone();
                inner.previous = None;
                for changer in inner.open.iter().filter_map(|one| one.obfuscation.as_ref()) {
                    changer.change(&current, None);
                }
            });
            inner.changeover = Some(task.abort_handle());
        }
    }

    /// Closes the connections that are under the previous obfuscation.
    fn end_previous(&self, shared: &Arc<Shared>) {
        let inner = self.inner.lock();
        let Some(previous) = &inner.previous else {
            return;
        };
        for connection in shared.all_connections() {
            let remote = connection.remote_address();
            let changers = inner.open.iter().filter_map(|one| one.obfuscation.as_ref());
            if changers
                .filter_map(|changer| changer.towards(&remote))
                .any(|spoken| spoken == *previous)
            {
                connection.close(close::OK, b"");
            }
        }
    }

    /// Closes everything and ends the accepting tasks.
    pub(super) fn abort(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        if let Some(changeover) = inner.changeover.take() {
            changeover.abort();
        }
        for listener in inner.open.drain(..) {
            listener.endpoint.close(close::OK, b"");
            listener.accepting.abort();
            if let Some(retiring) = listener.retiring {
                retiring.abort();
            }
        }
    }

    /// Lets go of the sockets and returns their figures, which they share until they are closed.
    pub(super) fn clear(&self) -> Vec<Arc<SocketStats>> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        if let Some(changeover) = inner.changeover.take() {
            changeover.abort();
        }
        let open = inner.open.drain(..);
        open.filter_map(|listener| {
            if let Some(retiring) = listener.retiring {
                retiring.abort();
            }
            listener.stats
        })
        .collect()
    }
}

/// The established connections of one listener.
#[derive(Debug, Default)]
pub(super) struct Present(Mutex<HashMap<ConnectionId, Connection>>);

impl Present {
    /// Notes one until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>, id: ConnectionId, connection: &Connection) -> Entered {
        self.0.lock().insert(id, connection.clone());
        Entered(Arc::clone(self), id)
    }

    fn close(&self) {
        for connection in self.0.lock().values() {
            connection.close(close::OK, b"");
        }
    }
}

/// A connection of a listener.
#[derive(Debug)]
pub(super) struct Entered(Arc<Present>, ConnectionId);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

impl Listener {
    fn is_at(&self, address: SocketAddr) -> bool {
        self.endpoint
            .local_addr()
            .is_ok_and(|bound| bound == address)
            || (self.asked == address && address.port() != 0)
    }
}

impl Shared {
    /// Every established connection, let in or not.
    fn all_connections(&self) -> Vec<Connection> {
        let mut all = self.counts.strangers();
        let members = self.registry.members();
        all.extend(members.into_iter().map(|member| member.connection));
        all
    }
}

type Bound = (
    Arc<dyn AsyncUdpSocket>,
    Option<Arc<SocketStats>>,
    Option<ObfuscationChanger>,
);

fn bind(listen: Listen, config: &ServerConfig, obfuscation: &Obfuscation) -> io::Result<Bound> {
    let socket = match listen {
        Listen::Address(address) => socket::bind(address, &config.socket)?,
        Listen::Socket(socket) => socket,
        Listen::Abstract(socket) => return Ok((socket, None, None)),
    };
    let socket = socket::server_socket(socket, obfuscation, &config.socket)?;
    Ok((
        socket.socket(),
        Some(Arc::clone(socket.stats())),
        socket.changer(),
    ))
}
