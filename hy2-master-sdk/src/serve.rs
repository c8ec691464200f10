//! Serves routers on the ports for people and programs. Connections have a bound, and where it is reached the one that
//! has asked for nothing the longest makes room: who connects and is silent keeps nobody out, and who does not take the
//! answers to what was asked does not either.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::response::Response;
use futures_util::task::AtomicWaker;
use http::Request;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::tls::{ListenerTls, Stream};

/// What a port allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections that are open at once.
    pub(crate) connections: usize,
    /// How long a TLS handshake may take.
    pub(crate) handshake: Duration,
    /// How long the head of the first request may take.
    pub(crate) first_head: Duration,
    /// How long a connection over HTTP/1 may wait for its next request, and that take for its head.
    pub(crate) next_head: Duration,
    /// How long a client may take nothing of its answers before its connection may have to make room.
    pub(crate) slow: Duration,
    /// How long a client may take nothing of its answers at all.
    pub(crate) stalled: Duration,
    /// How long a newcomer waits for the place of a connection that was cut.
    pub(crate) handover: Duration,
    /// How long what runs may go on after the end.
    pub(crate) grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2_048,
            handshake: Duration::from_secs(5),
            first_head: Duration::from_secs(10),
            // Longer than proxies keep idle connections to us: one that is closed under a request costs it.
            next_head: Duration::from_secs(75),
            slow: Duration::from_secs(5),
            // As proxies and web servers have it; streams of events send something every 15 s.
            stalled: Duration::from_secs(60),
            handover: Duration::from_millis(500),
            grace: Duration::from_secs(3),
        }
    }
}

/// Serves `router` until `stop`; then what runs may finish for a short while. The router is told where a connection
/// comes from ([`ConnectInfo`] of [`SocketAddr`]).
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<ListenerTls>,
    router: Router,
    stop: CancellationToken,
    limits: Limits,
) {
    let port = Port {
        tls,
        router,
        stop,
        limits,
        open: Arc::default(),
    };
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = port.stop.cancelled() => break,
            // Cancel safe: finished ones are let go.
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            // Cancel safe: a connection is accepted or stays in the backlog.
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of files, or a connection that is gone already.
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let place = match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) if port.open.cut_idlest(limits.slow) => {
                metrics::counter!("hy2_master_connections_cut_total").increment(1);
                // It gives its place back at once, unless it became a WebSocket meanwhile.
                let place = Arc::clone(&places).acquire_owned();
                match tokio::time::timeout(limits.handover, place).await {
                    Ok(Ok(place)) => place,
                    Ok(Err(_)) | Err(_) => continue,
                }
            }
            // All of them are at work.
            Err(_) => {
                metrics::counter!("hy2_master_connections_refused_total").increment(1);
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let connection = port.open.register();
        let cut = connection.asks.cut.clone();
        let answering = port.clone().answer(stream, address, connection, place);
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = answering => {}
            }
        });
    }
    drop(listener);
    let finish = async { while tasks.join_next().await.is_some() {} };
    // Streams of events never finish by themselves.
    let _ = tokio::time::timeout(limits.grace, finish).await;
}

#[derive(Clone)]
struct Port {
    tls: Option<ListenerTls>,
    router: Router,
    stop: CancellationToken,
    limits: Limits,
    open: Arc<Open>,
}

