//! The Session: desired state down, observed state up, one task per node.
//!
//! Publication is level-triggered: a poke says "look", and the task compares what the node should
//! have with what it acknowledged. One update is under way at a time; changes of meanwhile go into
//! the next.

use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::session_request::Event as Up;
use hy2_proto::control::rpc::session_response::Event as Down;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::alerts::{IDENTITY_TWICE, Watch};
use super::error::{chain, store};
use super::peers::{Identity, Peer};
use super::publish::{self, Have, PublishError, Update};
use super::traffic::uuid;
use crate::core::{Core, Trust};
use crate::domain::config::ConfigError;
use crate::domain::{EngineState, LeaseId, NodeId, Timestamp};
use crate::plan::MANIFEST_VALIDITY_MS;
use crate::store::nodes::{self, Bump};
use crate::store::observed::Opening;
use crate::store::{StoreError, leases};

/// Opens a Session: waits for the greeting, takes the node over, and starts its task.
pub(super) async fn open(
    core: &Arc<Core>,
    identity: Identity,
    peer: Peer,
    mut inbound: Streaming<rpc::SessionRequest>,
) -> Result<impl Stream<Item = Result<rpc::SessionResponse, Status>> + use<>, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello"))??;
    let Some(Up::Hello(hello)) = first.and_then(|message| message.event) else {
        return Err(Status::invalid_argument("event: the first is hello"));
    };
    if hello.spool_ids.len() > MAX_SPOOLS || hello.have.len() > MAX_RESOURCES {
        return Err(Status::invalid_argument(
            "hello: too many spools or resources",
        ));
    }
    let now = core.now();
    let opening = opening(hello.info.as_ref())?;
    let owner_epoch = core
        .store
        .open_session(identity.node, core.id, &opening, now)
        .await
        .map_err(|error| store(&error))?
        .ok_or_else(|| Status::permission_denied("the node is revoked"))?;
    let welcome = welcome(core, identity, &hello, now)
        .await
        .map_err(|error| store(&error))?;
    let settled = refresh(core, identity, &hello, now)
        .await
        .map_err(|error| store(&error))?;
    let alerts = Watch::new(now);
    look_for_a_twin(core, identity.node, &hello, now).await;
    let (outbound, answers) = mpsc::channel(OUTBOUND);
    let trust = core.trust.load_full();
    // It may have been away when the authority changed.
    let renew_now = core
        .store
        .is_of_authority_before(identity.node, trust.authority.spki_sha256())
        .await
        .map_err(|error| store(&error))?;
    let certificates = trust.to_wire(renew_now);
    for event in [Down::Welcome(welcome), Down::Certificates(certificates)] {
        outbound
            .try_send(rpc::SessionResponse { event: Some(event) })
            .map_err(|_| Status::internal("the session has no room for its first messages"))?;
    }
    let epoch = core.epoch();
    let session = Session {
        core: Arc::clone(core),
        identity,
        owner_epoch,
        epoch,
        have: Have::of(&hello),
        settled,
        told: trust,
        pending: None,
        heard: None,
        timeouts: 0,
        engine: (opening.engine_state, opening.listening),
        alerts,
        writes: Budget::new(now),
        outbound,
    };
    core.tasks.spawn(session.run(peer, inbound));
    Ok(tokio_stream::StreamExt::map(
        ReceiverStream::new(answers),
        Ok,
    ))
}

/// Raises an alert if two agents take turns with the node's identity: each ends the other's Session.
async fn look_for_a_twin(core: &Core, node: NodeId, hello: &rpc::Hello, now: Timestamp) {
    let spool = hello
        .spool_ids
        .first()
        .and_then(|id| id[..].try_into().ok());
    if !spool.is_some_and(|spool| core.live.went_back(node, spool)) {
        return;
    }
    let message = "two agents run with this node's identity and end each other's sessions, or its folder was set \
                   back to an earlier state";
    let raised = core
        .store
        .raise_alert(node, IDENTITY_TWICE, "critical", message, now)
        .await;
    match raised {
        Ok(true) => tracing::warn!(node = node.0, rule = IDENTITY_TWICE, message, "alert"),
        Ok(false) => {}
        // The next Session says it again.
        Err(error) => tracing::warn!(
            node = node.0,
            error = chain(&error),
            "cannot raise an alert"
        ),
    }
}

