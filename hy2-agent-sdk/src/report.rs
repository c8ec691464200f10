//! What the node tells of itself: heartbeats, figures of host and QUIC, live connections.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hy2_proto::control::rpc::{Heartbeat, LiveSession, NodeMetrics, SessionsReport};
use parking_lot::Mutex;
use sysinfo::{Disks, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::{agent::Node, engine::EngineSession};

/// Counts the panics of the process, for the figures that the master gets. Clones are one.
///
/// A library installs no hook for the whole process: the embedder does, calls [`Self::note`] in it, and gives
/// this to [`AgentBuilder::panics`](crate::AgentBuilder::panics).
#[derive(Debug, Clone, Default)]
pub struct PanicCount(Arc<AtomicU64>);

impl PanicCount {
    /// Counts one.
    pub fn note(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Returns how many were counted.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Takes samples. One per agent: rates are since the sample before.
pub(crate) struct Reporter {
    inner: Mutex<Sampler>,
}

struct Sampler {
    /// `None` where the system does not tell.
    system: Option<System>,
    folder: PathBuf,
    before: Option<Before>,
}

#[derive(Clone)]
struct Before {
    at: Instant,
    tx: u64,
    rx: u64,
    /// Packets lost and sent by connection.
    packets: HashMap<u64, (u64, u64)>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reporter")
    }
}

impl Reporter {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            inner: Mutex::new(Sampler {
                system: System::new().ok(),
                folder,
                before: None,
            }),
        }
    }

    /// Takes a sample. Blocks on the system for milliseconds.
    pub(crate) fn sample(&self, node: &Node) -> NodeMetrics {
        let sessions = node.engine.sessions();
        let (tx, rx) = node.traffic.cells.totals();
        let mut sampler = self.inner.lock();
        let sampler = &mut *sampler;
        let pid = sysinfo::get_current_pid().ok();
        if let Some(system) = &mut sampler.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            if let Some(pid) = pid {
                let kind = ProcessRefreshKind::nothing().with_memory();
                let processes = ProcessesToUpdate::Some(&[pid]);
                system.refresh_processes_specifics(processes, false, kind);
            }
        }
        let packets: HashMap<_, _> = sessions
            .iter()
            .map(|one| (one.connection, (one.lost_packets, one.sent_packets)))
            .collect();
        let now = Before {
            at: Instant::now(),
            tx,
            rx,
            packets,
        };
        let before = sampler
            .before
            .replace(now.clone())
            .unwrap_or_else(|| now.clone());
        let span = now.at.duration_since(before.at).as_secs_f64();
        let rate = |now: u64, before: u64| match span {
            span if span > 0.0 => (now.saturating_sub(before) as f64 / span) as u64,
            _ => 0,
        };
        let mut rtts: Vec<f64> = sessions
            .iter()
            .map(|one| one.rtt.as_secs_f64() * 1000.0)
            .collect();
        rtts.sort_by(f64::total_cmp);
        let system = sampler.system.as_ref();
        let process = pid.and_then(|pid| system?.process(pid));
        NodeMetrics {
            at: Some(node.clock.now().into()),
            cpu_permille: system.map_or(0, |system| (system.global_cpu_usage() * 10.0) as u32),
            memory_used_bytes: system.map_or(0, System::used_memory),
            memory_total_bytes: system.map_or(0, System::total_memory),
            load1: System::load_average().map_or(0.0, |load| load.one),
            disk_free_bytes: disk_free(&sampler.folder),
            open_files: open_files(),
            tx_bytes: tx,
            rx_bytes: rx,
            connections: count(sessions.len()),
            users_online: node.users.online(),
            tcp_streams: sessions.iter().map(|one| one.tcp_streams).sum(),
            udp_sessions: sessions.iter().map(|one| one.udp_sessions).sum(),
            auth_accepted: node.users.accepted.load(Relaxed),
            auth_rejected: node.users.rejected.load(Relaxed),
            handshakes_failed: node.engine.handshakes_failed(),
            rtt_p50_ms: percentile(&rtts, 50),
            rtt_p95_ms: percentile(&rtts, 95),
            loss_permille: loss(&now.packets, &before.packets),
            spool_bytes: node.traffic.waiting().bytes,
            agent_memory_bytes: process.map_or(0, sysinfo::Process::memory),
            tx_bytes_per_s: rate(tx, before.tx),
            rx_bytes_per_s: rate(rx, before.rx),
            panics: node.panics.get(),
        }
    }
}

/// Packets lost of those sent since the sample before, in thousandths.
fn loss(now: &HashMap<u64, (u64, u64)>, before: &HashMap<u64, (u64, u64)>) -> u32 {
    let (lost, sent) = now
        .iter()
        .fold((0, 0), |(lost, sent), (connection, figures)| {
            let old = before.get(connection).copied().unwrap_or_default();
            (
                lost + figures.0.saturating_sub(old.0),
                sent + figures.1.saturating_sub(old.1),
            )
        });
    u32::try_from((lost * 1000).checked_div(sent).unwrap_or(0)).unwrap_or(u32::MAX)
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
    sorted.get(at).copied().unwrap_or(0.0)
}

