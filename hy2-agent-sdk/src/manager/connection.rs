//! One connection of NodeManager, and how long it may keep a place without using it.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

use crate::link;

/// Streams of one connection at once.
const STREAMS_MAX: u32 = 64;
const HEADERS_MAX: u32 = 16 << 10;
/// The first call comes within this time, whatever has to come before it.
const FIRST_CALL_MAX: Duration = Duration::from_secs(10);
/// A connection without a call stays for this time.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A request is there as a whole within this time.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// Who is told to go has gone within this time.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// What a connection is used for. A call lasts until its answer is complete.
#[derive(Debug)]
pub(super) struct Calls(Mutex<Use>);

#[derive(Debug)]
struct Use {
    running: usize,
    /// Whether there was a call.
    called: bool,
    /// Since when there is none, where none runs.
    since: Instant,
}

impl Default for Calls {
    fn default() -> Self {
        Self(Mutex::new(Use {
            running: 0,
            called: false,
            since: Instant::now(),
        }))
    }
}

impl Calls {
    fn begin(self: &Arc<Self>) -> Call {
        let mut used = self.0.lock();
        used.running += 1;
        used.called = true;
        Call(Arc::clone(self))
    }

    /// How little a connection would be missed, least first: whether it was ever used, and since
    /// when it is not. `None` while a call runs.
    pub(super) fn idle(&self) -> Option<(bool, Instant)> {
        let used = self.0.lock();
        (used.running == 0).then_some((used.called, used.since))
    }

    /// Waits until the connection has kept its place for too long without a call.
    async fn idle_too_long(&self) {
        loop {
            let until = match self.idle() {
                Some((false, since)) => since + FIRST_CALL_MAX,
                Some((true, since)) => since + IDLE_MAX,
                // Whenever the call ends, it is not before this.
                None => Instant::now() + IDLE_MAX,
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// A call that runs.
#[derive(Debug)]
struct Call(Arc<Calls>);

impl Drop for Call {
    fn drop(&mut self) {
        let mut used = self.0.0.lock();
        used.running -= 1;
        used.since = Instant::now();
    }
}

/// Serves `service` on one connection until the peer ends it.
pub(super) async fn serve<T, S>(service: T, stream: S)
where
    T: Service,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    serve_until(service, stream, Arc::default(), pending()).await;
}

/// Serves `service` on one connection until the peer ends it, or has no `calls` for too long.
pub(super) async fn serve_while_used<T, S>(service: T, stream: S, calls: Arc<Calls>)
where
    T: Service,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    serve_until(service, stream, Arc::clone(&calls), calls.idle_too_long()).await;
}

async fn serve_until<T, S>(service: T, stream: S, calls: Arc<Calls>, over: impl Future<Output = ()>)
where
    T: Service,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = Counted { service, calls };
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .keep_alive_interval(link::PING_INTERVAL)
        .keep_alive_timeout(link::PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = over => {
            tracing::debug!("control connection without a call closed");
            connection.as_mut().graceful_shutdown();
            timeout(FAREWELL_MAX, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "control connection ended");
    }
}

/// What NodeManager is as a service.
pub(super) trait Service:
    tower_service::Service<
        http::Request<Asked>,
        Response = http::Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
}

impl<T> Service for T where
    T: tower_service::Service<
            http::Request<Asked>,
            Response = http::Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static
{
}

/// Counts the calls of a service.
#[derive(Clone)]
struct Counted<T> {
    service: T,
    calls: Arc<Calls>,
}

impl<T: Service> tower_service::Service<http::Request<Incoming>> for Counted<T> {
    type Response = http::Response<Answered>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let call = self.calls.begin();
        let until = Box::pin(sleep(REQUEST_MAX));
        let answer = self.service.call(request.map(|body| Asked { body, until }));
        Box::pin(async move {
            let response = answer.await?;
            Ok(response.map(|body| Answered { body, _call: call }))
        })
    }
}

/// The body of a request, which has to be there in time.
pub(super) struct Asked {
    body: Incoming,
    until: Pin<Box<Sleep>>,
}