impl Port {
    async fn answer(
        self,
        stream: TcpStream,
        address: SocketAddr,
        connection: Connection,
        place: OwnedSemaphorePermit,
    ) {
        let stream = match &self.tls {
            None => Stream::plain(stream, place),
            Some(tls) => {
                let shaking = TlsAcceptor::from(tls.config()).accept(stream);
                let shaken = tokio::time::timeout(self.limits.handshake, shaking).await;
                let Ok(Ok(stream)) = shaken else {
                    metrics::counter!("hy2_master_handshakes_failed_total").increment(1);
                    return;
                };
                Stream::tls(stream, place)
            }
        };
        let (router, asks) = (self.router, Arc::clone(&connection.asks));
        let service = service_fn(move |mut request: Request<Incoming>| {
            let asked = asks.begin();
            request.extensions_mut().insert(ConnectInfo(address));
            let answer = router.clone().call(request.map(Body::new));
            async move {
                let response: Response = answer.await?;
                Ok::<_, std::convert::Infallible>(response.map(|body| Answering::new(body, asked)))
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.next_head)
            .max_buf_size(MAX_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            // A WebSocket may come over HTTP/2 (RFC 8441).
            .enable_connect_protocol()
            .keep_alive_interval(Some(Duration::from_secs(15)))
            .keep_alive_timeout(Duration::from_secs(5))
            .max_pending_accept_reset_streams(Some(20));
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let first = tokio::time::sleep(self.limits.first_head);
        let mut first = std::pin::pin!(first);
        let stalled = tokio::time::sleep(self.limits.stalled);
        let mut stalled = std::pin::pin!(stalled);
        let (mut ending, mut begun) = (false, false);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if !ending => {
                    ending = true;
                    serving.as_mut().graceful_shutdown();
                }
                // How it ends is the client's to say.
                _ = serving.as_mut() => return,
                () = first.as_mut(), if !begun => {
                    if !connection.asks.state.lock().asked {
                        return;
                    }
                    begun = true;
                }
                () = stalled.as_mut() => {
                    let since = connection.asks.stalled_since();
                    let next = since.unwrap_or_else(Instant::now) + self.limits.stalled;
                    if next <= Instant::now() {
                        metrics::counter!("hy2_master_connections_stalled_total").increment(1);
                        return;
                    }
                    stalled.as_mut().reset(next);
                }
            }
        }
    }
}

/// Most that is kept of a head over HTTP/1 that is not complete, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// The connections of a port.
#[derive(Debug, Default)]
struct Open {
    connections: Mutex<HashMap<u64, Arc<Asks>>>,
    next: AtomicU64,
}

impl Open {
    /// Registers a connection until the guard is dropped.
    fn register(self: &Arc<Self>) -> Connection {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let asks = Arc::new(Asks {
            state: Mutex::new(State {
                under_way: 0,
                waiting: 0,
                moved_at: Instant::now(),
                asked: false,
            }),
            cut: CancellationToken::new(),
        });
        self.connections.lock().insert(number, Arc::clone(&asks));
        Connection {
            open: Arc::clone(self),
            number,
            asks,
        }
    }

    /// Cuts the connection that has waited the longest for something to be asked, or for its client to take something
    /// of what was answered: for that it has the time of `slow`. False if all of them work.
    fn cut_idlest(&self, slow: Duration) -> bool {
        let mut connections = self.connections.lock();
        let idle = connections.iter().filter_map(|(number, asks)| {
            let state = asks.state.lock();
            let idle = match state.under_way {
                0 => true,
                _ => state.is_stalled() && state.moved_at.elapsed() >= slow,
            };
            idle.then_some((state.moved_at, *number))
        });
        let Some((_, number)) = idle.min() else {
            return false;
        };
        if let Some(asks) = connections.remove(&number) {
            asks.cut.cancel();
        }
        true
    }
}

/// A connection that is open.
#[derive(Debug)]
struct Connection {
    open: Arc<Open>,
    number: u64,
    asks: Arc<Asks>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.connections.lock().remove(&self.number);
    }
}

/// What a connection asks for.
#[derive(Debug)]
struct Asks {
    state: Mutex<State>,
    /// Cancelled when it has to make room.
    cut: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// Requests whose answers are not sent to their ends.
    under_way: usize,
    /// Those of them whose answers have something to send, and wait for the client to take it.
    waiting: usize,
    /// When something was asked, answered or sent last.
    moved_at: Instant,
    /// Whether there was a request.
    asked: bool,
}

impl State {
    /// Returns whether everything that is under way waits for the client.
    const fn is_stalled(&self) -> bool {
        self.under_way > 0 && self.waiting == self.under_way
    }
}

impl Asks {
    /// Notes a request until the guard is dropped.
    fn begin(self: &Arc<Self>) -> Asked {
        let mut state = self.state.lock();
        state.under_way += 1;
        state.moved_at = Instant::now();
        state.asked = true;
        let answer = Answer {
            asks: Arc::clone(self),
            turn: Mutex::new(Turn::Ours),
            transport: AtomicWaker::new(),
        };
        Asked(Arc::new(answer))
    }

    /// Returns since when everything that is under way waits for the client.
    fn stalled_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.is_stalled().then_some(state.moved_at)
    }
}

/// Who has to do something for an answer to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The one who answers.
    Ours,
    /// The client, by taking what there is: the transport asks for more when it has.
    Clients,
    /// Nobody: it is over.
    Over,
}

/// The answer to a request, made or to be made.
struct Answer {
    asks: Arc<Asks>,
    /// Changes under the lock of the connection's state.
    turn: Mutex<Turn>,
    transport: AtomicWaker,
}

impl Answer {
    fn pass(&self, to: Turn) {
        let mut state = self.asks.state.lock();
        let mut turn = self.turn.lock();
        if *turn == Turn::Over {
            return;
        }
        if *turn == Turn::Clients {
            state.waiting -= 1;
        }
        match to {
            Turn::Ours => {}
            Turn::Clients => state.waiting += 1,
            Turn::Over => state.under_way -= 1,
        }
        state.moved_at = Instant::now();
        *turn = to;
    }
}