pub(crate) fn disk_free(folder: &std::path::Path) -> u64 {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let Ok(disks) = Disks::new_with_refreshed_list() else {
        return 0;
    };
    let holding = disks
        .iter()
        .filter(|disk| folder.starts_with(disk.mount_point()))
        .max_by_key(|disk| disk.mount_point().as_os_str().len());
    holding.map_or(0, sysinfo::Disk::available_space)
}

fn open_files() -> u32 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| count(entries.count()))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Makes a heartbeat out of the newest sample.
pub(crate) fn heartbeat(node: &Node, sample: &NodeMetrics) -> Heartbeat {
    let status = node.reconciler.status().borrow().clone();
    let uptime = node.started.elapsed();
    Heartbeat {
        uptime: prost_types::Duration::try_from(uptime).ok(),
        connections: sample.connections,
        users_online: sample.users_online,
        tx_bytes_per_s: sample.tx_bytes_per_s,
        rx_bytes_per_s: sample.rx_bytes_per_s,
        cpu_permille: sample.cpu_permille,
        memory_permille: u32::try_from(
            (sample.memory_used_bytes * 1000)
                .checked_div(sample.memory_total_bytes)
                .unwrap_or(0),
        )
        .unwrap_or(1000),
        manifest_rev: status.manifest_rev,
        spool_bytes: sample.spool_bytes,
        engine: status.engine.into(),
    }
}

/// Describes the live connections.
pub(crate) fn live_sessions(node: &Node) -> Vec<LiveSession> {
    let sessions = node.engine.sessions().into_iter();
    sessions.map(|session| live(node, &session)).collect()
}

fn live(node: &Node, session: &EngineSession) -> LiveSession {
    let lost = (session.lost_packets * 1000).checked_div(session.sent_packets);
    LiveSession {
        connection_id: session.connection,
        user_id: session.user,
        remote: session.remote.to_string(),
        since: node
            .users
            .since(session.user, session.connection)
            .map(Into::into),
        tx_bytes: session.tx,
        rx_bytes: session.rx,
        rtt_ms: session.rtt.as_secs_f64() * 1000.0,
        loss_permille: lost.and_then(|lost| u32::try_from(lost).ok()).unwrap_or(0),
        send_rate_bytes_per_s: session.send_rate,
        ack_rate_permille: session.ack_rate_permille,
        mtu: session.mtu.into(),
        max_datagram: count(session.max_datagram),
        tcp_streams: session.tcp_streams,
        udp_sessions: session.udp_sessions,
    }
}

/// Says what changed among the live connections since it was asked before.
#[derive(Debug, Default)]
pub(crate) struct SessionsDelta {
    known: HashMap<u64, (u64, u64, u32, u32)>,
    begun: bool,
}

/// Connections in one report; more follow in the next.
const SESSIONS_MAX: usize = 10_000;

impl SessionsDelta {
    /// Returns the report; `None` when nothing changed.
    pub(crate) fn next(&mut self, now: Vec<LiveSession>) -> Option<SessionsReport> {
        let complete = !std::mem::replace(&mut self.begun, true);
        let figures = |one: &LiveSession| {
            (
                one.tx_bytes,
                one.rx_bytes,
                one.tcp_streams,
                one.udp_sessions,
            )
        };
        let present: std::collections::HashSet<u64> =
            now.iter().map(|one| one.connection_id).collect();
        let ended: Vec<u64> = self
            .known
            .keys()
            .copied()
            .filter(|connection| !present.contains(connection))
            .collect();
        for connection in &ended {
            self.known.remove(connection);
        }
        let changed = now
            .into_iter()
            .filter(|one| self.known.get(&one.connection_id) != Some(&figures(one)));
        let upsert: Vec<_> = changed.take(SESSIONS_MAX).collect();
        for one in &upsert {
            self.known.insert(one.connection_id, figures(one));
        }
        (complete || !upsert.is_empty() || !ended.is_empty()).then_some(SessionsReport {
            complete,
            upsert,
            ended,
        })
    }
}

/// How often sessions are compared.
pub(crate) const SESSIONS_PERIOD: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_reports_name_what_began_changed_and_ended() {
        let session = |connection_id, tx_bytes| LiveSession {
            connection_id,
            tx_bytes,
            ..Default::default()
        };
        let mut delta = SessionsDelta::default();
        let first = delta.next(vec![session(1, 0), session(2, 0)]).unwrap();
        assert!(first.complete);
        assert_eq!(first.upsert.len(), 2);
        assert!(delta.next(vec![session(1, 0), session(2, 0)]).is_none());
        let next = delta.next(vec![session(1, 5), session(3, 0)]).unwrap();
        assert!(!next.complete);
        assert_eq!(next.ended, [2]);
        let changed: Vec<_> = next.upsert.iter().map(|one| one.connection_id).collect();
        assert_eq!(changed, [1, 3]);
    }

    #[test]
    fn percentiles_and_loss_of_few_and_of_none() {
        assert_eq!(percentile(&[], 95), 0.0);
        assert_eq!(percentile(&[1.0], 50), 1.0);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 95), 3.0);
        let before = HashMap::from([(1, (5, 100))]);
        let now = HashMap::from([(1, (10, 200)), (2, (0, 900))]);
        assert_eq!(loss(&now, &before), 5);
        assert_eq!(loss(&before, &before), 0);
    }
}