struct Session {
    core: Arc<Core>,
    identity: Identity,
    owner_epoch: i64,
    /// Of the cluster, when the Session began.
    epoch: i64,
    have: Have,
    /// The manifest that the node runs or refuses: a newer one is sent.
    settled: i64,
    /// What the node has been told of authorities and keys.
    told: Arc<Trust>,
    pending: Option<(Update, Instant)>,
    /// The next authority that the node was told of before the pending update: it has heard of it when it answers.
    heard: Option<Uuid>,
    timeouts: u32,
    engine: (EngineState, Vec<String>),
    alerts: Watch,
    writes: Budget,
    outbound: mpsc::Sender<rpc::SessionResponse>,
}

/// Why a Session ends.
enum End {
    Peer,
    Told(Status),
    /// The node was deleted or revoked.
    Retired,
    Quiet,
}

/// What a node is told that was deleted or revoked.
pub(super) fn farewell() -> Down {
    Down::Goodbye(rpc::Goodbye {
        retry_after: None,
        reason: "the node was deleted, or its identity revoked".to_owned(),
        retired: true,
    })
}

impl Session {
    async fn run(mut self, peer: Peer, mut inbound: Streaming<rpc::SessionRequest>) {
        let core = Arc::clone(&self.core);
        let node = self.identity.node;
        let poke = Arc::new(Notify::new());
        let cut = peer.cut.child_token();
        let guard = core.live.open(
            node,
            self.outbound.clone(),
            cut.clone(),
            Arc::clone(&poke),
            core.now(),
        );
        tracing::info!(node = node.0, "session open");
        poke.notify_one();
        // What was lent here of users who left while the node was away; that nobody is there shows below.
        let gone = leases::open_of_gone(&core.store, node).await;
        let _ = self.recall(gone).await;
        let mut retry = None;
        let end = loop {
            let deadline = self
                .pending
                .as_ref()
                .map(|(_, deadline)| *deadline)
                .or(retry);
            tokio::select! {
                biased;
                () = cut.cancelled() => break End::Quiet,
                () = peer.retired.cancelled() => break End::Retired,
                () = core.shutdown.cancelled() => break End::Quiet,
                () = self.outbound.closed() => break End::Peer,
                // Cancel safe: the stream keeps what it has not given out.
                message = inbound.message() => match message {
                    Ok(Some(message)) => match core.store.in_time(1, self.handle(message)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(end)) => break end,
                        // What the node said is not noted: it says it again in the next Session.
                        Err(late) => break End::Told(store(&late)),
                    },
                    Ok(None) | Err(_) => break End::Peer,
                },
                // Cancel safe: a permit that is not taken stays.
                () = poke.notified() => {}
                () = sleep_until(deadline) => if let Err(end) = self.late() { break end },
            }
            retry = None;
            if self.epoch != core.epoch() {
                break End::Told(Status::aborted(
                    "a new epoch has begun; open another session",
                ));
            }
            if let Err(Some(end)) = self.tell().await {
                break end;
            }
            if self.pending.is_none() {
                match self.publish().await {
                    Ok(()) => {}
                    Err(Some(end)) => break end,
                    // The store is away: once more in a moment.
                    Err(None) => retry = Some(Instant::now() + RETRY),
                }
            }
        };
        drop(guard);
        match end {
            End::Told(status) => {
                let goodbye = rpc::Goodbye {
                    retry_after: prost_types::Duration::try_from(RETRY).ok(),
                    reason: status.message().to_owned(),
                    retired: false,
                };
                let _ = self.outbound.try_send(rpc::SessionResponse {
                    event: Some(Down::Goodbye(goodbye)),
                });
                tracing::info!(node = node.0, reason = status.message(), "session ended");
            }
            End::Retired => {
                let _ = self.outbound.try_send(rpc::SessionResponse {
                    event: Some(farewell()),
                });
                tracing::info!(
                    node = node.0,
                    "session ended: the node is deleted or revoked"
                );
            }
            End::Peer => tracing::info!(node = node.0, "node closed its session"),
            End::Quiet => tracing::info!(node = node.0, "session cut"),
        }
    }

    /// Tells the node of authorities and keys, if they are others than it was told.
    async fn tell(&mut self) -> Result<(), Option<End>> {
        let trust = self.core.trust.load_full();
        if trust.tells_the_same(&self.told) {
            return Ok(());
        }
        let renew_now = trust.authority.spki_sha256() != self.told.authority.spki_sha256();
        self.send(Down::Certificates(trust.to_wire(renew_now)))
            .await?;
        self.told = trust;
        Ok(())
    }

    /// Notes that the node has heard of the next authority: it answered to what it was sent after that.
    async fn note_told(&mut self, now: Timestamp) {
        let Some(next) = self.heard.take() else {
            return;
        };
        let store = &self.core.store;
        if let Err(error) = store.note_told(self.identity.node, next, now).await {
            // The next Session asks once more.
            tracing::warn!(
                node = self.identity.node.0,
                error = chain(&error),
                "cannot note that the node knows the next authority"
            );
        }
    }

    /// Sends the update that the node needs, if it needs one.
    async fn publish(&mut self) -> Result<(), Option<End>> {
        let node = self.identity.node;
        let core = &self.core;
        let asked = core.store.in_time(1, core.store.node(node)).await;
        let desired = match asked.flatten() {
            Ok(row) => row.desired_rev,
            Err(StoreError::NotFound(_)) => return Err(Some(End::Retired)),
            Err(error) => {
                tracing::warn!(
                    node = node.0,
                    error = chain(&error),
                    "cannot look what the node needs"
                );
                return Err(None);
            }
        };
        if desired <= self.settled {
            return Ok(());
        }
        let view = self.core.views.of(node);
        let prepared = self.core.store.in_time(PREPARE_PATIENCE, async {
            let mut view = view.lock().await;
            publish::prepare(&self.core, node, &mut view, &self.have).await
        });
        let mut update = match prepared.await.map_err(PublishError::from).flatten() {
            Ok(update) => update,
            Err(PublishError::Config(errors)) => return self.invalid(desired, &errors).await,
            Err(error) => {
                tracing::error!(
                    node = node.0,
                    error = chain(&error),
                    "cannot make what the node needs"
                );
                return Err(None);
            }
        };
        for part in std::mem::take(&mut update.parts) {
            self.send(Down::Update(part)).await?;
        }
        if !update.removed.is_empty() {
            let of = leases::open_of(&self.core.store, node, &update.removed).await;
            self.recall(of).await?;
        }
        let deadline = Instant::now() + self.core.config.ack_timeout;
        self.heard = self.told.next;
        self.pending = Some((update, deadline));
        Ok(())
    }

    /// What is configured for the node is invalid: it keeps what it has until the next change.
    async fn invalid(&mut self, rev: i64, errors: &[ConfigError]) -> Result<(), Option<End>> {
        self.settled = rev;
        let reason = errors
            .first()
            .map(|error| short(error.to_string()))
            .unwrap_or_default();
        tracing::error!(
            node = self.identity.node.0,
            rev,
            reason,
            "the node's configuration is invalid"
        );
        let errors = errors
            .iter()
            .map(|error| serde_json::json!({"code": "INVALID_FIELD", "path": error.path, "message": error.message}))
            .collect();
        let noted = self
            .core
            .store
            .note_refused(
                self.identity.node,
                self.owner_epoch,
                rev,
                &serde_json::Value::Array(errors),
                &reason,
                self.core.now(),
            )
            .await;
        self.noted(noted).map_err(Some)
    }

    /// Takes leases of users back who are no longer on the node: it ends them, and says how much was used.
    async fn recall(
        &mut self,
        leases: Result<Vec<LeaseId>, StoreError>,
    ) -> Result<(), Option<End>> {
        match leases {
            Ok(ids) if ids.is_empty() => Ok(()),
            Ok(ids) => {
                let lease_ids = ids.into_iter().map(LeaseId::to_wire).collect();
                self.send(Down::Recall(rpc::LeaseRecall { lease_ids }))
                    .await
            }
            Err(error) => {
                // The node ends them by itself: its users are gone.
                tracing::warn!(error = chain(&error), "cannot recall leases");
                Ok(())
            }
        }
    }

    async fn send(&mut self, event: Down) -> Result<(), Option<End>> {
        let message = rpc::SessionResponse { event: Some(event) };
        match self
            .outbound
            .send_timeout(message, self.core.config.ack_timeout)
            .await
        {
            Ok(()) => Ok(()),
            Err(_) => Err(Some(End::Peer)),
        }
    }

    /// The node did not acknowledge in time: it gets everything anew, a few times.
    fn late(&mut self) -> Result<(), End> {
        if self.pending.take().is_none() {
            return Ok(());
        }
        self.timeouts += 1;
        if self.timeouts >= MAX_TIMEOUTS {
            return Err(End::Told(Status::deadline_exceeded(
                "manifests are not acknowledged",
            )));
        }
        self.have = Have::default();
        Ok(())
    }

    async fn handle(&mut self, message: rpc::SessionRequest) -> Result<(), End> {
        let node = self.identity.node;
        let now = self.core.now();
        match message.event {
            Some(Up::Heartbeat(heartbeat)) => {
                self.core.live.heartbeat(node, heartbeat, now);
                let looked = self.alerts.look(&self.core, node, now).await;
                return self.noted(looked);
            }
            Some(Up::Ack(ack)) => {
                let matches = |(update, _): &mut (Update, Instant)| {
                    update.rev.unsigned_abs() == ack.manifest_rev
                        && update.have.epoch == ack.cluster_epoch
                };
                if let Some((update, _)) = self.pending.take_if(matches) {
                    self.timeouts = 0;
                    self.settled = update.rev;
                    self.have = update.have;
                    self.alerts.took_manifest(now);
                    self.note_told(now).await;
                    let closed =
                        leases::close_before_epoch(&self.core.store, node, self.epoch, now);
                    if self.epoch > 1
                        && let Err(error) = closed.await
                    {
                        // The next acknowledgement does it.
                        tracing::warn!(
                            error = chain(&error),
                            "leases of before the restore stay open"
                        );
                    }
                    let noted = self
                        .core
                        .store
                        .note_applied(node, self.owner_epoch, update.rev, self.epoch, now)
                        .await;
                    return self.noted(noted);
                }
            }
            Some(Up::Nack(nack)) => {
                let matches = |(update, _): &mut (Update, Instant)| {
                    update.rev.unsigned_abs() == nack.manifest_rev
                        && update.have.epoch == nack.cluster_epoch
                };
                if let Some((update, _)) = self.pending.take_if(matches) {
                    self.note_told(now).await;
                    return self.refused(&update, &nack.errors, now).await;
                }
            }
            Some(Up::Status(status)) => {
                let listening = status
                    .listening
                    .into_iter()
                    .take(MAX_LISTENING)
                    .map(short)
                    .collect::<Vec<_>>();
                let reported = (engine(status.engine), listening);
                if reported != self.engine {
                    self.spend(now)?;
                    self.engine = reported;
                    let noted = self
                        .core
                        .store
                        .note_engine(node, self.owner_epoch, self.engine.0, &self.engine.1, now)
                        .await;
                    return self.noted(noted);
                }
            }
            Some(Up::Sessions(report)) => self.core.live.sessions(node, report),
            Some(Up::Alert(alert)) => {
                self.spend(now)?;
                let severity = match alert.severity.as_str() {
                    "critical" | "error" => "critical",
                    "warning" | "warn" => "warning",
                    _ => "info",
                };
                let (rule, message) = (short(alert.rule), short(alert.message));
                self.alerts.raised(now);
                let store = &self.core.store;
                let raised = store
                    .raise_alert(node, &rule, severity, &message, now)
                    .await;
                if let Ok(true) = raised {
                    tracing::warn!(node = node.0, rule, severity, message, "alert");
                }
                return self.noted(raised.map(drop));
            }
            Some(Up::Hello(_)) => {
                return Err(End::Told(Status::invalid_argument("event: a second hello")));
            }
            // A newer agent may say more.
            None => {}
        }
        Ok(())
    }

    /// The node keeps running what it ran.
    async fn refused(
        &mut self,
        update: &Update,
        errors: &[rpc::FieldError],
        now: Timestamp,
    ) -> Result<(), End> {
        let recoverable = errors.iter().any(|error| {
            matches!(
                error.code(),
                rpc::ErrorCode::HashMismatch
                    | rpc::ErrorCode::BaseMissing
                    | rpc::ErrorCode::StaleRevision
            )
        });
        if recoverable && !update.snapshot {
            // The set went out of step: everything anew.
            self.have = Have::default();
            return Ok(());
        }
        self.settled = update.rev;
        let errors = errors.iter().take(MAX_ERRORS).collect::<Vec<_>>();
        let reason = errors.first().map_or_else(
            || "the node refuses its configuration".to_owned(),
            |error| short(format!("{}: {}", error.path, error.message)),
        );
        tracing::warn!(
            node = self.identity.node.0,
            rev = update.rev,
            reason,
            "node refuses its manifest"
        );
        let errors = errors
            .into_iter()
            .map(|error| {
                serde_json::json!({
                    "code": error.code().as_str_name(),
                    "path": short(error.path.clone()),
                    "message": short(error.message.clone()),
                })
            })
            .collect::<Vec<_>>();
        let noted = self
            .core
            .store
            .note_refused(
                self.identity.node,
                self.owner_epoch,
                update.rev,
                &serde_json::Value::Array(errors),
                &reason,
                now,
            )
            .await;
        self.noted(noted)
    }

    /// What a node reports may be lost while the store is away; a fence ends the Session.
    #[allow(clippy::unused_self, reason = "reads as what happens to this session")]
    fn noted(&self, noted: Result<(), StoreError>) -> Result<(), End> {
        match noted {
            Ok(()) => Ok(()),
            Err(StoreError::Fenced(_)) => {
                Err(End::Told(Status::aborted("another master holds this node")))
            }
            Err(error) => {
                tracing::warn!(
                    node = self.identity.node.0,
                    error = chain(&error),
                    "report is lost"
                );
                Ok(())
            }
        }
    }

    fn spend(&mut self, now: Timestamp) -> Result<(), End> {
        if self.writes.take(now) {
            Ok(())
        } else {
            Err(End::Told(Status::resource_exhausted("too many reports")))
        }
    }
}

