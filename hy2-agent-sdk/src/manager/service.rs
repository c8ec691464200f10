//! The methods of NodeManager.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use hy2_proto::control::rpc::{
    self, ApplyEffect, Cursor, NodeDesiredState, node_manager_server::NodeManager,
};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::Level;

use crate::{
    agent::Node,
    clock::{moment, span},
    diagnostics,
    reconcile::RestartError,
    report,
    settings::DRAIN_GRACE_MAX,
};

/// Sessions in one message.
const SESSIONS_CHUNK: usize = 500;

pub(super) struct Service(pub(super) Arc<Node>);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeManager for Service {
    async fn get_info(
        &self,
        _request: Request<rpc::GetInfoRequest>,
    ) -> Result<Response<rpc::GetInfoResponse>, Status> {
        let info = self.0.info().await;
        Ok(Response::new(rpc::GetInfoResponse { info: Some(info) }))
    }

    async fn get_stats(
        &self,
        _request: Request<rpc::GetStatsRequest>,
    ) -> Result<Response<rpc::GetStatsResponse>, Status> {
        let node = Arc::clone(&self.0);
        let sampled = tokio::task::spawn_blocking(move || node.reporter.sample(&node));
        let metrics = sampled.await.map_err(|_| Status::internal("no sample"))?;
        let waiting = self.0.traffic.waiting();
        let status = self.0.reconciler.status().borrow().clone();
        Ok(Response::new(rpc::GetStatsResponse {
            metrics: Some(metrics),
            spool_batches: waiting.batches,
            spool_bytes: waiting.bytes,
            cursors: vec![Cursor {
                moved_at: None,
                spool_id: waiting.spool_id.to_vec().into(),
                durable_seq: waiting.durable,
            }],
            connected_since: self.0.link.borrow().connected_since().map(Into::into),
            certificate_not_after: self
                .0
                .identity
                .credentials()
                .map(|credentials| credentials.not_after.into()),
            manifest_valid_until: status.valid_until.map(Into::into),
            link_error: self.0.link.borrow().error().to_owned(),
        }))
    }

    type ListSessionsStream = Streamed<rpc::ListSessionsResponse>;