impl Body for Asked {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let late = self.until.as_mut().poll(cx);
        late.map(|()| Some(Err("the request did not come in time".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer; its end is the call's.
struct Answered {
    body: tonic::body::Body,
    _call: Call,
}

impl Body for Answered {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        sync::mpsc,
        task::JoinSet,
    };
    use tokio_stream::{Stream, wrappers::ReceiverStream};

    use super::*;

    /// Frames of an answer, from the test.
    struct Frames(ReceiverStream<Bytes>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let next = Pin::new(&mut self.0).poll_next(cx);
            next.map(|next| next.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    /// Reads the request to its end, then answers with what the test sends.
    #[derive(Clone)]
    struct Answers(Arc<Mutex<Option<ReceiverStream<Bytes>>>>);

    impl tower_service::Service<http::Request<Asked>> for Answers {
        type Response = http::Response<tonic::body::Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Asked>) -> Self::Future {
            let frames = self.0.lock().take();
            Box::pin(async move {
                let mut body = request.into_body();
                let mut next = |cx: &mut Context<'_>| Pin::new(&mut body).poll_frame(cx);
                let body = loop {
                    match std::future::poll_fn(&mut next).await {
                        None => break tonic::body::Body::new(Frames(frames.expect("one call"))),
                        Some(Ok(_)) => {}
                        Some(Err(_)) => break tonic::body::Body::empty(),
                    }
                };
                Ok(http::Response::new(body))
            })
        }
    }

    fn served() -> (DuplexStream, mpsc::Sender<Bytes>, JoinSet<()>) {
        let (near, far) = duplex(64 << 10);
        let (to, frames) = mpsc::channel(1);
        let answers = Answers(Arc::new(Mutex::new(Some(ReceiverStream::new(frames)))));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_while_used(answers, far, Arc::default()));
        (near, to, tasks)
    }

    /// How long the connection lasted from now.
    async fn lasts(tasks: &mut JoinSet<()>) -> Duration {
        let begun = Instant::now();
        tasks.join_next().await.expect("a task").expect("no panic");
        begun.elapsed()
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// Of no settings, and of their acknowledgement.
    const SETTINGS: [u8; 18] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_loses_the_place_within_seconds() {
        let whole = [PREFACE, &SETTINGS].concat();
        for said in [0, 5, PREFACE.len(), whole.len()] {
            let (mut near, _to, mut tasks) = served();
            near.write_all(&whole[..said]).await.expect("written");
            let lasted = lasts(&mut tasks).await;
            let most = FIRST_CALL_MAX + FAREWELL_MAX + Duration::from_secs(1);
            assert!(
                (FIRST_CALL_MAX..most).contains(&lasted),
                "{said}: {lasted:?}"
            );
            let mut rest = Vec::new();
            near.read_to_end(&mut rest).await.expect("the end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_keeps_the_connection_and_its_end_starts_the_clock() {
        let (near, to, mut tasks) = served();
        let (mut client, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near))
                .await
                .expect("HTTP/2");
        let mut driving = JoinSet::new();
        driving.spawn(async { drop(driver.await) });
        let request = http::Request::new(tonic::body::Body::empty());
        let answer = client.send_request(request).await.expect("an answer");
        let mut body = answer.into_body();
        let mut next = |cx: &mut Context<'_>| Pin::new(&mut body).poll_frame(cx);
        for _ in 0..3 {
            sleep(2 * IDLE_MAX).await;
            to.send(Bytes::from_static(b"line")).await.expect("served");
            let frame = std::future::poll_fn(&mut next).await;
            assert!(frame.expect("a frame").expect("a frame").is_data());
        }
        drop(to);
        while let Some(frame) = std::future::poll_fn(&mut next).await {
            frame.expect("the end");
        }
        let lasted = lasts(&mut tasks).await;
        let most = IDLE_MAX + FAREWELL_MAX + Duration::from_secs(1);
        let least = IDLE_MAX - Duration::from_secs(1);
        assert!((least..most).contains(&lasted), "{lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_is_no_call_for_good() {
        let (near, _to, mut tasks) = served();
        let (mut client, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near))
                .await
                .expect("HTTP/2");
        let mut driving = JoinSet::new();
        driving.spawn(async { drop(driver.await) });
        let (_open, never) = mpsc::channel(1);
        let body = tonic::body::Body::new(Frames(ReceiverStream::new(never)));
        let begun = Instant::now();
        let sent = client.send_request(http::Request::new(body));
        sent.await.expect("an answer");
        let waited = begun.elapsed();
        assert!(
            waited >= REQUEST_MAX && waited < 2 * REQUEST_MAX,
            "{waited:?}"
        );
        lasts(&mut tasks).await;
    }
}
