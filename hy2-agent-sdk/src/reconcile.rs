//! Desired state against what runs: verify, apply, keep on disk, in this order.
//!
//! Revocations and orders do not wait: users of a verified update, and what the node should be
//! doing, take effect even when its configuration cannot be applied or the disk is full. Such an
//! update is refused all the same, and the next one starts from the last that was accepted; it is
//! kept beside the ledger, so that who was revoked stays so after a restart.

mod restart;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use hy2_proto::control::{
    RESOURCE_CONFIG, RESOURCE_USERS,
    rpc::{
        EngineState, ErrorCode, ExpiryPolicy, FieldError, NodeConfig, NodeDesiredState,
        ResourceRef, ResourceUpdate,
    },
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    clock::{Clock, MastersClock, moment},
    engine::Engine,
    files,
    identity::Identity,
    ledger::{
        Freshness, Judged, Ledger, LedgerError, Snapshot, StoredUser, UserChanges, field_error,
    },
    settings::{CertificateSource, NodeSettings},
    users::{Doors, UserTable},
};
use restart::{RESTARTING, Restarts};
pub(crate) use restart::{RestartError, restarts};

/// What runs, as the master and the host see it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// State of the proxy.
    pub engine: EngineState,
    /// Why, when it is not serving.
    pub reason: String,
    /// Bound addresses.
    pub listening: Vec<String>,
    /// Cluster epoch of the state in force.
    pub cluster_epoch: u64,
    /// Revision of the manifest in force.
    pub manifest_rev: u64,
    /// Until when the master's last word is valid.
    pub valid_until: Option<SystemTime>,
    /// What the node should be doing.
    pub desired: NodeDesiredState,
}

/// Why a node does not serve that the master does not know any more.
const RETIRED: &str = "deleted, or its identity revoked";

/// Why a node lets nobody in that has not heard of its master for as long as a state is good.
const STALE: &str = "what the master said last has run out";

/// Makes what runs what is desired.
pub(crate) struct Reconciler {
    clock: Arc<MastersClock>,
    identity: Identity,
    users: Arc<UserTable>,
    engine: Arc<dyn Engine>,
    /// Held for a whole update.
    ledger: tokio::sync::Mutex<State>,
    orders: Mutex<Orders>,
    /// Whether the master has said that this node must not serve any more.
    retired: AtomicBool,
    /// Is there while it is so.
    retirement: PathBuf,
    restarts: watch::Sender<Restarts>,
    status: watch::Sender<Status>,
}

struct State {
    ledger: Ledger,
    /// The users and orders in force are ahead of the ledger: an update was refused after they took
    /// effect.
    ahead: Option<Ahead>,
    /// The engine runs what the ledger says.
    applied: bool,
    /// The engine has ended for good, or is about to.
    ended: bool,
    /// The copy on disk is behind.
    unsaved: bool,
    /// What the engine was given last.
    settings: Option<NodeSettings>,
    /// How the certificate's files looked when they were read.
    files: Option<(Stamp, Stamp)>,
    /// Why they could not be read last, and how they looked then.
    unread: Option<(Option<(Stamp, Stamp)>, String)>,
}

/// A verified update that does not run.
struct Ahead {
    snapshot: Box<Snapshot>,
    /// The copy on disk is behind.
    unsaved: bool,
}

/// Length and time of a file; `None` when it is not there.
type Stamp = Option<(u64, SystemTime)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// How the files of a certificate look; `None` where it is not from files.
fn stamps(settings: &NodeSettings) -> Option<(Stamp, Stamp)> {
    match &settings.certificate {
        CertificateSource::Files { certificate, key } => Some((stamp(certificate), stamp(key))),
        CertificateSource::Issued { .. } => None,
    }
}

/// What decides who may come in.
#[derive(Debug, Clone)]
struct Orders {
    /// Epoch and revision of the manifest that they came with. What an operator orders holds until
    /// there is another, however often the engine starts meanwhile.
    manifest: Option<(u64, u64)>,
    desired: NodeDesiredState,
    deadline: Option<SystemTime>,
    /// From when on nobody new is let in because the manifest is too old.
    stale_from: Option<SystemTime>,
}

