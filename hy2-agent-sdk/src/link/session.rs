//! The session: desired state down, observed state up, for as long as the connection holds.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hy2_proto::control::rpc::{
    Cursor, FieldError, HeartbeatRequest, Hello, ReportMetricsRequest, ReportTrafficRequest,
    ResourceAck, ResourceNack, ResourceUpdate, SessionRequest, SessionResponse, StatusReport,
    Welcome, session_request, session_response,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    CALL_MAX, LinkError, LinkState, Master,
    backoff::{self, Backoff},
    channel::{Connection, Dial, bounded},
    enrol::{self, Proof},
    reverse,
};
use crate::{
    agent::Node,
    clock::{Clock, SAME, moment, span},
    identity::IdentityError,
    reconcile::{Assembly, revisions},
    report::{self, SessionsDelta},
    traffic::Resync,
};

/// Messages to the master that wait at most; who adds more waits.
const QUEUE: usize = 64;
/// The master greets within this time.
const WELCOME_MAX: Duration = Duration::from_secs(10);
/// A session that lived this long shows that all is well.
const PROVEN: Duration = Duration::from_secs(10);
/// How often it is looked whether the certificate should be renewed.
const RENEWAL_CHECK: Duration = Duration::from_secs(60);
/// Nothing is due more often than this, whatever the master says.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Nor more rarely.
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);
/// After a certificate was renewed because the master refused it, this long goes by before that is tried again.
const RENEWAL_PAUSE: Duration = Duration::from_secs(300);
/// After the disk failed, traffic is delivered on and slices are asked for when this has gone by.
const DISK_PAUSE: Duration = Duration::from_secs(5);
/// Reversed connections at once.
const REVERSED_MAX: usize = 4;

/// Keeps a session to one of the masters, forever.
pub(crate) async fn run(node: Arc<Node>) {
    let mut backoff = Backoff::new(node.config.reconnect);
    let mut said = HashMap::new();
    let mut renewed = None;
    let masters = node.config.masters.clone();
    for master in masters.iter().cycle() {
        let begun = Instant::now();
        let error = match one(&node, master, &mut renewed).await {
            Ok(()) => LinkError::Ended,
            Err(error) => error,
        };
        node.leases.set_online(false);
        // Who waited for an answer gets none.
        let refreshing = Arc::clone(&node);
        let refreshed = tokio::task::spawn_blocking(move || refreshing.users.refresh_all()).await;
        if let Err(error) = refreshed {
            tracing::error!(%error, "quotas not looked at");
        }
        let text = error.chain();
        if matches!(error, LinkError::Goodbye { retired: true, .. }) {
            node.reconciler.retire();
        }
        let was_up = node.link.borrow().connected_since().is_some();
        node.link.send_replace(LinkState::Down {
            error: text.clone(),
        });
        if was_up {
            tracing::warn!(master, error = text, "session to the master ended");
            if begun.elapsed() > PROVEN {
                backoff.reset();
            }
            said.clear();
        } else if said.get(master) == Some(&text) {
            tracing::debug!(master, error = text, "no session to the master");
        } else {
            // Once for each reason, not for each attempt.
            tracing::warn!(master, error = text, "no session to the master");
            said.insert(master, text);
        }
        let pause = match error {
            // Only a master that was restored will have it back.
            LinkError::Goodbye { retired: true, .. } => node.config.reconnect.1,
            LinkError::Goodbye {
                retry_after: Some(pause),
                ..
            } => backoff::spread(pause.clamp(node.config.reconnect.0, node.config.reconnect.1)),
            _ => backoff.pause(),
        };
        sleep(pause).await;
    }
}

/// What there is when the master has greeted.
struct Opened {
    connection: Connection,
    to: To,
    from: tonic::Streaming<SessionResponse>,
    welcome: Welcome,
}