/// How many reports that cost a write a node may send in a minute.
struct Budget {
    since: Timestamp,
    left: u32,
}

impl Budget {
    fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            left: WRITES_PER_MINUTE,
        }
    }

    fn take(&mut self, now: Timestamp) -> bool {
        if now.since(self.since) >= Duration::from_secs(60) {
            *self = Self::new(now);
        }
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

async fn welcome(
    core: &Core,
    identity: Identity,
    hello: &rpc::Hello,
    now: Timestamp,
) -> Result<rpc::Welcome, StoreError> {
    let asked = hello.spool_ids.iter().filter_map(uuid).collect::<Vec<_>>();
    let cursors = core.store.cursors(identity.node).await?;
    let duration = |of: Duration| prost_types::Duration::try_from(of).ok();
    Ok(rpc::Welcome {
        cluster_epoch: core.epoch().unsigned_abs(),
        master_time: Some(now.to_proto()),
        heartbeat_interval: duration(core.config.heartbeat_interval),
        metrics_interval: duration(core.config.metrics_interval),
        traffic_interval: duration(core.config.traffic_interval),
        cursors: cursors
            .into_iter()
            .filter(|cursor| asked.contains(&cursor.spool_id))
            .map(|cursor| rpc::Cursor {
                spool_id: cursor.spool_id.as_bytes().to_vec().into(),
                durable_seq: cursor.last_seq.unsigned_abs(),
                moved_at: Some(cursor.updated_at.to_proto()),
            })
            .collect(),
    })
}

/// Returns the revision that the node holds if it is the desired one; renews a manifest that is half
/// way to its end, one that the node would take for old, and any when the node is to answer.
async fn refresh(
    core: &Core,
    identity: Identity,
    hello: &rpc::Hello,
    now: Timestamp,
) -> Result<i64, StoreError> {
    let row = core.store.node(identity.node).await?;
    let same_epoch = hello.cluster_epoch == core.epoch().unsigned_abs();
    // The store was set back without a restore: a copy of its file was put in its place.
    let ahead = i64::try_from(hello.manifest_rev)
        .ok()
        .filter(|rev| same_epoch && row.desired_rev < *rev && *rev < MAX_REV);
    let told = match core.trust.load().next {
        Some(next) => core.store.is_told(identity.node, next).await?,
        None => true,
    };
    let aged = now.0.saturating_sub(row.desired_at.0) > MANIFEST_VALIDITY_MS / 2;
    if aged || ahead.is_some() || !told {
        let mut tx = core.store.begin().await?;
        if let Some(rev) = ahead {
            nodes::overtake(&mut tx, identity.node, rev).await?;
        }
        nodes::bump(&mut tx, identity.node, Bump::MANIFEST, now).await?;
        tx.commit().await?;
        return Ok(0);
    }
    let same = same_epoch && hello.manifest_rev == row.desired_rev.unsigned_abs();
    // It checked the signature and every hash before it kept it.
    Ok(if same && row.applied_rev == row.desired_rev {
        row.desired_rev
    } else {
        0
    })
}

fn opening(info: Option<&rpc::NodeInfo>) -> Result<Opening, Status> {
    let info = info.ok_or_else(|| Status::invalid_argument("hello.info: missing"))?;
    Ok(Opening {
        agent_version: short(info.agent_version.clone()),
        capabilities: info
            .capabilities
            .iter()
            .take(64)
            .cloned()
            .map(short)
            .collect(),
        hostname: short(info.hostname.clone()),
        listening: info
            .listening
            .iter()
            .take(MAX_LISTENING)
            .cloned()
            .map(short)
            .collect(),
        boot_id: uuid(&info.boot_id),
        engine_state: engine(info.engine),
    })
}

fn engine(state: i32) -> EngineState {
    match rpc::EngineState::try_from(state) {
        Ok(rpc::EngineState::Serving) => EngineState::Serving,
        Ok(rpc::EngineState::Draining) => EngineState::Draining,
        Ok(rpc::EngineState::Stopped) => EngineState::Stopped,
        Ok(rpc::EngineState::Failed) => EngineState::Failed,
        _ => EngineState::Waiting,
    }
}

/// Text from a node: at most 300 characters, none that a terminal obeys.
fn short(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// What a node needs is read in one go: of many users it takes longer than other things.
const PREPARE_PATIENCE: u32 = 5;
const OUTBOUND: usize = 32;
/// Revisions that a node may claim to hold; far more than there are.
const MAX_REV: i64 = 1 << 53;
const MAX_SPOOLS: usize = 64;
const MAX_RESOURCES: usize = 16;
const MAX_LISTENING: usize = 32;
const MAX_ERRORS: usize = 50;
const MAX_TIMEOUTS: u32 = 3;
const WRITES_PER_MINUTE: u32 = 120;