/// An update that was not accepted: its epoch, its revision, and what is wrong.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) epoch: u64,
    pub(crate) rev: u64,
    pub(crate) errors: Vec<FieldError>,
}

/// An accepted update.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) epoch: u64,
    pub(crate) rev: u64,
    /// The state is in force but not on disk.
    pub(crate) unsaved: Option<io::Error>,
}

impl Reconciler {
    pub(crate) fn new(
        clock: Arc<MastersClock>,
        identity: Identity,
        users: Arc<UserTable>,
        engine: Arc<dyn Engine>,
        ledger: Ledger,
        folder: &Path,
    ) -> Self {
        let retirement = folder.join("retired");
        Self {
            retired: AtomicBool::new(retirement.exists()),
            retirement,
            clock,
            identity,
            users,
            engine,
            ledger: tokio::sync::Mutex::new(State {
                ledger,
                ahead: None,
                applied: false,
                ended: false,
                unsaved: false,
                settings: None,
                files: None,
                unread: None,
            }),
            orders: Mutex::new(Orders {
                manifest: None,
                desired: NodeDesiredState::Active,
                deadline: None,
                stale_from: None,
            }),
            restarts: watch::Sender::default(),
            status: watch::Sender::new(Status {
                engine: EngineState::Waiting,
                reason: "no configuration yet".to_owned(),
                listening: Vec::new(),
                cluster_epoch: 0,
                manifest_rev: 0,
                valid_until: None,
                desired: NodeDesiredState::Active,
            }),
        }
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What the ledger holds: epoch, revision, resources.
    pub(crate) async fn have(&self) -> (u64, u64, Vec<ResourceRef>) {
        let state = self.ledger.lock().await;
        state.ledger.current.as_ref().map_or_else(
            || (0, 0, Vec::new()),
            |current| {
                let manifest = &current.manifest;
                (
                    manifest.cluster_epoch,
                    manifest.rev,
                    manifest.resources.clone(),
                )
            },
        )
    }

    /// Starts from the ledger, without a master. Does nothing when there is none or the engine
    /// runs already.
    pub(crate) async fn start(&self) {
        let mut state = self.ledger.lock().await;
        self.start_from(&mut state).await;
    }

    async fn start_from(&self, state: &mut State) {
        if state.applied || state.ended {
            return;
        }
        if state.ledger.current.is_none() {
            let Some(credentials) = self.identity.credentials() else {
                return;
            };
            match state.ledger.load(&credentials, self.clock.now()) {
                Ok(true) => match state.ledger.load_refused(&credentials, self.clock.now()) {
                    Ok(found) => {
                        state.ahead = found.map(|snapshot| Ahead {
                            snapshot,
                            unsaved: false,
                        });
                    }
                    Err(error) => {
                        let error = crate::engine::chain_of(&error);
                        tracing::error!(
                            error,
                            "revocations of an update that was refused are not known until the master is there"
                        );
                    }
                },
                Ok(false) => return,
                Err(error) => {
                    let text = crate::engine::chain_of(&error);
                    tracing::error!(error = text, "the ledger is not used");
                    if !matches!(error, LedgerError::Read(_)) {
                        self.failed(&text);
                    }
                    return;
                }
            }
        }
        let Some(snapshot) = state.ledger.current.clone() else {
            return;
        };
        if let Some(issued) = moment(snapshot.manifest.issued_at.as_ref()) {
            self.clock.is_past(issued);
        }
        let settings = match NodeSettings::parse(&snapshot.config) {
            Ok(settings) => settings,
            Err(errors) => return self.failed(&text_of(&errors)),
        };
        self.users.set_keys(&settings.keys);
        let all = UserChanges {
            all: true,
            ..UserChanges::default()
        };
        match &state.ahead {
            None => {
                self.users.apply(&snapshot.users, &all);
                self.take_orders(&snapshot, settings.drain_when_expired);
            }
            Some(Ahead { snapshot: last, .. }) => {
                if let Some(issued) = moment(last.manifest.issued_at.as_ref()) {
                    self.clock.is_past(issued);
                }
                self.users.apply(&users_of_refused(&snapshot, last), &all);
                self.take_orders(last, settings.drain_when_expired);
            }
        }
        let files = stamps(&settings);
        match self.engine.apply(&settings).await {
            Ok(_) => {
                state.applied = true;
                state.settings = Some(settings);
                state.files = files;
                self.in_force(&snapshot, true);
                if let Some(ahead) = &state.ahead {
                    self.ordered(&ahead.snapshot);
                }
                tracing::info!(revision = snapshot.manifest.rev, "running from the ledger");
            }
            Err(errors) => self.failed(&text_of(&errors)),
        }
    }

    /// Takes a complete update.
    pub(crate) async fn update(&self, update: &ResourceUpdate) -> Result<Accepted, Refused> {
        let mut state = self.ledger.lock().await;
        let (epoch, rev) = named(update);
        let refuse = |errors| Refused { epoch, rev, errors };
        let Some(credentials) = self.identity.credentials() else {
            let error = field_error(ErrorCode::NotFound, "", "the node is not enrolled");
            return Err(refuse(vec![error]));
        };
        let now = self.clock.now();
        let judged = state
            .ledger
            .judge(update, &credentials, now, Freshness::Valid);
        let (snapshot, mut changes, is_new) = match judged.map_err(refuse)? {
            Judged::Known => {
                if state.applied {
                    return Ok(Accepted {
                        epoch,
                        rev,
                        unsaved: None,
                    });
                }
                // The engine could not start before; the master asks to try again.
                let Some(current) = state.ledger.current.clone() else {
                    return Ok(Accepted {
                        epoch,
                        rev,
                        unsaved: None,
                    });
                };
                let all = UserChanges {
                    all: true,
                    ..UserChanges::default()
                };
                (Box::new(current), all, false)
            }
            Judged::New { snapshot, users } => (snapshot, users, true),
        };
        changes.all |= state.ahead.is_some() || !state.applied;
        let unchanged = state.applied
            && state
                .ledger
                .current
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(&current.config, &snapshot.config));
        let settings = NodeSettings::parse(&snapshot.config);
        // Before they are read: what changes meanwhile is another content. Where they are not read
        // again, what was known of them still is.
        let files = match &settings {
            Ok(_) if unchanged => state.files,
            Ok(settings) => stamps(settings),
            Err(_) => None,
        };
        let applied = match &settings {
            // Users first: whoever is revoked does not wait for a certificate to load.
            Ok(settings) => {
                self.users_first(&state, &snapshot, settings, &changes);
                if unchanged {
                    Ok(())
                } else if state.ended {
                    // It runs from the agent's next start on.
                    self.engine.check(settings).await.map(|_| ())
                } else {
                    self.engine.apply(settings).await.map(|_| ())
                }
            }
            Err(errors) => Err(errors.clone()),
        };
        match (settings, applied) {
            (Ok(settings), Ok(())) => {
                self.users.set_keys(&settings.keys);
                self.users.apply(&snapshot.users, &changes);
                self.take_orders(&snapshot, settings.drain_when_expired);
                self.in_force(&snapshot, !state.ended);
                state.applied |= !state.ended;
                state.ahead = None;
                state.settings = Some(settings);
                state.files = files;
                let kept = match state.ledger.commit(*snapshot) {
                    Ok(copy) => copy.write().await,
                    Err(error) => Err(error),
                };
                state.unsaved = kept.is_err();
                if !state.unsaved {
                    state.ledger.forget_refused();
                }
                Ok(Accepted {
                    epoch,
                    rev,
                    unsaved: kept.err(),
                })
            }
            (_, Err(errors)) | (Err(errors), _) => {
                if is_new {
                    self.revoke_anyway(&mut state, snapshot, &changes).await;
                }
                if !state.applied {
                    self.failed(&text_of(&errors));
                }
                Err(refuse(errors))
            }
        }
    }

