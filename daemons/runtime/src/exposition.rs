//! Figures for Prometheus on an address of their own: `/metrics`, `/healthz`, `/readyz`.

use std::{convert::Infallible, fmt, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, warn};

/// Readers served at once.
const MAX_READERS: usize = 32;

/// Time a reader has for its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the recorder tidies its histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Finds out whether the process can do its work; otherwise says in a word what is missing.
type Check =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), &'static str>> + Send>> + Send + Sync>;

/// Serves the process's figures.
pub struct Exposition {
    listener: TcpListener,
    recorder: PrometheusHandle,
    check: Option<Check>,
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Exposition {
    /// Installs the process's recorder and binds `address`. Must be called within a tokio
    /// runtime, once per process.
    ///
    /// # Errors
    ///
    /// The address is taken, or a recorder is installed already.
    pub fn install(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = bind(address)?;
        let recorder = PrometheusBuilder::new().install_recorder()?;
        Ok(Self {
            listener,
            recorder,
            check: None,
        })
    }

    /// Has `/readyz` ask `check`: 503 with its word when it fails. Without one, a process that runs is ready.
    #[must_use]
    pub fn ready_when<F>(mut self, check: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), &'static str>> + Send + 'static,
    {
        self.check = Some(Arc::new(move || Box::pin(check())));
        self
    }

    /// Returns the bound address.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let mut readers = JoinSet::new();
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            // Every arm is cancel safe: a connection is returned or not accepted.
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = readers.join_next() => continue,
                _ = upkeep.tick() => {
                    self.recorder.run_upkeep();
                    continue;
                }
                accepted = self.listener.accept(), if readers.len() < MAX_READERS => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (recorder, check) = (self.recorder.clone(), self.check.clone());
                    let service = service_fn(move |request| {
                        let (recorder, check) = (recorder.clone(), check.clone());
                        async move {
                            Ok::<_, Infallible>(answer(&recorder, check.as_ref(), &request).await)
                        }
                    });
                    readers.spawn(async move {
                        let served = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(REQUEST_TIMEOUT)
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                        if let Err(error) = served {
                            debug!(%error, "reader of metrics");
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a reader of metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// The process's figures for a page of somebody else's.
#[derive(Debug)]
pub struct Recorder {
    handle: PrometheusHandle,
    _upkeep: AbortOnDropHandle<()>,
}

impl Recorder {
    /// Installs the process's recorder. Must be called within a tokio runtime, once per process.
    ///
    /// # Errors
    ///
    /// A recorder is installed already.
    pub fn install() -> anyhow::Result<Self> {
        let handle = PrometheusBuilder::new().install_recorder()?;
        let tidied = handle.clone();
        let upkeep = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut tick = tokio::time::interval(UPKEEP);
            loop {
                tick.tick().await;
                tidied.run_upkeep();
            }
        }));
        Ok(Self {
            handle,
            _upkeep: upkeep,
        })
    }

    /// Serves the figures on an address of their own, too. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub fn serve(&self, address: SocketAddr) -> io::Result<Exposition> {
        Ok(Exposition {
            listener: bind(address)?,
            recorder: self.handle.clone(),
            check: None,
        })
    }

    /// Returns the figures in Prometheus' text form.
    pub fn render(&self) -> String {
        self.handle.render()
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn answer(
    recorder: &PrometheusHandle,
    check: Option<&Check>,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, recorder.render()),
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".into()),
        (&Method::GET | &Method::HEAD, "/readyz") => {
            let checked = match check {
                Some(check) => check().await,
                None => Ok(()),
            };
            match checked {
                Ok(()) => (StatusCode::OK, "ok\n".into()),
                Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
            }
        }
        (_, "/metrics" | "/healthz" | "/readyz") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let request = format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answer");
        answer
    }

    #[tokio::test]
    async fn figures_and_health_are_served() {
        let exposition = Exposition::install(([127, 0, 0, 1], 0).into()).expect("install");
        let address = exposition.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let ready = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&ready);
        let exposition = exposition.ready_when(move || {
            let ready = asked.load(Relaxed);
            async move { ready.then_some(()).ok_or("store") }
        });
        let running = tokio::spawn(exposition.run(stop.clone()));
        metrics::describe_counter!("hy2_test_things_total", "Things.");
        metrics::counter!("hy2_test_things_total").increment(3);
        let figures = get(address, "GET /metrics").await;
        assert!(
            figures.contains("# HELP hy2_test_things_total Things."),
            "{figures}"
        );
        assert!(figures.contains("\nhy2_test_things_total 3\n"), "{figures}");
        for path in ["/healthz", "/readyz"] {
            let answer = get(address, &format!("GET {path}")).await;
            assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        }
        ready.store(false, Relaxed);
        let answer = get(address, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nstore\n"), "{answer}");
        let answer = get(address, "GET /healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            get(address, "POST /metrics")
                .await
                .starts_with("HTTP/1.1 405 ")
        );
        assert!(
            get(address, "GET /other")
                .await
                .starts_with("HTTP/1.1 404 ")
        );
        stop.cancel();
        running.await.expect("ends with its token");
    }
}
