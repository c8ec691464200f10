//! Webhooks: every event that a webhook asks for is sent until its receiver takes it, or for a day.
//!
//! Plans deliveries from the numbered events (a row per event and webhook), sends what is due, tries
//! again with growing pauses. A delivery may arrive twice; its id says so. The connection goes to an
//! address that was resolved and judged once; redirects are not followed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use url::{Host, Url};

use crate::auth::topics;
use crate::domain::Timestamp;
use crate::events::EventHub;
use crate::service::Service;
use crate::service::webhooks::SECRET_PLACE;
use crate::store::webhooks::{self, DeliveryRow, WebhookRow};
use crate::store::{StoreError, events};

/// How long a try may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries of one delivery: with the pauses of [`pause`] about a day.
const MAX_ATTEMPTS: i64 = 12;

/// Deliveries sent at once.
const AT_ONCE: i64 = 16;

/// Events looked at in one step.
const BATCH: i64 = 500;

/// Most that is read of a receiver's answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// How often the deliverer looks without being called.
const TICK: Duration = Duration::from_secs(2);

/// Plans and sends deliveries.
#[derive(Debug)]
pub struct Deliverer {
    service: Service,
    hub: EventHub,
    tls: Arc<rustls::ClientConfig>,
}

/// Why a try failed. Kept with the delivery, so it says nothing of the receiver's answer.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the address is not allowed")]
    Address,
    #[error("the name does not resolve")]
    Resolve,
    #[error("cannot connect")]
    Connect,
    #[error("TLS failed")]
    Tls,
    #[error("HTTP failed")]
    Http,
    #[error("took too long")]
    Timeout,
    #[error("the key does not open")]
    Key,
}

impl Deliverer {
    /// Puts the parts together.
    #[must_use]
    pub fn new(service: Service, hub: EventHub) -> Self {
        let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        Self::with_roots(service, hub, roots)
    }

    /// The same with other authorities than the public ones.
    ///
    /// # Panics
    ///
    /// Never: the provider that is named knows the versions that are asked for.
    #[must_use]
    pub fn with_roots(service: Service, hub: EventHub, roots: rustls::RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            service,
            hub,
            tls: Arc::new(tls),
        }
    }

    /// Works until `stop`.
    ///
    /// # Cancel safety
    ///
    /// A delivery whose try is cut off is sent again later.
    pub async fn run(self, stop: CancellationToken) {
        let mut more = self.hub.listen();
        loop {
            let step = async {
                if let Err(error) = self.step().await {
                    warn!(%error, "webhooks wait");
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = step => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = more.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Plans new deliveries and sends those that are due.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn step(&self) -> Result<(), StoreError> {
        let store = self.service.store();
        for hook in webhooks::list(store).await? {
            if hook.enabled {
                self.plan(&hook).await?;
            }
        }
        let now = self.service.now();
        // Longer than a try may take: who is cut off loses its turn to the next.
        let until = now.plus(PATIENCE * 3);
        let due = webhooks::take_due(store, now, until, AT_ONCE).await?;
        let sent = due.into_iter().map(|row| self.attempt(row));
        for done in futures_util::future::join_all(sent).await {
            done?;
        }
        Ok(())
    }

    async fn plan(&self, hook: &WebhookRow) -> Result<(), StoreError> {
        let store = self.service.store();
        let read = events::after(store, hook.cursor_seq, BATCH).await?;
        let Some(last) = read.last().map(|event| event.seq) else {
            return Ok(());
        };
        let wanted: Vec<i64> = read
            .iter()
            .filter(|event| topics::matches(&hook.topics.0, &event.topic))
            .filter(|event| topics::webhooks_hear(&event.topic))
            .map(|event| event.seq)
            .collect();
        webhooks::plan(store, hook, &wanted, last, self.service.now())
            .await
            .map(drop)
    }

    async fn attempt(&self, mut row: DeliveryRow) -> Result<(), StoreError> {
        let store = self.service.store();
        let hook = webhooks::get(store, row.webhook_id).await;
        let event = events::get(store, row.event_seq).await;
        let (Ok(hook), Ok(event)) = (hook, event) else {
            // Webhook or event is gone; nobody waits for this any more.
            row.status = "failed".to_owned();
            row.error = Some("webhook or event is gone".to_owned());
            return webhooks::finish(store, &row, self.service.now()).await;
        };
        let body = json!({
            "id": row.id, "seq": event.seq, "topic": event.topic, "key": event.key,
            "at": event.at.to_string(), "payload": event.payload.0,
        });
        let sent = tokio::time::timeout(PATIENCE, self.send(&hook, &row, body.to_string())).await;
        let now = self.service.now();
        let outcome = sent.unwrap_or(Err(SendError::Timeout));
        settle(&mut row, outcome, now);
        metrics::counter!("hy2_master_webhook_attempts_total", "status" => row.status.clone())
            .increment(1);
        webhooks::finish(store, &row, now).await
    }

    async fn send(
        &self,
        hook: &WebhookRow,
        row: &DeliveryRow,
        body: String,
    ) -> Result<u16, SendError> {
        let url = Url::parse(&hook.url).map_err(|_| SendError::Address)?;
        let policy = self.service.targets();
        // Judged again: the policy may have changed since the webhook was made.
        if !policy.allows_url(&url) {
            return Err(SendError::Address);
        }
        let secret = self
            .service
            .vault()
            .open(SECRET_PLACE, hook.id.as_bytes(), &hook.secret_enc)
            .map_err(|_| SendError::Key)?;
        let at = self.service.now().0 / 1_000;
        let signed = format!("{at}.{body}");
        let signature = sign(&Key::new(HMAC_SHA256, &secret), signed.as_bytes());
        let signature = format!("t={at},v1={}", hex::encode(signature));

        let address = resolve(&url, |address| policy.allows(address)).await?;
        let stream = TcpStream::connect(address)
            .await
            .map_err(|_| SendError::Connect)?;
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let request = Request::post(path)
            .header(header::HOST, host_header(&url))
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("hy2-webhook/", env!("CARGO_PKG_VERSION")),
            )
            .header("hy2-delivery", row.id.to_string())
            .header("hy2-attempt", row.attempts.to_string())
            .header("hy2-signature", signature)
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| SendError::Address)?;
        if url.scheme() == "http" {
            return exchange(stream, request).await;
        }
        let name = server_name(&url).ok_or(SendError::Address)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|_| SendError::Tls)?;
        exchange(stream, request).await
    }
}

