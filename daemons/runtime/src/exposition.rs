//! Figures for Prometheus on an address of their own: `/metrics`, `/healthz`, `/readyz`.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

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

/// Serves the process's figures.
#[derive(Debug)]
pub struct Exposition {
    listener: TcpListener,
    recorder: PrometheusHandle,
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
        Ok(Self { listener, recorder })
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
                    let recorder = self.recorder.clone();
                    let service = service_fn(move |request| {
                        let response = answer(&recorder, &request);
                        async move { Ok::<_, Infallible>(response) }
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

fn answer(recorder: &PrometheusHandle, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, recorder.render()),
        // It runs; an agent serves this from when it is ready on.
        (&Method::GET | &Method::HEAD, "/healthz" | "/readyz") => (StatusCode::OK, "ok\n".into()),
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
