//! One connection attempt: resolve, open a socket, shake hands, authenticate.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hy2_proto::{auth::AuthResponse, bandwidth::Bandwidth};
use quinn::{ConnectionError, Endpoint, TokioRuntime, crypto::rustls::QuicClientConfig};
use quinn_proto::TransportErrorCode;
use tokio::{
    net::lookup_host,
    time::{Instant, timeout_at},
};

use super::{
    config::{ClientConfig, FallbackCongestion},
    session::Session,
};
use crate::{
    congestion::{Algorithm, CongestionHandle},
    error::ConnectError,
    h3::client::{AuthError, ClientFront, authenticate},
    quic::{self, Role, close, crypto::ClientCrypto},
    socket::{self, DirectSocketFactory, HopConfig},
    tls::TlsFailure,
};

/// Addresses tried per attempt.
const MAX_ADDRESSES: usize = 2;

/// Dials the server within the configured time.
pub(super) async fn dial(config: &ClientConfig) -> Result<Session, ConnectError> {
    config.validate()?;
    let deadline = Instant::now() + config.connect_timeout;
    let addresses = timeout_at(deadline, resolve(config))
        .await
        .map_err(|_| ConnectError::Silence)??;
    let count = u32::try_from(addresses.len()).unwrap_or(1).max(1);
    let mut last = ConnectError::Silence;
    for (index, address) in addresses.into_iter().enumerate() {
        // The last address may use all the time that is left.
        let rest = deadline.saturating_duration_since(Instant::now());
        let share = rest
            / count
                .saturating_sub(u32::try_from(index).unwrap_or(0))
                .max(1);
        match timeout_at(Instant::now() + share, attempt(config, address)).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(
                error @ (ConnectError::Silence | ConnectError::Lost(_) | ConnectError::Socket(_)),
            )) => {
                last = error;
            }
            // The server answered: another address would say the same.
            Ok(Err(error)) => return Err(error),
            Err(_) => last = ConnectError::Silence,
        }
    }
    Err(last)
}

async fn resolve(config: &ClientConfig) -> Result<Vec<SocketAddr>, ConnectError> {
    let port = config.server.ports.pick(rand::random());
    let found: Vec<_> = lookup_host((config.server.host.as_str(), port))
        .await
        .map_err(|error| ConnectError::Unresolvable(Arc::new(error)))?
        .take(MAX_ADDRESSES)
        .collect();
    if found.is_empty() {
        let error = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(ConnectError::Unresolvable(Arc::new(error)));
    }
    Ok(found)
}

async fn attempt(config: &ClientConfig, remote: SocketAddr) -> Result<Session, ConnectError> {
    let tls = config
        .tls
        .connect()
        .map_err(|error| ConnectError::Config(error.to_string()))?;
    let crypto = QuicClientConfig::try_from(tls.config)
        .map_err(|error| ConnectError::Config(error.to_string()))?;
    let fallback = match config.congestion {
        FallbackCongestion::Bbr(profile) => Algorithm::Bbr(profile),
        FallbackCongestion::Reno => Algorithm::Reno,
    };
    let congestion = CongestionHandle::new(fallback);
    let socket = match &config.abstract_socket {
        Some(socket) => Arc::clone(socket),
        None => open_socket(config, remote)?,
    };
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new_with_abstract_socket(
        quic::endpoint_config(None),
        None,
        socket,
        runtime.clone(),
    )
    .map_err(|error| ConnectError::Socket(Arc::new(error)))?;
    let mut quic_config = quinn::ClientConfig::new(Arc::new(ClientCrypto(Arc::new(crypto))));
    let settings = config.quic.within(config.memory.limit());
    quic_config.transport_config(quic::transport(
        &settings,
        Role::Client,
        &congestion,
        config.obfuscation.overhead(),
        config.socket.gso,
    ));
    let name = config.tls.sni.as_deref().unwrap_or(&config.server.host);
    let connection = endpoint
        .connect_with(quic_config, remote, name)
        .map_err(|error| ConnectError::Config(error.to_string()))?
        .await
        .map_err(|error| handshake_error(error, &tls.failure))?;
    let pacing = congestion.attach(&connection, runtime);
    let rx = config.down.unwrap_or(Bandwidth::ZERO);
    let (response, front): (AuthResponse, ClientFront) =
        match authenticate(&connection, &config.auth, rx).await {
            Ok(granted) => granted,
            Err(error) => {
                connection.close(close::PROTOCOL, b"");
                // The close must reach the server before the endpoint goes.
                let _ =
                    tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
                return Err(auth_error(error, &tls.failure));
            }
        };
    let tx = response
        .cc_rx
        .client_rate(config.up.unwrap_or(Bandwidth::ZERO));
    if let Some(rate) = tx {
        congestion.set(Algorithm::Brutal {
            rate: rate.bytes_per_sec(),
            loss_compensation: config.loss_compensation,
            overclaim_guard: config.overclaim_guard,
        });
    }
    Ok(Session::start(
        endpoint,
        connection,
        congestion,
        pacing,
        front,
        response.udp,
        tx,
        &config.memory,
        quic::window(settings.receive_window),
    ))
}

fn open_socket(
    config: &ClientConfig,
    remote: SocketAddr,
) -> Result<Arc<dyn quinn::AsyncUdpSocket>, ConnectError> {
    let ports = &config.server.ports;
    let hop = if ports.count() > 1 {
        let hop = HopConfig::new(ports.clone(), config.hop)
            .map_err(|error| ConnectError::Config(error.to_string()))?;
        Some(hop)
    } else {
        None
    };
    let factory = match &config.socket_factory {
        Some(factory) => Arc::clone(factory),
        None => Arc::new(DirectSocketFactory::new(config.socket.clone())),
    };
    socket::client_socket(remote, hop, factory, &config.obfuscation, &config.socket)
        .map(|socket| socket.socket())
        .map_err(|error| ConnectError::Socket(Arc::new(error)))
}

fn handshake_error(error: ConnectionError, failure: &TlsFailure) -> ConnectError {
    if failure.pin_mismatch() {
        return ConnectError::PinMismatch;
    }
    if let Some(wrong) = failure.chain() {
        return ConnectError::Tls(wrong.to_owned());
    }
    match error {
        ConnectionError::TimedOut => ConnectError::Silence,
        ConnectionError::TransportError(error) if is_tls(error.code) => {
            ConnectError::Tls(error.reason)
        }
        ConnectionError::ConnectionClosed(closed)
            if u64::from(closed.error_code) == CERTIFICATE_REQUIRED =>
        {
            ConnectError::Tls("the server wants a client certificate".to_owned())
        }
        ConnectionError::ConnectionClosed(closed) if is_tls(closed.error_code) => {
            ConnectError::Tls(format!("rejected by the server ({})", closed.error_code))
        }
        error => ConnectError::Lost(error),
    }
}

fn auth_error(error: AuthError, failure: &TlsFailure) -> ConnectError {
    match error {
        AuthError::Rejected { status } => ConnectError::AuthRejected { status },
        // A server that wants a client certificate says so only after the client's handshake.
        AuthError::Connection(error) => handshake_error(error, failure),
        error => ConnectError::Protocol(error.to_string()),
    }
}

/// The alert of a server that wants a client certificate and got none (RFC 8446 §6.2).
const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;

/// TLS alerts are codes 0x100 to 0x1ff (RFC 9001 §4.8).
fn is_tls(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}