    /// Puts the users of an update in force before its configuration, where the keys under which
    /// they are found stay.
    fn users_first(
        &self,
        state: &State,
        snapshot: &Snapshot,
        settings: &NodeSettings,
        changes: &UserChanges,
    ) {
        let same =
            state.ledger.current.as_ref().is_some_and(|current| {
                current.config.verifier_keys == settings.message.verifier_keys
            });
        if same {
            self.users.apply(&snapshot.users, changes);
        }
    }

    /// Puts the users and orders of a verified update in force whose configuration was refused, and
    /// keeps them on disk.
    async fn revoke_anyway(
        &self,
        state: &mut State,
        snapshot: Box<Snapshot>,
        changes: &UserChanges,
    ) {
        let Some(current) = &state.ledger.current else {
            return;
        };
        if has_same_keys(current, &snapshot) {
            self.users.apply(&snapshot.users, changes);
        } else {
            let all = UserChanges {
                all: true,
                ..UserChanges::default()
            };
            self.users
                .apply(&users_of_refused(current, &snapshot), &all);
        }
        // What to do past the validity is said by the configuration that runs.
        let drains = current.config.expiry_policy() == ExpiryPolicy::Drain;
        self.take_orders(&snapshot, drains);
        self.ordered(&snapshot);
        let unsaved = !keep_refused(&state.ledger, &snapshot).await;
        if unsaved {
            tracing::warn!(
                "users of a refused update not kept on disk: a restart without the master would serve those before"
            );
        }
        state.ahead = Some(Ahead { snapshot, unsaved });
    }