/// Opens a session, up to the master's greeting.
async fn open(node: &Arc<Node>, master: &str) -> Result<Opened, LinkError> {
    let mut connection = Connection::open(master, node, Dial::Node).await?;
    let (to, queue) = mpsc::channel(QUEUE);
    say(&to, session_request::Event::Hello(hello(node).await)).await?;
    let opened = connection.master.session(ReceiverStream::new(queue));
    let mut from = timeout(CALL_MAX, opened)
        .await
        .map_err(|_| LinkError::TimedOut("session"))??
        .into_inner();
    let welcome = match timeout(WELCOME_MAX, from.message()).await {
        Err(_) => return Err(LinkError::TimedOut("welcome")),
        Ok(first) => match first?.and_then(|first| first.event) {
            Some(session_response::Event::Welcome(welcome)) => welcome,
            Some(session_response::Event::Goodbye(goodbye)) => return Err(leave(goodbye)),
            _ => return Err(LinkError::Protocol),
        },
    };
    Ok(Opened {
        connection,
        to,
        from,
        welcome,
    })
}

/// One session, from dial to end. `renewed`: when the certificate was renewed last because a master refused it.
async fn one(
    node: &Arc<Node>,
    master: &str,
    renewed: &mut Option<Instant>,
) -> Result<(), LinkError> {
    if node.identity.credentials().is_none() {
        enrol::enrol(node, master).await?;
    }
    let expired = |node: &Node| {
        let now = node.clock.now();
        node.identity
            .credentials()
            .is_some_and(|current| current.is_expired(now))
    };
    if expired(node) {
        enrol::renew(node, master, Proof::Key).await?;
    }
    let opened = match open(node, master).await {
        // Replaced by one that this folder does not have: it was copied back, or the disk was full. Or of an authority
        // that is gone. The key is still the node's.
        Err(error)
            if error.is_about_our_certificate()
                && renewed.is_none_or(|at| at.elapsed() > RENEWAL_PAUSE) =>
        {
            tracing::warn!(
                master,
                error = error.chain(),
                "the certificate is refused; another is asked for by the key"
            );
            if let Err(renewal) = enrol::renew(node, master, Proof::Key).await {
                tracing::warn!(master, error = renewal.chain(), "certificate not renewed");
                return Err(error);
            }
            *renewed = Some(Instant::now());
            open(node, master).await
        }
        opened => opened,
    };
    let Opened {
        mut connection,
        to,
        mut from,
        welcome,
    } = opened?;
    node.reconciler.reinstate();
    let unmet = greeted(node, &welcome).await?;
    node.link.send_replace(LinkState::Up {
        since: node.clock.now(),
    });
    node.leases.set_online(true);
    let (refreshing, epoch) = (Arc::clone(node), welcome.cluster_epoch);
    blocking(move || {
        if refreshing.leases.enter_epoch(epoch, &*refreshing.users) {
            tracing::warn!(
                epoch,
                "the master was restored; what it lent is asked for anew"
            );
        }
        look_at_spool(&refreshing);
        refreshing.users.refresh_all();
        Ok(())
    })
    .await?;
    tracing::info!(
        master,
        epoch = welcome.cluster_epoch,
        "session to the master"
    );

    let mut tasks = JoinSet::new();
    let period = |of: Option<&prost_types::Duration>, default: u64| {
        interval_of(of).unwrap_or_else(|| Duration::from_secs(default))
    };
    let heartbeat = period(welcome.heartbeat_interval.as_ref(), 10);
    let metrics = period(welcome.metrics_interval.as_ref(), 15);
    tasks.spawn(heartbeats(Arc::clone(node), to.clone(), heartbeat));
    tasks.spawn(follow_time(
        Arc::clone(node),
        connection.master.clone(),
        heartbeat,
    ));
    tasks.spawn(report_metrics(
        Arc::clone(node),
        connection.master.clone(),
        metrics,
    ));
    tasks.spawn(report_sessions(Arc::clone(node), to.clone()));
    tasks.spawn(report_status(Arc::clone(node), to.clone()));
    tasks.spawn(report_alerts(Arc::clone(node), to.clone()));
    tasks.spawn(deliver_traffic(
        Arc::clone(node),
        connection.master.clone(),
        unmet,
    ));
    tasks.spawn(ask_for_leases(Arc::clone(node), connection.master.clone()));
    tasks.spawn(renew_in_time(Arc::clone(node), master.to_owned()));
    let mut reversed = JoinSet::new();
    let mut assembly = Assembly::default();
    loop {
        // Every arm is cancel safe: a message is taken when it is returned.
        tokio::select! {
            message = from.message() => {
                let Some(SessionResponse { event: Some(event) }) = message? else {
                    return Err(LinkError::Ended);
                };
                match event {
                    session_response::Event::OpenReverse(open) => {
                        if reversed.len() < REVERSED_MAX {
                            let node = Arc::clone(node);
                            reversed.spawn(reverse::open(node, master.to_owned(), open.ticket));
                        } else {
                            tracing::warn!(most = REVERSED_MAX, "no further reversed connection is opened");
                        }
                    }
                    other => handle(node, other, &mut assembly, &to).await?,
                }
            }
            ended = tasks.join_next() => {
                return match ended {
                    Some(Ok(Err(error))) => Err(error),
                    Some(Err(error)) if error.is_panic() => {
                        tracing::error!(%error, "session task failed");
                        Err(LinkError::Ended)
                    }
                    _ => Err(LinkError::Ended),
                };
            }
            Some(_) = reversed.join_next() => {}
            () = connection.over() => return Err(LinkError::Ended),
        }
    }
}