/// What the body waited for is there. Whether the transport asks for it is the client's to say: it does not while the
/// client takes nothing.
impl Wake for Answer {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.pass(Turn::Clients);
        self.transport.wake();
    }
}

/// A request under way.
struct Asked(Arc<Answer>);

impl Drop for Asked {
    fn drop(&mut self) {
        // Wakers may live longer.
        self.0.pass(Turn::Over);
    }
}

/// The body of an answer; its request is under way until all of it is sent.
struct Answering {
    body: Body,
    asked: Asked,
    waker: Waker,
}

impl Answering {
    fn new(body: Body, asked: Asked) -> Self {
        asked.0.pass(Turn::Clients);
        let waker = Waker::from(Arc::clone(&asked.0));
        Self { body, asked, waker }
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, asked, waker } = &mut *self;
        let answer = &asked.0;
        answer.transport.register(cx.waker());
        // First, because it may be woken while it is asked.
        answer.pass(Turn::Ours);
        let polled = Pin::new(body).poll_frame(&mut Context::from_waker(waker));
        if polled.is_ready() {
            answer.pass(Turn::Clients);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Running {
        address: SocketAddr,
        stop: CancellationToken,
        serving: tokio::task::JoinHandle<()>,
    }

    impl Running {
        async fn start(limits: Limits) -> Self {
            let router = Router::new()
                .route("/", get(|| async { "ok" }))
                .route("/", post(|body: String| async { body }))
                .route(
                    "/large",
                    get(|| async {
                        let piece = Bytes::from(vec![0; 1 << 16]);
                        let pieces =
                            std::iter::repeat_n(Ok::<_, std::convert::Infallible>(piece), 1 << 10);
                        Body::from_stream(futures_util::stream::iter(pieces))
                    }),
                )
                .route(
                    "/endless",
                    get(|| async {
                        let first = futures_util::stream::iter([Ok::<_, std::io::Error>("begun")]);
                        let rest = futures_util::stream::pending();
                        Body::from_stream(futures_util::StreamExt::chain(first, rest))
                    }),
                );
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let serving = tokio::spawn(serve(listener, None, router, stop.clone(), limits));
            Self {
                address,
                stop,
                serving,
            }
        }

        async fn open(&self, text: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        }

        /// Asks over HTTP/2 as a client that takes so many bytes of each answer, and returns when the answer has begun.
        async fn open_http_2(&self, path: &str, window: u32) -> TcpStream {
            let mut stream = self.open("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
            // SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 §6.5.2).
            let settings = [&[0, 4], &window.to_be_bytes()[..]].concat();
            // GET, http, the path and the authority as literals (RFC 7541 §6.2.2).
            let length = u8::try_from(path.len()).unwrap();
            let fields = [&[0x82, 0x86, 4, length], path.as_bytes(), &[1, 1, b'a']].concat();
            for (kind, flags, number, payload) in [(4, 0, 0, settings), (1, 5, 1, fields)] {
                let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
                let head = [&length[1..], &[kind, flags, 0, 0, 0, number]].concat();
                stream.write_all(&[head, payload].concat()).await.unwrap();
            }
            let answered = async {
                loop {
                    let mut head = [0; 9];
                    stream.read_exact(&mut head).await.unwrap();
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                    let mut payload = vec![0; usize::try_from(length).unwrap()];
                    stream.read_exact(&mut payload).await.unwrap();
                    if head[3] == 1 {
                        break;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, answered).await.unwrap();
            stream
        }

        /// Asks again and again until there is an answer.
        async fn served(&self) -> TcpStream {
            let served = async {
                loop {
                    let mut stream = TcpStream::connect(self.address).await.unwrap();
                    let _ = stream.write_all(ASK.as_bytes()).await;
                    let mut read = [0; 12];
                    if stream.read_exact(&mut read).await.is_ok() {
                        assert_eq!(&read, b"HTTP/1.1 200");
                        return stream;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(PATIENCE, served).await.unwrap()
        }
    }

    /// Returns when the server has closed the connection.
    async fn ended(stream: &mut TcpStream) {
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }

    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
        let mut read = Vec::new();
        let reading = async {
            while !String::from_utf8_lossy(&read).contains(end) {
                assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "closed");
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap();
        String::from_utf8(read).unwrap()
    }

    /// Returns when the server has closed the connection.
    async fn closed(mut stream: TcpStream) {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        // A reset is an end as well.
        let _ = end.expect("never closed");
    }

    const ASK: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[tokio::test]
    async fn who_is_silent_or_never_ends_a_head_is_closed() {
        let limits = Limits {
            first_head: Duration::from_millis(300),
            next_head: Duration::from_millis(300),
            stalled: Duration::from_secs(1),
            ..Limits::default()
        };
        let running = Running::start(limits).await;
        for text in ["", "PRI * HT", "GET / HTTP/1.1\r\nHost: a\r\nX-"] {
            closed(running.open(text).await).await;
        }
        let mut idle = running.open(ASK).await;
        assert!(
            read_until(&mut idle, "ok")
                .await
                .starts_with("HTTP/1.1 200 ")
        );
        closed(idle).await;
        // A stream of events has asked, and is neither silent nor idle.
        let ask = "GET /endless HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut stream = running.open(ask).await;
        read_until(&mut stream, "begun").await;
        // Over HTTP/2 as well.
        let mut other = running.open_http_2("/endless", 1 << 16).await;
        let silent = tokio::time::timeout(Duration::from_secs(1), stream.read_u8()).await;
        // The chunk's end has come with it, or comes now.
        if let Ok(more) = silent {
            more.expect("not closed");
        }
        let silent = tokio::time::timeout(Duration::from_secs(1), ended(&mut other)).await;
        assert!(silent.is_err(), "closed");
        running.stop.cancel();
        closed(stream).await;
        running.serving.await.unwrap();
    }

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_makes_room() {
        let limits = Limits {
            connections: 2,
            slow: Duration::from_millis(100),
            ..Limits::default()
        };
        let running = Running::start(limits).await;
        let _http_2 = running.open_http_2("/", 0).await;
        let ask = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut http_1 = running.open(ask).await;
        http_1.read_u8().await.unwrap();
        let _others = (running.served().await, running.served().await);
        running.stop.cancel();
        running.serving.await.unwrap();
    }

    #[tokio::test]
    async fn who_takes_nothing_of_an_answer_for_long_is_closed() {
        let limits = Limits {
            connections: 3,
            slow: PATIENCE * 10,
            stalled: Duration::from_millis(300),
            ..Limits::default()
        };
        let running = Running::start(limits).await;
        let mut http_2 = running.open_http_2("/", 0).await;
        tokio::time::timeout(PATIENCE, ended(&mut http_2))
            .await
            .unwrap();
        // One that does not read would not see its end: that there is a place again says it.
        let mut unread = Vec::new();
        for _ in 0..3 {
            let ask = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n";
            let mut stream = running.open(ask).await;
            stream.read_u8().await.unwrap();
            unread.push(stream);
        }
        let _ = running.served().await;
        running.stop.cancel();
        running.serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_stalled_while_there_is_something_of_it_that_nobody_takes() {
        let open = Arc::new(Open::default());
        let connection = open.register();
        let asks = &connection.asks;
        let pass = || tokio::time::advance(Duration::from_secs(10));
        let (sender, receiver) = tokio::sync::mpsc::channel::<&str>(2);
        let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
            let piece = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(piece), receiver))
        });
        let asked = asks.begin();
        pass().await;
        assert_eq!(asks.stalled_since(), None, "no answer yet");
        let mut answering = Answering::new(Body::from_stream(pieces), asked);
        assert_eq!(asks.stalled_since(), Some(Instant::now()));
        assert!(answering.frame().now_or_never().is_none());
        pass().await;
        assert_eq!(asks.stalled_since(), None, "nothing to send yet");
        sender.try_send("a").unwrap();
        let sent_at = Instant::now();
        pass().await;
        assert_eq!(asks.stalled_since(), Some(sent_at));
        assert!(!open.cut_idlest(Duration::from_secs(11)));
        let taken = answering.frame().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(taken.into_data().unwrap(), "a");
        assert_eq!(asks.stalled_since(), Some(Instant::now()));
        let other = asks.begin();
        pass().await;
        assert_eq!(asks.stalled_since(), None, "another one is at work");
        assert!(!open.cut_idlest(Duration::ZERO));
        drop(other);
        pass().await;
        assert!(!asks.cut.is_cancelled());
        assert!(open.cut_idlest(Duration::from_secs(10)));
        assert!(asks.cut.is_cancelled());
        drop(answering);
        // Whoever holds a waker yet changes nothing.
        drop(sender);
        assert_eq!(asks.stalled_since(), None);
        assert_eq!(asks.state.lock().under_way, 0);
    }

    #[tokio::test]
    async fn a_newcomer_takes_the_place_of_the_idlest_and_of_nobody_at_work() {
        let limits = Limits {
            connections: 2,
            ..Limits::default()
        };
        let running = Running::start(limits).await;
        let ask = "GET /endless HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut first = running.open(ask).await;
        read_until(&mut first, "begun").await;
        let idle = running.open("").await;
        let mut second = running.open(ask).await;
        read_until(&mut second, "begun").await;
        closed(idle).await;
        // Both places are at work.
        closed(running.open(ASK).await).await;
        drop(first);
        let _ = running.served().await;
        running.stop.cancel();
        closed(second).await;
        running.serving.await.unwrap();
    }
}