    /// Says what the node should be doing, and until when that is good.
    fn ordered(&self, snapshot: &Snapshot) {
        let desired = self.orders.lock().desired;
        self.status.send_if_modified(|status| {
            let valid_until = snapshot.valid_until();
            let changed = (status.desired, status.valid_until) != (desired, valid_until);
            (status.desired, status.valid_until) = (desired, valid_until);
            changed
        });
    }

    fn take_orders(&self, snapshot: &Snapshot, drain_when_expired: bool) {
        let manifest = &snapshot.manifest;
        let named = Some((manifest.cluster_epoch, manifest.rev));
        {
            let mut orders = self.orders.lock();
            if orders.manifest != named {
                *orders = Orders {
                    manifest: named,
                    desired: manifest.desired_state(),
                    deadline: moment(manifest.drain_deadline.as_ref()),
                    stale_from: drain_when_expired.then(|| snapshot.valid_until()).flatten(),
                };
            }
        }
        self.tick();
    }

    /// Orders a state until the next manifest, also where the engine is started anew before that.
    pub(crate) fn order(&self, desired: NodeDesiredState, deadline: Option<SystemTime>) {
        {
            let mut orders = self.orders.lock();
            orders.desired = desired;
            orders.deadline = deadline;
        }
        self.status.send_if_modified(|status| {
            let changed = status.desired != desired;
            status.desired = desired;
            changed
        });
        self.tick();
    }

    /// Serves nobody any more, also after a restart: the node was deleted, or its identity revoked.
    pub(crate) fn retire(&self) {
        if self.retired.swap(true, SeqCst) {
            return;
        }
        tracing::error!("this node was deleted or its identity revoked; it serves nobody any more");
        if let Err(error) = files::write_atomic(&self.retirement, b"") {
            tracing::warn!(%error, "retirement not kept on disk: a restart without the master would serve again");
        }
        self.tick();
    }

    /// Serves again: a master knows this node.
    pub(crate) fn reinstate(&self) {
        if !self.retired.swap(false, SeqCst) {
            return;
        }
        tracing::warn!("the master knows this node again");
        if let Err(error) = std::fs::remove_file(&self.retirement) {
            tracing::warn!(%error, "retirement not removed from the disk");
        }
        self.tick();
    }

