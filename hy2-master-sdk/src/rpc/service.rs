//! MasterService: finds out who asks, and passes on. Of these methods Enroll alone, and a renewal
//! that proves the known key, work without a client certificate.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::master_service_server::MasterService;
use tonic::{Request, Response, Status, Streaming};

use super::peers::Peer;
use super::{enroll, lease, session, traffic};
use crate::core::Core;
use crate::store::observed::MetricsRow;

/// The service.
#[derive(Debug)]
pub(crate) struct Service {
    core: Arc<Core>,
}

impl Service {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Counts a request of somebody without a certificate.
    fn admit<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = Peer::of(request)?;
        let most = self.core.config.max_anonymous_per_minute;
        if peer.identity.is_none() && !self.core.peers.admit_anonymous(peer.address.ip(), most) {
            return Err(Status::resource_exhausted(
                "too many requests; try again in a minute",
            ));
        }
        Ok(peer)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl MasterService for Service {
    async fn enroll(
        &self,
        request: Request<rpc::EnrollRequest>,
    ) -> Result<Response<rpc::EnrollResponse>, Status> {
        let peer = self.admit(&request)?;
        enroll::enroll(&self.core, &peer, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn renew_certificate(
        &self,
        request: Request<rpc::RenewCertificateRequest>,
    ) -> Result<Response<rpc::RenewCertificateResponse>, Status> {
        let peer = self.admit(&request)?;
        enroll::renew(&self.core, &peer, request.into_inner())
            .await
            .map(Response::new)
    }

    type SessionStream = Answers<rpc::SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<rpc::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if Peer::of(&request)?.retired.is_cancelled() {
            let answer = rpc::SessionResponse {
                event: Some(session::farewell()),
            };
            let only = futures_util::stream::once(std::future::ready(Ok(answer)));
            return Ok(Response::new(Box::pin(only)));
        }
        let (identity, peer) = Peer::node(&request)?;
        let stream = session::open(&self.core, identity, peer, request.into_inner()).await?;
        Ok(Response::new(Box::pin(stream)))
    }

    type ReportTrafficStream = Answers<rpc::ReportTrafficResponse>;

    async fn report_traffic(
        &self,
        request: Request<Streaming<rpc::ReportTrafficRequest>>,
    ) -> Result<Response<Self::ReportTrafficStream>, Status> {
        let (identity, peer) = Peer::node(&request)?;
        let stream = traffic::report(Arc::clone(&self.core), identity, peer, request.into_inner());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report_metrics(
        &self,
        request: Request<rpc::ReportMetricsRequest>,
    ) -> Result<Response<rpc::ReportMetricsResponse>, Status> {
        let (identity, _) = Peer::node(&request)?;
        let samples = request.into_inner().samples;
        if samples.len() > MAX_SAMPLES {
            return Err(Status::invalid_argument("samples: more than 1,000"));
        }
        let now = self.core.now();
        let rows = samples
            .iter()
            .map(|sample| metrics_row(sample, now))
            .collect::<Vec<_>>();
        self.core
            .store
            .insert_metrics(identity.node, &rows)
            .await
            .map_err(|error| super::error::store(&error))?;
        Ok(Response::new(rpc::ReportMetricsResponse {}))
    }

    async fn lease(
        &self,
        request: Request<rpc::LeaseRequest>,
    ) -> Result<Response<rpc::LeaseResponse>, Status> {
        let (identity, _) = Peer::node(&request)?;
        lease::lease(&self.core, identity, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn heartbeat(
        &self,
        request: Request<rpc::HeartbeatRequest>,
    ) -> Result<Response<rpc::HeartbeatResponse>, Status> {
        let (identity, _) = Peer::node(&request)?;
        let now = self.core.now();
        if let Some(heartbeat) = request.into_inner().heartbeat {
            self.core.live.heartbeat(identity.node, heartbeat, now);
        }
        let open = !self.core.live.contains(identity.node);
        Ok(Response::new(rpc::HeartbeatResponse {
            master_time: Some(now.to_proto()),
            open_session: open,
        }))
    }
}

/// Figures out of range become the nearest that fit; a moment in the future becomes the present.
fn metrics_row(sample: &rpc::NodeMetrics, now: crate::domain::Timestamp) -> MetricsRow {
    let big = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let real = |value: f64| if value.is_finite() { value } else { 0.0 };
    MetricsRow {
        at: sample
            .at
            .as_ref()
            .map_or(now, crate::domain::Timestamp::from_proto)
            .min(now),
        cpu_permille: i64::from(sample.cpu_permille),
        memory_used_bytes: big(sample.memory_used_bytes),
        memory_total_bytes: big(sample.memory_total_bytes),
        load1: real(sample.load1),
        disk_free_bytes: big(sample.disk_free_bytes),
        open_files: i64::from(sample.open_files),
        tx_bytes_per_s: big(sample.tx_bytes_per_s),
        rx_bytes_per_s: big(sample.rx_bytes_per_s),
        connections: i64::from(sample.connections),
        users_online: i64::from(sample.users_online),
        tcp_streams: i64::from(sample.tcp_streams),
        udp_sessions: i64::from(sample.udp_sessions),
        auth_accepted: big(sample.auth_accepted),
        auth_rejected: big(sample.auth_rejected),
        handshakes_failed: big(sample.handshakes_failed),
        rtt_p50_ms: real(sample.rtt_p50_ms),
        rtt_p95_ms: real(sample.rtt_p95_ms),
        loss_permille: i64::from(sample.loss_permille),
        spool_bytes: big(sample.spool_bytes),
        agent_memory_bytes: big(sample.agent_memory_bytes),
        panics: big(sample.panics),
    }
}

const MAX_SAMPLES: usize = 1_000;