/// Resolves a host and returns the first address; refuses if any of them is not allowed, because the
/// name may be meant to lead somewhere else half of the time.
async fn resolve(url: &Url, allows: impl Fn(IpAddr) -> bool) -> Result<SocketAddr, SendError> {
    let port = url.port_or_known_default().ok_or(SendError::Address)?;
    let found: Vec<SocketAddr> = match url.host().ok_or(SendError::Address)? {
        Host::Ipv4(address) => vec![(address, port).into()],
        Host::Ipv6(address) => vec![(address, port).into()],
        Host::Domain(name) => tokio::net::lookup_host((name, port))
            .await
            .map_err(|_| SendError::Resolve)?
            .collect(),
    };
    if !found.iter().all(|address| allows(address.ip())) {
        return Err(SendError::Address);
    }
    found.first().copied().ok_or(SendError::Resolve)
}

fn host_header(url: &Url) -> String {
    let host = url.host().map(|host| host.to_string()).unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

fn server_name(url: &Url) -> Option<ServerName<'static>> {
    Some(match url.host()? {
        Host::Domain(name) => ServerName::try_from(name.to_owned()).ok()?,
        Host::Ipv4(address) => ServerName::from(IpAddr::V4(address)),
        Host::Ipv6(address) => ServerName::from(IpAddr::V6(address)),
    })
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<u16, SendError> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| SendError::Http)?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|_| SendError::Http)?;
        let status = response.status().as_u16();
        // Read to the end, so that the receiver does not see a reset; no further than a limit.
        let _ = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        Ok(status)
    };
    // A connection that ends tells the sender; what it read before still arrives.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        () = driven => Err(SendError::Http),
    }
}

/// Writes what became of a try into the row.
fn settle(row: &mut DeliveryRow, outcome: Result<u16, SendError>, now: Timestamp) {
    let (status, error) = match outcome {
        Ok(status @ 200..=299) => {
            row.status = "delivered".to_owned();
            row.response_status = Some(i64::from(status));
            row.error = None;
            return;
        }
        Ok(status) => (Some(i64::from(status)), format!("answered {status}")),
        Err(error) => (None, error.to_string()),
    };
    row.response_status = status;
    row.error = Some(error);
    if row.attempts >= MAX_ATTEMPTS {
        row.status = "failed".to_owned();
    } else {
        row.next_at = now.plus(pause(row.attempts));
    }
}

/// 5 s, 10 s, 20 s … up to four hours.
fn pause(attempts: i64) -> Duration {
    let doublings = u32::try_from(attempts.clamp(1, 13) - 1).unwrap_or(0);
    Duration::from_secs(5 << doublings).min(Duration::from_secs(4 * 3_600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn row(attempts: i64) -> DeliveryRow {
        DeliveryRow {
            id: Uuid::nil(),
            webhook_id: Uuid::nil(),
            event_seq: 1,
            status: "pending".into(),
            attempts,
            next_at: Timestamp(0),
            response_status: None,
            error: None,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        }
    }

    #[test]
    fn a_failed_try_comes_again_later_each_time_and_ends_once() {
        let mut total = Duration::ZERO;
        for attempts in 1..MAX_ATTEMPTS {
            let mut row = row(attempts);
            settle(&mut row, Ok(500), Timestamp(1_000));
            assert_eq!(row.status, "pending");
            assert_eq!(row.next_at, Timestamp(1_000).plus(pause(attempts)));
            total += pause(attempts);
        }
        assert!(total > Duration::from_secs(2 * 3_600));
        let mut last = row(MAX_ATTEMPTS);
        settle(&mut last, Err(SendError::Connect), Timestamp(1_000));
        assert_eq!(
            (last.status.as_str(), last.error.as_deref()),
            ("failed", Some("cannot connect"))
        );
    }

    #[test]
    fn a_redirect_is_no_success() {
        let mut row = row(1);
        settle(&mut row, Ok(302), Timestamp(0));
        assert_eq!(
            (row.status.as_str(), row.response_status),
            ("pending", Some(302))
        );
    }

    #[tokio::test]
    async fn a_name_that_leads_to_the_host_itself_is_refused() {
        let url = Url::parse("https://localhost.example.invalid/").unwrap();
        assert!(matches!(
            resolve(&url, |_| true).await,
            Err(SendError::Resolve)
        ));
        let url = Url::parse("https://localhost/").unwrap();
        let public = |address| crate::targets::TargetPolicy::Public.allows(address);
        assert!(matches!(
            resolve(&url, public).await,
            Err(SendError::Address)
        ));
    }
}