    /// Does what is due by the clock.
    pub(crate) fn tick(&self) {
        let orders = self.orders.lock().clone();
        let now = self.clock.now();
        let stale = orders.stale_from.is_some_and(|from| from <= now);
        let retired = self.retired.load(SeqCst);
        let restarting = self.restarts.borrow().waits();
        let (closed, everybody_out, reason) = match orders.desired {
            _ if retired => (true, true, RETIRED),
            NodeDesiredState::Draining => (
                true,
                orders.deadline.is_some_and(|deadline| deadline <= now),
                "to be drained",
            ),
            NodeDesiredState::Maintenance => (true, true, "in maintenance"),
            NodeDesiredState::Disabled => (true, true, "disabled"),
            _ if restarting => (true, false, RESTARTING),
            _ if stale => (true, false, STALE),
            _ => (false, false, ""),
        };
        self.users
            .set_doors(if closed { Doors::Closed } else { Doors::Open });
        if everybody_out || orders.desired == NodeDesiredState::Draining {
            for session in self.engine.sessions() {
                // A client without a stream loses nothing and finds another node.
                if everybody_out || session.tcp_streams == 0 {
                    self.engine.kick_connection(session.connection);
                }
            }
        }
        let engine = match self.status.borrow().engine {
            EngineState::Serving if closed => EngineState::Draining,
            EngineState::Draining if !closed => EngineState::Serving,
            other => other,
        };
        self.status.send_if_modified(|status| {
            let mut changed = status.engine != engine;
            status.engine = engine;
            // Why the engine itself failed stays.
            let runs = matches!(engine, EngineState::Serving | EngineState::Draining);
            if (runs || retired) && status.reason != reason {
                reason.clone_into(&mut status.reason);
                changed = true;
            }
            changed
        });
    }

    /// Tries again what failed for a reason that may pass: a port in use, a full disk.
    pub(crate) async fn retry(&self) {
        self.start().await;
        let mut state = self.ledger.lock().await;
        if state.unsaved
            && let Some(current) = state.ledger.current.clone()
            && let Ok(copy) = state.ledger.commit(current)
        {
            state.unsaved = copy.write().await.is_err();
            if !state.unsaved && state.ahead.is_none() {
                state.ledger.forget_refused();
            }
        }
        let State { ahead, ledger, .. } = &mut *state;
        if let Some(ahead) = ahead.as_mut().filter(|ahead| ahead.unsaved) {
            ahead.unsaved = !keep_refused(ledger, &ahead.snapshot).await;
        }
        self.follow_files(&mut state).await;
    }

    /// Applies the settings anew when the certificate's files have another content.
    async fn follow_files(&self, state: &mut State) {
        let runs = state.applied && !state.ended;
        let Some(settings) = state.settings.clone().filter(|_| runs) else {
            return;
        };
        let found = stamps(&settings);
        if found == state.files {
            return;
        }
        match self.engine.apply(&settings).await {
            Ok(_) => {
                state.files = found;
                state.unread = None;
                tracing::info!("certificate files read anew");
            }
            // Tried again: what cannot be read now may be soon, without looking different.
            Err(errors) => {
                let unread = Some((found, text_of(&errors)));
                if state.unread != unread {
                    let errors = text_of(&errors);
                    tracing::warn!(errors, "certificate files not read, the old stay in use");
                    state.unread = unread;
                }
            }
        }
    }

    /// Checks a configuration as an update would be checked; changes nothing.
    pub(crate) async fn check(
        &self,
        config: NodeConfig,
    ) -> Result<hy2_proto::control::rpc::ApplyEffect, Vec<FieldError>> {
        let settings = NodeSettings::parse(&Arc::new(config))?;
        self.engine.check(&settings).await
    }

    /// Stops the engine for good. Who is revoked while connections finish is cut as at any time.
    pub(crate) async fn stop(&self, grace: Duration) {
        // A restart that waits for connections to finish does not come any more.
        self.restarts.send_modify(Restarts::end);
        self.ledger.lock().await.ended = true;
        self.engine.stop(grace).await;
        self.status.send_modify(|status| {
            status.engine = EngineState::Stopped;
            status.listening.clear();
        });
    }

    /// Says what is in force, and whether the engine `runs` it.
    fn in_force(&self, snapshot: &Snapshot, runs: bool) {
        let listening = self
            .engine
            .listening()
            .iter()
            .map(ToString::to_string)
            .collect();
        let manifest = &snapshot.manifest;
        // Not always the manifest's: an operator's order may hold.
        let desired = self.orders.lock().desired;
        self.status.send_modify(|status| {
            if runs {
                status.engine = EngineState::Serving;
                status.reason.clear();
                status.listening = listening;
            }
            status.cluster_epoch = manifest.cluster_epoch;
            status.manifest_rev = manifest.rev;
            status.valid_until = snapshot.valid_until();
            status.desired = desired;
        });
        self.tick();
    }