/// How often the master wants something, within what a timer takes and a node can do; `None` when
/// it does not say.
fn interval_of(of: Option<&prost_types::Duration>) -> Option<Duration> {
    let found = span(of).filter(|interval| !interval.is_zero())?;
    Some(found.clamp(INTERVAL_MIN, INTERVAL_MAX))
}

type To = mpsc::Sender<SessionRequest>;

async fn say(to: &To, event: session_request::Event) -> Result<(), LinkError> {
    to.send(SessionRequest { event: Some(event) })
        .await
        .map_err(|_| LinkError::Ended)
}

fn leave(goodbye: hy2_proto::control::rpc::Goodbye) -> LinkError {
    LinkError::Goodbye {
        retry_after: span(goodbye.retry_after.as_ref()),
        reason: goodbye.reason,
        retired: goodbye.retired,
    }
}

async fn hello(node: &Node) -> Hello {
    let (cluster_epoch, manifest_rev, have) = node.reconciler.have().await;
    Hello {
        info: Some(node.info().await),
        cluster_epoch,
        manifest_rev,
        have,
        spool_ids: vec![node.traffic.waiting().spool_id.to_vec().into()],
    }
}

/// How far the master has this node's traffic.
#[derive(Debug, Clone, Copy)]
struct Place {
    cursor: u64,
    moved_at: Option<SystemTime>,
}

/// Takes over what the master says at the beginning. Returns where delivery goes on if the disk is in the way of that.
async fn greeted(node: &Arc<Node>, welcome: &Welcome) -> Result<Option<Place>, LinkError> {
    if let Some(master) = moment(welcome.master_time.as_ref()) {
        let skew = node.masters_clock.follow(master);
        if skew > SAME {
            node.clock_is_wrong(skew);
        }
    }
    if let Some(interval) = interval_of(welcome.traffic_interval.as_ref()) {
        node.traffic_interval.send_replace(interval);
    }
    let spool = node.traffic.waiting().spool_id;
    let known = |cursor: &&Cursor| cursor.spool_id == spool.as_slice();
    let known = welcome.cursors.iter().find(known);
    let place = Place {
        cursor: known.map_or(0, |cursor| cursor.durable_seq),
        moved_at: known.and_then(|cursor| moment(cursor.moved_at.as_ref())),
    };
    match rewind(node, place).await {
        Ok(()) => Ok(None),
        Err(LinkError::Storage(error)) => {
            not_delivered(node, &error);
            Ok(Some(place))
        }
        Err(error) => Err(error),
    }
}

/// Begins delivery where the master is.
async fn rewind(node: &Arc<Node>, place: Place) -> Result<(), LinkError> {
    let traffic = Arc::clone(&node.traffic);
    let rewound = blocking(move || traffic.rewind(place.cursor, place.moved_at)).await?;
    begun_anew(node, place.cursor, rewound);
    Ok(())
}

/// Tells the master's operators that the disk keeps traffic from being delivered.
fn not_delivered(node: &Node, error: &std::io::Error) {
    tracing::warn!(%error, "traffic not delivered, counting goes on");
    node.alert("spool_not_delivered", "error", &error.to_string());
}