    async fn list_sessions(
        &self,
        request: Request<rpc::ListSessionsRequest>,
    ) -> Result<Response<Self::ListSessionsStream>, Status> {
        let user = request.into_inner().user_id;
        let mut sessions = report::live_sessions(&self.0);
        sessions.retain(|session| user == 0 || session.user_id == user);
        let mut chunks = Vec::new();
        while !sessions.is_empty() {
            let rest = sessions.split_off(sessions.len().min(SESSIONS_CHUNK));
            let sessions = std::mem::replace(&mut sessions, rest);
            chunks.push(Ok(rpc::ListSessionsResponse { sessions }));
        }
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn kick_sessions(
        &self,
        request: Request<rpc::KickSessionsRequest>,
    ) -> Result<Response<rpc::KickSessionsResponse>, Status> {
        let request = request.into_inner();
        let engine = &self.0.engine;
        let users: usize = request
            .user_ids
            .iter()
            .map(|user| engine.kick_user(*user))
            .sum();
        let connections = request.connection_ids.iter();
        let connections = connections
            .filter(|id| engine.kick_connection(**id))
            .count();
        Ok(Response::new(rpc::KickSessionsResponse {
            closed: u32::try_from(users + connections).unwrap_or(u32::MAX),
        }))
    }

    async fn set_user_rate(
        &self,
        request: Request<rpc::SetUserRateRequest>,
    ) -> Result<Response<rpc::SetUserRateResponse>, Status> {
        let request = request.into_inner();
        for (field, rate) in [
            ("up_bytes_per_s", request.up_bytes_per_s),
            ("down_bytes_per_s", request.down_bytes_per_s),
        ] {
            if rate != 0 && rate < RATE_MIN {
                let text = format!("{field}: must be 0 or at least {RATE_MIN} bytes per second");
                return Err(Status::invalid_argument(text));
            }
        }
        let span = bounded("for", request.r#for.as_ref(), RATE_SPAN_MAX)?;
        let (up, down) = (request.up_bytes_per_s, request.down_bytes_per_s);
        let connections = self
            .0
            .users
            .set_rate(request.user_id, up, down, span)
            .ok_or_else(|| Status::not_found("user_id: no such user on this node"))?;
        Ok(Response::new(rpc::SetUserRateResponse {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
        }))
    }

    async fn set_state(
        &self,
        request: Request<rpc::SetStateRequest>,
    ) -> Result<Response<rpc::SetStateResponse>, Status> {
        let request = request.into_inner();
        let state = NodeDesiredState::try_from(request.state)
            .ok()
            .filter(|state| *state != NodeDesiredState::Unspecified)
            .ok_or_else(|| Status::invalid_argument("state: not a state"))?;
        let deadline = moment(request.deadline.as_ref());
        if deadline.is_none() && request.deadline.is_some() {
            return Err(Status::invalid_argument("deadline: must be after 1970"));
        }
        self.0.reconciler.order(state, deadline);
        let connections = self.0.engine.sessions().len();
        Ok(Response::new(rpc::SetStateResponse {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
        }))
    }

    type TailLogsStream = Streamed<rpc::TailLogsResponse>;

    async fn tail_logs(
        &self,
        request: Request<rpc::TailLogsRequest>,
    ) -> Result<Response<Self::TailLogsStream>, Status> {
        let request = request.into_inner();
        let level = match &*request.level {
            "error" => Level::ERROR,
            "warn" => Level::WARN,
            "" | "info" => Level::INFO,
            "debug" => Level::DEBUG,
            _ => {
                return Err(Status::invalid_argument(
                    "level: error, warn, info or debug",
                ));
            }
        };
        let ring = self.0.logs.as_ref();
        let ring = ring.ok_or_else(|| Status::unimplemented("this agent keeps no log"))?;
        let lines = usize::try_from(request.lines).unwrap_or(usize::MAX);
        let (past, live) = ring.tail(lines, level);
        let message = |line: crate::logs::LogLine, dropped| rpc::TailLogsResponse {
            at: Some(line.at.into()),
            level: line.level.as_str().to_lowercase(),
            target: line.target.to_owned(),
            message: line.message.as_ref().to_owned(),
            dropped,
        };
        let past = stream::iter(past.into_iter().map(move |line| Ok(message(line, 0))));
        if !request.follow {
            return Ok(Response::new(Box::pin(past)));
        }
        let follow = stream::unfold((live, 0), move |(mut live, mut dropped)| async move {
            loop {
                match live.recv().await {
                    Ok(line) if line.level <= level => {
                        return Some((Ok(message(line, dropped)), (live, 0)));
                    }
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(lines)) => dropped += lines,
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        let both = futures_util::StreamExt::chain(past, follow);
        Ok(Response::new(Box::pin(both)))
    }

    type RunDiagnosticsStream = ReceiverStream<Result<rpc::RunDiagnosticsResponse, Status>>;

    async fn run_diagnostics(
        &self,
        request: Request<rpc::RunDiagnosticsRequest>,
    ) -> Result<Response<Self::RunDiagnosticsStream>, Status> {
        let checks = request.into_inner().checks;
        if let Some(unknown) = checks
            .iter()
            .find(|check| !diagnostics::CHECKS.contains(&check.as_str()))
        {
            let text = format!("checks: there is no {unknown:?}");
            return Err(Status::invalid_argument(text));
        }
        let (to, results) = mpsc::channel(diagnostics::CHECKS.len());
        let (answers, answer) = mpsc::channel(1);
        let node = Arc::clone(&self.0);
        // Ends with the checks, or at the first result that nobody takes.
        tokio::spawn(async move {
            let run = diagnostics::run(&node, &checks, to);
            let pass = async {
                let mut results = results;
                while let Some(result) = results.recv().await {
                    if answers.send(Ok(result)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(run, pass);
        });
        Ok(Response::new(ReceiverStream::new(answer)))
    }

    async fn check_config(
        &self,
        request: Request<rpc::CheckConfigRequest>,
    ) -> Result<Response<rpc::CheckConfigResponse>, Status> {
        let config = request.into_inner().config;
        let config = config.ok_or_else(|| Status::invalid_argument("config: missing"))?;
        let (errors, effect) = match self.0.reconciler.check(config).await {
            Ok(effect) => (Vec::new(), effect),
            Err(errors) => (errors, ApplyEffect::Unspecified),
        };
        Ok(Response::new(rpc::CheckConfigResponse {
            errors,
            effect: effect.into(),
        }))
    }

    async fn restart_engine(
        &self,
        request: Request<rpc::RestartEngineRequest>,
    ) -> Result<Response<rpc::RestartEngineResponse>, Status> {
        let grace = request.into_inner().grace;
        let grace = bounded("grace", grace.as_ref(), DRAIN_GRACE_MAX)?.unwrap_or_default();
        let restarted = self.0.reconciler.restart(grace).await;
        restarted.map_err(|error| match error {
            RestartError::Ending => Status::unavailable(error.to_string()),
            RestartError::Failed => Status::internal(error.to_string()),
        })?;
        Ok(Response::new(rpc::RestartEngineResponse {}))
    }
}

/// A rate below this moves nothing useful.
const RATE_MIN: u64 = 1024;
/// Longest time for which a rate is ordered, as REST has it; for ever is said by no time.
const RATE_SPAN_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// A duration of a request; `None` when it is absent.
fn bounded(
    field: &str,
    value: Option<&prost_types::Duration>,
    most: Duration,
) -> Result<Option<Duration>, Status> {
    if value.is_none() {
        return Ok(None);
    }
    let found = span(value).filter(|found| *found <= most);
    found.map(Some).ok_or_else(|| {
        let text = format!("{field}: must be between 0 s and {} s", most.as_secs());
        Status::invalid_argument(text)
    })
}