    fn failed(&self, reason: &str) {
        tracing::error!(reason, "the configuration does not run");
        self.status.send_modify(|status| {
            status.engine = EngineState::Failed;
            reason.clone_into(&mut status.reason);
        });
    }
}

/// Whether users are found under the same keys in both.
fn has_same_keys(one: &Snapshot, other: &Snapshot) -> bool {
    one.config.verifier_keys == other.config.verifier_keys
}

/// The users of an update whose configuration was refused, as far as the one in force knows them.
fn users_of_refused(current: &Snapshot, refused: &Snapshot) -> Arc<BTreeMap<u64, StoredUser>> {
    if has_same_keys(current, refused) {
        return Arc::clone(&refused.users);
    }
    // Its verifiers mean nothing under the keys in force, but who is gone is gone.
    let mut left = BTreeMap::clone(&current.users);
    left.retain(|id, _| refused.users.contains_key(id));
    Arc::new(left)
}

/// Keeps an update on disk that was refused; `false` when the disk does not take it.
async fn keep_refused(ledger: &Ledger, snapshot: &Snapshot) -> bool {
    match ledger.refuse(snapshot) {
        Ok(copy) => copy.write().await.is_ok(),
        Err(_) => false,
    }
}

/// Epoch and revision that an update claims, for the answer.
fn named(update: &ResourceUpdate) -> (u64, u64) {
    use prost::Message;
    let manifest = update.manifest.as_ref();
    let manifest = manifest
        .and_then(|signed| hy2_proto::control::rpc::Manifest::decode(signed.manifest.clone()).ok());
    manifest.map_or((0, 0), |manifest| (manifest.cluster_epoch, manifest.rev))
}

fn text_of(errors: &[FieldError]) -> String {
    let parts: Vec<_> = errors
        .iter()
        .map(|error| format!("{}: {}", error.path, error.message))
        .collect();
    parts.join("; ")
}

/// Puts the parts of an update together, within bounds.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    update: ResourceUpdate,
    next: u32,
    bytes: usize,
}

/// Most bytes of one update, all parts together.
const UPDATE_MAX: usize = 256 << 20;

impl Assembly {
    /// Adds a part; `Some` when the update is complete.
    ///
    /// # Errors
    ///
    /// What the master should be told when parts do not fit together.
    pub(crate) fn add(
        &mut self,
        part: ResourceUpdate,
    ) -> Result<Option<ResourceUpdate>, FieldError> {
        if part.part == 0 {
            *self = Self::default();
            self.update.users_snapshot = part.users_snapshot;
            self.update.users_base_rev = part.users_base_rev;
        }
        let wrong = |text: &str| field_error(ErrorCode::BaseMissing, "part", text);
        if part.part != self.next {
            *self = Self::default();
            return Err(wrong("parts are not in order"));
        }
        self.next += 1;
        self.bytes += prost::Message::encoded_len(&part);
        if self.bytes > UPDATE_MAX {
            *self = Self::default();
            return Err(wrong("the update is too large"));
        }
        if part.has_config {
            self.update.has_config = true;
            self.update.config = part.config;
        }
        self.update.upsert_users.extend(part.upsert_users);
        self.update.remove_users.extend(part.remove_users);
        if !part.last {
            return Ok(None);
        }
        self.update.manifest = part.manifest;
        Ok(Some(std::mem::take(self).update))
    }
}

/// Revisions of the two resources, for logs.
pub(crate) fn revisions(resources: &[ResourceRef]) -> (u64, u64) {
    let rev = |kind: &str| {
        let found = resources.iter().find(|one| one.r#type == kind);
        found.map_or(0, |one| one.rev)
    };
    (rev(RESOURCE_CONFIG), rev(RESOURCE_USERS))
}