/// Goes on from the master's cursor, or with a new spool where that is not possible.
async fn resync(node: &Arc<Node>, cursor: u64) -> Result<(), LinkError> {
    let traffic = Arc::clone(&node.traffic);
    let resynced = blocking(move || traffic.resync(cursor)).await?;
    begun_anew(node, cursor, resynced);
    Ok(())
}

/// Tells the master's operators of a new spool.
fn begun_anew(node: &Node, cursor: u64, resync: Resync) {
    if let Resync::Restarted { lost } = resync {
        let text = format!(
            "the master's cursor {cursor} does not fit the spool; a new one was begun, {lost} \
             batches are missing"
        );
        tracing::warn!("{text}");
        node.alert("traffic_gap", "error", &text);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, LinkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(LinkError::Storage)
}

async fn handle(
    node: &Arc<Node>,
    event: session_response::Event,
    assembly: &mut Assembly,
    to: &To,
) -> Result<(), LinkError> {
    match event {
        session_response::Event::Update(part) => match assembly.add(part) {
            Ok(None) => {}
            Ok(Some(update)) => update_with(node, update, to).await?,
            Err(error) => say(to, nack(0, 0, vec![error])).await?,
        },
        session_response::Event::Certificates(update) => {
            let kept = node
                .identity
                .renewed(None, &update.trusted_cas, &update.signing_keys);
            // A node that ended its sessions by this would hear of nobody who is no longer let in.
            match kept {
                Err(error @ IdentityError::File { .. }) => not_kept(node, &error),
                Err(error) => tracing::error!(
                    error = crate::engine::chain_of(&error),
                    "authorities and keys not taken"
                ),
                Ok(()) => {}
            }
            if update.renew_now {
                node.renew_now.notify_one();
            }
        }
        session_response::Event::Leases(leases) => {
            let (node, leases) = (Arc::clone(node), leases);
            blocking(move || {
                let no_cut = node.traffic.no_cut();
                let concerned = node.leases.grant(&leases, &*node.users, &no_cut);
                drop(no_cut);
                node.users.refresh(concerned);
                Ok(())
            })
            .await?;
        }
        session_response::Event::Recall(recall) => {
            let node = Arc::clone(node);
            blocking(move || {
                let concerned = node.leases.recall(&recall.lease_ids, &*node.users);
                look_at_spool(&node);
                node.users.refresh(concerned);
                Ok(())
            })
            .await?;
        }
        session_response::Event::Goodbye(goodbye) => return Err(leave(goodbye)),
        session_response::Event::Welcome(_) | session_response::Event::OpenReverse(_) => {}
    }
    Ok(())
}

/// Tells the master's operators that what the master issued is lost when this process ends.
fn not_kept(node: &Node, error: &IdentityError) {
    let text = format!(
        "in force but not on disk: {}",
        crate::engine::chain_of(error)
    );
    tracing::warn!("certificate, authorities or keys {text}");
    node.alert("identity_not_written", "error", &text);
}

async fn update_with(node: &Arc<Node>, update: ResourceUpdate, to: &To) -> Result<(), LinkError> {
    let reconciling = Arc::clone(node);
    // In a task of its own: it is finished also when the session ends meanwhile.
    let updated = tokio::spawn(async move { reconciling.reconciler.update(&update).await });
    let updated = updated.await.map_err(|_| LinkError::Ended)?;
    let event = match updated {
        Ok(accepted) => {
            let (_, _, have) = node.reconciler.have().await;
            let (config, users) = revisions(&have);
            tracing::info!(
                revision = accepted.rev,
                config,
                users,
                "desired state in force"
            );
            if let Some(error) = accepted.unsaved {
                let text = format!("in force but not on disk: {error}");
                node.alert("ledger_not_written", "error", &text);
            }
            session_request::Event::Ack(ResourceAck {
                manifest_rev: accepted.rev,
                cluster_epoch: accepted.epoch,
            })
        }
        Err(refused) => {
            tracing::warn!(revision = refused.rev, errors = ?refused.errors, "update refused");
            nack(refused.epoch, refused.rev, refused.errors)
        }
    };
    say(to, event).await
}

fn nack(cluster_epoch: u64, manifest_rev: u64, errors: Vec<FieldError>) -> session_request::Event {
    session_request::Event::Nack(ResourceNack {
        manifest_rev,
        cluster_epoch,
        errors,
    })
}

async fn sample(node: &Arc<Node>) -> Result<hy2_proto::control::rpc::NodeMetrics, LinkError> {
    let node = Arc::clone(node);
    blocking(move || Ok(node.reporter.sample(&node))).await
}

async fn heartbeats(node: Arc<Node>, to: To, period: Duration) -> Result<(), LinkError> {
    loop {
        let beat = report::heartbeat(&node, &sample(&node).await?);
        say(&to, session_request::Event::Heartbeat(beat)).await?;
        // Spread, so that a fleet does not beat as one.
        sleep(period.mul_f64(0.8 + 0.4 * rand::random::<f64>())).await;
    }
}

/// Asks for the master's time again and again: somebody may set that clock while the session lasts.
async fn follow_time(
    node: Arc<Node>,
    mut master: Master,
    period: Duration,
) -> Result<(), LinkError> {
    loop {
        sleep(period.mul_f64(0.8 + 0.4 * rand::random::<f64>())).await;
        let asked = Instant::now();
        match bounded(master.heartbeat(HeartbeatRequest::default())).await {
            // An answer that was long on its way says too little.
            Ok(answer) if asked.elapsed() < SAME => {
                if let Some(time) = moment(answer.master_time.as_ref()) {
                    follow(&node, time).await?;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the master does not say the time"),
        }
    }
}

async fn follow(node: &Arc<Node>, master: SystemTime) -> Result<(), LinkError> {
    let before = node.masters_clock.now();
    node.masters_clock.follow(master);
    if before <= node.masters_clock.now() + SAME {
        return Ok(());
    }
    tracing::warn!("the master's clock was set back");
    // What was due and done by the old time may be so once more.
    let node = Arc::clone(node);
    blocking(move || {
        node.users.refresh_all();
        Ok(())
    })
    .await
}

async fn report_metrics(
    node: Arc<Node>,
    mut master: Master,
    period: Duration,
) -> Result<(), LinkError> {
    let mut tick = interval(period);
    loop {
        tick.tick().await;
        let samples = vec![sample(&node).await?];
        // Figures may be lost.
        if let Err(error) = bounded(master.report_metrics(ReportMetricsRequest { samples })).await {
            tracing::debug!(%error, "metrics not reported");
        }
    }
}

async fn report_sessions(node: Arc<Node>, to: To) -> Result<(), LinkError> {
    let mut delta = SessionsDelta::default();
    let mut tick = interval(report::SESSIONS_PERIOD);
    loop {
        tick.tick().await;
        if let Some(report) = delta.next(report::live_sessions(&node)) {
            say(&to, session_request::Event::Sessions(report)).await?;
        }
    }
}

async fn report_status(node: Arc<Node>, to: To) -> Result<(), LinkError> {
    let mut status = node.reconciler.status();
    loop {
        let now = status.borrow_and_update().clone();
        let report = StatusReport {
            engine: now.engine.into(),
            reason: now.reason,
            listening: now.listening,
            at: Some(node.clock.now().into()),
        };
        say(&to, session_request::Event::Status(report)).await?;
        status.changed().await.map_err(|_| LinkError::Ended)?;
    }
}

async fn report_alerts(node: Arc<Node>, to: To) -> Result<(), LinkError> {
    loop {
        for alert in node.take_alerts() {
            say(&to, session_request::Event::Alert(alert)).await?;
        }
        node.alerted.notified().await;
    }
}

/// Delivers what waits. A disk that fails delays that, and not what the master has to say. `unmet`: where to begin, when that
/// is not done yet.
async fn deliver_traffic(
    node: Arc<Node>,
    master: Master,
    mut unmet: Option<Place>,
) -> Result<(), LinkError> {
    loop {
        let delivered = match unmet {
            Some(place) => rewind(&node, place).await,
            None => deliver_batches(&node, master.clone()).await,
        };
        match delivered {
            Ok(()) => unmet = None,
            Err(LinkError::Storage(error)) => {
                not_delivered(&node, &error);
                sleep(DISK_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends batch after batch, each when the one before is committed, until something fails.
async fn deliver_batches(node: &Arc<Node>, mut master: Master) -> Result<(), LinkError> {
    let (to, queue) = mpsc::channel(1);
    let mut stream = None;
    let mut queue = Some(queue);
    loop {
        let traffic = Arc::clone(&node.traffic);
        let Some(mut outgoing) = blocking(move || traffic.next()).await? else {
            node.traffic.spooled.notified().await;
            continue;
        };
        let request = ReportTrafficRequest {
            batch: std::mem::take(&mut outgoing.batch).into(),
            crc32c: outgoing.crc32c,
        };
        to.send(request).await.map_err(|_| LinkError::Ended)?;
        if let Some(queue) = queue.take() {
            // With the first batch on its way: a master may answer no sooner than it has one.
            let opened = master.report_traffic(ReceiverStream::new(queue));
            let opened = timeout(CALL_MAX, opened)
                .await
                .map_err(|_| LinkError::TimedOut("traffic"))??;
            stream = Some(opened.into_inner());
        }
        let Some(answers) = &mut stream else {
            return Err(LinkError::Protocol);
        };
        let ack = loop {
            let answer = timeout(CALL_MAX, answers.message())
                .await
                .map_err(|_| LinkError::TimedOut("traffic"))??;
            let Some(ack) = answer.and_then(|answer| answer.ack) else {
                return Err(LinkError::Ended);
            };
            let here = node.traffic.waiting();
            if ack.spool_id != here.spool_id.as_slice() {
                return Err(LinkError::Protocol);
            }
            if outgoing.is_answered_by(ack.durable_seq, here.durable) {
                break ack;
            }
        };
        if ack.quarantined > 0 {
            let text = format!("{} rows of foreign users were set aside", ack.quarantined);
            node.alert("traffic_quarantined", "warning", &text);
        }
        if ack.durable_seq == outgoing.last {
            let node = Arc::clone(node);
            blocking(move || {
                node.traffic.acknowledged(ack.durable_seq);
                look_at_spool(&node);
                Ok(())
            })
            .await?;
        } else {
            resync(node, ack.durable_seq).await?;
        }
    }
}

/// Notes it when the master has everything that was cut.
fn look_at_spool(node: &Node) {
    if node.traffic.waiting().batches == 0 {
        node.leases.delivered();
    }
}

async fn ask_for_leases(node: Arc<Node>, mut master: Master) -> Result<(), LinkError> {
    loop {
        let Some(asked) = node.leases.ask(&*node.users) else {
            node.leases.wanted.notified().await;
            continue;
        };
        // It asks again by itself when there is no answer, also when the session ends here.
        let response = bounded(master.lease(asked.request())).await?;
        let granting = Arc::clone(&node);
        blocking(move || {
            let node = granting;
            let no_cut = node.traffic.no_cut();
            let request = asked.answered();
            node.leases.released(&request);
            let mut concerned = node.leases.grant(&response, &*node.users, &no_cut);
            let asked: Vec<u64> = request.quotas.iter().map(|want| want.user_id).collect();
            node.leases.settle(&asked, &no_cut);
            drop(no_cut);
            concerned.extend(asked);
            node.users.refresh(concerned);
            node.users.keep_to_places(&request, &response);
            Ok(())
        })
        .await?;
        if let Some(error) = node.leases.not_kept() {
            node.alert("leases_not_written", "error", &error);
            // Who has to have more asks again, and the disk will hardly take it at once.
            sleep(DISK_PAUSE).await;
        }
    }
}

async fn renew_in_time(node: Arc<Node>, master: String) -> Result<(), LinkError> {
    let mut tick = interval(RENEWAL_CHECK);
    // Until it is done; the next session begins with it if it is still to be.
    let mut wanted = false;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = node.renew_now.notified() => wanted = true,
        }
        if wanted || node.identity.renewal_due(node.clock.now()) {
            match enrol::renew(&node, &master, Proof::Certificate).await {
                Ok(()) => wanted = false,
                Err(error) => {
                    let error = crate::engine::chain_of(&error);
                    tracing::warn!(error, "certificate not renewed");
                }
            }
        }
        if let Err(error) = node.identity.save() {
            not_kept(&node, &error);
        }
    }
}
